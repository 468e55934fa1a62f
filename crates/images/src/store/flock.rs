//! Locks between processes: flock(2) on a file, which ends with its holder, however that ends.
//!
//! Nobody blocks in the kernel: a lock is tried again after a pause, so that every wait has an end and can be
//! given up. Who holds one is asked of the kernel (`/proc/locks`), so no file can name a holder that is gone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::error::{StoreError, holder};
use crate::progress::Progress;

/// How long a lock is waited for that is held only for moments.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long somebody may look at a lock that is free.
const MOMENT: Duration = Duration::from_millis(100);

/// Pauses between two tries, for threads and for tasks.
const SHORT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_millis(100);

/// Who else may hold the lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Others that share it too.
    Shared,
    /// Nobody.
    Alone,
}

impl Share {
    const fn operation(self) -> FlockOperation {
        match self {
            Self::Shared => FlockOperation::NonBlockingLockShared,
            Self::Alone => FlockOperation::NonBlockingLockExclusive,
        }
    }
}

/// A held lock. Dropping it gives it back; the file stays.
#[derive(Debug)]
pub(super) struct Flock {
    file: File,
}

impl Flock {
    /// Takes the lock without waiting; makes its file. `None` when somebody holds it.
    pub(super) fn try_take(path: &Path, share: Share) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Self::try_file(options.custom_flags(harmless()).open(path)?, path, share)
    }

    /// The same for a file that must be there already. `NotFound` when it is not.
    pub(super) fn try_existing(path: &Path, share: Share) -> io::Result<Option<Self>> {
        Self::try_file(OpenOptions::new().read(true).custom_flags(harmless()).open(path)?, path, share)
    }

    fn try_file(file: File, path: &Path, share: Share) -> io::Result<Option<Self>> {
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        if !try_lock(&file, share)? {
            return Ok(None);
        }
        // gc removes lock files that nobody holds: then we locked a file that nobody else will find.
        Ok(is_at(&file, path)?.then_some(Self { file }))
    }

    /// Waits for a lock that is held only for moments. Blocks the thread for at most a minute.
    pub(super) fn take(path: &Path, share: Share, purpose: &str) -> Result<Self, StoreError> {
        Self::take_within(path, share, purpose, PATIENCE)
    }

    /// Takes a lock that somebody may just be looking at: gc holds for a moment what it finds free.
    pub(super) fn take_soon(path: &Path, share: Share, purpose: &str) -> Result<Self, StoreError> {
        Self::take_within(path, share, purpose, MOMENT)
    }

    fn take_within(path: &Path, share: Share, purpose: &str, patience: Duration) -> Result<Self, StoreError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(lock) =
                Self::try_take(path, share).map_err(|error| StoreError::io("lock", path, error))?
            {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(busy(path, purpose));
            }
            thread::sleep(SHORT);
        }
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        // Closing gives it back as well; a child between clone and exec may share the open file for a moment.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// What is not a file (a link, a FIFO) is none of ours: no link is followed, and no FIFO waited for.
fn harmless() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// Locks an open file without waiting.
pub(super) fn try_lock(file: &File, share: Share) -> io::Result<bool> {
    match rustix::io::retry_on_intr(|| flock(file, share.operation())) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether `path` still leads to this open file.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The right to do one piece of work, among all processes that use the store. Dropping it, or the end of the
/// process, gives it back.
#[derive(Debug)]
#[must_use = "dropping it lets others begin"]
pub struct StoreLock {
    _lock: Flock,
    path: PathBuf,
}

impl StoreLock {
    /// The lock's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn try_take(path: &Path, purpose: &str) -> Result<Self, StoreError> {
        match Flock::try_take(path, Share::Alone) {
            Ok(Some(lock)) => Ok(Self { _lock: lock, path: path.to_owned() }),
            Ok(None) => Err(busy(path, purpose)),
            Err(error) => Err(StoreError::io("lock", path, error)),
        }
    }

    pub(super) fn take_soon(path: &Path, purpose: &str) -> Result<Self, StoreError> {
        let lock = Flock::take_soon(path, Share::Alone, purpose)?;
        Ok(Self { _lock: lock, path: path.to_owned() })
    }

    /// Waits for as long as the caller wants, and says so once.
    pub(super) async fn wait(path: &Path, purpose: &str, progress: &Progress) -> Result<Self, StoreError> {
        let mut pause = SHORT;
        let mut told = false;
        loop {
            match Self::try_take(path, purpose) {
                Err(StoreError::Busy { pid, .. }) => {
                    // A holder that ends at once, or gc that looks whether the lock is free, is not worth a line.
                    if !told && pause > 8 * SHORT {
                        told = true;
                        let path = path.display();
                        progress
                            .note(format!("waiting to {purpose}: {} does it (lock `{path}`)", holder(pid)));
                    }
                }
                answer => return answer,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONG);
        }
    }
}

