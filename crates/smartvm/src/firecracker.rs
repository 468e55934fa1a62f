//! Which Firecracker runs the machines of this host.

use std::io;
use std::path::Path;

use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_host::FirecrackerBinary;
use smartvm_host::binary::BinaryError;
use smartvm_images::Digest;
use smartvm_images::release::{self, ReleaseError};
use smartvm_images::store::{Store, StoreError, UseGuard};

use crate::directories::{Directories, OpenStoreError};
use crate::host::Host;

/// The Firecracker to use: `explicit`, else what `SMARTVM_FIRECRACKER` names, else the store's default version, else
/// `firecracker` on PATH; asked for its version.
///
/// # Errors
/// There is none, or the one that was found cannot be used: no other one is taken in its place.
pub async fn find_firecracker(
    explicit: Option<&Path>,
    directories: &Directories,
) -> Result<FirecrackerBinary, FindError> {
    // A caller that names one, or an environment that does, needs no store.
    let named =
        explicit.is_some() || std::env::var_os("SMARTVM_FIRECRACKER").is_some_and(|name| !name.is_empty());
    let store = if named { None } else { directories.existing_store()? };
    let found = release::find(explicit, store.as_ref())?.ok_or(BinaryError::NotFound)?;
    Ok(FirecrackerBinary::at(&found.path).await?)
}

/// Who decided that [`find_firecracker`] takes the one that it takes, for people.
pub(crate) fn found_by(explicit: Option<&Path>, directories: &Directories) -> &'static str {
    let store = directories.existing_store().ok().flatten();
    match release::find(explicit, store.as_ref()) {
        Ok(Some(found)) => match found.by {
            release::FoundBy::Caller => "named by --firecracker",
            release::FoundBy::Environment => "named by SMARTVM_FIRECRACKER",
            release::FoundBy::Store(_) => "the default of `smartvm firecracker`",
            release::FoundBy::Path => "found on PATH",
        },
        _ => "found somewhere",
    }
}

/// Marks a Firecracker of the host's store as used by the machine `id`, so that its release is not removed meanwhile. None for
/// a Firecracker from elsewhere, and in a store that nobody may write to.
///
/// # Errors
/// The store cannot be used.
pub(crate) async fn use_of_store(host: &Host, path: &Path, id: &str) -> io::Result<Option<UseGuard>> {
    let (path, id) = (path.to_owned(), id.to_owned());
    with_store_of(host, path, move |store, digest| match store.use_blobs(&id, &[digest]) {
        Ok(used) => Ok(Some(used)),
        Err(StoreError::ReadOnly { .. }) => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    })
    .await
}

/// The blob that a Firecracker of the host's store is; none for one from elsewhere.
///
/// # Errors
/// The store cannot be read.
pub(crate) async fn blob_of_store(host: &Host, path: &Path) -> io::Result<Option<Digest>> {
    with_store_of(host, path.to_owned(), |_, digest| Ok(Some(digest))).await
}

async fn with_store_of<T: Send + 'static>(
    host: &Host,
    path: std::path::PathBuf,
    then: impl FnOnce(&Store, Digest) -> io::Result<Option<T>> + Send + 'static,
) -> io::Result<Option<T>> {
    let dir = host.data_dir().join("store");
    // Most often it is from elsewhere: that costs a start nothing.
    if !path.starts_with(&dir) {
        return Ok(None);
    }
    let work = move || {
        let store = Store::open(&dir).map_err(io::Error::other)?;
        match release::blob_at(&store, &path).map_err(io::Error::other)? {
            Some(digest) => then(&store, digest),
            None => Ok(None),
        }
    };
    tokio::task::spawn_blocking(work).await?
}

/// No Firecracker that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// There is none, or it is not one.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// The store's default version is damaged.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] OpenStoreError),
}

impl FindError {
    fn explained(&self) -> &dyn Explain {
        match self {
            Self::Binary(error) => error,
            Self::Release(error) => error,
            Self::Store(error) => error,
        }
    }
}

impl Explain for FindError {
    fn code(&self) -> Code {
        self.explained().code()
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Binary(BinaryError::NotFound) => Some(
                "get one by `smartvm firecracker install`, or put a release's binary on PATH as `firecracker`, or set \
                 SMARTVM_FIRECRACKER to it"
                    .into(),
            ),
            _ => self.explained().hint(),
        }
    }

    fn happened(&self) -> Happened {
        self.explained().happened()
    }
}
