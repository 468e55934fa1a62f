//! Where owners live and die: directories, configs, the command; what is there, and who lives.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, set_child_subreaper, waitid};
use smartvm_core::bare_metal::Guest;

use crate::scene::{Running, Scene, patience};

/// Two tests at once could not tell whose orphans they got.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How long a VMM may outlive its owner.
pub(crate) fn vmm_outlives() -> Duration {
    smartvm_lab::patience(Duration::from_secs(1))
}

/// What a machine is and does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Idle, deaf to Ctrl+Alt+Del.
    Idle,
    /// Resets as soon as it runs.
    Resets,
    /// Idle until Ctrl+Alt+Del.
    Obeys,
    /// With a vsock device, whose socket lies outside of the runtime directory.
    Vsock,
    /// With a log and metrics in files.
    Logged,
    /// In the background, with an owner in a process of its own.
    Detached,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Idle, Self::Resets, Self::Obeys, Self::Vsock, Self::Logged, Self::Detached];

    fn guest(self) -> Guest<'static> {
        match self {
            Self::Resets => Guest::ByteThenReset,
            Self::Obeys => Guest::ResetOnCtrlAltDel,
            Self::Idle | Self::Vsock | Self::Logged | Self::Detached => Guest::ByteThenIdle,
        }
    }
}

/// A scene, a machine in it that nobody may harm, and how things were when only that one was there.
pub(crate) struct Arena {
    pub(crate) scene: Scene,
    /// Holds the other tests back. Dropped last.
    _alone: MutexGuard<'static, ()>,
}

/// A file, by where it is, and which one it is.
pub(crate) type Listing = BTreeMap<PathBuf, (u64, String)>;

impl Arena {
    pub(crate) fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let scene = Scene::new();
        for dir in ["vm", "tmp"] {
            fs::create_dir(scene.path(dir)).unwrap();
        }
        Self { scene, _alone: alone }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scene.path(name)
    }

    /// The directory of the machines.
    pub(crate) fn machines(&self) -> PathBuf {
        self.path("run/machines")
    }

    /// Writes the config of a machine of this kind; `slot` tells those apart that live at the same time.
    pub(crate) fn config(&self, kind: Kind, slot: usize) -> PathBuf {
        let name = format!("{kind:?}-{slot}");
        let guest = self.scene.write(&format!("vm/{kind:?}"), kind.guest().elf());
        let more = match kind {
            Kind::Vsock => format!(r#", "vsock": {{"guest_cid": 3, "uds_path": "{name}.vsock"}}"#),
            Kind::Logged => {
                for file in ["log", "metrics"] {
                    let path = self.path(&format!("vm/{name}.{file}"));
                    fs::File::options().create(true).append(true).open(path).unwrap();
                }
                format!(
                    r#", "logger": {{"log_path": "{name}.log"}}, "metrics": {{"metrics_path": "{name}.metrics"}}"#
                )
            }
            _ => String::new(),
        };
        let guest = guest.file_name().unwrap().to_str().unwrap();
        let text = format!(r#"{{"boot-source": {{"kernel_image_path": "{guest}"}}, "drives": []{more}}}"#);
        self.scene.write(&format!("vm/{name}.json"), text)
    }

    /// `smartvm`, with nothing of this host's own.
    pub(crate) fn smartvm(&self) -> Command {
        let mut command = self.scene.smartvm();
        command.env("SMARTVM_DATA_DIR", self.path("data")).env("TMPDIR", self.path("tmp"));
        command
    }

    /// `smartvm run` on a config.
    pub(crate) fn run(&self, config: &Path, id: &str) -> Command {
        let mut command = self.smartvm();
        command.arg("run").arg("--config-file").arg(config).args(["--id", id]);
        command
    }

    /// `smartvm gc --json`: its report, and all it said.
    pub(crate) fn gc(&self) -> (serde_json::Value, Output) {
        let output = bounded(self.smartvm().args(["gc", "--json"]));
        let report =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (report, output)
    }

    /// Everything under the scene's directory.
    pub(crate) fn listing(&self) -> Listing {
        let mut listing = Listing::new();
        list(&self.path(""), &mut listing);
        listing
    }
}

/// Runs a command that must end. One that hangs is killed, and panics here.
pub(crate) fn bounded(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            let output = child.wait_with_output().unwrap();
            let _ = ended.send(());
            output
        });
        let hangs = end.recv_timeout(patience()).is_err();
        if hangs {
            // Not reaped by anybody but the thread above, which has not.
            let _ = kill_process(pid, Signal::KILL);
        }
        let output = waiting.join().unwrap();
        assert!(!hangs, "it hangs: {command:?}: {output:?}");
        output
    })
}

