//! What long work says while it runs: how far it is, and what is worth a line.
//!
//! The library only tells; whoever gave the [`Progress`] draws, counts or ignores. Events come from any thread, in
//! the order in which one piece of work makes them; pieces of work that run side by side interleave.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often one piece of work says how far it is, at most.
const PACE: Duration = Duration::from_millis(50);

/// One thing that long work tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A piece of work began. `what` is its name until [`Event::Finished`].
    Started {
        /// A short name for people, such as "download vmlinux-6.1.bin".
        what: Arc<str>,
        /// How many bytes it will be; `None` when nobody knows.
        total: Option<u64>,
    },
    /// So many bytes of it are done. Never goes back, except when the work began anew.
    Advanced {
        /// The name that [`Event::Started`] gave.
        what: Arc<str>,
        /// In bytes, from its beginning.
        done: u64,
    },
    /// It ended, well or badly: how, its result says.
    Finished {
        /// The name that [`Event::Started`] gave.
        what: Arc<str>,
    },
    /// Something worth a line that is no cause for concern: a retry, a mirror, a wait.
    Note {
        /// One sentence without a full stop.
        text: String,
    },
    /// Something the user should know before or because it has consequences: what will be evicted.
    Warning {
        /// One sentence without a full stop.
        text: String,
    },
}

type Listener = dyn Fn(Event) + Send + Sync;

/// Where events go. A cheap handle: clone it freely.
#[derive(Clone, Default)]
pub struct Progress {
    listener: Option<Arc<Listener>>,
}

impl Progress {
    /// Nobody listens.
    pub const fn none() -> Self {
        Self { listener: None }
    }

    /// `listener` is called for each event, on the thread where it happens: it must be quick and may not block.
    pub fn new(listener: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self { listener: Some(Arc::new(listener)) }
    }

    /// Tells one event.
    pub fn tell(&self, event: Event) {
        if let Some(listener) = &self.listener {
            listener(event);
        }
    }

    /// Tells something worth a line.
    pub fn note(&self, text: impl Into<String>) {
        self.tell(Event::Note { text: text.into() });
    }

    /// Tells something that has consequences.
    pub fn warn(&self, text: impl Into<String>) {
        self.tell(Event::Warning { text: text.into() });
    }

    /// Begins a piece of work of `total` bytes. It is finished when the answer is dropped.
    pub fn task(&self, what: impl Into<Arc<str>>, total: Option<u64>) -> Task {
        let what = what.into();
        self.tell(Event::Started { what: Arc::clone(&what), total });
        Task { progress: self.clone(), what, done: 0, told: 0, at: Instant::now() }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.listener.is_some() { "Progress(heard)" } else { "Progress(none)" })
    }
}

/// A piece of work that is under way. It may be told of every byte: it passes on at most twenty events a second.
#[derive(Debug)]
pub struct Task {
    progress: Progress,
    what: Arc<str>,
    done: u64,
    told: u64,
    at: Instant,
}

impl Task {
    /// `bytes` more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.set(self.done.saturating_add(bytes));
    }

    /// `done` bytes are done in all. Less than before means that the work began anew.
    pub fn set(&mut self, done: u64) {
        let anew = done < self.done;
        self.done = done;
        if self.progress.listener.is_some() && (anew || self.at.elapsed() >= PACE) {
            self.at = Instant::now();
            self.tell();
        }
    }

    /// Bytes done so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    fn tell(&mut self) {
        self.told = self.done;
        self.progress.tell(Event::Advanced { what: Arc::clone(&self.what), done: self.done });
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.told != self.done {
            self.tell();
        }
        self.progress.tell(Event::Finished { what: Arc::clone(&self.what) });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn heard(work: impl FnOnce(&Progress)) -> Vec<Event> {
        let events = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&events);
        work(&Progress::new(move |event| to.lock().unwrap().push(event)));
        std::mem::take(&mut events.lock().unwrap())
    }

    #[test]
    fn a_task_tells_its_begin_its_end_and_how_far_it_came_in_few_events() {
        let events = heard(|progress| {
            let mut task = progress.task("a file", Some(1_000_000));
            for _ in 0..100_000 {
                task.advance(10);
            }
        });
        assert_eq!(events.first(), Some(&Event::Started { what: "a file".into(), total: Some(1_000_000) }));
        let [.., last, end] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(*last, Event::Advanced { what: "a file".into(), done: 1_000_000 });
        assert_eq!(*end, Event::Finished { what: "a file".into() });
        assert!(events.len() < 100, "{} events", events.len());
    }

    #[test]
    fn work_that_begins_anew_says_so_at_once() {
        let events = heard(|progress| {
            let mut task = progress.task("a file", None);
            task.set(500);
            task.set(0);
        });
        assert!(events.contains(&Event::Advanced { what: "a file".into(), done: 0 }), "{events:?}");
    }
}
