//! The program that is PID 1 in a guest: guest init.
//!
//! It starts from an initramfs, makes the image the root file system and runs the image's process on the console, as
//! the host ordered on the kernel command line ([`smartvm_guest_api::boot`]). When that process ends, so does the
//! guest. In the order of the steps:
//!
//! | module | what it does |
//! | --- | --- |
//! | `mounts` | `/proc`, `/sys`, `/dev` first; what a process expects beside them once the root is there |
//! | `modules` | kernel modules: those for the root at once, the others while the root is mounted |
//! | `disks` | finds a disk by the id in its superblock |
//! | `root` | image, overlay, switch of root |
//! | `network` | host name, loopback, `/etc/hosts` |
//! | `accounts` | users and groups of the image, by its files |
//! | `process` | the image's process: looked up, started in a session of its own on the console |
//! | `supervise` | reaps, hears Ctrl+Alt+Del, ends everything |
//! | `power` | writes everything to disk, says how it went, switches off |
//!
//! Whatever fails says its step in one line on the console and switches off ([`failure`]): a guest never hangs or
//! panics silently. There is no `unsafe` here, and nothing is trusted: neither orders nor image.

mod accounts;
mod disks;
mod failure;
mod init;
mod modules;
mod mounts;
mod network;
mod power;
mod process;
mod root;
mod supervise;

use std::process::ExitCode;

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        init::run();
    }
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == process::LAUNCHER) {
        process::launch(arguments);
        return ExitCode::FAILURE;
    }
    eprintln!("smartvm-guest is the first process of a smartvm guest and cannot run here");
    ExitCode::FAILURE
}
