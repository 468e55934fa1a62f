//! Further names of blobs: `bin/<record>/<name>` are hard links, for programs that are called after their file.
//!
//! They belong to the record of a Firecracker release, and take no room of their own while that keeps the blobs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Store;
use super::contents::Usage;
use super::error::StoreError;
use super::record::{Kind, entries};
use crate::Digest;

/// How names end that are about to replace another.
const UNFINISHED: char = '~';

impl Store {
    /// Gives a blob the name `bin/<of>/<name>`, where `of` is the name of a Firecracker release, and answers the path;
    /// the blob's own where the file system has no links.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`], and when the name cannot be made.
    pub(crate) fn name_blob(&self, digest: &Digest, of: &str, name: &str) -> Result<PathBuf, StoreError> {
        let blob = self.require(digest, &format!("Firecracker {of}"))?;
        let dir = self.links(of);
        let to = dir.join(name);
        if is_same(&blob, &to) {
            return Ok(to);
        }
        let made = match self.no_gc() {
            // A collection removes what is unfinished, and what is no record's.
            Ok(_no_gc) => {
                let mut builder = DirBuilder::new();
                builder.recursive(true).mode(0o700).create(&dir).and_then(|()| replace(&blob, &to))
            }
            Err(StoreError::ReadOnly { .. }) => return Ok(blob),
            Err(error) => return Err(error),
        };
        match made {
            Ok(()) => Ok(to),
            Err(error) if has_no_links(&error) => Ok(blob),
            Err(error) => Err(StoreError::io("make a name in", &dir, error)),
        }
    }

    /// Removes what [`Store::name_blob`] has made for a release whose record is gone. What cannot be removed the next
    /// gc removes.
    pub(crate) fn unname_blobs(&self, of: &str) {
        let _ = fs::remove_dir_all(self.links(of));
    }

    /// Names of releases that are gone, those that were never finished, and their folders behind them. Only while alone.
    pub(super) fn dead_links(&self) -> Result<(Vec<PathBuf>, Usage), StoreError> {
        let (mut dead, mut usage) = (Vec::new(), Usage::default());
        for dir in entries(&self.dir().join("bin"))? {
            // Somebody else's: we make folders whose names are text.
            let Some(of) = dir.file_name().and_then(|name| name.to_str()) else { continue };
            if !fs::symlink_metadata(&dir).is_ok_and(|metadata| metadata.is_dir()) {
                continue;
            }
            let gone = !self.record_path(Kind::Firecracker, of).exists();
            for path in entries(&dir)? {
                if !gone && !path.to_string_lossy().ends_with(UNFINISHED) {
                    continue;
                }
                // The room is the blob's, unless this is the last name of it.
                match fs::symlink_metadata(&path) {
                    Ok(metadata) if metadata.nlink() == 1 => usage.add(&metadata),
                    Ok(_) => usage.count += 1,
                    Err(_) => {}
                }
                dead.push(path);
            }
            if gone {
                dead.push(dir);
            }
        }
        Ok((dead, usage))
    }

    fn links(&self, of: &str) -> PathBuf {
        self.dir().join("bin").join(of)
    }
}

/// Removes one of [`Store::dead_links`].
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    match if is_dir { fs::remove_dir(path) } else { fs::remove_file(path) } {
        // Somebody put something else there.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path, error)),
        _ => Ok(()),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// Makes `to` another name of `blob`, in one step for whoever looks.
fn replace(blob: &Path, to: &Path) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let own = format!("{}-{}{UNFINISHED}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let next = to.with_extension(own);
    fs::hard_link(blob, &next)?;
    let renamed = fs::rename(&next, to);
    // Source: rename(2): of two names of one file none is renamed: somebody else was faster.
    let _ = fs::remove_file(&next);
    renamed
}

/// A file system without hard links, or a read-only one: there the blob itself runs as well.
fn has_no_links(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::ReadOnlyFilesystem)
        || error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error())
}
