//! What a machine is: Firecracker's own configuration, section by section, in its field names.
//!
//! The shape is that of Firecracker's config file, so the path of a field in a
//! `Problem` (`drives[0].path_on_host`, `machine-config.vcpu_count`) is the
//! path in the user's JSON. It holds what checks and plans look at; the crate `smartvm-firecracker` has
//! the full types of every request, and refuses unknown fields and wrong types with line and column.
//! Reading a spec ignores fields it does not know, so `smartvm_firecracker::config_file::VmConfig` becomes one
//! by way of `serde_json::Value`.
//!
//! Numbers are `u64` on purpose, wider than Firecracker's own: a value out of range is then a problem
//! with a code and a path, found together with all others, instead of a parse error.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The whole machine, as in the file given to `firecracker --config-file`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MachineSpec {
    /// Kernel, initrd and boot arguments.
    pub boot_source: BootSource,
    /// vCPUs and memory; Firecracker's defaults when absent.
    #[serde(default, deserialize_with = "null_as_default")]
    pub machine_config: MachineConfig,
    /// A file with a custom CPU template. A template within the config file (Firecracker 1.13) is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "path_only")]
    pub cpu_config: Option<PathBuf>,
    /// Block devices, in the order in which the guest sees them (the root device goes first).
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// Persistent-memory devices (Firecracker 1.14).
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub pmem: Vec<Pmem>,
    /// Network interfaces, in the guest's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterface>,
    /// The socket device between host and guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// The memory balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    /// Memory that can be added while the guest runs (Firecracker 1.14).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<MemoryHotplug>,
    /// The random-number device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
    /// Where the serial console goes (Firecracker 1.14).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// Which interfaces reach the metadata service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<MmdsConfig>,
    /// Firecracker's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<Logger>,
    /// Firecracker's metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
}

/// The section `boot-source`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// The kernel: an uncompressed ELF (`vmlinux`) on x86_64, a PE `Image` on aarch64.
    pub kernel_image_path: PathBuf,
    /// An initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line; Firecracker's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// The section `machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Virtual CPUs, 1 to 32.
    pub vcpu_count: u64,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
    /// Present the vCPUs as two threads per core (x86_64 only).
    #[serde(default, skip_serializing_if = "is_false")]
    pub smt: bool,
    /// Keep a log of written pages, for `Diff` snapshots.
    #[serde(default, skip_serializing_if = "is_false")]
    pub track_dirty_pages: bool,
    /// A static CPU template (`T2`, `V1N1`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// What backs guest memory.
    #[serde(default, skip_serializing_if = "HugePages::is_none")]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    /// Firecracker's own defaults: 1 vCPU, 128 MiB, ordinary pages.
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            cpu_template: None,
            huge_pages: HugePages::None,
        }
    }
}

/// What backs guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// The host's ordinary pages.
    #[default]
    None,
    /// Reserved 2 MiB pages (hugetlbfs).
    #[serde(rename = "2M")]
    Hugetlbfs2M,
    /// Transparent huge pages (Firecracker 1.17).
    Transparent,
}

impl HugePages {
    /// Whether these are the host's ordinary pages.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// One entry of the section `drives`: a file or block device of the host, or a vhost-user-block socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// The drive's id, unique among all devices.
    pub drive_id: String,
    /// Whether the guest's root file system is on it.
    #[serde(default)]
    pub is_root_device: bool,
    /// The partition to boot from, by its unique id; only for the root device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Whether the guest's flushes reach the host's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<CacheType>,
    /// Whether the guest may only read. Absent means no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// The backing file or block device. Excludes `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// A vhost-user-block backend's Unix socket. Excludes `path_on_host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// How Firecracker reads and writes the backing file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// Limits of bytes and operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// Whether the guest's flushes reach the host's disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// Flushes are not offered: fast, and not safe when the host loses power.
    #[default]
    Unsafe,
    /// Flushes are carried out.
    Writeback,
}

/// How Firecracker reads and writes a drive's file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// Ordinary system calls on the VMM's thread.
    #[default]
    Sync,
    /// io_uring, kernel 5.10.51 or later.
    Async,
}

