use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_blob_appears_whole_and_read_only_and_nothing_else_stays() {
    let (_dir, store) = store();
    let digest = Digest::of(b"hello");
    let mut staged = store.stage().unwrap();
    staged.write_all(b"hello").unwrap();
    assert_eq!(store.blob(&digest), None);
    assert_eq!(staged.hash_and_commit(Some(digest), BlobMode::Data).unwrap(), digest);
    let path = store.blob(&digest).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(mode(&path), 0o444);
    assert_eq!(mode(store.dir()), 0o700);
    assert_eq!(mode(&store.dir().join("blobs")), 0o700);
    assert_eq!(names(&store.dir().join("tmp")), Vec::<String>::new());
}

#[test]
fn what_is_not_what_was_promised_leaves_nothing() {
    let (_dir, store) = store();
    let mut staged = store.stage().unwrap();
    staged.write_all(b"hello").unwrap();
    let error = staged.hash_and_commit(Some(Digest::of(b"other")), BlobMode::Data).unwrap_err();
    assert!(matches!(error, StoreError::Mismatch { size: 5, .. }), "{error}");
    assert!(names(&store.dir().join("tmp")).is_empty());
    assert!(names(&store.dir().join("blobs")).is_empty());
}

#[test]
fn a_blob_that_is_there_stays_and_becomes_a_program_when_one_is_wanted() {
    use std::os::unix::fs::MetadataExt as _;
    let (_dir, store) = store();
    let digest = store.put_bytes(b"program", BlobMode::Data).unwrap();
    let path = store.blob(&digest).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    store.put_bytes(b"program", BlobMode::Executable).unwrap();
    assert_eq!((fs::metadata(&path).unwrap().ino(), mode(&path)), (inode, 0o555));
    store.put_bytes(b"program", BlobMode::Data).unwrap();
    assert_eq!(mode(&path), 0o555);
    assert!(names(&store.dir().join("tmp")).is_empty());
}

#[test]
fn records_come_back_replace_each_other_and_go() {
    let (_dir, store) = store();
    let name = "docker.io/library/debian:12";
    let blob = store.put_bytes(b"x", BlobMode::Data).unwrap();
    store.put(Kind::Image, name, &vec![1, 2], &[blob]).unwrap();
    store.put(Kind::Image, name, &vec![3], &[blob]).unwrap();
    store.put(Kind::Image, "other", &vec![4], &[]).unwrap();
    let record = store.record::<Vec<u8>>(Kind::Image, name).unwrap().unwrap();
    assert_eq!((record.value, record.blobs), (vec![3], vec![blob]));
    let all: Vec<(String, Vec<u8>)> = store.list(Kind::Image).unwrap();
    assert_eq!(all, [(name.to_owned(), vec![3]), ("other".to_owned(), vec![4])]);
    assert!(store.remove(Kind::Image, name).unwrap());
    assert!(!store.remove(Kind::Image, name).unwrap());
    assert_eq!(store.get::<Vec<u8>>(Kind::Image, name).unwrap(), None);
    assert!(names(&store.dir().join("tmp")).is_empty());
}

#[test]
fn a_record_of_a_blob_that_is_not_there_is_refused() {
    let (_dir, store) = store();
    let error = store.put(Kind::Kernel, "k", &1, &[Digest::of(b"gone")]).unwrap_err();
    assert!(error.to_string().starts_with("kernel `k` needs sha256:"), "{error}");
    assert_eq!(store.get::<u8>(Kind::Kernel, "k").unwrap(), None);
}

#[test]
fn records_that_are_none_are_explained_and_stay() {
    let (_dir, store) = store();
    store.put(Kind::Image, "good", &1, &[]).unwrap();
    let dir = store.dir().join("records/image");
    let good = fs::read_to_string(dir.join("good.json")).unwrap();
    fs::write(dir.join("moved.json"), &good).unwrap();
    fs::write(dir.join("newer.json"), good.replace("\"schema\": 1", "\"schema\": 7")).unwrap();
    fs::write(dir.join("torn.json"), &good[..good.len() / 2]).unwrap();
    fs::write(dir.join("binary.json"), [0xff, 0, 1]).unwrap();
    fs::create_dir(dir.join("folder.json")).unwrap();
    let listing = store.records::<u8>(Kind::Image).unwrap();
    assert_eq!(listing.records.len(), 1);
    let texts: Vec<String> = listing.damaged.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 5, "{texts:#?}");
    assert!(
        texts.iter().any(|text| text.contains("moved.json") && text.contains("image `good`")),
        "{texts:#?}"
    );
    assert!(texts.iter().any(|text| text.contains("newer.json") && text.contains("schema 7")), "{texts:#?}");
    assert!(matches!(store.get::<u8>(Kind::Image, "torn"), Err(StoreError::BadRecord { .. })));
    // Of another type than asked for.
    assert!(matches!(store.get::<String>(Kind::Image, "good"), Err(StoreError::BadRecord { .. })));
    assert_eq!(names(&dir).len(), 6);
}

