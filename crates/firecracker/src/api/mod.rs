//! The bodies of Firecracker's API, in its field names.

mod instance;

pub use instance::{FirecrackerVersion, InstanceInfo, InstanceState};
