//! What of a spec cannot work on this host, at this moment: files, devices, memory. The other half of
//! [`smartvm_core::validate`], with the same [`Problem`]s.
//!
//! It looks and touches nothing: no file is made, written or truncated, and nothing is opened that is neither a
//! file nor a block device. The answers hold for the user who asks, and for the present network namespace;
//! they may be outdated by the time the VMM starts, and Firecracker's own word counts then.

mod files;
mod machine;

use std::path::{Path, PathBuf};

use smartvm_core::problem::{Problem, ProblemCode};
use smartvm_core::spec::MachineSpec;
use smartvm_core::target::Target;

/// All problems that `spec` has on this host, in the order of the config file's sections.
///
/// Relative paths start at `base`, the working directory that the VMM is to have. It blocks, for as
/// long as opening a few files takes.
pub fn check_host(spec: &MachineSpec, base: &Path, target: &Target) -> Vec<Problem> {
    check_on(&Host::default(), spec, base, target)
}

fn check_on(host: &Host, spec: &MachineSpec, base: &Path, target: &Target) -> Vec<Problem> {
    let mut checks = Checks { base, target, problems: Vec::new() };
    checks.kvm(&host.kvm);
    checks.kernel(spec);
    checks.initrd(spec);
    checks.machine_config(host, spec);
    checks.drives(spec);
    checks.pmem(spec);
    for (index, interface) in spec.network_interfaces.iter().enumerate() {
        checks.tap(host, &interface.host_dev_name, &format!("network-interfaces[{index}].host_dev_name"));
    }
    checks.vsock(spec);
    checks.outputs(spec);
    checks.problems
}

/// Where the kernel tells about itself; elsewhere in tests.
struct Host {
    kvm: PathBuf,
    net: PathBuf,
    huge_pages: PathBuf,
    meminfo: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            kvm: "/dev/kvm".into(),
            net: "/sys/class/net".into(),
            huge_pages: "/sys/kernel/mm/hugepages/hugepages-2048kB".into(),
            meminfo: "/proc/meminfo".into(),
        }
    }
}

/// The checks under way. Its methods lie in the modules by topic.
struct Checks<'a> {
    base: &'a Path,
    target: &'a Target,
    problems: Vec<Problem>,
}

impl Checks<'_> {
    fn error(&mut self, code: ProblemCode, field: &str, what: String, hint: impl Into<String>) {
        self.problems.push(Problem::error(code, field, what, hint));
    }

    fn warning(&mut self, code: ProblemCode, field: &str, what: String, hint: impl Into<String>) {
        self.problems.push(Problem::warning(code, field, what, hint));
    }
}

#[cfg(test)]
mod tests;
