//! What a VMM says of itself, and what it is told to do: `/`, `/version`, `/vm/config`, `/actions`, `/vm`.

use serde::{Deserialize, Serialize};

use super::{
    Balloon, BootSource, CpuConfig, Drive, EntropyDevice, Logger, MachineConfiguration, MemoryHotplugConfig,
    Metrics, MmdsConfig, NetworkInterface, Pmem, Vsock,
};
use crate::capability::Requires;
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

/// Body of `PUT /actions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct InstanceActionInfo {
    /// What to do.
    pub action_type: ActionType,
}

/// What `PUT /actions` can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum ActionType {
    /// Boot the guest (once).
    InstanceStart,
    /// Press Ctrl+Alt+Del on the guest's keyboard (after boot, x86_64).
    SendCtrlAltDel,
    /// Write the metrics now (after boot).
    FlushMetrics,
}

impl Requires for InstanceActionInfo {}

/// Body of `PATCH /vm` (after boot).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// What the vCPUs shall do.
    pub state: VmState,
}

/// What the vCPUs shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum VmState {
    /// Stand still.
    Paused,
    /// Run.
    Resumed,
}

impl Requires for Vm {}

/// Answer of `GET /vm/config`. After a snapshot was loaded, boot source, `smt` and `cpu_template` are empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "kebab-case", default)]
pub struct FullVmConfiguration {
    /// The balloon.
    pub balloon: Option<Balloon>,
    /// The drives, the root device first.
    pub drives: Vec<Drive>,
    /// Kernel and command line; an empty path when not configured.
    pub boot_source: Option<BootSource>,
    /// The custom CPU template. Since 1.10; null in 1.12.1 even when one was put.
    pub cpu_config: Option<CpuConfig>,
    /// Always null up to 1.12.1.
    pub logger: Option<Logger>,
    /// vCPUs and memory.
    pub machine_config: Option<MachineConfiguration>,
    /// Always null up to 1.12.1.
    pub metrics: Option<Metrics>,
    /// The metadata service.
    pub mmds_config: Option<MmdsConfig>,
    /// The network interfaces.
    pub network_interfaces: Vec<NetworkInterface>,
    /// The vsock device.
    pub vsock: Option<Vsock>,
    /// The entropy device. Since 1.10.
    pub entropy: Option<EntropyDevice>,
    /// Persistent-memory devices. Since 1.14.
    pub pmem: Vec<Pmem>,
    /// Memory hotplug. Since 1.14.
    pub memory_hotplug: Option<MemoryHotplugConfig>,
}
