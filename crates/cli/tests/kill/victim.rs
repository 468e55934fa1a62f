//! One owner, and the moment at which it is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::arena::{Arena, Kind};
use crate::scene::{is_alive, patience};
use smartvm_lab::random::Random;

/// Something that shows how far an owner has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sight {
    Directory,
    Lock,
    Record,
    Config,
    Socket,
    Vsock,
    VmmOnRecord,
    FirstByte,
}

/// When an owner is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Moment {
    /// So long after it was started.
    After(Duration),
    /// So long after this could be seen.
    Seen(Sight, Duration),
    /// So long after it was asked to stop.
    Stopping(Duration),
}

impl Moment {
    /// `life` is how long a machine takes from its owner's exec to its guest's first byte and back to nothing.
    pub(crate) fn draw(random: &mut Random, life: Duration) -> Self {
        const SIGHTS: [Sight; 8] = [
            Sight::Directory,
            Sight::Lock,
            Sight::Record,
            Sight::Config,
            Sight::Socket,
            Sight::Vsock,
            Sight::VmmOnRecord,
            Sight::FirstByte,
        ];
        match random.below(20) {
            0..=8 => Self::After(random.duration(life)),
            9..=15 => {
                let later = if random.chance(2) { Duration::from_millis(3) } else { Duration::ZERO };
                Self::Seen(random.pick(&SIGHTS), random.duration(later))
            }
            _ => Self::Stopping(random.duration(Duration::from_millis(40))),
        }
    }

    /// Without the numbers, for counting.
    pub(crate) fn name(self) -> String {
        match self {
            Self::After(_) => "at random".to_owned(),
            Self::Seen(sight, _) => format!("{sight:?}"),
            Self::Stopping(_) => "Stopping".to_owned(),
        }
    }
}

/// A started owner.
pub(crate) struct Victim {
    kind: Kind,
    pub(crate) id: String,
    moment: Moment,
    child: Child,
    began: Instant,
    output: File,
    dir: PathBuf,
    vsock: PathBuf,
}

/// What became of it.
#[derive(Debug, Clone)]
pub(crate) struct Killed {
    pub(crate) kind: Kind,
    pub(crate) moment: Moment,
    /// Whether it was the kill that ended it; else it had ended by itself.
    pub(crate) killed: bool,
    /// Whether its directory was there just after.
    pub(crate) left_directory: bool,
    /// Whether the socket of its vsock device was there just after.
    pub(crate) left_vsock: bool,
}

impl Victim {
    pub(crate) fn start(arena: &Arena, kind: Kind, slot: usize, id: &str, moment: Moment) -> Self {
        let output = tempfile::tempfile().unwrap();
        let mut command = arena.run(&arena.path(&format!("vm/{kind:?}-{slot}.json")), id);
        if kind == Kind::Detached {
            command.arg("--detach");
        }
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        Self {
            kind,
            id: id.to_owned(),
            moment,
            child,
            began: Instant::now(),
            output,
            dir: arena.machines().join(id),
            vsock: arena.path(&format!("vm/{kind:?}-{slot}.vsock")),
        }
    }

    /// Waits for the moment, kills the owner, and answers when it has ended.
    pub(crate) fn kill(mut self) -> Killed {
        match self.moment {
            Moment::After(delay) => sleep(delay.saturating_sub(self.began.elapsed())),
            Moment::Seen(sight, delay) => {
                if self.wait_for(sight) {
                    sleep(delay);
                }
            }
            Moment::Stopping(delay) => {
                let sight = if self.kind == Kind::Detached { Sight::VmmOnRecord } else { Sight::FirstByte };
                if self.wait_for(sight)
                    && let Some(pid) = self.owner()
                {
                    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM);
                    sleep(delay);
                }
            }
        }
        let killed = if self.kind == Kind::Detached { self.kill_both() } else { self.kill_one() };
        Killed {
            kind: self.kind,
            moment: self.moment,
            killed,
            left_directory: self.dir.exists(),
            left_vsock: fs::symlink_metadata(&self.vsock).is_ok(),
        }
    }

    fn kill_one(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.child.kill().unwrap();
        self.child.wait().unwrap().signal() == Some(9)
    }

    /// The front first: an owner of its own may only just be starting, and none may come after.
    fn kill_both(&mut self) -> bool {
        let mut killed = self.kill_one();
        let until = Instant::now() + patience();
        while let Some(owner) = owner_of(&self.id) {
            // Not our child yet, or only just: the pid cannot have been given to another so soon.
            killed |= kill_process(Pid::from_raw(owner).unwrap(), Signal::KILL).is_ok();
            while is_alive(owner) {
                assert!(Instant::now() < until, "owner {owner} of {} does not die", self.id);
                yield_now();
            }
        }
        killed
    }

    /// The process that owns the machine, if it lives.
    fn owner(&mut self) -> Option<i32> {
        if self.kind == Kind::Detached {
            return owner_of(&self.id);
        }
        // Not reaped, so its pid is still its own.
        Some(self.child.id().cast_signed())
    }

    /// `false` when it ended without.
    fn wait_for(&mut self, sight: Sight) -> bool {
        let until = Instant::now() + patience();
        loop {
            if self.sees(sight) {
                return true;
            }
            let ended = self.child.try_wait().unwrap().is_some();
            if ended && (self.kind != Kind::Detached || owner_of(&self.id).is_none()) {
                return false;
            }
            assert!(Instant::now() < until, "{sight:?} of {:?} {} never comes", self.kind, self.id);
            yield_now();
        }
    }

    fn sees(&self, sight: Sight) -> bool {
        let has = |name: &str| fs::symlink_metadata(self.dir.join(name)).is_ok();
        match sight {
            Sight::Directory => has(""),
            Sight::Lock => has("lock"),
            Sight::Record => has("machine.json"),
            Sight::Config => has("config.json"),
            Sight::Socket => has("api.sock"),
            Sight::Vsock if self.kind == Kind::Vsock => fs::symlink_metadata(&self.vsock).is_ok(),
            Sight::FirstByte if self.kind != Kind::Detached => self.output.metadata().unwrap().len() > 0,
            Sight::Vsock | Sight::FirstByte | Sight::VmmOnRecord => names_vmm(&self.dir.join("machine.json")),
        }
    }
}

fn names_vmm(record: &Path) -> bool {
    fs::read_to_string(record).is_ok_and(|text| text.contains("\"vmm\""))
}

/// The owner of a detached machine: it names the machine on its command line.
fn owner_of(id: &str) -> Option<i32> {
    let wanted = format!("smartvm\0owner\0{id}\0");
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text == wanted.as_bytes()) && is_alive(*pid)
    })
}
