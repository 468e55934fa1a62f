//! What lies in the store, as gc, verify and df look at it.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::error::StoreError;
use super::flock::{Flock, Share};
use super::record::{self, Kind, Record, entries};
use super::uses::{self, Found};
use super::{Store, folder, hold};
use crate::Digest;

/// How many there are, and how large they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// How many.
    pub count: u64,
    /// Their length in bytes.
    pub bytes: u64,
    /// What they take of the disk in bytes: less than their length when they are sparse.
    pub disk_bytes: u64,
}

impl Usage {
    pub(super) fn add(&mut self, metadata: &Metadata) {
        self.count += 1;
        self.bytes += metadata.len();
        // Source: stat(2): blocks of 512 bytes, whatever the file system's own are.
        self.disk_bytes += metadata.blocks() * 512;
    }
}

/// All records, and why some cannot be read.
#[derive(Default)]
pub(super) struct Records {
    pub(super) known: Vec<Record<serde_json::Value>>,
    pub(super) damaged: Vec<(PathBuf, StoreError)>,
}

/// What lies in `blobs`.
pub(super) struct Blobs {
    pub(super) blobs: Vec<(Digest, PathBuf, Metadata)>,
    /// Whose names are no digests, or what are no files.
    pub(super) foreign: Vec<PathBuf>,
}

/// Files that nobody held, each locked so that nobody takes it.
pub(super) type Locked = Vec<(PathBuf, Flock)>;

/// Blobs that are not a record's, and are needed at this moment.
#[derive(Default)]
pub(super) struct Busy {
    /// Used by machines of living processes.
    pub(super) used: HashSet<Digest>,
    /// Held by processes that work.
    pub(super) held: HashSet<Digest>,
    /// Files of processes that are gone.
    pub(super) dead: Vec<PathBuf>,
    /// Files of living processes that cannot be understood: what they need is not known.
    pub(super) damaged: Vec<StoreError>,
}

impl Store {
    pub(super) fn all_records(&self) -> Result<Records, StoreError> {
        let mut records = Records::default();
        for path in entries(&self.dir().join("records"))? {
            let kind = Kind::ALL.iter().find(|kind| path.file_name() == Some(kind.folder().as_ref()));
            let Some(kind) = kind else {
                let reason = "this smartvm does not know its kind".to_owned();
                records.damaged.push((path.clone(), StoreError::BadRecord { path, reason }));
                continue;
            };
            for path in entries(&path)? {
                match record::read(&path, *kind) {
                    Ok(record) => records.known.push(record),
                    Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => records.damaged.push((path, error)),
                }
            }
        }
        records.known.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    pub(super) fn all_blobs(&self) -> Result<Blobs, StoreError> {
        let mut found = Blobs { blobs: Vec::new(), foreign: Vec::new() };
        for path in entries(&self.dir().join("blobs"))? {
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::io("read", &path, error)),
            };
            // Upper-case digits are no name of ours: two names would be one blob.
            let name = path.file_name().and_then(|name| name.to_str());
            let digest = name.and_then(Digest::from_hex).filter(|digest| Some(&*digest.hex()) == name);
            match digest {
                Some(digest) if metadata.is_file() => found.blobs.push((digest, path, metadata)),
                _ => found.foreign.push(path),
            }
        }
        found.blobs.sort_by_key(|(digest, ..)| *digest);
        Ok(found)
    }

    /// Who needs what. Collections must be kept away, or this be one.
    pub(super) fn busy(&self) -> Result<Busy, StoreError> {
        let mut busy = Busy::default();
        for path in entries(&self.dir().join("uses"))? {
            match uses::look(&path)? {
                Found::Live(live) => busy.used.extend(live.blobs),
                Found::Dead => busy.dead.push(path),
                Found::Damaged(error) => busy.damaged.push(error),
            }
        }
        for path in entries(&self.dir().join("holds"))? {
            match Flock::try_existing(&path, Share::Shared) {
                Ok(Some(_nobodys)) => busy.dead.push(path),
                Ok(None) => {
                    let text = match fs::read_to_string(&path) {
                        Ok(text) => text,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        Err(error) => return Err(StoreError::io("read", &path, error)),
                    };
                    busy.held.extend(hold::read(&text));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io("lock", &path, error)),
            }
        }
        Ok(busy)
    }

    /// Unfinished files whose writers are gone, each locked so that it stays nobody's. Only while alone.
    pub(super) fn dead_files(&self) -> Result<Locked, StoreError> {
        let mut candidates = entries(&self.dir().join("tmp"))?;
        let unfinished = |path: &PathBuf| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(folder::UNFINISHED_VERSION))
        };
        candidates.extend(entries(self.dir())?.into_iter().filter(unfinished));
        free(candidates)
    }

    /// Unfinished downloads that nobody goes on with and nobody did for `age`, each locked, and what lies beside
    /// them (`<name>.json`). Only while alone.
    pub(super) fn old_downloads(&self, age: Duration) -> Result<(Locked, Vec<PathBuf>), StoreError> {
        let old = |path: &PathBuf| {
            let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
            // A time in the future is as good as now.
            modified.is_ok_and(|modified| modified.elapsed().unwrap_or(Duration::ZERO) >= age)
        };
        let all: Vec<PathBuf> = entries(&self.dir().join("partial"))?.into_iter().filter(old).collect();
        let (beside, files): (Vec<_>, Vec<_>) = all.into_iter().partition(|path| path.extension().is_some());
        let downloads = free(files)?;
        let gone = |path: &PathBuf| {
            let of = path.with_extension("");
            !of.exists() || downloads.iter().any(|(path, _)| *path == of)
        };
        let beside = beside.into_iter().filter(gone).collect();
        Ok((downloads, beside))
    }

    /// Lock files that nobody holds. Whoever takes one of these at this moment waits, and makes a new one.
    pub(super) fn free_locks(&self) -> Result<Locked, StoreError> {
        free(entries(&self.dir().join("locks"))?)
    }
}

/// Those that nobody holds, each locked.
fn free(candidates: Vec<PathBuf>) -> Result<Locked, StoreError> {
    let mut free = Vec::new();
    for path in candidates {
        match Flock::try_existing(&path, Share::Alone) {
            Ok(Some(lock)) => free.push((path, lock)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // What is not a file was not made by us.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => return Err(StoreError::io("lock", &path, error)),
        }
    }
    Ok(free)
}
