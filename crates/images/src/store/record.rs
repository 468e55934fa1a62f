//! Records: what there is in the store, by kind and name, and which blobs it keeps.
//!
//! A record is one JSON file, replaced whole. Its time of modification is when it was last used: a touch is one
//! system call and no write.

use std::fmt;
use std::fs::{self, File, FileTimes};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::flock::Flock;
use super::{Store, folder, name};
use crate::Digest;

/// The form of a record's file that this code reads and writes.
const SCHEMA: u32 = 1;

/// A record larger than this, in bytes, is none of ours.
const LARGEST: u64 = 32 << 20;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// A Firecracker release.
    Firecracker,
    /// A kernel bundle.
    Kernel,
    /// An image: its content and config.
    Image,
    /// A name for an image.
    Tag,
    /// A base-image bundle.
    Base,
    /// What the user chose as default among others: the kernel, the Firecracker release.
    Choice,
    /// Blobs that something outside of the store needs until it says otherwise: a snapshot.
    Pin,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Firecracker, Self::Kernel, Self::Image, Self::Tag, Self::Base, Self::Choice, Self::Pin];

    /// Its name for people and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::Kernel => "kernel",
            Self::Image => "image",
            Self::Tag => "tag",
            Self::Base => "base",
            Self::Choice => "choice",
            Self::Pin => "pin",
        }
    }

    /// Its folder in `records`.
    pub(super) const fn folder(self) -> &'static str {
        self.as_str()
    }
}

/// Kind and name together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordId {
    /// What it is about.
    pub kind: Kind,
    /// Its name, as it was given.
    pub name: String,
}

impl RecordId {
    /// The record `name` of this kind.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind.as_str(), self.name)
    }
}

/// A record with everything that the store knows of it.
#[derive(Debug, Clone)]
pub struct Record<T> {
    /// Its kind and name.
    pub id: RecordId,
    /// When it was written, to the second.
    pub created: SystemTime,
    /// When it was written or last touched.
    pub last_used: SystemTime,
    /// The blobs that it keeps from gc.
    pub blobs: Vec<Digest>,
    /// The records that it keeps from retention, and that go with it when it is evicted.
    pub keeps: Vec<RecordId>,
    /// What it says.
    pub value: T,
}

/// All records of a kind.
#[derive(Debug)]
pub struct Listing<T> {
    /// Those that can be read, by name.
    pub records: Vec<Record<T>>,
    /// Why others cannot.
    pub damaged: Vec<StoreError>,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Content<T> {
    schema: u32,
    kind: Kind,
    name: String,
    /// Seconds since 1970.
    created: u64,
    blobs: Vec<Digest>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keeps: Vec<RecordId>,
    value: T,
}

/// What a record of any schema must have.
#[derive(Deserialize)]
struct Head {
    schema: u32,
}

impl Store {
    /// Writes a record, over one of the same name. It is on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`] when one of `blobs` is not in the store, and when it cannot be written. Then
    /// an older record is still there.
    pub fn put<T: Serialize>(
        &self,
        kind: Kind,
        name: &str,
        value: &T,
        blobs: &[Digest],
    ) -> Result<(), StoreError> {
        self.put_keeping(kind, name, value, blobs, &[])
    }

    /// The same for a record that other records belong to: gc evicts them with it, and not before it.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_keeping<T: Serialize>(
        &self,
        kind: Kind,
        name: &str,
        value: &T,
        blobs: &[Digest],
        keeps: &[RecordId],
    ) -> Result<(), StoreError> {
        let path = self.record_path(kind, name);
        let created = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs();
        let content = Content {
            schema: SCHEMA,
            kind,
            name: name.to_owned(),
            created,
            blobs: blobs.to_vec(),
            keeps: keeps.to_vec(),
            value,
        };
        let mut bytes = serde_json::to_vec_pretty(&content)
            .map_err(|error| StoreError::io("write", &path, io::Error::other(error)))?;
        bytes.push(b'\n');
        self.replace(&path, &bytes, &RecordId::new(kind, name), blobs)
    }

    /// Writes a record's file by rename, while the blobs that it names are all there.
    fn replace(&self, path: &Path, bytes: &[u8], id: &RecordId, blobs: &[Digest]) -> Result<(), StoreError> {
        let mut staged = self.stage()?;
        staged
            .write_all(bytes)
            .and_then(|()| staged.file().sync_all())
            .map_err(|error| StoreError::io("write", path, error))?;
        {
            let no_gc = self.no_gc()?;
            self.all_there(blobs, id, &no_gc)?;
            staged.rename(path)?;
        }
        folder::sync(&self.records_dir(id.kind))
    }

    /// That these blobs are in the store, and stay there for as long as collections are kept away.
    pub(super) fn all_there(
        &self,
        blobs: &[Digest],
        wanted_by: &dyn fmt::Display,
        _no_gc: &Flock,
    ) -> Result<(), StoreError> {
        match blobs.iter().find(|digest| !self.blob_path(digest).is_file()) {
            Some(digest) => {
                Err(StoreError::MissingBlob { digest: *digest, wanted_by: wanted_by.to_string() })
            }
            None => Ok(()),
        }
    }

