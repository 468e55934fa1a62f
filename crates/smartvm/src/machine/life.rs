//! A machine's state, fed with everything that happens to it.

use std::sync::{Mutex, PoisonError};

use smartvm_core::machine::{Effect, Event, Machine, Refused, Request, State, decide};
use tokio::sync::watch;

/// The pure state machine of `smartvm_core::machine`, and those who watch it.
///
/// Whoever reports an event performs the effects that it leads to.
#[derive(Debug)]
pub(super) struct Life {
    machine: Mutex<Machine>,
    state: watch::Sender<State>,
}

impl Life {
    pub(super) fn new() -> Self {
        let machine = Machine::default();
        Self { state: watch::Sender::new(machine.state()), machine: Mutex::new(machine) }
    }

    /// Something was asked: what is to be done now.
    pub(super) fn ask(&self, request: Request) -> Result<Vec<Effect>, Refused> {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, effects) = decide(*machine, Event::Asked(request))?;
        *machine = next;
        self.state.send_if_modified(|state| std::mem::replace(state, next.state()) != next.state());
        Ok(effects)
    }

    /// Something happened: what is to be done now.
    pub(super) fn on(&self, event: Event) -> Vec<Effect> {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        // Only requests are ever refused.
        let Ok((next, effects)) = decide(*machine, event) else { return Vec::new() };
        *machine = next;
        self.state.send_if_modified(|state| std::mem::replace(state, next.state()) != next.state());
        effects
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
}
