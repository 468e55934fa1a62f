//! The remaining devices, rate limiters, and how many devices there can be.

use super::Findings;
use crate::problem::ProblemCode;
use crate::spec::{MachineSpec, RateLimiter, TokenBucket};
use crate::target::{Arch, FirecrackerVersion, Target};

/// Bytes of a Unix socket's path, without the closing NUL (`sun_path`).
const MAX_UDS_PATH: usize = 107;
/// Milliseconds beyond which Firecracker's nanoseconds overflow, and the bucket is dropped.
const MAX_REFILL_TIME: u64 = u64::MAX / 1_000_000;
/// Firecracker's defaults and least sizes for hot-plugged memory, in MiB.
const BLOCK_SIZE_MIB: u64 = 2;
const SLOT_SIZE_MIB: u64 = 128;

pub(super) fn check_vsock(spec: &MachineSpec, findings: &mut Findings) {
    let Some(vsock) = &spec.vsock else { return };
    if !(3..u64::from(u32::MAX)).contains(&vsock.guest_cid) {
        let why = if vsock.guest_cid > u64::from(u32::MAX) { "too large" } else { "reserved" };
        findings.error(
            ProblemCode::GuestCidOutOfRange,
            "vsock.guest_cid",
            format!("the context id {} is {why}", vsock.guest_cid),
            format!("Use 3 to {}; the same one may serve many machines.", u32::MAX - 1),
        );
    }
    let path = "vsock.uds_path";
    findings.path_given(&vsock.uds_path, path);
    let len = vsock.uds_path.as_os_str().len();
    if len > MAX_UDS_PATH {
        findings.error(
            ProblemCode::UdsPathTooLong,
            path,
            format!("the socket's path has {len} bytes"),
            format!("Use at most {MAX_UDS_PATH} bytes, with the folder that a relative path starts from."),
        );
    }
}

pub(super) fn check_balloon(spec: &MachineSpec, findings: &mut Findings) {
    let Some(balloon) = &spec.balloon else { return };
    let mem_size_mib = spec.machine_config.mem_size_mib;
    if balloon.amount_mib > mem_size_mib {
        findings.error(
            ProblemCode::BalloonTooLarge,
            "balloon.amount_mib",
            format!("a balloon of {} MiB does not fit into {mem_size_mib} MiB of memory", balloon.amount_mib),
            format!("Use at most {mem_size_mib}."),
        );
    }
    if balloon.stats_polling_interval_s > u64::from(u16::MAX) {
        findings.error(
            ProblemCode::BalloonIntervalOutOfRange,
            "balloon.stats_polling_interval_s",
            format!("an interval of {} s is too long", balloon.stats_polling_interval_s),
            format!("Use at most {} seconds, or 0 for no statistics.", u16::MAX),
        );
    }
}

pub(super) fn check_memory_hotplug(spec: &MachineSpec, findings: &mut Findings) {
    let Some(hotplug) = &spec.memory_hotplug else { return };
    let block = hotplug.block_size_mib.unwrap_or(BLOCK_SIZE_MIB);
    let slot = hotplug.slot_size_mib.unwrap_or(SLOT_SIZE_MIB);
    let total = hotplug.total_size_mib;
    // Each size is only measured by a smaller one that is sound itself: one mistake, one problem.
    let block_sound = block >= BLOCK_SIZE_MIB && block.is_power_of_two();
    let slot_sound = slot >= SLOT_SIZE_MIB && (!block_sound || slot.is_multiple_of(block));
    let total_sound = total > 0 && (!block_sound || !slot_sound || total.is_multiple_of(slot));
    let rules = [
        (block_sound, "block_size_mib", block, format!("Use a power of two, {BLOCK_SIZE_MIB} or more.")),
        (slot_sound, "slot_size_mib", slot, format!("Use a multiple of {block}, {SLOT_SIZE_MIB} or more.")),
        (total_sound, "total_size_mib", total, format!("Use a multiple of the slot size, {slot}.")),
    ];
    for (_sound, field, size, hint) in rules.into_iter().filter(|(sound, ..)| !sound) {
        findings.error(
            ProblemCode::BadMemoryHotplugSize,
            format!("memory-hotplug.{field}"),
            format!("memory cannot be added in a {field} of {size}"),
            hint,
        );
    }
}

