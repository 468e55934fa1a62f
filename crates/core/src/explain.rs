//! What every error of smartvm can say of itself beside its text: a stable code, what to do, and
//! whether the work may have happened.
//!
//! The text (`Display`) says *what* failed; [`std::error::Error::source`] and the text of the peer
//! (Firecracker's fault message, an exit status, the last log lines) say *why*; [`Explain::hint`] says
//! *what to do*. A text never repeats the text of its source.

use std::fmt;

/// A stable, documented name for a kind of failure, printed in upper case (`SOCKET_TIMEOUT`).
///
/// Programs may match on it; it never changes its meaning, and new ones may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Code {
    /// The spec or the Firecracker config cannot work; each problem is listed with its own code and path.
    InvalidConfig,
    /// An operation that the machine's state does not allow.
    InvalidState,
    /// A name or id outside of the allowed form.
    InvalidId,
    /// The configured Firecracker or jailer binary is missing or is not one.
    FirecrackerNotFound,
    /// This Firecracker is too old (or too new) for what was asked.
    UnsupportedVersion,
    /// The KVM device is missing or may not be opened.
    KvmUnavailable,
    /// A live process answers on the API socket's path.
    SocketInUse,
    /// The API socket's path exists and is not a socket, or cannot be used as one.
    SocketPath,
    /// The API socket did not accept a connection in time.
    SocketTimeout,
    /// The API did not answer in time.
    ApiTimeout,
    /// The API closed the connection, or could not be reached any more.
    ApiDisconnected,
    /// Firecracker refused the request (`fault_message`).
    ApiFault,
    /// The API answered something that is not its protocol, or more than the bound.
    ApiProtocol,
    /// The VMM ended before it was asked to.
    ProcessExited,
    /// The child process could not be made.
    SpawnFailed,
    /// The VMM still runs after every rung of the stop ladder.
    StopTimeout,
    /// The host refused a system call or a file operation.
    Host,
    /// Another owner holds this machine.
    MachineBusy,
    /// No machine, image, kernel or version of this name.
    NotFound,
    /// Something could not be fetched: name lookup, connection, TLS, an HTTP status, a body that ended early.
    DownloadFailed,
    /// A server or registry refused the credentials, or wants some.
    Unauthorized,
    /// What was fetched or is stored does not have the promised digest or size.
    DigestMismatch,
    /// The image or archive is malformed, hostile, or of a kind that is not supported.
    InvalidImage,
    /// The kernel or its modules are malformed, or of a kind that is not supported.
    InvalidKernel,
    /// The store is damaged, of a newer format, or cannot be used.
    Store,
    /// It is in use and may not be removed.
    InUse,
    /// The guest could not run what it was to run: its init says which step failed, or says nothing.
    GuestFailed,
}

impl Code {
    /// The code as it is printed and documented.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidConfig => "INVALID_CONFIG",
            Self::InvalidState => "INVALID_STATE",
            Self::InvalidId => "INVALID_ID",
            Self::FirecrackerNotFound => "FIRECRACKER_NOT_FOUND",
            Self::UnsupportedVersion => "UNSUPPORTED_VERSION",
            Self::KvmUnavailable => "KVM_UNAVAILABLE",
            Self::SocketInUse => "SOCKET_IN_USE",
            Self::SocketPath => "SOCKET_PATH",
            Self::SocketTimeout => "SOCKET_TIMEOUT",
            Self::ApiTimeout => "API_TIMEOUT",
            Self::ApiDisconnected => "API_DISCONNECTED",
            Self::ApiFault => "API_FAULT",
            Self::ApiProtocol => "API_PROTOCOL",
            Self::ProcessExited => "PROCESS_EXITED",
            Self::SpawnFailed => "SPAWN_FAILED",
            Self::StopTimeout => "STOP_TIMEOUT",
            Self::Host => "HOST",
            Self::MachineBusy => "MACHINE_BUSY",
            Self::NotFound => "NOT_FOUND",
            Self::DownloadFailed => "DOWNLOAD_FAILED",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::DigestMismatch => "DIGEST_MISMATCH",
            Self::InvalidImage => "INVALID_IMAGE",
            Self::InvalidKernel => "INVALID_KERNEL",
            Self::Store => "STORE",
            Self::InUse => "IN_USE",
            Self::GuestFailed => "GUEST_FAILED",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the work that failed may have taken effect, so that a caller knows if a retry is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Happened {
    /// Nothing was begun: a retry is safe.
    NeverStarted,
    /// It was begun, it failed, and what it had made was released.
    Failed,
    /// It may or may not have taken effect.
    Unknown,
}

impl Happened {
    /// The word used in JSON output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NeverStarted => "never-started",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// An error that says what to do. Every public error of smartvm implements it.
pub trait Explain: std::error::Error {
    /// The stable code.
    fn code(&self) -> Code;

    /// What the user can do about it, as one or more sentences.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Whether the work may have happened.
    fn happened(&self) -> Happened {
        Happened::Failed
    }

    /// The peer's own last words: log or output lines, oldest first. Empty when there are none.
    fn last_words(&self) -> &[String] {
        &[]
    }
}
