//! Commands: streams out as they come, input in, an end in bounded time, no process left.

use std::collections::HashSet;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::processes::{Family, all};
use crate::wire::{self, Exit, Kind, Run};

/// What a command finds beside the variables that it was given.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/opt/smartvm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
];

/// After the command's end, output that its survivors might still write is awaited for so long.
const DRAIN: Duration = Duration::from_secs(2);

/// The next command's mark; one count for all agents of a process, as tests have several.
static MARKS: AtomicU64 = AtomicU64::new(0);

/// The commands of one agent.
#[derive(Debug)]
pub(super) struct Running {
    /// Nothing but the agent starts processes here. Elsewhere a new process may be anybody's, and is let alone
    /// unless it surely is a command's.
    own_machine: bool,
    /// How many began so far.
    begun: AtomicU64,
    /// How many run.
    now: Mutex<usize>,
}

/// The way back to the host. Nothing may follow the answer.
struct Out {
    stream: TcpStream,
    answered: bool,
}

impl Out {
    fn frame(&mut self, kind: Kind, body: &[u8]) {
        if !self.answered && wire::write_frame(&mut self.stream, kind, body).is_err() {
            // Nobody listens. The reading side notices it too and ends the command.
            self.answered = true;
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

type SharedOut = Arc<Mutex<Out>>;

impl Running {
    pub(super) fn on(own_machine: bool) -> Self {
        Self { own_machine, begun: AtomicU64::new(0), now: Mutex::new(0) }
    }

    /// Runs a command for the host at the other end of `stream`, whose frames come through `from`.
    pub(super) fn run(&self, run: Run, from: BufReader<TcpStream>, stream: TcpStream) -> io::Result<()> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let number = MARKS.fetch_add(1, Ordering::Relaxed);
        let mark = format!("SMARTVM_LAB_COMMAND={}-{number}", std::process::id());
        let before: HashSet<i32> = all().into_iter().map(|process| process.pid).collect();
        let alone = self.enter();
        let out = Arc::new(Mutex::new(Out { stream: stream.try_clone()?, answered: false }));
        let spawned = spawn(&run, &mark);
        let result = match spawned {
            Err(error) => {
                let text = format!("cannot start {:?}: {error}", run.argv);
                wire::write_frame(&mut &stream, Kind::Refused, text.as_bytes())
            }
            Ok(child) => {
                let family = Family { leader: child.id().cast_signed(), mark, before };
                self.follow(child, family, &run, from, &out, alone)
            }
        };
        self.leave();
        result
    }

    fn enter(&self) -> bool {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now += 1;
        self.own_machine && *now == 1
    }

    fn leave(&self) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }

    /// Whether no other command runs now, nor began since `begun` was read.
    fn is_alone(&self, begun: u64) -> bool {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) == 1
            && self.begun.load(Ordering::Relaxed) == begun
    }

    fn follow(
        &self,
        mut child: Child,
        family: Family,
        run: &Run,
        from: BufReader<TcpStream>,
        out: &SharedOut,
        began_alone: bool,
    ) -> io::Result<()> {
        let begun = self.begun.load(Ordering::Relaxed);
        let alone = || began_alone && self.is_alone(begun);
        let (ended, end_of_stream) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            pump(stdout, Kind::Stdout, out.clone(), ended.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            pump(stderr, Kind::Stderr, out.clone(), ended);
        }
        let input = child.stdin.take();
        let over = Arc::new(AtomicBool::new(false));
        let listener = {
            let (family, over) = (family.clone(), over.clone());
            thread::spawn(move || {
                listen(from, input);
                // The host went away before the end.
                if !over.load(Ordering::SeqCst) {
                    family.kill(false);
                }
            })
        };

        let timed_out = wait(&child, Duration::from_millis(run.timeout_ms), || family.kill(alone()))?;
        // The leader is not reaped yet, so its number still means this family.
        let survivors = family.living(alone());
        over.store(true, Ordering::SeqCst);
        if !run.keep_survivors {
            family.kill(alone());
        }
        let status = child.wait()?;
        let deadline = Instant::now() + DRAIN;
        // Each pump says when its stream ended; when both have, receiving fails at once.
        while end_of_stream.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        let exit = Exit {
            code: status.code(),
            signal: status.signal(),
            timed_out,
            survivors: survivors.iter().map(|p| format!("{} {}", p.pid, p.name)).collect(),
        };
        {
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = serde_json::to_vec(&exit)?;
            out.frame(Kind::Answer, &answer);
            out.answered = true;
            let _ = out.stream.shutdown(Shutdown::Both);
        }
        let _ = listener.join();
        Ok(())
    }
}

fn spawn(run: &Run, mark: &str) -> io::Result<Child> {
    let (program, arguments) =
        run.argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(ENVIRONMENT).envs(run.env.iter().map(|(n, v)| (n, v)));
    if let Some((name, value)) = mark.split_once('=') {
        command.env(name, value);
    }
    command
        .current_dir(run.cwd.as_deref().unwrap_or("/root"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

/// Copies a stream of the command to the host until it ends. Goes on reading when nobody wants it any more:
/// a survivor must not stall on a full pipe.
fn pump(mut stream: impl Read + Send + 'static, kind: Kind, out: SharedOut, ended: mpsc::Sender<()>) {
    thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(got) => out.lock().unwrap_or_else(PoisonError::into_inner).frame(kind, &piece[..got]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        drop(ended);
    });
}

/// Takes the command's input from the host, until the host goes away.
fn listen(mut from: BufReader<TcpStream>, mut input: Option<ChildStdin>) {
    let mut body = Vec::new();
    loop {
        match wire::read_frame(&mut from, &mut body) {
            Ok(Some(Kind::Stdin)) => {
                // A command that does not read its input is not in error.
                if input.as_mut().is_some_and(|stdin| stdin.write_all(&body).is_err()) {
                    input = None;
                }
            }
            Ok(Some(Kind::StdinEnd)) => input = None,
            _ => return,
        }
    }
}

/// Waits until the child has ended, without reaping it. When its time is over, `kill` is called until it has.
fn wait(child: &Child, time: Duration, kill: impl Fn()) -> io::Result<bool> {
    let pid = Pid::from_child(child);
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + time;
    let mut timed_out = false;
    loop {
        let left = if timed_out {
            Duration::from_millis(200)
        } else {
            deadline.saturating_duration_since(Instant::now())
        };
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(handle.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(0) => {
                timed_out = true;
                kill();
            }
            Ok(_) => return Ok(timed_out),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
