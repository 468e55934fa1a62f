//! The end of the guest.

use std::fs::File;
use std::io::Write;

use rustix::system::{RebootCommand, reboot};
use smartvm_guest_api::boot::Report;

use crate::root::Root;

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

/// One line on the console. It begins with an end of line when the process's own last line may have none.
fn say(line: &str) {
    let text = format!("{line}\n");
    // The process may have closed or changed its terminal; this is a fresh one.
    let mut console: Box<dyn Write> = match File::options().write(true).open("/dev/console") {
        Ok(console) => Box::new(console),
        Err(_) => Box::new(std::io::stdout()),
    };
    let _ = console.write_all(text.as_bytes());
    let _ = console.flush();
    let _ = rustix::termios::tcdrain(std::io::stdout());
}
