//! Blobs that a handle has written or found, and that no record names yet.
//!
//! They stand in a file of the handle's own, locked for as long as it lives. The file needs no sync: it means
//! nothing after its process has ended, and other processes see what was written at once.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempPath;

use super::error::StoreError;
use super::flock::{self, Share};
use crate::Digest;

#[derive(Debug)]
pub(super) struct Holds {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// The path is removed before the file, and with it the lock, is closed.
    file: Option<(TempPath, File)>,
    digests: HashSet<Digest>,
}

impl Holds {
    pub(super) fn none() -> Self {
        Self { held: Mutex::default() }
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.held().digests.contains(digest)
    }

    /// Only while collections are kept away.
    pub(super) fn add(&self, dir: &Path, digest: &Digest) -> Result<(), StoreError> {
        let mut held = self.held();
        if held.digests.contains(digest) {
            return Ok(());
        }
        let (path, mut file) = match held.file.take() {
            Some(file) => file,
            None => new(dir)?,
        };
        // A line of its own, also behind one that a full disk cut off.
        let written = file.write_all(format!("\n{}\n", digest.hex()).as_bytes());
        let failed = written.err().map(|error| StoreError::io("write", &path, error));
        held.file = Some((path, file));
        match failed {
            Some(error) => Err(error),
            None => {
                held.digests.insert(*digest);
                Ok(())
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Whoever panicked here left at most one digest unheld, and never got to use it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new(dir: &Path) -> Result<(TempPath, File), StoreError> {
    let at = |error| StoreError::io("write", dir, error);
    let prefix = format!("{}-", std::process::id());
    let (file, path) = tempfile::Builder::new().prefix(&prefix).tempfile_in(dir).map_err(at)?.into_parts();
    flock::try_lock(&file, Share::Alone).map_err(at)?;
    Ok((path, file))
}

/// The digests in such a file. A line that a full disk cut off was never relied on.
pub(super) fn read(text: &str) -> impl Iterator<Item = Digest> {
    text.lines().filter_map(Digest::from_hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_after_a_line_that_a_full_disk_cut_off_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let holds = Holds::none();
        let [before, after] = [b"a", b"b"].map(|bytes| Digest::of(bytes));
        holds.add(dir.path(), &before).unwrap();
        let cut = holds.held().file.as_mut().unwrap().1.write_all(&after.hex().as_bytes()[..30]);
        cut.unwrap();
        holds.add(dir.path(), &after).unwrap();
        let path = holds.held().file.as_ref().unwrap().0.to_path_buf();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(read(&text).collect::<Vec<_>>(), [before, after]);
    }
}
