//! Snapshots: `/snapshot/create` and `/snapshot/load`.

use serde::{Deserialize, Serialize};

use super::open::open_struct;
use crate::capability::{Capability, Requires};

/// Body of `PUT /snapshot/create` (paused).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreateParams {
    /// All memory, or what was written since the last snapshot. Default `Full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_type: Option<SnapshotType>,
    /// The file for the state of the devices; made or replaced.
    pub snapshot_path: String,
    /// The file for the guest's memory; made or replaced, with `Diff` written over.
    pub mem_file_path: String,
}

impl Requires for SnapshotCreateParams {}

/// What a snapshot holds of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum SnapshotType {
    /// All of it.
    Full,
    /// What was written since the last snapshot (preview); before 1.13 only with `track_dirty_pages`.
    Diff,
}

/// Body of `PUT /snapshot/load`, to a VMM that has nothing configured but logger and metrics.
///
/// Exactly one of `mem_backend` and `mem_file_path` must be there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoadParams {
    /// The file with the state of the devices.
    pub snapshot_path: String,
    /// The file with the guest's memory. Deprecated: use `mem_backend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<String>,
    /// Where the guest's memory comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemoryBackend>,
    /// Keep a log of written pages. Deprecated: `track_dirty_pages` from 1.13 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_diff_snapshots: Option<bool>,
    /// Let the guest run at once. Default false: it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_vm: Option<bool>,
    /// Other TAP devices for the interfaces. Since 1.12.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_overrides: Option<Vec<NetworkOverride>>,
    /// Keep a log of written pages, for `Diff` snapshots. Since 1.13.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// Another socket for the vsock device. Since 1.16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Advance the guest's clock by the time since the snapshot (x86_64). Since 1.16, 1.15.1 and 1.14.4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_realtime: Option<bool>,
    /// What backs guest memory. Since 1.17.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<LoadHugePages>,
}

impl Requires for SnapshotLoadParams {
    fn requires(&self) -> Vec<Capability> {
        let used = [
            (self.network_overrides.is_some(), Capability::LOAD_NETWORK_OVERRIDES),
            (self.track_dirty_pages.is_some(), Capability::LOAD_TRACK_DIRTY_PAGES),
            (self.vsock_override.is_some(), Capability::LOAD_VSOCK_OVERRIDE),
            (self.clock_realtime.is_some(), Capability::LOAD_CLOCK_REALTIME),
            (self.huge_pages.is_some(), Capability::LOAD_HUGE_PAGES),
        ];
        used.into_iter().filter_map(|(used, capability)| used.then_some(capability)).collect()
    }
}

/// Where the guest's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct MemoryBackend {
    /// `File`: the file with the memory. `Uffd`: the Unix socket of the process that serves page faults.
    pub backend_path: String,
    /// Which of them.
    pub backend_type: BackendType,
}

/// How the guest's memory is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum BackendType {
    /// Mapped privately from a file.
    File,
    /// Page by page, by another process.
    Uffd,
}

open_struct! {
    /// Another TAP device for one interface. Firecracker 1.12.1 takes unknown fields here.
    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct NetworkOverride {
        /// The interface's id.
        iface_id: String,
        /// Its new TAP device on the host.
        host_dev_name: String,
    }
}

/// Another socket for the vsock device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct VsockOverride {
    /// See [`Vsock::uds_path`](super::Vsock::uds_path).
    pub uds_path: String,
}

/// What backs the memory of a loaded machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum LoadHugePages {
    /// What the snapshot was made with; the default.
    Snapshot,
    /// The host's ordinary pages.
    None,
    /// Transparent huge pages.
    Transparent,
    /// Reserved 2 MiB pages; with `Uffd` only.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}
