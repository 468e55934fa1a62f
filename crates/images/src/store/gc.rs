//! Collection: what nothing needs any more goes.
//!
//! While the plan is made and blobs leave their places, nobody else changes the store. Giving the bytes back to the
//! disk, which takes longest, comes after that.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::contents::{Busy, Locked, Records, Usage};
use super::error::StoreError;
use super::flock::{Flock, Share};
use super::record::{Kind, RecordId};
use super::{Store, folder, links};
use crate::Digest;
use crate::blocking::{Abandoned, blocking};
use crate::progress::Progress;

/// How many base-image bundles stay when nothing else is said.
pub const BASES_KEPT: usize = 2;

/// How long an interrupted download stays when nothing else is said.
pub const DOWNLOADS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What to collect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcOptions {
    /// Only say what would go.
    pub dry_run: bool,
    /// How many base-image bundles stay, the most recently used ones; those in use stay as well.
    pub keep_bases: usize,
    /// How long the received part of a download stays that nobody went on with.
    pub keep_downloads: Duration,
    /// Blobs that the caller knows to be used, beside those that the store knows of.
    pub in_use: Vec<Digest>,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { dry_run: false, keep_bases: BASES_KEPT, keep_downloads: DOWNLOADS_KEPT, in_use: Vec::new() }
    }
}

/// A blob that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Its name.
    pub digest: Digest,
    /// What it took of the disk, in bytes.
    pub disk_bytes: u64,
}

/// What went, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Nothing was done.
    pub dry_run: bool,
    /// Records that retention evicts: base-image bundles and what belongs to them.
    pub evicted: Vec<RecordId>,
    /// Blobs that nothing needs.
    pub blobs: Vec<Collected>,
    /// What killed processes left behind, and old parts of downloads.
    pub leftovers: Usage,
    /// What goes in all, in bytes of the disk.
    pub disk_bytes: u64,
    /// Why no blob and no record goes: files that may need any of them, and cannot be understood.
    pub refused: Vec<String>,
}

/// What goes, while nobody else changes the store.
struct Plan {
    report: GcReport,
    /// Records and dead uses and holds, in the order in which they go.
    records: Vec<PathBuf>,
    blobs: Vec<PathBuf>,
    /// Further names of blobs, each folder behind what is in it.
    links: Vec<PathBuf>,
    dead: Locked,
}

impl Store {
    /// Removes what no record, no machine and no process at work needs: blobs, what the killed left behind, and
    /// before that the base-image bundles beyond those to be kept, each announced by a warning.
    ///
    /// Blobs that this handle holds itself stay: collect with a handle that has done nothing else.
    /// When a record cannot be understood, no blob goes, since it might be that record's.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when a process keeps collections away for a minute, and when the system refuses.
    /// [`StoreError::Abandoned`] is never seen.
    ///
    /// # Cancel safety
    /// Dropping the future stops the work at the next file; the store stays whole, and the next gc goes on.
    pub async fn gc(&self, options: &GcOptions, progress: &Progress) -> Result<GcReport, StoreError> {
        let (store, options, progress) = (self.clone(), options.clone(), progress.clone());
        blocking(move |abandoned| store.collect(&options, &progress, abandoned)).await
    }

    pub(super) fn collect(
        &self,
        options: &GcOptions,
        progress: &Progress,
        abandoned: &Abandoned,
    ) -> Result<GcReport, StoreError> {
        let path = self.dir().join("gc.lock");
        let alone = match Flock::take(&path, Share::Alone, "collect garbage") {
            Ok(lock) => Some(lock),
            // Nothing changes there, so looking needs no lock.
            Err(StoreError::ReadOnly { .. }) if options.dry_run => None,
            Err(error) => return Err(error),
        };
        let plan = self.plan(options)?;
        for id in &plan.report.evicted {
            let would = if options.dry_run { "would be evicted" } else { "is evicted" };
            let keep = options.keep_bases;
            progress.warn(format!("{id} {would}: the {keep} most recently used base-image bundles are kept"));
        }
        if options.dry_run {
            return Ok(plan.report);
        }
        for (path, _lock) in self.free_locks()? {
            remove(&path)?;
        }
        let trash = self.unlink(&plan, abandoned)?;
        drop(alone);
        for path in trash.iter().chain(plan.dead.iter().map(|(path, _)| path)) {
            if abandoned.is() {
                return Err(StoreError::Abandoned);
            }
            remove(path)?;
        }
        Ok(plan.report)
    }

    /// Removes those of `blobs` that nothing needs: what only one piece of work needed, which is done. A handle that held
    /// them must be gone.
    ///
    /// # Errors
    /// As [`Store::gc`].
    pub(crate) fn discard(&self, blobs: &[Digest]) -> Result<(), StoreError> {
        let alone = Flock::take(&self.dir().join("gc.lock"), Share::Alone, "collect garbage")?;
        let mut plan = self.plan(&GcOptions { keep_bases: usize::MAX, ..GcOptions::default() })?;
        let ours: HashSet<PathBuf> = blobs.iter().map(|digest| self.blob_path(digest)).collect();
        plan.blobs.retain(|path| ours.contains(path));
        plan.records.clear();
        let trash = self.unlink(&plan, &Abandoned::never())?;
        drop(alone);
        trash.iter().try_for_each(|path| remove(path))
    }

