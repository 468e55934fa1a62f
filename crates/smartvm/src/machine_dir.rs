//! A machine's directory, `<runtime>/machines/<id>/`, and the lock that makes its holder the owner.
//!
//! ```text
//! machines.lock (shared) ──> mkdir <id> ──> lock <id>/lock ──> machines.lock given back ──> owner
//! machines.lock (alone)  ──> gc takes the locks it can get: none of them is of a directory just being made or removed
//! owner or gc, holding <id>/lock: removes the contents ──> machines.lock (shared) ──> lock ──> rmdir <id>
//! ```
//! The lock ends with its holder, however that ends, so a directory whose lock can be taken has no owner. Only the lock's
//! holder removes the directory, and the lock goes last, unseen: were it to go while somebody looks, he would make a
//! lock of his own there, and clean up under that one after the name has a new owner.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use smartvm_core::id::MachineId;
use smartvm_host::lock::FileLock;
use smartvm_host::socket_path;

use crate::gc;
use crate::host::Host;
use crate::record::Record;

/// A machine's directory, held by its owner. Dropping it removes the directory.
#[derive(Debug)]
pub(crate) struct MachineDir {
    path: PathBuf,
    machines_lock: PathBuf,
    vsock: Option<Vsock>,
    lock: Option<FileLock>,
}

/// Why a machine's directory could not be had.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Another owner has it.
    Busy { owner: Option<i32> },
    /// A dead owner's leftovers could not be released.
    Leftover { path: PathBuf, why: String },
    /// The file system refused.
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

/// The file in the directory whose lock makes the owner.
pub(crate) const LOCK: &str = "lock";

/// How long a killed VMM is waited for before its sockets are looked at.
const DYING_PATIENCE: Duration = Duration::from_secs(1);

/// How long another process may take to release a dead owner's leftovers.
const PATIENCE: Duration = Duration::from_secs(5);

impl MachineDir {
    /// Makes the directory and becomes its owner. What a dead owner of this id left is released first. May block for
    /// as long as that takes.
    pub(crate) fn claim(host: &Host, id: &MachineId) -> Result<Self, Refused> {
        let path = host.machines_dir().join(id.as_str());
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(dir) = make(host, &path)? {
                return Ok(dir);
            }
            match gc::release_leftover(host, &path) {
                Ok(()) => {}
                Err(gc::Kept::Busy) => {
                    let record = Record::read(&path.join("machine.json")).ok();
                    let owner = record.map(|record| record.owner);
                    let alive = owner.as_ref().is_some_and(|owner| owner.is_alive().unwrap_or(true));
                    // Without a live owner on record somebody is just making or removing it.
                    if alive || Instant::now() >= until {
                        return Err(Refused::Busy { owner: owner.map(|owner| owner.pid) });
                    }
                    sleep(Duration::from_millis(2));
                }
                Err(gc::Kept::Failed(why)) => return Err(Refused::Leftover { path, why }),
            }
        }
    }

    /// Makes the directory if there is none; does not wait.
    pub(crate) fn try_claim(host: &Host, id: &MachineId) -> Result<Option<Self>, Refused> {
        make(host, &host.machines_dir().join(id.as_str()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn write_record(&self, record: &Record) -> io::Result<()> {
        record.write(&self.file("machine.json"))
    }

    /// The VMM will make this socket outside of the directory.
    pub(crate) fn expect_vsock(&mut self, path: PathBuf) {
        self.vsock = Some(Vsock { path, file: None });
    }

    pub(crate) fn vsock(&self) -> Option<&Path> {
        self.vsock.as_ref().map(|vsock| vsock.path.as_path())
    }

    /// The VMM runs: the socket that is there now is its own.
    pub(crate) fn confirm_vsock(&mut self) {
        if let Some(vsock) = &mut self.vsock {
            vsock.file = file_id(&vsock.path);
        }
    }

    /// Removes everything, the lock last. The VMM must have ended. Answers what could not be removed.
    pub(crate) fn remove(mut self) -> Vec<String> {
        self.release()
    }

    fn release(&mut self) -> Vec<String> {
        let mut left_behind = Vec::new();
        if let Some(vsock) = self.vsock.take()
            && let Err(error) = vsock.remove(&self.path)
        {
            left_behind.push(format!("{}: {error}", vsock.path.display()));
        }
        // `take` makes this happen once. The lock is held until the directory has gone.
        if let Some(lock) = self.lock.take() {
            if let Err(error) = remove_dir(&self.path, &self.machines_lock) {
                left_behind.push(format!("{}: {error}", self.path.display()));
            }
            drop(lock);
        }
        left_behind
    }
}

impl Drop for MachineDir {
    fn drop(&mut self) {
        for left in self.release() {
            tracing::warn!(left, "could not remove; `smartvm gc` will try again");
        }
    }
}

fn make(host: &Host, path: &Path) -> Result<Option<MachineDir>, Refused> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| Refused::Io { what, path, source }
    };
    let machines_lock = host.machines_lock();
    let _making = FileLock::shared(&machines_lock).map_err(failed("lock", &machines_lock))?;
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(failed("make the directory", path)(error)),
    }
    let lock_path = path.join(LOCK);
    match FileLock::try_exclusive(&lock_path) {
        Ok(Some(lock)) => {
            drop(_making);
            let path = path.to_owned();
            Ok(Some(MachineDir { path, machines_lock, vsock: None, lock: Some(lock) }))
        }
        // Only a stranger can have been quicker: nobody of ours looks while we hold `machines.lock`.
        Ok(None) => Ok(None),
        Err(error) => {
            let _ = fs::remove_dir_all(path);
            Err(failed("lock", &lock_path)(error))
        }
    }
}

/// Removes a machine's directory with all in it, following no link. The caller holds its lock, and its VMM has ended or is
/// ending.
pub(crate) fn remove_dir(path: &Path, machines_lock: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_name() == LOCK {
            continue;
        }
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
            _ => fs::remove_file(entry.path()),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match FileLock::shared(machines_lock) {
        Ok(_removing) => remove_tree(path),
        // Somebody removed the runtime directory whole.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what is there, following no link. A VMM that is just dying may still put its socket in.
fn remove_tree(path: &Path) -> io::Result<()> {
    for _ in 0..100 {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
    fs::remove_dir_all(path)
}

#[derive(Debug)]
struct Vsock {
    path: PathBuf,
    /// Known once the VMM runs.
    file: Option<(u64, u64)>,
}

impl Vsock {
    /// `dir` is where its VMM worked, if there was one.
    fn remove(&self, dir: &Path) -> io::Result<()> {
        let there = file_id(&self.path);
        match self.file {
            // Another process replaced it, or removed it.
            Some(_) if self.file != there => Ok(()),
            Some(_) => fs::remove_file(&self.path),
            // Whatever our VMM left there before it was ready is a socket that nobody listens on, once it has ended: it
            // was killed a moment ago when the start was given up.
            None => {
                let mut patience = DYING_PATIENCE;
                for vmm in gc::working_in(dir) {
                    let _ = gc::wait_until_gone(&vmm, patience);
                }
                if file_id(&self.path).is_some() {
                    gc::wait_for_the_ending(&mut patience);
                }
                remove_stale_socket(&self.path);
                Ok(())
            }
        }
    }
}

/// Removes a socket that no process listens on; leaves everything else alone.
pub(crate) fn remove_stale_socket(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && let Err(error) = socket_path::make_way(path) {
        tracing::debug!(path = %path.display(), %error, "left alone");
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
