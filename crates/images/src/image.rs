//! OCI images: their names, where they come from, and what is kept of them.
//!
//! * [`mod@reference`]: the names of images
//! * [`platform`]: which machines they are for
//! * `manifest`, `config`: the documents that describe them
//! * `record`: what is kept of an image, and the names that lead to it: [`list`], [`resolve`], [`tag`], [`remove`], [`adopt`]
//! * [`credentials`], `challenge`, `registry`: asking a registry
//! * [`pull()`]: from a registry
//! * [`import()`], `archive`: from a layout, a `docker save` archive, a root file system
//! * [`export()`]: to an OCI layout, or the tar archive of a root file system
//! * `make`: layers become a file system
//!
//! Layers are not kept: an image is its root file system and what is said about it.

mod archive;
mod challenge;
mod config;
pub mod credentials;
mod error;
mod export;
mod import;
mod make;
mod manifest;
pub mod platform;
mod pull;
mod record;
pub mod reference;
mod registry;

pub use config::{History, ImageConfig};
pub use credentials::{Credentials, Login, Secret};
pub use error::ImageError;
pub use export::{ExportFormat, ExportTarget, Exported, export};
pub use import::{Format, ImportOptions, ImportSource, Imported, import};
pub use platform::{BadPlatform, Platform};
pub use pull::{PullOptions, Pulled, pull};
pub use record::{
    CONVERTER, Image, Layer, Named, Removed, Root, RootKind, adopt, list, remove, resolve, tag,
};
pub use reference::{BadReference, Reference};
pub use registry::Insecure;

pub(crate) use make::uuid_text;
pub(crate) use record::release;
