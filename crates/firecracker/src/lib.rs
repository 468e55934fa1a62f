//! Firecracker's own language: what is said to it and what it says, by version.
//!
//! Knows nothing of processes, jails or machines: give it the path of an API socket, or a connected
//! stream, and it speaks. In reading order:
//!
//! * [`version`]: version numbers
//! * [`capability`]: what each version can do, in one table
//! * [`api`]: every request and answer, in Firecracker's field names
//! * [`config_file`]: the same as one file
//! * [`error`]: what can go wrong with a request
//! * [`client`]: one connection to one VMM
//! * [`first_answer`]: the first `GET /` of a start, without an async runtime
//! * [`log`], [`metrics`], [`exit_code`]: what a VMM says beside its API
//! * `spec`: a config file as the spec that the core checks ([`VmConfig::to_spec`])
//! * [`socket`]: connecting without blocking, whatever the length of the path

pub mod api;
pub mod capability;
pub mod client;
pub mod config_file;
pub mod error;
pub mod exit_code;
pub mod first_answer;
pub mod log;
pub mod metrics;
pub mod socket;
mod spec;
pub mod version;

pub use client::Client;
pub use config_file::{ConfigError, ConfigFile, VmConfig};
pub use error::ApiError;
pub use version::Version;
