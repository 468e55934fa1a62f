//! The emulated KVM host: Debian in QEMU, with an emulated processor whose KVM really runs guests.
//!
//! For machines where `/dev/kvm` is missing or cannot run Linux guests. A worktree has one lab. It is booted
//! once, saved, and from then on resumed in about a second; between commands it may stay up until it was idle
//! for a while. Everything here is bounded in time, and no QEMU outlives its use: one that is not to be kept
//! dies with the thread that called [`Lab::up`], one that is kept powers off when idle, and whatever went wrong
//! with either, the next start ends it.

mod client;
mod instance;
mod log;
mod qemu;
mod run_tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use client::{Input, Stream};
pub use run_tests::{TestOptions, TestReport, TestRun, environment, run_tests};

use crate::agent::DEFAULT_IDLE;
use crate::cache::{Cache, Key, progress};
use crate::debian::{self, Parts};
use crate::fault::{AtPath, Fault, Result};
use crate::wire::{Exit, Request, Run};
use crate::{guest, workspace};
use client::Client;
use instance::{Instance, Record};
use log::RunLog;
use qemu::{Life, Machine, Qemu};

/// Programs in the lab: its commands have this directory first on their PATH.
pub const BIN: &str = "/opt/smartvm/bin";
/// The files of [`guest::Assets`] in the lab, `vmlinux` and `initrd`.
pub const GUEST: &str = "/opt/smartvm/guest";

/// What the emulated host needs to boot; the first time includes the emulator's own start.
const BOOT: Duration = Duration::from_secs(180);
const RESUME: Duration = Duration::from_secs(40);
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
}

impl Default for Options {
    /// Kept for ten minutes; waits ten minutes for others.
    fn default() -> Self {
        Self { fresh: false, keep: Some(DEFAULT_IDLE), patience: Duration::from_secs(600) }
    }
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
        let dir = workspace::target_dir().join("lab");
        let plan = Plan::make(&Cache::open())?;
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
        let up = if options.fresh { None } else { plan.resume(instance.dir(), life, &log) };
        let up = match up {
            Some(up) => up,
            None => plan.boot(instance.dir(), life)?,
        };
        log.note(&format!("{:?} in {:.2} s", up.2, begun.elapsed().as_secs_f64()));
        let mut record = Record { key: plan.key.to_string(), ..Record::default() };
        record.pushed.extend(plan.baseline.iter().map(|(from, to)| (to.clone(), identity(from))));
        Self::ours(up, record, instance, log, options, 0)
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
        if let Err(fault) = client.lease(random_token()?, options.keep.unwrap_or(DEFAULT_IDLE)) {
            qemu.kill();
            instance.forget();
            return Err(fault.with_last_words(&qemu.last_words()));
        }
        record.pid = qemu.pid();
        record.started = qemu.started();
        record.port = client.port;
        record.token = client.token.clone();
        instance.store(&record)?;
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
        if error.kind() != std::io::ErrorKind::Other {
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

/// Ends the worktree's lab if one is up. Answers whether one was.
///
/// # Errors
/// When another process uses it.
pub fn down() -> Result<bool> {
    let dir = workspace::target_dir().join("lab");
    let instance = Instance::take(&dir.join("instance"), Duration::ZERO)?;
    let Some(record) = instance.load() else { return Ok(false) };
    let qemu = Qemu::adopt(instance.dir(), record.pid, record.started);
    instance.forget();
    Ok(qemu.is_some_and(|mut qemu| {
        qemu.kill();
        true
    }))
}

/// The token on QEMU's command line, and the one that counts once the machine runs.
struct Tokens<'a> {
    boot: &'a str,
    now: &'a str,
}

type Up = (Qemu, Client, Origin);

/// The files of a lab, all there.
struct Plan {
    cache: Cache,
    machine: Machine,
    /// What every lab has from its first boot on: host path, lab path.
    baseline: Vec<(PathBuf, String)>,
    /// What a saved state fits to.
    key: Key,
}

impl Plan {
    fn make(cache: &Cache) -> Result<Self> {
        let parts = Parts::fetch(cache)?;
        let root = debian::root_image(cache, &parts)?;
        let guest = guest::assets(cache)?;
        let agent = workspace::build_small("smartvm-lab", &["lab-agent"])?.remove(0);
        let key = Key::of([Key::of_files(&[&agent])?.as_str(), parts.kernel(), "1"].map(str::as_bytes));
        let boot = cache.entry("boot", &key, 3, |dir| {
            let modules = ["virtio_pci", "virtio_blk", "virtio_net", "overlay"];
            guest::initramfs(&dir.join("initrd"), &agent, &parts, &modules)
        })?;
        let baseline = vec![
            (crate::firecracker(), format!("{BIN}/firecracker")),
            (crate::jailer(), format!("{BIN}/jailer")),
            (guest.vmlinux, format!("{GUEST}/vmlinux")),
            (guest.initrd, format!("{GUEST}/initrd")),
        ];
        let machine = Machine { parts, initrd: boot.join("initrd"), root };
        let mut pieces = machine.parts.qemu();
        pieces.extend(machine.arguments(""));
        pieces.extend(baseline.iter().map(|(from, _)| identity(from)));
        let key = Key::of(pieces.iter().map(String::as_bytes));
        Ok(Self { cache: cache.clone(), machine, baseline, key })
    }

