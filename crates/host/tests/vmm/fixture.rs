//! What the tests of this crate share: a directory with tiny guests, real launches, and eyes on the host.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use smartvm_core::bare_metal::Guest;
use smartvm_host::{Ladder, Launch, LogLevel};

/// Generous: tests wait for events, this only ends a test that would hang.
pub(crate) fn patience() -> Duration {
    smartvm_lab::patience(Duration::from_secs(20))
}

/// SIGKILL at once. Its end is awaited longer than [`Ladder::kill_now`] does where KVM is emulated and other tests start
/// and end many VMMs.
pub(crate) fn kill_now() -> Ladder {
    Ladder { kill: Some(smartvm_lab::patience(Duration::from_secs(1))), ..Ladder::kill_now() }
}

/// A directory of its own for one test, removed with it.
pub(crate) struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("smartvm-host-").tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A config file that boots this guest, and more of its sections (`, "balloon": …`).
    pub(crate) fn config_with(&self, guest: Guest<'_>, more: &str) -> PathBuf {
        let (kernel, config) = (self.path("kernel"), self.path("vm.json"));
        fs::write(&kernel, guest.elf()).unwrap();
        let json = format!(
            r#"{{"boot-source":{{"kernel_image_path":"{}"}},"machine-config":{{"vcpu_count":1,"mem_size_mib":128}}{more}}}"#,
            kernel.display()
        );
        fs::write(&config, json).unwrap();
        config
    }

    pub(crate) fn config(&self, guest: Guest<'_>) -> PathBuf {
        self.config_with(guest, r#","drives":[]"#)
    }

    /// A launch that boots this guest, with its socket in this scene.
    pub(crate) fn launch(&self, guest: Guest<'_>) -> Launch {
        let mut launch = self.bare_launch();
        launch.config_file = Some(self.config(guest));
        launch
    }

    /// A launch that boots nothing by itself.
    pub(crate) fn bare_launch(&self) -> Launch {
        let mut launch = Launch::new(smartvm_lab::firecracker(), self.path("api.sock"));
        launch.log.level = Some(LogLevel::Info);
        launch
    }

    pub(crate) fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        path
    }
}

/// Runs an async test with a bound.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(patience(), test).await.expect("the test took too long") })
}

/// Looks again and again until it is so.
#[track_caller]
pub(crate) fn eventually(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process with this pid lives: PID 1 here may never reap, so a zombie counts as dead.
pub(crate) fn lives(pid: i32) -> bool {
    smartvm_host::process::ProcessId::of(pid).unwrap().is_some()
}

/// Pids of living processes whose command line names this directory.
pub(crate) fn living_under(dir: &Path) -> Vec<i32> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if cmdline.windows(needle.len()).any(|window| window == needle)
            && cmdline.starts_with(smartvm_lab::firecracker().as_os_str().as_encoded_bytes())
            && lives(pid)
        {
            found.push(pid);
        }
    }
    found
}
