//! The threads that make children.
//!
//! They live as long as the process, because the parent-death signal of a child follows the *thread* that made
//! it (prctl(2) PR_SET_PDEATHSIG). Each makes one child at a time and waits a moment for its socket, asleep
//! between tries: a spinning wait steals the child's own core (3–4 ms against 1 ms on a busy machine). There are as many
//! as cores, at least four: what comes before the socket is CPU work, so more at once would finish none sooner, and
//! starts beyond that wait here instead of polling.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, LazyLock, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use smartvm_firecracker::api::InstanceInfo;
use smartvm_firecracker::first_answer::{FirstAnswer, Knock};
use smartvm_firecracker::socket::{Connector, SUN_PATH_MAX, listener_pid};
use tokio::sync::oneshot;

use crate::clone::{ChildPlan, Cradle, Stdio, clone_exec, fine_timer};
use crate::error::SpawnError;
use crate::launch::{ConsoleInput, Launch, Lifetime, c_string};
use crate::prompt::prompt_thread;
use crate::socket_path::{OwnSocket, make_way};
use crate::watcher::{Child, Pipes, Watcher};

/// How long a spawning thread waits for the socket itself. Firecracker needs about 1 ms; a slower one is left to
/// its own task, which polls more rarely, so that it holds up no other start.
const PATIENCE: Duration = Duration::from_millis(50);
/// Between two tries to connect: a tenth of the wait so far within these bounds, so that a start among many, which
/// takes longer, costs no more tries.
const PAUSES: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(1));
/// The number under which a child finds the directory of a socket whose path is too long.
const DIRECTORY_FD: &str = "/proc/self/fd/3";

/// A child of ours that ends with this value, unless it is detached and has settled.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) child: Arc<Child>,
    detached: bool,
    settled: bool,
}

impl Owned {
    /// The start has succeeded: a detached child may outlive this value from now on.
    pub(crate) fn settle(&mut self) {
        self.settled = true;
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Only the signal: the watcher reaps and removes the socket, so that dropping never waits.
        let lives_on = self.detached && self.settled;
        if !lives_on && self.child.ended().is_none() {
            self.child.note(crate::vmm::Rung::Kill);
            self.child.signal(Signal::KILL);
        }
    }
}

/// A process that runs, as far as its spawning thread waited for it.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) owned: Owned,
    pub(crate) console_input: Option<OwnedFd>,
    /// `None`: not yet connected, the child may also have ended.
    pub(crate) connected: Option<Connected>,
}

/// A connection to a child on which something was asked.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: UnixStream,
    pub(crate) asked: Asked,
    /// When it connected.
    pub(crate) at: Instant,
    /// The answer and when it came, if it has.
    pub(crate) answer: Option<(InstanceInfo, Instant)>,
}

/// Who boots the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boot {
    /// Firecracker at once, from its config file.
    FromConfig,
    /// Somebody, through API calls.
    ByApi,
}

impl Boot {
    pub(crate) fn of(launch: &Launch) -> Self {
        if launch.config_file.is_some() { Self::FromConfig } else { Self::ByApi }
    }
}

/// What a connection to a new child was used for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// `GET /`, of a VMM that waits for API calls.
    Instance(FirstAnswer),
    /// Of a VMM that boots from its config file: see [`Knock`] for why not `GET /`.
    Knock(Knock),
}

/// What a spawning thread is asked for.
#[derive(Debug)]
enum Job {
    Vmm { launch: Box<Launch>, reply: oneshot::Sender<Result<Started, SpawnError>> },
    Program { argv: Vec<CString>, reply: oneshot::Sender<Result<Started, SpawnError>> },
}

/// Starts a VMM and waits a moment for its socket, whose path is absolute.
pub(crate) async fn start_vmm(launch: Launch) -> Result<Started, SpawnError> {
    let (reply, started) = oneshot::channel();
    pool()?.push(Job::Vmm { launch: Box::new(launch), reply });
    answer(started).await
}

/// Starts another program with its output captured, such as `firecracker --version`.
pub(crate) async fn start_program(argv: &[&OsStr]) -> Result<Started, SpawnError> {
    let (reply, started) = oneshot::channel();
    let argv = argv.iter().map(|arg| c_string(arg)).collect::<Result<_, _>>()?;
    pool()?.push(Job::Program { argv, reply });
    answer(started).await
}

