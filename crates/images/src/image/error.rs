//! How getting, keeping and giving away images fails.

use std::io;
use std::path::{Path, PathBuf};

use smartvm_core::explain::{Code, Explain, Happened};

use super::manifest::BadManifest;
use super::platform::Platform;
use super::reference::BadReference;
use crate::digest::Digest;
use crate::download::DownloadError;
use crate::rootfs::RootfsError;
use crate::store::StoreError;

/// Something with an image that did not work. Secrets are never in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A text that is not the name of an image.
    #[error("`{text}` is not the name of an image")]
    Reference {
        /// What was given, shortened.
        text: String,
        /// Why not.
        source: BadReference,
    },
    /// A manifest or index that cannot be used.
    #[error("{what} cannot be used: {why}")]
    Manifest {
        /// Which one.
        what: String,
        /// Why not.
        why: String,
        /// Whether it is of a kind that is not supported, rather than malformed.
        unsupported: bool,
    },
    /// Anything else of an image or archive that is malformed, hostile or of another kind.
    #[error("{what}: {why}")]
    Malformed {
        /// The image or archive.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A source of an import without any file.
    #[error("{}", if *is_stream { format!("nothing came from {what}") } else { format!("{what} has no files") })]
    Empty {
        /// The source.
        what: String,
        /// Whether it is a pipe or another stream, which somebody should have written to.
        is_stream: bool,
    },
    /// Several images, and none is selected.
    #[error("{what}: it has several images{}", Names(names))]
    Several {
        /// The archive.
        what: String,
        /// What they are called in there.
        names: Vec<String>,
    },
    /// No image of the selected name.
    #[error("{what}: it has no image `{wanted}`{}", Names(names))]
    NotInside {
        /// The archive.
        what: String,
        /// What was asked for.
        wanted: String,
        /// What the images in there are called.
        names: Vec<String>,
    },
    /// No image for the platform.
    #[error("{what} has no image for {wanted}{}", Available(available))]
    NoPlatform {
        /// The image's name.
        what: String,
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
    /// The registry does not have it.
    #[error("the registry has no image {reference}")]
    NotInRegistry {
        /// What was asked for.
        reference: String,
        /// The answer.
        #[source]
        source: Box<DownloadError>,
    },
    /// The registry refused.
    #[error("{registry} refuses to give {reference}{}", with(*had_credentials))]
    Unauthorized {
        /// The registry.
        registry: String,
        /// What was asked for.
        reference: String,
        /// Whether credentials were sent.
        had_credentials: bool,
        /// The registry's words, as far as it had some.
        message: String,
    },
    /// The registry answers something that is not its protocol.
    #[error("{registry} does not answer as a registry: {why}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// Credentials that are there and cannot be read.
    #[error("the credentials for {registry} cannot be read from {place}: {why}")]
    Credentials {
        /// The registry.
        registry: String,
        /// A file or a credential helper.
        place: String,
        /// Why not, without any of its content.
        why: String,
    },
    /// Not the promised content.
    #[error("{what} has the wrong content: expected {expected}, got {got}")]
    Mismatch {
        /// What it is.
        what: String,
        /// The promised digest.
        expected: Box<Digest>,
        /// The digest of what came.
        got: Box<Digest>,
    },
    /// No image of this name or id in the store.
    #[error("there is no image `{name}`")]
    NotFound {
        /// What was given.
        name: String,
    },
    /// More than one image begins with this.
    #[error("`{prefix}` is the beginning of {} images: {}", ids.len(), ids.join(", "))]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// Their ids.
        ids: Vec<String>,
    },
    /// An image that may not be removed.
    #[error("the image `{name}` is in use: {by}")]
    InUse {
        /// The image.
        name: String,
        /// By whom.
        by: String,
    },
    /// An image with more names than one, of which only the id was given.
    #[error("the image `{id}` has {} names: {}", names.len(), names.join(", "))]
    SeveralNames {
        /// What was given.
        id: String,
        /// Its names.
        names: Vec<String>,
    },
    /// A folder that should be new or empty, and has something in it.
    #[error("`{}` is not a new or empty folder", path.display())]
    NotEmpty {
        /// Which one.
        path: PathBuf,
    },
    /// An image whose files cannot be read here.
    #[error("the image `{name}` is a squashfs, whose files smartvm does not read")]
    Squashfs {
        /// The image.
        name: String,
        /// The file system.
        blob: PathBuf,
    },
    /// A file or directory cannot be read or written.
    #[error("cannot {doing} `{}`", path.display())]
    File {
        /// A verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It could not be fetched.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The store does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layers could not become a file system, or not be read from one.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
}

impl ImageError {
    pub(super) fn file(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { doing, path: path.to_owned(), source }
    }

    pub(super) fn malformed(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Malformed { what: what.into(), why: why.into() }
    }

    pub(super) fn manifest(what: impl Into<String>, error: &BadManifest) -> Self {
        let unsupported = !matches!(error, BadManifest::Json(_) | BadManifest::Ambiguous);
        Self::Manifest { what: what.into(), why: error.to_string(), unsupported }
    }
}

struct Available<'a>(&'a [Platform]);

