//! Archives as such, whatever they hold: their digests, their members, their unpacked bytes.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::Digest as _;

use super::error::RootfsError;
use super::source::Layer;
use super::tar::Kind;
use super::watch::Watch;
use super::{Limits, merge};
use crate::Digest;
use crate::blocking::Abandoned;
use crate::progress::Progress;

/// How much is read at once, in bytes.
const CHUNK: usize = 256 << 10;

/// One file of an archive, for archives that are no root file system but hold one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// As written.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: MemberKind,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MemberKind {
    /// A file whose bytes begin `offset` bytes from the beginning of the unpacked archive.
    File { offset: u64, size: u64 },
    /// A symlink or hardlink to this path.
    Link(Vec<u8>),
    /// Anything else.
    Other,
}

/// What the layers of one image unpack to together.
#[derive(Debug)]
pub(crate) struct Total {
    bytes: AtomicU64,
    limit: u64,
}

impl Total {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { bytes: AtomicU64::new(0), limit: limits.unpacked_bytes }
    }

    /// Counts one more layer.
    ///
    /// # Errors
    /// They are more than the limits allow.
    pub(crate) fn add(&self, layer: &Layer, bytes: u64) -> Result<(), RootfsError> {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.checked_add(bytes).is_some_and(|all| all <= self.limit) {
            return Ok(());
        }
        let what = "bytes when unpacked, with the layers before it";
        Err(RootfsError::Limit { layer: layer.name().to_owned(), what, limit: self.limit })
    }
}

impl Layer {
    /// SHA-256 of its bytes as they are stored. Blocks.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn stored_digest_now(&self, abandoned: &Abandoned) -> Result<Digest, RootfsError> {
        let watch = quiet(abandoned);
        Ok(self.hash(self.raw(&watch), &watch)?.0)
    }

    /// SHA-256 of the unpacked archive (OCI: the diff id), given that of its bytes as they are stored, which is the
    /// same where nothing is compressed. Blocks.
    ///
    /// # Errors
    /// It cannot be read or unpacked, or unpacks to more than `limits` allow.
    pub fn unpacked_digest_now(
        &self,
        stored: Digest,
        limits: &Limits,
        abandoned: &Abandoned,
    ) -> Result<Digest, RootfsError> {
        Ok(self.unpacked_now(stored, limits, abandoned)?.0)
    }

    /// The same, and how many bytes the unpacked archive has.
    fn unpacked_now(
        &self,
        stored: Digest,
        limits: &Limits,
        abandoned: &Abandoned,
    ) -> Result<(Digest, u64), RootfsError> {
        let watch = quiet(abandoned);
        if !self.is_compressed(&watch).map_err(|error| self.failed(&watch, error))? {
            return Ok((stored, self.len()));
        }
        let stream = self.stream(limits, &watch).map_err(|error| self.failed(&watch, error))?;
        self.hash(stream, &watch)
    }

    /// [`Layer::unpacked_digest_now`] of one of several layers, which count together.
    ///
    /// # Errors
    /// As there, and when all of them together are too large.
    pub(crate) fn counted_digest_now(
        &self,
        stored: Digest,
        limits: &Limits,
        total: &Total,
        abandoned: &Abandoned,
    ) -> Result<Digest, RootfsError> {
        let (digest, bytes) = self.unpacked_now(stored, limits, abandoned)?;
        total.add(self, bytes)?;
        Ok(digest)
    }

    /// Whether its bytes have to be unpacked.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn is_packed(&self) -> Result<bool, RootfsError> {
        let watch = quiet(&Abandoned::never());
        self.is_compressed(&watch).map_err(|error| self.failed(&watch, error))
    }

    /// Writes the unpacked archive into `file`. Blocks.
    ///
    /// # Errors
    /// As [`Layer::unpacked_digest_now`], and when the file cannot be written.
    pub(crate) fn unpack_now(
        &self,
        mut file: &File,
        limits: &Limits,
        progress: &Progress,
        abandoned: &Abandoned,
    ) -> Result<(), RootfsError> {
        let watch = Watch::new(abandoned, progress, "unpack archive", Some(self.len()));
        let stream = self.stream(limits, &watch).map_err(|error| self.failed(&watch, error))?;
        self.each(stream, &watch, |bytes| file.write_all(bytes).map_err(RootfsError::Write))
    }

    /// Shows each member to `visit` until that says it has seen enough. Blocks.
    ///
    /// # Errors
    /// As [`Layer::unpacked_digest_now`]; it is no tar archive; it has more entries than `limits` allow.
    pub(crate) fn members_now(
        &self,
        limits: &Limits,
        abandoned: &Abandoned,
        mut visit: impl FnMut(Member) -> bool,
    ) -> Result<(), RootfsError> {
        let watch = quiet(abandoned);
        let mut entries = merge::entries(self, limits, &watch)?;
        for _ in 0..limits.entries {
            let next =
                entries.next().map_err(|error| merge::failure(self, &watch, entries.position(), error))?;
            let Some(entry) = next else { return Ok(()) };
            let kind = match entry.kind {
                Kind::File if entry.map.is_none() => {
                    MemberKind::File { offset: entries.position(), size: entry.size }
                }
                Kind::Hardlink | Kind::Symlink => MemberKind::Link(entry.link),
                _ => MemberKind::Other,
            };
            if !visit(Member { path: entry.path, kind }) {
                return Ok(());
            }
        }
        Err(RootfsError::Limit { layer: self.name().to_owned(), what: "entries", limit: limits.entries })
    }

    fn hash(&self, from: impl Read, watch: &Watch) -> Result<(Digest, u64), RootfsError> {
        let mut hasher = sha2::Sha256::new();
        let mut size = 0;
        self.each(from, watch, |bytes| {
            hasher.update(bytes);
            size += bytes.len() as u64;
            Ok(())
        })?;
        Ok((Digest::from_bytes(hasher.finalize().into()), size))
    }

    fn each(
        &self,
        mut from: impl Read,
        watch: &Watch,
        mut take: impl FnMut(&[u8]) -> Result<(), RootfsError>,
    ) -> Result<(), RootfsError> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer).map_err(|error| self.failed(watch, error))? {
                0 => return Ok(()),
                got => take(&buffer[..got])?,
            }
        }
    }

    fn failed(&self, watch: &Watch, error: io::Error) -> RootfsError {
        merge::failure(self, watch, 0, error.into())
    }
}

fn quiet(abandoned: &Abandoned) -> Watch {
    Watch::new(abandoned, &Progress::none(), "read archive", None)
}
