//! The front: terminal or pipes, keys and signals on one side, the owner on the other.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitCode, ExitStatus};
use std::time::Duration;

use smartvm::MachineId;
use smartvm::terminal::Terminal;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::keys::{Action, Keys};
use super::streams::{Input, print_console, read_input};
use super::wire::{
    End, Receiver, RunRequest, Sender, StopReason, Timeline, ToFront, ToOwner, connection, control,
};
use crate::arguments::RunArguments;
use crate::exit::{self, Exit};
use crate::report::{Printer, Problem, Report, json_line};

/// Everything on the user's side of a run.
pub(crate) struct Front {
    arguments: RunArguments,
    request: RunRequest,
    terminal: Option<Terminal<BorrowedFd<'static>>>,
    printer: Printer,
    /// The owner, when it is a process of its own.
    child: Option<Child>,
    /// Why standard output took no more, when its reader had not just gone.
    output_error: Option<Report>,
    /// Whether the user did not wait for the rest of the console.
    in_haste: bool,
    /// What may not be meant so in the config.
    warnings: Vec<Problem>,
    /// How many bytes of the console were not taken in time.
    lost_bytes: u64,
    /// Whether the owner listens.
    ready: bool,
}

impl Front {
    pub(crate) fn new(
        arguments: RunArguments,
        request: RunRequest,
        terminal: Option<Terminal<BorrowedFd<'static>>>,
        printer: Printer,
        child: Option<Child>,
    ) -> Self {
        Self {
            arguments,
            request,
            terminal,
            printer,
            child,
            output_error: None,
            in_haste: false,
            warnings: Vec::new(),
            lost_bytes: 0,
            ready: false,
        }
    }
}

/// The status to exit with.
pub(crate) struct Status(u8);

/// Tells of a machine that nobody was asked to start.
pub(crate) fn not_started(printer: &Printer, id: Option<MachineId>, report: Report) -> Status {
    let end = End::not_started(id, report);
    match &end.error {
        Some(report) if !printer.json => printer.error(report),
        _ => {
            let _ = io::stderr().write_all(json_line(&end).as_bytes());
        }
    }
    Status(end.exit_status)
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        status.0.into()
    }
}

impl Front {
    /// Runs until the machine has ended and its console was printed, or it was detached.
    pub(crate) async fn run(mut self, control_stream: UnixStream, data: UnixStream) -> Status {
        let connected = control(control_stream).and_then(|control| Ok((control, connection(data)?)));
        let (signals, ((from_owner, mut to_owner), data)) = match (Signals::listen(), connected) {
            (Ok(signals), Ok(connected)) => (signals, connected),
            (Err(error), _) | (_, Err(error)) => {
                let report = Report::plain("HOST", "cannot connect to the machine's owner", Exit::Internal);
                self.printer.error(&report.because(&error));
                return Status(Exit::Internal.status());
            }
        };
        to_owner.send(&ToOwner::Run(Box::new(self.request.clone()))).await;
        let (from_data, to_data) = data.into_split();
        let (console, printed) = print_console(from_data);
        let is_terminal = self.terminal.is_some();
        let mut session = Session {
            keys: Keys::new(self.arguments.escape, self.arguments.pass_ctrl_c),
            typed: read_input(to_data, is_terminal),
            to_owner,
            signals,
            output_gone: printed.gone,
            asked: false,
            patience: None,
        };
        let outcome = self.converse(&mut session, from_owner).await;
        // Until here everything came in raw; from here on lines are lines.
        let outcome = self.drain(outcome, &mut session, console, printed.done).await;
        if let Some(terminal) = &mut self.terminal {
            terminal.restore();
        }
        self.tell(outcome)
    }

