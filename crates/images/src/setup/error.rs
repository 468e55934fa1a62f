//! Why a host cannot be made ready.

use std::io;
use std::path::PathBuf;

use smartvm_core::explain::{Code, Explain, Happened};

use crate::base::BaseError;
use crate::download::{DownloadError, WAYS_OUT};
use crate::image::ImageError;
use crate::kernel::KernelError;
use crate::release::ReleaseError;
use crate::store::StoreError;

/// A host that cannot be made ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Nothing can be reached, and something is missing.
    #[error("this host cannot reach the network, and the store has no {missing}")]
    Offline {
        /// What is missing.
        missing: String,
        /// The first try.
        source: DownloadError,
    },
    /// The disk is too small for it.
    #[error("{needed} bytes are to be fetched, and {} has {free} free", dir.display())]
    NoRoom {
        /// Bytes to fetch.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// The store.
        dir: PathBuf,
    },
    /// The folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder holds nothing for us.
    #[error("nothing in {} is recognised", dir.display())]
    NothingFound {
        /// The folder.
        dir: PathBuf,
    },
    /// A release without its digest.
    #[error("there is no {}.sha256.txt beside it", path.file_name().unwrap_or_default().display())]
    NoChecksum {
        /// The archive.
        path: PathBuf,
    },
    /// A digest that is none.
    #[error("{} holds no SHA-256 of the archive", path.display())]
    BadChecksum {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be fetched or read.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The store does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The release cannot be had.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The base image cannot be had.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The kernel cannot be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The image cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl SetupError {
    /// Whether nothing could be reached: this host may have no way to the network at all.
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Offline { .. } => true,
            Self::Download(source) | Self::Release(ReleaseError::Download(source)) => source.is_offline(),
            Self::Base(source) => source.is_offline(),
            _ => false,
        }
    }
}

impl Explain for SetupError {
    fn code(&self) -> Code {
        match self {
            Self::Offline { .. } => Code::DownloadFailed,
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NotFound,
            Self::NoRoom { .. } | Self::Read { .. } => Code::Host,
            Self::NothingFound { .. } | Self::NoChecksum { .. } => Code::NotFound,
            Self::BadChecksum { .. } => Code::InvalidImage,
            Self::Download(source) => source.code(),
            Self::Store(source) => source.code(),
            Self::Release(source) => source.code(),
            Self::Base(source) => source.code(),
            Self::Kernel(source) => source.code(),
            Self::Image(source) => source.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Offline { .. } => WAYS_OUT.into(),
            Self::NoRoom { .. } => {
                "free some space (`smartvm store gc`), or move the store with SMARTVM_DATA_DIR".into()
            }
            Self::Read { .. } => "check the path and its permissions".into(),
            Self::NothingFound { .. } => {
                "put there what the release pages offer, under its own name: firecracker-v1.12.1-x86_64.tgz and its .sha256.txt, \
                 linux-image-*.deb or a vmlinux, a base image's manifest with its files, images as OCI layouts or tar files"
                    .into()
            }
            Self::NoChecksum { .. } => "fetch it from the same release page as the archive".into(),
            Self::BadChecksum { .. } => "it should be what `sha256sum` prints for the archive".into(),
            Self::Download(source) => return source.hint(),
            Self::Store(source) => return source.hint(),
            Self::Release(source) => return source.hint(),
            Self::Base(source) => return source.hint(),
            Self::Kernel(source) => return source.hint(),
            Self::Image(source) => return source.hint(),
        })
    }

    fn happened(&self) -> Happened {
        match self {
            Self::Download(source) => source.happened(),
            Self::Store(source) => source.happened(),
            Self::Release(source) => source.happened(),
            Self::Base(source) => source.happened(),
            Self::Kernel(source) => source.happened(),
            Self::Image(source) => source.happened(),
            _ => Happened::NeverStarted,
        }
    }
}
