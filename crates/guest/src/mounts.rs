//! File systems of the kernel, where a process expects them.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use smartvm_guest_api::boot::Step;

use crate::failure::{Failure, Result, While};

/// Mounted in the initramfs and moved to the root afterwards.
pub(crate) const FIRST: [&str; 3] = ["/proc", "/sys", "/dev"];

struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    data: &'static CStr,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const SHARED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

const PROC: Mount = Mount { kind: "proc", at: "/proc", flags: SAFE, data: c"" };
const SYS: Mount = Mount { kind: "sysfs", at: "/sys", flags: SAFE, data: c"" };
const DEV: Mount = Mount { kind: "devtmpfs", at: "/dev", flags: MountFlags::NOSUID, data: c"mode=0755" };

const PTS: Mount = Mount {
    kind: "devpts",
    at: "/dev/pts",
    flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
    data: c"gid=5,mode=620,ptmxmode=666",
};
const SHM: Mount = Mount { kind: "tmpfs", at: "/dev/shm", flags: SHARED, data: c"mode=1777" };
const MQUEUE: Mount = Mount { kind: "mqueue", at: "/dev/mqueue", flags: SAFE, data: c"" };
const CGROUP: Mount =
    Mount { kind: "cgroup2", at: "/sys/fs/cgroup", flags: SAFE, data: c"nsdelegate,memory_recursiveprot" };
const RUN: Mount = Mount { kind: "tmpfs", at: "/run", flags: SHARED, data: c"mode=0755" };
const TMP: Mount = Mount { kind: "tmpfs", at: "/tmp", flags: SHARED, data: c"mode=1777" };

/// Mounts what init itself works with, and sees to it that there is a console.
pub(crate) fn first() -> Result<()> {
    for of_kernel in [PROC, SYS, DEV] {
        make_directory(of_kernel.at).during(Step::Prepare, format_args!("cannot make {}", of_kernel.at))?;
        match of_kernel.mount() {
            // Kernels may mount devtmpfs themselves.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(of_kernel.failed(Step::Prepare, error)),
        }
    }
    if !rustix::termios::isatty(std::io::stdout()) {
        // The initramfs had no console for the kernel to give us, or the kernel has none.
        if let Ok(console) = open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()) {
            let console = console.as_fd();
            dup2_stdin(console)
                .and_then(|()| dup2_stdout(console))
                .and_then(|()| dup2_stderr(console))
                .during(Step::Prepare, "cannot use the console")?;
        }
    }
    Ok(())
}

/// Mounts what the image's process expects. `/run` and `/tmp` are the image's own where they can be written, as in
/// a container: images put directories there that their programs need.
pub(crate) fn second(writable: bool) -> Result<()> {
    for within_dev in [PTS, SHM] {
        make_directory(within_dev.at).during(Step::Mounts, format_args!("cannot make {}", within_dev.at))?;
        within_dev.mount().map_err(|error| within_dev.failed(Step::Mounts, error))?;
    }
    // Kernels may be built without these; a process that needs them will say so.
    let _ = make_directory(MQUEUE.at).map(|()| MQUEUE.mount());
    if CGROUP.mount() == Err(Errno::INVAL) {
        // Before Linux 5.7 there was no memory_recursiveprot.
        let _ = Mount { data: c"nsdelegate", ..CGROUP }.mount();
    }
    if !writable {
        for over in [RUN, TMP] {
            match over.mount() {
                // An image without the directory has no use for it.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(over.failed(Step::Mounts, error)),
            }
        }
    }
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, name) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Failure::because(Step::Mounts, format_args!("cannot make {name}"), error));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Mount {
    fn mount(&self) -> rustix::io::Result<()> {
        mount(self.kind, self.at, self.kind, self.flags, self.data)
    }

    fn failed(&self, step: Step, error: Errno) -> Failure {
        let failure =
            Failure::because(step, format_args!("cannot mount {} on {}", self.kind, self.at), error);
        if error == Errno::NODEV {
            failure.hint(format!("this kernel is built without {}", self.kind))
        } else {
            failure
        }
    }
}

/// Makes a directory, which may be there.
pub(crate) fn make_directory(path: &str) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}
