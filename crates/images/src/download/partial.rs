//! What has been received so far, under a name that the next try finds again.
//!
//! `<store>/partial/<key>` holds the bytes and `<key>.json` beside it says where they are from. The file is locked while it
//! grows, so that gc leaves it alone. A kill leaves it as it is: the next try reads what is there, and goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, fstatvfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use url::Url;

use super::error::DownloadError;
use crate::digest::Digest;

/// A file that grows.
#[derive(Debug)]
pub(super) struct Partial {
    what: String,
    pub(super) path: PathBuf,
    file: File,
    len: u64,
    hasher: sha2::Sha256,
    origin: Option<Origin>,
}

/// Where the bytes are from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// The digest of the address that was asked: it may hold a password.
    url: Digest,
    /// A strong `ETag` or a `Last-Modified`, for `If-Range`.
    pub(super) validator: Option<String>,
    /// The host's boot: after a power cut the file may have its length but not its bytes.
    boot: String,
}

impl Origin {
    /// Bytes of this boot from `url`.
    pub(super) fn new(url: &Url, validator: Option<String>) -> Self {
        Self { url: Digest::of(url.as_str().as_bytes()), validator, boot: boot() }
    }

    /// Whether they are from there.
    pub(super) fn is_of(&self, url: &Url) -> bool {
        self.url == Digest::of(url.as_str().as_bytes())
    }
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

impl Partial {
    /// Opens and locks the partial file `key` in `dir` for `what`; none while another process has it. What is in it
    /// is not read yet: see [`Partial::read_on`].
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub(super) fn open(dir: &Path, key: &str, what: &str) -> Result<Option<Self>, DownloadError> {
        let path = dir.join(key);
        let file = lock(&path).map_err(|source| failed(what, "lock", &path, source))?;
        let Some(file) = file else { return Ok(None) };
        let hasher = sha2::Sha256::new();
        Ok(Some(Self { what: what.to_owned(), path, file, len: 0, hasher, origin: None }))
    }

    /// Reads and hashes the next part of what was there at the beginning; false when that was all. Blocks for some 100 ms.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn read_on(&mut self) -> Result<bool, DownloadError> {
        let mut buffer = vec![0; 256 << 10];
        for _ in 0..64 {
            match self.file.read(&mut buffer) {
                Ok(0) => {
                    let origin = fs::read(self.origin_path()).ok();
                    self.origin = origin.and_then(|text| serde_json::from_slice(&text).ok());
                    return Ok(false);
                }
                Ok(read) => {
                    self.hasher.update(&buffer[..read]);
                    self.len += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(failed(&self.what, "read", &self.path, source)),
            }
        }
        Ok(true)
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Where they are from, when that is known and can be trusted.
    pub(super) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref().filter(|origin| origin.boot == boot())
    }

    /// The digest of the bytes so far.
    pub(super) fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }

    /// Forgets the bytes.
    pub(super) fn restart(&mut self) -> Result<(), DownloadError> {
        // First: what comes next may be from elsewhere, and may not say so.
        match fs::remove_file(self.origin_path()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&self.what, "remove", &self.origin_path(), source));
            }
            _ => {}
        }
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|source| failed(&self.what, "empty", &self.path, source))?;
        (self.len, self.hasher, self.origin) = (0, sha2::Sha256::new(), None);
        Ok(())
    }

    /// Says where the bytes to come are from. Written before the first of them.
    pub(super) fn set_origin(&mut self, origin: Origin) -> Result<(), DownloadError> {
        if self.origin.as_ref() == Some(&origin) {
            return Ok(());
        }
        let path = self.origin_path();
        let text = serde_json::to_vec(&origin).map_err(io::Error::from);
        // By rename: a half-written one would only cost a restart, but could not be told from a wrong one.
        let next = self.path.with_extension("json~");
        text.and_then(|text| fs::write(&next, text))
            .and_then(|()| fs::rename(&next, &path))
            .map_err(|source| failed(&self.what, "write", &path, source))?;
        self.origin = Some(origin);
        Ok(())
    }

    /// Adds bytes. Blocks.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        if let Err(source) = self.file.write_all(bytes) {
            // What was written of them is cut off: length and hash must agree.
            let _ = self.file.set_len(self.len);
            return Err(failed(&self.what, "write", &self.path, source));
        }
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Bytes that the file system has left for us, if it says so.
    pub(super) fn free(&self) -> Option<u64> {
        let stat = fstatvfs(&self.file).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The file, which is complete.
    pub(super) fn into_file(self) -> (PathBuf, File) {
        let _ = fs::remove_file(self.origin_path());
        (self.path, self.file)
    }

    fn origin_path(&self) -> PathBuf {
        self.path.with_extension("json")
    }
}

/// Opens and locks; the file that has the name when the lock is got, for who had it before may have moved it away.
/// None while another has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let ours = file.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(now) if now.ino() == ours.ino() && now.dev() == ours.dev() => return Ok(Some(file)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// The error of something done to one of our files while fetching `what`.
pub(super) fn failed(what: &str, doing: &'static str, path: &Path, source: io::Error) -> DownloadError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let path = path.to_owned();
    if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
        return DownloadError::NoRoom { what: what.to_owned(), path, needed: None, free: None };
    }
    DownloadError::File { doing, path, source }
}
