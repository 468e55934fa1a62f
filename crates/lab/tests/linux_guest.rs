//! Debian's stock kernel under real Firecracker, by Firecracker's own command line: what everything else of
//! the end-to-end tests stands on. Fails where no Linux guest can run; `cargo xtask test` chooses the place.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use smartvm_lab::guest::{self, Assets};

/// Under emulation a boot takes three seconds, on a busy machine several times as long.
const PATIENCE: Duration = Duration::from_secs(90);

/// A Firecracker whose guest's console is read line by line.
struct Guest {
    vmm: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
    deadline: Instant,
    _dir: tempfile::TempDir,
}

impl Guest {
    fn boot(then: &str) -> Self {
        let assets = Assets::from_env().expect("a Linux guest");
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("vm.json");
        fs::write(&config, assets.config(then).to_string()).expect("a config file");
        let mut vmm = Command::new(smartvm_lab::firecracker())
            .args(["--no-api", "--config-file"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("Firecracker starts");
        let (sender, lines) = channel();
        let stdout = BufReader::new(vmm.stdout.take().expect("its output"));
        std::thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        let input = vmm.stdin.take();
        Self { vmm, input, lines, seen: Vec::new(), deadline: Instant::now() + PATIENCE, _dir: dir }
    }

    /// Reads the console up to a line with this text.
    fn await_line(&mut self, text: &str) {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {text:?} on the console:\n{}", self.seen.join("\n"));
            };
            self.seen.push(line);
            if self.seen.last().is_some_and(|line| line.contains(text)) {
                return;
            }
        }
    }

    fn type_line(&mut self, line: &str) {
        let input = self.input.as_mut().expect("a console");
        writeln!(input, "{line}").expect("the console takes input");
    }

    /// Waits for the guest's own power-off.
    fn await_exit(mut self) {
        // The channel closes with Firecracker's output.
        while Instant::now() < self.deadline {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(_) => break,
            }
        }
        let console = self.seen.join("\n");
        assert!(Instant::now() < self.deadline, "the guest does not power off:\n{console}");
        let status = self.vmm.wait().expect("Firecracker's status");
        assert_eq!(status.code(), Some(0), "{console}");
        assert!(!console.contains("KVM_EXIT_SHUTDOWN"), "the processor gave up on the guest:\n{console}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

#[test]
fn reaches_our_init_and_powers_off() {
    let mut guest = Guest::boot("poweroff");
    guest.await_line(guest::REACHED);
    guest.await_exit();
}

#[test]
fn answers_on_the_console() {
    let mut guest = Guest::boot("echo");
    guest.await_line(guest::REACHED);
    guest.type_line("hello from the host");
    guest.await_line("smartvm-lab-init: echo hello from the host");
    guest.type_line("poweroff");
    guest.await_exit();
}