impl std::fmt::Display for Available<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let texts: Vec<String> = self.0.iter().take(30).map(Platform::to_string).collect();
        write!(f, "; it has {}", texts.join(", "))
    }
}

struct Names<'a>(&'a [String]);

impl std::fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [] => Ok(()),
            names => write!(f, ": {}", names.join(", ")),
        }
    }
}

/// How images get onto a host that cannot reach a registry.
const WAYS_OUT: &str = "behind a proxy set HTTPS_PROXY (and NO_PROXY); on a host without network bring an archive of the image \
     along (`docker save`, `skopeo copy`) and use `smartvm image import FILE`";

fn with(had_credentials: bool) -> &'static str {
    if had_credentials { " with these credentials" } else { " without credentials" }
}

impl Explain for ImageError {
    fn code(&self) -> Code {
        match self {
            Self::Reference { .. } => Code::InvalidId,
            Self::Manifest { .. }
            | Self::Malformed { .. }
            | Self::Empty { .. }
            | Self::Several { .. }
            | Self::Squashfs { .. } => Code::InvalidImage,
            Self::NoPlatform { .. }
            | Self::NotInRegistry { .. }
            | Self::NotInside { .. }
            | Self::NotFound { .. }
            | Self::Ambiguous { .. } => Code::NotFound,
            Self::Unauthorized { .. } | Self::Credentials { .. } => Code::Unauthorized,
            Self::Protocol { .. } => Code::DownloadFailed,
            Self::Mismatch { .. } => Code::DigestMismatch,
            Self::InUse { .. } | Self::SeveralNames { .. } => Code::InUse,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NotFound,
            Self::File { .. } | Self::NotEmpty { .. } => Code::Host,
            Self::Download(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Rootfs(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Reference { .. } => {
                "write names as Docker does: `debian:12`, `quay.io/org/tool@sha256:…`, `localhost:5000/x`".into()
            }
            Self::Manifest { unsupported: true, .. } => "pull a container image; other artifacts cannot boot".into(),
            Self::Manifest { .. } | Self::Malformed { .. } => "make or fetch it again from a source that you trust".into(),
            Self::Empty { is_stream: true, .. } => "did the command before the pipe fail? run it alone to see what it says".into(),
            Self::Empty { .. } => "check that it is the one that you mean: an image has at least the program to run".into(),
            Self::Several { .. } | Self::NotInside { .. } => "name one with --select".into(),
            Self::NoPlatform { .. } => "name another tag, or the platform that you want with --platform".into(),
            Self::NotInRegistry { .. } => "check name and tag; `smartvm image ls` shows what is here already".into(),
            Self::Unauthorized { registry, had_credentials: false, .. } => format!(
                "if the image is private, log in with `docker login {registry}` or `podman login {registry}`: smartvm reads their \
                 files; else check its name"
            ),
            Self::Unauthorized { registry, .. } => {
                format!("log in again (`docker login {registry}`), and check that this account may read the image")
            }
            Self::Protocol { .. } => "check the registry's name and port, and whether a proxy or login page answers for it".into(),
            Self::Credentials { .. } => "repair the file, or log in again with docker or podman".into(),
            Self::Mismatch { .. } => {
                "the registry, the archive or something on the way is damaged; do not use it, and try another source".into()
            }
            Self::NotFound { .. } => "`smartvm image ls` shows what there is; `smartvm image pull` fetches one".into(),
            Self::Ambiguous { .. } => "give more digits of the id".into(),
            Self::SeveralNames { .. } => "remove its names first: smartvm image rm NAME".into(),
            Self::NotEmpty { .. } => "name a new or empty folder".into(),
            Self::InUse { .. } => "stop what uses it first".into(),
            Self::Squashfs { blob, .. } => format!(
                "unpack it with `unsquashfs -d DIR {}` (as root, to keep the owners), `smartvm image import DIR`, and export that",
                blob.display()
            ),
            Self::File { .. } => "check the path and its permissions".into(),
            Self::Download(error) => return error.hint_with(WAYS_OUT),
            Self::Store(error) => return error.hint(),
            Self::Rootfs(error) => return error.hint(),
        })
    }

    fn happened(&self) -> Happened {
        match self {
            Self::Reference { .. }
            | Self::NotFound { .. }
            | Self::Ambiguous { .. }
            | Self::Squashfs { .. }
            | Self::SeveralNames { .. }
            | Self::NotEmpty { .. }
            | Self::InUse { .. } => Happened::NeverStarted,
            Self::Store(error) => error.happened(),
            _ => Happened::Failed,
        }
    }

    fn last_words(&self) -> &[String] {
        match self {
            Self::Unauthorized { message, .. } if !message.is_empty() => std::slice::from_ref(message),
            _ => &[],
        }
    }
}
