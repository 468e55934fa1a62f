//! How starting and stopping a VMM can fail.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_firecracker::ApiError;

use crate::clone::CloneError;
use crate::process::Exit;
use crate::vmm::Rung;

/// A VMM that could not be started. Nothing of it is left: no process, no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// An argument that no program can be given.
    #[error("the argument {argument:?} holds a NUL byte")]
    NulInArgument {
        /// The whole argument.
        argument: String,
    },
    /// A live process answers on the socket's path. It was not touched.
    #[error("the API socket {} is in use{}", path.display(), owner(*pid))]
    SocketInUse {
        /// The socket.
        path: PathBuf,
        /// The process that listens there, when the kernel names it.
        pid: Option<i32>,
    },
    /// The path cannot be an API socket.
    #[error("cannot use {} as the API socket: {problem}", path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// What stands against it.
        problem: &'static str,
        /// The system call's error, if one said so.
        source: Option<io::Error>,
    },
    /// The host refused something before there was a process.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The system call's error.
        source: io::Error,
    },
    /// The process could not be made, or could not become Firecracker.
    #[error("cannot start {}: {step} failed", exec_file.display())]
    Exec {
        /// The binary.
        exec_file: PathBuf,
        /// The system call.
        step: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The socket did not accept a connection in time. The VMM was killed.
    #[error("Firecracker did not open its API socket {} within {within:?}", path.display())]
    SocketTimeout {
        /// The socket.
        path: PathBuf,
        /// The limit.
        within: Duration,
        /// The VMM's last output lines.
        last_words: Vec<String>,
    },
    /// The API did not answer, or the VM of the config file was not built, in time. The VMM was killed.
    #[error("Firecracker did not answer on its API socket {}, or did not start the guest, within {within:?}", path.display())]
    ApiTimeout {
        /// The socket.
        path: PathBuf,
        /// The limit.
        within: Duration,
        /// The VMM's last output lines.
        last_words: Vec<String>,
    },
    /// The VMM ended before it was ready.
    #[error("Firecracker exited before it was ready: {}", exit.explained())]
    ProcessExited {
        /// How it ended.
        exit: Exit,
        /// The VMM's last output lines.
        last_words: Vec<String>,
    },
    /// The API answered `GET /`, but wrongly. The VMM was killed.
    #[error("Firecracker's API did not answer as it should")]
    Api {
        /// What came instead.
        source: ApiError,
        /// The VMM's last output lines.
        last_words: Vec<String>,
    },
}

fn owner(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
}

impl SpawnError {
    pub(crate) fn nul_in_argument(argument: String) -> Self {
        Self::NulInArgument { argument }
    }

    pub(crate) fn host(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Host { what, source: source.into() }
    }

    pub(crate) fn exec(exec_file: &Path, failed: CloneError) -> Self {
        Self::Exec { exec_file: exec_file.to_owned(), step: failed.step, source: failed.source }
    }
}

impl Explain for SpawnError {
    fn code(&self) -> Code {
        match self {
            Self::NulInArgument { .. } => Code::InvalidConfig,
            Self::SocketInUse { .. } => Code::SocketInUse,
            Self::SocketPath { .. } => Code::SocketPath,
            Self::Host { .. } => Code::Host,
            Self::Exec { step: "execve", source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Code::FirecrackerNotFound
            }
            Self::Exec { .. } => Code::SpawnFailed,
            Self::SocketTimeout { .. } => Code::SocketTimeout,
            Self::ApiTimeout { .. } => Code::ApiTimeout,
            Self::ProcessExited { .. } => Code::ProcessExited,
            Self::Api { source, .. } => source.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NulInArgument { .. } => Some("remove the NUL byte".into()),
            Self::SocketInUse { pid: Some(pid), .. } => {
                Some(format!("use another socket path, or end process {pid} if it is not needed"))
            }
            Self::SocketInUse { .. } => Some("use another socket path".into()),
            Self::SocketPath { source, .. } => source
                .as_ref()
                .and_then(host_hint)
                .or_else(|| Some("give a path where a new socket can be made".into())),
            Self::Host { source, .. } => host_hint(source),
            Self::Exec { step: "execve", exec_file, source } => Some(exec_hint(exec_file, source)),
            Self::Exec { step: "chdir", .. } => {
                Some("give a working directory that exists and that this user may enter".into())
            }
            Self::Exec { source, .. } => host_hint(source),
            Self::SocketTimeout { .. } => Some(
                "is this binary really Firecracker, and is the host overloaded? `smartvm doctor` tests both"
                    .into(),
            ),
            Self::ApiTimeout { .. } => {
                Some("the VMM hung while it built the VM: `smartvm doctor` tests this host's KVM".into())
            }
            Self::ProcessExited { last_words, .. } => exit_hint(last_words),
            Self::Api { source, .. } => source.hint(),
        }
    }

