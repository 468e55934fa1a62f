//! OCI images: their names, where they come from, and what is kept of them.
//!
//! * [`reference`]: the names of images

pub mod reference;

pub use reference::{BadReference, Reference};