pub(super) fn check_limits_and_outputs(spec: &MachineSpec, findings: &mut Findings) {
    if let Some(entropy) = &spec.entropy {
        check_rate_limiter(entropy.rate_limiter.as_ref(), "entropy.rate_limiter", findings);
    }
    if let Some(serial) = &spec.serial {
        check_token_bucket(serial.rate_limiter.as_ref(), "serial.rate_limiter", findings);
    }
    let outputs = [
        (spec.cpu_config.as_ref(), "cpu-config"),
        (spec.serial.as_ref().and_then(|serial| serial.serial_out_path.as_ref()), "serial.serial_out_path"),
        (spec.logger.as_ref().and_then(|logger| logger.log_path.as_ref()), "logger.log_path"),
        (spec.metrics.as_ref().map(|metrics| &metrics.metrics_path), "metrics.metrics_path"),
    ];
    for (path, field) in outputs {
        if let Some(path) = path {
            findings.path_given(path, field);
        }
    }
}

pub(super) fn check_rate_limiter(limiter: Option<&RateLimiter>, path: &str, findings: &mut Findings) {
    let Some(limiter) = limiter else { return };
    check_token_bucket(limiter.bandwidth.as_ref(), &format!("{path}.bandwidth"), findings);
    check_token_bucket(limiter.ops.as_ref(), &format!("{path}.ops"), findings);
}

/// Firecracker takes any numbers, and silently leaves out a bucket that cannot work. Zero for both is
/// its documented way to say "no limit", so that is no problem.
fn check_token_bucket(bucket: Option<&TokenBucket>, path: &str, findings: &mut Findings) {
    let Some(bucket) = bucket else { return };
    let (field, what, hint) = match (bucket.size, bucket.refill_time) {
        (0, 0) if bucket.one_time_burst.unwrap_or(0) == 0 => return,
        (0, _) => ("size", "a bucket of size 0 limits nothing".to_owned(), "Use a size of 1 or more"),
        (_, 0) => ("refill_time", "a refill time of 0 ms limits nothing".to_owned(), "Use 1 ms or more"),
        (_, time) if time > MAX_REFILL_TIME => {
            ("refill_time", format!("a refill time of {time} ms overflows and limits nothing"), "Use less")
        }
        _ => return,
    };
    findings.warning(
        ProblemCode::RateLimiterWithoutEffect,
        format!("{path}.{field}"),
        what,
        format!("{hint}, or leave the bucket out for no limit."),
    );
}

/// How many virtio devices the spec makes. Of two with one id, Firecracker makes one.
pub(super) fn count(spec: &MachineSpec) -> usize {
    fn distinct<'a>(ids: impl Iterator<Item = &'a String>) -> usize {
        ids.collect::<std::collections::HashSet<_>>().len()
    }
    distinct(spec.drives.iter().map(|drive| &drive.drive_id))
        + distinct(spec.pmem.iter().map(|pmem| &pmem.id))
        + distinct(spec.network_interfaces.iter().map(|interface| &interface.iface_id))
        + usize::from(spec.vsock.is_some())
        + usize::from(spec.balloon.is_some())
        + usize::from(spec.memory_hotplug.is_some())
        + usize::from(spec.entropy.is_some())
}

pub(super) fn check_count(spec: &MachineSpec, target: &Target, findings: &mut Findings) {
    let Some(limit) = max_devices(target) else { return };
    let count = count(spec);
    if count > limit {
        // The device that crosses the line: most often a drive or an interface.
        let path =
            if spec.network_interfaces.len() > spec.drives.len() { "network-interfaces" } else { "drives" };
        findings.error(
            ProblemCode::TooManyDevices,
            path,
            format!("{count} devices are more than this Firecracker has interrupts for"),
            format!("Use at most {limit} drives, interfaces and other devices together."),
        );
    }
}

/// One interrupt for each device, of which Firecracker's own devices take some. `None` where the limit is
/// not known; Firecracker will tell.
fn max_devices(target: &Target) -> Option<usize> {
    if target.pci {
        return None;
    }
    match target.arch {
        // 19 lines; one went to VMGenID in 1.8 and one to VMClock in 1.15.
        Arch::X86_64 if target.version < FirecrackerVersion(1, 8, 0) => Some(19),
        Arch::X86_64 if target.version < FirecrackerVersion(1, 15, 0) => Some(18),
        Arch::X86_64 => Some(17),
        Arch::Aarch64 if target.version < FirecrackerVersion(1, 15, 0) => None,
        Arch::Aarch64 => Some(92),
    }
}
