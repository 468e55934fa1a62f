//! One machine, from its start to the release of everything it had.
//!
//! The handle ([`Machine`]) asks and watches. A task of its own, the keeper, waits for the VMM's end and releases: so a
//! guest that powers off is cleaned up after although nobody waits. If the runtime itself goes, the keeper is dropped
//! and does the same on the spot.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_core::id::MachineId;
use smartvm_firecracker::Client;
use smartvm_host::process::ProcessId;
use smartvm_host::{
    ConsoleInput, Ended, FirecrackerBinary, Ladder, Launch, LogOptions, Output, Readiness, Seccomp,
    SpawnError, StopError, Timeline, Vmm,
};
use tokio::sync::watch;

use crate::check::Checked;
use crate::gc;
use crate::host::Host;
use crate::machine_dir::{MachineDir, Refused};
use crate::record::{Record, replace};

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
        let (id, mut dir) = claim(host, options.id.clone()).await?;
        let failed = |what, path: PathBuf| {
            let id = id.clone();
            move |source| StartError::Host { id, what, path, source }
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
        let asked = Instant::now();
        let mut vmm = match Vmm::spawn(launch).await {
            Ok(vmm) => vmm,
            Err(source) => return Err(StartError::vmm(id, source, dir.remove())),
        };
        dir.confirm_vsock();
        let process = vmm.process_id().ok().flatten();
        let recorded = dir.write_record(&Record { vmm: process.clone(), ..record });
        let console_input = vmm.take_console_input();
        let vmm = Arc::new(vmm);
        let (keeper, released) = Keeper::new(Arc::clone(&vmm), process.clone(), dir);
        let path = keeper.path();
        let machine = Self { id, dir: path, vmm, console_input, asked, process, released };
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

    /// Climbs the ladder until the VMM has ended and everything was released. Idempotent; concurrent calls agree.
    ///
    /// # Errors
    /// The ladder's last rung did not end it in its time.
    ///
    /// # Cancel safety
    /// Rungs already tried stay tried.
    pub async fn stop(&self, ladder: &Ladder) -> Result<Released, StopError> {
        self.vmm.stop(ladder).await?;
        Ok(self.wait().await)
    }

    /// SIGKILL at once.
    ///
    /// # Errors
    /// See [`Machine::stop`].
    pub async fn kill(&self) -> Result<Released, StopError> {
        self.stop(&Ladder::kill_now()).await
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

fn random_id() -> Result<MachineId, StartError> {
    let mut random = [0; 5];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| StartError::Random { source: errno.into() })?;
    Ok(MachineId::generate(random))
}

/// Waits for the VMM's end and releases what the machine had.
struct Keeper {
    vmm: Arc<Vmm>,
    process: Option<ProcessId>,
    dir: Option<MachineDir>,
    released: watch::Sender<Option<Released>>,
}

/// How long a dropped keeper waits for its killed VMM: it blocks whoever drops the runtime.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

impl Keeper {
    fn new(
        vmm: Arc<Vmm>,
        process: Option<ProcessId>,
        dir: MachineDir,
    ) -> (Self, watch::Receiver<Option<Released>>) {
        let (sender, receiver) = watch::channel(None);
        (Self { vmm, process, dir: Some(dir), released: sender }, receiver)
    }

    fn path(&self) -> PathBuf {
        self.dir.as_ref().map(|dir| dir.path().to_owned()).unwrap_or_default()
    }

    async fn run(mut self) {
        let vmm = self.vmm.wait().await;
        let left_behind = self.dir.take().map(MachineDir::remove).unwrap_or_default();
        self.released.send_replace(Some(Released { vmm, left_behind }));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        if let Some(process) = self.process.as_ref().filter(|_| self.vmm.is_running()) {
            let _ = process.kill();
            let _ = gc::wait_until_gone(process, DROP_PATIENCE);
        }
        drop(dir);
    }
}

/// A machine that did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another owner has a machine of this name.
    #[error("machine `{id}` is already running{}", owner.map_or_else(String::new, |pid| format!(", owned by process {pid}")))]
    Busy {
        /// The name.
        id: MachineId,
        /// The owner's pid, where it is known.
        owner: Option<i32>,
    },
    /// What a dead owner left of a machine of this name could not be released.
    #[error("machine `{id}`: what a dead owner left in {} cannot be released: {why}", path.display())]
    Leftover {
        /// The name.
        id: MachineId,
        /// The directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The host refused a file operation.
    #[error("machine `{id}`: cannot {what} {}", path.display())]
    Host {
        /// The name.
        id: MachineId,
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
    /// The kernel gave no random bits for a name.
    #[error("cannot draw a name for the machine")]
    Random {
        /// The system call's error.
        source: io::Error,
    },
    /// Its VMM did not start.
    #[error("machine `{id}` did not start")]
    Vmm {
        /// The name.
        id: MachineId,
        /// Why not.
        source: Box<SpawnError>,
        /// What could not be removed afterwards.
        left_behind: Vec<String>,
    },
}

impl StartError {
    fn refused(id: MachineId, refused: Refused) -> Self {
        match refused {
            Refused::Busy { owner } => Self::Busy { id, owner },
            Refused::Leftover { path, why } => Self::Leftover { id, path, why },
            Refused::Io { what, path, source } => Self::Host { id, what, path, source },
        }
    }

    fn vmm(id: MachineId, source: SpawnError, left_behind: Vec<String>) -> Self {
        Self::Vmm { id, source: Box::new(source), left_behind }
    }

    /// What could not be removed after the failure; `smartvm gc` will try again.
    pub fn left_behind(&self) -> &[String] {
        match self {
            Self::Vmm { left_behind, .. } => left_behind,
            _ => &[],
        }
    }
}

impl Explain for StartError {
    fn code(&self) -> Code {
        match self {
            Self::Busy { .. } => Code::MachineBusy,
            Self::Leftover { .. } | Self::Host { .. } | Self::Random { .. } => Code::Host,
            Self::Vmm { source, .. } => source.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { id, .. } => Some(format!("use another --id, or stop it first: smartvm stop {id}")),
            Self::Leftover { .. } => Some("see what `smartvm gc` says, or use another --id".into()),
            Self::Host { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => Some("the file system of the runtime directory is full".into()),
                _ => None,
            },
            Self::Random { .. } => None,
            Self::Vmm { source, .. } => source.hint(),
        }
    }

    fn happened(&self) -> Happened {
        match self {
            Self::Vmm { source, .. } => source.happened(),
            _ => Happened::NeverStarted,
        }
    }

    fn last_words(&self) -> &[String] {
        match self {
            Self::Vmm { source, .. } => source.last_words(),
            _ => &[],
        }
    }
}
