//! The store: contents under the name of their SHA-256, and records that say what they are.
//!
//! ```text
//! <store>/version                   the format's number
//!         blobs/<64 digits>         contents, read-only; complete from the moment they are there
//!         records/<kind>/<name>     what there is, and which blobs it keeps
//!         bin/<version>/<name>      further names of programs among the blobs, see `links`
//!         uses/<id>.json            blobs that a machine uses, locked while it does
//!         holds/*                   blobs that a process has just written or found, locked while it works
//!         locks/*                   one piece of work, one process
//!         tmp/*                     unfinished files, locked by their writers
//!         partial/*             unfinished downloads, which the next try goes on with
//!         bin/<version>/*       second names of a Firecracker release's programs
//!         damaged/*                 what `verify` moved away
//!         gc.lock                   shared for the moment of a change, alone for the moment of a collection
//!         uses.lock                 alone for the moment in which a use begins
//! ```
//!
//! **Any number of processes** use it at once, and any of them may be killed at any moment. A file appears under
//! its name by rename only, after its bytes are on disk; what is unfinished lies in `tmp`, locked by its
//! writer, so that [`Store::gc`] can tell the living from the dead.
//!
//! **What gc keeps**: blobs that a record, a use of a living process, or a *hold* names. A handle holds every blob
//! that it committed or found by [`Store::blob`], until its last clone is dropped: so nothing vanishes between the
//! first blob of a pull and its record. Programs that live long open a handle per piece of work ([`Store::anew`]).
//!
//! Order of the rest: [`Kind`] and records, `staged` (writing a blob), `hold`, `links`, [`StoreLock`], [`UseGuard`], and what
//! looks at the whole: `gc`, `verify`, `df`.

mod contents;
mod df;
mod error;
mod flock;
mod folder;
mod gc;
mod hold;
mod links;
mod name;
mod record;
mod staged;
mod uses;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use contents::Usage;
pub use df::{DfReport, KindUsage};
pub use error::StoreError;
pub use flock::StoreLock;
pub use gc::{BASES_KEPT, Collected, DOWNLOADS_KEPT, GcOptions, GcReport};
pub use record::{Kind, Listing, Record, RecordId};
pub use staged::{BlobMode, Staged};
pub use uses::{LiveUse, UseGuard};
pub use verify::{Finding, VerifyOptions, VerifyReport};

use crate::Digest;
use crate::progress::Progress;
use flock::{Flock, Share};
use hold::Holds;

/// The format of the store's folder that this code reads and writes.
pub const FORMAT: u32 = 1;

/// A handle on the store. Clones are the same handle, see the module's text on what it holds.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    holds: Holds,
}

impl Store {
    /// Opens the store in `dir`, and makes it when there is nothing there: folders of mode 0700.
    ///
    /// A store on a read-only file system can be opened and read.
    ///
    /// # Errors
    /// When the folder holds something else, a newer format, or cannot be made.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        folder::open(dir)?;
        Ok(Self::at(dir))
    }

    fn at(dir: &Path) -> Self {
        Self { inner: Arc::new(Inner { dir: dir.to_owned(), holds: Holds::none() }) }
    }

    /// Another handle on the same store, that holds nothing yet.
    pub fn anew(&self) -> Self {
        Self::at(&self.inner.dir)
    }

    /// The store's folder.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The path of a complete blob, which is then held by this handle. `None` when it is not in the store.
    ///
    /// The file is read-only and may be mapped or opened at any time while it is held. Its bytes are what its
    /// name says unless the disk or somebody else damaged them: [`Store::verify`] looks.
    pub fn blob(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.blob_path(digest);
        if !path.is_file() {
            return None;
        }
        if let Err(error) = self.hold_now(digest) {
            // A store that cannot be written cannot be collected either; else `put` finds out what is missing.
            tracing::debug!(%digest, %error, "found a blob, and could not hold it");
        }
        // It may have gone before we held it.
        path.is_file().then_some(path)
    }

    /// The path of a blob that must be there; `wanted_by` says who needs it in the error ("image `debian:12`").
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`].
    pub fn require(&self, digest: &Digest, wanted_by: &str) -> Result<PathBuf, StoreError> {
        self.blob(digest)
            .ok_or_else(|| StoreError::MissingBlob { digest: *digest, wanted_by: wanted_by.to_owned() })
    }

    /// Waits until no other process, and no other task of this one, does the same work. `purpose` and `key`
    /// together name the work and complete the sentence "waiting to …": `("pull image", "debian:12")`.
    ///
    /// Look again whether the work is still to be done once the lock is held: often the holder has done it.
    ///
    /// # Errors
    /// When the lock's file cannot be made.
    ///
    /// # Cancel safety
    /// Dropping the future gives up waiting.
    pub async fn lock(&self, purpose: &str, key: &str, progress: &Progress) -> Result<StoreLock, StoreError> {
        let work = format!("{purpose} {key}");
        StoreLock::wait(&self.lock_path(&work), &work, progress).await
    }

    /// The same for a caller that does not want to wait.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when somebody does it.
    pub fn try_lock(&self, purpose: &str, key: &str) -> Result<StoreLock, StoreError> {
        let work = format!("{purpose} {key}");
        StoreLock::take_soon(&self.lock_path(&work), &work)
    }

    fn lock_path(&self, work: &str) -> PathBuf {
        self.dir().join("locks").join(name::escape(work))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir().join("blobs").join(digest.hex())
    }

    /// Keeps collections away for the moment of a change.
    fn no_gc(&self) -> Result<Flock, StoreError> {
        Flock::take(&self.dir().join("gc.lock"), Share::Shared, "change the store")
    }

    /// Makes this handle hold a blob.
    fn hold_now(&self, digest: &Digest) -> Result<(), StoreError> {
        if self.inner.holds.has(digest) {
            return Ok(());
        }
        let no_gc = self.no_gc()?;
        self.hold(digest, &no_gc)
    }

    fn hold(&self, digest: &Digest, _no_gc: &Flock) -> Result<(), StoreError> {
        self.inner.holds.add(&self.dir().join("holds"), digest)
    }
}

#[cfg(test)]
mod tests;
