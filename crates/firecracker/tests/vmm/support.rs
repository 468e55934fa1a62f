//! A real Firecracker in its own temporary directory: killed, reaped and removed on drop.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use smartvm_firecracker::{Client, Version, socket};
use tempfile::TempDir;

/// How long anything may take before a test calls it broken.
pub(crate) fn patience() -> Duration {
    smartvm_lab::patience(Duration::from_secs(20))
}

/// The version of the Firecracker that the tests run against.
pub(crate) fn version() -> Version {
    let output = Command::new(smartvm_lab::firecracker()).arg("--version").output().unwrap();
    Version::from_output(&String::from_utf8_lossy(&output.stdout)).unwrap()
}

/// Calls `attempt` until it gives something, with a deadline.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let patience = patience();
    let end = Instant::now() + patience;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The name of a TAP device that no other test or process uses; at most 15 bytes.
pub(crate) fn tap(test: &str) -> String {
    format!("{test}{}", std::process::id())
}

pub(crate) struct Firecracker {
    child: Child,
    dir: TempDir,
}

impl Firecracker {
    /// Starts one, and waits until its API accepts connections.
    pub(crate) fn start(args: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let mut this = Self::start_in(dir, &[&["--api-sock", "api.sock"], args].concat());
        let api_sock = this.api_sock();
        eventually("the API socket", || {
            if let Some(status) = this.child.try_wait().unwrap() {
                panic!("Firecracker ended with {status}: {}", this.output());
            }
            socket::connect(&api_sock).ok()
        });
        this
    }

    /// Starts one with exactly these arguments in `dir`.
    pub(crate) fn start_in(dir: TempDir, args: &[&str]) -> Self {
        let output = File::create(dir.path().join("output")).unwrap();
        let child = Command::new(smartvm_lab::firecracker())
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file into its directory.
    pub(crate) fn file(&self, name: &str, contents: &[u8]) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    /// Waits for its end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the end of Firecracker", || child.try_wait().unwrap())
    }

    pub(crate) fn api_sock(&self) -> PathBuf {
        self.path("api.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.api_sock())
    }

    pub(crate) fn stream(&self) -> UnixStream {
        socket::connect(&self.api_sock()).unwrap()
    }

    /// Everything it has written to its standard output and error.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("output")).unwrap()).into_owned()
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Firecracker {
    fn drop(&mut self) {
        self.kill();
    }
}
