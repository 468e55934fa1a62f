//! The image as the root file system.
//!
//! ```text
//! /image   the image's disk, read-only                 ─┐ overlay on /new, which then becomes /
//! /writes  the machine's disk or tmpfs: upper, work    ─┘
//! ```

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};
use smartvm_guest_api::boot::{Disk, FileSystem, Orders, Overlay, Step};

use crate::disks;
use crate::failure::{Failure, Result, While};
use crate::mounts::{FIRST, make_directory};

const IMAGE: &str = "/image";
const WRITES: &str = "/writes";
const NEW: &str = "/new";

/// A root file system that is mounted, but not the root yet.
pub(crate) struct Image {
    /// Where it is mounted.
    at: &'static str,
    writes: Writes,
}

/// The root file system.
pub(crate) struct Root {
    pub(crate) writes: Writes,
}

/// Where what is written to the root goes.
#[derive(Debug)]
pub(crate) enum Writes {
    Nowhere,
    Memory,
    /// A disk under an overlay; its root directory, which has no path any more.
    Disk(OwnedFd),
    /// The root's own disk.
    Itself,
}

impl PartialEq for Writes {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// Mounts the image and what is laid over it.
pub(crate) fn mount_root(orders: &Orders) -> Result<Image> {
    let disk = disks::find(&orders.root.disk, Step::FindRoot)?;
    let flags = match orders.overlay {
        Overlay::Private => MountFlags::empty(),
        _ => MountFlags::RDONLY,
    };
    mount_disk(&disk, IMAGE, orders.root.file_system, flags, Step::MountRoot)?;
    let writes = match orders.overlay {
        Overlay::None => return Ok(Image { at: IMAGE, writes: Writes::Nowhere }),
        Overlay::Private => return Ok(Image { at: IMAGE, writes: Writes::Itself }),
        Overlay::Tmpfs { size } => {
            mount_memory(size)?;
            Writes::Memory
        }
        Overlay::Disk(uuid) => {
            let disk = disks::find(&Disk::Uuid(uuid), Step::FindOverlay)?;
            mount_disk(&disk, WRITES, FileSystem::Ext4, MountFlags::empty(), Step::MountOverlay)?;
            let root = open(WRITES, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .during(Step::MountOverlay, format_args!("cannot open {WRITES}"))?;
            Writes::Disk(root)
        }
    };
    lay_overlay()?;
    Ok(Image { at: NEW, writes })
}

fn mount_disk(disk: &Path, at: &str, kind: FileSystem, flags: MountFlags, step: Step) -> Result<()> {
    make_directory(at).during(step, format_args!("cannot make {at}"))?;
    mount(disk, at, kind.name(), flags, None::<&CStr>).map_err(|error| {
        let (disk, kind) = (disk.display(), kind.name());
        let failure = Failure::because(step, format_args!("cannot mount {disk} as {kind}"), error);
        match error {
            Errno::NODEV => {
                failure.hint(format!("the kernel bundle has no {kind}: import a kernel that has it"))
            }
            Errno::INVAL | Errno::BADMSG | Errno::UCLEAN => {
                failure.hint(format!("{disk} holds no sound {kind} that this kernel can read"))
            }
            Errno::ROFS | Errno::ACCESS => failure.hint(format!(
                "{disk} is attached read-only and was not unmounted in order, or must be written"
            )),
            _ => failure,
        }
    })
}

fn mount_memory(size: Option<u64>) -> Result<()> {
    make_directory(WRITES).during(Step::MountOverlay, format_args!("cannot make {WRITES}"))?;
    let data = match size {
        Some(size) => format!("mode=0755,size={size}"),
        None => "mode=0755".to_owned(),
    };
    let data = CString::new(data).during(Step::MountOverlay, "cannot mount tmpfs")?;
    mount("tmpfs", WRITES, "tmpfs", MountFlags::empty(), data.as_c_str())
        .during(Step::MountOverlay, "cannot mount tmpfs")
}

/// Lays an overlay over the image, at [`NEW`].
fn lay_overlay() -> Result<()> {
    let (upper, work) = (format!("{WRITES}/upper"), format!("{WRITES}/work"));
    let prepare = || -> io::Result<()> {
        make_directory(NEW)?;
        make_directory(&work)?;
        if !fs::exists(&upper)? {
            // The upper directory is the root's: it gets the owner and the mode of the image's, and its name last,
            // so that a guest that dies here makes it again.
            let (unready, image) = (format!("{WRITES}/upper.new"), fs::metadata(IMAGE)?);
            make_directory(&unready)?;
            chown(&unready, Some(image.uid()), Some(image.gid()))?;
            fs::set_permissions(&unready, fs::Permissions::from_mode(image.mode() & 0o7777))?;
            fs::rename(&unready, &upper)?;
        }
        Ok(())
    };
    prepare().map_err(|error| {
        let failure = Failure::because(Step::LayOverlay, "cannot prepare the machine's own layer", error);
        failure.hint("the machine's own disk must be an ext4 that can be written")
    })?;
    let data = CString::new(format!("lowerdir={IMAGE},upperdir={upper},workdir={work}"))
        .during(Step::LayOverlay, "cannot mount overlay")?;
    mount("overlay", NEW, "overlay", MountFlags::empty(), data.as_c_str()).map_err(|error| {
        let failure = Failure::because(Step::LayOverlay, "cannot mount overlay", error);
        if error == Errno::NODEV {
            failure.hint("this kernel has no overlayfs: import one that has, or give the machine a private copy of its image")
        } else {
            failure
        }
    })
}

impl Image {
    /// Makes it the root, and empties the initramfs, whose memory the guest gets back.
    pub(crate) fn switch(self) -> Result<Root> {
        let during = |what: String| move |error: Errno| Failure::because(Step::SwitchRoot, what, error);
        for from in FIRST {
            let to = format!("{}{from}", self.at);
            // An image that can be written may lack them; whether one that cannot has them, the move will tell.
            let _ = make_directory(&to);
            is_no_link(&to).map_err(|failure| failure.hint(LINKED))?;
            mount_move(from, to.as_str()).map_err(during(format!("cannot move {from} into the image")))?;
        }
        chdir(self.at).map_err(during(format!("cannot enter {}", self.at)))?;
        let emptied = empty_initramfs();
        mount_move(".", "/").map_err(during("cannot move the image to /".into()))?;
        chroot(".").map_err(during("cannot make the image the root".into()))?;
        chdir("/").map_err(during("cannot enter the image".into()))?;
        emptied.during(Step::SwitchRoot, "cannot empty the initramfs")?;
        Ok(Root { writes: self.writes })
    }
}

const LINKED: &str = "build the image with plain directories /proc, /sys and /dev, or without them";

/// A link would lead what is mounted on it out of the image, where its process never sees it.
fn is_no_link(path: &str) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => {
            let inside = path.trim_start_matches(NEW).trim_start_matches(IMAGE);
            Err(Failure::new(Step::SwitchRoot, format!("{inside} of the image is a link, and no directory")))
        }
        // What else may be wrong with it, the move will tell.
        _ => Ok(()),
    }
}

