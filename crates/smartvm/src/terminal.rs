//! The terminal of a person: raw while a guest's console is on it, and as it was on every way out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// A terminal and the settings it had when we found it.
///
/// Dropping it gives the settings back, also while a panic unwinds.
#[derive(Debug)]
pub struct Terminal<F: AsFd> {
    fd: F,
    found: Termios,
    raw: bool,
}

impl Terminal<BorrowedFd<'static>> {
    /// The terminal on standard input; `None` when that is something else.
    pub fn on_stdin() -> Option<Self> {
        Self::on(rustix::stdio::stdin())
    }
}

impl Terminal<OwnedFd> {
    /// The terminal that is the standard input of the process which started this one, else the one on standard error.
    ///
    /// For a second process, whose own standard input is another thing.
    pub fn of_parent() -> Option<Self> {
        let stdin = format!("/proc/{}/fd/0", std::os::unix::process::parent_id());
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(stdin, flags, Mode::empty()).ok().and_then(Self::on);
        opened.or_else(|| Self::on(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).ok()?))
    }
}

impl<F: AsFd> Terminal<F> {
    /// `fd` with its settings of now; `None` when it is no terminal.
    pub fn on(fd: F) -> Option<Self> {
        let found = tcgetattr(&fd).ok()?;
        Some(Self { fd, found, raw: false })
    }

    /// Every byte comes as it is typed and goes out as it is: no echo, no lines, no signals from keys.
    ///
    /// # Errors
    /// The kernel refused, as it does for a terminal that was hung up.
    pub fn make_raw(&mut self) -> io::Result<()> {
        let mut raw = self.found.clone();
        raw.make_raw();
        tcsetattr(&self.fd, OptionalActions::Now, &raw)?;
        self.raw = true;
        Ok(())
    }

    /// Whether [`Terminal::make_raw`] was the last word.
    pub fn is_raw(&self) -> bool {
        self.raw
    }

    /// Gives back the settings it was found with.
    pub fn restore(&mut self) {
        if self.raw {
            // Nothing can be done about a terminal that is gone.
            let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.found);
            self.raw = false;
        }
    }

    /// Gives back the settings even if it was not this handle that changed them: for the one who is left when the
    /// process that made the terminal raw was killed.
    pub fn restore_for_others(&self) {
        let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.found);
    }

    /// Stops this process as Ctrl+Z does, with the terminal as it was found; when it is continued, the terminal is raw
    /// again. Blocks in between.
    ///
    /// # Errors
    /// As [`Terminal::make_raw`].
    pub fn suspend(&mut self) -> io::Result<()> {
        let was_raw = self.raw;
        self.restore();
        kill_process(getpid(), Signal::STOP)?;
        // Continued. In the background the next line stops us again until we are brought to the front.
        if was_raw { self.make_raw() } else { Ok(()) }
    }
}

impl<F: AsFd> Drop for Terminal<F> {
    fn drop(&mut self) {
        self.restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    fn pty() -> (OwnedFd, OwnedFd) {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let other = ioctl_tiocgptpeer(&main, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        (main, other)
    }

    fn settings(fd: &OwnedFd) -> String {
        format!("{:?}", tcgetattr(fd).unwrap())
    }

    #[test]
    fn the_terminal_is_raw_in_between_and_as_before_afterwards() {
        let (_main, tty) = pty();
        let before = settings(&tty);
        let mut terminal = Terminal::on(&tty).unwrap();
        terminal.make_raw().unwrap();
        assert_ne!(settings(&tty), before);
        terminal.restore();
        assert_eq!(settings(&tty), before);
    }

    #[test]
    fn a_panic_restores_it() {
        let (_main, tty) = pty();
        let before = settings(&tty);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut terminal = Terminal::on(&tty).unwrap();
            terminal.make_raw().unwrap();
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!(settings(&tty), before);
    }

    #[test]
    fn a_file_is_no_terminal() {
        assert!(Terminal::on(std::fs::File::open("/dev/null").unwrap()).is_none());
    }
}
