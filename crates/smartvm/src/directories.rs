//! Where smartvm keeps its things on this host, and that nobody else can meddle with them.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_images::store::{Store, StoreError};

/// Names the runtime directory.
pub(crate) const RUNTIME_VARIABLE: &str = "SMARTVM_RUNTIME_DIR";
/// Names the data directory.
pub(crate) const DATA_VARIABLE: &str = "SMARTVM_DATA_DIR";

/// The directories of one host.
///
/// | | root | others | set by |
/// | --- | --- | --- | --- |
/// | `runtime` | `/run/smartvm` | `$XDG_RUNTIME_DIR/smartvm`, else `smartvm-<uid>` in the temporary directory | `SMARTVM_RUNTIME_DIR` |
/// | `data` | `/var/lib/smartvm` | `$XDG_DATA_HOME/smartvm`, else `~/.local/share/smartvm` | `SMARTVM_DATA_DIR` |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// Sockets, locks, records and logs of running machines: gone after a reboot, as they are.
    pub runtime: PathBuf,
    /// What outlives a reboot: the store of kernels and images, and the disks of machines.
    pub data: PathBuf,
}

impl Directories {
    /// Where the store lies, be it there or not.
    pub fn store_dir(&self) -> PathBuf {
        self.data.join("store")
    }

    /// The store, made when it is not there, in a data directory that is ours alone.
    ///
    /// # Errors
    /// See [`DirectoryError`] and [`StoreError`].
    pub fn open_store(&self) -> Result<Store, OpenStoreError> {
        make_private(&self.data, DATA_VARIABLE)?;
        Ok(Store::open(&self.store_dir())?)
    }

    /// The store, when there is one. Makes nothing.
    ///
    /// # Errors
    /// As [`Directories::open_store`].
    pub fn existing_store(&self) -> Result<Option<Store>, OpenStoreError> {
        match self.store_dir().join("version").exists() {
            true => self.open_store().map(Some),
            false => Ok(None),
        }
    }

    /// Finds them by user and environment; makes nothing.
    pub fn find() -> Self {
        Self::of(rustix::process::geteuid().as_raw(), |name| {
            env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
        })
    }

