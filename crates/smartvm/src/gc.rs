//! Releasing what machines with a dead owner left behind.
//!
//! The kernel kills a VMM with its owner, so most often only a directory is left. Yet nothing is taken for granted: the
//! VMM on record is killed if exactly it still lives, and so is any Firecracker that works in the directory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use smartvm_core::id::MachineId;
use smartvm_host::lock::FileLock;
use smartvm_host::process::ProcessId;

use crate::host::Host;
use crate::machine_data;
use crate::machine_dir::{LOCK, remove_dir, remove_stale_socket};
use crate::record::Record;

/// Whether to release or only to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcMode {
    /// Release what is found.
    Release,
    /// Change nothing; report what would be released.
    DryRun,
}

/// What a run found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Machines whose owner is dead; released, unless this was a dry run.
    pub released: Vec<Released>,
    /// Machines whose owner lives; not touched.
    pub alive: Vec<String>,
    /// What is not smartvm's; not touched.
    pub foreign: Vec<Left>,
    /// What should have been released and could not.
    pub failed: Vec<Left>,
}

/// A machine whose owner is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Released {
    /// Its id.
    pub id: String,
    /// VMMs that still lived; killed, unless this was a dry run.
    pub vmms: Vec<i32>,
}

/// Something that was left where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Where.
    #[serde(serialize_with = "readable")]
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// A path in JSON: what is not UTF-8 in it is replaced, since a report must come out whatever stands in a directory.
fn readable<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl GcReport {
    pub(crate) fn broken(path: &Path, error: &dyn std::error::Error) -> Self {
        let failed = vec![Left { path: path.to_owned(), why: error.to_string() }];
        Self { failed, ..Self::default() }
    }
}

/// How long a killed VMM may take to end: the kernel may need a while to take a large VM down.
const VMM_PATIENCE: Duration = Duration::from_secs(10);

/// Looks through the machines' directories. Goes on past failures.
pub(crate) fn run(host: &Host, mode: GcMode) -> GcReport {
    let mut report = GcReport { dry_run: mode == GcMode::DryRun, ..GcReport::default() };
    let leftovers = match collect(host, mode, &mut report) {
        Ok(leftovers) => leftovers,
        Err(error) => {
            report.failed.push(Left { path: host.machines_dir(), why: error.to_string() });
            return report;
        }
    };
    let mut patience = ENDING_PATIENCE;
    for leftover in leftovers {
        let id = leftover.id();
        let vmms = leftover.vmms();
        if mode == GcMode::DryRun {
            report.released.push(Released { id, vmms: vmms.iter().map(|vmm| vmm.pid).collect() });
            continue;
        }
        let path = leftover.path.clone();
        match leftover.release(host, &vmms, &mut patience) {
            Ok(()) => report.released.push(Released { id, vmms: vmms.iter().map(|vmm| vmm.pid).collect() }),
            Err(why) => report.failed.push(Left { path, why }),
        }
    }
    collect_data(host, mode, &mut report);
    report.released.sort_by(|a, b| a.id.cmp(&b.id));
    report.alive.sort();
    report
}

/// What dead owners left in the data directory. After the VMMs: nobody writes to the disks any more.
fn collect_data(host: &Host, mode: GcMode, report: &mut GcReport) {
    let collected = match machine_data::collect(host.data_dir(), mode == GcMode::Release) {
        Ok(collected) => collected,
        Err(error) => {
            let path = host.data_dir().join("machines");
            return report.failed.push(Left { path, why: error.to_string() });
        }
    };
    for dead in collected {
        if let Some((path, error)) = dead.kept {
            report.failed.push(Left { path, why: error.to_string() });
        } else if !report.released.iter().any(|released| released.id == dead.id) {
            report.released.push(Released { id: dead.id, vmms: Vec::new() });
        }
    }
}

