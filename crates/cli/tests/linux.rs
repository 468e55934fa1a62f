//! Debian's stock kernel by `smartvm run`, from its first line to its power-off. Fails where no Linux guest can run:
//! `cargo xtask test` chooses the place.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use smartvm_lab::guest::{self, Assets};

/// Under emulation a boot takes three seconds, on a busy machine several times as long.
const PATIENCE: Duration = Duration::from_secs(90);

fn smartvm() -> PathBuf {
    std::env::var_os("SMARTVM_BIN").map_or_else(|| env!("CARGO_BIN_EXE_smartvm").into(), PathBuf::from)
}

/// `smartvm run` on a Linux guest, its console read line by line.
struct Run {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
    dir: tempfile::TempDir,
}

impl Run {
    fn boot(then: &str, arguments: &[&str]) -> Self {
        let assets = Assets::from_env().expect("a Linux guest");
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("vm.json");
        fs::write(&config, assets.config(then).to_string()).expect("a config file");
        let mut child = Command::new(smartvm())
            .args(["-v", "run", "--id", "linux", "--config-file"])
            .arg(&config)
            .args(arguments)
            .env("SMARTVM_FIRECRACKER", smartvm_lab::firecracker())
            .env("SMARTVM_RUNTIME_DIR", dir.path().join("run"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("smartvm starts");
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        std::thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines, seen: Vec::new(), dir }
    }

    /// Reads the console up to a line with this text.
    fn await_line(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.last().is_some_and(|line| line.contains(text)) {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(error) => {
                    // With Firecracker's log: only that says whether the emulator lost the guest.
                    let _ = self.child.kill();
                    let mut said = String::new();
                    if let Some(mut stderr) = self.child.stderr.take() {
                        let _ = std::io::Read::read_to_string(&mut stderr, &mut said);
                    }
                    panic!("no {text:?} on the console ({error}):\n{}\n{said}", self.seen.join("\n"));
                }
            }
        }
    }

    /// Waits for the end; nothing of the machine may be left. The status and standard error.
    fn end(mut self) -> (Option<i32>, String) {
        // The console ends with the run.
        let deadline = Instant::now() + PATIENCE;
        while self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("its errors");
        std::io::Read::read_to_string(&mut stderr, &mut said).expect("text");
        let status = self.child.wait().expect("its status").code();
        let machines = fs::read_dir(self.dir.path().join("run/machines")).expect("the machines");
        assert_eq!(machines.count(), 0, "the machine's directory is gone");
        (status, said)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn debians_kernel_reaches_our_init_and_powers_off() {
    let mut run = Run::boot("poweroff", &["--json", "--timeline", "--mark", guest::REACHED]);
    run.await_line(guest::REACHED);
    let (status, said) = run.end();
    assert_eq!(status, Some(0), "{said}");
    // The log comes first.
    let told = &said[said.find("\n{").unwrap_or(0)..];
    let end: serde_json::Value = serde_json::from_str(told.trim()).expect("JSON");
    assert_eq!(end["how"], "the guest ended");
    let reached = end["timeline"]["marks"][0]["ms"].as_f64().expect("the mark was seen");
    assert!(reached > end["timeline"]["first_byte_ms"].as_f64().expect("a first byte"));
}

#[test]
fn a_running_linux_guest_takes_input_and_is_stopped_by_its_name() {
    let mut run = Run::boot("echo", &["--json"]);
    run.await_line(guest::REACHED);
    let input = run.input.as_mut().expect("its input");
    input.write_all(b"hello guest\n").expect("the guest takes input");
    run.await_line("hello guest");
    let stopped = Command::new(smartvm())
        .args(["stop", "linux", "--timeout", "60"])
        .env("SMARTVM_RUNTIME_DIR", run.dir.path().join("run"))
        .status()
        .expect("smartvm stop");
    assert!(stopped.success());
    let (status, said) = run.end();
    assert_eq!(status, Some(143), "{said}");
}
