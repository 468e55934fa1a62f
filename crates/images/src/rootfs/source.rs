//! Where the bytes of an archive come from: part of a file or memory, read as often as needed, and
//! decompressed by what the bytes themselves say.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use super::Limits;
use super::watch::Watch;
use crate::Digest;

/// How much of a compressed layer is read at once, in bytes.
const CHUNK: usize = 256 << 10;

/// The dictionary of an xz stream may be this large, in KiB: what `xz -9` needs.
const XZ_MEMORY_KIB: u32 = 80 << 10;

/// The window of a zstd frame may be this large, in bytes: what the program `zstd` makes at its highest level.
const ZSTD_WINDOW: u64 = 128 << 20;

/// Up to here an archive may unpack to any multiple of its size; above, see [`Limits::ratio`].
const RATIO_MATTERS_FROM: u64 = 4 << 30;

/// One tar archive, possibly compressed (gzip, zstd, xz or bzip2, told by its first bytes).
///
/// It is read twice and must not change in between.
#[derive(Clone)]
pub struct Layer {
    name: String,
    bytes: Bytes,
    identity: Option<Digest>,
}

#[derive(Clone)]
enum Bytes {
    File { file: Arc<File>, offset: u64, len: u64 },
    Memory(Arc<[u8]>),
}

impl Layer {
    /// The archive in this file. It is named by its path in errors.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self::part(path.display().to_string(), Arc::new(file), 0, len))
    }

    /// The archive that is a part of an open file: `len` bytes from `offset`.
    pub fn part(name: impl Into<String>, file: Arc<File>, offset: u64, len: u64) -> Self {
        Self { name: name.into(), bytes: Bytes::File { file, offset, len }, identity: None }
    }

    /// An archive in memory.
    pub fn memory(name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        Self { name: name.into(), bytes: Bytes::Memory(bytes.into()), identity: None }
    }

    /// Adds the digest of the unpacked archive (OCI: its diff id). It goes into the image's UUID, so that
    /// two images which differ in nothing but the contents of files have different UUIDs.
    pub fn identified(mut self, digest: Digest) -> Self {
        self.identity = Some(digest);
        self
    }

    /// Its name in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size as stored, in bytes.
    pub fn len(&self) -> u64 {
        match &self.bytes {
            Bytes::File { len, .. } => *len,
            Bytes::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn identity(&self) -> Option<&Digest> {
        self.identity.as_ref()
    }

    /// Its bytes as they are stored.
    pub(super) fn raw<'a>(&self, watch: &'a Watch) -> Raw<'a> {
        Raw { bytes: self.bytes.clone(), position: 0, len: self.len(), watch }
    }

    /// Whether they have to be unpacked.
    pub(super) fn is_compressed(&self, watch: &Watch) -> io::Result<bool> {
        let mut raw = BufReader::with_capacity(CHUNK, self.raw(watch));
        Ok(Compression::of(raw.fill_buf()?).is_some())
    }

    /// Opens it from its beginning.
    pub(super) fn stream<'a>(&self, limits: &Limits, watch: &'a Watch) -> io::Result<Stream<'a>> {
        let mut raw = BufReader::with_capacity(CHUNK, self.raw(watch));
        let head = raw.fill_buf()?;
        let inner = match Compression::of(head) {
            None => Inner::Plain(raw),
            Some(Compression::Gzip) => Inner::Unpacked(Box::new(MultiGzDecoder::new(raw))),
            Some(Compression::Bzip2) => Inner::Unpacked(Box::new(MultiBzDecoder::new(raw))),
            Some(Compression::Xz) => {
                Inner::Unpacked(Box::new(XzReader::new_mem_limit(raw, true, XZ_MEMORY_KIB)))
            }
            Some(Compression::Zstd) => Inner::Unpacked(Box::new(Zstd::new(raw))),
        };
        let by_ratio = self.len().saturating_mul(limits.ratio).max(RATIO_MATTERS_FROM);
        Ok(Stream { inner, position: 0, bound: limits.unpacked_bytes.min(by_ratio) })
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer").field("name", &self.name).field("len", &self.len()).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Compression {
    /// By the first bytes: names and media types lie.
    fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            // A skippable frame of zstd: some builders put one first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, ..] => Some(Self::Bzip2),
            _ => None,
        }
    }
}

