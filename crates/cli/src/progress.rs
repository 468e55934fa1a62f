//! How long work is drawn: bars on a terminal, a line for each step in a pipe, nothing with `--json`.
//!
//! All of it goes to standard error; standard output carries results.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use smartvm::images::progress::{Event, Progress};

use crate::report::{Printer, on_one_line};
use crate::table::size;

/// Work that ends sooner is not drawn: a flicker tells nobody anything.
const WORTH_A_BAR: Duration = Duration::from_millis(300);

/// Draws what it is told, until it is dropped.
pub(crate) struct Drawing {
    progress: Progress,
    bars: Option<Arc<Bars>>,
    /// Dropped, it ends the thread that brings up bars.
    _end: Option<Sender<()>>,
}

impl Drawing {
    /// As fits where standard error goes.
    pub(crate) fn new(printer: &Printer) -> Self {
        if printer.json {
            return Self { progress: Progress::none(), bars: None, _end: None };
        }
        if !io::stderr().is_terminal() {
            let printer = *printer;
            return Self {
                progress: Progress::new(move |event| tell(&printer, &event)),
                bars: None,
                _end: None,
            };
        }
        let bars = Arc::new(Bars { multi: MultiProgress::new(), open: Mutex::default(), printer: *printer });
        let heard = Arc::clone(&bars);
        let (end, ended) = channel::<()>();
        let ticking = Arc::clone(&bars);
        let ticker = std::thread::Builder::new().name("progress".into()).spawn(move || {
            while ended.recv_timeout(WORTH_A_BAR / 3) == Err(RecvTimeoutError::Timeout) {
                ticking.tick();
            }
        });
        if let Err(error) = ticker {
            tracing::debug!(%error, "without bars");
        }
        Self { progress: Progress::new(move |event| heard.hear(event)), bars: Some(bars), _end: Some(end) }
    }

    /// What the library is to tell.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        if let Some(bars) = &self.bars {
            bars.open().clear();
            // A terminal that is gone has nothing to clear.
            let _ = bars.multi.clear();
        }
    }
}

/// One line for each step and each thing worth saying.
fn tell(printer: &Printer, event: &Event) {
    match event {
        Event::Started { what, total: Some(total) } => {
            printer.note(&on_one_line(&format!("{what} ({})", size(*total))));
        }
        Event::Started { what, total: None } => printer.note(&on_one_line(what)),
        Event::Note { text } => printer.note(&on_one_line(text)),
        Event::Warning { text } => printer.note(&on_one_line(&format!("warning: {text}"))),
        _ => {}
    }
}

/// The bars on a terminal: one for each piece of work that is under way.
struct Bars {
    multi: MultiProgress,
    open: Mutex<HashMap<Arc<str>, Open>>,
    printer: Printer,
}

/// A piece of work that is under way.
struct Open {
    begun: Instant,
    bar: ProgressBar,
    shown: bool,
}

impl Bars {
    fn open(&self) -> MutexGuard<'_, HashMap<Arc<str>, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: Event) {
        match event {
            Event::Started { what, total } => {
                let bar = ProgressBar::hidden();
                match total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
                bar.set_style(style(total.is_some()));
                bar.set_message(on_one_line(&what));
                let open = Open { begun: Instant::now(), bar, shown: false };
                if let Some(before) = self.open().insert(what, open) {
                    before.bar.finish_and_clear();
                }
            }
            Event::Advanced { what, done } => {
                if let Some(open) = self.open().get(&what) {
                    open.bar.set_position(done);
                }
            }
            Event::Finished { what } => {
                let ended = self.open().remove(&what);
                if let Some(open) = ended {
                    open.bar.finish_and_clear();
                    self.multi.remove(&open.bar);
                    // Work that was interrupted ends before its total: nothing is to be said to be done.
                    let whole = open.bar.length().is_none_or(|total| open.bar.position() >= total);
                    if open.shown && whole {
                        let took = open.begun.elapsed().as_secs_f64();
                        let done = size(open.bar.position());
                        self.say(&on_one_line(&format!("{what}: {done} in {took:.1} s")));
                    }
                }
            }
            Event::Note { text } => self.say(&on_one_line(&text)),
            Event::Warning { text } => self.say(&on_one_line(&format!("warning: {text}"))),
            _ => {}
        }
    }

    /// A line above the bars.
    fn say(&self, text: &str) {
        self.multi.suspend(|| self.printer.note(text));
        let _ = io::stderr().flush();
    }

    /// Brings up the bars of work that has lasted, and lets those spin that do not move.
    fn tick(&self) {
        for open in self.open().values_mut() {
            if !open.shown && open.begun.elapsed() >= WORTH_A_BAR {
                open.shown = true;
                open.bar = self.multi.add(open.bar.clone());
                // What came before it was shown is not what it does now.
                open.bar.reset_eta();
            }
            if open.shown {
                open.bar.tick();
            }
        }
    }
}

fn style(total: bool) -> ProgressStyle {
    let template = match total {
        true => {
            "{msg:40!} [{bar:24}] {binary_bytes:>10} of {binary_total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>4}"
        }
        false => "{msg:40!} {spinner} {binary_bytes:>10} {binary_bytes_per_sec:>12}",
    };
    // The templates are ours, and a test draws both.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .tick_chars("|/-\\ ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::{InMemoryTerm, ProgressDrawTarget};

    #[test]
    fn several_pieces_of_work_have_a_bar_each_with_total_speed_and_the_time_that_is_left() {
        let term = InMemoryTerm::new(10, 120);
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        let bars = Bars {
            multi: MultiProgress::with_draw_target(target),
            open: Mutex::default(),
            printer: Printer { json: false, colour: false },
        };
        for (what, total) in [("layer one", Some(2 << 20)), ("layer two", None)] {
            bars.hear(Event::Started { what: what.into(), total });
            bars.hear(Event::Advanced { what: what.into(), done: 1 << 20 });
        }
        bars.tick();
        assert_eq!(term.contents(), "", "not yet worth a bar");
        for open in bars.open().values_mut() {
            open.begun -= WORTH_A_BAR;
        }
        bars.tick();
        let drawn = term.contents();
        let lines: Vec<&str> = drawn.lines().collect();
        assert_eq!(lines.len(), 2, "{drawn}");
        let one = lines.iter().find(|line| line.starts_with("layer one ")).unwrap();
        assert!(one.contains("[===") && one.contains("1.00 MiB of 2.00 MiB") && one.contains("/s"), "{one}");
        let two = lines.iter().find(|line| line.starts_with("layer two ")).unwrap();
        assert!(two.contains("1.00 MiB") && two.contains("/s"), "{two}");
        bars.hear(Event::Finished { what: "layer one".into() });
        assert!(!term.contents().contains("layer one ["), "{}", term.contents());
    }
}
