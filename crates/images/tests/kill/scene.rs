//! A store of its own, and what the work needs beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smartvm_images::store::{GcOptions, Kind, VerifyOptions};
use smartvm_images::{Progress, Store};
use tempfile::TempDir;

/// Two folders: `store`, and `inputs` for whatever the test gives its children (files, addresses of servers).
pub(crate) struct Scene {
    dir: PathBuf,
    _removed_at_the_end: Option<TempDir>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("smartvm-kill-").tempdir().unwrap();
        let scene = Self { dir: dir.path().to_owned(), _removed_at_the_end: Some(dir) };
        fs::create_dir(scene.inputs()).unwrap();
        drop(scene.store());
        scene
    }

    /// The parent's one, seen by a child.
    pub(crate) fn of_parent(dir: PathBuf) -> Self {
        Self { dir, _removed_at_the_end: None }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn inputs(&self) -> PathBuf {
        self.dir.join("inputs")
    }

    /// A handle that holds nothing yet.
    pub(crate) fn store(&self) -> Store {
        Store::open(&self.dir.join("store")).unwrap()
    }

    /// Runs a future to its end, on a runtime of its own.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(future)
    }

    #[track_caller]
    pub(crate) fn assert_clean(&self, when: &str) {
        let report = self.run(self.store().verify(VerifyOptions::default(), &Progress::none())).unwrap();
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert!(report.is_clean(), "{when}: {findings:#?}");
    }

    /// Collects without retention; says how many blobs went.
    pub(crate) fn gc(&self) -> usize {
        self.collect(&GcOptions { keep_bases: usize::MAX, ..GcOptions::default() })
    }

    fn collect(&self, options: &GcOptions) -> usize {
        let report = self.run(self.store().gc(options, &Progress::none())).unwrap();
        assert_eq!(report.refused, Vec::<String>::new());
        report.blobs.len()
    }

    /// Removes every record, and collects: nothing may stay.
    #[track_caller]
    pub(crate) fn empty(&self) {
        let store = self.store();
        for kind in Kind::ALL {
            for record in store.records::<serde_json::Value>(kind).unwrap().records {
                store.remove(kind, &record.id.name).unwrap();
            }
        }
        drop(store);
        self.collect(&GcOptions { keep_downloads: Duration::ZERO, ..GcOptions::default() });
        for folder in ["partial", "blobs", "tmp", "holds", "uses", "locks", "damaged"] {
            assert_eq!(self.names(folder), Vec::<String>::new(), "left in {folder}");
        }
    }

    /// What is in a folder of the store.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join("store").join(folder)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