/// The stored bytes, as a reader that can seek, is stopped by its watch, and tells it how far it is.
pub(super) struct Raw<'a> {
    bytes: Bytes,
    position: u64,
    len: u64,
    watch: &'a Watch,
}

impl Read for Raw<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let want = left.min(into.len());
        let got = match &self.bytes {
            Bytes::File { file, offset, .. } => file.read_at(&mut into[..want], offset + self.position)?,
            Bytes::Memory(bytes) => {
                let from = self.position as usize;
                into[..want].copy_from_slice(&bytes[from..from + want]);
                want
            }
        };
        if got == 0 && want > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        self.position += got as u64;
        self.watch.advance(got as u64)?;
        Ok(got)
    }
}

impl Seek for Raw<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        // BufReader only ever seeks relative to where it is.
        let SeekFrom::Current(by) = to else {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        };
        let position = self.position.checked_add_signed(by);
        let position = position.filter(|position| *position <= self.len).ok_or_else(cut_short)?;
        if by > 0 {
            self.watch.advance(by.unsigned_abs())?;
        }
        self.position = position;
        Ok(position)
    }
}

pub(super) fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of an entry")
}

/// An unpacked archive, forward only.
pub(super) struct Stream<'a> {
    inner: Inner<'a>,
    position: u64,
    bound: u64,
}

enum Inner<'a> {
    Plain(BufReader<Raw<'a>>),
    Unpacked(Box<dyn Read + 'a>),
}

/// The error of a stream that grew beyond its bound. Carried by an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("it unpacks to more than {0} bytes")]
pub(super) struct TooLarge(pub(super) u64);

impl Stream<'_> {
    /// Bytes of the unpacked archive that were read or skipped.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    fn moved(&mut self, by: u64) -> io::Result<()> {
        self.position = self.position.saturating_add(by);
        if self.position > self.bound { Err(io::Error::other(TooLarge(self.bound))) } else { Ok(()) }
    }

    /// Skips bytes; where nothing has to be unpacked, without reading them.
    pub(super) fn skip(&mut self, mut count: u64) -> io::Result<()> {
        if let Inner::Plain(raw) = &mut self.inner {
            let by = i64::try_from(count).map_err(|_| cut_short())?;
            // Within the buffer or beyond it, but never beyond the end.
            raw.seek_relative(by)?;
            return self.moved(count);
        }
        let mut buffer = [0; 16 << 10];
        while count > 0 {
            let want = buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            match self.read(&mut buffer[..want])? {
                0 => return Err(cut_short()),
                got => count -= got as u64,
            }
        }
        Ok(())
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = match &mut self.inner {
            Inner::Plain(raw) => raw.read(into)?,
            Inner::Unpacked(reader) => reader.read(into)?,
        };
        self.moved(got as u64)?;
        Ok(got)
    }
}

/// Frames of zstd one after another, skippable ones left out; ruzstd's own reader knows one frame.
struct Zstd<'a> {
    raw: BufReader<Raw<'a>>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<'a> Zstd<'a> {
    fn new(raw: BufReader<Raw<'a>>) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW);
        Self { raw, decoder, in_frame: false }
    }

    /// Begins the next frame; `false` at the end of the file.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.raw.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.raw) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => self.raw.seek_relative(i64::from(length))?,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
    }
}

impl Read for Zstd<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy::UptoBytes;
        loop {
            if !self.in_frame {
                if into.is_empty() || !self.begin()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() < into.len() && !self.decoder.is_finished() {
                let more = into.len() - self.decoder.can_collect();
                self.decoder
                    .decode_blocks(&mut self.raw, UptoBytes(more))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            }
            let got = self.decoder.read(into)?;
            if got > 0 {
                return Ok(got);
            }
            if self.decoder.is_finished() {
                let promised = self.decoder.get_checksum_from_data();
                if promised.is_some() && promised != self.decoder.get_calculated_checksum() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the zstd checksum is wrong"));
                }
                self.in_frame = false;
            }
        }
    }
}
