//! The bodies of Firecracker's API, in its field names.
//!
//! Requests take what Firecracker 1.12.1 takes, in every form in which it takes it (null for an absent
//! optional field, an array in place of an object, `warn` for `Warning`), and refuse the fields that it
//! refuses. Optional fields that are `None` are left out. Fields newer than 1.12.1 come last, so that the
//! array form stays 1.12.1's. Paths are `String`, since JSON has no other bytes than UTF-8.
//!
//! A few objects ([`TokenBucket`], [`NetworkOverride`], the modifiers of a [`CpuConfig`], [`Metrics`]) take
//! unknown fields, as Firecracker does, and keep them in `extra`.
//!
//! Answers skip unknown fields, also where an answer is a request's type ([`answer`]). Units, ranges and
//! versions are from Firecracker's OpenAPI file of 1.17-dev; what 1.12.1 does was tried on its binary, and the
//! tests try it again. What is newer is held to the published interface only.

mod balloon;
mod boot;
mod cpu;
mod devices;
mod drive;
mod hotplug;
mod instance;
mod lenient;
mod limits;
mod machine;
mod mmds;
mod observe;
pub(crate) mod open;
mod snapshot;

pub use balloon::{
    Balloon, BalloonHintingStatus, BalloonStartCmd, BalloonStats, BalloonStatsUpdate, BalloonUpdate,
};
pub use boot::BootSource;
pub use cpu::{
    ArmRegisterModifier, CpuConfig, CpuidLeafModifier, CpuidRegister, CpuidRegisterModifier, MsrModifier,
    VcpuFeatures,
};
pub use devices::{EntropyDevice, NetworkInterface, PartialNetworkInterface, SerialDevice, Vsock};
pub use drive::{CacheType, Drive, IoEngine, PartialDrive, PartialPmem, Pmem};
pub use hotplug::{MemoryHotplugConfig, MemoryHotplugSizeUpdate, MemoryHotplugStatus};
pub use instance::{
    ActionType, FirecrackerVersion, FullVmConfiguration, InstanceActionInfo, InstanceInfo, InstanceState, Vm,
    VmState,
};
pub use lenient::answer;
pub use limits::{RateLimiter, TokenBucket};
pub use machine::{CpuTemplate, HugePages, MachineConfiguration, MachineConfigurationUpdate};
pub use mmds::{MmdsConfig, MmdsContents, MmdsVersion};
pub use observe::{LogLevel, Logger, Metrics};
pub use open::Extra;
pub(crate) use open::open_struct;
pub use snapshot::{
    BackendType, LoadHugePages, MemoryBackend, NetworkOverride, SnapshotCreateParams, SnapshotLoadParams,
    SnapshotType, VsockOverride,
};

#[cfg(test)]
mod tests;
