//! What a machine has on disk, `<data>/machines/<id>/`: the disk it writes to, and an initramfs of its own.
//!
//! The directory lies in the data directory since a disk may grow larger than memory. Its lock makes its owner, as in the
//! runtime directory; all that makes, finds or removes such a directory holds `<data>/machines.lock` alone for that
//! moment, so nobody ever sees one half made.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use smartvm_core::id::MachineId;
use smartvm_host::lock::FileLock;

const LOCK: &str = "lock";

/// A machine's directory for data, held by its owner. Dropping it removes the directory with all in it.
#[derive(Debug)]
pub(crate) struct MachineData {
    path: PathBuf,
    /// Released by hand, before the lock of all.
    lock: Option<FileLock>,
}

impl MachineData {
    /// Where it will be.
    pub(crate) fn path_of(data_dir: &Path, id: &MachineId) -> PathBuf {
        data_dir.join("machines").join(id.as_str())
    }

    /// Makes the directory. What a dead owner of this id left is removed first. `None`: it has a living owner.
    pub(crate) fn claim(data_dir: &Path, id: &MachineId) -> io::Result<Option<Self>> {
        let path = Self::path_of(data_dir, id);
        let all = path.parent().unwrap_or(data_dir);
        DirBuilder::new().recursive(true).mode(0o700).create(all)?;
        let _alone = lock_of_all(data_dir)?;
        if fs::symlink_metadata(&path).is_ok() && !remove_if_dead(&path)? {
            return Ok(None);
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = FileLock::try_exclusive(&path.join(LOCK))?;
        Ok(lock.map(|lock| Self { path, lock: Some(lock) }))
    }

    /// Removes everything. Answers what could not be removed.
    pub(crate) fn remove(mut self) -> Vec<String> {
        self.release()
    }

    fn release(&mut self) -> Vec<String> {
        let Some(lock) = self.lock.take() else { return Vec::new() };
        let removed = self.data_dir().and_then(lock_of_all).and_then(|_alone| {
            let removed = fs::remove_dir_all(&self.path);
            drop(lock);
            removed
        });
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                vec![format!("{}: {error}", self.path.display())]
            }
            _ => Vec::new(),
        }
    }

    fn data_dir(&self) -> io::Result<&Path> {
        let dir = self.path.parent().and_then(Path::parent);
        dir.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl Drop for MachineData {
    fn drop(&mut self) {
        for left in self.release() {
            tracing::warn!(left, "could not remove; `smartvm gc` will try again");
        }
    }
}

fn lock_of_all(data_dir: &Path) -> io::Result<FileLock> {
    FileLock::exclusive(&data_dir.join("machines.lock"))
}

/// A directory without a living owner.
pub(crate) struct Dead {
    /// Its machine's id.
    pub(crate) id: String,
    /// Where it is, and why it is still there; `None` when it was removed, or nothing was to be.
    pub(crate) kept: Option<(PathBuf, io::Error)>,
}

/// Removes what dead owners left, or only looks. What is no machine's directory is left alone.
pub(crate) fn collect(data_dir: &Path, remove: bool) -> io::Result<Vec<Dead>> {
    let entries = match fs::read_dir(data_dir.join("machines")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let _alone = lock_of_all(data_dir)?;
    let mut dead = Vec::new();
    for entry in entries {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let Some(id) = name.to_str().and_then(|name| MachineId::new(name).ok()) else { continue };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let outcome = match remove {
            true => remove_if_dead(&path),
            false => is_dead(&path).map(|lock| lock.is_some()),
        };
        let id = id.as_str().to_owned();
        match outcome {
            Ok(true) => dead.push(Dead { id, kept: None }),
            Ok(false) => {}
            Err(error) => dead.push(Dead { id, kept: Some((path, error)) }),
        }
    }
    Ok(dead)
}

/// Its lock, if nobody has it. The caller holds the lock of all.
fn is_dead(path: &Path) -> io::Result<Option<FileLock>> {
    FileLock::try_exclusive(&path.join(LOCK))
}

/// Whether it was removed; it is not while its owner lives.
fn remove_if_dead(path: &Path) -> io::Result<bool> {
    let Some(_lock) = is_dead(path)? else { return Ok(false) };
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> MachineId {
        MachineId::new("web-1").unwrap()
    }

    #[test]
    fn a_directory_has_one_owner_and_goes_with_it() {
        let data = tempfile::tempdir().unwrap();
        let owned = MachineData::claim(data.path(), &id()).unwrap().unwrap();
        fs::write(owned.path.join("overlay.ext4"), "x").unwrap();
        assert!(MachineData::claim(data.path(), &id()).unwrap().is_none());
        assert!(collect(data.path(), true).unwrap().is_empty(), "it lives");
        assert!(owned.path.join("overlay.ext4").exists());
        let path = owned.path.clone();
        assert_eq!(owned.remove(), Vec::<String>::new());
        assert!(!path.exists());
        drop(MachineData::claim(data.path(), &id()).unwrap().unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_owner_left_is_found_and_removed() {
        let data = tempfile::tempdir().unwrap();
        let left = MachineData::path_of(data.path(), &id());
        for (again, name) in ["lock", "overlay.ext4"].into_iter().enumerate() {
            fs::create_dir_all(&left).unwrap();
            fs::write(left.join(name), "x").unwrap();
            let dead = collect(data.path(), false).unwrap();
            assert_eq!((dead.len(), dead[0].id.as_str()), (1, "web-1"));
            assert!(left.join(name).exists(), "only looked at");
            if again == 0 {
                assert!(collect(data.path(), true).unwrap()[0].kept.is_none());
                assert!(!left.exists());
            } else {
                let owned = MachineData::claim(data.path(), &id()).unwrap().unwrap();
                assert!(!owned.path.join(name).exists(), "a new owner finds it empty");
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let data = tempfile::tempdir().unwrap();
        assert!(collect(data.path(), true).unwrap().is_empty());
        fs::create_dir_all(data.path().join("machines/Not_An_Id")).unwrap();
        fs::write(data.path().join("machines/file"), "").unwrap();
        assert!(collect(data.path(), true).unwrap().is_empty());
        assert_eq!(fs::read_dir(data.path().join("machines")).unwrap().count(), 2);
    }
}
