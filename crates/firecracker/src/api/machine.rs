//! vCPUs and memory: `/machine-config`.

use serde::{Deserialize, Serialize};

use crate::capability::{Capability, Requires};

/// Body of `PUT /machine-config` (before boot) and answer of `GET`.
///
/// Absent optional fields are set to their defaults, not left as they are; see
/// [`MachineConfigurationUpdate`] for that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct MachineConfiguration {
    /// 1 to 32; with `smt` 1 or even.
    pub vcpu_count: u8,
    /// Guest memory in MiB, above 0; even with `huge_pages` `2M`.
    pub mem_size_mib: u64,
    /// Present the vCPUs as two threads per core; x86_64 only. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// A built-in CPU template (deprecated in favour of [`CpuConfig`](super::CpuConfig)). Default `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Keep a log of written pages, for `Diff` snapshots. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// What backs guest memory. Default `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// Body of `PATCH /machine-config` (before boot): absent fields stay as they are; at least one must be
/// there. (Before 1.11 some partial updates were not applied.)
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct MachineConfigurationUpdate {
    /// See [`MachineConfiguration::vcpu_count`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u8>,
    /// See [`MachineConfiguration::mem_size_mib`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
    /// See [`MachineConfiguration::smt`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// See [`MachineConfiguration::cpu_template`]; [`CpuTemplate::None`] takes a template away again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// See [`MachineConfiguration::track_dirty_pages`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// See [`MachineConfiguration::huge_pages`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// A built-in CPU template. All are deprecated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum CpuTemplate {
    /// Intel, like EC2 C3.
    C3,
    /// Intel, like EC2 T2.
    T2,
    /// Intel, for moving snapshots between Skylake and Cascade Lake.
    T2S,
    /// Intel Cascade Lake and later.
    T2CL,
    /// AMD, like T2.
    T2A,
    /// Arm Neoverse V1 as N1; aarch64 only: Firecracker for x86_64 does not know the name.
    V1N1,
    /// No template.
    None,
}

/// What backs guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum HugePages {
    /// The host's ordinary pages.
    None,
    /// Transparent huge pages (madvise). Since 1.17.
    Transparent,
    /// Reserved 2 MiB pages (hugetlbfs).
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

fn requires(huge_pages: Option<HugePages>) -> Vec<Capability> {
    match huge_pages {
        Some(HugePages::Transparent) => vec![Capability::HUGE_PAGES_TRANSPARENT],
        _ => Vec::new(),
    }
}

impl Requires for MachineConfiguration {
    fn requires(&self) -> Vec<Capability> {
        requires(self.huge_pages)
    }
}

impl Requires for MachineConfigurationUpdate {
    fn requires(&self) -> Vec<Capability> {
        requires(self.huge_pages)
    }
}