    /// What a record says. `None` when there is none of this name.
    ///
    /// # Errors
    /// [`StoreError::BadRecord`] when it cannot be understood.
    pub fn get<T: DeserializeOwned>(&self, kind: Kind, name: &str) -> Result<Option<T>, StoreError> {
        Ok(self.record(kind, name)?.map(|record| record.value))
    }

    /// A record with everything the store knows of it. `None` when there is none of this name.
    ///
    /// # Errors
    /// [`StoreError::BadRecord`] when it cannot be understood.
    pub fn record<T: DeserializeOwned>(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<Record<T>>, StoreError> {
        let path = self.record_path(kind, name);
        match read(&path, kind) {
            Ok(record) => record.into_type(&path).map(Some),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All records of a kind that can be read, by name. The others are left out and logged: [`Store::records`]
    /// tells of them.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list<T: DeserializeOwned>(&self, kind: Kind) -> Result<Vec<(String, T)>, StoreError> {
        let listing = self.records(kind)?;
        for error in &listing.damaged {
            tracing::warn!(%error, "a record is left out");
        }
        Ok(listing.records.into_iter().map(|record| (record.id.name, record.value)).collect())
    }

    /// All records of a kind, and why some cannot be read.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn records<T: DeserializeOwned>(&self, kind: Kind) -> Result<Listing<T>, StoreError> {
        let mut listing = Listing { records: Vec::new(), damaged: Vec::new() };
        for path in entries(&self.records_dir(kind))? {
            match read(&path, kind).and_then(|record| record.into_type(&path)) {
                Ok(record) => listing.records.push(record),
                // Removed since we looked.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => listing.damaged.push(error),
            }
        }
        listing.records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(listing)
    }

    /// Removes a record; says whether there was one. Its blobs stay until the next gc.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn remove(&self, kind: Kind, name: &str) -> Result<bool, StoreError> {
        let path = self.record_path(kind, name);
        match fs::remove_file(&path) {
            Ok(()) => folder::sync(&self.records_dir(kind)).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("remove", &path, error)),
        }
    }

    /// Says that a record was used now; retention goes by this. A record that is not there, or that we may not
    /// write, is not touched.
    pub fn touch(&self, kind: Kind, name: &str) {
        let path = self.record_path(kind, name);
        let now = FileTimes::new().set_modified(SystemTime::now());
        if let Err(error) = File::open(&path).and_then(|file| file.set_times(now)) {
            tracing::debug!(path = %path.display(), %error, "cannot touch");
        }
    }

    /// Keeps blobs for something outside of the store, until [`Store::unpin`]. `why` is for people.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn pin(&self, id: &str, why: &str, blobs: &[Digest]) -> Result<(), StoreError> {
        self.put(Kind::Pin, id, &why, blobs)
    }

    /// Ends a pin; says whether there was one.
    ///
    /// # Errors
    /// As [`Store::remove`].
    pub fn unpin(&self, id: &str) -> Result<bool, StoreError> {
        self.remove(Kind::Pin, id)
    }

    pub(super) fn records_dir(&self, kind: Kind) -> PathBuf {
        self.dir().join("records").join(kind.folder())
    }

    pub(super) fn record_path(&self, kind: Kind, name: &str) -> PathBuf {
        self.records_dir(kind).join(format!("{}.json", name::escape(name)))
    }
}

impl Record<serde_json::Value> {
    fn into_type<T: DeserializeOwned>(self, path: &Path) -> Result<Record<T>, StoreError> {
        let Self { id, created, last_used, blobs, keeps, value } = self;
        let value = T::deserialize(value).map_err(|error| bad(path, error.to_string()))?;
        Ok(Record { id, created, last_used, blobs, keeps, value })
    }
}

/// Reads a record without looking into its value.
pub(super) fn read(path: &Path, kind: Kind) -> Result<Record<serde_json::Value>, StoreError> {
    let at = |error| StoreError::io("read", path, error);
    let file = File::open(path).map_err(at)?;
    let metadata = file.metadata().map_err(at)?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(bad(path, format!("it is not a file of up to {} MiB", LARGEST >> 20)));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(at)?;
    let content = parse(&bytes).map_err(|reason| bad(path, reason))?;
    let proper = format!("{}.json", name::escape(&content.name));
    if content.kind != kind || path.file_name() != Some(proper.as_ref()) {
        let id = RecordId::new(content.kind, content.name);
        return Err(bad(path, format!("it is the record of the {id}, which has another place")));
    }
    Ok(Record {
        id: RecordId::new(kind, content.name),
        created: SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(content.created))
            .unwrap_or(SystemTime::UNIX_EPOCH),
        last_used: metadata.modified().map_err(at)?,
        blobs: content.blobs,
        keeps: content.keeps,
        value: content.value,
    })
}

fn parse(bytes: &[u8]) -> Result<Content<serde_json::Value>, String> {
    let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if head.schema != SCHEMA {
        return Err(format!("it has schema {}; this smartvm knows schema {SCHEMA}", head.schema));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

fn bad(path: &Path, reason: String) -> StoreError {
    StoreError::BadRecord { path: path.to_owned(), reason }
}

/// The files of a folder; none when it is not there.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let at = |error| StoreError::io("read", dir, error);
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(at)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(at(error)),
    }
}
