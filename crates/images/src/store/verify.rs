//! Verification: every blob is what its name says, every record can be read and has its blobs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::StoreError;
use super::flock::{self, Flock, Share};
use super::record::RecordId;
use super::staged::hash;
use super::{Store, folder};
use crate::Digest;
use crate::blocking::{Abandoned, blocking};
use crate::progress::Progress;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Finding {
    /// A blob whose bytes are not what its name says, or cannot be read.
    BadBlob {
        /// Its name.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
        /// Where a repair moved it to.
        moved_to: Option<PathBuf>,
    },
    /// A record without one of its blobs: what it names must be fetched or imported again.
    MissingBlob {
        /// The record.
        record: RecordId,
        /// The blob: not there, or bad.
        digest: Digest,
    },
    /// A record that cannot be understood, or of a kind that is not known.
    BadRecord {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// Where a repair moved it to.
        moved_to: Option<PathBuf>,
    },
    /// Something among the blobs that is none.
    Foreign {
        /// The file.
        path: PathBuf,
        /// Where a repair moved it to.
        moved_to: Option<PathBuf>,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved_to = match self {
            Self::BadBlob { digest, reason, moved_to } => {
                write!(f, "blob {digest}: {reason}")?;
                moved_to
            }
            Self::MissingBlob { record, digest } => {
                write!(f, "{record} lacks {digest}: fetch or import it again")?;
                &None
            }
            Self::BadRecord { path, reason, moved_to } => {
                write!(f, "record `{}`: {reason}", path.display())?;
                moved_to
            }
            Self::Foreign { path, moved_to } => {
                write!(f, "`{}` is no blob", path.display())?;
                moved_to
            }
        };
        match moved_to {
            Some(to) => write!(f, " (moved to `{}`)", to.display()),
            None => Ok(()),
        }
    }
}

/// What to do about findings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Move what is bad or foreign to the store's folder `damaged`, so that it is fetched again when wanted.
    pub repair: bool,
}

/// What was looked at, and what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// How many blobs were read.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many records were read.
    pub records: u64,
    /// Empty when the store is as it should be.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// Whether all is as it should be.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// A blob that is not as it should be.
struct Bad {
    path: PathBuf,
    /// `None` when it cannot be opened.
    file: Option<File>,
    reason: String,
}

impl Store {
    /// Reads every blob and every record. What killed processes left unfinished is no damage: gc removes it.
    ///
    /// Others may use and change the store meanwhile; what vanishes while it is read is no damage.
    ///
    /// # Errors
    /// When a folder cannot be read, or what is bad cannot be moved. What is wrong with files is in the report.
    ///
    /// # Cancel safety
    /// Dropping the future stops the work within a buffer's length; the store stays whole.
    pub async fn verify(
        &self,
        options: VerifyOptions,
        progress: &Progress,
    ) -> Result<VerifyReport, StoreError> {
        let (store, progress) = (self.clone(), progress.clone());
        blocking(move |abandoned| store.look_through(options, &progress, abandoned)).await
    }

