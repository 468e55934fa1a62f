//! Connecting to Unix sockets without ever blocking, whatever the length of their path.
//!
//! The kernel's `sun_path` holds 107 bytes and a NUL. A longer path is reached through its parent
//! directory: opened once (`O_PATH`), named as `/proc/self/fd/N`, so that only the file name has to fit.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The longest path, in bytes, that fits into a socket address (`sun_path` is 108 bytes with its NUL).
pub const SUN_PATH_MAX: usize = 107;

/// A name for a file that fits into a socket address, valid in this process while the value lives.
#[derive(Debug)]
pub struct ShortPath {
    path: PathBuf,
    /// Held open: `path` leads through this descriptor when the original was too long.
    dir: Option<OwnedFd>,
}

impl ShortPath {
    /// The name to use: the original path, or `/proc/self/fd/N/<file name>`.
    pub fn as_path(&self) -> &Path {
        &self.path
    }

    /// Whether the name differs from the original, and so ends with this value.
    pub fn is_indirect(&self) -> bool {
        self.dir.is_some()
    }
}

/// A name of at most [`SUN_PATH_MAX`] bytes for `path`; the file itself need not exist.
///
/// # Errors
/// The parent directory of a long path cannot be opened; or (`InvalidFilename`) the file name alone is too
/// long for a socket address; or (`InvalidInput`) `path` is empty, contains a NUL byte,
/// or is long and has no file name.
pub fn short_path(path: &Path) -> io::Result<ShortPath> {
    // The kernel would take an empty path for no name at all, and a leading NUL for an abstract one.
    if path.as_os_str().is_empty() || path.as_os_str().as_bytes().contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the socket path is empty or contains a NUL byte",
        ));
    }
    if path.as_os_str().len() <= SUN_PATH_MAX {
        return Ok(ShortPath { path: path.to_owned(), dir: None });
    }
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} has no file name", path.display()))
    })?;
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = through_fd(&dir, name);
    if short.as_os_str().len() > SUN_PATH_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidFilename,
            format!(
                "the file name of the socket is {} bytes long; with its directory opened at most {} fit into a \
                 socket address",
                name.len(),
                SUN_PATH_MAX - (short.as_os_str().len() - name.len()),
            ),
        ));
    }
    Ok(ShortPath { path: short, dir: Some(dir) })
}

fn through_fd(dir: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)
}

/// Connects to the stream socket at `path` and returns a non-blocking, close-on-exec stream.
///
/// Never waits: a Unix socket connects at once or not at all.
///
/// # Errors
/// `WouldBlock`: the listener's backlog is full, try again later. `ConnectionRefused`: nobody listens (yet).
/// `NotFound`, `PermissionDenied` and others: as the kernel says; and those of [`short_path`].
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    Connector::new(path)?.connect()
}

/// Connects to one path, again and again until it works: a refused socket serves for the next try.
#[derive(Debug)]
pub struct Connector {
    address: SocketAddrUnix,
    /// What `address` may lead through.
    _short: ShortPath,
    unconnected: Option<OwnedFd>,
}

impl Connector {
    /// Tries nothing yet.
    ///
    /// # Errors
    /// Those of [`short_path`].
    pub fn new(path: &Path) -> io::Result<Self> {
        let short = short_path(path)?;
        Ok(Self { address: SocketAddrUnix::new(short.as_path())?, _short: short, unconnected: None })
    }

    /// One try.
    ///
    /// # Errors
    /// As [`connect`].
    pub fn connect(&mut self) -> io::Result<UnixStream> {
        let socket = match self.unconnected.take() {
            Some(socket) => socket,
            None => {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?
            }
        };
        match rustix::net::connect(&socket, &self.address) {
            Ok(()) => Ok(UnixStream::from(socket)),
            Err(errno) => {
                self.unconnected = Some(socket);
                Err(errno.into())
            }
        }
    }
}

