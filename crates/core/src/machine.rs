//! The life of a machine: which event leads to which state, and what is to be done on the way there.
//!
//! [`decide`] is pure. The owner of a machine keeps one [`Machine`], feeds it every event in the order of
//! arrival, performs the [`Effect`]s it gets back beside its loop, and reports each one's outcome as an event.
//!
//! ```text
//!            start            booted            pause            paused
//!  created ────────▶ starting ───────▶ running ───────▶ pausing ───────▶ paused
//!     │                 │                │  ▲                              │
//!     │ stop, kill      │ failure        │  └──────────── resuming ◀───────┘ resume
//!     │                 ▼                ▼  stop, kill, or the VMM ended by itself
//!     │              stopping ◀──────────┘  (from every living state)
//!     │                 │ all released
//!     ▼                 ▼
//!  stopped           stopped, or failed
//! ```
//!
//! What holds whatever comes in whatever order (property-tested below):
//!
//! * The VMM may end at any time, asked or not: [`Event::VmmExited`] is taken in every state.
//! * `stop` and `kill` are taken in every state, and asking twice is as good as once. `kill` overtakes a `stop`
//!   that is under way; both overtake a start. Other requests are [`Refused`] where they make no sense.
//! * `stopped` and `failed` are reached only when nothing is held any more, and are final.
//! * Resources are released newest first, each once, the socket and the directory never before the process
//!   is gone. A release that failed is kept, does not hold up the others, and is tried again with the next `stop` or `kill`.
//! * An outcome that comes late (booted, while already stopping) changes nothing but what is held.

use std::fmt;

use crate::explain::{Code, Explain, Happened};

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Known, and nothing made yet.
    Created,
    /// Its resources are being made, and the guest booted.
    Starting,
    /// The guest runs.
    Running,
    /// The guest runs, and is being paused.
    Pausing,
    /// The guest's vCPUs stand still.
    Paused,
    /// The guest's vCPUs stand still, and are being resumed.
    Resuming,
    /// The VMM is being ended, or has ended, and what was made is being released.
    Stopping(Ending),
    /// It ended as it should, and nothing is left of it.
    Stopped(Ending),
    /// It ended as it should not, and nothing is left of it.
    Failed(Ending),
}

impl State {
    /// The state as users see it, one of seven: a machine counts as running until it has paused, and
    /// as paused until it has resumed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running | Self::Pausing => "running",
            Self::Paused | Self::Resuming => "paused",
            Self::Stopping(_) => "stopping",
            Self::Stopped(_) => "stopped",
            Self::Failed(_) => "failed",
        }
    }

    /// What may be asked of a machine in this state.
    pub const fn allowed(self) -> &'static [Request] {
        match self {
            Self::Created => &[Request::Start, Request::Stop, Request::Kill],
            Self::Running => &[Request::Pause, Request::Stop, Request::Kill],
            Self::Paused => &[Request::Resume, Request::Stop, Request::Kill],
            Self::Starting | Self::Pausing | Self::Resuming => &[Request::Stop, Request::Kill],
            Self::Stopping(_) | Self::Stopped(_) | Self::Failed(_) => &[Request::Stop, Request::Kill],
        }
    }

    /// The resources that a machine in this state may hold, oldest first.
    pub const fn may_hold(self) -> &'static [Resource] {
        match self {
            Self::Created | Self::Stopped(_) | Self::Failed(_) => &[],
            _ => &[Resource::Directory, Resource::Socket, Resource::Process],
        }
    }

    /// Whether nothing follows any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Failed(_))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a machine ends, the first reason counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// It was asked to.
    Asked,
    /// The VMM ended by itself: with success when the guest shut down, or else by a failure.
    Exited(VmmExit),
    /// The VMM ended before the guest was started.
    ExitedEarly(VmmExit),
    /// Its directory could not be made.
    DirectoryFailed,
    /// The VMM could not be started.
    SpawnFailed,
    /// The VMM did not become ready, or refused the configuration.
    BootFailed,
}

impl Ending {
    const fn state(self) -> State {
        match self {
            Self::Asked | Self::Exited(VmmExit::Code(0)) => State::Stopped(self),
            _ => State::Failed(self),
        }
    }
}

/// How the VMM's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmmExit {
    /// With this exit status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What can be asked of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Make what it needs and boot the guest.
    Start,
    /// Let the vCPUs stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// End it, gently first.
    Stop,
    /// End it at once.
    Kill,
}

impl Request {
    /// The request as users write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::Kill => "kill",
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a machine holds on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// The machine's directory.
    Directory,
    /// The API socket's file, which the VMM makes.
    Socket,
    /// The VMM's process.
    Process,
}

