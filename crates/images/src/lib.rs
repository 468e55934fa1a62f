//! What a machine boots from, fetched or built once, verified, and shared by all machines of a host.
//!
//! * [`kernel`]: kernel bundles, imported from packages, files and hosts
//! * [`digest`]: the names of contents
//! * [`progress`]: what long work tells while it runs
//! * [`blocking`]: work that blocks a thread, and stops when nobody waits
//! * [`store`]: contents and records, shared by all processes of this host
//! * [`download`]: fetching, whatever the network does
//! * [`release`]: Firecracker releases
//! * [`base`]: base-image bundles, for a quick start
//! * [`setup`]: getting a fresh host ready, with or without a network
//! * [`rootfs`]: layers or a directory become one ext4 file
//! * [`image`]: OCI images, from registries and archives

pub mod base;
pub mod blocking;
pub mod digest;
pub mod download;
pub mod image;
pub mod kernel;
pub mod progress;
pub mod release;
pub mod rootfs;
pub mod setup;
pub mod store;

pub use digest::Digest;
pub use progress::Progress;
pub use store::Store;
