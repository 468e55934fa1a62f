//! Knowing a process for certain: a pid alone may name another process tomorrow.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use smartvm_firecracker::exit_code;

/// A process that cannot be taken for another one: pid, start time, and the boot in which both were true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid, in our own pid namespace.
    pub pid: i32,
    /// Clock ticks from boot to the process's start: field 22 of proc_pid_stat(5).
    pub start_time: u64,
    /// The kernel's random id of this boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

impl ProcessId {
    /// The process that has this pid now, `None` when there is none or it has ended.
    ///
    /// A zombie has ended, unless threads of it still run: then its descriptors are still open, its sockets still take
    /// connections, and its guest's memory is still there.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let Some(stat) = Stat::read(pid)? else { return Ok(None) };
        if stat.has_ended() {
            return Ok(None);
        }
        Ok(Some(Self { pid, start_time: stat.start_time, boot_id: boot_id()? }))
    }

    /// This process.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn own() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_pid();
        Self::of(pid)?.ok_or_else(|| io::Error::other("/proc does not show this process"))
    }

    /// Whether exactly this process still lives.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(Self::of(self.pid)?.as_ref() == Some(self))
    }

    /// The processes of this user that are on their way out but have not ended yet. The kernel takes a VM down in some
    /// 25 ms, and for most of that time neither a command line nor a working directory tells whose VMM it was.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn ending() -> io::Result<Vec<Self>> {
        let user = rustix::process::geteuid().as_raw();
        let mut ending = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Either fails for a process that has just gone.
            if !entry.metadata().is_ok_and(|metadata| metadata.uid() == user) {
                continue;
            }
            let Ok(Some(stat)) = Stat::read(pid) else { continue };
            if stat.exiting && !stat.has_ended() {
                ending.push(Self { pid, start_time: stat.start_time, boot_id: boot_id()? });
            }
        }
        Ok(ending)
    }

    /// Sends SIGKILL to exactly this process; `false` when it was gone already. Never hits another process: the
    /// identity is checked again after the pidfd is held.
    ///
    /// # Errors
    /// When the kernel refuses, most often for lack of permission.
    pub fn kill(&self) -> io::Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(false) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        if !self.is_alive()? {
            return Ok(false);
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The id of this boot of the host.
fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The kernel's flag of a task that is on its way out (include/linux/sched.h).
const PF_EXITING: u32 = 0x4;

/// What we need of proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    /// The leader is in `do_exit` or past it: PF_EXITING of the kernel's task flags.
    exiting: bool,
    threads: u32,
    start_time: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(Self::parse(&stat)),
            // ESRCH: it ended between open and read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::SRCH) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The name of the process stands in parentheses and may hold any byte, parentheses and spaces included.
    fn parse(stat: &[u8]) -> Option<Self> {
        let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
        let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        // State is field 3, flags 9, number of threads 20, start time 22.
        let flags: u32 = fields.nth(5)?.parse().ok()?;
        let threads = fields.nth(10)?.parse().ok()?;
        let start_time = fields.nth(1)?.parse().ok()?;
        Some(Self { state, exiting: flags & PF_EXITING != 0, threads, start_time })
    }

    fn has_ended(&self) -> bool {
        // The first thread may be a zombie before the others: it counts itself.
        matches!(self.state, b'Z' | b'X' | b'x') && self.threads <= 1
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Status(i32),
    /// This signal ended it.
    Signal(i32),
    /// Its guest had ended, but Firecracker hung on its way out and was killed: its own exit status is not known.
    /// This happens to Firecracker 1.12.1 when an API request meets the guest's end.
    HungAtExit,
    /// It ended, but somebody else in this process collected its status (a handler that waits for any child, or
    /// SIGCHLD ignored).
    Unknown,
}

impl Exit {
    /// Collects a child that has ended. Does not wait: call it when the pidfd is readable.
    pub(crate) fn collect(pidfd: &OwnedFd) -> Self {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), options));
        match status {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Self::Status(code),
                (None, Some(signal)) => Self::Signal(signal),
                (None, None) => Self::Unknown,
            },
            Ok(None) | Err(_) => Self::Unknown,
        }
    }

    /// Whether this is the end of a guest that ended by itself: power off, reset, or a crash that Firecracker cannot
    /// tell from them.
    pub fn is_guests_end(self) -> bool {
        matches!(self, Self::Status(0) | Self::HungAtExit)
    }

    /// With Firecracker's own meaning of its exit status, where it has one.
    pub fn explained(self) -> String {
        match self {
            Self::Status(code) => match exit_code::meaning(code) {
                Some(meaning) => format!("{self} ({meaning})"),
                None => self.to_string(),
            },
            Self::Signal(_) | Self::HungAtExit | Self::Unknown => self.to_string(),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code) => write!(f, "exit status {code}"),
            Self::Signal(number) => match signal_name(*number) {
                Some(name) => write!(f, "killed by {name}"),
                None => write!(f, "killed by signal {number}"),
            },
            Self::HungAtExit => f.write_str("its guest ended, then Firecracker hung and was killed"),
            Self::Unknown => f.write_str("ended, its status was collected by somebody else"),
        }
    }
}

fn signal_name(number: i32) -> Option<&'static str> {
    Some(match Signal::from_named_raw(number)? {
        Signal::HUP => "SIGHUP",
        Signal::INT => "SIGINT",
        Signal::QUIT => "SIGQUIT",
        Signal::ILL => "SIGILL",
        Signal::ABORT => "SIGABRT",
        Signal::BUS => "SIGBUS",
        Signal::FPE => "SIGFPE",
        Signal::KILL => "SIGKILL",
        Signal::SEGV => "SIGSEGV",
        Signal::PIPE => "SIGPIPE",
        Signal::TERM => "SIGTERM",
        Signal::XCPU => "SIGXCPU",
        Signal::XFSZ => "SIGXFSZ",
        Signal::SYS => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = b"42 (a) Z 1 2 (b) S 1 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        let expected = Stat { state: b'S', exiting: false, threads: 1, start_time: 987_654 };
        assert_eq!(Stat::parse(stat), Some(expected));
    }

    #[test]
    fn a_zombie_has_ended_only_when_its_last_thread_has() {
        let stat = |threads: u32| {
            let text = format!("42 (fc) Z 1 2 3 4 5 4194316 0 0 0 0 0 0 0 0 20 0 {threads} 0 987654 0 0");
            Stat::parse(text.as_bytes()).unwrap()
        };
        assert!(stat(1).has_ended());
        assert!(!stat(2).has_ended());
        assert!(stat(2).exiting);
    }

    #[test]
    fn garbage_is_no_process() {
        for garbage in [&b""[..], b"1", b"1 (a", b"1 (a)", b"1 (a) S", b"1 (a) S \xff 1"] {
            assert_eq!(Stat::parse(garbage), None);
        }
    }

    #[test]
    fn we_are_alive_and_an_earlier_holder_of_our_pid_is_not() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive().unwrap());
        let earlier = ProcessId { start_time: own.start_time - 1, ..own.clone() };
        assert!(!earlier.is_alive().unwrap());
        assert!(!earlier.kill().unwrap(), "and it is not killed in our place");
        let other_boot = ProcessId { boot_id: "another".into(), ..own };
        assert!(!other_boot.is_alive().unwrap());
    }

    #[test]
    fn nobody_has_an_impossible_pid() {
        assert_eq!(ProcessId::of(i32::MAX).unwrap(), None);
    }
}
