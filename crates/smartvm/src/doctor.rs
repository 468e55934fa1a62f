//! What this host can run, found out by trying.
//!
//! A KVM device that opens says little: on some hosts tiny guests run and every Linux kernel dies. So a tiny guest is
//! booted for real, by the same code as every machine, and what backs the device is told apart.

mod store;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use smartvm_core::bare_metal::{Guest, MIN_MEM_MIB, READY_BYTE};
use smartvm_core::explain::Explain;
use smartvm_firecracker::Version;
use smartvm_host::binary::jailer_version;
use smartvm_host::{FirecrackerBinary, kvm};
use tokio::time::timeout;

use crate::check::check_config;
use crate::config::Config;
use crate::directories::Directories;
use crate::firecracker::{FindError, find_firecracker, found_by};
use crate::host::Host;
use crate::machine::{Machine, StartOptions};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Pass,
    /// Machines run, though perhaps not all that are wanted.
    Warn,
    /// No machine runs before this is fixed.
    Fail,
    /// It could not be tried, since something before it failed.
    Skip,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its stable name.
    pub name: &'static str,
    /// How it went.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do, when something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Whether ordinary Linux kernels boot here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinuxGuests {
    /// The CPU's own virtualization backs KVM.
    Yes,
    /// A paravirtual backend: only kernels made for it.
    No,
    /// It cannot be told.
    Unknown,
}

/// Everything that was found. The names of the fields are stable in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    /// One by one, in the order in which things are needed.
    pub checks: Vec<Check>,
    /// Whether the trial guest ran.
    pub bare_metal: bool,
    /// From asking for the trial's VMM to the guest's byte, in milliseconds.
    pub trial_ms: Option<f64>,
    /// Whether ordinary Linux kernels boot here.
    pub linux_guests: LinuxGuests,
    /// The version of the Firecracker that was found.
    pub firecracker: Option<Version>,
    /// Where it is. In JSON, what is not UTF-8 in it is replaced.
    #[serde(serialize_with = "crate::record::readable")]
    pub firecracker_path: Option<PathBuf>,
}

impl Diagnosis {
    /// Whether machines can run: no check failed.
    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|check| !matches!(check.status, Status::Fail | Status::Skip))
    }

    /// As a person reads it.
    pub fn to_text(&self, colour: bool) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let (word, colour_on) = match check.status {
                Status::Pass => ("ok  ", "\x1b[32m"),
                Status::Warn => ("warn", "\x1b[33m"),
                Status::Fail => ("FAIL", "\x1b[1;31m"),
                Status::Skip => ("skip", "\x1b[2m"),
            };
            let (on, off) = if colour { (colour_on, "\x1b[0m") } else { ("", "") };
            text += &format!("{on}{word}{off}  {:<14}  {}\n", check.name, check.found);
            if let Some(fix) = &check.fix {
                text += &format!("      {:<14}  fix: {}\n", "", fix.replace('\n', &format!("\n{:27}", "")));
            }
        }
        let verdict = match (self.is_ready(), self.linux_guests) {
            (false, _) => "This host cannot run machines yet.",
            (true, LinuxGuests::Yes) => "This host runs Firecracker machines.",
            (true, LinuxGuests::No) => {
                "This host runs machines, but no ordinary Linux guests: only kernels made for its KVM."
            }
            (true, LinuxGuests::Unknown) => {
                "This host runs tiny guests; whether Linux boots was not found out."
            }
        };
        text + verdict + "\n"
    }
}

/// How long the trial guest may take; it needs some 10 ms.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at everything.
pub async fn examine(firecracker: Option<&Path>, directories: &Directories) -> Diagnosis {
    let mut checks = vec![kvm_device(), kvm_access(), kvm_api()];
    let binary = find_firecracker(firecracker, directories).await;
    checks.push(firecracker_check(&binary, || found_by(firecracker, directories)));
    let binary = binary.ok();
    let host = Host::open(directories);
    checks.push(runtime_dir(directories, &host));
    let tried = match (&binary, &host) {
        _ if checks.iter().any(|check| check.status == Status::Fail) => None,
        (Some(binary), Ok(host)) => Some(trial(host, binary).await),
        _ => None,
    };
    let trial_ms = match &tried {
        Some(Ok(took)) => Some((took.as_secs_f64() * 1e5).round() / 1e2),
        _ => None,
    };
    checks.push(trial_check(tried));
    let linux_guests = linux_guests(&Backend::of_this_host());
    checks.push(linux_check(linux_guests));
    checks.push(open_files());
    checks.push(memory());
    checks.extend(store::checks(directories));
    checks.push(jailer_check(binary.as_ref().map(|binary| binary.path.as_path())).await);
    Diagnosis {
        checks,
        bare_metal: trial_ms.is_some(),
        trial_ms,
        linux_guests,
        firecracker_path: binary.as_ref().map(|binary| binary.path.clone()),
        firecracker: binary.map(|binary| binary.version),
    }
}

