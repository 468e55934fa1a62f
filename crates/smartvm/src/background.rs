//! What an owner needs that outlives the command which started it.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::setsid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// A second process of this program, in a session of its own, and two connections to it.
#[derive(Debug)]
pub struct Second {
    /// The process. It is not killed when this is dropped.
    pub child: Child,
    /// The other end of its standard input.
    pub control: UnixStream,
    /// The other end of its standard output.
    pub data: UnixStream,
}

impl Second {
    /// Starts this program again with `arguments`. Its standard error is ours.
    ///
    /// # Errors
    /// The host refused a socket or the process.
    pub fn start(arguments: &[&OsStr]) -> io::Result<Self> {
        let (control, its_control) = UnixStream::pair()?;
        let (data, its_data) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0("smartvm")
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(its_control)))
            .stdout(Stdio::from(OwnedFd::from(its_data)))
            .spawn()?;
        Ok(Self { child, control, data })
    }
}

/// For the second process: takes the connections off its standard streams and leaves the first one's session, so that
/// neither the terminal's keys nor its end reach it.
///
/// # Errors
/// The standard streams are not those connections.
pub fn take_connections() -> io::Result<(UnixStream, UnixStream)> {
    // Fails only for the leader of a process group, which is what we then are already.
    let _ = setsid();
    let control = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let data = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
    control.peer_addr()?;
    data.peer_addr()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok((control, data))
}

/// Lets go of the terminal that standard error may still be.
///
/// # Errors
/// The null device cannot be opened.
pub fn leave_stderr() -> io::Result<()> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    dup2_stderr(&null)?;
    Ok(())
}
