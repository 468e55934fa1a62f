//! The store's folder: made when it is not there, refused when it is something else.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::error::StoreError;
use super::record::Kind;
use super::{FORMAT, flock};

/// The parts beside `records`, which has one folder for each kind.
const PARTS: &[&str] = &["blobs", "records", "uses", "holds", "locks", "tmp", "partial", "damaged"];

/// What a killed process may leave of a `version` that it was writing.
pub(super) const UNFINISHED_VERSION: &str = ".version-";

pub(super) fn open(dir: &Path) -> Result<(), StoreError> {
    let version = dir.join("version");
    match fs::read_to_string(&version) {
        Ok(text) => check(dir, &version, &text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => begin(dir, &version)?,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(StoreError::BadVersion { path: version });
        }
        Err(error) => return Err(StoreError::io("read", &version, error)),
    }
    let records = Kind::ALL.iter().map(|kind| format!("records/{}", kind.folder()));
    let mut made = false;
    for part in PARTS.iter().map(|part| (*part).to_owned()).chain(records) {
        made |= make(&dir.join(part))?;
    }
    if made {
        sync(&dir.join("records"))?;
        sync(dir)?;
    }
    Ok(())
}

fn check(dir: &Path, version: &Path, text: &str) -> Result<(), StoreError> {
    match text.trim().parse::<u32>() {
        Ok(FORMAT) => Ok(()),
        Ok(found) if found > FORMAT => Err(StoreError::NewerFormat { path: dir.to_owned(), found }),
        _ => Err(StoreError::BadVersion { path: version.to_owned() }),
    }
}

/// The version comes first: a folder with anything in it and no version was not made here.
fn begin(dir: &Path, version: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| StoreError::io("make", dir, error))?;
    // Its name in the folder above, too: else all that is in it is lost with it. Those further up may not be readable.
    if let Some(above) = std::path::absolute(dir).ok().as_deref().and_then(Path::parent)
        && let Err(error) = sync(above)
    {
        tracing::debug!(%error, "the store's name may be lost in a power cut");
    }
    let entries = fs::read_dir(dir).map_err(|error| StoreError::io("read", dir, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| StoreError::io("read", dir, error))?;
        let found = entry.file_name().to_string_lossy().into_owned();
        // Another process may be making the store at this moment.
        let ours = found == "version" || found.starts_with(UNFINISHED_VERSION);
        if !ours && !version.exists() {
            return Err(StoreError::NotAStore { path: dir.to_owned(), found });
        }
    }
    let at = |error| StoreError::io("write", version, error);
    let mut file = tempfile::Builder::new().prefix(UNFINISHED_VERSION).tempfile_in(dir).map_err(at)?;
    // Whoever collects knows by this that we live.
    flock::try_lock(file.as_file(), flock::Share::Alone).map_err(at)?;
    file.write_all(format!("{FORMAT}\n").as_bytes()).map_err(at)?;
    file.as_file().sync_all().map_err(at)?;
    match file.persist_noclobber(version) {
        Ok(_) => sync(dir),
        // Somebody else made the store meanwhile, and may have collected our file before we locked it.
        Err(error) => match fs::read_to_string(version) {
            Ok(text) => check(dir, version, &text),
            Err(_) => Err(at(error.error)),
        },
    }
}

/// Whether it was to be made.
fn make(path: &Path) -> Result<bool, StoreError> {
    if path.is_dir() {
        return Ok(false);
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        // What is not there needs no folder until something is written.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(false),
        Err(error) => Err(StoreError::io("make", path, error)),
    }
}

/// Makes the names in a folder survive a loss of power.
pub(super) fn sync(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| StoreError::io("sync", dir, error))
}