/// Does not follow links. A file that vanishes meanwhile is none.
fn list(dir: &Path, listing: &mut Listing) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        listing.insert(path.clone(), (metadata.ino(), format!("{:?}", metadata.file_type())));
        if metadata.is_dir() {
            list(&path, listing);
        }
    }
}

/// What is in one listing and not in the other.
pub(crate) fn differences(before: &Listing, after: &Listing) -> Vec<String> {
    let gone = before.iter().filter(|(path, _)| !after.contains_key(*path)).map(|(path, _)| ("gone", path));
    let other = after.iter().filter_map(|(path, file)| match before.get(path) {
        None => Some(("new", path)),
        Some(was) if was.0 != file.0 => Some(("replaced", path)),
        Some(_) => None,
    });
    gone.chain(other).map(|(what, path)| format!("{what}: {}", path.display())).collect()
}

/// Machines that run while others die, and must not notice.
pub(crate) struct Innocent {
    run: Running,
    id: String,
    record: Vec<u8>,
    asked: u64,
}

impl Innocent {
    /// Its guest echoes what it reads.
    pub(crate) fn start(arena: &Arena, id: &str) -> Self {
        arena.scene.write("vm/echo", Guest::Echo.elf());
        let config = arena.scene.write(
            &format!("vm/{id}.json"),
            format!(
                r#"{{"boot-source": {{"kernel_image_path": "echo"}}, "drives": [],
                     "vsock": {{"guest_cid": 3, "uds_path": "{id}.vsock"}}}}"#
            ),
        );
        let mut run = Running::start(&mut arena.run(&config, id));
        run.await_output("S");
        let record = arena.machines().join(id).join("machine.json");
        // The record that names the VMM comes just before or after the guest's first byte.
        crate::scene::wait_until("its VMM is on record", patience(), || {
            fs::read_to_string(&record).is_ok_and(|text| text.contains("\"vmm\""))
        });
        Self { run, id: id.to_owned(), record: fs::read(record).unwrap(), asked: 0 }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.run.pid()
    }

    /// Its guest answers, and its record is what it was.
    pub(crate) fn assert_unharmed(&mut self, arena: &Arena) {
        self.asked += 1;
        let text = format!("<{}>", self.asked);
        self.run.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        self.run.await_output(&text);
        let record = fs::read(arena.machines().join(&self.id).join("machine.json")).unwrap();
        assert_eq!(record, self.record, "the record of {}", self.id);
    }

    /// Ends it from within: the guest resets.
    pub(crate) fn end(mut self) {
        self.run.child.stdin.as_mut().unwrap().write_all(&[4]).unwrap();
        let (status, _, said) = self.run.end();
        assert!(status.success(), "{status}: {said}");
    }
}

/// A child of this process that it did not start itself: it has outlived whoever did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) pid: i32,
    pub(crate) name: String,
}

/// Orphans that still live; `known` are children that a test did start. Those that have ended are reaped.
pub(crate) fn orphans(known: &[i32]) -> Vec<Orphan> {
    let own = std::process::id().cast_signed();
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, rest) = stat.rsplit_once(") ")?;
        let name = head.split_once('(')?.1.to_owned();
        let mut fields = rest.split_ascii_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        // Only what smartvm starts can be an orphan here: its VMM, before or after exec, and the owner of a detached one.
        let ours = ["firecracker", "smartvm", "exe"].iter().any(|of| name.starts_with(of));
        if parent.parse() != Ok(own) || known.contains(&pid) || !ours {
            return None;
        }
        if state == "Z" {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let pid = Pid::from_raw(pid).unwrap();
            // A leader that has ended while its other threads have not is a zombie too, and cannot be reaped yet.
            if !matches!(waitid(WaitId::Pid(pid), options), Ok(None)) {
                return None;
            }
        }
        Some(Orphan { pid, name })
    })
    .collect()
}

/// Waits until no orphan lives; how long that took, or who is left.
pub(crate) fn orphans_gone_within(patience: Duration, known: &[i32]) -> Result<Duration, Vec<Orphan>> {
    let begun = Instant::now();
    loop {
        let left = orphans(known);
        if left.is_empty() {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > patience {
            return Err(left);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