/// Removes everything of the initramfs but what is mounted in it.
fn empty_initramfs() -> io::Result<()> {
    empty(Path::new("/"), fs::metadata("/")?.dev())
}

/// Initramfs are made by smartvm and shallow, so that recursion is no danger.
fn empty(dir: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            empty(&path, device)?;
            // Those that something is mounted in stay.
            let _ = fs::remove_dir(&path);
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

impl Root {
    /// Makes everything that can be read-only so, which leaves the disks clean. What cannot has been written by
    /// `sync`, at least.
    pub(crate) fn seal(&self) {
        match &self.writes {
            Writes::Nowhere | Writes::Memory => {}
            Writes::Itself => drop(read_only("/")),
            Writes::Disk(dir) => {
                let _ = read_only("/");
                let _ = read_only(&format!("/proc/self/fd/{}", dir.as_raw_fd()));
            }
        }
    }
}

fn read_only(path: &str) -> rustix::io::Result<()> {
    rustix::mount::mount_remount(path, MountFlags::RDONLY, c"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_mounted_on_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proc").display().to_string();
        assert_eq!(is_no_link(&path), Ok(()), "a missing one is the move's to tell");
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(
            is_no_link(&path).unwrap_err().what.ends_with("proc of the image is a link, and no directory")
        );
    }
}