    fn happened(&self) -> Happened {
        match self {
            Self::NulInArgument { .. }
            | Self::SocketInUse { .. }
            | Self::SocketPath { .. }
            | Self::Host { .. }
            | Self::Exec { .. } => Happened::NeverStarted,
            Self::SocketTimeout { .. }
            | Self::ApiTimeout { .. }
            | Self::ProcessExited { .. }
            | Self::Api { .. } => Happened::Failed,
        }
    }

    fn last_words(&self) -> &[String] {
        match self {
            Self::SocketTimeout { last_words, .. }
            | Self::ApiTimeout { last_words, .. }
            | Self::ProcessExited { last_words, .. }
            | Self::Api { last_words, .. } => last_words,
            _ => &[],
        }
    }
}

fn host_hint(source: &io::Error) -> Option<String> {
    match rustix::io::Errno::from_io_error(source) {
        Some(rustix::io::Errno::MFILE) => {
            Some("this process has too many open files: raise its limit (`ulimit -n`); a VMM takes 5".into())
        }
        Some(rustix::io::Errno::AGAIN) => Some(
            "this user or its control group has too many processes and threads: raise the limit (`ulimit -u`, pids.max)"
                .into(),
        ),
        Some(rustix::io::Errno::NFILE) => Some("the host has too many open files: raise fs.file-max".into()),
        _ => None,
    }
}

fn exec_hint(exec_file: &Path, source: &io::Error) -> String {
    let path = exec_file.display();
    match source.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no {path}: set SMARTVM_FIRECRACKER to the Firecracker binary")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{path} must be executable by this user (chmod 755), on a file system without noexec")
        }
        _ if rustix::io::Errno::from_io_error(source) == Some(rustix::io::Errno::NOEXEC) => {
            format!("{path} is not a program for this CPU: get the Firecracker release for it")
        }
        _ => format!("check that {path} is a Firecracker binary"),
    }
}

/// Firecracker names its own troubles well; these need a word about the host.
fn exit_hint(last_words: &[String]) -> Option<String> {
    let said = |needle: &str| last_words.iter().any(|line| line.contains(needle));
    if said("/dev/kvm") || said("KVM object") || said("Error creating KVM") {
        return Some(
            "this user must be able to open /dev/kvm (group kvm): `smartvm doctor` says what is missing"
                .into(),
        );
    }
    if said("FailedToBind") {
        return Some(
            "another process made the socket meanwhile, or its directory takes none: use another socket path"
                .into(),
        );
    }
    if said("memory") && (said("ENOMEM") || said("Cannot allocate")) {
        return Some("the host has too little memory for this VM: lower mem_size_mib or free some".into());
    }
    None
}

/// A VMM that could not be stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// Every rung of the ladder was tried, and the VMM still runs.
    #[error("process {pid} still runs after {}", rungs(tried))]
    StillRunning {
        /// The VMM.
        pid: i32,
        /// What was tried, in order.
        tried: Vec<Rung>,
    },
}

fn rungs(tried: &[Rung]) -> String {
    if tried.is_empty() {
        return "a ladder without rungs".into();
    }
    tried.iter().map(|rung| rung.as_str()).collect::<Vec<_>>().join(", ")
}

impl Explain for StopError {
    fn code(&self) -> Code {
        Code::StopTimeout
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::StillRunning { tried, .. } if !tried.contains(&Rung::Kill) => {
                Some("stop it with a ladder that ends in SIGKILL".into())
            }
            Self::StillRunning { pid, .. } => Some(format!(
                "the kernel has not ended it yet, most often because it waits for a disk: see /proc/{pid}/stack and dmesg"
            )),
        }
    }

    fn happened(&self) -> Happened {
        Happened::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_the_host_has_no_room_for_is_no_fault_of_the_binary() {
        for (errno, hint) in [(libc::EAGAIN, "ulimit -u"), (libc::EMFILE, "ulimit -n")] {
            let failed = CloneError { step: "clone", source: io::Error::from_raw_os_error(errno) };
            let error = SpawnError::exec(Path::new("/fc"), failed);
            assert_eq!(error.code(), Code::SpawnFailed);
            assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
        }
    }
}
