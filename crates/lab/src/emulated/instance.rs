//! The one lab of a worktree: who uses it, which QEMU it is, what was pushed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::cache::progress;
use crate::fault::{AtPath, Fault, Result};

/// What is remembered of a QEMU that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) pid: i32,
    pub(super) started: u64,
    pub(super) port: u16,
    pub(super) token: String,
    /// What it was made from.
    pub(super) key: String,
    /// Path in the lab, and what the host's file was when it was pushed there.
    pub(super) pushed: BTreeMap<String, String>,
}

/// The directory of a worktree's lab, held by one process at a time.
#[derive(Debug)]
pub(super) struct Instance {
    dir: PathBuf,
    _lock: File,
}

impl Instance {
    /// Takes the lab, waiting at most `patience` for another process that uses it.
    pub(super) fn take(dir: &Path, patience: Duration) -> Result<Self> {
        fs::create_dir_all(dir).at("cannot make", dir)?;
        let path = dir.join("lock");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .at("cannot open", &path)?;
        let deadline = Instant::now() + patience;
        let mut told = false;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(error).at("cannot lock", &path);
            }
            let mut holder = String::new();
            let _ = lock.rewind().and_then(|()| lock.read_to_string(&mut holder));
            let holder = holder.trim();
            if Instant::now() > deadline {
                return Err(Fault::new(format!("process {holder} uses the lab of this worktree"))
                    .with_hint(format!("wait for it, or end it; the lock is {}", path.display())));
            }
            if !told {
                progress(&format!("process {holder} uses the lab, waiting up to {} s", patience.as_secs()));
                told = true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .at("cannot write", &path)?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn file(&self) -> PathBuf {
        self.dir.join("instance.json")
    }

    pub(super) fn load(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.file()).ok()?).ok()
    }

    /// Written whole, readable by nobody else: it holds the token.
    pub(super) fn store(&self, record: &Record) -> Result<()> {
        let path = self.file();
        let unfinished = self.dir.join("instance.json.unfinished");
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| Fault::because("cannot write down the lab", error))?;
        File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&unfinished, &path))
            .at("cannot write", &path)
    }

    pub(super) fn forget(&self) {
        let _ = fs::remove_file(self.file());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_and_the_message_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Instance::take(dir.path(), Duration::ZERO).unwrap();
        let refused = Instance::take(dir.path(), Duration::ZERO).unwrap_err();
        let own = std::process::id();
        assert_eq!(refused.to_string(), format!("process {own} uses the lab of this worktree"));
        drop(first);
        Instance::take(dir.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_record_comes_back_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::take(dir.path(), Duration::ZERO).unwrap();
        assert_eq!(instance.load(), None);
        let record = Record { pid: 7, token: "t".into(), ..Record::default() };
        instance.store(&record).unwrap();
        assert_eq!(instance.load(), Some(record));
        assert_eq!(fs::metadata(instance.file()).unwrap().permissions().mode() & 0o777, 0o600);
        instance.forget();
        assert_eq!(instance.load(), None);
    }
}
