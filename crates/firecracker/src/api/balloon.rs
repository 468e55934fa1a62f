//! The memory balloon: `/balloon` and below.

use serde::{Deserialize, Serialize};

use crate::capability::{Capability, Requires};

/// Body of `PUT /balloon` (before boot) and answer of `GET`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// MiB to take from the guest; at most its memory.
    pub amount_mib: u32,
    /// Whether the guest takes memory back when it runs out.
    pub deflate_on_oom: bool,
    /// Seconds between two statistics; 0, the default, is none, and cannot be changed after boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_polling_interval_s: Option<u16>,
    /// Whether runs of free page hinting may be started. Since 1.14.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_page_hinting: Option<bool>,
    /// Whether the guest reports free pages all the time. Since 1.14.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_page_reporting: Option<bool>,
}

impl Requires for Balloon {
    fn requires(&self) -> Vec<Capability> {
        let hinting = self.free_page_hinting.map(|_| Capability::BALLOON_HINTING);
        let reporting = self.free_page_reporting.map(|_| Capability::BALLOON_REPORTING);
        hinting.into_iter().chain(reporting).collect()
    }
}

/// Body of `PATCH /balloon` (after boot, once the guest's driver is there).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// The new size in MiB.
    pub amount_mib: u32,
}

impl Requires for BalloonUpdate {}

/// Body of `PATCH /balloon/statistics` (after boot).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// Seconds between two statistics; cannot go from or to 0.
    pub stats_polling_interval_s: u16,
}

impl Requires for BalloonStatsUpdate {}

/// Body of `PATCH /balloon/hinting/start` (after boot). Since 1.14.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct BalloonStartCmd {
    /// Whether Firecracker ends the run by itself when the guest says it is done. Firecracker's default when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledge_on_stop: Option<bool>,
}

impl Requires for BalloonStartCmd {
    fn requires(&self) -> Vec<Capability> {
        vec![Capability::BALLOON_HINTING]
    }
}

/// Answer of `GET /balloon/hinting/status`. Since 1.14.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct BalloonHintingStatus {
    /// The last command of the host.
    pub host_cmd: u32,
    /// The last command of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_cmd: Option<u32>,
}

/// Answer of `GET /balloon/statistics` (after boot, when enabled before). What the guest's driver has not
/// reported is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct BalloonStats {
    /// Pages (4 KiB) that the balloon aims to hold.
    pub target_pages: u32,
    /// Pages that it holds.
    pub actual_pages: u32,
    /// MiB that it aims to hold.
    pub target_mib: u32,
    /// MiB that it holds.
    pub actual_mib: u32,
    /// Bytes swapped in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Major page faults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Minor page faults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Bytes in no use at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// Bytes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Bytes that new programs could have without swapping, an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Bytes that can be reclaimed without I/O, mostly file cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Huge pages allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Processes that the guest's out-of-memory killer ended. Since 1.14, as the following.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait for memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Memory scanned in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Memory scanned by the one who needed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Memory reclaimed in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Memory reclaimed by the one who needed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}
