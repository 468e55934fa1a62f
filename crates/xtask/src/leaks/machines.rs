//! Directories of machines whose owner is gone: `<runtime>/machines/<id>/`, with a lock that its owner holds.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::{Leak, Remedy};

/// Every machine's directory whose lock nobody holds.
pub(super) fn leaks() -> Vec<Leak> {
    let places = places().into_iter().flat_map(|runtime| without_owner(&runtime));
    let leak = |path: PathBuf| Leak {
        what: format!("directory {} of a machine has lost its owner", path.display()),
        remedy: Remedy::Remove(path),
    };
    places.map(leak).collect()
}

/// The machines in a runtime directory of smartvm that have no owner.
pub(crate) fn without_owner(runtime: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(runtime.join("machines")).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| !is_owned(path)).collect();
    found.sort();
    found
}

/// Whether somebody holds the lock. It is taken for a moment only, and never made.
fn is_owned(machine: &Path) -> bool {
    let Ok(lock) = File::open(machine.join("lock")) else {
        // An owner makes the lock right after the directory, and removes both together.
        return !machine.exists();
    };
    matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
}

/// Where smartvm keeps its machines for this user.
fn places() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_user = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("smartvm"));
    let temporary = std::env::temp_dir().join(format!("smartvm-{}", rustix::process::geteuid().as_raw()));
    let set = variable("SMARTVM_RUNTIME_DIR");
    [Some(PathBuf::from("/run/smartvm")), of_user, Some(temporary), set].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_held_lock_has_no_owner() {
        let runtime = tempfile::tempdir().expect("a directory");
        let machine = |name: &str| {
            let path = runtime.path().join("machines").join(name);
            fs::create_dir_all(&path).expect("made");
            path
        };
        let (owned, lost, bare) = (machine("owned"), machine("lost"), machine("bare"));
        let lock = File::create(owned.join("lock")).expect("made");
        lock.lock().expect("taken");
        drop(File::create(lost.join("lock")).expect("made"));
        assert_eq!(without_owner(runtime.path()), [bare.clone(), lost.clone()]);
        drop(lock);
        assert_eq!(without_owner(runtime.path()), [bare, lost, owned]);
    }

    #[test]
    fn no_runtime_directory_no_machines() {
        assert!(without_owner(Path::new("/nowhere-at-all")).is_empty());
    }
}
