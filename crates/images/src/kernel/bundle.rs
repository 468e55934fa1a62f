//! The two halves of a bundle as contents of the store: the kernel and the initramfs that fits it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};

use sha2::{Digest as _, Sha256};
use smartvm_core::kernel_image::{self, KernelImage};
use smartvm_core::target::Arch;
use smartvm_guest_api::boot::layout;

use super::bzimage::{self, MAX_KERNEL};
use super::compression::Compression;
use super::error::KernelError;
use super::facts;
use super::initramfs::Archive;
use super::order::Order;
use super::tree::Modules;
use crate::Digest;
use crate::blocking::Abandoned;
use crate::store::{BlobMode, Store, StoreError};

/// Where modules lie in the initramfs.
const MODULES_DIR: &str = "/lib/modules";

/// A kernel in the store, and what it says of itself.
#[derive(Debug)]
pub(super) struct StoredKernel {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Its greeting without "Linux version".
    pub(super) version: String,
    /// How it was compressed.
    pub(super) compressed_by: Option<&'static str>,
    /// The configuration within it.
    pub(super) config: Option<Vec<u8>>,
}

impl StoredKernel {
    /// As `uname -r` prints it.
    pub(super) fn release(&self) -> &str {
        self.version.split_whitespace().next().unwrap_or_default()
    }
}

/// Unpacks a kernel of any kind that is supported and puts the ELF file in the store.
pub(super) fn store_kernel(
    store: &Store,
    what: &str,
    image: Vec<u8>,
    stop: &Abandoned,
) -> Result<StoredKernel, KernelError> {
    let malformed = |problem: &dyn std::fmt::Display| KernelError::malformed(what, problem);
    let head = |image: &[u8]| kernel_image::identify(&image[..image.len().min(kernel_image::HEAD_LEN)]);
    let mut version = String::new();
    let mut compressed_by = None;
    let elf = match head(&image) {
        KernelImage::Elf64(Arch::X86_64) => image,
        KernelImage::BzImage(..) => {
            let parsed = bzimage::parse(&image).map_err(|error| malformed(&error))?;
            version = parsed.version.to_owned();
            compressed_by = parsed.compressed_by();
            parsed.unpack(stop).map_err(|error| malformed(&error))?
        }
        found => match Compression::of(&image) {
            Some(compression) => {
                compressed_by = Some(compression.name());
                compression.unpack(&image, MAX_KERNEL, stop).map_err(|damage| malformed(&damage))?
            }
            None => return Err(KernelError::NotAKernel { what: what.to_owned(), found: found.to_string() }),
        },
    };
    match head(&elf) {
        KernelImage::Elf64(Arch::X86_64) => {}
        found => return Err(KernelError::NotAKernel { what: what.to_owned(), found: found.to_string() }),
    }
    let length = elf.len() as u64;
    if let Some(needed) = kernel_image::cut_off(&elf, length) {
        return Err(malformed(&format!("the kernel is cut off: it has {length} of {needed} bytes")));
    }
    // The set-up header's text ends earlier, but it is there even when the kernel's own text is not.
    let version = facts::banner(&elf).unwrap_or(version);
    let config = facts::embedded_config(&elf);
    let mut blob = Blob::begin(store)?;
    for piece in elf.chunks(1 << 20) {
        if stop.is() {
            return Err(KernelError::Stopped);
        }
        blob.write_all(piece).map_err(|error| blob.failed(error))?;
    }
    let digest = blob.finish()?;
    Ok(StoredKernel { digest, size: length, version, compressed_by, config })
}

/// Writes the initramfs: guest init, the nodes it starts with, the modules and the lists of their order.
pub(super) fn store_initramfs(
    store: &Store,
    guest: &[u8],
    modules: &Modules,
    order: &Order,
) -> Result<(Digest, u64), KernelError> {
    let mut blob = Blob::begin(store)?;
    let size = match write_initramfs(BufWriter::with_capacity(1 << 20, &mut blob), guest, modules, order) {
        Ok(()) => blob.size,
        Err(error) => return Err(blob.failed(error)),
    };
    Ok((blob.finish()?, size))
}

fn write_initramfs(to: impl Write, guest: &[u8], modules: &Modules, order: &Order) -> io::Result<()> {
    let mut archive = Archive::new(to);
    let mut directories = BTreeSet::new();
    let lists = [(layout::MODULES, &order.for_root), (layout::LATER_MODULES, &order.later)];
    let files = lists.iter().map(|(path, _)| *path).chain([layout::INIT, "/dev/console"]);
    for path in files.chain([&*module_path("any")]) {
        let parents = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
        directories.extend(parents.filter(|parent| !parent.is_empty()));
    }
    // In the order of their names parents come before what is in them.
    for directory in &directories {
        archive.directory(directory)?;
    }
    archive.character_device("/dev/console", 5, 1)?;
    archive.character_device("/dev/null", 1, 3)?;
    archive.file(layout::INIT, 0o755, guest)?;
    for (path, names) in lists {
        let text: String = names.iter().map(|name| module_path(name) + "\n").collect();
        archive.file(path, 0o644, text.as_bytes())?;
    }
    for (name, module) in
        order.for_root.iter().chain(&order.later).filter_map(|name| modules.get_key_value(name))
    {
        archive.file(&module_path(name), 0o644, &module.content)?;
    }
    archive.finish()?.flush()
}

fn module_path(name: &str) -> String {
    format!("{MODULES_DIR}/{name}.ko")
}

/// A blob whose digest is made while it is written.
pub(super) struct Blob {
    staged: crate::store::Staged,
    hash: Sha256,
    size: u64,
}

impl Blob {
    pub(super) fn begin(store: &Store) -> Result<Self, KernelError> {
        Ok(Self { staged: store.stage().map_err(KernelError::Store)?, hash: Sha256::new(), size: 0 })
    }

    fn failed(&self, error: io::Error) -> KernelError {
        KernelError::Store(StoreError::io("write", self.staged.path(), error))
    }

    /// Bytes so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn finish(self) -> Result<Digest, KernelError> {
        let digest = Digest::from_bytes(self.hash.finalize().into());
        self.staged.commit(digest, BlobMode::Data).map_err(KernelError::Store)?;
        Ok(digest)
    }
}

impl Write for Blob {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file: &mut File = self.staged.file();
        let count = file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
