//! The front: terminal or pipes, keys and signals on one side, the owner on the other.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitCode};
use std::thread;
use std::time::Duration;

use smartvm::MachineId;
use smartvm::terminal::Terminal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::{Instant, sleep_until};

use super::keys::{Action, Keys};
use super::wire::{
    End, Receiver, RunRequest, Sender, StopReason, Timeline, ToFront, ToOwner, connection, control,
};
use crate::arguments::RunArguments;
use crate::exit::{self, Exit};
use crate::report::{Printer, Report, json_line};

/// Everything on the user's side of a run.
pub(crate) struct Front {
    pub(crate) arguments: RunArguments,
    pub(crate) request: RunRequest,
    pub(crate) terminal: Option<Terminal<BorrowedFd<'static>>>,
    pub(crate) printer: Printer,
    /// The owner, when it is a process of its own.
    pub(crate) child: Option<Child>,
    /// Why standard output took no more, when its reader had not just gone.
    pub(crate) output_error: Option<Report>,
    /// Whether the user did not wait for the rest of the console.
    pub(crate) in_haste: bool,
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
                    Some(ToFront::Ready { .. }) => self.enter_raw(),
                    Some(ToFront::Started { id, warnings }) => {
                        if !warnings.is_empty() {
                            self.say_in_raw(|printer| printer.warnings(&warnings, true));
                        }
                        if self.arguments.detach {
                            session.to_owner.send(&ToOwner::Detach).await;
                        } else {
                            tracing::info!(%id, "runs");
                        }
                    }
                    Some(ToFront::Lost { bytes }) => self.say_in_raw(|printer| {
                        printer.note(&format!("{bytes} bytes of the console are missing: nobody took them in time"));
                    }),
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
            Event::Stop(reason) => session.stop(reason).await,
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
                    Event::OwnerSilent | Event::Help | Event::Detach | Event::Suspend => {}
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
                    let line = serde_json::json!({"id": id, "how": "detached", "exit_status": 0});
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
                if self.printer.json {
                    let _ = io::stderr().write_all(json_line(&end).as_bytes());
                } else {
                    self.tell_end(&end);
                }
                Status(end.exit_status)
            }
            Outcome::OwnerGone => {
                let how = self.reap();
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
        if let Some(timeline) = &end.timeline {
            let _ = io::stderr().write_all(timeline.table().as_bytes());
        }
    }

    /// The owner has said its last word, or lost its voice: it ends in a moment.
    fn reap(&mut self) -> String {
        match self.child.take().map(|mut child| child.wait()) {
            Some(Ok(status)) if !status.success() => format!(" ({status})"),
            _ => String::new(),
        }
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

/// Standard input, read by a thread: a terminal shared with a shell must not be made non-blocking.
struct Input {
    /// What was typed on a terminal, to be looked at for keys of ours.
    keys: mpsc::Receiver<Vec<u8>>,
    pending: VecDeque<Action>,
    /// Bytes on their way to the owner.
    to_guest: mpsc::Sender<Vec<u8>>,
    /// Bytes that wait for room on that way.
    backlog: Backlog,
}

impl Input {
    /// A guest takes typed bytes at its own pace: what was pasted waits here, and keys of ours behind it are heard.
    fn forward(&mut self, bytes: Vec<u8>) {
        if !self.backlog.is_empty() {
            self.backlog.add(bytes);
        } else if let Err(TrySendError::Full(bytes)) = self.to_guest.try_send(bytes) {
            self.backlog.add(bytes);
        }
    }
}

/// Typed bytes that wait. More than [`Backlog::LIMIT`] are dropped with a bell, as a full terminal does.
#[derive(Debug, Default)]
struct Backlog {
    chunks: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Backlog {
    const LIMIT: usize = 16 << 20;

    fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn add(&mut self, bytes: Vec<u8>) {
        if self.bytes + bytes.len() > Self::LIMIT {
            let _ = io::stderr().write_all(b"\x07");
            return;
        }
        self.bytes += bytes.len();
        self.chunks.push_back(bytes);
    }

    fn take(&mut self) -> Vec<u8> {
        let chunk = self.chunks.pop_front().unwrap_or_default();
        self.bytes -= chunk.len();
        chunk
    }
}

fn read_input(to_data: OwnedWriteHalf, is_terminal: bool) -> Input {
    let (to_guest, from_user) = mpsc::channel(64);
    let (typed, keys) = mpsc::channel(64);
    let target = if is_terminal { typed } else { to_guest.clone() };
    // Through a pipe the channel and then the owner's connection fill up, and the thread waits: back-pressure.
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if target.blocking_send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    tokio::spawn(forward_input(from_user, to_data));
    if is_terminal {
        Input { keys, pending: VecDeque::new(), to_guest, backlog: Backlog::default() }
    } else {
        // Nobody else may hold the channel open: its end is the end of the guest's input.
        let (unused, _) = mpsc::channel(1);
        Input { keys, pending: VecDeque::new(), to_guest: unused, backlog: Backlog::default() }
    }
}

async fn forward_input(mut from_user: mpsc::Receiver<Vec<u8>>, mut to_data: OwnedWriteHalf) {
    while let Some(bytes) = from_user.recv().await {
        if to_data.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The end of our input is the end of the guest's, and of nothing else.
    let _ = to_data.shutdown().await;
}

struct Printed {
    /// Comes once, when standard output takes no more.
    gone: mpsc::Receiver<io::Error>,
    /// Resolves when everything was printed, or cannot be.
    done: tokio::sync::oneshot::Receiver<()>,
}

/// Standard output, written by a thread: a slow reader must not keep signals and keys from being heard.
fn print_console(mut from_data: OwnedReadHalf) -> (tokio::task::JoinHandle<()>, Printed) {
    let (to_thread, mut from_task) = mpsc::channel::<Vec<u8>>(8);
    let (say_gone, gone) = mpsc::channel(1);
    let (say_done, done) = tokio::sync::oneshot::channel();
    thread::spawn(move || {
        let mut out = io::stdout();
        while let Some(bytes) = from_task.blocking_recv() {
            if let Err(error) = out.write_all(&bytes).and_then(|()| out.flush()) {
                let _ = say_gone.try_send(error);
                break;
            }
        }
        let _ = say_done.send(());
    });
    let task = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from_data.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                // When nobody prints any more the owner must not be made to wait: read on.
                Ok(count) => drop(to_thread.send(buffer[..count].to_vec()).await),
            }
        }
    });
    (task, Printed { gone, done })
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    suspend: Option<Signal>,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        use std::io::IsTerminal;
        let suspend = io::stdin().is_terminal().then(|| signal(SignalKind::from_raw(SIGTSTP))).transpose()?;
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            suspend,
        })
    }

    async fn next(&mut self) -> Event {
        let suspend = async {
            match &mut self.suspend {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Event::Stop(StopReason::Interrupt),
            _ = self.terminate.recv() => Event::Stop(StopReason::Terminate),
            _ = self.hang_up.recv() => Event::Stop(StopReason::HangUp),
            _ = self.quit.recv() => Event::Kill,
            _ = suspend => Event::Suspend,
        }
    }
}

