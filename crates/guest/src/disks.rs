//! Finding a disk by the id of the file system on it.
//!
//! No udev here: the kernel makes a node in `/dev` for each disk before it tells of it, and the id is read from the
//! superblock. Drivers find their disks when they are loaded, so the first look nearly always succeeds.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use smartvm_guest_api::boot::{Disk, Step, Uuid};

use crate::failure::{Failure, Result, While};

/// How long a disk may take to appear.
const PATIENCE: Duration = Duration::from_secs(3);

/// So much of an ext4 superblock is read, and where it is.
const SUPERBLOCK: usize = 256;
const SUPERBLOCK_AT: u64 = 1024;

/// The node in `/dev` of a disk, waiting for it if need be.
pub(crate) fn find(disk: &Disk, step: Step) -> Result<PathBuf> {
    if let Some(node) = look(disk, step)? {
        return Ok(node);
    }
    let news = hear_of_devices().during(step, "cannot hear of new disks")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // It may have come before we listened.
        if let Some(node) = look(disk, step)? {
            return Ok(node);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(missing(disk, step));
        }
        await_news(&news, left).during(step, "cannot hear of new disks")?;
    }
}

fn look(disk: &Disk, step: Step) -> Result<Option<PathBuf>> {
    match disk {
        Disk::Device(name) => {
            let node = Path::new("/dev").join(name);
            Ok(node.exists().then_some(node))
        }
        Disk::Uuid(uuid) => {
            let mut found =
                disks().into_iter().filter(|(_, content)| content.as_ref().ok() == Some(&Some(*uuid)));
            let Some((name, _)) = found.next() else { return Ok(None) };
            match found.next() {
                None => Ok(Some(Path::new("/dev").join(name))),
                Some((other, _)) => {
                    Err(Failure::new(step, format!("{name} and {other} have the same id {uuid}"))
                        .hint("give the machine each disk once, and every disk an id of its own"))
                }
            }
        }
    }
}

/// All virtio disks by name, and the id on each if there is an ext4.
fn disks() -> Vec<(String, io::Result<Option<Uuid>>)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut disks: Vec<_> = names
        .filter(|name| name.starts_with("vd"))
        .map(|name| {
            let id = read_id(&Path::new("/dev").join(&name));
            (name, id)
        })
        .collect();
    disks.sort_by(|a, b| a.0.cmp(&b.0));
    disks
}

fn read_id(node: &Path) -> io::Result<Option<Uuid>> {
    let mut block = [0; SUPERBLOCK];
    match File::open(node)?.read_exact_at(&mut block, SUPERBLOCK_AT) {
        Ok(()) => Ok(ext4_id(&block)),
        // A disk too small for a file system.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id in an ext4 superblock, if it is one.
fn ext4_id(superblock: &[u8; SUPERBLOCK]) -> Option<Uuid> {
    let magic = superblock.get(0x38..0x3a)?;
    let id = superblock.get(0x68..0x78)?;
    if magic == [0x53, 0xef] { id.try_into().ok().map(Uuid) } else { None }
}

fn missing(disk: &Disk, step: Step) -> Failure {
    let what = match disk {
        Disk::Uuid(uuid) => format!("no disk has a file system with the id {uuid}"),
        Disk::Device(name) => format!("there is no disk {name}"),
    };
    let there: Vec<String> = disks()
        .into_iter()
        .take(8)
        .map(|(name, content)| match content {
            Ok(Some(uuid)) => format!("{name} ({uuid})"),
            Ok(None) => format!("{name} (no ext4)"),
            Err(error) => format!("{name} ({error})"),
        })
        .collect();
    if there.is_empty() {
        Failure::new(step, format!("{what}; this machine shows no disk at all"))
            .hint("give the machine the disk; if it has it, the kernel bundle lacks a driver (virtio_mmio, virtio_pci, virtio_blk)")
    } else {
        Failure::new(step, format!("{what}; there are: {}", there.join(", ")))
    }
}

/// A socket on which the kernel tells of new devices.
fn hear_of_devices() -> rustix::io::Result<OwnedFd> {
    const FROM_THE_KERNEL: u32 = 1;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = Some(netlink::KOBJECT_UEVENT);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, kind)?;
    bind(&socket, &SocketAddrNetlink::new(0, FROM_THE_KERNEL))?;
    Ok(socket)
}

/// Waits for any news, and forgets what they were.
fn await_news(news: &OwnedFd, time: Duration) -> rustix::io::Result<()> {
    let time = Timespec::try_from(time).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    match poll(&mut [PollFd::new(news, PollFlags::IN)], Some(&time)) {
        // Ctrl+Alt+Del, which is heeded once there is something to end.
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    let mut message = [0; 4096];
    // It ends with "would block", or with "no buffer space" when there were too many: both mean to look again.
    while recv(news, &mut message[..], RecvFlags::empty()).is_ok() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(magic: [u8; 2]) -> Vec<u8> {
        let mut disk = vec![0; 2048];
        disk[1024 + 0x38..][..2].copy_from_slice(&magic);
        disk[1024 + 0x68..][..16].copy_from_slice(&[0xab; 16]);
        disk
    }

    fn id_of(content: &[u8]) -> Option<Uuid> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        read_id(file.path()).unwrap()
    }

    #[test]
    fn the_id_is_read_from_an_ext4_superblock() {
        assert_eq!(id_of(&superblock([0x53, 0xef])), Some(Uuid([0xab; 16])));
    }

    #[test]
    fn other_and_short_disks_have_none() {
        assert_eq!(id_of(&superblock([0, 0])), None);
        assert_eq!(id_of(&superblock([0x53, 0xef])[..1200]), None);
        assert_eq!(id_of(b""), None);
    }

    #[test]
    fn a_disk_that_mke2fs_made_is_known_by_its_id() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let id = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        let made = std::process::Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-U", id])
            .arg(file.path())
            .arg("4M")
            .status()
            .expect("mke2fs is installed by `cargo xtask test`");
        assert!(made.success());
        assert_eq!(read_id(file.path()).unwrap(), Some(id.parse().unwrap()));
    }
}