fn pass(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, status: Status::Pass, found: found.into(), fix: None }
}

fn bad(name: &'static str, status: Status, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, status, found: found.into(), fix: Some(fix.into()) }
}

fn kvm_device() -> Check {
    let name = "kvm-device";
    match fs::metadata(kvm::DEVICE) {
        Ok(metadata) if metadata.file_type().is_char_device() => {
            pass(name, format!("{} is there", kvm::DEVICE))
        }
        Ok(_) => bad(
            name,
            Status::Fail,
            format!("{} is not a device", kvm::DEVICE),
            "rm /dev/kvm && mknod /dev/kvm c 10 232",
        ),
        Err(_) => bad(
            name,
            Status::Fail,
            format!("there is no {}", kvm::DEVICE),
            "modprobe kvm_intel   (or kvm_amd)\n\
             Is virtualization on in the firmware? In a VM: is nested virtualization on?\n\
             In a container: pass the device in, as with --device /dev/kvm",
        ),
    }
}

fn kvm_access() -> Check {
    let name = "kvm-access";
    match kvm::open() {
        Ok(_) => pass(name, "this user may open it for reading and writing"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check { name, status: Status::Skip, found: "there is no device".into(), fix: None }
        }
        Err(error) => {
            let uid = rustix::process::geteuid().as_raw();
            bad(
                name,
                Status::Fail,
                format!("uid {uid} cannot open {}: {error}", kvm::DEVICE),
                format!(
                    "usermod -aG kvm {}   and log in again\n\
                     or for this user at once: setfacl -m u:{uid}:rw {}",
                    env::var("USER").unwrap_or_else(|_| uid.to_string()),
                    kvm::DEVICE
                ),
            )
        }
    }
}

fn kvm_api() -> Check {
    let name = "kvm-api";
    let version = match kvm::open() {
        Ok(device) => kvm::api_version(&device),
        Err(_) => {
            return Check { name, status: Status::Skip, found: "the device does not open".into(), fix: None };
        }
    };
    match version {
        Ok(kvm::API_VERSION) => pass(name, format!("version {}", kvm::API_VERSION)),
        Ok(other) => bad(
            name,
            Status::Fail,
            format!("version {other}, not {}", kvm::API_VERSION),
            "use a kernel with the usual KVM interface",
        ),
        Err(error) => bad(
            name,
            Status::Fail,
            format!("{} does not answer as KVM does: {error}", kvm::DEVICE),
            "rm /dev/kvm && mknod /dev/kvm c 10 232",
        ),
    }
}

fn firecracker_check(
    binary: &Result<FirecrackerBinary, FindError>,
    found_by: impl FnOnce() -> &'static str,
) -> Check {
    let name = "firecracker";
    match binary {
        Ok(binary) if binary.version.is_supported() => {
            let by = found_by();
            pass(name, format!("{} ({}, {by})", binary.version, binary.path.display()))
        }
        Ok(binary) => bad(
            name,
            Status::Fail,
            format!("{} is too old ({})", binary.version, binary.path.display()),
            format!("get Firecracker {} or later", Version::OLDEST_SUPPORTED),
        ),
        Err(error) => bad(name, Status::Fail, chain(error), error.hint().unwrap_or_default()),
    }
}

fn runtime_dir(directories: &Directories, host: &Result<Host, crate::directories::DirectoryError>) -> Check {
    let name = "runtime-dir";
    match host {
        Ok(host) => pass(name, format!("{} is private and usable", host.runtime_dir().display())),
        Err(error) => bad(
            name,
            Status::Fail,
            format!("{}: {}", directories.runtime.display(), chain(error)),
            error.hint().unwrap_or_default(),
        ),
    }
}

