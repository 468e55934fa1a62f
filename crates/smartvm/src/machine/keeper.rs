//! The keeper: waits for the VMM's end and releases what the machine had, whoever else is still there.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use smartvm_core::machine::{Effect, Event, Resource, VmmExit};
use smartvm_host::Vmm;
use smartvm_host::process::{Exit, ProcessId};
use tokio::sync::watch;

use super::life::Life;
use super::{Belongings, Released};
use crate::gc;
use crate::machine_dir::MachineDir;

/// Waits for the VMM's end and releases what the machine had. Dropped with its runtime, it does so on the spot.
pub(super) struct Keeper {
    pub(super) vmm: Arc<Vmm>,
    pub(super) process: Option<ProcessId>,
    pub(super) life: Arc<Life>,
    pub(super) dir: Option<MachineDir>,
    /// Released with the directory.
    pub(super) belongings: Option<Belongings>,
    pub(super) released: watch::Sender<Option<Released>>,
}

/// How long a dropped keeper waits for its killed VMM: it blocks whoever drops the runtime.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

impl Keeper {
    pub(super) fn path(&self) -> PathBuf {
        self.dir.as_ref().map(|dir| dir.path().to_owned()).unwrap_or_default()
    }

    pub(super) async fn run(mut self) {
        let vmm = self.vmm.wait().await;
        let effects = self.life.on(Event::VmmExited(exit(vmm.exit)));
        // Before the directory: who sees that gone may start a machine of the same name.
        let mut left_behind = self.belongings.take().map(Belongings::release).unwrap_or_default();
        left_behind.extend(release(&self.life, effects, &mut self.dir));
        self.released.send_replace(Some(Released { vmm, left_behind }));
    }
}

/// Releases in the order that the state machine says; goes on past failures, and answers them.
pub(super) fn release(life: &Life, effects: Vec<Effect>, dir: &mut Option<MachineDir>) -> Vec<String> {
    let mut left_behind = Vec::new();
    let mut effects = VecDeque::from(effects);
    while let Some(effect) = effects.pop_front() {
        let outcome = match effect {
            // The host removes it when it reaps the VMM: before anybody hears of the exit.
            Effect::Release(Resource::Socket) => Event::Released(Resource::Socket),
            Effect::Release(Resource::Directory) => {
                let left = dir.take().map(MachineDir::remove).unwrap_or_default();
                let failed = !left.is_empty();
                left_behind.extend(left);
                match failed {
                    true => Event::ReleaseFailed(Resource::Directory),
                    false => Event::Released(Resource::Directory),
                }
            }
            // A VMM that has ended needs no stopping.
            _ => continue,
        };
        effects.extend(life.on(outcome));
    }
    left_behind
}

fn exit(exit: Exit) -> VmmExit {
    match exit {
        Exit::Status(code) => VmmExit::Code(code),
        Exit::Signal(number) => VmmExit::Signal(number),
        Exit::HungAtExit => VmmExit::Code(0),
        // Whatever it was, nobody saw it succeed.
        Exit::Unknown => VmmExit::Code(-1),
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        if let Some(process) = self.process.as_ref().filter(|_| self.vmm.is_running()) {
            let _ = process.kill();
            let _ = gc::wait_until_gone(process, DROP_PATIENCE);
        }
        drop(self.belongings.take());
        drop(dir);
    }
}
