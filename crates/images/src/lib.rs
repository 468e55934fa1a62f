//! What a machine boots from, fetched or built once, verified, and shared by all machines of a host.
//!
//! * [`digest`]: the names of contents

pub mod digest;

pub use digest::Digest;
