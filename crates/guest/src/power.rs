//! The end of the guest.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{
    Action, InputModes, OptionalActions, OutputModes, tcdrain, tcflow, tcgetattr, tcsetattr,
};
use smartvm_guest_api::boot::Report;

use crate::root::Root;

/// How long the console may take no more output.
const PATIENCE: Duration = Duration::from_secs(2);

/// Brings everything to the disks and leaves them clean. No process may be left.
pub(crate) fn settle(root: &Root) {
    rustix::fs::sync();
    root.seal();
}

/// Says how it went and switches off. Firecracker knows no power-off of x86 machines but a restart, which ends it
/// (`reboot=k` on the command line makes that work at once); on aarch64 both end it.
pub(crate) fn off(report: &Report) -> ! {
    say(&report.encode());
    rustix::fs::sync();
    let _ = reboot(RebootCommand::Restart);
    // Only without the right to: then the end of the first process is the end of the guest (`panic=1`).
    std::process::abort();
}

/// One line on the console. Bounded in time, whatever the process did to its terminal.
fn say(line: &str) {
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
    let Ok(console) = open("/dev/console", flags, Mode::empty()) else {
        println!("{line}");
        return;
    };
    // Taking the right to halt the output by Ctrl+S makes halted output go on; what `tcflow` halted needs this, too.
    if let Ok(mut modes) = tcgetattr(&console) {
        modes.input_modes.remove(InputModes::IXON);
        modes.output_modes.insert(OutputModes::OPOST | OutputModes::ONLCR);
        let _ = tcsetattr(&console, OptionalActions::Now, &modes);
    }
    let _ = tcflow(&console, Action::OOn);
    let text = format!("{line}\n");
    let mut rest = text.as_bytes();
    let deadline = Instant::now() + PATIENCE;
    while !rest.is_empty() {
        match rustix::io::write(&console, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let time = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
                let room = poll(&mut [PollFd::new(&console, PollFlags::OUT)], Some(&time));
                if left.is_zero() || matches!(room, Ok(0)) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    // The serial port has buffers; the kernel bounds this wait.
    let _ = tcdrain(&console);
}
