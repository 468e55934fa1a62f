//! What a VMM says of itself, and what it is told to do: `/`, `/version`, `/actions`, `/vm`.

use serde::{Deserialize, Serialize};

use crate::version::Version;

/// Answer of `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// The `--id` of the VMM; `anonymous-instance` when none was given.
    pub id: String,
    /// Whether the guest runs.
    pub state: InstanceState,
    /// The VMM's version.
    pub vmm_version: Version,
    /// Always `Firecracker`.
    pub app_name: String,
}

/// The `state` of an [`InstanceInfo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceState {
    /// The guest has not been started: configuration is still accepted.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still.
    Paused,
    /// A state that this smartvm does not know, as the VMM named it.
    #[serde(untagged)]
    Other(String),
}

/// Answer of `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirecrackerVersion {
    /// The VMM's version.
    pub firecracker_version: Version,
}