/// Everything that can happen to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Somebody asked for something.
    Asked(Request),
    /// [`Effect::MakeDirectory`] succeeded.
    DirectoryMade,
    /// [`Effect::MakeDirectory`] failed, and left nothing.
    DirectoryFailed,
    /// [`Effect::SpawnVmm`] succeeded: from here on there may be a socket, too.
    VmmSpawned,
    /// [`Effect::SpawnVmm`] failed, and left nothing.
    SpawnFailed,
    /// [`Effect::BootVm`] succeeded.
    Booted,
    /// [`Effect::BootVm`] failed. The VMM may still be there.
    BootFailed,
    /// [`Effect::PauseVm`] succeeded.
    VmPaused,
    /// [`Effect::PauseVm`] failed.
    PauseFailed,
    /// [`Effect::ResumeVm`] succeeded.
    VmResumed,
    /// [`Effect::ResumeVm`] failed.
    ResumeFailed,
    /// [`Effect::StopVmm`] or [`Effect::KillVmm`] came to its end, and the VMM is still there.
    StopFailed,
    /// The VMM's process ended and was waited for. It comes once, for every VMM that was spawned.
    VmmExited(VmmExit),
    /// [`Effect::Release`] succeeded.
    Released(Resource),
    /// [`Effect::Release`] failed: the resource is still there.
    ReleaseFailed(Resource),
}

/// What the owner is to do. Every effect but stop and kill, which end in
/// [`Event::VmmExited`] or [`Event::StopFailed`], has its own outcomes in [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Make the machine's directory.
    MakeDirectory,
    /// Start the VMM.
    SpawnVmm,
    /// Wait until the VMM is ready, and start the guest.
    BootVm,
    /// Pause the guest.
    PauseVm,
    /// Resume the guest.
    ResumeVm,
    /// Climb the ladder until the VMM ends.
    StopVmm,
    /// Kill the VMM now; it overtakes [`Effect::StopVmm`].
    KillVmm,
    /// Remove the socket's file or the directory.
    Release(Resource),
}

/// A request that the machine's state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {request} a machine that is {state}")]
pub struct Refused {
    /// What was asked.
    pub request: Request,
    /// The state at that moment.
    pub state: State,
    /// What could be asked instead.
    pub allowed: &'static [Request],
}

impl Explain for Refused {
    fn code(&self) -> Code {
        Code::InvalidState
    }

    fn hint(&self) -> Option<String> {
        let allowed: Vec<_> = self.allowed.iter().map(|request| request.as_str()).collect();
        let wait = match self.state {
            State::Starting | State::Pausing | State::Resuming => " Or wait until it has settled.",
            _ => "",
        };
        Some(format!("Possible now: {}.{wait}", allowed.join(", ")))
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

/// A machine's state and what it holds. A value: [`decide`] makes the next one of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Machine {
    state: State,
    directory: Slot,
    socket: Slot,
    process: Slot,
}

/// The place of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Slot {
    /// Not made, or released: there is none, and never will be again if it has been there.
    Absent,
    /// An effect makes it.
    Making,
    /// It is there.
    Held,
    /// An effect releases it.
    Releasing,
    /// It is there, and releasing it failed.
    Stuck,
}

impl Default for Machine {
    fn default() -> Self {
        Self { state: State::Created, directory: Slot::Absent, socket: Slot::Absent, process: Slot::Absent }
    }
}

impl Machine {
    /// The present state.
    pub fn state(&self) -> State {
        self.state
    }

    /// What is there or may be there: made, being made or being released; oldest first.
    pub fn held(&self) -> Vec<Resource> {
        let slots = [
            (Resource::Directory, self.directory),
            (Resource::Socket, self.socket),
            (Resource::Process, self.process),
        ];
        slots.into_iter().filter(|(_, slot)| *slot != Slot::Absent).map(|(resource, _)| resource).collect()
    }
}

/// The machine after `event`, and what is to be done now, in this order.
///
/// # Errors
/// [`Refused`], for a request that the state does not allow. Other events are never refused; one that
/// no effect can have caused changes nothing.
pub fn decide(machine: Machine, event: Event) -> Result<(Machine, Vec<Effect>), Refused> {
    let mut next = machine;
    let mut effects = Vec::new();
    match event {
        Event::Asked(request) => next.ask(request, &mut effects)?,
        Event::VmmExited(exit) => next.vmm_exited(exit),
        Event::Released(resource) => next.released(resource, Slot::Absent),
        Event::ReleaseFailed(resource) => next.released(resource, Slot::Stuck),
        Event::StopFailed if next.process == Slot::Releasing => next.process = Slot::Stuck,
        Event::StopFailed => {}
        outcome => next.outcome(outcome, &mut effects),
    }
    next.release(&mut effects);
    Ok((next, effects))
}