/// Boots a guest of a few instructions and waits for its byte on the serial console.
async fn trial(host: &Host, binary: &FirecrackerBinary) -> Result<Duration, String> {
    // In memory, where nothing is left of it however we end.
    let guest = in_memory(&Guest::ByteThenIdle.elf())
        .map_err(|error| format!("the trial guest cannot be written: {error}"))?;
    let kernel = format!("/proc/{}/fd/{}", std::process::id(), guest.as_raw_fd());
    let json = serde_json::json!({
        "boot-source": {"kernel_image_path": kernel},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MIN_MEM_MIB.max(16)},
        "drives": [],
    });
    let config = Config::from_json(json.to_string(), "/");
    let checked = check_config(&config, &binary.version, false).map_err(|error| error.to_string())?;
    let begun = Instant::now();
    let booting = async {
        let machine = Machine::start(host, binary, &checked, StartOptions::default())
            .await
            .map_err(|error| [chain(&error), error.last_words().join("\n")].join("\n").trim().to_owned())?;
        let mut console = machine.console().reader();
        while let Some(chunk) = console.next().await {
            if chunk.bytes.contains(&READY_BYTE) {
                let took = machine.timeline().first_byte.unwrap_or_else(|| begun.elapsed());
                let _ = machine.kill().await;
                return Ok(took);
            }
        }
        let ended = machine.wait().await;
        let log = machine.diagnostics().last_lines(5).join("\n");
        Err(format!("the guest said nothing and ended: {}\n{log}", ended.vmm.exit.explained()))
    };
    match timeout(PATIENCE, booting).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("the guest said nothing within {PATIENCE:?}")),
    }
}

fn trial_check(tried: Option<Result<Duration, String>>) -> Check {
    let name = "trial";
    match tried {
        Some(Ok(took)) => {
            pass(name, format!("a tiny guest ran: first byte after {:.1} ms", took.as_secs_f64() * 1e3))
        }
        Some(Err(why)) => bad(
            name,
            Status::Fail,
            format!("a tiny guest did not run: {}", why.replace('\n', &format!("\n{:22}", ""))),
            "see what Firecracker says above; in a VM, is nested virtualization on?",
        ),
        None => {
            let found = "not tried, since something before it failed".into();
            Check { name, status: Status::Skip, found, fix: None }
        }
    }
}

fn in_memory(contents: &[u8]) -> io::Result<fs::File> {
    let mut file = fs::File::from(memfd_create("smartvm-trial", MemfdFlags::CLOEXEC)?);
    file.write_all(contents)?;
    Ok(file)
}

/// What stands behind the KVM device.
#[derive(Debug, Default, PartialEq, Eq)]
struct Backend {
    /// The CPU says that it can (`vmx`, `svm`).
    cpu: bool,
    /// The module that uses it (`kvm_intel`, `kvm_amd`), loaded or built in.
    hardware: bool,
    /// A paravirtual one (`kvm_pvm`).
    paravirtual: bool,
}

impl Backend {
    fn of_this_host() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let loaded = |module: &str| Path::new("/sys/module").join(module).is_dir();
        Self {
            cpu: has_virtualization(&cpuinfo),
            hardware: loaded("kvm_intel") || loaded("kvm_amd"),
            paravirtual: loaded("kvm_pvm"),
        }
    }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

fn linux_guests(backend: &Backend) -> LinuxGuests {
    match backend {
        Backend { cpu: true, hardware: true, .. } => LinuxGuests::Yes,
        Backend { paravirtual: true, .. } => LinuxGuests::No,
        // On aarch64 there are neither flags nor modules: KVM is part of the kernel, and the CPU's own.
        _ if cfg!(target_arch = "aarch64") && Path::new(kvm::DEVICE).exists() => LinuxGuests::Yes,
        _ => LinuxGuests::Unknown,
    }
}

fn linux_check(linux_guests: LinuxGuests) -> Check {
    let name = "linux-guests";
    match linux_guests {
        LinuxGuests::Yes => pass(name, "the CPU's own virtualization backs KVM: ordinary kernels boot"),
        LinuxGuests::No => bad(
            name,
            Status::Warn,
            "KVM is paravirtual here (module kvm_pvm, no vmx or svm): ordinary Linux guests will NOT boot; tiny ones run",
            "use a host with hardware virtualization, or nested virtualization switched on; a kernel built as a PVM guest \
             may boot here",
        ),
        LinuxGuests::Unknown => bad(
            name,
            Status::Warn,
            "neither hardware virtualization nor a known paravirtual backend was found",
            "see whether a Linux guest boots: smartvm run --config-file vm.json",
        ),
    }
}

