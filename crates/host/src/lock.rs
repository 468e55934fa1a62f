//! Advisory locks on files (flock(2)): they end with their holder, however it ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

/// A held lock. Dropping it, or the end of the process, gives it back; the file stays.
///
/// Its descriptor is close-on-exec, so no VMM ever holds it.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock for itself alone, without waiting. `None` when somebody holds it.
    ///
    /// # Errors
    /// When the file cannot be made or opened.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits for the lock to itself alone. Blocks the thread.
    ///
    /// # Errors
    /// When the file cannot be made or opened.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        Self::wait(path, FlockOperation::LockExclusive)
    }

    /// Waits for the lock, to be shared with others who share it. Blocks the thread.
    ///
    /// # Errors
    /// When the file cannot be made or opened.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Self::wait(path, FlockOperation::LockShared)
    }

    /// The locked file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn wait(path: &Path, operation: FlockOperation) -> io::Result<Self> {
        loop {
            if let Some(lock) = Self::take(path, operation)? {
                return Ok(lock);
            }
        }
    }

    /// `None` when a non-blocking operation would wait, or when the file was replaced while we waited for it.
    fn take(path: &Path, operation: FlockOperation) -> io::Result<Option<Self>> {
        // What is not a file (a link, a FIFO) is none of ours: no link is followed, and no FIFO waited for.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        match rustix::io::retry_on_intr(|| flock(&file, operation)) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        // A holder may have removed the file (with its directory) while we waited: then we locked nothing.
        let held = file.metadata()?;
        match std::fs::symlink_metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(Self { file, path: path.to_owned() }))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing gives it back as well; a child between clone and exec may share the open file for a moment.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it_alone_and_dropping_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
    }

    #[test]
    fn sharing_keeps_the_exclusive_one_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = FileLock::shared(&path).unwrap();
        let second = FileLock::shared(&path).unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        drop((first, second));
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
    }

    #[test]
    fn what_is_no_file_is_refused_at_once_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (link, fifo) = (dir.path().join("link"), dir.path().join("fifo"));
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        for path in [&link, &fifo] {
            assert!(FileLock::try_exclusive(path).is_err());
            assert!(FileLock::exclusive(path).is_err());
        }
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn a_file_that_was_removed_under_its_holder_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let _old = FileLock::try_exclusive(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
    }
}