/// One entry of the section `pmem`: a file of the host, mapped into the guest's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pmem {
    /// The device's id.
    pub id: String,
    /// The backing file.
    pub path_on_host: PathBuf,
    /// Whether the guest's root file system is on it.
    #[serde(default)]
    pub root_device: bool,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// Limits of bytes and operations (Firecracker 1.16).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// One entry of the section `network-interfaces`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// The interface's id, unique among all devices.
    pub iface_id: String,
    /// The TAP device on the host.
    pub host_dev_name: String,
    /// The guest's address, as six pairs of hexadecimal digits with colons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// The largest packet in bytes (Firecracker 1.16).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// Limits of a device: bytes and operations, each a token bucket, each optional.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiter {
    /// Tokens are bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// `size` tokens per `refill_time`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// Tokens the bucket holds.
    pub size: u64,
    /// Tokens it begins with beside its size, never refilled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which it fills from empty.
    pub refill_time: u64,
}

/// The section `vsock`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    /// The guest's context id; 0 to 2 and `u32::MAX` are taken.
    pub guest_cid: u64,
    /// The Unix socket on the host, made by Firecracker.
    pub uds_path: PathBuf,
}

/// The section `balloon`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// MiB to take from the guest.
    pub amount_mib: u64,
    /// Give memory back when the guest runs out of it.
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// Seconds between two statistics; 0 for none.
    #[serde(default)]
    pub stats_polling_interval_s: u64,
}

/// The section `memory-hotplug`. Sizes in MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHotplug {
    /// All that can be added.
    pub total_size_mib: u64,
    /// What the host adds at once; 128 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_size_mib: Option<u64>,
    /// What the guest adds at once; 2 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size_mib: Option<u64>,
}

/// The section `entropy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy {
    /// Limits of bytes and requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// The section `serial`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serial {
    /// A file for the console's output, in place of Firecracker's stdout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// A limit of output bytes (Firecracker 1.16).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}

/// The section `mmds-config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmdsConfig {
    /// The ids (`iface_id`) of the interfaces that reach the metadata service.
    pub network_interfaces: Vec<String>,
    /// The service's address, link-local; 169.254.169.254 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<String>,
}

/// The section `logger`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logger {
    /// A file or named pipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
}

/// The section `metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// A file or named pipe.
    pub metrics_path: PathBuf,
}

/// Firecracker takes `null` for a whole section that is not there.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn path_only<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_str().map(PathBuf::from))
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a user writes is what comes out again, but for defaults.
    #[test]
    fn a_config_file_is_read_and_written_in_firecrackers_names() {
        let text = r#"{
            "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0"},
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "smt": true, "huge_pages": "2M"},
            "drives": [{"drive_id": "rootfs", "is_root_device": true, "cache_type": "Writeback",
                        "is_read_only": false, "path_on_host": "rootfs.ext4", "io_engine": "Async",
                        "rate_limiter": {"bandwidth": {"size": 1000, "one_time_burst": 5, "refill_time": 100}}}],
            "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02"}],
            "vsock": {"guest_cid": 3, "uds_path": "v.sock"},
            "balloon": {"amount_mib": 10, "deflate_on_oom": true, "stats_polling_interval_s": 1},
            "memory-hotplug": {"total_size_mib": 1024, "slot_size_mib": 128, "block_size_mib": 2},
            "mmds-config": {"network_interfaces": ["eth0"], "ipv4_address": "169.254.1.1"},
            "logger": {"log_path": "log"},
            "metrics": {"metrics_path": "metrics"},
            "entropy": {},
            "serial": {"serial_out_path": "console"},
            "pmem": [{"id": "p", "path_on_host": "p.img", "root_device": false, "read_only": true}],
            "cpu-config": "template.json"
        }"#;
        let read: MachineSpec = serde_json::from_str(text).unwrap();
        let written = serde_json::to_value(&read).unwrap();
        let original: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(written, original);
    }

    #[test]
    fn absent_sections_have_firecrackers_defaults() {
        let spec: MachineSpec =
            serde_json::from_str(r#"{"boot-source": {"kernel_image_path": "k"}}"#).unwrap();
        assert_eq!((spec.machine_config.vcpu_count, spec.machine_config.mem_size_mib), (1, 128));
        assert!(spec.drives.is_empty());
    }

    #[test]
    fn null_sections_and_templates_in_the_file_are_taken() {
        let text = r#"{"boot-source": {"kernel_image_path": "k", "boot_args": null}, "machine-config": null,
            "balloon": null, "pmem": null, "cpu-config": {"msr_modifiers": []}}"#;
        let spec: MachineSpec = serde_json::from_str(text).unwrap();
        let boot_source = BootSource { kernel_image_path: "k".into(), ..BootSource::default() };
        assert_eq!(spec, MachineSpec { boot_source, ..MachineSpec::default() });
    }
}
