//! Tests of the store within one process. Those with several, and with kills, are in the crate's `tests` folder.

mod basics;
mod collect;
mod full;
mod verify;

use std::fs;

use tempfile::TempDir;

use super::*;

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

/// What is in a folder of the store.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn put(store: &Store, bytes: &[u8]) -> Digest {
    store.put_bytes(bytes, BlobMode::Data).unwrap()
}