/// How long a lock that a dead owner still seems to hold is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Takes every lock that can be had, so that the slow work needs no common lock and starts go on meanwhile.
fn collect(host: &Host, mode: GcMode, report: &mut GcReport) -> io::Result<Vec<Leftover>> {
    let mut leftovers = Vec::new();
    let mut held = Vec::new();
    {
        let _looking = FileLock::exclusive(&host.machines_lock())?;
        for entry in fs::read_dir(host.machines_dir())? {
            let path = entry?.path();
            match judge(&path) {
                Err(why) => report.foreign.push(Left { path, why: why.to_owned() }),
                Ok(()) => match Leftover::take(&path, mode) {
                    Ok(leftover) => leftovers.push(leftover),
                    Err(Kept::Busy) if owner_lives(&path) == Some(false) => held.push(path),
                    Err(Kept::Busy) => report.alive.push(name(&path)),
                    Err(Kept::Failed(why)) => report.failed.push(Left { path, why }),
                },
            }
        }
    }
    // A child that was to become a VMM has its owner's files open until it has; when the owner is killed, it is too, but a
    // moment later. Or another `gc` is at work there: then both answer when it is done.
    let until = Instant::now() + LOCK_PATIENCE;
    for path in held {
        while path.exists() {
            let looking = FileLock::exclusive(&host.machines_lock())?;
            match Leftover::take(&path, mode) {
                Ok(leftover) => leftovers.push(leftover),
                Err(Kept::Busy) if Instant::now() < until && owner_lives(&path) != Some(true) => {
                    drop(looking);
                    sleep(Duration::from_millis(1));
                    continue;
                }
                Err(Kept::Busy) => report.alive.push(name(&path)),
                Err(Kept::Failed(why)) => report.failed.push(Left { path, why }),
            }
            break;
        }
    }
    Ok(leftovers)
}

/// Whether the owner on record lives; `None` when there is no record.
fn owner_lives(path: &Path) -> Option<bool> {
    let record = Record::read(&path.join("machine.json")).ok()?;
    Some(record.owner.is_alive().unwrap_or(true))
}

/// Whether this can be a machine's directory.
fn judge(path: &Path) -> Result<(), &'static str> {
    if MachineId::new(&name(path)).is_err() {
        return Err("its name is no machine id");
    }
    let metadata = fs::symlink_metadata(path).map_err(|_| "it cannot be looked at")?;
    if !metadata.is_dir() {
        return Err("it is not a directory");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err("it belongs to another user");
    }
    match fs::symlink_metadata(path.join(LOCK)) {
        Ok(lock) if !lock.is_file() => Err("its lock is not a file"),
        _ => Ok(()),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Why a directory was not released.
#[derive(Debug)]
pub(crate) enum Kept {
    /// It has an owner.
    Busy,
    /// It has none, and could not be released.
    Failed(String),
}

/// Releases one machine's directory if its owner is dead. It need not exist.
pub(crate) fn release_leftover(host: &Host, path: &Path) -> Result<(), Kept> {
    let leftover = {
        let _looking = FileLock::exclusive(&host.machines_lock())
            .map_err(|error| Kept::Failed(format!("the lock of all machines cannot be taken: {error}")))?;
        // Looked at under the lock: whoever was removing it has done so.
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(());
        }
        judge(path).map_err(|why| Kept::Failed(why.to_owned()))?;
        Leftover::take(path, GcMode::Release)?
    };
    let vmms = leftover.vmms();
    let mut patience = ENDING_PATIENCE;
    leftover.release(host, &vmms, &mut patience).map_err(Kept::Failed)
}

/// A directory without an owner. We hold its lock, unless this is a dry run and there was none.
struct Leftover {
    path: PathBuf,
    record: Option<Record>,
    _lock: Option<FileLock>,
}

