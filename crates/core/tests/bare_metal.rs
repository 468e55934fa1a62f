//! Each tiny guest under the real Firecracker: what it writes, what it hears, how it ends, and that a
//! waiting one burns no CPU.

#![expect(clippy::unwrap_used, reason = "a failed step of the harness is a failed test")]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the core is pure; this proof runs its guests"
)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use smartvm_core::bare_metal::{END_OF_TRANSMISSION, Guest, MIN_MEM_MIB, READY_BYTE};
use tempfile::TempDir;

/// Far more than any of these steps takes, on a machine that also compiles.
fn patience() -> Duration {
    smartvm_lab::patience(Duration::from_secs(30))
}

/// One Firecracker with one tiny guest; killed when dropped.
struct Vmm {
    child: Child,
    console: Receiver<u8>,
    dir: TempDir,
}

impl Vmm {
    fn boot(guest: Guest<'_>) -> Self {
        Self::boot_with(guest, 128)
    }

    fn boot_with(guest: Guest<'_>, mem_size_mib: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(file("kernel"), guest.elf()).unwrap();
        let config = serde_json::json!({
            "boot-source": {"kernel_image_path": file("kernel"), "boot_args": ""},
            "drives": [],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": mem_size_mib},
        });
        fs::write(file("config.json"), config.to_string()).unwrap();
        fs::write(file("log"), "").unwrap();
        let mut child = Command::new(smartvm_lab::firecracker())
            .args([
                "--api-sock",
                &file("api.sock"),
                "--config-file",
                &file("config.json"),
                "--log-path",
                &file("log"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        // Bounded, so that the guest that writes without end waits for us instead of filling memory.
        let (send, console) = mpsc::sync_channel(1 << 16);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if buffer[..count].iter().any(|&byte| send.send(byte).is_err()) {
                    return;
                }
            }
        });
        Self { child, console, dir }
    }

    /// The next `count` bytes of the console.
    fn read(&self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| self.console.recv_timeout(patience()).expect("another console byte in time"))
            .collect()
    }

    /// All that still comes until the VMM closes its console.
    fn read_to_end(&self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.console.recv_timeout(patience()) {
                Ok(byte) => all.push(byte),
                Err(RecvTimeoutError::Disconnected) => return all,
                Err(RecvTimeoutError::Timeout) => panic!("the console was not closed in time"),
            }
        }
    }

    fn type_in(&mut self, input: &[u8]) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(input).unwrap();
        stdin.flush().unwrap();
    }

    fn send_ctrl_alt_del(&self) {
        let mut api = UnixStream::connect(self.dir.path().join("api.sock")).unwrap();
        let body = r#"{"action_type": "SendCtrlAltDel"}"#;
        write!(api, "PUT /actions HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = [0; 12];
        api.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 204");
    }

    /// User and system time that the VMM has used, in clock ticks (10 ms).
    fn cpu_ticks(&self) -> u64 {
        let stat =
            fs::read_to_string(Path::new("/proc").join(self.child.id().to_string()).join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn assert_alive_and_idle(&mut self) {
        let (begin, before) = (Instant::now(), self.cpu_ticks());
        // Looking on for a while is the point here: nothing may happen in it.
        let silence = self.console.recv_timeout(Duration::from_millis(500));
        assert_eq!(silence, Err(RecvTimeoutError::Timeout));
        assert_eq!(self.child.try_wait().unwrap(), None);
        let (used, wall) = (self.cpu_ticks() - before, begin.elapsed());
        assert!(used <= 5, "{used} ticks of CPU in {wall:?}");
    }

    fn exit_status(&mut self) -> ExitStatus {
        let deadline = Instant::now() + patience();
        // The console's end comes first, so this hardly ever goes round.
        self.read_to_end();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(Instant::now() < deadline, "the VMM did not end in time"),
            }
            thread::yield_now();
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn byte_then_reset_ends_with_status_0() {
    let mut vmm = Vmm::boot(Guest::ByteThenReset);
    assert_eq!(vmm.read(1), [READY_BYTE]);
    assert_eq!(vmm.exit_status().code(), Some(0));
}

#[test]
fn the_least_memory_is_enough() {
    let mut vmm = Vmm::boot_with(Guest::Message("small"), MIN_MEM_MIB);
    assert_eq!(vmm.read(5), b"small");
    assert_eq!(vmm.exit_status().code(), Some(0));
}

#[test]
fn a_message_is_written_whole_and_once() {
    let text = "Linux version 0.0\n".repeat(300);
    let mut vmm = Vmm::boot(Guest::Message(&text));
    assert_eq!(vmm.read_to_end(), text.as_bytes());
    assert_eq!(vmm.exit_status().code(), Some(0));
}

#[test]
fn an_idle_guest_burns_no_cpu_and_ignores_ctrl_alt_del() {
    for guest in [Guest::ByteThenIdle, Guest::IgnoreCtrlAltDel] {
        let mut vmm = Vmm::boot(guest);
        assert_eq!(vmm.read(1), [READY_BYTE]);
        vmm.send_ctrl_alt_del();
        vmm.assert_alive_and_idle();
    }
}

#[test]
fn echo_answers_each_byte_and_resets_on_end_of_transmission() {
    let mut vmm = Vmm::boot(Guest::Echo);
    assert_eq!(vmm.read(1), [READY_BYTE]);
    vmm.assert_alive_and_idle();
    // More than the serial port's 64-byte queue at once, then single bytes: each needs its interrupt.
    let long: Vec<u8> = (b' '..=b'~').cycle().take(1000).collect();
    vmm.type_in(&long);
    assert_eq!(vmm.read(long.len()), long);
    for byte in b'a'..=b'z' {
        vmm.type_in(&[byte]);
        assert_eq!(vmm.read(1), [byte]);
    }
    vmm.type_in(&[b'.', END_OF_TRANSMISSION, b'?']);
    assert_eq!(vmm.read_to_end(), b".");
    assert_eq!(vmm.exit_status().code(), Some(0));
}

#[test]
fn flood_writes_lines_without_end() {
    let vmm = Vmm::boot(Guest::Flood);
    let output = vmm.read(80 * 500);
    for line in output.chunks(80) {
        assert_eq!(line.last(), Some(&b'\n'));
        assert!(line[..79].iter().all(u8::is_ascii_graphic), "{line:?}");
    }
}

#[test]
fn ctrl_alt_del_resets_the_guest_that_listens() {
    let mut vmm = Vmm::boot(Guest::ResetOnCtrlAltDel);
    assert_eq!(vmm.read(1), [READY_BYTE]);
    vmm.assert_alive_and_idle();
    vmm.send_ctrl_alt_del();
    assert_eq!(vmm.exit_status().code(), Some(0));
}
