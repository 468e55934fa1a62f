//! What a machine boots from, fetched or built once, verified, and shared by all machines of a host.
//!
//! * [`digest`]: the names of contents
//! * [`image`]: OCI images, from registries and archives

pub mod digest;
pub mod image;

pub use digest::Digest;
