//! QEMU as a process: its arguments, its life, its control socket.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::debian::Parts;
use crate::fault::{AtPath, Fault, Result};
use crate::wire::AGENT_PORT;

/// What every boot and every resume of one lab has in common.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) parts: Parts,
    pub(super) initrd: PathBuf,
    pub(super) root: PathBuf,
}

/// Whether QEMU goes with the thread that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Killed with the starting thread, whatever kills that.
    WithUs,
    /// Until the agent inside powers off.
    UntilIdle,
}

const SERIAL: &str = "serial.log";
const OUTPUT: &str = "qemu.log";
const CONTROL: &str = "qmp";

impl Machine {
    /// The arguments. A saved machine can only be resumed with those that it was booted with.
    pub(super) fn arguments(&self, boot_token: &str) -> Vec<String> {
        // QEMU reads a comma as the end of a value.
        let path = |path: &Path| path.display().to_string().replace(',', ",,");
        let append = format!(
            "console=ttyS0 quiet panic=1 tsc=reliable no_timer_check mitigations=off lab.token={boot_token}"
        );
        let hostfwd = format!("user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:0-:{AGENT_PORT}");
        let drive = format!("file={},if=virtio,format=raw,readonly=on", path(&self.root));
        let control = format!("unix:{CONTROL},server=on,wait=off");
        let initrd = self.initrd.display().to_string();
        let vmlinuz = self.parts.vmlinuz().display().to_string();
        [
            // This QEMU's cmpxchg16b leaves wild flags in nested guests, and newer kernels panic by it: no cx16.
            &["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt,-cx16", "-smp", "2", "-m", "4096"][..],
            &[
                "-name",
                "smartvm-lab,process=qemu-lab",
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
                "-kernel",
                &vmlinuz,
                "-initrd",
                &initrd,
            ],
            &["-append", &append, "-serial", &format!("file:{SERIAL}"), "-qmp", &control],
            &["-drive", &drive, "-netdev", &hostfwd, "-device", "virtio-net-pci,netdev=n,romfile="],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    }

    /// Starts QEMU with `dir` as its working directory, where it makes its socket and logs.
    pub(super) fn start(
        &self,
        dir: &Path,
        boot_token: &str,
        incoming: Option<&str>,
        life: Life,
    ) -> Result<Qemu> {
        for file in [SERIAL, OUTPUT, CONTROL] {
            let _ = fs::remove_file(dir.join(file));
        }
        let words = self.parts.qemu();
        let output = dir.join(OUTPUT);
        let log = File::create(&output).at("cannot create", &output)?;
        let log2 = log.try_clone().at("cannot clone", &output)?;
        let mut command = match life {
            Life::WithUs => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--"]).arg(&words[0]);
                command
            }
            Life::UntilIdle => Command::new(&words[0]),
        };
        command
            .args(&words[1..])
            .args(self.arguments(boot_token))
            .env("QEMU_MODULE_DIR", self.parts.qemu_modules())
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log2)
            // A Ctrl-C at the terminal is for us, we decide what becomes of the lab.
            .process_group(0);
        if let Some(uri) = incoming {
            command.args(["-incoming", uri]);
        }
        let child = command.spawn().map_err(|error| Fault::because("cannot start QEMU", error))?;
        let process = Process::of_child(&child)?;
        Ok(Qemu { dir: dir.to_owned(), process, child: Some(child) })
    }
}

/// A QEMU that was started by us or, earlier, by another process of ours.
#[derive(Debug)]
pub(super) struct Qemu {
    dir: PathBuf,
    process: Process,
    child: Option<Child>,
}

impl Qemu {
    /// One that another process started, if it still lives.
    pub(super) fn adopt(dir: &Path, pid: i32, started: u64) -> Option<Self> {
        Some(Self { dir: dir.to_owned(), process: Process::find(pid, started)?, child: None })
    }

    pub(super) fn pid(&self) -> i32 {
        self.process.pid
    }

    pub(super) fn started(&self) -> u64 {
        self.process.started
    }

    pub(super) fn serial(&self) -> PathBuf {
        self.dir.join(SERIAL)
    }

    /// What QEMU and the machine's console said last.
    pub(super) fn last_words(&self) -> String {
        let tail = |name: &str| {
            let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let lines: Vec<_> =
                text.lines().filter(|line| !line.contains("TCG doesn't support requested feature")).collect();
            lines[lines.len().saturating_sub(10)..].join("\n")
        };
        format!("{}\n{}", tail(OUTPUT), tail(SERIAL)).trim().to_owned()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.process.wait(Duration::ZERO)
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self, time: Duration) -> bool {
        let ended = self.process.wait(time);
        if ended && let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        ended
    }

    /// Ends it and what it started.
    pub(super) fn kill(&mut self) {
        let _ = pidfd_send_signal(&self.process.handle, Signal::KILL);
        if !self.wait(Duration::from_secs(10)) {
            crate::cache::progress(&format!("QEMU {} does not die", self.process.pid));
        }
        let _ = fs::remove_file(self.dir.join(CONTROL));
    }

    pub(super) fn control(&self, deadline: Instant) -> Result<Control> {
        Control::connect(&self.dir, self, deadline)
    }
}

/// A process that cannot be mistaken for another of the same number.
#[derive(Debug)]
struct Process {
    pid: i32,
    /// Clock ticks from the host's boot to its start.
    started: u64,
    handle: OwnedFd,
}

