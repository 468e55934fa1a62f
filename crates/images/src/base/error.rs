//! Why a base-image bundle cannot be had.

use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_core::target::Arch;

use super::{BadManifest, Preset};
use crate::download::DownloadError;
use crate::image::ImageError;
use crate::kernel::KernelError;
use crate::release::ReleaseError;
use crate::store::StoreError;

/// A base-image bundle that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaseError {
    /// It cannot be fetched.
    #[error(transparent)]
    Download(DownloadError),
    /// The store does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The release page does not say which Firecracker belongs to it.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The kernel is none that can be used.
    #[error("the kernel of the base image `{bundle_id}` is not accepted")]
    Kernel {
        /// The bundle.
        bundle_id: String,
        /// Why not.
        source: Box<KernelError>,
    },
    /// The image of its root cannot be made or removed.
    #[error("the image of the base image `{bundle_id}` cannot be kept")]
    Image {
        /// The bundle.
        bundle_id: String,
        /// Why not.
        source: Box<ImageError>,
    },
    /// The root is not what the bundle says.
    #[error("the root file system of the base image `{bundle_id}` is not accepted: {why}")]
    Rootfs {
        /// The bundle.
        bundle_id: String,
        /// Why not.
        why: String,
    },
    /// The manifest is not accepted.
    #[error("the manifest {origin} is not accepted")]
    Manifest {
        /// Where it is from.
        origin: String,
        /// Which field, and why.
        source: BadManifest,
    },
    /// The preset `hosted` without a manifest.
    #[error("the preset `hosted` needs a manifest")]
    NoManifest,
    /// The bundle is for another architecture.
    #[error("the base image `{bundle_id}` is for {arch}, not for {wanted}")]
    Arch {
        /// The bundle.
        bundle_id: String,
        /// Whose it is.
        arch: Arch,
        /// Whose is wanted.
        wanted: Arch,
    },
    /// The bucket's answer is no listing.
    #[error("the answer of {url} is not the list of a bucket: {why}")]
    BadListing {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The bucket has no kernel and root.
    #[error("the preset `{preset}` finds no kernel and root file system for {arch} in {looked}")]
    NothingThere {
        /// The preset.
        preset: Preset,
        /// For which architecture.
        arch: Arch,
        /// The folder of the bucket.
        looked: String,
    },
    /// No such bundle in the store.
    #[error("there is no base image `{0}`")]
    NotFound(String),
    /// No preset of this name.
    #[error("`{0}` is not a preset of base images")]
    BadPreset(String),
}

impl Explain for BaseError {
    fn code(&self) -> Code {
        match self {
            Self::Download(source) => source.code(),
            Self::Store(source) => source.code(),
            Self::Release(source) => source.code(),
            Self::Kernel { source, .. } => source.code(),
            Self::Image { source, .. } => source.code(),
            Self::Rootfs { .. } | Self::Arch { .. } => Code::InvalidImage,
            Self::Manifest { .. } | Self::NoManifest | Self::BadPreset(_) => Code::InvalidConfig,
            Self::BadListing { .. } => Code::DownloadFailed,
            Self::NothingThere { .. } | Self::NotFound(_) => Code::NotFound,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Download(source) => return source.hint(),
            Self::Store(source) => return source.hint(),
            Self::Release(source) => return source.hint(),
            Self::Kernel { source, .. } => return source.hint(),
            Self::Image { source, .. } => return source.hint(),
            Self::Rootfs { .. } => "an ext4 or squashfs image is needed; see rootfsType in the manifest".into(),
            Self::Manifest { .. } => "correct the named field; schemaVersion 1 is read".into(),
            Self::NoManifest => {
                "name one by --manifest, by SMARTVM_BASE_MANIFEST, or in the options: a URL or a path".into()
            }
            Self::Arch { wanted, .. } => format!("choose a bundle for {wanted}"),
            Self::BadListing { .. } => {
                "check SMARTVM_BASE_URL: it should name an S3-style bucket, such as https://s3.amazonaws.com/spec.ccfc.min".into()
            }
            Self::NothingThere { .. } => {
                "the bucket's layout may have changed: try the other preset, a mirror (SMARTVM_BASE_URL), or a manifest of your own (preset `hosted`)".into()
            }
            Self::NotFound(_) => "`smartvm image ls` shows those that are here, as base:…; `smartvm setup` gets one".into(),
            Self::BadPreset(_) => "the presets are latest, lts and hosted".into(),
        })
    }

    fn happened(&self) -> Happened {
        match self {
            Self::NoManifest | Self::Manifest { .. } | Self::BadPreset(_) | Self::NotFound(_) => {
                Happened::NeverStarted
            }
            _ => Happened::Failed,
        }
    }
}

impl BaseError {
    /// Whether nothing could be reached: this host may have no way to the network at all.
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Download(source) | Self::Release(ReleaseError::Download(source)) => source.is_offline(),
            _ => false,
        }
    }
}
