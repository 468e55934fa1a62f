//! Where received bytes go: a partial file, or memory.

use std::fs::File;
use std::path::PathBuf;

use sha2::Digest as _;

use super::error::DownloadError;
use super::partial::{Origin, Partial};
use crate::blocking::blocking;
use crate::digest::Digest;

/// Bytes that are collected before they are written: a write costs a change of thread.
const BATCH: usize = 512 << 10;

/// Receives bytes and knows their digest.
#[derive(Debug)]
pub(super) enum Sink {
    File {
        /// Away while another thread writes; lost when that thread's answer was not awaited.
        partial: Option<Partial>,
        batch: Vec<u8>,
    },
    Memory {
        bytes: Vec<u8>,
        origin: Option<Origin>,
    },
}

impl Sink {
    pub(super) fn file(partial: Partial) -> Self {
        Self::File { partial: Some(partial), batch: Vec::new() }
    }

    pub(super) fn memory() -> Self {
        Self::Memory { bytes: Vec::new(), origin: None }
    }

    /// Bytes received, in all tries.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File { partial, batch } => present(partial).len() + batch.len() as u64,
            Self::Memory { bytes, .. } => bytes.len() as u64,
        }
    }

    pub(super) fn origin(&self) -> Option<&Origin> {
        match self {
            Self::File { partial, .. } => present(partial).origin(),
            Self::Memory { origin, .. } => origin.as_ref(),
        }
    }

    pub(super) fn set_origin(&mut self, from: Origin) -> Result<(), DownloadError> {
        match self {
            Self::File { partial, .. } => present_mut(partial).set_origin(from)?,
            Self::Memory { origin, .. } => *origin = Some(from),
        }
        Ok(())
    }

    /// Forgets all bytes.
    pub(super) fn restart(&mut self) -> Result<(), DownloadError> {
        match self {
            Self::File { partial, batch } => {
                batch.clear();
                present_mut(partial).restart()
            }
            Self::Memory { bytes, origin } => {
                (*bytes, *origin) = (Vec::new(), None);
                Ok(())
            }
        }
    }

    /// Adds bytes.
    pub(super) async fn append(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        match self {
            Self::Memory { bytes: all, .. } => all.extend_from_slice(bytes),
            Self::File { batch, .. } => {
                batch.extend_from_slice(bytes);
                if batch.len() >= BATCH {
                    return self.flush().await;
                }
            }
        }
        Ok(())
    }

    /// Writes what was collected.
    pub(super) async fn flush(&mut self) -> Result<(), DownloadError> {
        let Self::File { partial, batch } = self else { return Ok(()) };
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, mut moved) = (std::mem::take(batch), partial.take().expect(PRESENT));
        let (mut bytes, moved, written) = blocking(move |_| {
            let written = moved.append(&bytes);
            (bytes, moved, written)
        })
        .await;
        bytes.clear();
        (*batch, *partial) = (bytes, Some(moved));
        written
    }

    /// Their digest. Only after a flush.
    pub(super) fn digest(&self) -> Digest {
        match self {
            Self::File { partial, .. } => present(partial).digest(),
            Self::Memory { bytes, .. } => Digest::from_bytes(sha2::Sha256::digest(bytes).into()),
        }
    }

    /// Room on the disk, and where, if it matters.
    pub(super) fn room(&self) -> Option<(u64, PathBuf)> {
        match self {
            Self::File { partial, .. } => {
                let partial = present(partial);
                Some((partial.free()?, partial.path.clone()))
            }
            Self::Memory { .. } => None,
        }
    }

    /// The complete file.
    pub(super) fn into_file(self) -> Option<(PathBuf, File)> {
        match self {
            Self::File { partial, .. } => partial.map(Partial::into_file),
            Self::Memory { .. } => None,
        }
    }

    /// The complete bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::File { .. } => Vec::new(),
            Self::Memory { bytes, .. } => bytes,
        }
    }
}

const PRESENT: &str = "whoever drops a write drops the sink with it";

fn present(partial: &Option<Partial>) -> &Partial {
    partial.as_ref().expect(PRESENT)
}

fn present_mut(partial: &mut Option<Partial>) -> &mut Partial {
    partial.as_mut().expect(PRESENT)
}
