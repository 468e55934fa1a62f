//! Giving a kernel imported by another smartvm the guest init of this one.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use cpio::newc::{self, Builder, trailer};
use smartvm_guest_api::boot::layout;

use super::bundle::Blob;
use super::tree::MAX_MODULES;
use super::{Kernel, KernelError};
use crate::Digest;
use crate::blocking::Abandoned;
use crate::store::Store;

/// Longest file name in an initramfs of ours.
const MAX_NAME: usize = 4096;
/// Largest file in one: a module, or guest init.
const MAX_CONTENT: u64 = MAX_MODULES;

/// The same bundle with another first process: its initramfs is copied, all but this one file.
pub(super) fn with_guest(
    store: &Store,
    kernel: &Kernel,
    guest: &[u8],
    stop: &Abandoned,
) -> Result<Kernel, KernelError> {
    let wanted_by = format!("kernel `{}`", kernel.name);
    let path = store.require(&kernel.initramfs, &wanted_by)?;
    let file = File::open(&path).map_err(|error| KernelError::read(&path, error))?;
    let mut blob = Blob::begin(store)?;
    copy(BufReader::with_capacity(256 << 10, file), &mut blob, guest, stop)
        .map_err(|error| KernelError::malformed(format!("the initramfs of {wanted_by}"), error))?;
    let size = blob.size();
    let initramfs = blob.finish()?;
    Ok(Kernel { initramfs, initramfs_size: size, guest: Digest::of(guest), ..kernel.clone() })
}

fn copy(mut from: impl Read, mut to: impl Write, guest: &[u8], stop: &Abandoned) -> io::Result<()> {
    let init = layout::INIT.trim_start_matches('/');
    loop {
        if stop.is() {
            return Err(io::Error::other("it was given up"));
        }
        let mut reader = newc::Reader::new(from)?;
        let entry = reader.entry();
        if entry.is_trailer() {
            trailer(to)?;
            return Ok(());
        }
        if entry.name().len() > MAX_NAME || u64::from(entry.file_size()) > MAX_CONTENT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is none of ours"));
        }
        let copied = Builder::new(entry.name())
            .ino(entry.ino())
            .mode(entry.mode())
            .nlink(entry.nlink())
            .rdev_major(entry.rdev_major())
            .rdev_minor(entry.rdev_minor());
        let (is_init, size) = (entry.name() == init, entry.file_size());
        let mut content = Vec::new();
        io::copy(&mut reader, &mut content)?;
        if is_init {
            content = guest.to_vec();
        } else if content.len() as u64 != u64::from(size) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut off"));
        }
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other("a file is over 4 GiB"))?;
        let mut writer = copied.write(&mut to, size);
        writer.write_all(&content)?;
        writer.finish()?;
        from = reader.finish()?;
    }
}
