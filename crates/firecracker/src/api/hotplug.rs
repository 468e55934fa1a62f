//! Memory that is added while the guest runs: `/hotplug/memory`. Since 1.14.

use serde::{Deserialize, Serialize};

use crate::capability::{Capability, Requires};

/// Body of `PUT /hotplug/memory` (before boot). Sizes in MiB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugConfig {
    /// All that can be added; a multiple of the slot size.
    pub total_size_mib: u64,
    /// What the guest adds at once: 2, the default, or more, a power of two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size_mib: Option<u64>,
    /// What the host adds at once: 128, the default, or more; a multiple of the block size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_size_mib: Option<u64>,
}

/// Body of `PATCH /hotplug/memory` (after boot). The guest follows in its own time: see
/// [`MemoryHotplugStatus::plugged_size_mib`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugSizeUpdate {
    /// What shall be added in all, in MiB, 0 to the total size.
    pub requested_size_mib: u64,
}

/// Answer of `GET /hotplug/memory` (after boot). Sizes in MiB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct MemoryHotplugStatus {
    /// All that can be added.
    pub total_size_mib: u64,
    /// What the host adds at once.
    pub slot_size_mib: u64,
    /// What the guest adds at once.
    pub block_size_mib: u64,
    /// What the guest has added.
    pub plugged_size_mib: u64,
    /// What was asked for.
    pub requested_size_mib: u64,
}

impl Requires for MemoryHotplugConfig {
    fn requires(&self) -> Vec<Capability> {
        vec![Capability::MEMORY_HOTPLUG]
    }
}

impl Requires for MemoryHotplugSizeUpdate {
    fn requires(&self) -> Vec<Capability> {
        vec![Capability::MEMORY_HOTPLUG]
    }
}