impl Machine {
    fn ask(&mut self, request: Request, effects: &mut Vec<Effect>) -> Result<(), Refused> {
        match (self.state, request) {
            (State::Created, Request::Start) => {
                self.state = State::Starting;
                self.directory = Slot::Making;
                effects.push(Effect::MakeDirectory);
            }
            (State::Running, Request::Pause) => {
                self.state = State::Pausing;
                effects.push(Effect::PauseVm);
            }
            (State::Paused, Request::Resume) => {
                self.state = State::Resuming;
                effects.push(Effect::ResumeVm);
            }
            (_, Request::Stop | Request::Kill) => self.ask_to_end(request, effects),
            (state, request) => return Err(Refused { request, state, allowed: state.allowed() }),
        }
        Ok(())
    }

    fn ask_to_end(&mut self, request: Request, effects: &mut Vec<Effect>) {
        if self.state.is_final() {
            return;
        }
        self.end(Ending::Asked);
        for slot in [&mut self.directory, &mut self.socket, &mut self.process] {
            if *slot == Slot::Stuck {
                *slot = Slot::Held;
            }
        }
        match (request, self.process) {
            (Request::Stop, Slot::Held) => effects.push(Effect::StopVmm),
            (Request::Kill, Slot::Held | Slot::Releasing) => effects.push(Effect::KillVmm),
            // No VMM yet, or none any more, or it is being stopped already.
            _ => return,
        }
        self.process = Slot::Releasing;
    }

    /// The outcomes of effects other than those that end something.
    fn outcome(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let starting = self.state == State::Starting;
        match event {
            Event::DirectoryMade if self.directory == Slot::Making => {
                self.directory = Slot::Held;
                if starting {
                    self.process = Slot::Making;
                    effects.push(Effect::SpawnVmm);
                }
            }
            Event::DirectoryFailed if self.directory == Slot::Making => {
                self.directory = Slot::Absent;
                self.end(Ending::DirectoryFailed);
            }
            Event::VmmSpawned if self.process == Slot::Making => {
                self.process = Slot::Held;
                self.socket = Slot::Held;
                if starting {
                    effects.push(Effect::BootVm);
                }
            }
            Event::SpawnFailed if self.process == Slot::Making => {
                self.process = Slot::Absent;
                self.end(Ending::SpawnFailed);
            }
            Event::Booted if starting && self.process == Slot::Held => self.state = State::Running,
            Event::BootFailed if starting && self.process == Slot::Held => self.end(Ending::BootFailed),
            Event::VmPaused if self.state == State::Pausing => self.state = State::Paused,
            Event::PauseFailed if self.state == State::Pausing => self.state = State::Running,
            Event::VmResumed if self.state == State::Resuming => self.state = State::Running,
            Event::ResumeFailed if self.state == State::Resuming => self.state = State::Paused,
            // Overtaken by a stop or by the VMM's end.
            _ => {}
        }
    }

    fn vmm_exited(&mut self, exit: VmmExit) {
        match self.process {
            Slot::Absent => return,
            // The news of the end overtook the news of the beginning, which will be ignored.
            Slot::Making => self.socket = Slot::Held,
            Slot::Held | Slot::Releasing | Slot::Stuck => {}
        }
        self.process = Slot::Absent;
        let early = self.state == State::Starting;
        self.end(if early { Ending::ExitedEarly(exit) } else { Ending::Exited(exit) });
    }

    fn released(&mut self, resource: Resource, slot: Slot) {
        let place = match resource {
            Resource::Directory => &mut self.directory,
            Resource::Socket => &mut self.socket,
            // The process is released by its exit and by nothing else.
            Resource::Process => return,
        };
        if *place == Slot::Releasing {
            *place = slot;
        }
    }

    /// Goes to `stopping`, where the first reason stays.
    fn end(&mut self, ending: Ending) {
        if !matches!(self.state, State::Stopping(_) | State::Stopped(_) | State::Failed(_)) {
            self.state = State::Stopping(ending);
        }
    }

    /// While stopping: the next step of releasing, newest resource first.
    fn release(&mut self, effects: &mut Vec<Effect>) {
        let State::Stopping(ending) = self.state else { return };
        match self.process {
            // What is being made must be there, or not, before anything is released.
            Slot::Making | Slot::Releasing | Slot::Stuck => return,
            // It came up after the stop, or failed to boot: there is no guest to be gentle with.
            Slot::Held => {
                self.process = Slot::Releasing;
                effects.push(Effect::KillVmm);
                return;
            }
            Slot::Absent => {}
        }
        // One at a time; also when a stuck socket is tried again while the directory is on its way.
        if [self.socket, self.directory].iter().any(|slot| matches!(slot, Slot::Making | Slot::Releasing)) {
            return;
        }
        for (resource, slot) in
            [(Resource::Socket, &mut self.socket), (Resource::Directory, &mut self.directory)]
        {
            // A stuck socket does not keep the directory from being tried.
            if *slot == Slot::Held {
                *slot = Slot::Releasing;
                effects.push(Effect::Release(resource));
                return;
            }
        }
        if self.held().is_empty() {
            self.state = ending.state();
        }
    }
}

#[cfg(test)]
mod tests;
