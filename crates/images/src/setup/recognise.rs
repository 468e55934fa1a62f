//! What the files of a folder are, by name where the name is what says it, else by their first bytes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use smartvm_core::target::Arch;

use super::SetupError;
use crate::base;
use crate::release;

/// The most entries of a folder that are looked at.
const MOST_ENTRIES: usize = 10_000;

/// Something that can be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognised {
    /// The file or folder.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
}

/// What a file is. In the order in which they are imported.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An archive of a Firecracker release for this host.
    Release {
        /// The file with its published digest, if it is there.
        checksum: Option<PathBuf>,
    },
    /// The manifest of a base image.
    Manifest,
    /// A kernel: a package, a bzImage, a vmlinux.
    Kernel,
    /// An ext4 or squashfs file.
    Rootfs,
    /// An OCI layout, or a tar of an image or a root.
    Image,
}

/// What a folder holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// What can be imported, in the order in which it is.
    pub found: Vec<Recognised>,
    /// What cannot, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// What can be imported of a folder, and what cannot and why. Folders in it are not entered, except to see whether they are
/// OCI layouts.
///
/// # Errors
/// The folder cannot be read.
pub fn recognise(dir: &Path) -> Result<Contents, SetupError> {
    let failed = |source| SetupError::Read { path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        if paths.len() == MOST_ENTRIES {
            return Err(failed(io::Error::other(format!("it has more than {MOST_ENTRIES} entries"))));
        }
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    for path in paths {
        match kind(&path) {
            Ok(Ok(Some(kind))) => found.push(Recognised { path, kind }),
            Ok(Ok(None)) => {}
            Ok(Err(why)) => skipped.push((path, why.to_owned())),
            Err(error) => skipped.push((path, format!("cannot be read: {error}"))),
        }
    }
    found.sort_by(|one, other| one.kind.cmp(&other.kind).then_with(|| one.path.cmp(&other.path)));
    Ok(Contents { found, skipped })
}

/// None for what belongs to another file. The inner error says why it is nothing for us.
fn kind(path: &Path) -> io::Result<Result<Option<Kind>, &'static str>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        let layout = path.join("oci-layout").is_file();
        return Ok(if layout { Ok(Some(Kind::Image)) } else { Err("it is a folder, and no OCI layout") });
    }
    if !metadata.is_file() {
        return Ok(Err("it is no file"));
    }
    if name.ends_with(".sha256.txt") {
        return Ok(Ok(None));
    }
    if name.starts_with("firecracker-") && name.ends_with(".tgz") {
        if release::version_in(&name, Arch::HOST).is_none() {
            return Ok(Err("it is not a release for this architecture"));
        }
        let checksum = path.with_file_name(format!("{name}.sha256.txt"));
        return Ok(Ok(Some(Kind::Release { checksum: checksum.is_file().then_some(checksum) })));
    }
    let mut file = File::open(path)?;
    if name.ends_with(".json") {
        let mut text = Vec::new();
        file.take(base::LARGEST_MANIFEST as u64 + 1).read_to_end(&mut text)?;
        let manifest = String::from_utf8_lossy(&text).contains("\"schemaVersion\"")
            && String::from_utf8_lossy(&text).contains("\"bundleId\"");
        return Ok(if manifest {
            Ok(Some(Kind::Manifest))
        } else {
            Err("it is not the manifest of a base image")
        });
    }
    if base::file_system(&mut file)?.is_some() {
        return Ok(Ok(Some(Kind::Rootfs)));
    }
    let head = head(path)?;
    if head.starts_with(b"!<arch>\n") {
        let kernel = name.starts_with("linux-image") || name.starts_with("linux-modules");
        return Ok(if kernel { Ok(Some(Kind::Kernel)) } else { Err("it is not a kernel's package") });
    }
    // Source: the kernel's x86 boot protocol: `header` at 0x202 is "HdrS".
    if head.get(0x202..0x206) == Some(b"HdrS") || head.starts_with(b"\x7fELF") && name.contains("vmlinux") {
        return Ok(Ok(Some(Kind::Kernel)));
    }
    // Source: POSIX ustar: `magic` at 257.
    let compressed = [&[0x1f, 0x8b][..], &[0x28, 0xb5, 0x2f, 0xfd], b"\xfd7zXZ\0", b"BZh"];
    let tar = head.get(257..262) == Some(b"ustar")
        || (name.contains(".tar") || name.ends_with(".tgz"))
            && compressed.iter().any(|magic| head.starts_with(magic));
    Ok(if tar { Ok(Some(Kind::Image)) } else { Err("it is nothing that smartvm knows") })
}

fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(1024).read_to_end(&mut head)?;
    Ok(head)
}