async fn answer(started: oneshot::Receiver<Result<Started, SpawnError>>) -> Result<Started, SpawnError> {
    started
        .await
        .unwrap_or_else(|_| Err(SpawnError::host("spawn", io::Error::other("the spawning thread ended"))))
}

#[derive(Debug, Default)]
struct Pool {
    jobs: Mutex<VecDeque<Job>>,
    arrived: Condvar,
}

fn pool() -> Result<&'static Pool, SpawnError> {
    static POOL: OnceLock<Pool> = OnceLock::new();
    static THREADS: Mutex<usize> = Mutex::new(0);
    static WANTED: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(4, |cores| cores.get().clamp(4, 32)));
    let pool = POOL.get_or_init(Pool::default);
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    while *threads < *WANTED {
        match pool.add_thread() {
            Ok(()) => *threads += 1,
            // One is enough to go on with; the next start tries for more.
            Err(_) if *threads > 0 => break,
            Err(source) => return Err(SpawnError::host("make the threads that start processes", source)),
        }
    }
    Ok(pool)
}

impl Pool {
    fn add_thread(&'static self) -> io::Result<()> {
        let cradle = Cradle::new()?;
        let thread = thread::Builder::new().name("vmm-spawner".into()).stack_size(128 * 1024);
        thread.spawn(move || self.serve(cradle)).map(drop)
    }

    /// Whether others wait to be started.
    fn is_crowded(&self) -> bool {
        !self.jobs.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn push(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
        self.arrived.notify_one();
    }

    fn serve(&self, mut cradle: Cradle) {
        fine_timer();
        prompt_thread();
        loop {
            let job = {
                let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                let mut jobs = self
                    .arrived
                    .wait_while(jobs, |jobs| jobs.is_empty())
                    .unwrap_or_else(PoisonError::into_inner);
                jobs.pop_front()
            };
            // A caller that went away drops its receiver: then nothing is begun, or what was begun ends by
            // being dropped.
            match job {
                Some(Job::Vmm { launch, reply }) if !reply.is_closed() => {
                    let _ = reply.send(spawn_vmm(&launch, &mut cradle, || self.is_crowded()));
                }
                Some(Job::Program { argv, reply }) if !reply.is_closed() => {
                    let _ = reply.send(spawn_program(argv, &mut cradle));
                }
                Some(_) | None => {}
            }
        }
    }
}

fn spawn_vmm(
    launch: &Launch,
    cradle: &mut Cradle,
    crowded: impl FnOnce() -> bool,
) -> Result<Started, SpawnError> {
    let watcher = Watcher::get().map_err(|source| SpawnError::host("watch processes", source))?;
    make_way(&launch.api_sock)?;
    let (seen_by_child, directory) = childs_view(&launch.api_sock)?;
    let plan = ChildPlan {
        exec_file: c_string(launch.exec_file.as_os_str())?,
        argv: launch.argv(&seen_by_child)?,
        current_dir: launch.current_dir.as_ref().map(|dir| c_string(dir.as_os_str())).transpose()?,
        die_with_thread: launch.lifetime == Lifetime::WithOwner,
    };
    let (stdin, console_input) = input(launch.console_input)?;
    let (stdout, stderr, pipes) = outputs(&launch.lifetime)?;

    let stdio = Stdio {
        stdin: stdin.as_fd(),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        directory: directory.as_ref().map(|fd| fd.as_fd()),
    };
    let (pid, pidfd) =
        clone_exec(&plan, &stdio, cradle).map_err(|failed| SpawnError::exec(&launch.exec_file, failed))?;
    let running = Instant::now();
    drop((stdin, stdout, stderr, directory));

    let own_socket = OwnSocket::expected_at(launch.api_sock.clone());
    let child = Arc::new(Child::new(pid, pidfd, running, launch.keep_output, Some(own_socket)));
    let owned = watched(&watcher, child, pipes, launch.lifetime != Lifetime::WithOwner)?;
    let boot = Boot::of(launch);
    if boot == Boot::FromConfig && crowded() {
        // The guest's first sign comes by itself: no need to hold up the others, nor to try again and again.
        return Ok(Started { owned, console_input, connected: None });
    }
    let mut connected = connect_soon(&owned.child, &launch.api_sock, boot)?;
    // With a config file the VM has to be built as well, which is not worth waiting for here.
    if let Some(connected) = &mut connected {
        answer_soon(&owned.child, connected);
    }
    Ok(Started { owned, console_input, connected })
}

fn spawn_program(argv: Vec<CString>, cradle: &mut Cradle) -> Result<Started, SpawnError> {
    let watcher = Watcher::get().map_err(|source| SpawnError::host("watch processes", source))?;
    let Some(exec_file) = argv.first().cloned() else {
        return Err(SpawnError::host("start a program without a name", io::ErrorKind::InvalidInput));
    };
    let path = PathBuf::from(exec_file.to_string_lossy().into_owned());
    let plan = ChildPlan { exec_file, argv, current_dir: None, die_with_thread: true };
    let (stdin, _) = input(ConsoleInput::Null)?;
    let (stdout, stderr, pipes) = outputs(&Lifetime::WithOwner)?;
    let stdio =
        Stdio { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd(), directory: None };
    let (pid, pidfd) = clone_exec(&plan, &stdio, cradle).map_err(|failed| SpawnError::exec(&path, failed))?;
    let running = Instant::now();
    drop((stdin, stdout, stderr));
    let child = Arc::new(Child::new(pid, pidfd, running, 64 * 1024, None));
    let owned = watched(&watcher, child, pipes, false)?;
    Ok(Started { owned, console_input: None, connected: None })
}

fn watched(watcher: &Watcher, child: Arc<Child>, pipes: Pipes, detached: bool) -> Result<Owned, SpawnError> {
    if let Err(source) = watcher.watch(&child, pipes) {
        // Nobody will reap it for us.
        child.signal(Signal::KILL);
        child.finish_unwatched();
        return Err(SpawnError::host("watch the new process", source));
    }
    Ok(Owned { child, detached, settled: false })
}

/// How the child names its socket. Firecracker passes the name to bind(2), which takes 107 bytes (unix(7)): a longer
/// path is given through a descriptor of its directory.
fn childs_view(api_sock: &Path) -> Result<(PathBuf, Option<OwnedFd>), SpawnError> {
    if api_sock.as_os_str().len() <= SUN_PATH_MAX {
        return Ok((api_sock.to_owned(), None));
    }
    let unusable = |problem, source| SpawnError::SocketPath { path: api_sock.to_owned(), problem, source };
    let (Some(parent), Some(name)) = (api_sock.parent(), api_sock.file_name()) else {
        return Err(unusable("it has no file name", None));
    };
    let short = Path::new(DIRECTORY_FD).join(name);
    if short.as_os_str().len() > SUN_PATH_MAX {
        return Err(unusable("its file name is too long: at most 91 bytes fit into a socket address", None));
    }
    let directory =
        rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| unusable("its directory cannot be opened", Some(errno.into())))?;
    Ok((short, Some(directory)))
}

