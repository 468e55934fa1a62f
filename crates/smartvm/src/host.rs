//! This host, as far as smartvm keeps things on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_core::id::MachineId;
use smartvm_host::process::ProcessId;
use tokio::time::sleep;

use crate::directories::{DATA_VARIABLE, Directories, DirectoryError, RUNTIME_VARIABLE, make_private};
use crate::gc::{self, GcMode, GcReport};
use crate::record::Record;

/// The directories of this host, made and found to be ours alone.
#[derive(Debug, Clone)]
pub struct Host {
    runtime_dir: PathBuf,
    data_dir: PathBuf,
}

/// A machine as its record tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The record.
    pub record: Record,
    /// Whether its owner lives; else `gc` will release what is left.
    pub alive: bool,
    /// The machine's directory.
    pub dir: PathBuf,
}

impl Host {
    /// Makes what is missing of the runtime directory and checks that it is private.
    ///
    /// # Errors
    /// See [`DirectoryError`].
    pub fn open(directories: &Directories) -> Result<Self, DirectoryError> {
        let runtime_dir = make_private(&directories.runtime, RUNTIME_VARIABLE)?;
        make_private(&runtime_dir.join("machines"), RUNTIME_VARIABLE)?;
        // The VMM works elsewhere: what is named to it must not move with it. It is made when something is put there.
        let data_dir = std::path::absolute(&directories.data).map_err(|source| DirectoryError::Io {
            path: directories.data.clone(),
            variable: DATA_VARIABLE,
            source,
        })?;
        Ok(Self { runtime_dir, data_dir })
    }

    /// Opens the host to start machines on it: what dead owners left behind is released first.
    ///
    /// What could not be released is logged; it stands in nobody's way but a machine's of the same id.
    ///
    /// # Errors
    /// See [`DirectoryError`].
    pub async fn open_clean(directories: &Directories) -> Result<Self, DirectoryError> {
        let host = Self::open(directories)?;
        let report = host.gc(GcMode::Release).await;
        for released in &report.released {
            tracing::info!(id = released.id, "released what a dead owner left behind");
        }
        for failed in &report.failed {
            tracing::warn!(path = %failed.path.display(), why = failed.why, "could not release");
        }
        Ok(host)
    }

    /// Releases what machines with a dead owner left behind. Never fails as a whole: see the report.
    ///
    /// # Cancel safety
    /// The work goes on to its end when the future is dropped.
    pub async fn gc(&self, mode: GcMode) -> GcReport {
        let host = self.clone();
        match tokio::task::spawn_blocking(move || gc::run(&host, mode)).await {
            Ok(report) => report,
            Err(error) => GcReport::broken(&self.machines_dir(), &error),
        }
    }

