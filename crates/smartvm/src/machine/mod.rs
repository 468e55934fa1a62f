//! One machine, from its start to the release of everything it had.
//!
//! The handle ([`Machine`]) asks and watches. A task of its own, the keeper, waits for the VMM's end and releases: so a
//! guest that powers off is cleaned up after although nobody waits. If the runtime itself goes, the keeper is dropped
//! and does the same on the spot.

mod belongings;
mod error;
mod keeper;
mod life;
mod log_file;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use smartvm_core::id::MachineId;
use smartvm_core::machine::{Event, Request, State};
use smartvm_firecracker::{ApiError, Client};
use smartvm_host::process::ProcessId;
use smartvm_host::{
    ConsoleInput, Ended, FirecrackerBinary, Ladder, Launch, LogOptions, Output, Readiness, Seccomp,
    StopError, Timeline, Vmm,
};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::check::Checked;
use crate::firecracker::use_of_store;
use crate::host::Host;
use crate::machine_dir::{MachineDir, Refused};
use crate::record::{Record, replace};
pub(crate) use belongings::Belongings;
pub use error::{RequestError, StartError};
use keeper::{Keeper, release};
use life::Life;
use log_file::LogFile;

/// How to start a machine, beside its config.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Its name; drawn at random when absent.
    pub id: Option<MachineId>,
    /// Firecracker's log. Without a path of its own it comes to [`Machine::diagnostics`].
    pub log: LogOptions,
    /// Adds the boot timer device.
    pub boot_timer: bool,
    /// Virtio over PCI, Firecracker 1.13 or later.
    pub enable_pci: bool,
    /// The VMM's seccomp filter.
    pub seccomp: Seccomp,
    /// First contents of the metadata service, a JSON file.
    pub metadata: Option<PathBuf>,
    /// What the guest's serial console reads.
    pub console_input: ConsoleInput,
    /// How many bytes of the console and of the diagnostics are kept, each.
    pub keep_output: usize,
    /// How long the start may take.
    pub readiness: Readiness,
}

impl Default for StartOptions {
    /// A random name, Firecracker's defaults, no console input, 64 KiB of each output.
    fn default() -> Self {
        Self {
            id: None,
            log: LogOptions::default(),
            boot_timer: false,
            enable_pci: false,
            seccomp: Seccomp::Default,
            metadata: None,
            console_input: ConsoleInput::Null,
            keep_output: 64 * 1024,
            readiness: Readiness::default(),
        }
    }
}

/// A started machine. Dropping the handle kills the VMM and has everything released.
#[derive(Debug)]
pub struct Machine {
    id: MachineId,
    dir: PathBuf,
    vmm: Arc<Vmm>,
    console_input: Option<std::os::fd::OwnedFd>,
    asked: Instant,
    process: Option<ProcessId>,
    life: Arc<Life>,
    log: LogFile,
    released: watch::Receiver<Option<Released>>,
}

/// How a machine ended. Everything it had was released, but for `left_behind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// How the VMM ended.
    pub vmm: Ended,
    /// What could not be removed; `smartvm gc` will try again.
    pub left_behind: Vec<String>,
}

/// How many lines of Firecracker's log an error carries.
const LAST_WORDS: usize = 20;

impl Machine {
    /// Starts a machine and waits until its VMM answers; then the guest runs.
    ///
    /// The file-system work is done on the calling thread (some 0.2 ms); only leftovers of a dead owner of the same id
    /// are released elsewhere, however long that takes.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing of the machine is left then, but for what the error names.
    ///
    /// # Cancel safety
    /// When the future is dropped, the VMM is killed and everything released.
    pub async fn start(
        host: &Host,
        firecracker: &FirecrackerBinary,
        config: &Checked,
        options: StartOptions,
    ) -> Result<Self, StartError> {
        Self::start_with(host, firecracker, config, options, None).await
    }

