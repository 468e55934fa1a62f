//! Firecrackers and jailers that nobody owns any more.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

use super::{Leak, Remedy};

/// A live process, named so that it is not mistaken for a later one of the same pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) name: String,
    parent: i32,
    /// In clock ticks since boot.
    start_time: u64,
    is_zombie: bool,
}

/// Processes that take in orphans, whoever started those.
const REAPERS: &[&str] = &["systemd", "init", "tini", "dumb-init", "docker-init", "catatonit"];

/// VMMs and jailers of ours whose parent is gone.
pub(super) fn leaks() -> Vec<Leak> {
    let all = Process::all();
    let is_reaper = |pid: i32| {
        pid <= 1 || all.iter().any(|process| process.pid == pid && REAPERS.contains(&process.name.as_str()))
    };
    let orphans = all.iter().filter(|process| !process.is_zombie && is_reaper(process.parent));
    let ours = orphans.filter(|process| process.executable().is_some_and(|path| is_ours(&path)));
    ours.map(|process| Leak {
        what: format!("process {} ({}) has lost its owner", process.pid, process.name),
        remedy: Remedy::Kill(process.clone()),
    })
    .collect()
}

/// Children of this process that some other process started: orphans that came to us because we are
/// their reaper. The dead among them are reaped. Only right while no child of our own runs, except
/// emulators, which are let alone.
pub(crate) fn adopted() -> Vec<Process> {
    let own = std::process::id();
    let children = Process::all().into_iter().filter(|process| process.parent.cast_unsigned() == own);
    let (dead, alive): (Vec<_>, Vec<_>) = children.partition(|process| process.is_zombie);
    for process in dead {
        // It may have been reaped by whoever waits for it.
        let _ = waitpid(Pid::from_raw(process.pid), WaitOptions::NOHANG);
    }
    alive.into_iter().filter(|process| !process.name.starts_with("qemu")).collect()
}

impl Process {
    fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }

    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads `/proc/PID/stat`. The name is in brackets and may itself contain some.
    fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        Some(Self {
            pid: pid.parse().ok()?,
            name: name.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
            is_zombie: matches!(*fields.first()?, "Z" | "X"),
        })
    }

    fn executable(&self) -> Option<PathBuf> {
        let mut path = fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?.into_os_string().into_vec();
        // What the kernel adds when the file was replaced since.
        if path.ends_with(b" (deleted)") {
            path.truncate(path.len() - b" (deleted)".len());
        }
        Some(OsString::from_vec(path).into())
    }

    /// Sends SIGKILL to this very process and waits up to a second for its end. False when it lives on.
    pub(crate) fn kill(&self) -> bool {
        let Some(pidfd) = Pid::from_raw(self.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            return !self.lives();
        };
        // The pidfd holds the process, so that it is the right one when its start time is.
        if self.lives() {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.lives() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        !self.lives()
    }

    fn lives(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.start_time == self.start_time && !now.is_zombie)
    }
}

/// Whether the file is a Firecracker or jailer that our tests run.
fn is_ours(executable: &Path) -> bool {
    let given = ["SMARTVM_FIRECRACKER", "SMARTVM_JAILER"].map(std::env::var_os);
    executable.starts_with(smartvm_lab::dev_cache().join("firecracker"))
        || given.into_iter().flatten().any(|path| Path::new(&path) == executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_is_read_whole() {
        let stat = "42 (a) b (c) S 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        let process = Process::parse(stat).expect("readable");
        assert_eq!((process.pid, process.name.as_str(), process.parent), (42, "a) b (c", 7));
        assert_eq!((process.start_time, process.is_zombie), (987_654, false));
    }

    #[test]
    fn this_process_is_found_and_a_child_is_killed_once() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let process = Process::read(child.id().cast_signed()).expect("it lives");
        assert_eq!(process.parent.cast_unsigned(), std::process::id());
        assert!(process.kill());
        assert!(!process.lives());
        child.wait().expect("it is reaped");
        assert!(process.kill(), "what is gone needs no killing");
    }
}
