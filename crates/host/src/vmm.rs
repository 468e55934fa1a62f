//! One running VMM: made ready, watched, stopped, cleaned up after.
//!
//! ```text
//! spawn ──> process runs ──> socket accepts ──> API answered ──> Vmm ──> stop / exit / drop
//!             │ exits: PROCESS_EXITED at once      │ API_TIMEOUT               every way: reaped, socket removed
//!             └ SOCKET_TIMEOUT                     └ both kill, reap and clean first
//! ```
//! Reaping and removing the socket is the watcher thread's work, so it happens whatever becomes of the handle and of
//! the async runtime.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use smartvm_firecracker::Client;
use smartvm_firecracker::api::InstanceInfo;
use tokio::time::timeout;

use crate::error::{SpawnError, StopError};
use crate::launch::Launch;
use crate::output::Output;
use crate::process::{Exit, ProcessId};
use crate::readiness::{end, ready};
use crate::spawner::{Boot, Owned, Started, start_vmm};
use crate::stuck::HangWatch;

/// A running Firecracker whose API answered.
///
/// Dropping it kills the VMM and has it cleaned up, unless it was started [`crate::Lifetime::Detached`].
#[derive(Debug)]
pub struct Vmm {
    owned: Owned,
    api: Client,
    api_sock: PathBuf,
    at_start: Option<InstanceInfo>,
    timeline: Timeline,
    console_input: Option<OwnedFd>,
}

/// When a start reached what, from the moment it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeline {
    /// The process runs Firecracker.
    pub process: Duration,
    /// Its socket accepted our connection. `None` for a guest that had ended by then.
    pub socket: Option<Duration>,
    /// The API answered; with a config file also: the VM was built and its guest runs.
    /// `None` for a guest that had ended by then.
    pub api: Option<Duration>,
    /// The guest's first byte on the console, or Firecracker's on standard output. `None`: none yet.
    pub first_byte: Option<Duration>,
}

/// How a VMM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its status or signal. Firecracker exits with 0 when the guest powers off, resets *or* crashes by a triple fault.
    pub exit: Exit,
    /// The highest rung that was tried before it ended; `None` when nobody asked it to.
    pub by: Option<Rung>,
}

/// A step of the stop ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rung {
    /// The keys Ctrl+Alt+Del for the guest, which may obey or not (x86 only).
    CtrlAltDel = 0,
    /// SIGTERM to the VMM.
    Terminate = 1,
    /// SIGKILL to the VMM.
    Kill = 2,
}

