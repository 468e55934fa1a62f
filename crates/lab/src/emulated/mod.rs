//! The emulated KVM host: Debian in QEMU, with an emulated processor whose KVM really runs guests.
//!
//! For machines where `/dev/kvm` is missing or cannot run Linux guests. A worktree has one lab. It is booted
//! once, saved, and from then on resumed in about a second; between commands it may stay up until it was idle
//! for a while. Everything here is bounded in time, and no QEMU outlives its use: one that is not to be kept
//! dies with the thread that called [`Lab::up`], one that is kept powers off when idle, and whatever went wrong
//! with either, the next start ends it.

mod calm;
mod client;
mod instance;
mod log;
mod plan;
mod qemu;
mod run_tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use client::{Input, Stream};
pub use run_tests::{TestOptions, TestProgram, TestReport, TestRun, environment, run_test, run_tests};

use crate::agent::DEFAULT_IDLE;
use crate::cache::Cache;
use crate::fault::{Fault, Result};
use crate::wire::{Exit, Run};
use crate::workspace;
pub(crate) use client::Client;
use instance::{Instance, Record};
use log::RunLog;
use plan::{Plan, Up, identity, kept, random_token};
use qemu::{Life, Qemu};

/// Programs in the lab: its commands have this directory first on their PATH.
pub const BIN: &str = "/opt/smartvm/bin";
/// The files of [`crate::guest::Assets`] in the lab, `vmlinux` and `initrd`.
pub const GUEST: &str = "/opt/smartvm/guest";

/// How long after a command's time limit its end is awaited.
const GRACE: Duration = Duration::from_secs(30);
/// So much of each output stream is kept in an [`Outcome`].
const KEPT_OUTPUT: usize = 16 << 20;

/// How to bring up a lab.
#[derive(Debug, Clone)]
pub struct Options {
    /// Do not use one that is up, nor a saved one: boot.
    pub fresh: bool,
    /// Leave it up for the next one; it powers off by itself after so long without use. `None`: it ends with
    /// the [`Lab`] and with the calling thread.
    pub keep: Option<Duration>,
    /// How long to wait for another process that uses the lab of this worktree.
    pub patience: Duration,
    /// Where the lab keeps its state and logs: one lab for each such directory.
    pub dir: PathBuf,
    /// Asked now and then while something is awaited; when it says true, waiting ends with an error.
    pub interrupted: fn() -> bool,
}

impl Default for Options {
    /// Kept for ten minutes; waits ten minutes for others; the worktree's lab ([`default_dir`]).
    fn default() -> Self {
        Self {
            fresh: false,
            keep: Some(DEFAULT_IDLE),
            patience: Duration::from_secs(600),
            dir: default_dir(),
            interrupted: || false,
        }
    }
}

/// Where the worktree's lab is: `SMARTVM_LAB_DIR`, else `lab` in the workspace's target directory.
pub fn default_dir() -> PathBuf {
    std::env::var_os("SMARTVM_LAB_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| workspace::target_dir().join("lab"))
}

/// How a lab came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was up.
    Kept,
    /// From its saved state.
    Resumed,
    /// By booting.
    Booted,
}

/// A lab that is up and ours alone.
#[derive(Debug)]
pub struct Lab {
    instance: Instance,
    qemu: Qemu,
    client: Client,
    record: Mutex<Record>,
    origin: Origin,
    keep: bool,
    /// The agent did not behave: not to be used again.
    broken: AtomicBool,
    log: RunLog,
    /// Where this run's part of the console begins.
    console_from: u64,
}

/// A command for the lab.
#[derive(Debug, Clone)]
pub struct Command {
    run: Run,
}

impl Command {
    /// A program, looked up on the lab's PATH, to run for at most ten minutes.
    pub fn new(program: impl Into<String>) -> Self {
        let run = Run { argv: vec![program.into()], timeout_ms: 600_000, ..Run::default() };
        Self { run }
    }

    /// A command line for the lab's shell.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new("sh").args(["-c".to_owned(), line.into()])
    }

    /// More arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.run.argv.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A variable of the environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.run.env.push((name.into(), value.into()));
        self
    }

    /// The working directory; `/root` otherwise.
    pub fn cwd(mut self, dir: impl Into<String>) -> Self {
        self.run.cwd = Some(dir.into());
        self
    }

    /// After so long, all its processes are killed.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.run.timeout_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Lets processes that it leaves behind live on.
    pub fn keep_survivors(mut self) -> Self {
        self.run.keep_survivors = true;
        self
    }
}

