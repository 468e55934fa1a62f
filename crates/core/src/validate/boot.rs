//! The sections `boot-source` and `machine-config`.

use super::Findings;
use crate::problem::ProblemCode;
use crate::spec::{HugePages, MachineSpec};
use crate::target::{Arch, FirecrackerVersion, Target};

/// Firecracker's bound of the kernel's command line, without the closing NUL, on both architectures.
pub(crate) const MAX_CMDLINE: usize = 2047;

/// Any kernel is loaded above the first MiB, so one MiB cannot hold it.
const MIN_MEM_MIB: u64 = 2;
/// 4 PiB: the most that x86_64 and aarch64 can address physically.
const MAX_MEM_MIB: u64 = 1 << 32;

pub(super) fn check_boot_source(spec: &MachineSpec, target: &Target, findings: &mut Findings) {
    let boot = &spec.boot_source;
    findings.path_given(&boot.kernel_image_path, "boot-source.kernel_image_path");
    if let Some(path) = &boot.initrd_path {
        findings.path_given(path, "boot-source.initrd_path");
    }
    let Some(args) = &boot.boot_args else { return };
    let path = "boot-source.boot_args";
    if let Some(at) = args.find('\0') {
        findings.error(
            ProblemCode::BootArgsNul,
            path,
            format!("there is a NUL byte at offset {at}"),
            "Remove it: the kernel's command line ends at the first NUL, and Firecracker crashes on it.",
        );
    }
    let added = added_to_boot_args(spec, target);
    let len = args.len() + added;
    if len > MAX_CMDLINE {
        let added = if added == 0 { String::new() } else { format!(", with {added} that Firecracker adds") };
        findings.error(
            ProblemCode::BootArgsTooLong,
            path,
            format!("the kernel's command line would have {len} bytes{added}"),
            format!("Shorten it by {} bytes: the limit is {MAX_CMDLINE}.", len - MAX_CMDLINE),
        );
    }
}

/// How many bytes Firecracker appends to the user's boot arguments, as far as it is known.
pub(crate) fn added_to_boot_args(spec: &MachineSpec, target: &Target) -> usize {
    let root =
        spec.drives.iter().find(|drive| drive.is_root_device).map_or(0, |drive| match &drive.partuuid {
            Some(partuuid) => " root=PARTUUID= rw".len() + partuuid.len(),
            None => " root=/dev/vda rw".len(),
        });
    // ` virtio_mmio.device=4K@0xd0000000:5` for each device, whose interrupts count up from 5. Measured up
    // to 1.12; later releases may describe devices in other ways, and must not be refused for it.
    let described = target.arch == Arch::X86_64 && target.version < FirecrackerVersion(1, 13, 0);
    let devices = if described { super::devices::count(spec) } else { 0 };
    let one_digit = devices.min(5);
    root + one_digit * 35 + (devices - one_digit) * 36
}

pub(super) fn check_machine_config(spec: &MachineSpec, target: &Target, findings: &mut Findings) {
    let config = &spec.machine_config;
    let vcpu_path = "machine-config.vcpu_count";
    match config.vcpu_count {
        1..=32 if !config.smt || config.vcpu_count == 1 || config.vcpu_count.is_multiple_of(2) => {}
        count @ 1..=32 => findings.error(
            ProblemCode::VcpuCountOddWithSmt,
            vcpu_path,
            format!("{count} vCPUs cannot be paired into the two threads per core that smt asks for"),
            format!(
                "Use 1 or an even number ({} or {}), or set smt to false.",
                count - 1,
                (count + 1).min(32)
            ),
        ),
        count => findings.error(
            ProblemCode::VcpuCountOutOfRange,
            vcpu_path,
            format!("{count} vCPUs are outside of what Firecracker can run"),
            "Use 1 to 32.",
        ),
    }
    if config.smt && target.arch == Arch::Aarch64 {
        findings.error(
            ProblemCode::SmtUnsupported,
            "machine-config.smt",
            "aarch64 has no simultaneous multithreading",
            "Set smt to false, or leave it out.",
        );
    }
    let mem_path = "machine-config.mem_size_mib";
    if !(MIN_MEM_MIB..=MAX_MEM_MIB).contains(&config.mem_size_mib) {
        findings.error(
            ProblemCode::MemSizeOutOfRange,
            mem_path,
            format!("no guest can run in {} MiB of memory", config.mem_size_mib),
            format!("Use {MIN_MEM_MIB} to {MAX_MEM_MIB}; a Linux guest needs some 64 MiB or more."),
        );
    } else if !config.huge_pages.is_none() && !config.mem_size_mib.is_multiple_of(2) {
        findings.error(
            ProblemCode::MemSizeNotHugePages,
            mem_path,
            format!("{} MiB is not a whole number of 2 MiB pages", config.mem_size_mib),
            format!("Use an even size ({}), or leave huge_pages out.", config.mem_size_mib + 1),
        );
    }
    check_huge_pages(spec, target, findings);
    check_cpu_template(spec, target, findings);
}

fn check_huge_pages(spec: &MachineSpec, target: &Target, findings: &mut Findings) {
    if spec.machine_config.huge_pages != HugePages::Hugetlbfs2M {
        return;
    }
    let path = "machine-config.huge_pages";
    if spec.balloon.is_some() {
        let what = "reserved huge pages and a balloon do not go together";
        let hint = "Leave out the section balloon, or huge_pages: a balloon gives back single 4 KiB pages, of which \
                    there are none.";
        // Refused up to 1.13 for certain; the documentation of later ones says that it works without use.
        if target.version < FirecrackerVersion(1, 14, 0) {
            findings.error(ProblemCode::HugePagesWithBalloon, path, what, hint);
        } else {
            findings.warning(ProblemCode::HugePagesWithBalloon, path, what, hint);
        }
    }
    if spec.machine_config.track_dirty_pages {
        findings.warning(
            ProblemCode::HugePagesWithDirtyTracking,
            path,
            "track_dirty_pages undoes what huge pages gain",
            "Leave one of them out: while dirty pages are tracked, KVM maps the guest's memory in 4 KiB pages.",
        );
    }
}

fn check_cpu_template(spec: &MachineSpec, target: &Target, findings: &mut Findings) {
    let Some(template) = &spec.machine_config.cpu_template else { return };
    let known: &[&str] = match target.arch {
        Arch::X86_64 => &["None", "C3", "T2", "T2S", "T2CL", "T2A"],
        Arch::Aarch64 => &["None", "V1N1"],
    };
    if !known.contains(&template.as_str()) {
        findings.error(
            ProblemCode::UnknownCpuTemplate,
            "machine-config.cpu_template",
            format!("there is no CPU template {template:?} on {}", target.arch),
            format!("Use one of {}, or a custom template file in cpu-config.", known.join(", ")),
        );
    }
}