fn input(wanted: ConsoleInput) -> Result<(OwnedFd, Option<OwnedFd>), SpawnError> {
    match wanted {
        ConsoleInput::Null => Ok((open_null(OFlags::RDONLY)?, None)),
        ConsoleInput::Pipe => {
            let (read, write) = pipe()?;
            nonblocking(&write)?;
            Ok((read, Some(write)))
        }
    }
}

fn outputs(lifetime: &Lifetime) -> Result<(OwnedFd, OwnedFd, Pipes), SpawnError> {
    match lifetime {
        Lifetime::WithOwner => {
            let (console, stdout) = pipe()?;
            let (diagnostics, stderr) = pipe()?;
            nonblocking(&console)?;
            nonblocking(&diagnostics)?;
            Ok((stdout, stderr, Pipes { console: Some(console), diagnostics: Some(diagnostics) }))
        }
        Lifetime::Detached { console, diagnostics } => {
            Ok((append_to(console.as_deref())?, append_to(diagnostics.as_deref())?, Pipes::default()))
        }
    }
}

fn append_to(path: Option<&Path>) -> Result<OwnedFd, SpawnError> {
    let Some(path) = path else { return open_null(OFlags::WRONLY) };
    // Firecracker opens its log a second time through /proc, for reading and writing.
    let file: io::Result<File> = OpenOptions::new().create(true).read(true).append(true).open(path);
    file.map(OwnedFd::from).map_err(|source| SpawnError::host("open the output file", source))
}