fn open_files() -> Check {
    let name = "open-files";
    // A VMM takes five of its owner's.
    match crate::raise_open_files() {
        Ok(Some(limit)) if limit < 1024 => bad(
            name,
            Status::Warn,
            format!("at most {limit}: enough for {} machines in one process", limit / 6),
            "ulimit -Hn 65536   (as root), or LimitNOFILE= in the service",
        ),
        Ok(Some(limit)) => pass(name, format!("up to {limit}")),
        Ok(None) => pass(name, "no limit"),
        Err(error) => {
            bad(name, Status::Warn, format!("the limit cannot be raised: {error}"), "ulimit -n 65536")
        }
    }
}

fn memory() -> Check {
    let name = "memory";
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    match available.map(|kib| kib / 1024) {
        Some(mib) if mib < 256 => bad(
            name,
            Status::Warn,
            format!("{mib} MiB available: too little for an ordinary guest"),
            "end something, or give mem_size_mib less than that",
        ),
        Some(mib) => pass(name, format!("{mib} MiB available")),
        None => bad(
            name,
            Status::Warn,
            "/proc/meminfo does not say what is available",
            "mount -t proc proc /proc",
        ),
    }
}

/// Not needed yet; said so that nobody is surprised later.
async fn jailer_check(firecracker: Option<&Path>) -> Check {
    let name = "jailer";
    match jailer(firecracker).await {
        Some((path, Ok(version))) => pass(name, format!("{version} ({})", path.display())),
        Some((path, Err(why))) => bad(
            name,
            Status::Warn,
            format!("{}: {why}", path.display()),
            "set SMARTVM_JAILER to the jailer of Firecracker's release, or to nothing",
        ),
        None => pass(name, "none found (machines run without it for now)"),
    }
}

/// The jailer that belongs to a Firecracker and its version: SMARTVM_JAILER, else the one beside that Firecracker, else
/// `jailer` on PATH. `None`: there is none.
pub async fn jailer(firecracker: Option<&Path>) -> Option<(PathBuf, Result<Version, String>)> {
    let named = env::var_os("SMARTVM_JAILER").filter(|path| !path.is_empty()).map(PathBuf::from);
    let beside = || firecracker?.parent().map(|dir| dir.join("jailer")).filter(|path| path.is_file());
    let on_path = || {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).map(|dir| dir.join("jailer")).find(|path| path.is_file())
    };
    let path = named.or_else(beside).or_else(on_path)?;
    let version = jailer_version(&path).await.map_err(|error| chain(&error));
    Some((path, version))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_boots_on_hardware_and_not_on_a_paravirtual_backend() {
        let backend = |cpu, hardware, paravirtual| Backend { cpu, hardware, paravirtual };
        assert_eq!(linux_guests(&backend(true, true, false)), LinuxGuests::Yes);
        assert_eq!(linux_guests(&backend(false, false, true)), LinuxGuests::No);
        assert_eq!(linux_guests(&backend(true, false, true)), LinuxGuests::No);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(linux_guests(&backend(true, false, false)), LinuxGuests::Unknown);
        }
    }

    #[test]
    fn a_flag_is_a_word_of_its_own() {
        assert!(has_virtualization("processor: 0\nflags\t\t: fpu svm sse\n"));
        assert!(!has_virtualization("flags\t\t: fpu vmxnet sse\nbugs: vmx\n"));
    }

    #[test]
    fn a_failed_check_is_told_with_its_fix_and_makes_the_host_unready() {
        let mut diagnosis = Diagnosis {
            checks: vec![pass("a", "fine"), bad("b", Status::Warn, "so so", "do\nthis")],
            bare_metal: true,
            trial_ms: None,
            linux_guests: LinuxGuests::No,
            firecracker: None,
            firecracker_path: None,
        };
        assert!(diagnosis.is_ready());
        assert!(diagnosis.to_text(false).contains("fix: do\n                           this\n"));
        diagnosis.checks.push(bad("c", Status::Fail, "broken", "mend it"));
        assert!(!diagnosis.is_ready());
        assert!(diagnosis.to_text(false).ends_with("This host cannot run machines yet.\n"));
    }
}
