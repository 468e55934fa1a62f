//! Temporary folders of ours that no process uses any more.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Leak, Remedy};

/// What the names of our temporary folders begin with.
const PREFIX: &str = "smartvm-";

/// Younger folders may be of a process that has only just made them and does not show it yet.
const YOUNG: Duration = Duration::from_secs(30);

/// Temporary folders with our name, and no process that has them open, is in them or names them.
pub(super) fn leaks() -> Vec<Leak> {
    let temporary = std::env::temp_dir();
    let entries = fs::read_dir(&temporary).into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = entries.filter(|path| bears_our_name(path) && !is_runtime_directory(path));
    let candidates: Vec<PathBuf> = ours.filter(|path| !is_young(path)).collect();
    let unused = candidates.into_iter().filter(|path| !is_in_use(path));
    unused
        .map(|path| Leak {
            what: format!("temporary folder {} has lost its owner", path.display()),
            remedy: Remedy::Remove(path),
        })
        .collect()
}

/// Whether the path is, or lies in, a temporary folder or system folder of ours.
pub(super) fn bears_our_name(path: &Path) -> bool {
    let in_temporary = path.strip_prefix(std::env::temp_dir()).ok().and_then(|rest| rest.iter().next());
    in_temporary.is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
        || ["/run/smartvm", "/var/lib/smartvm"].iter().any(|ours| path.starts_with(ours))
}

/// Whether it is where smartvm keeps the machines of a user, `smartvm-<uid>`: it stays, empty.
fn is_runtime_directory(path: &Path) -> bool {
    let uid = path.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX));
    uid.is_some_and(|uid| uid.parse::<u32>().is_ok())
}

fn is_young(path: &Path) -> bool {
    let age = fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
    // What vanished meanwhile, or claims to be of the future, is left alone.
    !matches!(age, Ok(Ok(age)) if age > YOUNG)
}

fn is_in_use(path: &Path) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.map(|entry| entry.path()).any(|process| uses(&process, path))
}

/// Whether a process (its folder in `/proc`) stands in the folder, has a file of it open, or was told of
/// it in its arguments or environment.
fn uses(process: &Path, folder: &Path) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let links = descriptors.map(|entry| entry.path()).chain(["cwd", "root"].map(|name| process.join(name)));
    let mut targets = links.filter_map(|link| fs::read_link(link).ok());
    let told = |name| {
        let text = fs::read(process.join(name)).unwrap_or_default();
        let needle = folder.as_os_str().as_bytes();
        text.windows(needle.len()).any(|window| window == needle)
    };
    targets.any(|target| target.starts_with(folder)) || told("cmdline") || told("environ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_names_are_ours() {
        let temporary = std::env::temp_dir();
        assert!(bears_our_name(&temporary.join("smartvm-test-1")));
        assert!(bears_our_name(&temporary.join("smartvm-test-1/deeper/still")));
        assert!(bears_our_name(Path::new("/run/smartvm/machines/a")));
        assert!(!bears_our_name(&temporary.join("other")));
        assert!(!bears_our_name(&temporary));
        assert!(!bears_our_name(Path::new("/run/smartvmd")));
    }

    #[test]
    fn the_runtime_directory_of_a_user_stays() {
        assert!(is_runtime_directory(Path::new("/tmp/smartvm-1000")));
        assert!(!is_runtime_directory(Path::new("/tmp/smartvm-test-1")));
    }

    #[test]
    fn a_folder_is_in_use_while_a_process_stands_in_it() {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir().expect("a folder");
        assert!(!is_in_use(folder.path()));
        let mut child =
            std::process::Command::new("sleep").arg("60").current_dir(folder.path()).spawn().expect("sleep");
        assert!(is_in_use(folder.path()));
        child.kill().and_then(|()| child.wait()).expect("it ends");
        assert!(!is_in_use(folder.path()));
    }
}
