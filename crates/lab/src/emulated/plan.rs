//! What a lab is made from, and the ways to bring one up: boot, or boot once, save and resume.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::client::Client;
use super::instance::{Instance, Record};
use super::log::RunLog;
use super::qemu::{Life, Machine, Qemu};
use super::{BIN, GUEST, Options, Origin};
use crate::agent::DEFAULT_IDLE;
use crate::cache::{Cache, Key, progress};
use crate::debian::{self, Parts};
use crate::fault::{AtPath, Fault, Result};
use crate::wire::Request;
use crate::{guest, workspace};

/// What the emulated host needs to boot, on a busy machine.
const BOOT: Duration = Duration::from_secs(180);
const RESUME: Duration = Duration::from_secs(40);

/// The token on QEMU's command line, and the one that counts once the machine runs.
struct Tokens<'a> {
    boot: &'a str,
    now: &'a str,
}

/// A lab that answers.
pub(super) type Up = (Qemu, Client, Origin);

/// The files of a lab, all there.
pub(super) struct Plan {
    cache: Cache,
    machine: Machine,
    /// What every lab has from its first boot on: host path, lab path.
    pub(super) baseline: Vec<(PathBuf, String)>,
    /// What a saved state fits to.
    pub(super) key: Key,
    interrupted: fn() -> bool,
}

impl Plan {
    /// Builds and caches what is missing.
    pub(super) fn make(cache: &Cache, interrupted: fn() -> bool) -> Result<Self> {
        let parts = Parts::fetch(cache)?;
        let root = debian::root_image(cache, &parts)?;
        let guest = guest::assets(cache)?;
        let agent = workspace::build_small("smartvm-lab", &["lab-agent"])?.remove(0);
        let key = Key::of([Key::of_files(&[&agent])?.as_str(), parts.kernel(), "1"].map(str::as_bytes));
        let boot = cache.entry("boot", &key, 6, |dir| {
            let modules = ["virtio_pci", "virtio_blk", "virtio_net", "overlay"];
            guest::initramfs(&dir.join("initrd"), &agent, &parts, &modules)
        })?;
        let mut baseline = vec![
            (crate::firecracker(), format!("{BIN}/firecracker")),
            (crate::jailer(), format!("{BIN}/jailer")),
        ];
        let name = |path: &Path| path.file_name().map(|name| name.display().to_string()).unwrap_or_default();
        baseline.extend(guest.files().map(|path| (path.to_owned(), format!("{GUEST}/{}", name(path)))));
        let machine = Machine { parts, initrd: boot.join("initrd"), root };
        let mut pieces = machine.parts.qemu();
        pieces.extend(machine.arguments(""));
        // An image that was built anew has the same name and another layout.
        pieces.extend([&machine.root, &machine.initrd, &machine.parts.vmlinuz()].map(|file| identity(file)));
        pieces.extend(baseline.iter().map(|(from, _)| identity(from)));
        let key = Key::of(pieces.iter().map(String::as_bytes));
        Ok(Self { cache: cache.clone(), machine, baseline, key, interrupted })
    }

    /// Starts QEMU and waits for the agent, which wants to hear `token`.
    fn start(&self, home: Home<'_>, tokens: Tokens<'_>, incoming: Option<&str>) -> Result<(Qemu, Client)> {
        let deadline = Instant::now() + if incoming.is_some() { RESUME } else { BOOT };
        let (dir, life) = match home {
            Home::Worktree(instance, life) => (instance.dir(), life),
            Home::Cache(dir) => (dir, Life::WithUs),
        };
        let mut qemu = self.machine.start(dir, tokens.boot, incoming, life)?;
        let ready = (|| {
            if let Home::Worktree(instance, _) = home {
                // Written down before anything else, so that whatever becomes of us, the next one finds it.
                let (pid, started) = (qemu.pid(), qemu.started());
                instance.store(&Record { pid, started, ..Record::default() })?;
            }
            let mut control = qemu.control(deadline)?;
            let port = control.agent_port()?;
            if incoming.is_some() {
                control.resume(deadline)?;
            }
            let client = Client { port, token: tokens.now.to_owned(), interrupted: self.interrupted };
            client.await_ready(deadline, || qemu.has_ended().then(|| "QEMU has ended".to_owned()))?;
            Ok(client)
        })();
        match ready {
            Ok(client) => Ok((qemu, client)),
            Err(fault) => {
                let words = qemu.last_words();
                qemu.kill();
                if let Home::Worktree(instance, _) = home {
                    instance.forget();
                }
                Err(Fault::with_last_words(fault, &words))
            }
        }
    }

    pub(super) fn boot(&self, instance: &Instance, life: Life) -> Result<Up> {
        progress("booting the emulated host");
        let token = random_token()?;
        let tokens = Tokens { boot: &token, now: &token };
        let (mut qemu, client) = self.start(Home::Worktree(instance, life), tokens, None)?;
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
    pub(super) fn resume(&self, instance: &Instance, life: Life, log: &RunLog) -> Option<Up> {
        let attempt = || -> Result<Up> {
            let saved = self.cache.entry("saved", &self.key, 4, |dir| self.save(dir))?;
            let token = saved.join("token");
            let token = fs::read_to_string(&token).at("cannot read", &token)?;
            let (boot_token, token) = token.split_once(' ').unwrap_or_default();
            let link = instance.dir().join(STATE);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(saved.join(STATE), &link).at("cannot make", &link)?;
            let tokens = Tokens { boot: boot_token, now: token };
            match self.start(Home::Worktree(instance, life), tokens, Some(&format!("exec:cat {STATE}"))) {
                Ok((qemu, client)) => Ok((qemu, client, Origin::Resumed)),
                Err(fault) => {
                    // A state that does not come back once is not tried again.
                    if !(self.interrupted)() {
                        let _ = fs::remove_dir_all(&saved);
                    }
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
        // All memory of the machine, tokens included.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).at("cannot protect", dir)?;
        let (mut qemu, mut client) = self.start(Home::Cache(dir), tokens, None)?;
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

/// Where a QEMU has its files.
#[derive(Clone, Copy)]
enum Home<'a> {
    /// The worktree's lab.
    Worktree(&'a Instance, Life),
    /// An entry of the cache that is being made.
    Cache(&'a Path),
}

/// The name of a saved state's file.
const STATE: &str = "state";

/// The lab that is up, if it is what the plan wants and answers. One that is not is ended.
pub(super) fn kept(
    plan: &Plan,
    instance: &Instance,
    options: &Options,
    log: &RunLog,
) -> Option<(Qemu, Client, Record)> {
    let record = instance.load()?;
    let Some(mut qemu) = Qemu::adopt(instance.dir(), record.pid, record.started) else {
        instance.forget();
        return None;
    };
    let client = Client { port: record.port, token: record.token.clone(), interrupted: options.interrupted };
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
pub(super) fn identity(path: &Path) -> String {
    let meta = fs::metadata(path).ok();
    let time = meta.as_ref().and_then(|meta| meta.modified().ok());
    format!("{} {:?} {time:?}", path.display(), meta.map(|meta| meta.len()))
}

pub(super) fn random_token() -> Result<String> {
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
