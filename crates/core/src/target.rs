//! What a spec is meant to run on, as far as checks depend on it.

use std::fmt;

/// A released version of Firecracker: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FirecrackerVersion(pub u32, pub u32, pub u32);

impl From<(u32, u32, u32)> for FirecrackerVersion {
    fn from((major, minor, patch): (u32, u32, u32)) -> Self {
        Self(major, minor, patch)
    }
}

impl fmt::Display for FirecrackerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The CPU architectures that Firecracker runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// The architecture this program was built for, which is the host's.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// The kernel's name for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Firecracker and the host it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The host's architecture, which is the guest's.
    pub arch: Arch,
    /// Firecracker's version.
    pub version: FirecrackerVersion,
    /// Whether Firecracker is started with `--enable-pci` (1.13): other limits on devices.
    pub pci: bool,
}

impl Default for Target {
    /// This host's architecture and Firecracker 1.12.1, the version that every rule was tried on.
    fn default() -> Self {
        Self { arch: Arch::HOST, version: FirecrackerVersion(1, 12, 1), pci: false }
    }
}
