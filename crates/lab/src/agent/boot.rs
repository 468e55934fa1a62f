//! The lab's first process: from the initramfs to a root of its own, then the server.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{WaitOptions, chdir, chroot, wait};
use rustix::system::{RebootCommand, reboot};

use super::DEFAULT_IDLE;
use crate::guest::MODULES;
use crate::kernel;

/// Where the agent itself lives behind the switch of the root.
const AGENT: &str = "/run/lab-agent";

/// In the initramfs: loads modules, puts a writable layer on the read-only root, goes there.
pub(super) fn first_stage() -> io::Result<()> {
    mount_all(&[
        ("proc", "/proc", "proc", ""),
        ("sysfs", "/sys", "sysfs", ""),
        ("dev", "/dev", "devtmpfs", ""),
    ])?;
    kernel::load_all(Path::new(MODULES))?;
    wait_for(Path::new("/dev/vda"), Duration::from_secs(20))?;
    for dir in ["/lower", "/rw", "/root"] {
        fs::create_dir_all(dir)?;
    }
    mount("/dev/vda", "/lower", "ext4", MountFlags::RDONLY, c"")?;
    mount("tmpfs", "/rw", "tmpfs", MountFlags::empty(), c"size=90%")?;
    fs::create_dir_all("/rw/upper")?;
    fs::create_dir_all("/rw/work")?;
    mount(
        "overlay",
        "/root",
        "overlay",
        MountFlags::empty(),
        c"lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work",
    )?;
    fs::create_dir_all("/root/run")?;
    mount("tmpfs", "/root/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755")?;
    fs::copy("/init", format!("/root{AGENT}"))?;
    chdir("/root")?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    Err(Command::new(AGENT).arg("root").exec())
}

/// In the root: the rest of a host's set-up, then the server; powers off when that ends.
pub(super) fn second_stage() -> io::Result<()> {
    let result = set_up().and_then(|()| supervise());
    if let Err(error) = &result {
        println!("lab-agent: {error}");
    }
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff)?;
    result
}

fn set_up() -> io::Result<()> {
    mount_all(&[
        ("proc", "/proc", "proc", ""),
        ("sysfs", "/sys", "sysfs", ""),
        ("dev", "/dev", "devtmpfs", ""),
        ("devpts", "/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666"),
        ("shm", "/dev/shm", "tmpfs", ""),
        ("tmpfs", "/tmp", "tmpfs", "mode=1777,size=90%"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2", ""),
    ])?;
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        let _ = std::os::unix::fs::symlink(target, Path::new("/dev").join(link));
    }
    fs::write("/proc/sys/kernel/hostname", "smartvm-lab")?;
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids +io")?;
    // Server tools of the image; each must work, or the lab is of no use.
    for command in [
        "modprobe -a kvm_amd tun loop",
        "ip link set lo up",
        "ip link set eth0 up",
        "ip addr add 10.0.2.15/24 dev eth0",
    ] {
        let mut words = command.split(' ');
        let status = Command::new(words.next().unwrap_or_default())
            .args(words)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("`{command}` failed: {status}")));
        }
    }
    Ok(())
}

/// Keeps the server, reaps orphans.
fn supervise() -> io::Result<()> {
    let server = Command::new(AGENT).arg("serve").spawn()?;
    let server = rustix::process::Pid::from_child(&server);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid == server => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The token and the idle limit on the kernel's command line: `lab.token=` and `lab.idle=` (seconds).
pub(super) fn told_by_kernel() -> io::Result<(String, Duration)> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let token = kernel::argument(&line, "lab.token").ok_or_else(|| io::Error::other("no lab.token="))?;
    let idle = kernel::argument(&line, "lab.idle").and_then(|seconds| seconds.parse().ok());
    Ok((token.to_owned(), idle.map_or(DEFAULT_IDLE, Duration::from_secs)))
}

fn mount_all(list: &[(&str, &str, &str, &str)]) -> io::Result<()> {
    for (source, target, kind, data) in list {
        fs::create_dir_all(target)?;
        let data = std::ffi::CString::new(*data)?;
        mount(*source, *target, *kind, MountFlags::empty(), data.as_c_str())
            .map_err(|error| io::Error::other(format!("mount {kind} on {target}: {error}")))?;
    }
    Ok(())
}

/// A device appears a moment after its driver was loaded.
fn wait_for(path: &Path, time: Duration) -> io::Result<()> {
    let deadline = Instant::now() + time;
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("{} did not appear", path.display())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
