//! The owner: drives one machine, answers the front, and outlives it when told to.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::IgnoredAny;
use smartvm::explain::Code;
use smartvm::image_machine::{ReportFilter, guest};
use smartvm::machine::Released;
use smartvm::terminal::Terminal;
use smartvm::{
    Checked, Config, ConsoleInput, Directories, FirecrackerBinary, Host, ImageMachine, Ladder, LogOptions,
    Machine, Rung, Seccomp, StartOptions, StopError, check_config, find_firecracker,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::wire::{
    End, HostPath, Mark, ReadConfig, Receiver, RunRequest, Sender, StopReason, Timeline, ToFront, ToOwner,
    What, connection, control,
};
use super::{image, marks, relay};
use crate::exit::{self, Exit};
use crate::report::{Problem, Report};

/// Where the owner lives.
pub(crate) enum Place {
    /// In the process of the front, which listens to the signals.
    FrontsProcess,
    /// In a process of its own: it listens to signals, and gives the terminal back when the front was killed.
    OwnProcess(Option<Terminal<OwnedFd>>),
}

/// How many bytes the console may be ahead of the front.
const CONSOLE_BUFFER: usize = 1 << 20;

/// Runs what the front asks for until the machine has ended.
pub(crate) async fn own(control_stream: UnixStream, data: UnixStream, place: Place) {
    let Ok((mut from_front, to_front)) = control(control_stream) else { return };
    let Some(ToOwner::Run(request)) = from_front.next().await else { return };
    let (signals, terminal) = match place {
        Place::FrontsProcess => (None, None),
        Place::OwnProcess(terminal) => (Signals::listen().ok(), terminal),
    };
    let mut owner = Owner { from_front: Some(from_front), to_front: Some(to_front), signals, terminal };
    owner.tell(&ToFront::Ready { pid: std::process::id() }).await;
    let end = owner.start_and_run(*request, data).await;
    owner.tell(&ToFront::Ended(Box::new(end.end))).await;
    if let Some(relay) = end.relay {
        // The front takes what is left of the console at its own pace; if it goes, the relay ends.
        let _ = relay.await;
    }
}

struct Owner {
    /// `None` once the front has left.
    from_front: Option<Receiver>,
    to_front: Option<Sender>,
    signals: Option<Signals>,
    terminal: Option<Terminal<OwnedFd>>,
}

struct Over {
    end: End,
    relay: Option<JoinHandle<()>>,
}

/// What the world wants of the owner.
enum Wish {
    Stop(StopReason),
    Kill,
    Detach,
}

impl Owner {
    async fn start_and_run(&mut self, request: RunRequest, data: UnixStream) -> Over {
        let failed = |id, report: Report| Over { end: End::not_started(id, report), relay: None };
        let id = request.id.clone();
        let data = match connection(data) {
            Ok(data) => data,
            Err(error) => {
                let report = Report::plain("HOST", "cannot use the data connection", Exit::Internal);
                return failed(id, report.because(&error));
            }
        };
        let mut detach_wanted = false;
        let started = {
            let start = start(&request);
            let mut start = std::pin::pin!(start);
            loop {
                tokio::select! {
                    started = &mut start => break started,
                    wish = self.next_wish() => match wish {
                        Wish::Detach => detach_wanted = true,
                        // Dropping the start releases what it had made.
                        Wish::Stop(reason) => return cancelled(id, stop_exit(reason)),
                        Wish::Kill => return cancelled(id, Exit::Signal(exit::KILL)),
                    },
                }
            }
        };
        match started {
            Ok(started) => self.run(&request, started, data, detach_wanted).await,
            Err(report) => failed(id, *report),
        }
    }

    async fn run(
        &mut self,
        request: &RunRequest,
        started: Started,
        data: tokio::net::UnixStream,
        detach_wanted: bool,
    ) -> Over {
        let Started { mut machine, warnings, report } = started;
        let (from_data, to_data) = data.into_split();
        if let Some(guest) = machine.take_console_input() {
            tokio::spawn(relay::input(from_data, guest));
        }
        if tracing::enabled!(tracing::Level::INFO) {
            tokio::spawn(relay::log(machine.diagnostics().reader()));
        }
        let (lost, mut lost_bytes) = mpsc::unbounded_channel();
        let (detach, detached) = oneshot::channel();
        let relay = tokio::spawn(relay::output(
            machine.console().reader(),
            report.is_some().then(ReportFilter::default),
            to_data,
            detached,
            lost,
        ));
        let watched =
            tokio::spawn(marks::watch(machine.console().reader(), request.marks.clone(), machine.asked()));
        let machine = Arc::new(machine);
        self.tell(&ToFront::Started { id: machine.id().clone(), warnings }).await;

        let mut life =
            Life { machine: Arc::clone(&machine), ladder: ladder(request), reason: None, killed: false };
        let mut detach = Some(detach);
        if detach_wanted {
            self.leave(&machine, &mut detach).await;
        }
        let (failures, mut failure) = mpsc::unbounded_channel();
        let released = loop {
            tokio::select! {
                released = machine.wait() => break Ok(released),
                Some(error) = failure.recv() => break Err(error),
                Some(bytes) = lost_bytes.recv() => self.tell(&ToFront::Lost { bytes }).await,
                wish = self.next_wish() => match wish {
                    Wish::Stop(reason) => life.stop(reason, &failures),
                    Wish::Kill => life.kill(&failures),
                    Wish::Detach => self.leave(&machine, &mut detach).await,
                },
            }
        };
        let end_ms = ms(machine.asked().elapsed());
        // The console has ended, so the watch has too, unless the VMM would not go.
        let marks = match &released {
            Ok(_) => watched.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let word = match (report, &released) {
            (Some(report), Ok(_)) => Some(report.await.ok().flatten()),
            _ => None,
        };
        Over { end: life.end(released, word, marks, end_ms), relay: Some(relay) }
    }

    /// Goes on without a front.
    async fn leave(&mut self, machine: &Machine, detach: &mut Option<oneshot::Sender<std::path::PathBuf>>) {
        // In the front's process there is nowhere to go on.
        let Some(detach) = self.signals.as_ref().and_then(|_| detach.take()) else { return };
        let console_log = machine.dir().join("console.log");
        let _ = detach.send(console_log.clone());
        let pid = std::process::id();
        let console_log = (&*console_log).into();
        self.tell(&ToFront::Detached { id: machine.id().clone(), pid, console_log }).await;
        self.from_front = None;
        self.to_front = None;
        self.terminal = None;
        // Nor keep the file system of the front's folder busy.
        let _ = std::env::set_current_dir("/");
        if let Err(error) = smartvm::background::leave_stderr() {
            tracing::debug!(%error, "standard error stays");
        }
    }

    async fn tell(&mut self, message: &ToFront) {
        if let Some(front) = &mut self.to_front
            && !front.send(message).await
        {
            self.to_front = None;
        }
    }

    /// Waits for the front or a signal. A front that is gone means to stop.
    async fn next_wish(&mut self) -> Wish {
        let front = async {
            match &mut self.from_front {
                Some(front) => front.next::<ToOwner>().await,
                None => std::future::pending().await,
            }
        };
        let signal = async {
            match &mut self.signals {
                Some(signals) => signals.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            wish = signal => wish,
            message = front => match message {
                Some(ToOwner::Stop(reason)) => Wish::Stop(reason),
                Some(ToOwner::Kill) => Wish::Kill,
                Some(ToOwner::Detach) => Wish::Detach,
                Some(ToOwner::Run(_)) | None => {
                    self.from_front = None;
                    if let Some(terminal) = &self.terminal {
                        terminal.restore_for_others();
                    }
                    Wish::Stop(StopReason::HangUp)
                }
            },
        }
    }
}

fn cancelled(id: Option<smartvm::MachineId>, exit: Exit) -> Over {
    let how = "stopped before the guest ran".into();
    Over {
        end: End {
            id,
            how,
            exit_status: exit.status(),
            error: None,
            timeline: None,
            warnings: Vec::new(),
            lost_bytes: 0,
        },
        relay: None,
    }
}

/// The machine and what was asked of it.
struct Life {
    machine: Arc<Machine>,
    ladder: Ladder,
    /// The first reason to stop.
    reason: Option<StopReason>,
    killed: bool,
}

impl Life {
    /// The first time: the ladder; after that: kill.
    fn stop(&mut self, reason: StopReason, failures: &mpsc::UnboundedSender<StopError>) {
        if self.reason.is_some() {
            // Only a person's second key says that a stop takes too long. A second `smartvm stop`, an init system that
            // sends SIGTERM and SIGHUP, a front that is gone after it asked: they all want the same once more.
            if matches!(reason, StopReason::Interrupt | StopReason::Asked) {
                self.kill(failures);
            }
            return;
        }
        self.reason = Some(reason);
        self.climb(self.ladder, failures);
    }

    fn kill(&mut self, failures: &mpsc::UnboundedSender<StopError>) {
        self.killed = true;
        // Overtakes a stop that is under way.
        self.spawn(failures, |machine| async move { machine.kill().await });
    }

    fn climb(&self, ladder: Ladder, failures: &mpsc::UnboundedSender<StopError>) {
        self.spawn(failures, move |machine| async move { machine.stop(&ladder).await });
    }

    fn spawn<F>(&self, failures: &mpsc::UnboundedSender<StopError>, end: impl FnOnce(Arc<Machine>) -> F)
    where
        F: Future<Output = Result<Released, StopError>> + Send + 'static,
    {
        let (ending, failures) = (end(Arc::clone(&self.machine)), failures.clone());
        tokio::spawn(async move {
            if let Err(error) = ending.await {
                let _ = failures.send(error);
            }
        });
    }

    /// `word` is what the guest of an image said at its end, if anything.
    fn end(
        &self,
        released: Result<Released, StopError>,
        word: Option<Option<guest::Report>>,
        marks: Vec<Mark>,
        end_ms: f64,
    ) -> End {
        let id = Some(self.machine.id().clone());
        let at = self.machine.timeline();
        let timeline = Timeline {
            process_ms: ms(at.process),
            socket_ms: at.socket.map(ms),
            instance_start_ms: at.api.map(ms),
            first_byte_ms: at.first_byte.map(ms),
            marks,
            end_ms,
        };
        let (how, exit, error) = match released {
            Ok(released) => self.ended(&released, word),
            Err(error) => {
                ("the machine could not be stopped".to_owned(), Exit::NotReleased, Some(Report::of(&error)))
            }
        };
        End {
            id,
            how,
            exit_status: exit.status(),
            error,
            timeline: Some(timeline),
            warnings: Vec::new(),
            lost_bytes: 0,
        }
    }

    fn ended(
        &self,
        released: &Released,
        word: Option<Option<guest::Report>>,
    ) -> (String, Exit, Option<Report>) {
        let exit = released.vmm.exit;
        let image = word.is_some();
        let stopped = || match released.vmm.by {
            None => "stopped: the guest had just ended".to_owned(),
            Some(Rung::CtrlAltDel) => "stopped by Ctrl+Alt+Del".to_owned(),
            Some(rung) => format!("stopped by ending Firecracker with {rung}"),
        };
        let (how, code, report) = match (self.killed, self.reason) {
            (true, _) => ("killed".to_owned(), Exit::Signal(exit::KILL), None),
            (false, Some(reason)) => (stopped(), stop_exit(reason), None),
            (false, None) if exit.is_guests_end() => match word {
                Some(word) => self.guests_word(word),
                None => ("the guest ended".to_owned(), Exit::Success, None),
            },
            (false, None) => {
                let what =
                    format!("machine `{}`: Firecracker ended: {}", self.machine.id(), exit.explained());
                let mut report = Report::plain("PROCESS_EXITED", what, Exit::VmmFailed);
                report.log = self.machine.last_words(20);
                let kvm_failed = report.log.iter().any(|line| line.contains("KVM_EXIT_INTERNAL_ERROR"));
                if image && kvm_failed {
                    report.hint =
                        Some("this host's KVM may not run Linux guests: `smartvm doctor` finds out".into());
                }
                ("Firecracker ended by itself".to_owned(), Exit::VmmFailed, Some(report))
            }
        };
        if released.left_behind.is_empty() {
            return (how, code, report);
        }
        let mut report = report.unwrap_or_else(|| {
            Report::plain("HOST", "not everything of the machine could be removed", Exit::NotReleased)
        });
        report.hint.get_or_insert_with(|| "`smartvm gc` will try again".into());
        report.left_behind.clone_from(&released.left_behind);
        let code = if code == Exit::Success { Exit::NotReleased } else { code };
        (how, code, Some(report))
    }
}

impl Life {
    /// How an image's command ended, by the word of guest init: it is the guest's, so it decides the status and no more.
    fn guests_word(&self, word: Option<guest::Report>) -> (String, Exit, Option<Report>) {
        let failed = |what: String| Report::plain(Code::GuestFailed.as_str(), what, Exit::GuestFailed);
        let id = self.machine.id();
        match word {
            Some(guest::Report::Exit(ended)) => {
                let how = match ended {
                    guest::Ended::Code(code) => format!("the command ended with status {code}"),
                    guest::Ended::Signal(signal) => format!("the command was ended by signal {signal}"),
                };
                (how, Exit::Command(ended.shell_status()), None)
            }
            Some(guest::Report::Failed { step, what, hint }) => {
                let mut report = failed(format!("machine `{id}`: the guest failed at `{step}`: {what}"));
                report.hint = Some(hint).filter(|hint| !hint.is_empty());
                ("the guest could not run the command".to_owned(), Exit::GuestFailed, Some(report))
            }
            None => {
                let mut report = failed(format!("machine `{id}`: the guest ended and did not say how"));
                report.hint = Some(
                    "its console is likely to: its last lines are above; try another kernel, or more --memory".into(),
                );
                report.log = self.machine.console().last_lines(20);
                ("the guest ended without a word".to_owned(), Exit::GuestFailed, Some(report))
            }
        }
    }
}

fn stop_exit(reason: StopReason) -> Exit {
    match reason {
        StopReason::Asked => Exit::Success,
        StopReason::Interrupt => Exit::Signal(exit::INTERRUPT),
        StopReason::Terminate => Exit::Signal(exit::TERMINATE),
        StopReason::HangUp => Exit::Signal(exit::HANG_UP),
        StopReason::OutputClosed => Exit::Signal(exit::PIPE),
    }
}

fn ladder(request: &RunRequest) -> Ladder {
    let patience = Duration::from_secs_f64(request.stop_timeout_s);
    Ladder { ctrl_alt_del: (!patience.is_zero()).then_some(patience), ..Ladder::default() }
}

/// A machine that runs.
struct Started {
    machine: Machine,
    warnings: Vec<Problem>,
    /// Of an image's machine: what its guest will say at its end.
    report: Option<JoinHandle<Option<guest::Report>>>,
}

async fn start(request: &RunRequest) -> Result<Started, Box<Report>> {
    let path = |path: &Option<HostPath>| path.as_ref().map(PathBuf::from);
    let firecracker = find_firecracker(path(&request.firecracker).as_deref(), &Directories::find())
        .await
        .map_err(|error| Report::of(&error).with_exit(Exit::HostNotReady))?;
    let checked = match &request.what {
        What::Config(config) => Some(check(config, request.enable_pci, &firecracker).await?),
        What::Image(_) => None,
    };
    let (metadata, seccomp_filter) = (path(&request.metadata), path(&request.seccomp_filter));
    if let Some(file) = &metadata {
        check_option("--metadata", file, |text| serde_json::from_reader::<_, IgnoredAny>(text).map(drop))?;
    }
    if let Some(file) = &seccomp_filter {
        check_option("--seccomp-filter", file, |_| Ok(()))?;
    }
    let host = Host::open_clean(&Directories::find())
        .await
        .map_err(|error| Report::of(&error).with_exit(Exit::HostNotReady))?;
    let log_file = path(&request.log_file);
    if let Some(file) = &log_file {
        make_log(file)?;
    }
    let options = StartOptions {
        id: request.id.clone(),
        log: LogOptions {
            path: log_file,
            level: request.log_level.map(Into::into),
            show_level: true,
            ..LogOptions::default()
        },
        boot_timer: request.boot_timer,
        enable_pci: request.enable_pci,
        seccomp: match (seccomp_filter, request.no_seccomp) {
            (_, true) => Seccomp::DangerouslyDisabled,
            (Some(filter), false) => Seccomp::Filter(filter),
            (None, false) => Seccomp::Default,
        },
        metadata,
        console_input: ConsoleInput::Pipe,
        keep_output: CONSOLE_BUFFER,
        ..StartOptions::default()
    };
    let (Some(checked), What::Config(_)) = (checked, &request.what) else {
        return start_image(request, &host, &firecracker, options).await;
    };
    let machine = Machine::start(&host, &firecracker, &checked, options).await.map_err(|error| {
        let mut report = Report::of(&error);
        report.left_behind = error.left_behind().to_vec();
        report
    })?;
    let warnings = checked.warnings.iter().map(Problem::from).collect();
    Ok(Started { machine, warnings, report: None })
}

async fn start_image(
    request: &RunRequest,
    host: &Host,
    firecracker: &FirecrackerBinary,
    options: StartOptions,
) -> Result<Started, Box<Report>> {
    let What::Image(spec) = &request.what else {
        return Err(Box::new(Report::usage("no image was given")));
    };
    let store = Directories::find().open_store().map_err(|error| Report::of(&error))?;
    let machine =
        ImageMachine::start(host, &store, firecracker, spec, options).await.map_err(image::failure)?;
    let (machine, report) = machine.into_parts();
    Ok(Started { machine, warnings: Vec::new(), report: Some(report) })
}

/// Off this thread: files on a host that is not there make it wait, and keys and signals must be heard meanwhile.
async fn check(
    config: &ReadConfig,
    pci: bool,
    firecracker: &FirecrackerBinary,
) -> Result<Checked, Box<Report>> {
    let (config, version) = (Config::from(config), firecracker.version.clone());
    match tokio::task::spawn_blocking(move || check_config(&config, &version, pci)).await {
        Ok(Ok(checked)) => Ok(checked),
        Ok(Err(invalid)) => Err(Box::new(Report::invalid_config(&invalid))),
        Err(error) => {
            let report = Report::plain("HOST", "the config could not be checked", Exit::Internal);
            Err(Box::new(report.because(&error)))
        }
    }
}

/// Firecracker before 1.14 does not make its log file, and says little of one that it cannot write.
fn make_log(file: &Path) -> Result<(), Box<Report>> {
    let opened = match file.to_str() {
        Some(_) => open_log(file),
        None => Err(std::io::Error::other("Firecracker takes only paths that are UTF-8")),
    };
    opened.map_err(|error| {
        let what = format!("cannot write Firecracker's log to {}", file.display());
        let mut report = Report::plain("HOST", what, Exit::Internal).because(&error);
        report.hint = Some("give --log-file a file in a folder that this user may write to".into());
        Box::new(report)
    })
}

fn open_log(file: &Path) -> std::io::Result<()> {
    // Read and write, not waiting: a FIFO opens without its reader, as Firecracker opens it.
    let mut options = File::options();
    options.read(true).append(true).create(true).custom_flags(O_NONBLOCK);
    options.open(file).map(drop)
}

/// Firecracker panics on such a file that it cannot read. A pipe can be read only once, and so is left to it.
fn check_option(
    option: &str,
    file: &Path,
    check: impl FnOnce(BufReader<File>) -> serde_json::Result<()>,
) -> Result<(), Box<Report>> {
    let refused = |error: &dyn std::error::Error, hint: &str| {
        let what = format!("cannot use {} as {option}", file.display());
        let mut report =
            Report::plain(Code::InvalidConfig.as_str(), what, Exit::InvalidConfig).because(error);
        report.hint = Some(hint.to_owned());
        Box::new(report)
    };
    let readable = |error| refused(&error, "give a file that this user may read");
    if file.to_str().is_none() {
        let error = std::io::Error::from(std::io::ErrorKind::InvalidFilename);
        return Err(refused(&error, "Firecracker takes only paths that are UTF-8: rename it"));
    }
    let metadata = std::fs::metadata(file).map_err(readable)?;
    if metadata.is_dir() {
        return Err(readable(std::io::ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() {
        return Ok(());
    }
    let text = BufReader::new(File::open(file).map_err(readable)?);
    check(text).map_err(|error| refused(&error, "the file must be one JSON text"))
}

/// `O_NONBLOCK` on every Linux that Firecracker runs on.
const O_NONBLOCK: i32 = 0o4000;

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The signals that an owner in a process of its own listens to.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.interrupt.recv() => Wish::Stop(StopReason::Interrupt),
            _ = self.terminate.recv() => Wish::Stop(StopReason::Terminate),
            _ = self.hang_up.recv() => Wish::Stop(StopReason::HangUp),
            _ = self.quit.recv() => Wish::Kill,
        }
    }
}