#[test]
fn a_touch_changes_when_a_record_was_last_used() {
    let (_dir, store) = store();
    store.put(Kind::Base, "b", &1, &[]).unwrap();
    let path = store.dir().join("records/base/b.json");
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let before = store.record::<u8>(Kind::Base, "b").unwrap().unwrap();
    assert_eq!(before.last_used, old);
    store.touch(Kind::Base, "b");
    let after = store.record::<u8>(Kind::Base, "b").unwrap().unwrap();
    assert!(after.last_used > before.last_used);
    assert_eq!(after.created, before.created);
}

#[test]
fn a_use_ends_with_its_guard_and_its_name_is_free_again() {
    let (_dir, store) = store();
    let blob = store.put_bytes(b"x", BlobMode::Data).unwrap();
    let guard = store.use_blobs("web-1", &[blob]).unwrap();
    assert_eq!(fs::read(guard.path(&blob)).unwrap(), b"x");
    let users = store.users_of(&[blob]).unwrap();
    assert_eq!(users, [LiveUse { id: "web-1".to_owned(), pid: std::process::id(), blobs: vec![blob] }]);
    let error = store.use_blobs("web-1", &[blob]).unwrap_err();
    assert!(error.to_string().contains("process ") && error.to_string().contains("web-1"), "{error}");
    drop(guard);
    assert!(store.live_uses().unwrap().is_empty());
    drop(store.use_blobs("web-1", &[blob]).unwrap());
    assert!(names(&store.dir().join("uses")).is_empty());
}

#[test]
fn a_folder_of_something_else_and_a_newer_store_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "").unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("is not a store") && error.contains("thesis.tex"), "{error}");
    assert_eq!(names(dir.path()), ["thesis.tex"]);

    let (_dir, store) = store();
    fs::write(store.dir().join("version"), "2\n").unwrap();
    let error = Store::open(store.dir()).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 2, .. }), "{error}");
    for bad in ["", "one", "0", "-1"] {
        fs::write(store.dir().join("version"), bad).unwrap();
        assert!(matches!(Store::open(store.dir()), Err(StoreError::BadVersion { .. })), "{bad}");
    }
}

mod parsing {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_name_and_value_come_back(name in any::<String>(), value in any::<Vec<String>>()) {
            let (_dir, store) = store();
            let blob = put(&store, b"x");
            let keeps = [RecordId::new(Kind::Tag, name.clone())];
            store.put_keeping(Kind::Image, &name, &value, &[blob], &keeps).unwrap();
            let record = store.record::<Vec<String>>(Kind::Image, &name).unwrap().unwrap();
            prop_assert_eq!(&record.id.name, &name);
            prop_assert_eq!(record.value, value);
            prop_assert_eq!(record.blobs, [blob]);
            prop_assert_eq!(record.keeps, keeps);
        }

        #[test]
        fn a_file_of_any_bytes_is_explained(
            bytes in any::<Vec<u8>>(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        ) {
            let (_dir, store) = store();
            store.put(Kind::Image, "it", &"value", &[]).unwrap();
            let path = store.dir().join("records/image/it.json");
            let mut good = fs::read(&path).unwrap();
            let cut = cut.index(good.len());
            for content in [bytes.clone(), good[..cut].to_vec(), {
                let at = at.index(good.len());
                good.splice(at..at, bytes.iter().copied());
                good
            }] {
                fs::write(&path, content).unwrap();
                match store.get::<String>(Kind::Image, "it") {
                    Ok(value) => prop_assert!(value.is_some()),
                    Err(error) => prop_assert!(matches!(error, StoreError::BadRecord { .. }), "{error}"),
                }
                prop_assert!(path.exists());
            }
        }
    }
}
