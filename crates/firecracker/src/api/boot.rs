//! What the guest boots: `/boot-source`.

use serde::{Deserialize, Serialize};

use crate::capability::Requires;

/// Body of `PUT /boot-source` (before boot).
///
/// Firecracker opens both files at once and answers a fault when one cannot be opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel on the host: an uncompressed ELF on x86_64 (from 1.17 also a bzImage), a PE `Image` on
    /// aarch64. Which of them the file is, only the file says: see
    /// [`Capability::KERNEL_BZIMAGE`](crate::capability::Capability::KERNEL_BZIMAGE).
    pub kernel_image_path: String,
    /// The initial RAM disk on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// The kernel's command line. Absent: Firecracker's own; empty: none of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

impl Requires for BootSource {}
