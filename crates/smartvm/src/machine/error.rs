//! How starting a machine, and asking something of it, can fail.

use std::io;
use std::path::PathBuf;

use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_core::id::MachineId;
use smartvm_core::machine::Refused as StateRefused;
use smartvm_firecracker::ApiError;
use smartvm_host::SpawnError;

use crate::machine_dir::Refused;

/// A machine that did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another owner has a machine of this name.
    #[error("machine `{id}` is already running{}", owner.map_or_else(String::new, |pid| format!(", owned by process {pid}")))]
    Busy {
        /// The name.
        id: MachineId,
        /// The owner's pid, where it is known.
        owner: Option<i32>,
    },
    /// What a dead owner left of a machine of this name could not be released.
    #[error("machine `{id}`: what a dead owner left in {} cannot be released: {why}", path.display())]
    Leftover {
        /// The name.
        id: MachineId,
        /// The directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The host refused a file operation.
    #[error("machine `{id}`: cannot {what} {}", path.display())]
    Host {
        /// The name.
        id: MachineId,
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
    /// The kernel gave no random bits for a name.
    #[error("cannot draw a name for the machine")]
    Random {
        /// The system call's error.
        source: io::Error,
    },
    /// Its VMM did not start.
    #[error("machine `{id}` did not start")]
    Vmm {
        /// The name.
        id: MachineId,
        /// Why not.
        source: Box<SpawnError>,
        /// What could not be removed afterwards.
        left_behind: Vec<String>,
        /// The last lines of Firecracker's log, when that went to a file.
        log: Vec<String>,
    },
}

impl StartError {
    pub(super) fn refused(id: MachineId, refused: Refused) -> Self {
        match refused {
            Refused::Busy { owner } => Self::Busy { id, owner },
            Refused::Leftover { path, why } => Self::Leftover { id, path, why },
            Refused::Io { what, path, source } => Self::Host { id, what, path, source },
        }
    }

    pub(super) fn vmm(id: MachineId, source: SpawnError, left_behind: Vec<String>) -> Self {
        Self::Vmm { id, source: Box::new(source), left_behind, log: Vec::new() }
    }

    /// With what Firecracker wrote to a log file of the user's.
    pub(super) fn with_log(mut self, lines: Vec<String>) -> Self {
        if let Self::Vmm { log, .. } = &mut self {
            *log = lines;
        }
        self
    }

    /// What could not be removed after the failure; `smartvm gc` will try again.
    pub fn left_behind(&self) -> &[String] {
        match self {
            Self::Vmm { left_behind, .. } => left_behind,
            _ => &[],
        }
    }
}

impl Explain for StartError {
    fn code(&self) -> Code {
        match self {
            Self::Busy { .. } => Code::MachineBusy,
            Self::Leftover { .. } | Self::Host { .. } | Self::Random { .. } => Code::Host,
            Self::Vmm { source, .. } => source.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { id, .. } => Some(format!("use another --id, or stop it first: smartvm stop {id}")),
            Self::Leftover { .. } => Some("see what `smartvm gc` says, or use another --id".into()),
            Self::Host { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => Some("the file system of the runtime directory is full".into()),
                _ => None,
            },
            Self::Random { .. } => None,
            Self::Vmm { source, .. } => source.hint(),
        }
    }

    fn happened(&self) -> Happened {
        match self {
            Self::Vmm { source, .. } => source.happened(),
            _ => Happened::NeverStarted,
        }
    }

    fn last_words(&self) -> &[String] {
        match self {
            Self::Vmm { source, log, .. } if log.is_empty() => source.last_words(),
            Self::Vmm { log, .. } => log,
            _ => &[],
        }
    }
}

/// A pause or a resume that did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The machine's state does not allow it.
    #[error("machine `{id}` did not take the request")]
    State {
        /// The machine.
        id: MachineId,
        /// Why not, and what it would take.
        source: StateRefused,
    },
    /// Firecracker did not do it.
    #[error("machine `{id}` did not carry out the request")]
    Api {
        /// The machine.
        id: MachineId,
        /// Why not.
        source: ApiError,
    },
    /// The runtime went away meanwhile.
    #[error("machine `{id}`: the runtime ended while the request was under way")]
    Interrupted {
        /// The machine.
        id: MachineId,
    },
}

impl Explain for RequestError {
    fn code(&self) -> Code {
        match self {
            Self::State { source, .. } => source.code(),
            Self::Api { source, .. } => source.code(),
            Self::Interrupted { .. } => Code::Host,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::State { source, .. } => source.hint(),
            Self::Api { source, .. } => source.hint(),
            Self::Interrupted { .. } => None,
        }
    }

    fn happened(&self) -> Happened {
        match self {
            Self::State { source, .. } => source.happened(),
            Self::Api { source, .. } => source.happened(),
            Self::Interrupted { .. } => Happened::Unknown,
        }
    }
}