/// How a command ended and what it said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit status or signal, whether its time was over, and which processes outlived it.
    pub exit: Exit,
    /// Standard output, its first 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, its first 16 MiB.
    pub stderr: Vec<u8>,
    /// From the request to the answer.
    pub took: Duration,
}

impl Outcome {
    /// Whether it exited with status 0.
    pub fn success(&self) -> bool {
        self.exit.code == Some(0)
    }

    /// The status as a shell has it: 128 and the signal's number when a signal ended it, 124 after its time.
    pub fn shell_status(&self) -> u8 {
        let status = match (self.exit.timed_out, self.exit.code, self.exit.signal) {
            (true, ..) => 124,
            (_, Some(code), _) => code,
            (_, None, Some(signal)) => 128 + signal,
            (_, None, None) => 1,
        };
        u8::try_from(status & 0xff).unwrap_or(1)
    }
}

impl Lab {
    /// Brings the worktree's lab up, in the fastest way that works. Builds and caches what is missing.
    ///
    /// # Errors
    /// When images cannot be built, the lab is in use for longer than the patience, or does not boot.
    pub fn up(options: &Options) -> Result<Self> {
        let dir = &options.dir;
        let plan = Plan::make(&Cache::open(), options.interrupted)?;
        let instance = Instance::take(&dir.join("instance"), options.patience)?;
        let log = RunLog::create(&dir.join("runs"))?;
        let path = log.path().to_owned();
        Self::bring_up(&plan, instance, log, options).map_err(|fault| fault.with_log(&path))
    }

    fn bring_up(plan: &Plan, instance: Instance, log: RunLog, options: &Options) -> Result<Self> {
        if let Some((qemu, client, record)) = kept(plan, &instance, options, &log) {
            let console_from = fs::metadata(qemu.serial()).map_or(0, |meta| meta.len());
            return Self::ours((qemu, client, Origin::Kept), record, instance, log, options, console_from);
        }
        let life = if options.keep.is_some() { Life::UntilIdle } else { Life::WithUs };
        let begun = Instant::now();
        let up = if options.fresh { None } else { plan.resume(&instance, life, &log) };
        let up = match up {
            Some(up) => up,
            None => plan.boot(&instance, life)?,
        };
        log.note(&format!("{:?} in {:.2} s", up.2, begun.elapsed().as_secs_f64()));
        let mut record = Record { key: plan.key.to_string(), ..Record::default() };
        record.pushed.extend(plan.baseline.iter().map(|(from, to)| (to.clone(), identity(from))));
        let lab = Self::ours(up, record, instance, log, options, 0)?;
        calm::hold_a_vm(&lab)?;
        Ok(lab)
    }

    /// Takes the lease and writes down whose machine this is.
    fn ours(
        (mut qemu, mut client, origin): Up,
        mut record: Record,
        instance: Instance,
        log: RunLog,
        options: &Options,
        console_from: u64,
    ) -> Result<Self> {
        let leased = client.lease(random_token()?, options.keep.unwrap_or(DEFAULT_IDLE)).and_then(|()| {
            record.pid = qemu.pid();
            record.started = qemu.started();
            record.port = client.port;
            record.token.clone_from(&client.token);
            instance.store(&record)
        });
        if let Err(fault) = leased {
            let words = qemu.last_words();
            qemu.kill();
            instance.forget();
            return Err(fault.with_last_words(&words));
        }
        Ok(Self {
            instance,
            qemu,
            client,
            record: Mutex::new(record),
            origin,
            keep: options.keep.is_some(),
            broken: AtomicBool::new(false),
            log,
            console_from,
        })
    }

    /// How it came up.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The log of this run.
    pub fn log(&self) -> &Path {
        self.log.path()
    }

    /// Runs a command without input.
    ///
    /// # Errors
    /// When it cannot be started, or the lab does not answer. A command that fails is an [`Outcome`].
    pub fn run(&self, command: &Command) -> Result<Outcome> {
        self.run_with(command, Input::None, &mut |_, _| {})
    }