    /// Starts QEMU and waits for the agent, which wants to hear `token`.
    fn start(
        &self,
        dir: &Path,
        tokens: Tokens<'_>,
        incoming: Option<&str>,
        life: Life,
    ) -> Result<(Qemu, Client)> {
        let deadline = Instant::now() + if incoming.is_some() { RESUME } else { BOOT };
        let mut qemu = self.machine.start(dir, tokens.boot, incoming, life)?;
        let ready = (|| {
            let mut control = qemu.control(deadline)?;
            let port = control.agent_port()?;
            if incoming.is_some() {
                control.resume(deadline)?;
            }
            let client = Client { port, token: tokens.now.to_owned() };
            client.await_ready(deadline, || qemu.has_ended().then(|| "QEMU has ended".to_owned()))?;
            Ok(client)
        })();
        match ready {
            Ok(client) => Ok((qemu, client)),
            Err(fault) => {
                let words = qemu.last_words();
                qemu.kill();
                Err(Fault::with_last_words(fault, &words))
            }
        }
    }

    fn boot(&self, dir: &Path, life: Life) -> Result<Up> {
        progress("booting the emulated host");
        let token = random_token()?;
        let tokens = Tokens { boot: &token, now: &token };
        let (mut qemu, client) = self.start(dir, tokens, None, life)?;
        match self.baseline.iter().try_for_each(|(from, to)| client.push(from, to)) {
            Ok(()) => Ok((qemu, client, Origin::Booted)),
            Err(fault) => {
                qemu.kill();
                Err(fault)
            }
        }
    }

    /// Resumes from the saved state, made now if there is none. `None` when that does not work, which is not
    /// the end: booting may.
    fn resume(&self, dir: &Path, life: Life, log: &RunLog) -> Option<Up> {
        let attempt = || -> Result<Up> {
            let saved = self.cache.entry("saved", &self.key, 3, |dir| self.save(dir))?;
            let token = saved.join("token");
            let token = fs::read_to_string(&token).at("cannot read", &token)?;
            let (boot_token, token) = token.split_once(' ').unwrap_or_default();
            let link = dir.join(STATE);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(saved.join(STATE), &link).at("cannot make", &link)?;
            let tokens = Tokens { boot: boot_token, now: token };
            match self.start(dir, tokens, Some(&format!("exec:cat {STATE}")), life) {
                Ok((qemu, client)) => Ok((qemu, client, Origin::Resumed)),
                Err(fault) => {
                    // A state that does not come back once is not tried again.
                    let _ = fs::remove_dir_all(&saved);
                    Err(fault)
                }
            }
        };
        attempt()
            .inspect_err(|fault| {
                progress(&format!("cannot resume a saved lab: {}", fault.report()));
                log.note(&fault.report());
            })
            .ok()
    }

    /// Boots a machine and saves it.
    fn save(&self, dir: &Path) -> Result<()> {
        progress("booting the emulated host to save it (about 10 s, once)");
        let boot_token = random_token()?;
        let tokens = Tokens { boot: &boot_token, now: &boot_token };
        let (mut qemu, mut client) = self.start(dir, tokens, None, Life::WithUs)?;
        let saved = (|| {
            self.baseline.iter().try_for_each(|(from, to)| client.push(from, to))?;
            // The first token stood on QEMU's command line, where everyone can read it.
            client.lease(random_token()?, DEFAULT_IDLE)?;
            let mut control = qemu.control(Instant::now() + Duration::from_secs(60))?;
            control.save(STATE, Duration::from_secs(60))
        })();
        qemu.kill();
        saved?;
        let token = dir.join("token");
        write_private(&token, &format!("{boot_token} {}", client.token))
    }
}

/// The name of a saved state's file.
const STATE: &str = "state";

/// The lab that is up, if it is what the plan wants and answers. One that is not is ended.
fn kept(plan: &Plan, instance: &Instance, options: &Options, log: &RunLog) -> Option<(Qemu, Client, Record)> {
    let record = instance.load()?;
    let Some(mut qemu) = Qemu::adopt(instance.dir(), record.pid, record.started) else {
        instance.forget();
        return None;
    };
    let client = Client { port: record.port, token: record.token.clone() };
    let fits = !options.fresh && options.keep.is_some() && record.key == plan.key.as_str();
    if fits && client.ask(&Request::Ping, Duration::from_secs(5)).is_ok() {
        return Some((qemu, client, record));
    }
    log.note(&format!(
        "ending the lab of QEMU {}: {}",
        qemu.pid(),
        if fits { "no answer" } else { "not wanted" }
    ));
    qemu.kill();
    instance.forget();
    None
}

/// What a file is, cheaply: its content is not read.
fn identity(path: &Path) -> String {
    let meta = fs::metadata(path).ok();
    let time = meta.as_ref().and_then(|meta| meta.modified().ok());
    format!("{} {:?} {time:?}", path.display(), meta.map(|meta| meta.len()))
}

fn random_token() -> Result<String> {
    use std::io::Read;
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).at("cannot read", path)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .at("cannot write", path)
}
