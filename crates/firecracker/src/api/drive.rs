//! Disks: `/drives/{drive_id}` and `/pmem/{id}`.

use serde::{Deserialize, Serialize};

use super::RateLimiter;
use crate::capability::{Capability, Requires};

/// Body of `PUT /drives/{drive_id}` (before boot; from 1.16 with PCI also after): a file or block device of
/// the host (`path_on_host`), or a vhost-user-block backend (`socket`), never both.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// The drive's id; must equal the one in the path.
    pub drive_id: String,
    /// The partition to boot from, by its unique id; used with `is_root_device` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Whether the guest boots from it: it becomes the first drive, and `root=` is added to the command line.
    pub is_root_device: bool,
    /// Whether the guest's flushes reach the host's disk. Default `Unsafe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<CacheType>,
    /// Whether the guest may only read. Default false. Not with `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// The backing file or block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// Limits of bytes and operations. Not with `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// How Firecracker reads and writes the file. Default `Sync`. Not with `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// The Unix socket of a vhost-user-block backend, which must already listen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

impl Requires for Drive {}

/// Whether the guest's flushes reach the host's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum CacheType {
    /// They do not: fast, and not safe when the host loses power.
    Unsafe,
    /// They do.
    Writeback,
}

/// How Firecracker reads and writes a drive's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum IoEngine {
    /// Ordinary system calls on the VMM's thread.
    Sync,
    /// io_uring; needs host kernel 5.10.51 or later.
    Async,
}

/// Body of `PATCH /drives/{drive_id}` (after boot): another file, other limits, or both.
///
/// With neither, Firecracker takes it for a vhost-user-block drive whose configuration is to be read anew.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct PartialDrive {
    /// The drive's id; must equal the one in the path.
    pub drive_id: String,
    /// The new backing file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// The new limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Requires for PartialDrive {}

/// Body of `PUT /pmem/{id}` (before boot; from 1.16 with PCI also after): a file of the host, mapped into
/// the guest's memory. Since 1.14.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// The device's id; must equal the one in the path.
    pub id: String,
    /// The backing file.
    pub path_on_host: String,
    /// Whether the guest boots from it. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_device: Option<bool>,
    /// Whether the guest may only read. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Limits of bytes and operations. Since 1.16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Requires for Pmem {
    fn requires(&self) -> Vec<Capability> {
        let limiter = self.rate_limiter.is_some().then_some(Capability::PMEM_RATE_LIMITER);
        [Capability::PMEM].into_iter().chain(limiter).collect()
    }
}

/// Body of `PATCH /pmem/{id}` (after boot). Since 1.16.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct PartialPmem {
    /// The device's id; must equal the one in the path.
    pub id: String,
    /// The new limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Requires for PartialPmem {
    fn requires(&self) -> Vec<Capability> {
        vec![Capability::PMEM_RATE_LIMITER]
    }
}