    /// The machines that have a record, by id.
    pub fn machines(&self) -> Vec<Known> {
        let mut machines: Vec<Known> = fs::read_dir(self.machines_dir())
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let id = MachineId::new(entry.ok()?.file_name().to_str()?).ok()?;
                self.machine(&id).ok()
            })
            .collect();
        machines.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        machines
    }

    /// The machine of this id.
    ///
    /// # Errors
    /// There is none.
    pub fn machine(&self, id: &MachineId) -> Result<Known, NotFound> {
        let dir = self.machines_dir().join(id.as_str());
        let record = Record::read(&dir.join("machine.json")).map_err(|_| NotFound { id: id.clone() })?;
        let alive = record.owner.is_alive().unwrap_or(false);
        Ok(Known { record, alive, dir })
    }

    /// Asks the owner of a machine to stop it (or to kill it), and waits until everything was released.
    ///
    /// An owner that does not follow `kill` within 5 s is killed itself, and its VMM with it. What a dead owner left is
    /// released here.
    ///
    /// # Errors
    /// The owner may not be signalled, or the machine is still there after `patience`.
    ///
    /// # Cancel safety
    /// What was asked for is not taken back.
    pub async fn stop(&self, known: &Known, kill: bool, patience: Duration) -> Result<(), StopFailed> {
        let owner = known.record.owner.clone();
        let id = known.record.id.clone();
        let signal = if kill { Signal::QUIT } else { Signal::TERM };
        send(&owner, signal).map_err(|source| StopFailed::Signal {
            id: id.clone(),
            pid: owner.pid,
            source,
        })?;
        let until = Instant::now() + patience;
        let unheard = Instant::now() + Duration::from_secs(5);
        loop {
            match self.released(known) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(why) => return Err(StopFailed::Leftover { id, path: known.dir.clone(), why }),
            }
            let now = Instant::now();
            if kill && now >= unheard {
                let _ = owner.kill();
            }
            if now >= until {
                return Err(StopFailed::StillThere { id, pid: owner.pid, patience });
            }
            // Another process's child cannot be waited for; its end is seen by what it leaves.
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether nothing of this machine is left, or could be released now that its owner is dead.
    fn released(&self, known: &Known) -> Result<bool, String> {
        match self.machine(&known.record.id) {
            // Its owner may be removing it just now.
            Err(_) => Ok(!known.dir.exists() || gc::release_leftover(self, &known.dir).is_ok()),
            // Somebody has started another one of this name.
            Ok(now) if now.record.owner != known.record.owner => Ok(true),
            Ok(now) if now.alive => Ok(false),
            Ok(_) => match gc::release_leftover(self, &known.dir) {
                Ok(()) => Ok(true),
                Err(gc::Kept::Busy) => Ok(false),
                Err(gc::Kept::Failed(why)) => Err(why),
            },
        }
    }

    /// Where sockets, locks and records of running machines lie. Absolute and without symbolic links.
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// Where what outlives a reboot lies. Absolute.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// One directory for each machine.
    pub(crate) fn machines_dir(&self) -> PathBuf {
        self.runtime_dir.join("machines")
    }

    /// Held shared by whoever makes a machine's directory, alone by whoever looks for leftovers.
    pub(crate) fn machines_lock(&self) -> PathBuf {
        self.runtime_dir.join("machines.lock")
    }
}

/// Sends a signal to exactly this process; that it is gone already is no error.
fn send(process: &ProcessId, signal: Signal) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(()) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    // Looked at with the pidfd in hand: from here on it can be no other process.
    if !process.is_alive()? {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A machine of another owner that could not be stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopFailed {
    /// Its owner cannot be told.
    #[error("machine `{id}`: cannot signal its owner, process {pid}")]
    Signal {
        /// The machine.
        id: MachineId,
        /// The owner.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
    /// Its owner is dead, and what it left cannot be released.
    #[error("machine `{id}`: what its dead owner left in {} cannot be released: {why}", path.display())]
    Leftover {
        /// The machine.
        id: MachineId,
        /// Its directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It is still there.
    #[error("machine `{id}`: its owner, process {pid}, has not released it within {patience:?}")]
    StillThere {
        /// The machine.
        id: MachineId,
        /// The owner.
        pid: i32,
        /// How long was waited.
        patience: Duration,
    },
}

impl Explain for StopFailed {
    fn code(&self) -> Code {
        match self {
            Self::Signal { .. } | Self::Leftover { .. } => Code::Host,
            Self::StillThere { .. } => Code::StopTimeout,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Signal { pid, .. } => format!("only root and the user of process {pid} may do so"),
            Self::Leftover { path, .. } => format!("see what keeps {} from being removed", path.display()),
            Self::StillThere { id, .. } => format!("end it at once: smartvm stop {id} --kill"),
        })
    }

    fn happened(&self) -> Happened {
        match self {
            Self::Signal { .. } => Happened::NeverStarted,
            Self::Leftover { .. } => Happened::Failed,
            Self::StillThere { .. } => Happened::Unknown,
        }
    }
}

/// No machine of this id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no machine `{id}`")]
pub struct NotFound {
    /// The id.
    pub id: MachineId,
}

impl Explain for NotFound {
    fn code(&self) -> Code {
        Code::NotFound
    }

    fn hint(&self) -> Option<String> {
        Some("`smartvm ps` lists the machines of this runtime directory (SMARTVM_RUNTIME_DIR)".into())
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}