    fn plan(&self, options: &GcOptions) -> Result<Plan, StoreError> {
        let mut records = self.all_records()?;
        let mut busy = self.busy()?;
        busy.used.extend(&options.in_use);
        let mut report = GcReport { dry_run: options.dry_run, ..GcReport::default() };
        let reasons = records.damaged.iter().map(|(_, error)| error).chain(&busy.damaged);
        report.refused = reasons.map(ToString::to_string).collect();
        let mut plan = Plan {
            report,
            records: Vec::new(),
            blobs: Vec::new(),
            links: Vec::new(),
            dead: self.dead_files()?,
        };
        let (downloads, mut beside) = self.old_downloads(options.keep_downloads)?;
        plan.dead.extend(downloads);
        busy.dead.append(&mut beside);
        for path in plan.dead.iter().map(|(path, _)| path).chain(&busy.dead) {
            if let Ok(metadata) = fs::symlink_metadata(path) {
                plan.report.leftovers.add(&metadata);
            }
        }
        let (links, usage) = self.dead_links()?;
        plan.links = links;
        plan.report.leftovers.count += usage.count;
        plan.report.leftovers.bytes += usage.bytes;
        plan.report.leftovers.disk_bytes += usage.disk_bytes;
        plan.report.disk_bytes = plan.report.leftovers.disk_bytes;
        plan.records.append(&mut busy.dead);
        if !plan.report.refused.is_empty() {
            return Ok(plan);
        }
        let evicted = evicted(&records, &busy, options.keep_bases);
        plan.records.extend(evicted.iter().map(|id| self.record_path(id.kind, &id.name)));
        records.known.retain(|record| !evicted.contains(&record.id));
        let mut needed: HashSet<Digest> =
            records.known.iter().flat_map(|record| &record.blobs).copied().collect();
        needed.extend(busy.used.iter().chain(&busy.held));
        for (digest, path, metadata) in self.all_blobs()?.blobs {
            if !needed.contains(&digest) {
                let mut usage = Usage::default();
                usage.add(&metadata);
                plan.report.disk_bytes += usage.disk_bytes;
                plan.report.blobs.push(Collected { digest, disk_bytes: usage.disk_bytes });
                plan.blobs.push(path);
            }
        }
        plan.report.evicted = evicted.into_iter().collect();
        Ok(plan)
    }

    /// Takes away records, then the blobs that only they needed: so that no record is ever without its blobs.
    fn unlink(&self, plan: &Plan, abandoned: &Abandoned) -> Result<Vec<PathBuf>, StoreError> {
        for path in &plan.records {
            remove(path)?;
        }
        let folders: BTreeSet<&Path> =
            plan.report.evicted.iter().map(|id| id.kind.folder().as_ref()).collect();
        for dir in folders {
            folder::sync(&self.dir().join("records").join(dir))?;
        }
        for path in &plan.links {
            links::remove(path)?;
        }
        let mut trash = Vec::with_capacity(plan.blobs.len());
        for path in &plan.blobs {
            if abandoned.is() {
                break;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = self.dir().join("tmp").join(format!("{name}.collected"));
            match fs::rename(path, &aside) {
                Ok(()) => trash.push(aside),
                // On a full disk there may be no room for a name.
                Err(_) => remove(path)?,
            }
        }
        Ok(trash)
    }
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        // Another collection was faster.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// The base-image bundles beyond the `keep` most recently used that nothing needs, and the records that only
/// they keep.
fn evicted(records: &Records, busy: &Busy, keep: usize) -> BTreeSet<RecordId> {
    let find = |id: &RecordId| records.known.iter().find(|record| record.id == *id);
    let pinned: HashSet<&Digest> = records
        .known
        .iter()
        .filter(|record| record.id.kind == Kind::Pin)
        .flat_map(|pin| &pin.blobs)
        .collect();
    let needs =
        |digest: &Digest| busy.used.contains(digest) || busy.held.contains(digest) || pinned.contains(digest);
    let mut bases: Vec<_> = records.known.iter().filter(|record| record.id.kind == Kind::Base).collect();
    bases.sort_by(|a, b| b.last_used.cmp(&a.last_used).then_with(|| a.id.cmp(&b.id)));
    let mut evicted = BTreeSet::new();
    for base in bases.into_iter().skip(keep) {
        let of_others = records.known.iter().any(|record| record.keeps.contains(&base.id));
        // Kernels share their initramfs: that one is in use does not mean that they all are.
        let alone = |digest: &&Digest| {
            let others = records.known.iter().filter(|record| record.id.kind != Kind::Pin);
            others.filter(|record| record.blobs.contains(*digest)).count() == 1
        };
        let belonging = base.keeps.iter().filter_map(find).flat_map(|record| &record.blobs).filter(alone);
        if !of_others && !base.blobs.iter().chain(belonging).any(needs) {
            evicted.insert(base.id.clone());
        }
    }
    // What belongs to them may keep others in turn.
    loop {
        let kept: HashSet<&RecordId> = records
            .known
            .iter()
            .filter(|record| !evicted.contains(&record.id))
            .flat_map(|record| &record.keeps)
            .collect();
        let with_them: Vec<RecordId> = evicted
            .iter()
            .filter_map(find)
            // A name may lead to another image by now, which did not come with the base image.
            .filter(|record| record.id.kind != Kind::Tag)
            .flat_map(|record| &record.keeps)
            .filter(|id| !kept.contains(id) && !evicted.contains(*id) && find(id).is_some())
            .cloned()
            .collect();
        if with_them.is_empty() {
            return evicted;
        }
        evicted.extend(with_them);
    }
}
