//! The first process of the lab's Linux guests: says that it was reached, then does what `lab.then=` on the
//! kernel's command line asks: `poweroff` (default), `idle`, `echo` (answers console lines) or `shell`.

use std::ffi::CString;
use std::fs;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use smartvm_lab::kernel;

fn main() {
    if !rustix::process::getpid().is_init() {
        eprintln!("lab-init: this is the first process of a guest");
        std::process::exit(2);
    }
    if let Err(error) = run() {
        println!("smartvm-lab-init: failed: {error}");
    }
    let _ = io::stdout().flush();
    // With reboot=k on its command line, the kernel ends the VMM through the keyboard controller.
    if let Err(error) = reboot(RebootCommand::Restart) {
        println!("smartvm-lab-init: reboot: {error}");
    }
}

fn run() -> io::Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target)?;
        let none = CString::default();
        mount(kind, target, kind, MountFlags::empty(), none.as_c_str())
            .map_err(|error| io::Error::other(format!("mount {kind}: {error}")))?;
    }
    kernel::load_all(Path::new(smartvm_lab::guest::MODULES))?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime = uptime.split(' ').next().unwrap_or_default();
    println!("smartvm-lab-init: reached after {uptime} s");
    let line = fs::read_to_string("/proc/cmdline")?;
    match kernel::argument(&line, "lab.then").unwrap_or("poweroff") {
        "poweroff" => Ok(()),
        "idle" => loop {
            std::thread::park();
        },
        "echo" => echo(),
        "shell" => {
            let status = Command::new("/bin/busybox").args(["sh", "-l"]).env("PATH", "/bin").status()?;
            println!("smartvm-lab-init: shell ended: {status}");
            Ok(())
        }
        other => Err(io::Error::other(format!("lab.then={other} is not known"))),
    }
}

/// Answers each line of the console until one says `poweroff`.
fn echo() -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line.trim() == "poweroff" {
            break;
        }
        println!("smartvm-lab-init: echo {line}");
    }
    Ok(())
}
