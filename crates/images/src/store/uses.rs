//! Blobs that a machine uses while it runs.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::flock::{self, Flock, Share};
use super::record::entries;
use super::{Store, name};
use crate::Digest;

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Content {
    id: String,
    /// Said here, since asking the kernel for each of many would take long.
    pid: u32,
    blobs: Vec<Digest>,
}

/// Keeps blobs from gc while it lives. The end of the process, however it ends, ends the use.
#[derive(Debug)]
#[must_use = "dropping it ends the use"]
pub struct UseGuard {
    path: PathBuf,
    /// Held locked: that is what makes the use a living one.
    file: File,
    /// Not the handle, which would go on holding what it found.
    blobs: PathBuf,
}

impl UseGuard {
    /// Where a used blob is, for as long as the use lasts. Cheaper than [`Store::blob`], which holds it as well.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }
}

impl Drop for UseGuard {
    fn drop(&mut self) {
        // Under the same name another use may have begun, if somebody removed ours.
        if flock::is_at(&self.file, &self.path).unwrap_or(false) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A use whose process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveUse {
    /// Who uses them: a machine's id.
    pub id: String,
    /// Its process, as that process knows itself.
    pub pid: u32,
    /// What it uses.
    pub blobs: Vec<Digest>,
}

/// What a file in `uses` is.
pub(super) enum Found {
    Live(LiveUse),
    /// Nobody holds it.
    Dead,
    /// Somebody holds it, and it says nothing that we understand.
    Damaged(StoreError),
}

impl Store {
    /// Keeps blobs from gc while the answer lives, for the machine `id`.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`] when one of them is not there, [`StoreError::Busy`] when a process that lives
    /// uses the store under this id, and when the use cannot be written.
    pub fn use_blobs(&self, id: &str, blobs: &[Digest]) -> Result<UseGuard, StoreError> {
        let path = self.dir().join("uses").join(format!("{}.json", name::escape(id)));
        let purpose = format!("begin a use `{id}`");
        let content = Content { id: id.to_owned(), pid: std::process::id(), blobs: blobs.to_vec() };
        let bytes = serde_json::to_vec(&content)
            .map_err(|error| StoreError::io("write", &path, io::Error::other(error)))?;
        // No sync: the file means nothing after its process has ended.
        let mut staged = self.stage()?;
        staged.write_all(&bytes).map_err(|error| StoreError::io("write", &path, error))?;
        // Of two that begin under one name, the later must see the file of the former.
        let _one_at_a_time = Flock::take(&self.dir().join("uses.lock"), Share::Alone, &purpose)?;
        // Before the look: to a collection, a dead use that we hold for a moment would be a living one that says
        // nothing, and it would refuse to work.
        let no_gc = self.no_gc()?;
        if path.exists() {
            // Free when its process is gone. Its file stays for a moment if it is not: no harm.
            drop(Flock::take_soon(&path, Share::Alone, &purpose)?);
        }
        self.all_there(blobs, &format_args!("machine `{id}`"), &no_gc)?;
        let file = staged.rename(&path)?;
        Ok(UseGuard { path, file, blobs: self.dir().join("blobs") })
    }

    /// Uses of processes that live, by id.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn live_uses(&self) -> Result<Vec<LiveUse>, StoreError> {
        let mut live = Vec::new();
        for path in entries(&self.dir().join("uses"))? {
            match look(&path) {
                Ok(Found::Live(found)) => live.push(found),
                Ok(Found::Dead) => {}
                Ok(Found::Damaged(error)) | Err(error) => tracing::warn!(%error, "a use is left out"),
            }
        }
        live.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(live)
    }

    /// Who uses one of these blobs at this moment. For `rm`, which refuses then.
    ///
    /// # Errors
    /// As [`Store::live_uses`].
    pub fn users_of(&self, blobs: &[Digest]) -> Result<Vec<LiveUse>, StoreError> {
        let mut live = self.live_uses()?;
        live.retain(|found| found.blobs.iter().any(|digest| blobs.contains(digest)));
        Ok(live)
    }
}

/// What a file in `uses` is.
pub(super) fn look(path: &Path) -> Result<Found, StoreError> {
    match Flock::try_existing(path, Share::Shared) {
        Ok(Some(_nobodys)) => return Ok(Found::Dead),
        Ok(None) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Dead),
        Err(error) => return Err(StoreError::io("lock", path, error)),
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Dead),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    Ok(match serde_json::from_slice::<Content>(&bytes) {
        Ok(Content { id, pid, blobs }) => Found::Live(LiveUse { id, pid, blobs }),
        Err(error) => {
            Found::Damaged(StoreError::BadRecord { path: path.to_owned(), reason: error.to_string() })
        }
    })
}