    /// Passes things between user and owner until the run is over.
    async fn converse(&mut self, session: &mut Session, mut from_owner: Receiver) -> Outcome {
        loop {
            tokio::select! {
                biased;
                message = from_owner.next::<ToFront>() => match message {
                    None => return Outcome::OwnerGone,
                    Some(ToFront::Ready { .. }) => {
                        self.ready = true;
                        self.enter_raw();
                    }
                    Some(ToFront::Started { id, warnings }) => {
                        if !warnings.is_empty() && !self.printer.json {
                            self.say_in_raw(|printer| printer.warnings(&warnings, true));
                        }
                        self.warnings = warnings;
                        if self.arguments.detach {
                            session.to_owner.send(&ToOwner::Detach).await;
                        } else {
                            tracing::info!(%id, "runs");
                        }
                    }
                    // Told at the end: a terminal that is behind already would make us wait, deaf to keys.
                    Some(ToFront::Lost { bytes }) => self.lost_bytes += bytes,
                    Some(ToFront::Detached { id, pid, console_log }) => {
                        return Outcome::Detached(format!(
                            "machine `{id}` runs on in the background, owned by process {pid}\n  console: {}\n     stop: smartvm stop {id}",
                            PathBuf::from(&console_log).display()
                        ), id);
                    }
                    Some(ToFront::Ended(end)) => return Outcome::Ended(end),
                },
                event = session.next() => self.act(event, session).await,
            }
        }
    }

    async fn act(&mut self, event: Event, session: &mut Session) {
        match event {
            Event::Stop(reason) => {
                // The guest may take its time, and a silent terminal looks as if the key had not been taken.
                let by_key = matches!(reason, StopReason::Interrupt | StopReason::Asked);
                if by_key && !session.asked && self.terminal.is_some() {
                    self.say_in_raw(|printer| printer.note("stopping; the same key once more kills"));
                }
                session.stop(reason).await;
            }
            Event::Kill => {
                session.be_impatient();
                session.to_owner.send(&ToOwner::Kill).await;
            }
            Event::OutputGone(error) => {
                self.output_gone(error);
                session.stop(StopReason::OutputClosed).await;
            }
            Event::OwnerSilent => {
                if let Some(owner) = &mut self.child {
                    // The kernel ends its VMM with it.
                    let _ = owner.kill();
                }
            }
            Event::Detach => {
                session.to_owner.send(&ToOwner::Detach).await;
            }
            Event::Help => {
                let help = session.keys.help();
                self.say_in_raw(|printer| printer.note(&help));
            }
            // A shell that stopped us with SIGSTOP has had the terminal in between.
            Event::Continued => {
                if self.terminal.as_ref().is_some_and(Terminal::is_raw) {
                    self.enter_raw();
                }
            }
            Event::Suspend => {
                if let Some(terminal) = &mut self.terminal
                    && let Err(error) = terminal.suspend()
                {
                    tracing::debug!(%error, "the terminal is gone");
                }
            }
        }
    }

