//! What can go wrong with the store, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use smartvm_core::explain::{Code, Explain, Happened};

use super::flock;
use super::record::Kind;
use crate::Digest;

/// A store that cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No space, quota or inode is left.
    #[error("cannot {doing} `{}`", path.display())]
    Full {
        /// A verb: "write", "make".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system is read-only.
    #[error("cannot {doing} `{}`", path.display())]
    ReadOnly {
        /// A verb: "write", "make".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused it for another reason.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// A verb: "write", "make".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder holds something else.
    #[error("`{}` is not a store: it has no file `version`, but holds `{found}`", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// One entry of it.
        found: String,
    },
    /// A later smartvm made this store.
    #[error("the store `{}` has format {found}; this smartvm knows format {}", path.display(), super::FORMAT)]
    NewerFormat {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The file `version` says nothing.
    #[error("the store's version file `{}` does not hold a format number", path.display())]
    BadVersion {
        /// The file.
        path: PathBuf,
    },
    /// A record that is not one, or not what its name promises.
    #[error("the record `{}` cannot be read: {reason}", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A record or a use names a content that the store does not have.
    #[error("{wanted_by} needs {digest}, which is not in the store")]
    MissingBlob {
        /// The content.
        digest: Digest,
        /// Who needs it: "image `debian:12`".
        wanted_by: String,
    },
    /// No record of this name.
    #[error("there is no {} `{name}`", kind.as_str())]
    NoRecord {
        /// Its kind.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// What was written is not what was promised.
    #[error("the content is not what was promised: expected {expected}, got {got} ({size} bytes)")]
    Mismatch {
        /// What was promised.
        expected: Digest,
        /// What is there.
        got: Digest,
        /// How much is there, in bytes.
        size: u64,
    },
    /// Another process holds a lock.
    #[error("cannot {purpose}: {} holds `{}`", holder(*pid), path.display())]
    Busy {
        /// What the lock is for: a verb and its object.
        purpose: String,
        /// The lock's file.
        path: PathBuf,
        /// Who holds it, when the kernel says so.
        pid: Option<u32>,
    },
    /// The work was given up because nobody waits for it any more.
    #[error("the work was given up")]
    Abandoned,
}

/// "process 4711", or that we cannot know.
pub(super) fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl StoreError {
    /// A file operation in the store that failed. `doing` is a verb: "write", "make".
    pub fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { doing, path, source },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { doing, path, source },
            _ => Self::Io { doing, path, source },
        }
    }
}

impl Explain for StoreError {
    fn code(&self) -> Code {
        match self {
            Self::Mismatch { .. } => Code::DigestMismatch,
            Self::Busy { .. } => Code::InUse,
            Self::NoRecord { .. } => Code::NotFound,
            _ => Code::Store,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Full { .. } => {
                "free some space (`smartvm store gc` removes what nothing uses, `smartvm store df` shows what there \
                 is), or set SMARTVM_DATA_DIR to a folder on a larger disk"
                    .to_owned()
            }
            Self::ReadOnly { .. } => {
                "mount the file system writable, or set SMARTVM_DATA_DIR to a folder that can be written".to_owned()
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "the store belongs to another user: run as that user, or set SMARTVM_DATA_DIR to a folder of your own"
                    .to_owned()
            }
            Self::Io { .. } | Self::Mismatch { .. } | Self::Abandoned => return None,
            Self::NotAStore { .. } => "set SMARTVM_DATA_DIR to an empty folder, or to one that smartvm made".to_owned(),
            Self::NewerFormat { .. } => {
                "use the newer smartvm, or set SMARTVM_DATA_DIR to another folder for this one".to_owned()
            }
            Self::BadVersion { path } => {
                format!("if the folder is a store, write `{}` into `{}`", super::FORMAT, path.display())
            }
            Self::BadRecord { .. } => {
                "`smartvm store verify --repair` moves it away and says what to fetch again".to_owned()
            }
            Self::MissingBlob { .. } => {
                "fetch or import it again; `smartvm store verify` shows all that is missing".to_owned()
            }
            Self::NoRecord { .. } => "the `ls` command of its kind shows what there is".to_owned(),
            // Stopped by a signal, it holds the lock for ever.
            Self::Busy { pid: Some(pid), .. } if flock::is_stopped(*pid) => {
                format!("process {pid} is stopped: let it go on (`kill -CONT {pid}`), or end it (`kill -KILL {pid}`)")
            }
            Self::Busy { pid: Some(pid), .. } => {
                format!("wait for process {pid} to end, or end it (`kill {pid}`)")
            }
            Self::Busy { path, .. } => {
                format!("wait for it; `fuser {}` shows who it is", path.display())
            }
        })
    }

    fn happened(&self) -> Happened {
        match self {
            Self::NotAStore { .. }
            | Self::NewerFormat { .. }
            | Self::BadVersion { .. }
            | Self::NoRecord { .. }
            | Self::Busy { .. } => Happened::NeverStarted,
            _ => Happened::Failed,
        }
    }
}
