//! Why there is no kernel bundle.

use std::io;
use std::path::PathBuf;

use smartvm_core::explain::{Code, Explain, Happened};

/// An import, or another operation on kernels, that failed. Nothing half-made is visible afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is none of those that a kernel comes from.
    #[error("{what} is no kernel that can be imported: it is {found}")]
    NotAKernel {
        /// The file.
        what: String,
        /// What it is instead.
        found: String,
    },
    /// A kernel, a module, a package or a list is damaged, hostile or of an unsupported kind.
    #[error("{what}: {problem}")]
    Malformed {
        /// The file, within its package where there is one.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no kernel in what was given, or more than one.
    #[error("{problem}")]
    Ambiguous {
        /// What is missing or too much.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// A name that no kernel may have.
    #[error("{0:?} cannot be the name of a kernel")]
    BadName(String),
    /// No kernel has this name.
    #[error("there is no kernel {0:?}")]
    NotFound(String),
    /// No kernel was named, and none is the default.
    #[error("no kernel is there yet")]
    NoDefault,
    /// The kernel is in use.
    #[error("kernel {name:?} is in use by {by}")]
    InUse {
        /// The kernel.
        name: String,
        /// Who uses it.
        by: String,
    },
    /// The caller went away, or the work panicked.
    #[error("the import was stopped")]
    Stopped,
    /// The store refused.
    #[error("cannot keep the kernel in the store")]
    Store(#[from] crate::store::StoreError),
}

impl KernelError {
    pub(super) fn malformed(what: impl Into<String>, problem: impl ToString) -> Self {
        Self::Malformed { what: what.into(), problem: problem.to_string() }
    }

    pub(super) fn read(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Read { path: path.into(), source }
    }
}

impl Explain for KernelError {
    fn code(&self) -> Code {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NotFound,
            Self::Read { .. } | Self::Stopped => Code::Host,
            Self::NotAKernel { .. } | Self::Malformed { .. } | Self::Ambiguous { .. } => Code::InvalidKernel,
            Self::BadName(_) => Code::InvalidId,
            Self::NotFound(_) | Self::NoDefault => Code::NotFound,
            Self::InUse { .. } => Code::InUse,
            Self::Store(source) => source.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "Run as a user who may read it; some distributions keep /boot for root alone.".into()
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => "Check the path.".into(),
            Self::NotAKernel { .. } => {
                "Give a vmlinuz (bzImage) or vmlinux for x86_64, a .deb with one in it, or a \
                                        directory that holds /boot and /lib/modules."
                    .into()
            }
            Self::Malformed { .. } => {
                "Fetch the file again; if it stays so, it was built in a way that is not supported.".into()
            }
            Self::Ambiguous { hint, .. } => hint.clone(),
            Self::BadName(_) => {
                "Use 1 to 100 of letters, digits and `.+~_-`, the first a letter or digit.".into()
            }
            Self::NotFound(_) => "`smartvm kernel ls` shows those that are there.".into(),
            Self::NoDefault => "`smartvm kernel import` makes one, `smartvm setup` fetches one.".into(),
            Self::InUse { .. } => "Stop or remove what uses it, or leave the kernel in place.".into(),
            Self::Store(source) => return source.hint(),
            Self::Read { .. } | Self::Stopped => return None,
        })
    }

    fn happened(&self) -> Happened {
        match self {
            Self::BadName(_) | Self::NotFound(_) | Self::NoDefault | Self::InUse { .. } => {
                Happened::NeverStarted
            }
            Self::Store(source) => source.happened(),
            _ => Happened::Failed,
        }
    }
}
