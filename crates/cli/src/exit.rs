//! The exit statuses of `smartvm`. Documented for users in `smartvm --help` and the README.

use std::process::ExitCode;

use smartvm::explain::Code;

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what was asked. Of `run`: the guest ended by itself, or was asked to with the escape sequence.
    Success,
    /// Something of smartvm's own, or of the host, failed in a way that has no other status.
    Internal,
    /// The config, kernel or image cannot work.
    InvalidConfig,
    /// The host cannot run it: KVM, Firecracker, permissions, directories.
    HostNotReady,
    /// The VMM did not start.
    StartFailed,
    /// The VMM ended while the guest ran, and nobody had asked it to.
    VmmFailed,
    /// There is no such machine (or kernel, image, version, file), or something else holds it.
    MachineUnavailable,
    /// A machine could not be stopped, or something of it could not be released.
    NotReleased,
    /// Something could not be fetched, or is not what was promised.
    NotFetched,
    /// The store is damaged, or cannot be used.
    StoreDamaged,
    /// The guest could not run the image's command.
    GuestFailed,
    /// A signal (or Ctrl-C) ended the run: 128 and its number.
    Signal(u8),
    /// The image's command ended so: its status as a shell has it.
    Command(u8),
}

/// SIGHUP.
pub(crate) const HANG_UP: u8 = 1;
/// SIGINT, Ctrl-C.
pub(crate) const INTERRUPT: u8 = 2;
/// SIGQUIT: kill the machine.
const QUIT: u8 = 3;
/// SIGKILL: the machine was killed on request.
pub(crate) const KILL: u8 = 9;
/// SIGPIPE: whoever read our standard output is gone.
pub(crate) const PIPE: u8 = 13;
/// SIGTERM.
pub(crate) const TERMINATE: u8 = 15;

/// For `--help`.
pub(crate) const TABLE: &str = "\
Exit status:
    0  done; of `run`: the guest ended by itself, or was stopped with the escape sequence, or detached
    1  something of smartvm or of the host failed in a way that has no other status
    2  wrong usage of the command line
    3  the config, kernel or image cannot work (INVALID_CONFIG, INVALID_KERNEL, INVALID_IMAGE)
    4  the host cannot run it: no KVM, no usable Firecracker, directories that are not private
    5  the VMM did not start
    6  the VMM ended while the guest ran, and nobody had asked it to
    7  there is no such machine, kernel, image, version or file (NOT_FOUND), or it is in use (IN_USE, MACHINE_BUSY)
    8  a machine could not be stopped, or something of it could not be released
    9  something could not be fetched (DOWNLOAD_FAILED, UNAUTHORIZED, DIGEST_MISMATCH)
   10  the store is damaged or cannot be used (STORE); of `store verify`: there are findings
   11  of `run IMAGE`: the guest could not run the command (GUEST_FAILED); the step that failed is told
  129  stopped on SIGHUP (the terminal is gone)
  130  stopped on Ctrl-C or SIGINT
  137  of `run`: killed on request (second Ctrl-C, escape sequence, `stop --kill`)
  141  of `run`: stopped because standard output was closed, or its disk is full
  143  stopped on SIGTERM (of `run`: `smartvm stop`)
Once it runs, `run IMAGE` ends with the status of the image's command: 0 to 255, and 128 + n when signal n ended it.
With --json the last line on standard error tells whose status it is.";

impl Exit {
    /// The status.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Internal => 1,
            Self::InvalidConfig => 3,
            Self::HostNotReady => 4,
            Self::StartFailed => 5,
            Self::VmmFailed => 6,
            Self::MachineUnavailable => 7,
            Self::NotReleased => 8,
            Self::NotFetched => 9,
            Self::StoreDamaged => 10,
            Self::GuestFailed => 11,
            Self::Signal(number) => 128 + number,
            Self::Command(status) => status,
        }
    }

    /// The end of a run that was asked for with this signal.
    pub(crate) fn on_signal(number: i32) -> Option<Self> {
        match u8::try_from(number) {
            Ok(number @ (HANG_UP | INTERRUPT | TERMINATE)) => Some(Self::Signal(number)),
            Ok(QUIT) => Some(Self::Signal(KILL)),
            _ => None,
        }
    }

    /// What a failure with this code means for the command as a whole.
    pub(crate) fn of(code: Code) -> Self {
        match code {
            Code::InvalidConfig | Code::InvalidId => Self::InvalidConfig,
            Code::FirecrackerNotFound | Code::UnsupportedVersion | Code::KvmUnavailable => Self::HostNotReady,
            Code::SocketInUse
            | Code::SocketPath
            | Code::SocketTimeout
            | Code::ApiTimeout
            | Code::ApiDisconnected
            | Code::ApiFault
            | Code::ApiProtocol
            | Code::ProcessExited
            | Code::SpawnFailed => Self::StartFailed,
            Code::MachineBusy | Code::NotFound | Code::InvalidState | Code::InUse => Self::MachineUnavailable,
            Code::StopTimeout => Self::NotReleased,
            Code::InvalidImage | Code::InvalidKernel => Self::InvalidConfig,
            Code::DownloadFailed | Code::Unauthorized | Code::DigestMismatch => Self::NotFetched,
            Code::Store => Self::StoreDamaged,
            Code::GuestFailed => Self::GuestFailed,
            _ => Self::Internal,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.status().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_in_the_help_names_every_status() {
        let all = [
            Exit::Success,
            Exit::Internal,
            Exit::InvalidConfig,
            Exit::HostNotReady,
            Exit::StartFailed,
            Exit::VmmFailed,
            Exit::MachineUnavailable,
            Exit::NotReleased,
            Exit::NotFetched,
            Exit::StoreDamaged,
            Exit::GuestFailed,
            Exit::Signal(HANG_UP),
            Exit::Signal(INTERRUPT),
            Exit::Signal(KILL),
            Exit::Signal(PIPE),
            Exit::Signal(TERMINATE),
        ];
        let mut named: Vec<u8> = TABLE
            .lines()
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .filter(|&status| status != 2)
            .collect();
        named.sort_unstable();
        let mut statuses = all.map(Exit::status);
        statuses.sort_unstable();
        assert_eq!(named, statuses);
    }
}
