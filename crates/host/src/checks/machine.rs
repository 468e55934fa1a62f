//! KVM, memory and network devices of this host.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use smartvm_core::problem::ProblemCode;
use smartvm_core::spec::{HugePages, MachineSpec};

use super::{Checks, Host};

/// The flag of a TAP device in `tun_flags`; a TUN device has another.
const IFF_TAP: u32 = 0x0002;

impl Checks<'_> {
    pub(super) fn kvm(&mut self, device: &Path) {
        let Err(error) = OpenOptions::new().read(true).write(true).open(device) else { return };
        let shown = device.display();
        let hint = match error.kind() {
            ErrorKind::NotFound => {
                "Load the kernel module kvm_intel or kvm_amd; in a virtual machine, have its host allow nesting."
            }
            ErrorKind::PermissionDenied => "Add this user to the group kvm and log in again, or run as root.",
            _ => "Run `smartvm doctor` to see what is missing.",
        };
        self.error(
            ProblemCode::KvmUnavailable,
            &shown.to_string(),
            format!("KVM cannot be used: {error}"),
            hint,
        );
    }

    pub(super) fn machine_config(&mut self, host: &Host, spec: &MachineSpec) {
        let config = &spec.machine_config;
        if config.huge_pages == HugePages::Hugetlbfs2M {
            self.huge_pages(&host.huge_pages, config.mem_size_mib.div_ceil(2));
            return;
        }
        let Some(available) = available_mib(&host.meminfo) else { return };
        if config.mem_size_mib > available {
            self.warning(
                ProblemCode::MemoryShort,
                "machine-config.mem_size_mib",
                format!("the guest may use {} MiB and the host has {available} MiB available", config.mem_size_mib),
                "Lower mem_size_mib, or free memory: once the guest has filled the rest, the host kills processes.",
            );
        }
    }

    /// Firecracker maps its memory without reserving it, so it starts with too few pages: with none at
    /// all it cannot even load the kernel ("Unable to read kernel image"), with some it gets SIGBUS later.
    fn huge_pages(&mut self, pool: &Path, needed: u64) {
        let field = "machine-config.huge_pages";
        let number = |name: &str| -> u64 {
            fs::read_to_string(pool.join(name)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
        let more = number("nr_overcommit_hugepages").saturating_sub(number("surplus_hugepages"));
        let available = free + more;
        if available >= needed {
            return;
        }
        let what = format!("the guest needs {needed} huge pages of 2 MiB and the host has {available} free");
        let hint = format!(
            "Reserve them: sysctl vm.nr_hugepages={}, or leave huge_pages out.",
            number("nr_hugepages") + needed - available
        );
        if available == 0 {
            self.error(ProblemCode::HugePagesUnavailable, field, what, hint);
        } else {
            self.warning(ProblemCode::HugePagesUnavailable, field, what, hint);
        }
    }

    /// Firecracker makes a TAP device that is missing, if it may; but then no address and no route
    /// leads to it, and it is gone with the VMM.
    pub(super) fn tap(&mut self, host: &Host, name: &str, field: &str) {
        // Names that are no single file name are a problem of the spec, told by `validate`.
        if name.is_empty() || name.contains(['/', '%', '\0']) || matches!(name, "." | "..") {
            return;
        }
        let device = host.net.join(name);
        if !device.exists() {
            self.warning(
                ProblemCode::TapNotFound,
                field,
                format!("there is no network device {name:?}"),
                format!(
                    "Make it: ip tuntap add {name} mode tap, and give it an address. Otherwise Firecracker makes one \
                     that is connected to nothing, or fails without the right to (CAP_NET_ADMIN)."
                ),
            );
            return;
        }
        let flags = fs::read_to_string(device.join("tun_flags")).ok();
        let flags = flags.and_then(|text| u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
        if flags.is_none_or(|flags| flags & IFF_TAP == 0) {
            let what = if flags.is_some() { "is a TUN device" } else { "is not a TAP device" };
            self.error(
                ProblemCode::NotATap,
                field,
                format!("the network device {name:?} {what}"),
                "Give a TAP device: ip tuntap add NAME mode tap.",
            );
        }
    }
}

fn available_mib(meminfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}
