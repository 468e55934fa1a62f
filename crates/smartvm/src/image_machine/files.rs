//! Carries the plan's file work out: the machine's own disk and initramfs, and the mark that blobs are in use.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use smartvm_core::id::MachineId;
use smartvm_core::image_machine::{OverlayDisk, OwnInitramfs};
use smartvm_firecracker::Version;
use smartvm_images::kernel::initramfs::with_orders;
use smartvm_images::rootfs::blank;

use super::{ImageMachineError, Planned};
use crate::check::{Checked, check_config};
use crate::config::Config;
use crate::machine::{Belongings, StartError};
use crate::machine_data::MachineData;

/// Makes everything, and checks the config that names it. Blocks. What was made goes again with an error.
pub(super) fn make(
    planned: &Planned,
    data_dir: &Path,
    version: &Version,
    pci: bool,
) -> Result<(Checked, Belongings), ImageMachineError> {
    let id = &planned.id;
    let own_dir = MachineData::path_of(data_dir, id);
    let data = MachineData::claim(data_dir, id).map_err(failed(id, "make the directory", &own_dir))?;
    let data = data.ok_or_else(|| StartError::Busy { id: id.clone(), owner: None })?;
    let uses = planned.store.use_blobs(id.as_str(), &planned.blobs)?;
    let belongings = Belongings::new(data, uses);
    if let Some(disk) = &planned.plan.overlay {
        make_disk(disk).map_err(failed(id, "make the disk", &disk.path))?;
    }
    if let Some(own) = &planned.plan.initramfs {
        make_initramfs(own).map_err(failed(id, "make the initramfs", &own.path))?;
    }
    let text = serde_json::to_string_pretty(&planned.plan.config)
        .map_err(|error| failed(id, "write the config in", &own_dir)(error.into()))?;
    let checked = check_config(&Config::from_json(text, own_dir), version, pci)?;
    Ok((checked, belongings))
}

pub(super) fn failed<'a>(
    id: &'a MachineId,
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> ImageMachineError + use<'a> {
    move |source| ImageMachineError::Host { id: id.clone(), what, path: PathBuf::from(path), source }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn make_disk(disk: &OverlayDisk) -> io::Result<()> {
    blank(&create(&disk.path)?, disk.size, disk.id.0).map_err(io::Error::other)
}

fn make_initramfs(own: &OwnInitramfs) -> io::Result<()> {
    let mut file = create(&own.path)?;
    // Shares the blocks where the file system can.
    io::copy(&mut File::open(&own.base)?, &mut file)?;
    file.write_all(&with_orders(&own.orders)?)
}