fn open_null(flags: OFlags) -> Result<OwnedFd, SpawnError> {
    rustix::fs::open("/dev/null", flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| SpawnError::host("open /dev/null", source))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), SpawnError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|source| SpawnError::host("make a pipe", source))
}

/// Only our end: the flag belongs to the open file, which the two ends do not share.
fn nonblocking(fd: &OwnedFd) -> Result<(), SpawnError> {
    rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)
        .map_err(|source| SpawnError::host("make a pipe non-blocking", source))
}

/// Tries to connect until it works, the child ends or the patience does.
fn connect_soon(child: &Child, api_sock: &Path, boot: Boot) -> Result<Option<Connected>, SpawnError> {
    let mut connector = connector(api_sock)?;
    loop {
        if let Some(connected) = try_connect(child, api_sock, &mut connector, boot)? {
            return Ok(Some(connected));
        }
        let waited = child.running.elapsed();
        let pause = (waited / 10).clamp(PAUSES.0, PAUSES.1);
        let mut exit = [PollFd::new(child.pidfd(), PollFlags::IN)];
        if waited > PATIENCE || wait(&mut exit, pause) {
            return Ok(None);
        }
    }
}

pub(crate) fn connector(api_sock: &Path) -> Result<Connector, SpawnError> {
    Connector::new(api_sock).map_err(|source| SpawnError::SocketPath {
        path: api_sock.to_owned(),
        problem: "it does not fit into a socket address",
        source: Some(source),
    })
}

/// One try. `None` while nobody listens, or the listener's backlog is full.
///
/// The socket file is there before Firecracker listens, so only a connection counts; and only one to our own child:
/// another process may have taken the path meanwhile.
pub(crate) fn try_connect(
    child: &Child,
    api_sock: &Path,
    connector: &mut Connector,
    boot: Boot,
) -> Result<Option<Connected>, SpawnError> {
    let stream = match connector.connect() {
        Ok(stream) => stream,
        Err(error) => {
            return match Errno::from_io_error(&error) {
                Some(Errno::CONNREFUSED | Errno::NOENT | Errno::AGAIN) => Ok(None),
                _ => Err(SpawnError::host("connect to the API socket", error)),
            };
        }
    };
    match listener_pid(&stream) {
        Some(pid) if pid != child.pid.as_raw_pid() => {
            child.disown_socket();
            return Err(SpawnError::SocketInUse { path: api_sock.to_owned(), pid: Some(pid) });
        }
        _ => child.socket_confirmed(),
    }
    // A child that has just ended is found out by whoever waits for it.
    let asked = match boot {
        Boot::ByApi => FirstAnswer::ask(&stream).map(Asked::Instance),
        Boot::FromConfig => Knock::ask(&stream).map(Asked::Knock),
    };
    let Ok(asked) = asked else { return Ok(None) };
    Ok(Some(Connected { stream, asked, at: Instant::now(), answer: None }))
}

/// Waits a moment for the answer. What is wrong with it shows again when the caller looks.
fn answer_soon(child: &Child, connected: &mut Connected) {
    const PATIENCE: Duration = Duration::from_millis(5);
    let Asked::Instance(first) = &mut connected.asked else { return };
    let mut events =
        [PollFd::new(&connected.stream, PollFlags::IN), PollFd::new(child.pidfd(), PollFlags::IN)];
    if wait(&mut events, PATIENCE)
        && let Ok(Some(info)) = first.receive(|into| (&connected.stream).read(into))
    {
        connected.answer = Some((info, Instant::now()));
    }
}

/// Sleeps until one of the descriptors is ready (`true`) or the time is over.
fn wait(descriptors: &mut [PollFd<'_>], time: Duration) -> bool {
    let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
    matches!(poll(descriptors, Some(&time)), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    use smartvm_core::explain::{Code, Explain};

    #[test]
    fn only_a_socket_that_is_not_there_yet_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let child = Child::new(getpid(), pidfd, Instant::now(), 1, None);
        let connect = |path: &Path| try_connect(&child, path, &mut connector(path).unwrap(), Boot::ByApi);
        assert!(connect(&dir.path().join("s")).unwrap().is_none());
        std::fs::write(dir.path().join("file"), "").unwrap();
        // Whatever the kernel refuses otherwise, like one descriptor too many, it will refuse again.
        let error = connect(&dir.path().join("file/s")).unwrap_err();
        assert_eq!(error.code(), Code::Host);
    }
}