    fn of(uid: u32, variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let root = uid == 0;
        // A relative one would be another place for each working directory; XDG says to ignore it.
        let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
        let runtime = variable(RUNTIME_VARIABLE).unwrap_or_else(|| match absolute("XDG_RUNTIME_DIR") {
            _ if root => "/run/smartvm".into(),
            Some(dir) => dir.join("smartvm"),
            None => absolute("TMPDIR").unwrap_or_else(|| "/tmp".into()).join(format!("smartvm-{uid}")),
        });
        let data = variable(DATA_VARIABLE).unwrap_or_else(|| {
            if root {
                return "/var/lib/smartvm".into();
            }
            let home = || absolute("HOME").unwrap_or_else(|| "/".into()).join(".local/share");
            absolute("XDG_DATA_HOME").unwrap_or_else(home).join("smartvm")
        });
        Self { runtime, data }
    }
}

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStoreError {
    /// The data directory is none of ours.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Explain for OpenStoreError {
    fn code(&self) -> Code {
        match self {
            Self::Directory(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Directory(error) => error.hint(),
            Self::Store(error) => error.hint(),
        }
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

/// A directory that smartvm cannot use as its own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// It cannot be made or looked at.
    #[error("cannot use the directory {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The environment variable that names another one.
        variable: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Firecracker takes no arguments that are not UTF-8.
    #[error("cannot use the directory {}: its path is not UTF-8, which Firecracker cannot take", path.display())]
    NotUtf8 {
        /// The directory.
        path: PathBuf,
        /// The environment variable that names another one.
        variable: &'static str,
    },
    /// Others may change what lies in it, or it is not a directory of ours.
    #[error("cannot use {} as a private directory: {problem}", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
}

impl Explain for DirectoryError {
    fn code(&self) -> Code {
        Code::Host
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { variable, .. } | Self::NotUtf8 { variable, .. } => {
                format!("set {variable} to a directory that this user can make and use")
            }
            Self::NotPrivate { remedy, .. } => remedy.clone(),
        })
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

/// Makes `path` (and what is missing above it) a directory of ours that only we can use; answers its real path.
///
/// # Errors
/// It cannot be made, or what is there belongs to somebody else or is writable for others.
pub(crate) fn make_private(path: &Path, variable: &'static str) -> Result<PathBuf, DirectoryError> {
    let failed = |source| DirectoryError::Io { path: path.to_owned(), variable, source };
    let path = std::path::absolute(path).map_err(failed)?;
    if path.to_str().is_none() {
        return Err(DirectoryError::NotUtf8 { path, variable });
    }
    if let Some(parent) = path.parent() {
        // Whatever the umask: who may write above could put another directory in our place.
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    check_private(&path, variable)?;
    fs::canonicalize(&path).map_err(failed)
}

/// Looks at the directory itself, never at what a symbolic link names: in a directory that all may write to, anybody
/// could have put the link there.
fn check_private(path: &Path, variable: &'static str) -> Result<(), DirectoryError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| DirectoryError::Io {
        path: path.to_owned(),
        variable,
        source,
    })?;
    let not_private = |problem: String, remedy: String| {
        Err(DirectoryError::NotPrivate { path: path.to_owned(), problem, remedy })
    };
    let uid = rustix::process::geteuid().as_raw();
    if metadata.is_symlink() {
        let remedy = format!("name the directory itself in {variable}, or remove the link");
        return not_private("it is a symbolic link".into(), remedy);
    }
    if !metadata.is_dir() {
        let remedy = format!("remove {} or name another place in {variable}", path.display());
        return not_private("it is not a directory".into(), remedy);
    }
    if metadata.uid() != uid {
        let remedy = format!("name a directory of your own in {variable}");
        return not_private(format!("it belongs to uid {}, not to {uid}", metadata.uid()), remedy);
    }
    if metadata.mode() & 0o022 != 0 {
        let remedy = format!("chmod 700 {}", path.display());
        return not_private(format!("others may write to it (mode {:o})", metadata.mode() & 0o7777), remedy);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn of(uid: u32, variables: &[(&str, &str)]) -> Directories {
        Directories::of(uid, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn root_has_fixed_places_and_others_follow_xdg() {
        let root = of(0, &[("XDG_RUNTIME_DIR", "/run/user/0"), ("HOME", "/root")]);
        assert_eq!(root, Directories { runtime: "/run/smartvm".into(), data: "/var/lib/smartvm".into() });
        let user = of(1000, &[("XDG_RUNTIME_DIR", "/run/user/1000"), ("HOME", "/home/a")]);
        assert_eq!(user.runtime, Path::new("/run/user/1000/smartvm"));
        assert_eq!(user.data, Path::new("/home/a/.local/share/smartvm"));
        let bare = of(1000, &[("TMPDIR", "/var/tmp"), ("XDG_DATA_HOME", "/d")]);
        assert_eq!(bare, Directories { runtime: "/var/tmp/smartvm-1000".into(), data: "/d/smartvm".into() });
        let relative =
            of(1000, &[("XDG_RUNTIME_DIR", "run"), ("TMPDIR", "tmp"), ("XDG_DATA_HOME", "d"), ("HOME", "h")]);
        assert_eq!(relative, of(1000, &[]), "as if they were not set");
        let set = of(0, &[("SMARTVM_RUNTIME_DIR", "/r"), ("SMARTVM_DATA_DIR", "/d")]);
        assert_eq!(set, Directories { runtime: "/r".into(), data: "/d".into() });
    }

    #[test]
    fn a_new_directory_is_ours_alone_and_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let umask = rustix::process::umask(rustix::fs::Mode::empty());
        let made = make_private(&path, RUNTIME_VARIABLE);
        rustix::process::umask(umask);
        made.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(
            fs::metadata(dir.path().join("a")).unwrap().mode() & 0o022,
            0,
            "nor do others write above it"
        );
        make_private(&path, RUNTIME_VARIABLE).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        let error = make_private(&path, RUNTIME_VARIABLE).unwrap_err();
        assert!(error.to_string().contains("mode 770"), "{error}");
        assert_eq!(error.hint().unwrap(), format!("chmod 700 {}", path.display()));
    }

    #[test]
    fn a_directory_that_firecracker_cannot_be_told_is_refused_and_not_made() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(std::ffi::OsStr::from_bytes(b"x\xff"));
        assert!(matches!(make_private(&path, RUNTIME_VARIABLE), Err(DirectoryError::NotUtf8 { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_a_file_and_a_foreign_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        symlink(dir.path(), &link).unwrap();
        fs::write(&file, "").unwrap();
        for path in [&link, &file] {
            assert!(
                matches!(make_private(path, RUNTIME_VARIABLE), Err(DirectoryError::NotPrivate { .. })),
                "{path:?}"
            );
        }
        if rustix::process::geteuid().is_root() {
            let foreign = dir.path().join("foreign");
            fs::create_dir(&foreign).unwrap();
            chown(&foreign, Some(65534), None).unwrap();
            let error = make_private(&foreign, RUNTIME_VARIABLE).unwrap_err();
            assert!(error.to_string().contains("uid 65534"), "{error}");
        }
    }
}