impl Leftover {
    /// The caller holds the lock of all machines alone, so that nobody is making or removing the directory.
    fn take(path: &Path, mode: GcMode) -> Result<Self, Kept> {
        let lock_path = path.join(LOCK);
        // Taking a lock makes its file; looking must not.
        let lock = if mode == GcMode::DryRun && !lock_path.exists() {
            None
        } else {
            match FileLock::try_exclusive(&lock_path) {
                Ok(Some(lock)) => Some(lock),
                Ok(None) => return Err(Kept::Busy),
                // Its owner removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Kept::Busy),
                Err(error) => return Err(Kept::Failed(format!("its lock cannot be taken: {error}"))),
            }
        };
        let record = Record::read(&path.join("machine.json")).ok();
        Ok(Self { path: path.to_owned(), record, _lock: lock })
    }

    fn id(&self) -> String {
        name(&self.path)
    }

    /// The VMMs of this machine that still live, but for those that are ending already.
    fn vmms(&self) -> Vec<ProcessId> {
        let mut vmms = working_in(&self.path);
        let ending = ProcessId::ending().unwrap_or_default();
        if let Some(vmm) = self.record.as_ref().and_then(|record| record.vmm.clone())
            && vmm.is_alive().unwrap_or(false)
            && !vmms.contains(&vmm)
        {
            vmms.push(vmm);
        }
        vmms.retain(|vmm| !ending.contains(vmm));
        vmms
    }

    fn release(self, host: &Host, vmms: &[ProcessId], patience: &mut Duration) -> Result<(), String> {
        for vmm in vmms {
            end(vmm).map_err(|error| format!("its VMM, process {}: {error}", vmm.pid))?;
        }
        wait_for_the_ending(patience);
        if let Some(vsock) = self.record.as_ref().and_then(|record| record.vsock.as_ref()) {
            remove_stale_socket(vsock);
        }
        remove_dir(&self.path, &host.machines_lock()).map_err(|error| format!("cannot be removed: {error}"))
    }
}

/// Kills exactly this process and waits until it has gone.
pub(crate) fn end(process: &ProcessId) -> io::Result<()> {
    if !process.kill()? {
        return Ok(());
    }
    if wait_until_gone(process, VMM_PATIENCE)? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("still there {VMM_PATIENCE:?} after SIGKILL")))
}

/// How long processes that are just ending are waited for, all in all. One that hangs in the kernel must not hold up everything.
const ENDING_PATIENCE: Duration = Duration::from_secs(1);

/// Waits for what is just ending: the VMM of an owner that was killed a moment ago may be among it, past the point where
/// it can be told from others. Until it has gone, its sockets take connections and so count as somebody's.
pub(crate) fn wait_for_the_ending(patience: &mut Duration) {
    let begun = Instant::now();
    for process in ProcessId::ending().unwrap_or_default() {
        let _ = wait_until_gone(&process, patience.saturating_sub(begun.elapsed()));
    }
    *patience = patience.saturating_sub(begun.elapsed());
}

/// Waits until exactly this process has ended; `false` when it has not within `patience`. Blocks the thread.
pub(crate) fn wait_until_gone(process: &ProcessId, patience: Duration) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(true) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(errno) => return Err(errno.into()),
    };
    let until = Instant::now() + patience;
    while process.is_alive()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

/// Firecrackers whose working directory is `dir`: the owner may have died before it wrote their pid down.
pub(crate) fn working_in(dir: &Path) -> Vec<ProcessId> {
    let Ok(dir) = fs::metadata(dir) else { return Vec::new() };
    let own = std::process::id();
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok().filter(|pid| *pid != own));
    pids.filter_map(|pid| {
        // Following `cwd` asks the kernel for the directory itself, whatever its name is by now.
        let cwd = fs::metadata(format!("/proc/{pid}/cwd")).ok()?;
        if (cwd.dev(), cwd.ino()) != (dir.dev(), dir.ino()) {
            return None;
        }
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let is_vmm = arguments.split(|&byte| byte == 0).any(|argument| argument == b"--api-sock");
        is_vmm.then(|| ProcessId::of(pid.cast_signed()).ok().flatten())?
    })
    .collect()
}
