//! Files of this host as a place to fetch from.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use url::Url;

use super::error::{DownloadError, READ};

/// How much is read at once.
const PIECE: u64 = 1 << 20;

/// A regular file that is read from its beginning.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Source {
    /// Opens what a `file` URL names.
    pub(super) fn open(url: &Url) -> Result<Self, DownloadError> {
        let path = url.to_file_path().map_err(|()| DownloadError::BadUrl {
            text: url.to_string(),
            why: "a file URL names a path on this host".into(),
        })?;
        // Without waiting: the path may be a FIFO, which is refused right away.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let file = file.map_err(|source| failed(&path, source))?;
        let metadata = file.metadata().map_err(|source| failed(&path, source))?;
        if !metadata.is_file() {
            return Err(failed(&path, io::Error::other("it is not a regular file")));
        }
        Ok(Self { path, file, size: metadata.len() })
    }

    /// Its size when it was opened, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The next piece; empty at the end. Blocks.
    pub(super) fn read_on(&mut self) -> Result<Vec<u8>, DownloadError> {
        let mut piece = Vec::new();
        self.file
            .by_ref()
            .take(PIECE)
            .read_to_end(&mut piece)
            .map_err(|source| failed(&self.path, source))?;
        Ok(piece)
    }
}

/// The size of what a `file` URL names, in bytes.
pub(super) fn size(url: &Url) -> Result<u64, DownloadError> {
    Source::open(url).map(|source| source.size())
}

fn failed(path: &Path, source: io::Error) -> DownloadError {
    DownloadError::File { doing: READ, path: path.to_owned(), source }
}
