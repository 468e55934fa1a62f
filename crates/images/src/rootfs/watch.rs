//! Being stopped, and saying how far it is.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::blocking::Abandoned;
use crate::progress::{Progress, Task};

/// What the work looks at at each read: whether anybody still waits for it; and where it tells how much of its
/// sources it has read. Each source is read twice.
#[derive(Debug)]
pub(super) struct Watch {
    abandoned: Abandoned,
    task: Mutex<Task>,
    progress: Progress,
}

impl Watch {
    pub(super) fn new(abandoned: &Abandoned, progress: &Progress, what: &str, bytes: Option<u64>) -> Self {
        let task = Mutex::new(progress.task(what, bytes));
        Self { abandoned: abandoned.clone(), task, progress: progress.clone() }
    }

    /// Notes bytes read. An error when nobody waits any more.
    pub(super) fn advance(&self, bytes: u64) -> io::Result<()> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner).advance(bytes);
        // Not `Interrupted`: readers of the standard library would try again for ever.
        if self.stopped() { Err(io::Error::other("stopped")) } else { Ok(()) }
    }

    /// Something worth a line.
    pub(super) fn note(&self, text: impl Into<String>) {
        self.progress.note(text);
    }

    /// Whether to stop.
    pub(super) fn stopped(&self) -> bool {
        self.abandoned.is()
    }
}
