//! PID 1's standing duties: to reap whatever ends, and to end everything when it is time.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::pipe;
use smartvm_guest_api::boot::Ended;

/// After a request to stop, processes have so long to end by SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// After so long, the process is told as well that its terminal is gone: shells at a prompt heed nothing else.
const HANG_UP_AFTER: Duration = Duration::from_millis(500);
/// A killed process that does not end hangs in the kernel, and is not waited for longer.
const KILLED: Duration = Duration::from_secs(2);

/// The signals that PID 1 hears.
pub(crate) struct Signals {
    /// Readable when a child has ended.
    children: OwnedFd,
    /// Readable when the guest is to stop: Ctrl+Alt+Del (SIGINT from the kernel), or what `poweroff`, `halt`,
    /// `reboot` and `kill 1` send.
    stop: OwnedFd,
}

impl Signals {
    pub(crate) fn hear() -> io::Result<Self> {
        let hear = |signals: &[i32]| -> io::Result<OwnedFd> {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            for signal in signals {
                pipe::register(*signal, write.try_clone()?)?;
            }
            Ok(read)
        };
        Ok(Self { children: hear(&[SIGCHLD])?, stop: hear(&[SIGINT, SIGTERM, SIGUSR1, SIGUSR2])? })
    }

    /// Reaps until the given child has ended, then ends all others. A request to stop ends the child first.
    pub(crate) fn until_the_end_of(&self, child: Pid) -> Ended {
        let mut reaper = Reaper { child, ended: None, none_left: false };
        while reaper.ended.is_none() && !reaper.none_left {
            if self.sleep(&[&self.children, &self.stop], None) && forget(&self.stop) {
                self.stop_all(&mut reaper);
            }
            forget(&self.children);
            reaper.reap();
        }
        self.kill_all(&mut reaper);
        // Without an ended child it has not been ours, which cannot be.
        reaper.ended.unwrap_or(Ended::Code(255))
    }

    /// Asks all processes to end and waits for a while.
    fn stop_all(&self, reaper: &mut Reaper) {
        everybody(Signal::TERM);
        let begun = Instant::now();
        self.reap_until(reaper, begun + HANG_UP_AFTER);
        if reaper.ended.is_none() {
            let _ = kill_process(reaper.child, Signal::HUP);
        }
        self.reap_until(reaper, begun + GRACE);
        self.kill_all(reaper);
    }

    fn kill_all(&self, reaper: &mut Reaper) {
        everybody(Signal::KILL);
        self.reap_until(reaper, Instant::now() + KILLED);
    }

    fn reap_until(&self, reaper: &mut Reaper, deadline: Instant) {
        loop {
            forget(&self.children);
            reaper.reap();
            let left = deadline.saturating_duration_since(Instant::now());
            if reaper.none_left || left.is_zero() {
                return;
            }
            self.sleep(&[&self.children], Some(left));
        }
    }

    /// Sleeps until one of them can be read; false when the time was over first.
    fn sleep(&self, until: &[&OwnedFd], time: Option<Duration>) -> bool {
        let time = time.map(|time| Timespec::try_from(time).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 }));
        let mut pipes: Vec<PollFd<'_>> = until.iter().map(|pipe| PollFd::new(*pipe, PollFlags::IN)).collect();
        // An interrupted sleep is a short one.
        poll(&mut pipes, time.as_ref()).map_or(true, |ready| ready > 0)
    }
}

/// Takes what was written to a pipe; whether there was something.
fn forget(pipe: &OwnedFd) -> bool {
    let mut bytes = [0; 64];
    let mut any = false;
    while rustix::io::read(pipe, &mut bytes).is_ok_and(|count| count > 0) {
        any = true;
    }
    any
}

/// Sends a signal to every process but this one.
fn everybody(signal: Signal) {
    // `kill(-1)`: as the negative of a process group's number it addresses all processes, and the caller not.
    let _ = kill_process_group(Pid::INIT, signal);
}

struct Reaper {
    child: Pid,
    ended: Option<Ended>,
    /// There is no process but this one.
    none_left: bool,
}

impl Reaper {
    /// Collects all that have ended.
    fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.child => self.ended = ended(status).or(self.ended),
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return,
                Err(_) => {
                    self.none_left = true;
                    return;
                }
            }
        }
    }
}

fn ended(status: WaitStatus) -> Option<Ended> {
    let code = status.exit_status().map(|code| Ended::Code(code as u8));
    code.or_else(|| status.terminating_signal().map(|signal| Ended::Signal(signal as u8)))
}