/// The signal of Ctrl+Z, on every Linux but alpha, mips and sparc.
const SIGTSTP: i32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> (Input, mpsc::Receiver<Vec<u8>>) {
        let (to_guest, from_user) = mpsc::channel(2);
        let (_, keys) = mpsc::channel(1);
        (Input { keys, pending: VecDeque::new(), to_guest, backlog: Backlog::default() }, from_user)
    }

    #[tokio::test]
    async fn what_is_pasted_faster_than_the_guest_reads_comes_whole_and_in_order() {
        let (mut input, mut guest) = input();
        for chunk in 0..200 {
            input.forward(vec![chunk; 4096]);
        }
        let mut came = Vec::new();
        while let Ok(chunk) = guest.try_recv() {
            came.push(chunk[0]);
            if !input.backlog.is_empty() {
                input.to_guest.reserve().await.unwrap().send(input.backlog.take());
            }
        }
        assert_eq!(came, (0..200).collect::<Vec<u8>>());
        assert_eq!(input.backlog.bytes, 0);
    }

    #[test]
    fn what_waits_for_a_guest_that_reads_nothing_has_a_bound() {
        let (mut input, _guest) = input();
        for _ in 0..20 {
            input.forward(vec![b'x'; 1 << 20]);
        }
        assert_eq!(input.backlog.bytes, Backlog::LIMIT);
    }
}
