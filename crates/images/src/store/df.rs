//! How large the store is, and what could be had back.

use std::collections::HashMap;
use std::fs::{self, Metadata};

use serde::Serialize;

use super::Store;
use super::contents::Usage;
use super::error::StoreError;
use super::gc::GcOptions;
use super::record::{Kind, entries};
use crate::Digest;
use crate::blocking::{Abandoned, blocking};
use crate::progress::Progress;

/// The records of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KindUsage {
    /// Which.
    pub kind: Kind,
    /// How many records there are.
    pub records: u64,
    /// Their blobs, each once. A blob that is also another kind's counts for both.
    pub blobs: Usage,
}

/// How large the store is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DfReport {
    /// By kind; those without a record are left out.
    pub kinds: Vec<KindUsage>,
    /// All blobs, each once.
    pub blobs: Usage,
    /// Received parts of downloads.
    pub downloads: Usage,
    /// What `verify` moved away. Nothing removes it but its owner.
    pub damaged: Usage,
    /// What gc would remove now, in bytes of the disk.
    pub reclaimable_bytes: u64,
    /// What the store's file system has free for us, in bytes.
    pub free_bytes: u64,
}

impl Store {
    /// How large the store is, without reading the blobs.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub async fn df(&self) -> Result<DfReport, StoreError> {
        let store = self.clone();
        blocking(move |abandoned| store.measure(abandoned)).await
    }

    fn measure(&self, abandoned: &Abandoned) -> Result<DfReport, StoreError> {
        let mut report = DfReport { free_bytes: self.free_bytes()?, ..DfReport::default() };
        let dry = GcOptions { dry_run: true, ..GcOptions::default() };
        report.reclaimable_bytes = self.collect(&dry, &Progress::none(), abandoned)?.disk_bytes;
        let blobs: HashMap<Digest, Metadata> =
            self.all_blobs()?.blobs.into_iter().map(|(digest, _, metadata)| (digest, metadata)).collect();
        for metadata in blobs.values() {
            report.blobs.add(metadata);
        }
        for (usage, folder) in [(&mut report.downloads, "partial"), (&mut report.damaged, "damaged")] {
            let paths = entries(&self.dir().join(folder))?;
            // What is gone by now has no size.
            paths.iter().filter_map(|path| fs::symlink_metadata(path).ok()).for_each(|file| usage.add(&file));
        }
        let records = self.all_records()?.known;
        for kind in Kind::ALL {
            let of_kind: Vec<_> = records.iter().filter(|record| record.id.kind == kind).collect();
            let mut digests: Vec<&Digest> = of_kind.iter().flat_map(|record| &record.blobs).collect();
            digests.sort();
            digests.dedup();
            let mut usage = KindUsage { kind, records: of_kind.len() as u64, blobs: Usage::default() };
            for metadata in digests.iter().filter_map(|digest| blobs.get(digest)) {
                usage.blobs.add(metadata);
            }
            report.kinds.extend((usage.records > 0).then_some(usage));
        }
        Ok(report)
    }

    /// What the store's file system has free for us, in bytes.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::statvfs(self.dir())
            .map_err(|errno| StoreError::io("measure", self.dir(), errno.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