/// The process that called `listen` on the other end (SO_PEERCRED, unix(7)); `None` when it is in a pid namespace that we
/// cannot see into.
pub fn listener_pid(stream: &UnixStream) -> Option<i32> {
    let pid = rustix::net::sockopt::socket_peercred(stream).ok()?.pid.as_raw_pid();
    (pid > 0).then_some(pid)
}

/// Whether the peer has closed its end, or has sent bytes that nobody asked for; either way the
/// connection is of no use for a new request. One system call, takes nothing out of the socket.
pub(crate) fn is_spent(stream: impl AsFd) -> bool {
    let mut byte = [0u8; 1];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recv(stream, &mut byte, flags) {
        Ok(_) => true,
        Err(Errno::AGAIN | Errno::INTR) => false,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// A directory under `root` whose path has more than `length` bytes.
    fn deep(root: &Path, length: usize) -> PathBuf {
        let mut dir = root.to_owned();
        while dir.as_os_str().len() < length {
            dir.push("d".repeat(40));
        }
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_connector_works_after_any_number_of_refusals() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut connector = Connector::new(&path).unwrap();
        assert_eq!(connector.connect().unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(connector.connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        for _ in 0..2 {
            let mut ours = connector.connect().unwrap();
            let (mut theirs, _) = listener.accept().unwrap();
            ours.write_all(b"x").unwrap();
            theirs.read_exact(&mut [0]).unwrap();
        }
    }

    fn listen(path: &Path) -> UnixListener {
        let short = short_path(path).unwrap();
        UnixListener::bind(short.as_path()).unwrap()
    }

    #[test]
    fn a_path_of_two_hundred_bytes_connects() {
        let root = tempfile::tempdir().unwrap();
        let path = deep(root.path(), 200).join("api.sock");
        assert!(path.as_os_str().len() >= 200);
        let listener = listen(&path);
        assert!(path.symlink_metadata().is_ok(), "bound under its long name");
        let mut client = connect(&path).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"x").unwrap();
        client.set_nonblocking(false).unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn the_stream_does_not_block_and_is_not_inherited() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let listener = listen(&path);
        let client = connect(&path).unwrap();
        let _server = listener.accept().unwrap();
        assert!(rustix::fs::fcntl_getfl(&client).unwrap().contains(OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(&client).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        let error = (&client).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_full_backlog_is_would_block_at_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        let mut held = Vec::new();
        let error = loop {
            match connect(&path) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
            assert!(held.len() < 16, "the backlog never fills");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn nobody_listening_is_refused_and_nothing_there_is_not_found() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(listen(&path));
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let long = deep(root.path(), 200).join("s");
        assert_eq!(connect(&long).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_name_that_cannot_fit_is_said() {
        let root = tempfile::tempdir().unwrap();
        let error = connect(&root.path().join("n".repeat(120))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidFilename);
        assert!(error.to_string().contains("120 bytes"), "{error}");
    }

    #[test]
    fn odd_paths_are_errors() {
        let odd = ["", "\0abstract", "a\0b"];
        for path in odd {
            assert_eq!(connect(Path::new(path)).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
        let dots = format!("{}..", "a/".repeat(100));
        assert_eq!(connect(Path::new(&dots)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_directory_is_closed_with_the_short_path() {
        let root = tempfile::tempdir().unwrap();
        let dir = deep(root.path(), 150);
        let short = short_path(&dir.join("s")).unwrap();
        assert!(short.is_indirect());
        std::fs::write(dir.join("s"), b"").unwrap();
        assert!(short.as_path().exists());
        let name = short.as_path().to_owned();
        drop(short);
        assert!(!name.exists() || !name.ends_with("s"), "{}", name.display());
        assert!(!short_path(Path::new("/run/s")).unwrap().is_indirect());
    }

    #[test]
    fn a_closed_or_chatty_peer_is_spent() {
        let (a, mut b) = UnixStream::pair().unwrap();
        assert!(!is_spent(a.as_fd()));
        b.write_all(b"x").unwrap();
        assert!(is_spent(a.as_fd()));
        let (c, d) = UnixStream::pair().unwrap();
        drop(d);
        assert!(is_spent(c.as_fd()));
    }
}
