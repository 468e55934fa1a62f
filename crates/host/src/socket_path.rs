//! Whose socket is this? Before a VMM makes its API socket, and when it has gone.
//!
//! Firecracker leaves its socket file behind on every exit, so a file alone says nothing: only a connection does.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use smartvm_firecracker::socket::{self, listener_pid};

use crate::error::SpawnError;

/// What stands at a path that shall become an API socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A socket that nobody listens on, with its device and inode.
    Stale(FileId),
    /// A socket with a living owner, whose pid the kernel may tell.
    Live(Option<i32>),
    Other(&'static str),
}

/// Device and inode: a path may name another file later, this does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { dev: metadata.dev(), ino: metadata.ino() }
    }

    fn is_still_at(self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|metadata| Self::of(&metadata) == self)
    }
}

/// Makes way for a new socket: removes a stale one, refuses everything else.
///
/// # Errors
/// [`SpawnError::SocketInUse`] with the owner's pid when a live process answers, [`SpawnError::SocketPath`] for what is
/// not a socket or cannot be looked at. Then nothing was touched.
pub fn make_way(path: &Path) -> Result<(), SpawnError> {
    let cannot = |problem, source| SpawnError::SocketPath { path: path.to_owned(), problem, source };
    match look(path).map_err(|source| cannot("it cannot be looked at", Some(source)))? {
        Found::Nothing => no_directory(path)
            .map_or(Ok(()), |source| Err(cannot("its directory cannot be used", Some(source)))),
        Found::Live(pid) => Err(SpawnError::SocketInUse { path: path.to_owned(), pid }),
        Found::Other(what) => Err(cannot(what, None)),
        Found::Stale(file) => {
            if !file.is_still_at(path) {
                return Ok(());
            }
            match fs::remove_file(path) {
                // Another start, which also makes way, was faster.
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(cannot("the stale socket there cannot be removed", Some(source)))
                }
                _ => Ok(()),
            }
        }
    }
}

fn look(path: &Path) -> io::Result<Found> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    let kind = metadata.file_type();
    if !kind.is_socket() {
        return Ok(Found::Other(match () {
            () if kind.is_symlink() => "there is a symbolic link, not a socket",
            () if kind.is_dir() => "there is a directory, not a socket",
            () if kind.is_file() => "there is a file, not a socket",
            () => "there is something that is not a socket",
        }));
    }
    match socket::connect(path) {
        Ok(stream) => Ok(Found::Live(listener_pid(&stream))),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::CONNREFUSED) => Ok(Found::Stale(FileId::of(&metadata))),
            // A full backlog, or a socket of another type: somebody lives there.
            Some(Errno::AGAIN | Errno::PROTOTYPE) => Ok(Found::Live(None)),
            Some(Errno::NOENT) => Ok(Found::Nothing),
            _ => Err(error),
        },
    }
}

fn no_directory(path: &Path) -> Option<io::Error> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::metadata(parent) {
        Ok(metadata) if metadata.is_dir() => None,
        Ok(_) => Some(Errno::NOTDIR.into()),
        Err(error) => Some(error),
    }
}

/// A socket that a VMM of ours makes, to be removed when the VMM is gone.
#[derive(Debug)]
pub(crate) struct OwnSocket {
    path: PathBuf,
    /// Known once we were connected to it.
    file: Option<FileId>,
}

impl OwnSocket {
    pub(crate) fn expected_at(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// The VMM listens: the socket there now is its own. Whether there is one.
    pub(crate) fn confirm(&mut self) -> bool {
        let found = fs::symlink_metadata(&self.path).ok().filter(|metadata| metadata.file_type().is_socket());
        self.file = found.map(|metadata| FileId::of(&metadata));
        self.file.is_some()
    }

    /// Removes the file if it is the VMM's, which has ended; leaves alone what others put there.
    pub(crate) fn remove(&self) {
        let ours = match self.file {
            Some(file) => file.is_still_at(&self.path),
            // It ended before we were connected. There was no file before it began, so a socket without a listener is its.
            None => matches!(look(&self.path), Ok(Found::Stale(_))),
        };
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the VMM's socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smartvm_core::explain::{Code, Explain};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    #[test]
    fn a_free_path_is_free_and_a_stale_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        make_way(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        make_way(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_not_touched_and_its_owner_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = make_way(&path).unwrap_err();
        assert_eq!(error.code(), Code::SocketInUse);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_socket_of_another_type_is_not_touched_either() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _datagrams = UnixDatagram::bind(&path).unwrap();
        assert_eq!(make_way(&path).unwrap_err().code(), Code::SocketInUse);
        assert!(path.exists());
    }

    #[test]
    fn what_is_not_a_socket_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        for path in [&file, &link, &dir.path().to_owned()] {
            let error = make_way(path).unwrap_err();
            assert_eq!(error.code(), Code::SocketPath, "{error}");
        }
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert!(fs::symlink_metadata(&link).is_ok());
    }

    #[test]
    fn a_missing_directory_is_said_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let error = make_way(&dir.path().join("no/such/dir.sock")).unwrap_err();
        assert_eq!(error.code(), Code::SocketPath);
    }

    #[test]
    fn a_vmms_socket_is_removed_but_not_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = UnixListener::bind(&path).unwrap();
        let mut own = OwnSocket::expected_at(path.clone());
        own.confirm();
        fs::rename(&path, dir.path().join("kept")).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        own.remove();
        assert!(path.exists(), "another process's socket stays");
        drop(first);
        fs::rename(dir.path().join("kept"), &path).unwrap();
        own.remove();
        assert!(!path.exists());
    }
}
