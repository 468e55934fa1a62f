//! What a command comes to: an exit status, or an error to tell.

use std::future::Future;
use std::process::ExitCode;

use smartvm::explain::Explain;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{self, Exit};
use crate::report::{Printer, Report};

/// An error, ready to be told.
#[derive(Debug)]
pub(crate) struct Failure(Box<Report>);

impl Failure {
    /// The error.
    pub(crate) fn into_report(self) -> Report {
        *self.0
    }
}

/// What a command comes to.
pub(crate) type Outcome = Result<Exit, Failure>;

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        Report::of(&error).into()
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self(Box::new(report))
    }
}

/// Tells an error, if there is one, and answers the status.
pub(crate) fn end(outcome: Outcome, printer: &Printer) -> ExitCode {
    match outcome {
        Ok(exit) => exit.into(),
        Err(Failure(report)) => {
            printer.error(&report);
            report.exit_status.into()
        }
    }
}

/// Does `work`, and drops it when SIGINT (Ctrl-C), SIGTERM or SIGHUP comes.
pub(crate) async fn until_signal<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let kinds = [
        (exit::INTERRUPT, SignalKind::interrupt()),
        (exit::TERMINATE, SignalKind::terminate()),
        (exit::HANG_UP, SignalKind::hangup()),
    ];
    let [interrupt, terminate, hang_up] = kinds.map(|(number, kind)| async move {
        match signal(kind) {
            Ok(mut signals) => drop(signals.recv().await),
            // Then the signal does what it does to every program: it ends us at once.
            Err(error) => {
                tracing::debug!(%error, number, "cannot wait for a signal");
                std::future::pending::<()>().await;
            }
        }
        number
    });
    let number = tokio::select! {
        biased;
        number = interrupt => number,
        number = terminate => number,
        number = hang_up => number,
        done = work => return done,
    };
    let mut report = Report::plain("INTERRUPTED", "stopped on request", Exit::Signal(number));
    report.hint = Some("the same command goes on with what has been received".into());
    Err(report.into())
}
