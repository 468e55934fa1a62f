//! What machines boot from: the store, the kernel in it, the room on its disk.

use std::path::Path;

use rustix::fs::{Access, access};
use smartvm_core::explain::Explain;
use smartvm_images::Store;
use smartvm_images::kernel::{self, KernelError};
use smartvm_images::store::FORMAT;

use super::{Check, Status, bad, chain, pass};
use crate::directories::Directories;

/// Less than this is too little for an ordinary image, in bytes.
const LITTLE: u64 = 2 << 30;

/// Everything about the store. A host without one runs config files all the same: nothing here fails but a store that
/// is there and cannot be used.
pub(super) fn checks(directories: &Directories) -> Vec<Check> {
    let store = match directories.existing_store() {
        Ok(store) => store,
        Err(error) => {
            let found = format!("{}: {}", directories.store_dir().display(), chain(&error));
            return vec![bad("store", Status::Fail, found, error.hint().unwrap_or_default())];
        }
    };
    vec![state(directories, store.as_ref()), space(directories), default_kernel(store.as_ref())]
}

fn state(directories: &Directories, store: Option<&Store>) -> Check {
    let name = "store";
    let dir = directories.store_dir();
    // A store that is not there yet is made below what is.
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if let Err(errno) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let found = format!("{} cannot be written: {}", there.display(), std::io::Error::from(errno));
        let fix = "run as the user who owns it, or set SMARTVM_DATA_DIR to a directory of your own";
        return bad(name, Status::Warn, found, fix);
    }
    match store {
        Some(_) => pass(name, format!("{} has format {FORMAT} and can be written", dir.display())),
        None => pass(name, format!("nothing yet; it will be made in {}", dir.display())),
    }
}

fn space(directories: &Directories) -> Check {
    let name = "disk-space";
    let dir = directories.store_dir();
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{} MiB free for {}", free >> 20, dir.display());
            if free < LITTLE {
                let fix = "smartvm store gc, or set SMARTVM_DATA_DIR to a directory on a larger disk";
                return bad(name, Status::Warn, format!("{found}: little for an image"), fix);
            }
            pass(name, found)
        }
        Err(errno) => {
            let why = std::io::Error::from(errno);
            bad(
                name,
                Status::Warn,
                format!("{}: {why}", there.display()),
                "see what is the matter with this disk",
            )
        }
    }
}

fn default_kernel(store: Option<&Store>) -> Check {
    let name = "kernel";
    let default = store.map_or(Err(KernelError::NoDefault), kernel::default);
    match (default, store) {
        (Ok(kernel), Some(store)) => {
            let blobs = [&kernel.vmlinux, &kernel.initramfs];
            if blobs.iter().any(|digest| store.blob(digest).is_none()) {
                let found = format!("{} is the default, and not all of it is there", kernel.name);
                return bad(name, Status::Warn, found, "smartvm store verify --repair, then import it again");
            }
            pass(name, format!("{} is the default", kernel.name))
        }
        (Err(KernelError::NoDefault) | Ok(_), _) => {
            bad(name, Status::Warn, "none yet: only config files can be run", "smartvm setup")
        }
        (Err(error), _) => bad(name, Status::Warn, chain(&error), error.hint().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(dir: &Path) -> Vec<(&'static str, Status, String)> {
        let directories = Directories { runtime: dir.join("run"), data: dir.join("data") };
        checks(&directories).into_iter().map(|check| (check.name, check.status, check.found)).collect()
    }

    #[test]
    fn a_host_without_a_store_is_told_how_to_get_one_and_none_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let checks = found(dir.path());
        assert_eq!(checks[0].1, Status::Pass);
        assert!(checks[0].2.starts_with("nothing yet; it will be made in "), "{checks:?}");
        assert_eq!((checks[1].0, checks[2].0, checks[2].1), ("disk-space", "kernel", Status::Warn));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_store_is_looked_into_and_a_newer_one_fails() {
        let dir = tempfile::tempdir().unwrap();
        let directories = Directories { runtime: dir.path().join("run"), data: dir.path().join("data") };
        directories.open_store().unwrap();
        assert!(found(dir.path())[0].2.ends_with("has format 1 and can be written"));
        std::fs::write(directories.store_dir().join("version"), "99\n").unwrap();
        let checks = found(dir.path());
        assert_eq!((checks.len(), checks[0].1), (1, Status::Fail), "{checks:?}");
        assert!(checks[0].2.contains("format 99"), "{checks:?}");
    }
}