    pub(super) fn look_through(
        &self,
        options: VerifyOptions,
        progress: &Progress,
        abandoned: &Abandoned,
    ) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        let found = self.all_blobs()?;
        let total = found.blobs.iter().map(|(.., metadata)| metadata.len()).sum();
        let mut task = progress.task("verify the store", Some(total));
        let mut bad: BTreeMap<Digest, Bad> = BTreeMap::new();
        for (digest, path, _) in found.blobs {
            let mut file = match File::open(&path) {
                Ok(file) => file,
                // Collected since we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // Somebody else's file, or a broken disk: one finding among others.
                Err(error) => {
                    report.blobs += 1;
                    let reason = format!("it cannot be opened: {error}");
                    bad.insert(digest, Bad { path, file: None, reason });
                    continue;
                }
            };
            let answer = hash(&mut file, abandoned, |count| task.advance(count));
            if abandoned.is() {
                return Err(StoreError::Abandoned);
            }
            report.blobs += 1;
            let reason = match answer {
                Ok((got, size)) => {
                    report.bytes += size;
                    (got != digest).then(|| format!("its {size} bytes have the digest {got}"))
                }
                Err(error) => Some(format!("it cannot be read: {error}")),
            };
            if let Some(reason) = reason {
                bad.insert(digest, Bad { path, file: Some(file), reason });
            }
        }
        drop(task);
        self.report_blobs(options, bad, found.foreign, &mut report)?;
        self.report_records(options, &mut report)?;
        Ok(report)
    }

    fn report_blobs(
        &self,
        options: VerifyOptions,
        bad: BTreeMap<Digest, Bad>,
        foreign: Vec<PathBuf>,
        report: &mut VerifyReport,
    ) -> Result<(), StoreError> {
        if bad.is_empty() && foreign.is_empty() {
            return Ok(());
        }
        let _alone = if options.repair { Some(self.alone()?) } else { None };
        for (digest, Bad { path, file, reason }) in bad {
            // Collected, and perhaps written anew, since we read it.
            let is_still = match &file {
                Some(file) => {
                    flock::is_at(file, &path).map_err(|error| StoreError::io("read", &path, error))?
                }
                None => fs::symlink_metadata(&path).is_ok() && File::open(&path).is_err(),
            };
            if !is_still {
                continue;
            }
            let moved_to = self.move_away(options, &path)?;
            report.findings.push(Finding::BadBlob { digest, reason, moved_to });
        }
        for path in foreign {
            // Another repair was faster.
            if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                continue;
            }
            let moved_to = self.move_away(options, &path)?;
            report.findings.push(Finding::Foreign { path, moved_to });
        }
        Ok(())
    }

    /// After the blobs, so that a record of a bad one is reported too.
    fn report_records(&self, options: VerifyOptions, report: &mut VerifyReport) -> Result<(), StoreError> {
        let bad: BTreeSet<Digest> = report
            .findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::BadBlob { digest, .. } => Some(*digest),
                _ => None,
            })
            .collect();
        // Else a collection between the look at a record and the look at its blobs would seem damage.
        let _still = match if options.repair { self.alone() } else { self.no_gc() } {
            Ok(lock) => Some(lock),
            Err(StoreError::ReadOnly { .. }) if !options.repair => None,
            Err(error) => return Err(error),
        };
        let records = self.all_records()?;
        report.records = (records.known.len() + records.damaged.len()) as u64;
        for record in &records.known {
            let lacks = |digest: &&Digest| bad.contains(digest) || !self.blob_path(digest).is_file();
            let missing: BTreeSet<&Digest> = record.blobs.iter().filter(lacks).collect();
            report.findings.extend(
                missing.into_iter().map(|&digest| Finding::MissingBlob { record: record.id.clone(), digest }),
            );
        }
        for (path, error) in records.damaged {
            let moved_to = self.move_away(options, &path)?;
            let reason = match error {
                StoreError::BadRecord { reason, .. } => reason,
                StoreError::Io { source, .. } => source.to_string(),
                other => other.to_string(),
            };
            report.findings.push(Finding::BadRecord { path, reason, moved_to });
        }
        Ok(())
    }

    fn alone(&self) -> Result<Flock, StoreError> {
        Flock::take(&self.dir().join("gc.lock"), Share::Alone, "repair the store")
    }

    /// Into `damaged`, under a name that nothing has there.
    fn move_away(&self, options: VerifyOptions, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        if !options.repair {
            return Ok(None);
        }
        let dir = self.dir().join("damaged");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let free = (0_u32..).map(|count| match count {
            0 => dir.join(&name),
            _ => dir.join(format!("{name}.{count}")),
        });
        let to =
            free.into_iter().find(|to| fs::symlink_metadata(to).is_err()).unwrap_or_else(|| dir.join(&name));
        fs::rename(path, &to).map_err(|error| StoreError::io("move", path, error))?;
        folder::sync(&dir)?;
        if let Some(from) = path.parent() {
            folder::sync(from)?;
        }
        Ok(Some(to))
    }
}