impl Process {
    fn of_child(child: &Child) -> Result<Self> {
        let pid = Pid::from_child(child);
        let handle = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| Fault::because("cannot open QEMU's pidfd", error))?;
        let pid = pid.as_raw_nonzero().get();
        let (started, _) = read_stat(pid).ok_or_else(|| Fault::new("QEMU ended at once"))?;
        Ok(Self { pid, started, handle })
    }

    fn find(pid: i32, started: u64) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Read after the handle was opened: it belongs to this very process.
        let (found, dead) = read_stat(pid)?;
        (found == started && !dead).then_some(Self { pid, started, handle })
    }

    /// Whether it has ended, waiting at most so long.
    fn wait(&self, time: Duration) -> bool {
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(self.handle.as_fd(), PollFlags::IN)];
        matches!(poll(&mut fds, Some(&time)), Ok(ready) if ready > 0)
    }
}

/// Start time and whether it is dead but not reaped.
fn read_stat(pid: i32) -> Option<(u64, bool)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<(u64, bool)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // Field 22 of the line; the state is field 3.
    let started = fields.nth(18)?.parse().ok()?;
    Some((started, matches!(state, "Z" | "X")))
}

/// QEMU's control socket (QMP).
#[derive(Debug)]
pub(super) struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    fn connect(dir: &Path, qemu: &Qemu, deadline: Instant) -> Result<Self> {
        // Through the directory's descriptor: a socket's path may have 107 bytes only.
        let handle = File::open(dir).at("cannot open", dir)?;
        let path = format!("/proc/self/fd/{}/{CONTROL}", handle.as_raw_fd());
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(error) if qemu.has_ended() || Instant::now() > deadline => {
                    return Err(Fault::because("QEMU's control socket does not answer", error)
                        .with_last_words(&qemu.last_words()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        stream.set_read_timeout(Some(left)).at("cannot set up", dir)?;
        let mut control = Self { stream: BufReader::new(stream) };
        control.read()?;
        control.execute("qmp_capabilities", json!({}))?;
        Ok(control)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let failed = |error| Fault::because("cannot read from QEMU's control socket", error);
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(Fault::new("QEMU closed its control socket")),
            Ok(_) => serde_json::from_str(&line).map_err(|error| failed(error.into())),
            Err(error) => Err(failed(error)),
        }
    }

    /// One command; events that come meanwhile are dropped.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let failed = |source| Fault::because(format!("QEMU's {command} failed"), source);
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(failed)?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(failed(std::io::Error::other(text.to_owned())));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// The loopback port that leads to the agent.
    pub(super) fn agent_port(&mut self) -> Result<u16> {
        let text = self.execute("human-monitor-command", json!({ "command-line": "info usernet" }))?;
        let text = text.as_str().unwrap_or_default();
        forwarded_port(text).ok_or_else(|| Fault::new("QEMU forwards no port").with_last_words(text))
    }

    /// Stops the machine and writes all its state to a file of QEMU's working directory.
    pub(super) fn save(&mut self, file: &str, time: Duration) -> Result<()> {
        self.execute("stop", json!({}))?;
        self.execute("migrate-set-parameters", json!({ "max-bandwidth": 4_u64 << 30 }))?;
        self.execute("migrate", json!({ "uri": format!("exec:cat > {file}") }))?;
        let deadline = Instant::now() + time;
        loop {
            let info = self.execute("query-migrate", json!({}))?;
            match info.get("status").and_then(Value::as_str) {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(Fault::because("cannot save the lab", info.to_string()));
                }
                _ if Instant::now() > deadline => return Err(Fault::new("saving the lab takes too long")),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Waits until a saved state has come in, then lets the machine run.
    pub(super) fn resume(&mut self, deadline: Instant) -> Result<()> {
        loop {
            let status = self.execute("query-status", json!({}))?;
            match status.get("status").and_then(Value::as_str) {
                Some("inmigrate") if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Some("paused" | "prelaunch" | "postmigrate") => break,
                Some("running") => return Ok(()),
                _ => return Err(Fault::because("the saved lab does not come back", status.to_string())),
            }
        }
        self.execute("cont", json!({})).map(drop)
    }
}

/// The host's port in the answer to `info usernet`.
fn forwarded_port(text: &str) -> Option<u16> {
    let line = text.lines().find(|line| line.contains("TCP[HOST_FORWARD]"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_forwarded_port() {
        let text = "Hub -1 (n):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  TCP[HOST_FORWARD]  12       127.0.0.1 39331       10.0.2.15  7777     0     0\r\n";
        assert_eq!(forwarded_port(text), Some(39331));
        assert_eq!(forwarded_port(""), None);
    }

    #[test]
    fn start_time_is_field_22() {
        let line = "5 (a b) S 1 5 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        assert_eq!(parse_stat(line), Some((12345, false)));
        let (started, dead) = read_stat(std::process::id().cast_signed()).unwrap();
        assert!(started > 0 && !dead);
    }

    #[test]
    fn another_process_with_the_same_number_is_not_adopted() {
        let pid = std::process::id().cast_signed();
        let (started, _) = read_stat(pid).unwrap();
        assert!(Process::find(pid, started).is_some());
        assert!(Process::find(pid, started + 1).is_none());
    }
}
