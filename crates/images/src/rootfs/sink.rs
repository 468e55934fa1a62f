//! Where the image goes: a sparse file, written in large pieces, hashed on the way.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender};

use mkext4::RegionSink;
use sha2::Digest as _;

use super::sparse::BLOCK;
use crate::Digest;

/// What is written at once, in bytes.
const PIECE: usize = 1 << 20;

/// Collects what is written side by side, leaves out blocks of zeros, and tells the hasher how far the file is
/// complete.
pub(super) struct Sink<'a> {
    /// Nowhere in a rehearsal.
    file: Option<&'a File>,
    piece: Vec<u8>,
    /// Where `piece` belongs.
    start: u64,
    /// Whether the metadata are written. They come first, and are all over the file.
    filling: &'a Cell<bool>,
    /// Whether the current piece is of contents. From then on the file is complete up to where is written.
    filled: bool,
    /// Bytes that were written: all but zeros.
    written: u64,
    complete: Sender<u64>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(file: Option<&'a File>, filling: &'a Cell<bool>, complete: Sender<u64>) -> Self {
        Self {
            file,
            piece: Vec::with_capacity(PIECE),
            start: 0,
            filling,
            filled: false,
            written: 0,
            complete,
        }
    }

    /// Bytes that were written so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    fn end(&self) -> u64 {
        self.start + self.piece.len() as u64
    }

    /// Writes what was collected.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.written += write_sparsely(self.file, self.start, &self.piece)?;
        self.start = self.end();
        self.piece.clear();
        // The last piece of the metadata may lie behind contents that are still to come.
        if self.filled {
            // The hasher is gone only when it failed, which it says itself.
            let _ = self.complete.send(self.start);
        }
        Ok(())
    }
}

impl RegionSink for Sink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset != self.end() || self.piece.len() + bytes.len() > PIECE {
            self.flush()?;
            if offset < self.start && self.filled {
                return Err(io::Error::other("the image is not written from its beginning to its end"));
            }
            self.filled = self.filling.get();
            self.start = offset;
        }
        if bytes.len() >= PIECE {
            self.written += write_sparsely(self.file, offset, bytes)?;
            self.start = offset + bytes.len() as u64;
        } else {
            self.piece.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        // The padding of a file: without it the next file would not be beside this one.
        if offset == self.end() && len < BLOCK && !self.piece.is_empty() {
            self.piece.resize(self.piece.len() + len as usize, 0);
        }
        Ok(())
    }
}

/// Writes a piece of a file that is all zeros so far, and answers how much there was to write. The piece begins with
/// a block.
fn write_sparsely(file: Option<&File>, offset: u64, piece: &[u8]) -> io::Result<u64> {
    let mut from = 0;
    let mut written = 0;
    while from < piece.len() {
        let blocks = piece[from..].chunks(BLOCK as usize);
        let zeros: usize = blocks.take_while(|block| is_zero(block)).map(<[u8]>::len).sum();
        from += zeros;
        let blocks = piece[from..].chunks(BLOCK as usize);
        let data: usize = blocks.take_while(|block| !is_zero(block)).map(<[u8]>::len).sum();
        if data > 0
            && let Some(file) = file
        {
            file.write_all_at(&piece[from..from + data], offset + from as u64)?;
        }
        from += data;
        written += data as u64;
    }
    Ok(written)
}

fn is_zero(block: &[u8]) -> bool {
    // In steps: the compiler makes each of them a few instructions, and most blocks end at the first.
    block.chunks(64).all(|step| step.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Makes the file one hole of this size.
pub(super) fn empty(file: &File, size: u64) -> io::Result<()> {
    // Where it is empty already, nothing is truncated: ext4 would take that for the replacement of an old content, and
    // write out all of the new one when the file is closed.
    if file.metadata()?.len() > 0 {
        file.set_len(0)?;
    }
    file.set_len(size)
}

/// Hashes the file as far as it is complete, until it is told no more.
pub(super) fn hash(file: &File, complete: &Receiver<u64>) -> io::Result<Digest> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut done = 0;
    while let Ok(until) = complete.recv() {
        while done < until {
            let want = buffer.len().min(usize::try_from(until - done).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..want], done)?;
            hasher.update(&buffer[..want]);
            done += want as u64;
        }
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}