    /// The same for a machine that has more than its directory: that is released with it, and says what the machine uses of
    /// the store, its Firecracker too.
    pub(crate) async fn start_with(
        host: &Host,
        firecracker: &FirecrackerBinary,
        config: &Checked,
        options: StartOptions,
        belongings: Option<Belongings>,
    ) -> Result<Self, StartError> {
        let life = Arc::new(Life::new());
        // A life that begins allows it.
        let _ = life.ask(Request::Start);
        let (id, mut dir) = claim(host, options.id.clone()).await?;
        life.on(Event::DirectoryMade);
        let failed = |what, path: PathBuf| {
            let id = id.clone();
            move |source| StartError::Host { id, what, path, source }
        };
        let belongings = match belongings {
            Some(belongings) => belongings,
            None => Belongings::using(
                use_of_store(host, &firecracker.path, id.as_str())
                    .await
                    .map_err(failed("mark as used", firecracker.path.clone()))?,
            ),
        };
        if let Some(vsock) = &config.spec.vsock {
            let path = vsock.uds_path.clone();
            smartvm_host::socket_path::make_way(&path)
                .map_err(|source| StartError::vmm(id.clone(), source, Vec::new()))?;
            dir.expect_vsock(path);
        }
        let record = Record {
            id: id.clone(),
            owner: ProcessId::own().map_err(failed("look at", "/proc/self".into()))?,
            vmm: None,
            vsock: dir.vsock().map(Path::to_owned),
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            firecracker: firecracker.version.to_string(),
            config_file: config.file.clone(),
        };
        dir.write_record(&record).map_err(failed("write the record", dir.file("machine.json")))?;
        let config_file = dir.file("config.json");
        replace(&config_file, config.json.as_bytes()).map_err(failed("write", config_file.clone()))?;
        let logger = config.spec.logger.as_ref().and_then(|logger| logger.log_path.clone());
        let log_path = logger.or_else(|| options.log.path.clone());
        let launch = Launch {
            id: Some(id.as_str().to_owned()),
            config_file: Some(config_file),
            metadata: options.metadata,
            log: options.log,
            boot_timer: options.boot_timer,
            enable_pci: options.enable_pci,
            seccomp: options.seccomp,
            current_dir: Some(dir.path().to_owned()),
            console_input: options.console_input,
            keep_output: options.keep_output,
            readiness: options.readiness,
            ..Launch::new(&firecracker.path, dir.file("api.sock"))
        };
        let log = LogFile::begin(log_path);
        let asked = Instant::now();
        let mut vmm = match Vmm::spawn(launch).await {
            Ok(vmm) => vmm,
            Err(source) => {
                let effects = life.on(Event::SpawnFailed);
                let mut left_behind = belongings.release();
                left_behind.extend(release(&life, effects, &mut Some(dir)));
                return Err(StartError::vmm(id, source, left_behind).with_log(log.last_lines(LAST_WORDS)));
            }
        };
        life.on(Event::VmmSpawned);
        life.on(Event::Booted);
        dir.confirm_vsock();
        // It was not asked: see `Vmm::at_start`.
        let _ = vmm.api().clone().with_version(firecracker.version.clone());
        let process = vmm.process_id().ok().flatten();
        let recorded = dir.write_record(&Record { vmm: process.clone(), ..record });
        let console_input = vmm.take_console_input();
        let vmm = Arc::new(vmm);
        let (sender, released) = watch::channel(None);
        let keeper = Keeper {
            vmm: Arc::clone(&vmm),
            process: process.clone(),
            life: Arc::clone(&life),
            dir: Some(dir),
            belongings: Some(belongings),
            released: sender,
        };
        let machine =
            Self { id, dir: keeper.path(), vmm, console_input, asked, process, life, log, released };
        tokio::spawn(keeper.run());
        if let Err(source) = recorded {
            let path = machine.dir.join("machine.json");
            let id = machine.id.clone();
            let _ = machine.kill().await;
            return Err(StartError::Host { id, what: "write the record", path, source });
        }
        Ok(machine)
    }

    /// The machine's name.
    pub fn id(&self) -> &MachineId {
        &self.id
    }

    /// The machine's directory; gone when the machine was released.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The VMM's pid, while it runs.
    pub fn pid(&self) -> i32 {
        self.vmm.pid()
    }

    /// Firecracker's API.
    pub fn api(&self) -> &Client {
        self.vmm.api()
    }

    /// The guest's serial console.
    pub fn console(&self) -> &Output {
        self.vmm.console()
    }

    /// Firecracker's own words: its log and its standard error.
    pub fn diagnostics(&self) -> &Output {
        self.vmm.diagnostics()
    }

    /// The last `most` lines of Firecracker's log, wherever it goes: the user's config may name a file of its own.
    pub fn last_words(&self, most: usize) -> Vec<String> {
        // Before Firecracker has read its config it logs to us: the file has the later lines.
        let lines = self.log.last_lines(most);
        if lines.is_empty() { self.diagnostics().last_lines(most) } else { lines }
    }

    /// The write end of the guest's console; `Some` once, and only with [`ConsoleInput::Pipe`].
    pub fn take_console_input(&mut self) -> Option<std::os::fd::OwnedFd> {
        self.console_input.take()
    }

    /// When the start reached what.
    pub fn timeline(&self) -> Timeline {
        self.vmm.timeline()
    }

    /// The moment from which [`Machine::timeline`] counts.
    pub fn asked(&self) -> Instant {
        self.asked
    }

    /// Waits until the VMM has ended and everything was released. Any number may wait.
    ///
    /// # Cancel safety
    /// Nothing happens when the future is dropped.
    pub async fn wait(&self) -> Released {
        let mut released = self.released.clone();
        let end = match released.wait_for(Option::is_some).await {
            Ok(end) if end.is_some() => end.clone(),
            // The keeper was dropped with its runtime: it released on the spot.
            _ => None,
        };
        match end {
            Some(end) => end,
            None => Released { vmm: self.vmm.wait().await, left_behind: Vec::new() },
        }
    }

