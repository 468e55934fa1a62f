//! The record of a machine: who owns it and what must go when the owner is gone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use smartvm_core::id::MachineId;
use smartvm_host::process::ProcessId;

/// What `machine.json` holds. Written before what it names is made, replaced by rename.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The machine.
    pub id: MachineId,
    /// The process that drives it.
    pub owner: ProcessId,
    /// Its Firecracker; absent until it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<ProcessId>,
    /// The socket on the host side of its vsock device, made by Firecracker wherever the config says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<PathBuf>,
    /// Seconds since 1970 at which the owner began to make it.
    pub created: u64,
    /// The Firecracker version it runs under.
    pub firecracker: String,
    /// The config it was started with, when that was a file. For people: what is not UTF-8 in it is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "readable")]
    pub config_file: Option<PathBuf>,
}

/// A path for people, in JSON.
pub(crate) fn readable<S: serde::Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.display().to_string()).serialize(serializer)
}

/// No record of ours comes near.
const LIMIT: u64 = 1 << 20;

impl Record {
    /// Reads a record. A symbolic link is refused, and so is what is larger than any record.
    ///
    /// # Errors
    /// It cannot be read, or is no record.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            // A FIFO would make us wait for its writer.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file"));
        }
        let mut text = Vec::new();
        file.take(LIMIT).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Replaces the record at `path`, whole.
    ///
    /// # Errors
    /// The file system refused; then the former record is still there.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        replace(path, &text)
    }
}

/// Writes a file under another name and renames it, so that no reader ever sees half of it.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(contents)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: MachineId::new("web-1").unwrap(),
            owner: ProcessId::own().unwrap(),
            vmm: None,
            vsock: Some("/v.sock".into()),
            created: 1,
            firecracker: "1.12.1".into(),
            config_file: None,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_leaves_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.json");
        record().write(&path).unwrap();
        let later = Record { vmm: Some(ProcessId::own().unwrap()), ..record() };
        later.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), later);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_config_whose_name_is_not_utf_8_is_recorded_all_the_same() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.json");
        let name = std::ffi::OsStr::from_bytes(b"/x\xff.json");
        Record { config_file: Some(name.into()), ..record() }.write(&path).unwrap();
        let told = Record::read(&path).unwrap().config_file.unwrap();
        assert_eq!(told, Path::new("/x\u{fffd}.json"));
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.json");
        fs::write(dir.path().join("real"), serde_json::to_vec(&record()).unwrap()).unwrap();
        std::os::unix::fs::symlink("real", &path).unwrap();
        assert!(Record::read(&path).is_err(), "a link is not followed");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(Record::read(&path).is_err());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(Record::read(&path).is_err());
    }
}