    /// Remembers why: who only wanted the beginning of the console knows, but a full disk is news.
    fn output_gone(&mut self, error: io::Error) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            let report = Report::plain("HOST", "cannot write the console to standard output", Exit::Internal);
            self.output_error = Some(report.because(&error));
        }
    }

    fn enter_raw(&mut self) {
        if self.arguments.detach {
            return;
        }
        if let Some(terminal) = &mut self.terminal
            && let Err(error) = terminal.make_raw()
        {
            tracing::warn!(%error, "the terminal stays as it is");
        }
    }

    /// Says something of our own between the guest's lines: with the terminal as a shell has it, for a moment.
    fn say_in_raw(&mut self, say: impl FnOnce(&Printer)) {
        let raw = self.terminal.as_ref().is_some_and(Terminal::is_raw);
        if raw && let Some(terminal) = &mut self.terminal {
            let _ = io::stderr().write_all(b"\r\n");
            terminal.restore();
        }
        say(&self.printer);
        if raw {
            self.enter_raw();
        }
    }

    /// Waits until everything the guest said was printed. Asking to stop once more leaves without it.
    async fn drain(
        &mut self,
        outcome: Outcome,
        session: &mut Session,
        console: tokio::task::JoinHandle<()>,
        done: tokio::sync::oneshot::Receiver<()>,
    ) -> Outcome {
        let drained = async {
            let _ = console.await;
            let _ = done.await;
        };
        let mut drained = std::pin::pin!(drained);
        loop {
            tokio::select! {
                () = &mut drained => return outcome,
                event = session.next() => match event {
                    Event::Stop(_) | Event::Kill => {
                        // It ends when it sees that nobody takes the rest; to wait for that would be to wait for ever.
                        self.child = None;
                        self.in_haste = true;
                        return outcome;
                    }
                    Event::OutputGone(error) => self.output_gone(error),
                    Event::OwnerSilent
                    | Event::Help
                    | Event::Detach
                    | Event::Suspend
                    | Event::Continued => {}
                },
            }
        }
    }

    /// Says how it ended.
    fn tell(mut self, outcome: Outcome) -> Status {
        match outcome {
            // A terminal that takes no console takes no words of ours either: they would keep us for ever.
            Outcome::Ended(end) if self.in_haste && self.terminal.is_some() => Status(end.exit_status),
            Outcome::Detached(text, id) => {
                if self.printer.json {
                    let line = serde_json::json!({
                        "id": id, "how": "detached", "exit_status": 0, "warnings": self.warnings,
                    });
                    let _ = io::stderr().write_all(json_line(&line).as_bytes());
                } else {
                    self.printer.note(&text);
                }
                Status(Exit::Success.status())
            }
            Outcome::Ended(mut end) => {
                self.reap();
                if !self.arguments.timeline {
                    end.timeline = None;
                }
                if let (Some(report), None) = (self.output_error.take(), &end.error) {
                    if end.exit_status == Exit::Success.status() {
                        end.exit_status = report.exit_status;
                    }
                    end.error = Some(Report { exit_status: end.exit_status, ..report });
                }
                (end.warnings, end.lost_bytes) = (std::mem::take(&mut self.warnings), self.lost_bytes);
                if self.printer.json {
                    let _ = io::stderr().write_all(json_line(&end).as_bytes());
                } else {
                    self.tell_end(&end);
                }
                Status(end.exit_status)
            }
            Outcome::OwnerGone => {
                let status = self.reap();
                // Ctrl-C in its first milliseconds reaches it as it reaches us.
                if let Some(number) = status.and_then(|status| status.signal()).filter(|_| !self.ready)
                    && let Some(exit) = Exit::on_signal(number)
                {
                    let how = "stopped before the guest ran".to_owned();
                    let (id, exit_status) = (self.arguments.id.clone(), exit.status());
                    return self.tell(Outcome::Ended(Box::new(End {
                        id,
                        how,
                        exit_status,
                        ..End::default()
                    })));
                }
                let how = status.map_or_else(String::new, |status| format!(" ({status})"));
                let mut report = Report::plain(
                    "HOST",
                    format!("the machine's owner ended unexpectedly{how}"),
                    Exit::Internal,
                );
                report.hint = Some("its VMM ended with it; `smartvm gc` removes what is left".into());
                self.printer.error(&report);
                Status(Exit::Internal.status())
            }
        }
    }

    fn tell_end(&self, end: &End) {
        if let Some(report) = &end.error {
            self.printer.error(report);
        } else if end.exit_status == 128 + exit::KILL || end.exit_status == 128 + exit::INTERRUPT {
            self.printer.note(&end.how);
        } else {
            tracing::info!(how = end.how, "ended");
        }
        if self.lost_bytes > 0 {
            let lost = self.lost_bytes;
            self.printer.note(&format!("{lost} bytes of the console are missing: nobody took them in time"));
        }
        if let Some(timeline) = &end.timeline {
            let _ = io::stderr().write_all(timeline.table().as_bytes());
        }
    }

    /// The owner has said its last word, or lost its voice: it ends in a moment.
    fn reap(&mut self) -> Option<ExitStatus> {
        let status = self.child.take()?.wait().ok()?;
        (!status.success()).then_some(status)
    }
}