    /// Where the machine is in its life.
    pub fn state(&self) -> State {
        *self.life.watch().borrow()
    }

    /// Follows the machine's state: the present one, and each that comes.
    pub fn states(&self) -> watch::Receiver<State> {
        self.life.watch()
    }

    /// Lets the guest's vCPUs stand still.
    ///
    /// # Errors
    /// The state does not allow it, or Firecracker did not do it.
    ///
    /// # Cancel safety
    /// What was begun goes on to its end.
    pub async fn pause(&self) -> Result<(), RequestError> {
        let outcomes = (Event::VmPaused, Event::PauseFailed);
        self.request(Request::Pause, outcomes, |api| async move { api.pause().await }).await
    }

    /// Lets the guest's vCPUs go on.
    ///
    /// # Errors
    /// As [`Machine::pause`].
    ///
    /// # Cancel safety
    /// As [`Machine::pause`].
    pub async fn resume(&self) -> Result<(), RequestError> {
        let outcomes = (Event::VmResumed, Event::ResumeFailed);
        self.request(Request::Resume, outcomes, |api| async move { api.resume().await }).await
    }

    async fn request<F>(
        &self,
        request: Request,
        (done, failed): (Event, Event),
        perform: impl FnOnce(Client) -> F,
    ) -> Result<(), RequestError>
    where
        F: Future<Output = Result<(), ApiError>> + Send + 'static,
    {
        let id = || self.id.clone();
        self.life.ask(request).map_err(|source| RequestError::State { id: id(), source })?;
        let (life, performed) = (Arc::clone(&self.life), perform(self.api().clone()));
        // A caller that goes away must not leave the state in between.
        let task = tokio::spawn(async move {
            let outcome = performed.await;
            life.on(if outcome.is_ok() { done } else { failed });
            outcome
        });
        match task.await {
            Ok(outcome) => outcome.map_err(|source| RequestError::Api { id: id(), source }),
            Err(_) => Err(RequestError::Interrupted { id: id() }),
        }
    }

    /// Climbs the ladder until the VMM has ended and everything was released. Idempotent; concurrent calls agree.
    ///
    /// # Errors
    /// The ladder's last rung did not end it in its time.
    ///
    /// # Cancel safety
    /// Rungs already tried stay tried.
    pub async fn stop(&self, ladder: &Ladder) -> Result<Released, StopError> {
        self.end(Request::Stop, ladder).await
    }

    /// SIGKILL at once.
    ///
    /// # Errors
    /// See [`Machine::stop`].
    pub async fn kill(&self) -> Result<Released, StopError> {
        self.end(Request::Kill, &Ladder::kill_now()).await
    }

    async fn end(&self, request: Request, ladder: &Ladder) -> Result<Released, StopError> {
        // Never refused. No effect: somebody is stopping it already, or it has ended.
        let effects = self.life.ask(request).unwrap_or_default();
        if effects.is_empty() {
            // A second climber would only disturb the first; but that one may have lost its patience, or its caller.
            let patience = [ladder.ctrl_alt_del, ladder.terminate, ladder.kill].into_iter().flatten().sum();
            if let Ok(released) = timeout(patience, self.wait()).await {
                return Ok(released);
            }
        }
        if let Err(error) = self.vmm.stop(ladder).await {
            self.life.on(Event::StopFailed);
            return Err(error);
        }
        Ok(self.wait().await)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.vmm.is_running()
            && let Some(process) = &self.process
            && let Err(error) = process.kill()
        {
            tracing::warn!(id = %self.id, %error, "cannot kill the VMM");
        }
    }
}

/// Tries a few names when none was given: two machines may draw the same.
async fn claim(host: &Host, id: Option<MachineId>) -> Result<(MachineId, MachineDir), StartError> {
    let given = id.is_some();
    let mut id = match id {
        Some(id) => id,
        None => random_id()?,
    };
    for _ in 0..8 {
        match claim_one(host, &id).await {
            Ok(dir) => return Ok((id, dir)),
            Err(Refused::Busy { .. }) if !given => id = random_id()?,
            Err(refused) => return Err(StartError::refused(id, refused)),
        }
    }
    Err(StartError::Busy { id, owner: None })
}

async fn claim_one(host: &Host, id: &MachineId) -> Result<MachineDir, Refused> {
    if let Some(dir) = MachineDir::try_claim(host, id)? {
        return Ok(dir);
    }
    let (host, name) = (host.clone(), id.clone());
    match tokio::task::spawn_blocking(move || MachineDir::claim(&host, &name)).await {
        Ok(claimed) => claimed,
        Err(error) => Err(Refused::Io {
            what: "wait for",
            path: PathBuf::from(id.as_str()),
            source: io::Error::other(error),
        }),
    }
}

pub(crate) fn random_id() -> Result<MachineId, StartError> {
    let mut random = [0; 5];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| StartError::Random { source: errno.into() })?;
    Ok(MachineId::generate(random))
}
