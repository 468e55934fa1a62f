//! What the tests share: a directory with tiny guests, the command, and eyes on what it leaves.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use smartvm_core::bare_metal::Guest;

/// Generous: tests wait for events, this only ends a test that would hang.
pub(crate) fn patience() -> Duration {
    smartvm_lab::patience(Duration::from_secs(30))
}

/// A directory of its own for one test, with a runtime directory in it.
pub(crate) struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("smartvm-cli-").tempdir().unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    pub(crate) fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        path
    }

    /// A config that boots this guest, its kernel named relative to the config.
    pub(crate) fn config(&self, guest: Guest<'_>) -> PathBuf {
        self.write("guest", guest.elf());
        let config = r#"{"boot-source": {"kernel_image_path": "guest"}, "drives": []}"#;
        self.write("vm.json", config)
    }

    /// The command, in an environment that is this scene's own.
    pub(crate) fn smartvm(&self) -> Command {
        let mut command = Command::new(smartvm());
        self.equip(&mut command);
        command
    }

    pub(crate) fn equip(&self, command: &mut Command) {
        command
            .env("SMARTVM_FIRECRACKER", smartvm_lab::firecracker())
            .env("SMARTVM_RUNTIME_DIR", self.path("run"))
            .env("SMARTVM_DATA_DIR", self.path("data"))
            .env_remove("NO_COLOR")
            // Elsewhere than the config's folder: relative paths must not start here.
            .current_dir("/");
    }

    /// `smartvm run` on this guest, ready for more arguments.
    pub(crate) fn run(&self, guest: Guest<'_>) -> Command {
        let config = self.config(guest);
        let mut command = self.smartvm();
        command.arg("run").arg("--config-file").arg(config);
        command
    }

    /// Runs a command to its end and answers what it said.
    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.smartvm().args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// The directories of machines.
    pub(crate) fn machines(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("run/machines")).into_iter().flatten();
        let mut ids: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        ids.sort();
        ids
    }

    /// VMMs whose command line names this scene.
    pub(crate) fn vmms(&self) -> Vec<i32> {
        let needle = self.dir.path().to_string_lossy().into_owned();
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            arguments.contains(&needle) && arguments.contains("--api-sock") && is_alive(*pid)
        })
        .collect()
    }

    /// Panics when a process, a machine's directory or a socket is left.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.machines(), Vec::<String>::new(), "directories of machines");
        assert_eq!(self.vmms(), Vec::<i32>::new(), "VMMs");
        assert_eq!(sockets(self.dir.path()), Vec::<PathBuf>::new(), "sockets");
    }
}

/// The command under test; where the lab put it when this runs there.
pub(crate) fn smartvm() -> PathBuf {
    std::env::var_os("SMARTVM_BIN").map_or_else(|| env!("CARGO_BIN_EXE_smartvm").into(), PathBuf::from)
}

fn sockets(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(sockets(&entry.path()));
        } else if kind.is_socket() {
            found.push(entry.path());
        }
    }
    found
}

/// Whether a process runs. PID 1 may not reap: a zombie is dead.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !matches!(state(&stat), None | Some('Z' | 'X'))
}

/// The state letter in the text of /proc/PID/stat.
pub(crate) fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Waits for a condition that comes about without telling us.
pub(crate) fn wait_until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

/// A running command whose output is followed. Killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) seen: Vec<u8>,
    output: Receiver<Vec<u8>>,
    stderr: Option<std::thread::JoinHandle<String>>,
}

impl Running {
    /// Starts it with pipes. Its standard error is kept for [`Running::end`].
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { child, seen: Vec::new(), output: follow(stdout), stderr: Some(stderr) }
    }

    /// Starts it with a given standard error and output.
    pub(crate) fn with_output(child: Child, output: impl Read + Send + 'static) -> Self {
        Self { child, seen: Vec::new(), output: follow(output), stderr: None }
    }

    /// From here on, but for a little that is on its way, nobody takes its output.
    pub(crate) fn stop_reading(&mut self) {
        self.output = channel().1;
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Reads output until this text has come.
    pub(crate) fn await_output(&mut self, text: &str) {
        let until = Instant::now() + patience();
        while !contains(&self.seen, text.as_bytes()) {
            match self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(error) => {
                    panic!("no {text:?} ({error}) in {:?}", String::from_utf8_lossy(&self.seen));
                }
            }
        }
    }

    /// Waits for the end: the status, all of the output, all of standard error.
    pub(crate) fn end(&mut self) -> (ExitStatus, Vec<u8>, String) {
        let until = Instant::now() + patience();
        loop {
            match self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("it does not end; it said {:?}", String::from_utf8_lossy(&self.seen));
                }
            }
        }
        let status = self.child.wait().unwrap();
        let stderr = self.stderr.take().map(|thread| thread.join().unwrap()).unwrap_or_default();
        (status, std::mem::take(&mut self.seen), stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(mut output: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Whether a command has stopped moving bytes: none are read between two looks.
pub(crate) fn is_waiting_to_write(pid: i32) -> bool {
    let read = || {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        io.lines().find(|line| line.starts_with("rchar")).unwrap().to_owned()
    };
    let before = read();
    std::thread::sleep(Duration::from_millis(50));
    read() == before
}

pub(crate) fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