    /// Runs a command; `sink` gets its output while it comes.
    ///
    /// # Errors
    /// Like [`Lab::run`].
    pub fn run_with(
        &self,
        command: &Command,
        input: Input,
        sink: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Outcome> {
        let run = &command.run;
        self.log.note(&format!("run {:?} env {:?}", run.argv, run.env));
        let begun = Instant::now();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let exit = self.client.run(run, input, GRACE, &mut |stream, bytes| {
            self.log.output(bytes);
            let kept = match stream {
                Stream::Stdout => &mut stdout,
                Stream::Stderr => &mut stderr,
            };
            let room = KEPT_OUTPUT.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            sink(stream, bytes);
        });
        let exit =
            exit.map_err(|error| self.failed(format!("cannot run {:?} in the lab", run.argv), error))?;
        self.log.note(&format!("ended {exit:?}"));
        Ok(Outcome { exit, stdout, stderr, took: begun.elapsed() })
    }

    fn failed(&self, doing: String, error: std::io::Error) -> Fault {
        self.log.note(&format!("{doing}: {error}"));
        // What the agent refuses, it answers. Everything else means that it, or the machine, is not well.
        if !matches!(error.kind(), std::io::ErrorKind::Other | std::io::ErrorKind::Interrupted) {
            self.broken.store(true, Ordering::Relaxed);
        }
        let fault = Fault::because(doing, error).with_log(self.log.path());
        if self.qemu.has_ended() { fault.with_last_words(&self.qemu.last_words()) } else { fault }
    }

    /// Puts a file or directory of the host at a path of the lab. What is there is replaced or added to.
    ///
    /// # Errors
    /// When either side cannot read or write, or the lab does not answer.
    pub fn push(&self, from: &Path, to: &str) -> Result<()> {
        self.log.note(&format!("push {} to {to}", from.display()));
        self.client.push(from, to).map_err(|fault| fault.with_log(self.log.path()))
    }

    /// Puts a file or directory of the lab at a path of the host.
    ///
    /// # Errors
    /// Like [`Lab::push`].
    pub fn pull(&self, from: &str, to: &Path) -> Result<()> {
        self.log.note(&format!("pull {from} to {}", to.display()));
        self.client.pull(from, to).map_err(|fault| fault.with_log(self.log.path()))
    }

    /// [`Lab::push`] for files that are not in this lab yet, or have changed since they were pushed here.
    ///
    /// # Errors
    /// Like [`Lab::push`].
    pub fn push_changed(&self, files: &[(PathBuf, String)]) -> Result<()> {
        for (from, to) in files {
            let identity = identity(from);
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            if record.pushed.get(to) != Some(&identity) {
                // Forgotten first: a push that is cut off must be made again.
                record.pushed.remove(to);
                self.push(from, to)?;
                record.pushed.insert(to.clone(), identity);
                self.instance.store(&record)?;
            }
        }
        Ok(())
    }

    /// Builds the workspace's `smartvm` statically and puts it on the lab's PATH.
    ///
    /// # Errors
    /// When the build or the push fails.
    pub fn push_workspace_build(&self) -> Result<()> {
        let programs = workspace::build("smartvm-cli", &["smartvm"])?;
        let files: Vec<_> = programs.into_iter().map(|path| (path, format!("{BIN}/smartvm"))).collect();
        self.push_changed(&files)
    }

    /// Ends it now, even if it was to be kept.
    pub fn down(mut self) {
        self.keep = false;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.log.copy("console", &self.qemu.serial(), self.console_from);
        if !self.keep || self.broken.load(Ordering::Relaxed) || self.qemu.has_ended() {
            self.qemu.kill();
            self.instance.forget();
        }
    }
}

/// Ends the lab of this directory if it is up. Answers whether it was.
///
/// # Errors
/// When another process uses it.
pub fn down(dir: &Path) -> Result<bool> {
    let instance = Instance::take(&dir.join("instance"), Duration::ZERO)?;
    let Some(record) = instance.load() else { return Ok(false) };
    let qemu = Qemu::adopt(instance.dir(), record.pid, record.started);
    instance.forget();
    Ok(qemu.is_some_and(|mut qemu| {
        qemu.kill();
        true
    }))
}
