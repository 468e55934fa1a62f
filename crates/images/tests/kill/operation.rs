//! What is killed. A new kind of work is one more value in [`OPERATIONS`], and one more line in `rounds`.

use std::any::Any;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use smartvm_images::store::{BlobMode, GcOptions, Kind, RecordId, Staged};
use smartvm_images::{Digest, Progress, Store};

use crate::scene::Scene;
use smartvm_lab::random::Random;

/// One kind of work on the store.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// In the test, once: what the work needs beside the store, in the scene's `inputs`. The answer is kept until
    /// the end (a server).
    pub(crate) prepare: fn(&Scene) -> Box<dyn Any>,
    /// In the test, on an empty store, before each kill: what the work finds in the store.
    pub(crate) before: fn(&Scene),
    /// In the child: the work. It must bear to find itself half done, and panic when it fails.
    pub(crate) work: fn(&Scene),
    /// In the test, after it was done to its end: that it was.
    pub(crate) after: fn(&Scene),
}

pub(crate) const OPERATIONS: &[Operation] =
    &[PUT, GC, crate::kernel::IMPORT, crate::image::PULL, crate::image::IMPORT];

fn nothing(_: &Scene) -> Box<dyn Any> {
    Box::new(())
}

/// Many blobs, a record for each few of them, and one record that is replaced all the time: as a pull does it.
pub(crate) const PUT: Operation = Operation {
    name: "put",
    prepare: nothing,
    before: |_| {},
    work: |scene| {
        let store = scene.store();
        let lock = scene.run(store.lock("put", "everything", &Progress::none())).unwrap();
        for group in 0..GROUPS {
            let blobs: Vec<Digest> = (0..8).map(|index| put(&store, &content(group * 8 + index))).collect();
            store.put(Kind::Image, &format!("example.org/image:{group}"), &group, &blobs).unwrap();
            store.put(Kind::Tag, "latest", &group, &blobs[..1]).unwrap();
        }
        drop(lock);
    },
    after: |scene| {
        let store = scene.store();
        assert_eq!(store.get(Kind::Tag, "latest").unwrap(), Some(GROUPS - 1));
        assert_eq!(store.list::<u64>(Kind::Image).unwrap().len() as u64, GROUPS);
        let wanted: BTreeSet<String> =
            (0..GROUPS * 8).map(|index| Digest::of(&content(index)).hex()).collect();
        assert_eq!(scene.names("blobs"), wanted.into_iter().collect::<Vec<_>>());
    },
};

const GROUPS: u64 = 6;

/// The bytes of a blob: from none at all to some hundred KiB.
fn content(index: u64) -> Vec<u8> {
    let mut random = Random::of(index);
    let length = if index == 0 { 0 } else { 1 << random.below(18) };
    random.bytes(length)
}

/// Writes a blob in pieces, as downloads do.
fn put(store: &Store, bytes: &[u8]) -> Digest {
    let mut staged: Staged = store.stage().unwrap();
    for piece in bytes.chunks(16 * 1024) {
        staged.write_all(piece).unwrap();
    }
    staged.hash_and_commit(Some(Digest::of(bytes)), BlobMode::Data).unwrap()
}

/// A collection that finds garbage, leftovers, base bundles to evict, and records to keep.
pub(crate) const GC: Operation = Operation {
    name: "gc",
    prepare: nothing,
    before: |scene| {
        let store = scene.store();
        for index in 0..KEPT {
            let blob = store.put_bytes(&content(index), BlobMode::Data).unwrap();
            store.put(Kind::Image, &format!("kept-{index}"), &index, &[blob]).unwrap();
        }
        for index in KEPT..KEPT + 40 {
            store.put_bytes(&content(index), BlobMode::Data).unwrap();
        }
        for index in 0..12_u64 {
            let kernel = RecordId::new(Kind::Kernel, format!("kernel-{index}"));
            let blob = store.put_bytes(&index.to_le_bytes(), BlobMode::Data).unwrap();
            store.put(kernel.kind, &kernel.name, &index, &[blob]).unwrap();
            let base = format!("base-{index}");
            store.put_keeping(Kind::Base, &base, &index, &[], &[kernel]).unwrap();
            let path = store.dir().join(format!("records/base/{base}.json"));
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(1000 - index)).unwrap();
            std::fs::write(store.dir().join(format!("tmp/dead-{index}")), "half").unwrap();
        }
    },
    work: |scene| {
        let report = scene.run(scene.store().gc(&GcOptions::default(), &Progress::none())).unwrap();
        assert_eq!(report.refused, Vec::<String>::new());
    },
    after: |scene| {
        let store = scene.store();
        let bases = store.list::<u64>(Kind::Base).unwrap();
        assert_eq!(bases, [("base-10".to_owned(), 10), ("base-11".to_owned(), 11)]);
        assert_eq!(store.list::<u64>(Kind::Kernel).unwrap().len(), 2);
        assert_eq!(store.list::<u64>(Kind::Image).unwrap().len() as u64, KEPT);
        assert_eq!(scene.names("blobs").len() as u64, KEPT + 2);
        assert!(scene.names("tmp").is_empty());
    },
};

const KEPT: u64 = 10;
