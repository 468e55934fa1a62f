use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::*;
use crate::blocking::Abandoned;
use crate::progress::Event;

fn gc(store: &Store, options: &GcOptions) -> GcReport {
    store.anew().collect(options, &Progress::none(), &Abandoned::never()).unwrap()
}

fn gone(report: &GcReport) -> Vec<Digest> {
    report.blobs.iter().map(|blob| blob.digest).collect()
}

/// A handle that holds nothing, in place of one that wrote all there is.
fn afresh(store: Store) -> Store {
    store.anew()
}

/// A base bundle with a kernel of its own, last used so many hours ago.
fn base(store: &Store, name: &str, hours: u64) -> Digest {
    let blob = put(store, name.as_bytes());
    let kernel = RecordId::new(Kind::Kernel, format!("kernel-{name}"));
    store.put(Kind::Kernel, &kernel.name, &0, &[blob]).unwrap();
    store.put_keeping(Kind::Base, name, &0, &[], &[kernel]).unwrap();
    let file = fs::File::open(store.record_path(Kind::Base, name)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).unwrap();
    blob
}

fn bases(store: &Store) -> Vec<String> {
    store.list::<u8>(Kind::Base).unwrap().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn only_what_nothing_names_goes() {
    let (_dir, store) = store();
    let [record, used, pinned, known, garbage] =
        [b"a", b"b", b"c", b"d", b"e"].map(|bytes| put(&store, bytes));
    store.put(Kind::Image, "i", &0, &[record]).unwrap();
    store.pin("snapshot-1", "a snapshot", &[pinned]).unwrap();
    let _use = store.use_blobs("m", &[used]).unwrap();
    // The handle still holds all of them.
    assert_eq!(gone(&gc(&store, &GcOptions::default())), []);
    let store = afresh(store);
    let options = GcOptions { in_use: vec![known], ..GcOptions::default() };
    let dry = gc(&store, &GcOptions { dry_run: true, ..options.clone() });
    assert_eq!(gone(&dry), [garbage]);
    assert!(store.blob_path(&garbage).exists());
    let report = gc(&store, &options);
    assert_eq!(GcReport { dry_run: true, ..report.clone() }, dry);
    assert!(report.disk_bytes > 0);
    assert!(!store.blob_path(&garbage).exists());
    for kept in [record, used, pinned, known] {
        assert!(store.blob_path(&kept).exists());
    }
    assert!(store.unpin("snapshot-1").unwrap());
    let mut after = gone(&gc(&store, &GcOptions::default()));
    after.sort_by_key(|digest| *digest != pinned);
    assert_eq!(after, [pinned, known]);
    assert!(names(&store.dir().join("tmp")).is_empty());
}

#[test]
fn what_was_found_is_held_until_the_handle_is_gone() {
    let (_dir, store) = store();
    let blob = put(&store, b"x");
    let finder = store.anew();
    drop(store);
    assert!(finder.blob(&blob).is_some());
    assert_eq!(gone(&gc(&finder, &GcOptions::default())), []);
    let other = finder.anew();
    drop(finder);
    assert!(names(&other.dir().join("holds")).is_empty());
    assert_eq!(gone(&gc(&other, &GcOptions::default())), [blob]);
}

#[test]
fn what_the_killed_left_goes_and_what_is_being_written_stays() {
    let (_dir, store) = store();
    let mut staged = store.stage().unwrap();
    fs::write(store.dir().join("tmp/4711-dead"), "half").unwrap();
    fs::write(store.dir().join("holds/4711-dead"), Digest::of(b"x").hex()).unwrap();
    fs::write(store.dir().join("uses/dead.json"), "{}").unwrap();
    fs::write(store.dir().join(".version-dead"), "").unwrap();
    fs::write(store.dir().join("locks/free"), "").unwrap();
    let held = store.try_lock("pull", "x").unwrap();
    let report = gc(&store, &GcOptions::default());
    assert_eq!(report.leftovers.count, 4);
    assert_eq!(report.refused, Vec::<String>::new());
    assert_eq!(names(&store.dir().join("locks")), [held.path().file_name().unwrap().to_str().unwrap()]);
    assert_eq!(names(&store.dir().join("tmp")), [staged.path().file_name().unwrap().to_str().unwrap()]);
    assert!(names(&store.dir().join("holds")).is_empty() && names(&store.dir().join("uses")).is_empty());
    assert!(!store.dir().join(".version-dead").exists());
    std::io::Write::write_all(staged.file(), b"whole").unwrap();
    staged.hash_and_commit(Some(Digest::of(b"whole")), BlobMode::Data).unwrap();
}

#[test]
fn a_record_that_cannot_be_understood_keeps_every_blob() {
    let (_dir, store) = store();
    let blob = put(&store, b"x");
    let store = afresh(store);
    let path = store.dir().join("records/image/odd.json");
    fs::write(&path, "{").unwrap();
    let report = gc(&store, &GcOptions::default());
    assert!(report.refused[0].contains("odd.json") && report.blobs.is_empty(), "{report:?}");
    fs::remove_file(&path).unwrap();
    // Of a kind that only a later smartvm knows.
    fs::create_dir(store.dir().join("records/volume")).unwrap();
    let report = gc(&store, &GcOptions::default());
    assert!(report.refused[0].contains("does not know its kind") && report.blobs.is_empty(), "{report:?}");
    fs::remove_dir(store.dir().join("records/volume")).unwrap();
    assert_eq!(gone(&gc(&store, &GcOptions::default())), [blob]);
}

#[test]
fn the_newest_bases_stay_and_each_eviction_is_announced() {
    let (_dir, store) = store();
    for (name, hours) in [("oldest", 40), ("old", 30), ("new", 20), ("newest", 10)] {
        base(&store, name, hours);
    }
    let store = afresh(store);
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let (to, dir) = (Arc::clone(&warnings), store.records_dir(Kind::Base));
    let progress = Progress::new(move |event| {
        let Event::Warning { text } = event else { panic!("{event:?}") };
        assert_eq!(names(&dir).len(), 4, "before anything is evicted");
        to.lock().unwrap().push(text);
    });
    let report = store.collect(&GcOptions::default(), &progress, &Abandoned::never()).unwrap();
    let evicted: Vec<String> = report.evicted.iter().map(ToString::to_string).collect();
    assert_eq!(evicted, ["kernel `kernel-old`", "kernel `kernel-oldest`", "base `old`", "base `oldest`"]);
    assert_eq!((report.blobs.len(), warnings.lock().unwrap().len()), (2, 4));
    assert_eq!(bases(&store), ["new", "newest"]);
    assert_eq!(store.list::<u8>(Kind::Kernel).unwrap().len(), 2);
}

#[test]
fn a_base_that_something_needs_stays_however_old() {
    let (_dir, store) = store();
    let used = base(&store, "used", 90);
    let pinned = base(&store, "pinned", 80);
    base(&store, "chosen", 70);
    base(&store, "old", 60);
    let shared = RecordId::new(Kind::Kernel, "kernel-old");
    let chosen = RecordId::new(Kind::Base, "chosen");
    store.put_keeping(Kind::Choice, "base", &"chosen", &[], &[chosen, shared]).unwrap();
    base(&store, "touched", 95);
    let store = afresh(store);
    store.touch(Kind::Base, "touched");
    store.pin("s", "a snapshot", &[pinned]).unwrap();
    let _use = store.use_blobs("m", &[used]).unwrap();
    let report = gc(&store, &GcOptions { keep_bases: 1, ..GcOptions::default() });
    // Its kernel is somebody else's too.
    assert_eq!(report.evicted, [RecordId::new(Kind::Base, "old")]);
    assert_eq!(bases(&store), ["chosen", "pinned", "touched", "used"]);
    assert_eq!(store.list::<u8>(Kind::Kernel).unwrap().len(), 5);
}

#[test]
fn the_part_of_a_download_stays_for_a_week_and_while_somebody_goes_on_with_it() {
    let (_dir, store) = store();
    let dir = store.dir().join("partial");
    let now = SystemTime::now();
    for (name, age) in [("old", 650_000), ("new", 600_000), ("busy", 650_000)] {
        for name in [name.to_owned(), format!("{name}.json")] {
            fs::write(dir.join(&name), "half").unwrap();
            let file = fs::File::options().write(true).open(dir.join(name)).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        }
    }
    let busy = Flock::try_existing(&dir.join("busy"), Share::Alone).unwrap().unwrap();
    let report = gc(&store, &GcOptions::default());
    assert_eq!(names(&dir), ["busy", "busy.json", "new", "new.json"]);
    assert_eq!((report.leftovers.count, report.leftovers.bytes), (2, 8));
    drop(busy);
    gc(&store, &GcOptions { keep_downloads: Duration::ZERO, ..GcOptions::default() });
    assert!(names(&dir).is_empty());
}

#[tokio::test]
async fn df_counts_shared_blobs_once_and_says_what_gc_would_give() {
    let (_dir, store) = store();
    let shared = put(&store, &[1; 10_000]);
    put(&store, &[2; 20_000]);
    store.put(Kind::Image, "a", &0, &[shared]).unwrap();
    store.put(Kind::Image, "b", &0, &[shared]).unwrap();
    store.put(Kind::Kernel, "k", &0, &[shared]).unwrap();
    let store = afresh(store);
    let report = store.df().await.unwrap();
    let kinds: Vec<_> = report
        .kinds
        .iter()
        .map(|usage| (usage.kind, usage.records, usage.blobs.count, usage.blobs.bytes))
        .collect();
    assert_eq!(kinds, [(Kind::Kernel, 1, 1, 10_000), (Kind::Image, 2, 1, 10_000)]);
    assert_eq!((report.blobs.count, report.blobs.bytes), (2, 30_000));
    assert!((20_000..100_000).contains(&report.reclaimable_bytes), "{report:?}");
    assert!(report.free_bytes > 0);
    assert_eq!(gc(&store, &GcOptions::default()).disk_bytes, report.reclaimable_bytes);
    assert_eq!(store.df().await.unwrap().reclaimable_bytes, 0);
}

#[test]
fn further_names_of_blobs_go_with_the_record_that_they_belong_to() {
    let (_dir, store) = store();
    let [kept, gone] = [b"kept", b"gone"].map(|bytes| put(&store, bytes));
    for (version, blob) in [("v1.2.3", kept), ("v1.2.4", gone)] {
        store.put(Kind::Firecracker, version, &0, &[blob]).unwrap();
        let path = store.name_blob(&blob, version, "firecracker").unwrap();
        assert_eq!(path, store.dir().join("bin").join(version).join("firecracker"));
        assert_eq!(store.name_blob(&blob, version, "firecracker").unwrap(), path);
    }
    let bin = store.dir().join("bin");
    // Killed between the two steps of making a name, and between those of removing a release.
    fs::hard_link(store.blob_path(&kept), bin.join("v1.2.3/jailer.4711-0~")).unwrap();
    store.remove(Kind::Firecracker, "v1.2.4").unwrap();
    let store = afresh(store);
    let dry = gc(&store, &GcOptions { dry_run: true, ..GcOptions::default() });
    assert_eq!((dry.leftovers.count, dry.leftovers.disk_bytes), (2, 0), "their room is the blob's");
    let report = gc(&store, &GcOptions::default());
    assert_eq!((report.leftovers.count, super::collect::gone(&report)), (2, vec![gone]));
    assert_eq!(
        (names(&bin), names(&bin.join("v1.2.3"))),
        (vec!["v1.2.3".to_owned()], vec!["firecracker".to_owned()])
    );
    assert_eq!(fs::read(bin.join("v1.2.3/firecracker")).unwrap(), b"kept");
}

#[test]
fn many_threads_name_a_blob_at_once() {
    let (_dir, store) = store();
    let blob = put(&store, b"x");
    store.put(Kind::Firecracker, "v1.2.3", &0, &[blob]).unwrap();
    let start = std::sync::Barrier::new(8);
    for _ in 0..20 {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    store.name_blob(&blob, "v1.2.3", "firecracker").unwrap();
                });
            }
        });
        let dir = store.dir().join("bin/v1.2.3");
        assert_eq!(names(&dir), ["firecracker"]);
        fs::remove_dir_all(dir).unwrap();
    }
}
