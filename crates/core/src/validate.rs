//! What of a spec cannot work, told without looking at the host: all problems at once, each with the
//! path of its field.
//!
//! [`validate`] never stops at the first problem. An *error* means that the machine cannot come up as it
//! was asked for; a *warning* means that Firecracker takes it and that it hardly does what was meant. A
//! spec with warnings only is to be run.
//!
//! # How the rules relate to Firecracker's
//!
//! Each rule was tried on Firecracker 1.12.1 (`tests/validate_firecracker.rs` does it again). What Firecracker
//! refuses, for reasons that lie in the spec alone, is an error here. What it accepts is not refused,
//! with these exceptions, in which it accepts and does something else than was asked:
//!
//! * Two drives (or interfaces, or pmem devices) of one id: the later one silently replaces the earlier.
//! * A guest CID of 0, 1, 2 or `u32::MAX`: reserved by vsock; the guest could not be reached.
//! * An empty `uds_path`: Linux picks an abstract name that nobody knows.
//! * A root drive beside a root pmem device: the guest has two roots.
//!
//! Deliberately no problem: ids shared between different kinds of devices (each kind has its own list), a
//! writeback cache on a read-only drive (nothing to write back), newlines and any other bytes than NUL in the boot
//! arguments, an initrd beside a root device (a distribution's usual way), an initrd with huge pages.
//!
//! No root device and no initrd is a *warning*: Firecracker accepts it, and it is right for kernels that need no
//! root (unikernels, bare-metal guests, an initramfs built into the kernel), for a `root=` of the user's
//! own, and wrong for all others, which then panic.
//!
//! What only a newer Firecracker knows (the sections `pmem`, `serial`, `memory-hotplug`) is not looked at here;
//! the capability table of `smartvm-firecracker` is the place for it.

mod boot;
mod devices;
mod drives;
mod network;

pub(crate) use boot::{MAX_CMDLINE, added_to_boot_args};

use std::collections::HashMap;
use std::path::Path;

use crate::problem::{Problem, ProblemCode};
use crate::spec::MachineSpec;
use crate::target::Target;

/// All problems of `spec` on the default [`Target`]: this architecture, Firecracker 1.12.1, no PCI.
pub fn validate(spec: &MachineSpec) -> Vec<Problem> {
    validate_for(spec, &Target::default())
}

/// All problems of `spec` on `target`, in the order of the config file's sections.
pub fn validate_for(spec: &MachineSpec, target: &Target) -> Vec<Problem> {
    let mut findings = Findings::default();
    boot::check_boot_source(spec, target, &mut findings);
    boot::check_machine_config(spec, target, &mut findings);
    drives::check_drives(spec, &mut findings);
    drives::check_pmem(spec, &mut findings);
    drives::check_root(spec, &mut findings);
    network::check_interfaces(spec, &mut findings);
    network::check_mmds(spec, &mut findings);
    devices::check_vsock(spec, &mut findings);
    devices::check_balloon(spec, &mut findings);
    devices::check_memory_hotplug(spec, &mut findings);
    devices::check_limits_and_outputs(spec, &mut findings);
    devices::check_count(spec, target, &mut findings);
    findings.problems
}

/// The problems found so far.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<Problem>,
}

impl Findings {
    fn error(
        &mut self,
        code: ProblemCode,
        path: impl Into<String>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.problems.push(Problem::error(code, path, what, hint));
    }

    fn warning(
        &mut self,
        code: ProblemCode,
        path: impl Into<String>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.problems.push(Problem::warning(code, path, what, hint));
    }

    fn path_given(&mut self, path: &Path, field: &str) {
        if path.as_os_str().is_empty() {
            self.error(
                ProblemCode::EmptyPath,
                field,
                "the path is empty",
                "Give the path, or leave the field out.",
            );
        }
    }

    /// Ids within one list: unique, and of the form that the API can name later.
    fn ids<'a>(
        &mut self,
        ids: impl Iterator<Item = &'a str>,
        list: &str,
        field: &str,
        duplicate: ProblemCode,
    ) {
        let mut first_at = HashMap::new();
        for (index, id) in ids.enumerate() {
            let path = format!("{list}[{index}].{field}");
            if let Some(first) = first_at.insert(id, index) {
                self.error(
                    duplicate,
                    &path,
                    format!("the id {id:?} is also that of {list}[{first}]"),
                    "Give each its own id: of two with the same, Firecracker would silently drop the first.",
                );
            }
            if id.is_empty() || !id.chars().all(|c| c == '_' || c.is_alphanumeric()) {
                self.warning(
                    ProblemCode::IdNotInApi,
                    path,
                    format!("the id {id:?} works in a config file only"),
                    "Use letters, digits and underscores: Firecracker's API takes no others, so the device could \
                     not be changed while the guest runs.",
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