impl Rung {
    /// The rung in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CtrlAltDel => "Ctrl+Alt+Del",
            Self::Terminate => "SIGTERM",
            Self::Kill => "SIGKILL",
        }
    }

    /// From the watcher's note: 0 is none, else the rung's number plus one.
    pub(crate) const fn from_tried(tried: u8) -> Option<Self> {
        match tried {
            0 => None,
            1 => Some(Self::CtrlAltDel),
            2 => Some(Self::Terminate),
            _ => Some(Self::Kill),
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which rungs to try, in this order, and how long to wait after each. `None` skips a rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder {
    /// Default: skipped. A Linux guest reboots upon it, which ends the VMM.
    pub ctrl_alt_del: Option<Duration>,
    /// Default: 5 s.
    pub terminate: Option<Duration>,
    /// Default: 1 s.
    pub kill: Option<Duration>,
}

impl Default for Ladder {
    fn default() -> Self {
        Self {
            ctrl_alt_del: None,
            terminate: Some(Duration::from_secs(5)),
            kill: Some(Duration::from_secs(1)),
        }
    }
}

impl Ladder {
    /// The default ladder with Ctrl+Alt+Del in front, so that the guest can end in order within `patience`.
    pub fn guest_first(patience: Duration) -> Self {
        Self { ctrl_alt_del: Some(patience), ..Self::default() }
    }

    /// SIGKILL at once.
    pub fn kill_now() -> Self {
        Self { terminate: None, ..Self::default() }
    }

    fn rungs(&self) -> impl Iterator<Item = (Rung, Duration)> {
        let rungs = [
            (Rung::CtrlAltDel, self.ctrl_alt_del),
            (Rung::Terminate, self.terminate),
            (Rung::Kill, self.kill),
        ];
        rungs.into_iter().filter_map(|(rung, patience)| Some((rung, patience?)))
    }
}

impl Vmm {
    /// Starts a VMM and waits until its API answers.
    ///
    /// A guest that a config file boots may end in order before the API answers: then the returned VMM has
    /// ended already.
    ///
    /// A stale socket file at the path is removed; a socket that a live process answers on is never touched.
    ///
    /// Needs a tokio runtime with I/O and time. A process forked from one that has started a VMM cannot start any: it
    /// lacks the threads that do so.
    ///
    /// # Errors
    /// See [`SpawnError`]. Every failure leaves no process and no socket.
    ///
    /// # Cancel safety
    /// When the future is dropped, the VMM is killed and cleaned up, also a detached one.
    pub async fn spawn(mut launch: Launch) -> Result<Self, SpawnError> {
        let asked = Instant::now();
        let (readiness, boot) = (launch.readiness, Boot::of(&launch));
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|source| SpawnError::host("resolve a relative path", source))
        };
        launch.exec_file = absolute(&launch.exec_file)?;
        let api_sock = absolute(&launch.api_sock)?;
        launch.api_sock.clone_from(&api_sock);
        let mut started = start_vmm(launch).await?;
        match ready(&mut started, &api_sock, readiness, boot).await {
            Ok(ready) => {
                let since = |moment: Instant| moment.saturating_duration_since(asked);
                let timeline = Timeline {
                    process: since(started.owned.child.running),
                    socket: ready.socket.map(since),
                    api: ready.api.map(since),
                    first_byte: None,
                };
                let Started { mut owned, console_input, .. } = started;
                owned.settle();
                // Weak: the client may outlive the VMM's handle, and must not keep its descriptors.
                let (child, watch) = (Arc::downgrade(&owned.child), HangWatch::default());
                let api = ready.client.with_peer(owned.child.pid.as_raw_pid()).with_attendant(move || {
                    if let Some(child) = child.upgrade() {
                        watch.look(&child);
                    }
                });
                Ok(Self { owned, api, api_sock, at_start: ready.info, timeline, console_input })
            }
            Err(error) => {
                // Also waits, so that nothing is left when the caller reads the error.
                end(&started.owned).await;
                Err(error)
            }
        }
    }

    /// The VMM's pid in our pid namespace. It names the VMM only while [`Vmm::is_running`].
    pub fn pid(&self) -> i32 {
        self.owned.child.pid.as_raw_pid()
    }

    /// The VMM's identity, to be written down for a later process; `None` when it has ended.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn process_id(&self) -> io::Result<Option<ProcessId>> {
        self.owned.child.process_id()
    }

    /// Whether the VMM has not ended.
    pub fn is_running(&self) -> bool {
        self.owned.child.ended().is_none()
    }

    /// The client on the VMM's API.
    pub fn api(&self) -> &Client {
        &self.api
    }

    /// The absolute path of the API socket.
    pub fn api_sock(&self) -> &Path {
        &self.api_sock
    }

    /// What the VMM said of itself when it became ready. `None` with a config file: it is not asked then, since Firecracker
    /// hangs or panics when a request meets its guest's end or a config that cannot work.
    pub fn at_start(&self) -> Option<&InstanceInfo> {
        self.at_start.as_ref()
    }

    /// How long the start took, and when the first console byte came.
    pub fn timeline(&self) -> Timeline {
        let child = &self.owned.child;
        let asked = child.running.checked_sub(self.timeline.process).unwrap_or(child.running);
        let first_byte = child.first_output().map(|moment| moment.saturating_duration_since(asked));
        Timeline { first_byte, ..self.timeline }
    }

    /// The guest's serial console: the VMM's standard output. Empty for a detached VMM.
    pub fn console(&self) -> &Output {
        &self.owned.child.console
    }

    /// The VMM's own words: its standard error, and its log unless that has a file of its own. Empty for a detached VMM.
    pub fn diagnostics(&self) -> &Output {
        &self.owned.child.diagnostics
    }

    /// The write end of the guest's console, non-blocking; `Some` once, and only with [`crate::ConsoleInput::Pipe`].
    /// Closing it ends the guest's input and nothing else.
    pub fn take_console_input(&mut self) -> Option<OwnedFd> {
        self.console_input.take()
    }

    /// Waits until the VMM has ended, was reaped, and its socket removed. Any number may wait at once, on any runtime.
    ///
    /// # Cancel safety
    /// Nothing happens when the future is dropped.
    pub async fn wait(&self) -> Ended {
        self.owned.child.wait().await
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.owned.child.ended()
    }

    /// Climbs the ladder until the VMM has ended, was reaped, and its socket removed.
    ///
    /// Calling it again, or from several places at once, is fine: each climbs its own ladder, and all get the same
    /// answer. A VMM that had ended already answers at once.
    ///
    /// # Errors
    /// [`StopError::StillRunning`] when the ladder's last rung did not end it in its time.
    ///
    /// # Cancel safety
    /// Rungs already tried stay tried; the VMM is not brought to its end by this call any more.
    pub async fn stop(&self, ladder: &Ladder) -> Result<Ended, StopError> {
        let child = &self.owned.child;
        let mut tried = Vec::new();
        for (rung, patience) in ladder.rungs() {
            if let Some(ended) = child.ended() {
                return Ok(ended);
            }
            tried.push(rung);
            let begun = Instant::now();
            child.note(rung);
            match rung {
                Rung::CtrlAltDel => {
                    // A VMM that does not even take the request gets the next rung at once.
                    let api = self.api.with_deadline(Some(patience));
                    let asked = api.send_ctrl_alt_del();
                    match timeout(patience, asked).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::debug!(pid = self.pid(), %error, "Ctrl+Alt+Del was not taken");
                            continue;
                        }
                        Err(_) => continue,
                    }
                }
                Rung::Terminate => child.signal(Signal::TERM),
                Rung::Kill => child.signal(Signal::KILL),
            }
            if let Ok(ended) = timeout(patience.saturating_sub(begun.elapsed()), child.wait()).await {
                return Ok(ended);
            }
        }
        child.ended().ok_or(StopError::StillRunning { pid: self.pid(), tried })
    }
}
