//! A VMM's output: the last bytes in a ring, and any number of readers that follow it.
//!
//! The watcher thread puts in whatever the VMM writes and never waits. A reader that falls behind by more than
//! the ring loses the oldest bytes and is told how many, so no reader can make the VMM wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// One output of a VMM: its guest's console, or its diagnostics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Output(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ring: Mutex<Ring>,
    grown: Notify,
}

#[derive(Debug)]
struct Ring {
    bytes: VecDeque<u8>,
    keep: usize,
    /// How many bytes were ever written: the position behind the last byte of `bytes`.
    end: u64,
    closed: bool,
}

impl Output {
    /// An empty output that keeps the last `keep` bytes, at least one.
    pub(crate) fn new(keep: usize) -> Self {
        let ring = Ring { bytes: VecDeque::new(), keep: keep.max(1), end: 0, closed: false };
        Self(Arc::new(Inner { ring: Mutex::new(ring), grown: Notify::new() }))
    }

    pub(crate) fn push(&self, new: &[u8]) {
        {
            let mut ring = self.ring();
            let kept = &new[new.len().saturating_sub(ring.keep)..];
            let surplus = (ring.bytes.len() + kept.len()).saturating_sub(ring.keep);
            ring.bytes.drain(..surplus);
            ring.bytes.extend(kept);
            ring.end += new.len() as u64;
        }
        self.0.grown.notify_waiters();
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        self.ring().closed = true;
        self.0.grown.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.ring().closed
    }

    /// The bytes kept now, at most what [`crate::Launch::keep_output`] allows.
    pub fn tail(&self) -> Vec<u8> {
        self.ring().bytes.iter().copied().collect()
    }

    /// The last `most` lines kept now, oldest first, each without its line end and with bytes that are not UTF-8
    /// replaced.
    pub fn last_lines(&self, most: usize) -> Vec<String> {
        let tail = self.tail();
        let text = String::from_utf8_lossy(&tail);
        let mut lines: Vec<String> =
            text.lines().rev().filter(|line| !line.trim().is_empty()).take(most).map(str::to_owned).collect();
        lines.reverse();
        lines
    }

    /// How many bytes were written so far.
    pub fn written(&self) -> u64 {
        self.ring().end
    }

    /// A reader that starts with the oldest byte still kept.
    pub fn reader(&self) -> OutputReader {
        let ring = self.ring();
        OutputReader { position: ring.end - ring.bytes.len() as u64, output: self.clone() }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing in this file can panic with the lock held halfway through a change.
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows an [`Output`]. Independent of every other reader.
#[derive(Debug)]
pub struct OutputReader {
    output: Output,
    position: u64,
}

/// What a reader had not seen yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes that were overwritten before this reader came: they belong in front of `bytes`.
    pub lost: u64,
    /// The bytes, never empty.
    pub bytes: Vec<u8>,
}

impl OutputReader {
    /// The next bytes; waits for some. `None` when the VMM has ended and everything was read.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Chunk> {
        let output = self.output.clone();
        loop {
            let grown = output.0.grown.notified();
            let mut grown = std::pin::pin!(grown);
            // Registered before looking: what comes in between wakes us.
            grown.as_mut().enable();
            match self.take() {
                Taken::Chunk(chunk) => return Some(chunk),
                Taken::End => return None,
                Taken::NothingYet => grown.await,
            }
        }
    }

    fn take(&mut self) -> Taken {
        let ring = self.output.ring();
        let start = ring.end - ring.bytes.len() as u64;
        let lost = start.saturating_sub(self.position);
        let skip = usize::try_from(self.position.saturating_sub(start)).unwrap_or(usize::MAX);
        let bytes: Vec<u8> = ring.bytes.iter().skip(skip).copied().collect();
        if bytes.is_empty() {
            return if ring.closed { Taken::End } else { Taken::NothingYet };
        }
        let end = ring.end;
        drop(ring);
        self.position = end;
        Taken::Chunk(Chunk { lost, bytes })
    }
}

enum Taken {
    Chunk(Chunk),
    NothingYet,
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_bytes_only() {
        let output = Output::new(4);
        output.push(b"ab");
        output.push(b"cde");
        assert_eq!(output.tail(), b"bcde");
        output.push(b"0123456789");
        assert_eq!(output.tail(), b"6789");
        assert_eq!(output.written(), 15);
    }

    #[test]
    fn last_lines_are_the_newest_in_order_without_blank_ones() {
        let output = Output::new(100);
        output.push(b"one\r\n\n two\nthree\xff\n");
        assert_eq!(output.last_lines(2), [" two", "three\u{fffd}"]);
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_lost() {
        let output = Output::new(4);
        let mut reader = output.reader();
        output.push(b"ab");
        assert_eq!(reader.next().await, Some(Chunk { lost: 0, bytes: b"ab".to_vec() }));
        output.push(b"cdefgh");
        assert_eq!(reader.next().await, Some(Chunk { lost: 2, bytes: b"efgh".to_vec() }));
        output.close();
        assert_eq!(reader.next().await, None);
    }

    #[tokio::test]
    async fn a_waiting_reader_wakes_for_bytes_and_for_the_end() {
        let output = Output::new(16);
        let mut reader = output.reader();
        let waiting = tokio::spawn(async move { (reader.next().await, reader.next().await) });
        tokio::task::yield_now().await;
        output.push(b"x");
        tokio::task::yield_now().await;
        output.close();
        assert_eq!(waiting.await.unwrap(), (Some(Chunk { lost: 0, bytes: b"x".to_vec() }), None));
    }

    #[tokio::test]
    async fn a_new_reader_begins_with_what_is_kept() {
        let output = Output::new(3);
        output.push(b"abcdef");
        output.close();
        let mut reader = output.reader();
        assert_eq!(reader.next().await, Some(Chunk { lost: 0, bytes: b"def".to_vec() }));
        assert_eq!(reader.next().await, None);
    }
}
