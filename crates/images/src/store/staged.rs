//! Writing a blob: an unfinished file of our own, which becomes the blob in one step.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

use super::error::StoreError;
use super::flock::{self, Share};
use super::{Store, folder};
use crate::Digest;
use crate::blocking::Abandoned;

/// How a blob is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobMode {
    /// Read only: mode 0444.
    Data,
    /// Run as a program: mode 0555.
    Executable,
}

impl BlobMode {
    const fn bits(self) -> u32 {
        match self {
            Self::Data => 0o444,
            Self::Executable => 0o555,
        }
    }
}

/// An unfinished file in the store, removed when dropped. Killed, we leave it behind, and the next gc removes it.
#[derive(Debug)]
pub struct Staged {
    store: Store,
    // Before the file: the name goes while the lock is still held.
    path: TempPath,
    file: File,
}

impl Store {
    /// Begins a file: empty, mode 0600, readable and writable, on the same file system as the blobs.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn stage(&self) -> Result<Staged, StoreError> {
        let dir = self.dir().join("tmp");
        let at = |error| StoreError::io("make a file in", &dir, error);
        let prefix = format!("{}-", std::process::id());
        // Between making the file and locking it, a collection would think its writer dead.
        let _no_gc = self.no_gc()?;
        let (file, path) =
            tempfile::Builder::new().prefix(&prefix).tempfile_in(&dir).map_err(at)?.into_parts();
        flock::try_lock(&file, Share::Alone).map_err(at)?;
        Ok(Staged { store: self.clone(), path, file })
    }

    /// Takes over a file that lies elsewhere in the store, and is locked by this process: a finished download. Like
    /// all that is staged it is removed when it is not committed.
    pub(crate) fn adopt(&self, from: &Path, file: File) -> Result<Staged, StoreError> {
        // A collection between the two steps would take the new name for a dead writer's, and remove it later.
        let _no_gc = self.no_gc()?;
        // Its old name may be another's as soon as it is free, so it may not be removed under that one.
        let Staged { store, path, .. } = self.stage()?;
        fs::rename(from, &path).map_err(|error| StoreError::io("take over", from, error))?;
        Ok(Staged { store, path, file })
    }

    /// Puts these bytes in the store, where they may be already.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put_bytes(&self, bytes: &[u8], mode: BlobMode) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.blob(&digest).is_some() && mode == BlobMode::Data {
            return Ok(digest);
        }
        let mut staged = self.stage()?;
        staged.write_all(bytes).map_err(|error| staged.failed("write", error))?;
        staged.commit(digest, mode)?;
        Ok(digest)
    }
}

impl Staged {
    /// The file. Write into this one: another file renamed over its path would not be ours.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where it is, until it is committed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it the blob `digest`: the caller vouches that this is the SHA-256 of its bytes. The blob is on disk
    /// when this returns, and held by the store's handle. A blob that was there before stays.
    ///
    /// Blocks for as long as the disk needs for what was written.
    ///
    /// # Errors
    /// When it cannot be written; then it is gone.
    pub fn commit(self, digest: Digest, mode: BlobMode) -> Result<(), StoreError> {
        let blob = self.store.blob_path(&digest);
        self.file
            .set_permissions(Permissions::from_mode(mode.bits()))
            .and_then(|()| self.file.sync_all())
            .map_err(|error| self.failed("write", error))?;
        {
            let no_gc = self.store.no_gc()?;
            self.store.hold(&digest, &no_gc)?;
            match rename_to_new(&self.path, &blob) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => widen(&blob, mode)?,
                Err(error) => return Err(StoreError::io("make", &blob, error)),
            }
        }
        // Also for a blob that was there before: its maker may not have come to this.
        folder::sync(&self.store.dir().join("blobs"))
    }

    /// Reads it, and makes it the blob of its digest. `expected` is what it must be.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when it is something else, and as [`Staged::commit`].
    pub fn hash_and_commit(mut self, expected: Option<Digest>, mode: BlobMode) -> Result<Digest, StoreError> {
        let at = |error| StoreError::io("read", &self.path, error);
        self.file.seek(SeekFrom::Start(0)).map_err(at)?;
        let (got, size) = hash(&mut self.file, &Abandoned::never(), |_| {}).map_err(at)?;
        match expected {
            Some(expected) if expected != got => Err(StoreError::Mismatch { expected, got, size }),
            _ => self.commit(got, mode).map(|()| got),
        }
    }

    /// Gives it another name in the store, over what has it.
    pub(super) fn rename(self, to: &Path) -> Result<File, StoreError> {
        fs::rename(&self.path, to).map_err(|error| StoreError::io("write", to, error))?;
        self.renamed().map_err(|error| StoreError::io("write", to, error))
    }

    /// Once the name is another's, nothing is to be removed any more.
    fn renamed(self) -> io::Result<File> {
        let Self { path, file, .. } = self;
        path.keep().map_err(|error| error.error)?;
        Ok(file)
    }

    /// What a failed operation on this file is to the user.
    pub fn failed(&self, doing: &'static str, error: io::Error) -> StoreError {
        StoreError::io(doing, &self.path, error)
    }
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `AlreadyExists` when there is something.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without that flag: the same bytes replace themselves, in the worst case.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.exists() => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(from, to),
        answer => answer.map_err(io::Error::from),
    }
}

/// Data that is now wanted as a program becomes one.
fn widen(blob: &Path, mode: BlobMode) -> Result<(), StoreError> {
    if mode == BlobMode::Data {
        return Ok(());
    }
    fs::set_permissions(blob, Permissions::from_mode(mode.bits()))
        .map_err(|error| StoreError::io("make executable", blob, error))
}

/// The SHA-256 of what follows in `file`, and its length in bytes; `after` hears of every piece.
pub(super) fn hash(
    file: &mut File,
    abandoned: &Abandoned,
    mut after: impl FnMut(u64),
) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    while !abandoned.is() {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((Digest::from_bytes(hasher.finalize().into()), size)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size += count as u64;
                after(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("nobody waits for it any more"))
}
