//! Which Firecracker smartvm runs.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ReleaseError, Version, default, programs};
use crate::store::Store;

/// The variable that names a binary.
const BINARY_VARIABLE: &str = "SMARTVM_FIRECRACKER";

/// Who decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    /// The caller: an option or the spec.
    Caller,
    /// The variable `SMARTVM_FIRECRACKER`.
    Environment,
    /// The default version of the store.
    Store(Version),
    /// A file `firecracker` on PATH.
    Path,
}

/// A binary to run. Not checked: it may be missing, or be no Firecracker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// The jailer that belongs to it, where that is known.
    pub jailer: Option<PathBuf>,
    /// Who decided.
    pub by: FoundBy,
}

/// The binary that is to be run: what the caller names, else what `SMARTVM_FIRECRACKER` names, else the default version of
/// the store, else `firecracker` on PATH. What somebody named is taken even if it does not exist: running another
/// one instead would be worse than an error. None when nobody names one and PATH has none.
///
/// # Errors
/// The store cannot be read, or its default version is damaged.
pub fn find(explicit: Option<&Path>, store: Option<&Store>) -> Result<Option<Found>, ReleaseError> {
    find_in(explicit, store, |name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

/// The same with these variables for the environment.
pub(super) fn find_in(
    explicit: Option<&Path>,
    store: Option<&Store>,
    variable: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<Option<Found>, ReleaseError> {
    let found = |path: PathBuf, by| Some(Found { path, jailer: None, by });
    if let Some(path) = explicit {
        return Ok(found(path.to_owned(), FoundBy::Caller));
    }
    if let Some(path) = variable(BINARY_VARIABLE) {
        return Ok(found(path.into(), FoundBy::Environment));
    }
    if let Some(store) = store
        && let Some(installed) = default(store)?
    {
        let programs = programs(store, &installed)?;
        let (path, jailer) = (programs.firecracker, Some(programs.jailer));
        return Ok(Some(Found { path, jailer, by: FoundBy::Store(installed.version) }));
    }
    let path = variable("PATH").unwrap_or_default();
    let executable =
        |path: &PathBuf| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("firecracker")).find(executable);
    Ok(on_path.and_then(|path| found(path, FoundBy::Path)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn who_is_nearer_decides() {
        let dir = tempfile::tempdir().unwrap();
        let (empty, full) = (dir.path().join("empty"), dir.path().join("full"));
        for (bin, mode) in [(&empty, 0o644), (&full, 0o755)] {
            std::fs::create_dir(bin).unwrap();
            std::fs::write(bin.join("firecracker"), "").unwrap();
            std::fs::set_permissions(bin.join("firecracker"), PermissionsExt::from_mode(mode)).unwrap();
        }
        let path = std::env::join_paths([&empty, &full]).unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let named = |name: &str| match name {
            "PATH" => Some(path.clone()),
            _ => Some("/named".into()),
        };
        let unnamed = |name: &str| (name == "PATH").then(|| path.clone());
        let look = |explicit: Option<&str>, variable: &dyn Fn(&str) -> Option<std::ffi::OsString>| {
            find_in(explicit.map(Path::new), Some(&store), variable)
                .unwrap()
                .map(|found| (found.path, found.by))
        };
        assert_eq!(look(Some("/mine"), &named), Some(("/mine".into(), FoundBy::Caller)));
        assert_eq!(look(None, &named), Some(("/named".into(), FoundBy::Environment)));
        assert_eq!(look(None, &unnamed), Some((full.join("firecracker"), FoundBy::Path)));
        assert_eq!(look(None, &|_| None), None);
    }
}
