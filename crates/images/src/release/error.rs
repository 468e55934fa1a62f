//! Why a Firecracker release cannot be had.

use std::path::PathBuf;

use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_core::target::Arch;

use super::Version;
use crate::download::DownloadError;
use crate::store::StoreError;

/// A Firecracker release that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Not a version.
    #[error("`{text}` is not a version of Firecracker")]
    BadVersion {
        /// What was given.
        text: String,
    },
    /// Not an archive of a release for this machine.
    #[error("{} is not named like a Firecracker release for {arch}", path.display())]
    NotARelease {
        /// The file.
        path: PathBuf,
        /// The architecture.
        arch: Arch,
    },
    /// It cannot be fetched.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The store does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no published digest, so it is not installed.
    #[error("there is no published SHA-256 of Firecracker {version}")]
    NoChecksum {
        /// The version.
        version: Version,
        /// What was asked for.
        source: Box<DownloadError>,
    },
    /// The published digest is none.
    #[error("{url} holds no SHA-256 of the archive of Firecracker {version}")]
    BadChecksum {
        /// The version.
        version: Version,
        /// Where it was expected.
        url: String,
    },
    /// The release page names no newest version.
    #[error("{url} does not say which version of Firecracker is the newest")]
    NoLatest {
        /// What was asked.
        url: String,
    },
    /// The archive is not what a release is.
    #[error("the archive of Firecracker {version} is not accepted: {why}")]
    BadArchive {
        /// The version.
        version: Version,
        /// What is wrong with it.
        why: String,
    },
    /// The version is not in the store.
    #[error("Firecracker {version} is not installed")]
    NotInstalled {
        /// The version.
        version: Version,
    },
    /// The default version is not in the store.
    #[error("Firecracker {version} is the default version, but is not in the store")]
    DefaultMissing {
        /// The version.
        version: Version,
    },
    /// A machine runs it.
    #[error("Firecracker {version} is in use by the machine `{machine}`")]
    InUse {
        /// The version.
        version: Version,
        /// The machine's id; the first one of several.
        machine: String,
    },
    /// The version is the default.
    #[error("Firecracker {version} is the default version, and others are installed")]
    IsDefault {
        /// The version.
        version: Version,
    },
}

impl Explain for ReleaseError {
    fn code(&self) -> Code {
        match self {
            Self::BadVersion { .. } => Code::InvalidId,
            Self::NotARelease { .. } | Self::BadArchive { .. } => Code::InvalidImage,
            Self::Download(source) => source.code(),
            Self::Store(source) => source.code(),
            Self::NoChecksum { .. } | Self::NotInstalled { .. } | Self::DefaultMissing { .. } => {
                Code::NotFound
            }
            Self::BadChecksum { .. } | Self::NoLatest { .. } => Code::DownloadFailed,
            Self::InUse { .. } | Self::IsDefault { .. } => Code::InUse,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::BadVersion { .. } => "write it like v1.12.1, or `latest`".into(),
            Self::NotARelease { arch, .. } => {
                format!("keep the name that the release page gives: firecracker-v1.12.1-{arch}.tgz")
            }
            Self::Download(source) => return source.hint(),
            Self::Store(source) => return source.hint(),
            Self::NoChecksum { .. } => {
                "check that this version exists for this architecture; a mirror must carry the .sha256.txt file beside each archive".into()
            }
            Self::BadChecksum { .. } => "check the address: the file should be what `sha256sum` prints".into(),
            Self::NoLatest { .. } => {
                "name a version; a mirror may serve a text with the newest version at <base>/latest".into()
            }
            Self::BadArchive { .. } => "get the archive and its .sha256.txt from the official release page".into(),
            Self::NotInstalled { version } => {
                format!("see `smartvm firecracker ls`, or get it by `smartvm firecracker install {version}`")
            }
            Self::DefaultMissing { version } => format!(
                "get it again by `smartvm firecracker install {version}`, or choose another: `smartvm firecracker use \
                 VERSION`"
            ),
            Self::InUse { machine, .. } => format!("stop it first: `smartvm stop {machine}`"),
            Self::IsDefault { .. } => "choose another default first: `smartvm firecracker use VERSION`".into(),
        })
    }

    fn happened(&self) -> Happened {
        match self {
            Self::Store(source) => source.happened(),
            Self::Download(_) | Self::BadArchive { .. } => Happened::Failed,
            _ => Happened::NeverStarted,
        }
    }
}
