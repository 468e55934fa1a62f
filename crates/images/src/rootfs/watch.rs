//! Being stopped, and saying how far it is.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How often progress is told, in bytes.
const STEP: u64 = 1 << 20;

/// What work looks at now and then: whether to stop; and where it says how many bytes of its sources it
/// has read. Each source is read twice.
pub struct Watch {
    stop: Arc<AtomicBool>,
    done: AtomicU64,
    told: AtomicU64,
    report: Option<Box<dyn Fn(u64) + Send + Sync>>,
}

impl Watch {
    /// Nobody watches, nothing stops.
    pub fn none() -> Self {
        Self::new(Arc::default(), None)
    }

    /// Stops when the flag is set; tells the bytes read so far.
    pub fn new(stop: Arc<AtomicBool>, report: Option<Box<dyn Fn(u64) + Send + Sync>>) -> Self {
        Self { stop, done: AtomicU64::new(0), told: AtomicU64::new(0), report }
    }

    /// Notes bytes read. An error when it is time to stop.
    pub(super) fn advance(&self, bytes: u64) -> io::Result<()> {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(report) = &self.report
            && done >= self.told.load(Ordering::Relaxed) + STEP
        {
            self.told.store(done, Ordering::Relaxed);
            report(done);
        }
        // Not `Interrupted`: readers of the standard library would try again for ever.
        if self.stopped() { Err(io::Error::other("stopped")) } else { Ok(()) }
    }

    /// Whether to stop.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("stopped", &self.stopped()).field("done", &self.done).finish()
    }
}
