//! The typed command line of one VMM: what Firecracker is started with, and how long we wait for it.
//!
//! Source of the flags: `firecracker --help` of 1.7 to 1.16.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smartvm_firecracker::api::LogLevel;

use crate::error::SpawnError;

/// How to start one Firecracker. Made by [`Launch::new`], refined by its public fields.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The Firecracker binary. Not searched on PATH: see [`crate::FirecrackerBinary::find`]. A wrapper must become
    /// Firecracker by exec: of a process that it forks nobody knows.
    pub exec_file: PathBuf,
    /// Where the VMM shall make its API socket (`--api-sock`). Any length that the file system allows, as long
    /// as the file's own name has at most 80 bytes; its directory must exist.
    pub api_sock: PathBuf,
    /// Instance id (`--id`), 1 to 64 letters, digits and hyphens. Firecracker's default: `anonymous-instance`.
    pub id: Option<String>,
    /// The whole VM as a JSON file (`--config-file`): Firecracker boots it at once, without API calls.
    pub config_file: Option<PathBuf>,
    /// First contents of the metadata service, a JSON file (`--metadata`).
    pub metadata: Option<PathBuf>,
    /// Firecracker's own log.
    pub log: LogOptions,
    /// An existing file or FIFO for metrics (`--metrics-path`); Firecracker before 1.14 does not create it.
    pub metrics_path: Option<PathBuf>,
    /// Adds the boot timer device, which logs the time from InstanceStart to the guest's signal (`--boot-timer`).
    pub boot_timer: bool,
    /// Largest API request body in bytes (`--http-api-max-payload-size`). Firecracker's default: 51,200.
    pub http_api_max_payload_size: Option<u64>,
    /// Largest metadata store in bytes (`--mmds-size-limit`). Firecracker's default: the payload limit.
    pub mmds_size_limit: Option<u64>,
    /// Virtio over PCI (`--enable-pci`), Firecracker 1.13 or later.
    pub enable_pci: bool,
    /// The VMM's seccomp filter.
    pub seccomp: Seccomp,
    /// The VMM's working directory: relative paths in its config and API calls start here. Default: ours.
    pub current_dir: Option<PathBuf>,
    /// What the guest's serial console reads.
    pub console_input: ConsoleInput,
    /// Whether the VMM ends when its owner does.
    pub lifetime: Lifetime,
    /// How much of the console and of the diagnostics is kept, each, in bytes.
    pub keep_output: usize,
    /// How long to wait for the VMM.
    pub readiness: Readiness,
}

impl Launch {
    /// A launch with Firecracker's defaults, dying with its owner, keeping 64 KiB of each output.
    pub fn new(exec_file: impl Into<PathBuf>, api_sock: impl Into<PathBuf>) -> Self {
        Self {
            exec_file: exec_file.into(),
            api_sock: api_sock.into(),
            id: None,
            config_file: None,
            metadata: None,
            log: LogOptions::default(),
            metrics_path: None,
            boot_timer: false,
            http_api_max_payload_size: None,
            mmds_size_limit: None,
            enable_pci: false,
            seccomp: Seccomp::Default,
            current_dir: None,
            console_input: ConsoleInput::Null,
            lifetime: Lifetime::WithOwner,
            keep_output: 64 * 1024,
            readiness: Readiness::default(),
        }
    }

    /// The arguments in full, `argv[0]` first. `api_sock` is the path as the child shall see it.
    pub(crate) fn argv(&self, api_sock: &Path) -> Result<Vec<CString>, SpawnError> {
        let mut args = Args(vec![self.exec_file.clone().into_os_string()]);
        args.pair("--api-sock", api_sock);
        args.option("--id", self.id.as_ref());
        args.option("--config-file", self.config_file.as_ref());
        args.option("--metadata", self.metadata.as_ref());
        // Without a path Firecracker logs to stdout, between the guest's bytes.
        args.pair("--log-path", self.log.path.as_deref().unwrap_or(Path::new("/proc/self/fd/2")));
        args.option("--level", self.log.level.map(LogLevel::as_str));
        args.option("--module", self.log.module.as_ref());
        args.flag("--show-level", self.log.show_level);
        args.flag("--show-log-origin", self.log.show_log_origin);
        args.option("--metrics-path", self.metrics_path.as_ref());
        args.flag("--boot-timer", self.boot_timer);
        args.option("--http-api-max-payload-size", self.http_api_max_payload_size.map(|n| n.to_string()));
        args.option("--mmds-size-limit", self.mmds_size_limit.map(|n| n.to_string()));
        args.flag("--enable-pci", self.enable_pci);
        match &self.seccomp {
            Seccomp::Default => {}
            Seccomp::Filter(path) => args.pair("--seccomp-filter", path),
            Seccomp::DangerouslyDisabled => args.flag("--no-seccomp", true),
        }
        args.0.iter().map(|arg| c_string(arg)).collect()
    }
}