impl Timeline {
    fn table(&self) -> String {
        let mut table = "timeline, ms after the VMM was asked for:\n".to_owned();
        let mut row = |name: &str, ms: Option<f64>| {
            table += &match ms {
                Some(ms) => format!("  {ms:>10.1}  {name}\n"),
                None => format!("  {:>10}  {name}\n", "never"),
            };
        };
        row("process: Firecracker runs", Some(self.process_ms));
        row("socket: its API socket takes a connection", self.socket_ms);
        row("InstanceStart: the API answers, the guest runs", self.instance_start_ms);
        row("first guest byte on the console", self.first_byte_ms);
        for mark in &self.marks {
            row(&format!("console says {:?}", mark.text), mark.ms);
        }
        row("end: everything is released", Some(self.end_ms));
        table
    }
}

enum Outcome {
    Ended(Box<End>),
    Detached(String, MachineId),
    OwnerGone,
}

/// What the user or the system wants.
enum Event {
    Stop(StopReason),
    Kill,
    Detach,
    Help,
    Suspend,
    Continued,
    /// Standard output takes no more.
    OutputGone(io::Error),
    /// The owner was told to kill the machine, and has not.
    OwnerSilent,
}

/// How long an owner may take to kill its machine before it is killed itself.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

struct Session {
    keys: Keys,
    typed: Input,
    to_owner: Sender,
    signals: Signals,
    output_gone: mpsc::Receiver<io::Error>,
    /// Whether a stop was asked for.
    asked: bool,
    /// Until when the owner has to follow a kill.
    patience: Option<Instant>,
}

impl Session {
    async fn stop(&mut self, reason: StopReason) {
        // That nobody reads the output is said once, and does not turn a stop into a kill.
        if reason == StopReason::OutputClosed && self.asked {
            return;
        }
        if self.asked && matches!(reason, StopReason::Interrupt | StopReason::Asked) {
            self.be_impatient();
        }
        self.asked = true;
        self.to_owner.send(&ToOwner::Stop(reason)).await;
    }

    fn be_impatient(&mut self) {
        self.patience.get_or_insert_with(|| Instant::now() + KILL_PATIENCE);
    }

    async fn next(&mut self) -> Event {
        loop {
            while let Some(action) = self.typed.pending.pop_front() {
                match action {
                    Action::Type(bytes) => self.typed.forward(bytes),
                    Action::Interrupt => return Event::Stop(StopReason::Interrupt),
                    Action::Stop => return Event::Stop(StopReason::Asked),
                    Action::Kill => return Event::Kill,
                    Action::Detach => return Event::Detach,
                    Action::Help => return Event::Help,
                }
            }
            let silence = async {
                match self.patience {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.signals.next() => return event,
                Some(error) = self.output_gone.recv() => return Event::OutputGone(error),
                () = silence => {
                    self.patience = None;
                    return Event::OwnerSilent;
                }
                Some(bytes) = self.typed.keys.recv() => self.typed.pending.extend(self.keys.read(&bytes)),
                Ok(room) = self.typed.to_guest.reserve(), if !self.typed.backlog.is_empty() => {
                    room.send(self.typed.backlog.take());
                }
            }
        }
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    /// Only where a terminal is to be given back in between: suspended and continued.
    job: Option<(Signal, Signal)>,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        use std::io::IsTerminal;
        let of = |number| signal(SignalKind::from_raw(number));
        let job = match io::stdin().is_terminal() {
            true => Some((of(SIGTSTP)?, of(SIGCONT)?)),
            false => None,
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            job,
        })
    }

    async fn next(&mut self) -> Event {
        let job = async {
            match &mut self.job {
                Some((suspend, go_on)) => tokio::select! {
                    _ = suspend.recv() => Event::Suspend,
                    _ = go_on.recv() => Event::Continued,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Event::Stop(StopReason::Interrupt),
            _ = self.terminate.recv() => Event::Stop(StopReason::Terminate),
            _ = self.hang_up.recv() => Event::Stop(StopReason::HangUp),
            _ = self.quit.recv() => Event::Kill,
            event = job => event,
        }
    }
}

/// The signal of Ctrl+Z, on every Linux but alpha, mips and sparc.
const SIGTSTP: i32 = 20;
/// The signal of a shell's `fg`, on the same.
const SIGCONT: i32 = 18;