fn busy(path: &Path, purpose: &str) -> StoreError {
    StoreError::Busy { purpose: purpose.to_owned(), path: path.to_owned(), pid: held_by(path) }
}

/// Who holds a lock on this file, as far as the kernel tells us: not for holders outside of our pid namespace.
fn held_by(path: &Path) -> Option<u32> {
    let inode = std::fs::metadata(path).ok()?.ino();
    // The kernel gives the list page by page: while others lock and unlock, a line may fall between two pages.
    (0..8).find_map(|_| holder_in(&std::fs::read_to_string("/proc/locks").ok()?, inode))
}

/// Source: proc_locks(5): `1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`. The device is not compared: it is not
/// stat's on btrfs and overlayfs, and an equal inode number elsewhere only spoils a message.
fn holder_in(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Who waits has a "->" behind the number, and the other fields one further on.
        let [_, "FLOCK", _, _, pid, place, ..] = fields.as_slice() else { return None };
        let same = place.rsplit(':').next()?.parse() == Ok(inode);
        same.then(|| pid.parse().ok()).flatten()
    })
}

/// Whether a process was stopped by a signal or a debugger. No when nobody tells.
///
/// Source: proc_pid_stat(5): the state follows the name, which is in parentheses and may hold any.
pub(super) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(|byte| *byte == b')').next().and_then(|rest| rest.get(1));
    matches!(state, Some(b'T' | b't'))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::progress::Event;

    #[test]
    fn one_alone_keeps_all_out_and_those_who_share_keep_only_that_one_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let shared = Flock::try_take(&path, Share::Shared).unwrap().unwrap();
        assert!(Flock::try_take(&path, Share::Shared).unwrap().is_some());
        assert!(Flock::try_take(&path, Share::Alone).unwrap().is_none());
        drop(shared);
        let _alone = Flock::try_take(&path, Share::Alone).unwrap().unwrap();
        assert!(Flock::try_take(&path, Share::Shared).unwrap().is_none());
    }

    #[test]
    fn a_file_that_gc_removed_before_it_was_locked_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let opened = File::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(Flock::try_file(opened, &path, Share::Alone).unwrap().is_none());
        let opened = File::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _held_by_another = Flock::try_take(&path, Share::Alone).unwrap().unwrap();
        assert!(Flock::try_file(opened, &path, Share::Alone).unwrap().is_none());
    }

    #[test]
    fn the_message_names_path_purpose_and_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let _held = Flock::try_take(&path, Share::Alone).unwrap().unwrap();
        let error =
            Flock::take_within(&path, Share::Shared, "collect", Duration::ZERO).unwrap_err().to_string();
        assert!(error.starts_with("cannot collect: process "), "{error}");
        assert!(error.contains(&format!("process {} ", std::process::id())), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_holder_is_found_among_others_and_who_waits_is_none() {
        let locks = "1: FLOCK  ADVISORY  WRITE 7 08:01:131 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 8 08:01:132 0 EOF\n\
                     3: POSIX  ADVISORY  WRITE 9 08:01:132 0 EOF\n4: FLOCK  ADVISORY  READ 10 fe:00:132 0 EOF\n";
        assert_eq!(holder_in(locks, 132), Some(10));
        assert_eq!(holder_in(locks, 133), None);
        assert_eq!(holder_in("nonsense\n\n: : :", 1), None);
    }

    #[tokio::test]
    async fn who_waits_says_so_once_and_gets_it_when_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = StoreLock::try_take(&path, "pull x").unwrap();
        let notes = Arc::new(Mutex::new(Vec::new()));
        let (to, free) = (Arc::clone(&notes), Mutex::new(Some(held)));
        let progress = Progress::new(move |event| {
            to.lock().unwrap().push(event);
            drop(free.lock().unwrap().take());
        });
        let _lock = StoreLock::wait(&path, "pull x", &progress).await.unwrap();
        let notes = notes.lock().unwrap();
        let [Event::Note { text }] = notes.as_slice() else { panic!("{notes:?}") };
        assert!(text.contains("waiting to pull x: process ") && text.contains("lock"), "{text}");
    }
}