/// A path or argument for the kernel; a NUL inside is the caller's mistake.
pub(crate) fn c_string(value: &OsStr) -> Result<CString, SpawnError> {
    CString::new(value.as_bytes())
        .map_err(|_| SpawnError::nul_in_argument(value.to_string_lossy().into_owned()))
}

struct Args(Vec<OsString>);

impl Args {
    fn pair(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }

    fn option(&mut self, name: &str, value: Option<impl AsRef<OsStr>>) {
        if let Some(value) = value {
            self.pair(name, value);
        }
    }

    fn flag(&mut self, name: &str, set: bool) {
        if set {
            self.0.push(name.into());
        }
    }
}

/// Firecracker's own log (`--log-path`, `--level`, `--module`, `--show-level`, `--show-log-origin`).
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// A file or FIFO that exists. `None`: the log comes to [`crate::Vmm::diagnostics`].
    pub path: Option<PathBuf>,
    /// Firecracker's default is `Info`.
    pub level: Option<LogLevel>,
    /// Only lines whose module path starts with this.
    pub module: Option<String>,
    /// Print the level in each line.
    pub show_level: bool,
    /// Print file and line of the call in each line.
    pub show_log_origin: bool,
}

/// The VMM's seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// The one built into Firecracker.
    Default,
    /// A compiled filter (`--seccomp-filter`).
    Filter(PathBuf),
    /// No filter at all (`--no-seccomp`): a guest that breaks out of the VMM meets the whole kernel. Never in production.
    DangerouslyDisabled,
}

/// What the guest's serial console reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleInput {
    /// Nothing.
    Null,
    /// What is written through [`crate::Vmm::take_console_input`].
    Pipe,
}

/// Whether the VMM ends when its owner does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifetime {
    /// The kernel kills the VMM when this process ends, however it ends; dropping the handle kills it too. Needs the VMM
    /// to have no more rights than this process: set-user-ID and file capabilities of the binary have no effect.
    WithOwner,
    /// The VMM lives on after its owner and after the handle. Its output goes to files, since a pipe would break
    /// with its reader.
    Detached {
        /// File that the guest's console is appended to; `None` throws it away.
        console: Option<PathBuf>,
        /// File that Firecracker's log and messages are appended to; `None` throws them away.
        diagnostics: Option<PathBuf>,
    },
}

/// How long a start may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// From the start of the process until its socket accepts a connection. Default 10 s.
    pub socket: Duration,
    /// From then until the API has answered, and with a config file until the guest runs. Default 5 s.
    pub api: Duration,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { socket: Duration::from_secs(10), api: Duration::from_secs(5) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(launch: &Launch) -> Vec<String> {
        let argv = launch.argv(&launch.api_sock).unwrap();
        argv.into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn a_plain_launch_logs_apart_from_the_console() {
        let launch = Launch::new("/fc", "/run/a.sock");
        assert_eq!(args(&launch), ["/fc", "--api-sock", "/run/a.sock", "--log-path", "/proc/self/fd/2"]);
    }

    #[test]
    fn every_option_becomes_its_flag() {
        let mut launch = Launch::new("/fc", "/s");
        launch.id = Some("web-1".into());
        launch.config_file = Some("/vm.json".into());
        launch.metadata = Some("/meta.json".into());
        launch.log = LogOptions {
            path: Some("/log".into()),
            level: Some(LogLevel::Debug),
            module: Some("vmm".into()),
            show_level: true,
            show_log_origin: true,
        };
        launch.metrics_path = Some("/metrics".into());
        launch.boot_timer = true;
        launch.http_api_max_payload_size = Some(100_000);
        launch.mmds_size_limit = Some(200_000);
        launch.enable_pci = true;
        launch.seccomp = Seccomp::Filter("/filter".into());
        let expected = "/fc --api-sock /s --id web-1 --config-file /vm.json --metadata /meta.json --log-path /log \
            --level Debug --module vmm --show-level --show-log-origin --metrics-path /metrics --boot-timer \
            --http-api-max-payload-size 100000 --mmds-size-limit 200000 --enable-pci --seccomp-filter /filter";
        assert_eq!(args(&launch).join(" "), expected);
        launch.seccomp = Seccomp::DangerouslyDisabled;
        assert_eq!(args(&launch).last().unwrap(), "--no-seccomp");
    }

    #[test]
    fn a_nul_in_an_argument_is_an_error_that_names_it() {
        let mut launch = Launch::new("/fc", "/s");
        launch.id = Some("a\0b".into());
        assert!(launch.argv(&launch.api_sock).unwrap_err().to_string().contains("a\\0b"));
    }
}
