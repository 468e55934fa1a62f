//! Taking the two programs out of a release archive.
//!
//! The archive is somebody else's: nothing of it is unpacked under a name of its own, entries that are not wanted are read
//! over, and all of it is bounded.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use flate2::read::MultiGzDecoder;
use sha2::Digest as _;
use smartvm_core::target::Arch;
use tar::{Archive, Entry, EntryType};

use super::{ReleaseError, Version};
use crate::blocking::Abandoned;
use crate::digest::Digest;
use crate::store::{BlobMode, Store};

/// The most bytes of the unpacked archive. Those of 1.7 to 1.15 have up to 400 MB, most of it debug symbols.
const LARGEST_WHOLE: u64 = 2 << 30;

/// The most bytes of one program.
const LARGEST_PROGRAM: u64 = 256 << 20;

/// The most entries. Real ones have some twenty.
const MOST_ENTRIES: usize = 1000;

/// The programs of a release, in the store.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) firecracker: Digest,
    pub(super) jailer: Digest,
}

/// Reads the archive and puts both programs into the store. Blocks.
pub(super) fn unpack(
    archive: File,
    store: &Store,
    version: Version,
    arch: Arch,
    abandoned: &Abandoned,
) -> Result<Unpacked, ReleaseError> {
    let bad = |why: String| ReleaseError::BadArchive { version, why };
    let unreadable = |error: io::Error| bad(format!("it cannot be read: {error}"));
    let inner = MultiGzDecoder::new(io::BufReader::new(archive));
    let bounded = Bounded { inner, left: LARGEST_WHOLE, abandoned };
    let mut archive = Archive::new(bounded);
    let (mut firecracker, mut jailer) = (None, None);
    for (index, entry) in archive.entries().map_err(unreadable)?.raw(true).enumerate() {
        let mut entry = entry.map_err(unreadable)?;
        if index >= MOST_ENTRIES {
            return Err(bad(format!("it has more than {MOST_ENTRIES} entries")));
        }
        // Read over, since the crate would take all of it into memory. What we want has a short name.
        if matches!(
            entry.header().entry_type(),
            EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink
        ) {
            continue;
        }
        let path = entry.path().map_err(unreadable)?.into_owned();
        if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(bad(format!("the entry `{}` leads out of it", path.display())));
        }
        let Some((slot, program)) = wanted(&path, version, arch, &mut firecracker, &mut jailer) else {
            continue;
        };
        if entry.header().entry_type() != EntryType::Regular {
            return Err(bad(format!("`{}` is not a regular file", path.display())));
        }
        if slot.is_some() {
            return Err(bad(format!("it has two files `{program}`")));
        }
        *slot = Some(take(&mut entry, store, &path, version, arch)?);
    }
    match (firecracker, jailer) {
        (Some(firecracker), Some(jailer)) => Ok(Unpacked { firecracker, jailer }),
        (None, _) => Err(bad(format!("it has no file `firecracker-{version}-{arch}`"))),
        (_, None) => Err(bad(format!("it has no file `jailer-{version}-{arch}`"))),
    }
}

/// Where an entry belongs, if it is a wanted one. All releases have them in one folder, whose name is not looked at.
fn wanted<'a>(
    path: &Path,
    version: Version,
    arch: Arch,
    firecracker: &'a mut Option<Digest>,
    jailer: &'a mut Option<Digest>,
) -> Option<(&'a mut Option<Digest>, &'static str)> {
    let name = path.file_name()?.to_str()?;
    let program = name.strip_suffix(&format!("-{version}-{arch}"))?;
    match program {
        "firecracker" => Some((firecracker, "firecracker")),
        "jailer" => Some((jailer, "jailer")),
        _ => None,
    }
}

fn take<R: Read>(
    entry: &mut Entry<'_, R>,
    store: &Store,
    path: &Path,
    version: Version,
    arch: Arch,
) -> Result<Digest, ReleaseError> {
    let bad = |why: String| ReleaseError::BadArchive { version, why };
    let shown = path.display();
    if entry.size() > LARGEST_PROGRAM {
        return Err(bad(format!("`{shown}` has {} bytes", entry.size())));
    }
    let mut staged = store.stage()?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let (mut head, mut size) = (Vec::new(), 0);
    loop {
        let read = match entry.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(bad(format!("`{shown}` cannot be read: {error}"))),
        };
        let piece = &buffer[..read];
        if head.len() < ELF_HEAD {
            head.extend_from_slice(&piece[..read.min(ELF_HEAD)]);
        }
        hasher.update(piece);
        size += read as u64;
        staged.write_all(piece).map_err(|error| staged.failed("write", error))?;
    }
    if size != entry.size() {
        return Err(bad(format!("`{shown}` ends early: {size} of {} bytes", entry.size())));
    }
    if !is_program(&head, arch) {
        return Err(bad(format!("`{shown}` is not a program for {arch}")));
    }
    let digest = Digest::from_bytes(hasher.finalize().into());
    staged.commit(digest, BlobMode::Executable)?;
    Ok(digest)
}

/// How much of an ELF file says what it is for.
const ELF_HEAD: usize = 20;

/// Whether this is the beginning of a 64-bit little-endian ELF file for `arch`.
///
/// Source: elf(5): `EI_CLASS`, `EI_DATA`, `e_machine`.
fn is_program(head: &[u8], arch: Arch) -> bool {
    let machine: u16 = match arch {
        Arch::X86_64 => 62,
        Arch::Aarch64 => 183,
    };
    head.starts_with(b"\x7fELF\x02\x01") && head.get(18..20) == Some(&machine.to_le_bytes())
}

/// Ends in an error after so many bytes, and when nobody waits any more.
struct Bounded<'a, R> {
    inner: R,
    left: u64,
    abandoned: &'a Abandoned,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.abandoned.is() {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other(format!("it unpacks to more than {LARGEST_WHOLE} bytes")))?;
        Ok(read)
    }
}
