//! A disk that is full, and one that may only be read: a small tmpfs, which only root may mount.

use std::io::Write as _;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use smartvm_core::explain::{Code, Explain as _};

use super::*;

struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` for those who may not mount.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        match mount("none", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=256k,mode=0700")) {
            Ok(()) => Some(Self(dir)),
            Err(rustix::io::Errno::PERM) => {
                println!("may not mount: a full and a read-only disk were not tried");
                None
            }
            Err(errno) => panic!("cannot mount a tmpfs: {errno}"),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_named_with_the_ways_out_and_nothing_is_left_behind() {
    let Some(disk) = SmallDisk::new() else { return };
    let store = Store::open(&disk.0.path().join("store")).unwrap();
    let kept = put(&store, b"kept");
    store.put(Kind::Image, "i", &0, &[kept]).unwrap();
    let mut staged = store.stage().unwrap();
    let error = staged.file().write_all(&vec![1; 1 << 20]).unwrap_err();
    let error = staged.failed("write", error);
    assert!(matches!(error, StoreError::Full { .. }) && error.code() == Code::Store, "{error}");
    assert!(error.hint().unwrap().contains("smartvm store gc"));
    // While the unfinished file still takes all room, nothing else can be written either.
    let error = store.put(Kind::Image, "i", &vec!["long"; 10_000], &[kept]).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    let error = store.put_bytes(&[2; 10_000], BlobMode::Data).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(names(&store.dir().join("tmp")).len(), 1);
    drop(staged);
    assert!(names(&store.dir().join("tmp")).is_empty());
    assert_eq!(store.get(Kind::Image, "i").unwrap(), Some(0), "the older record");
    assert_eq!(names(&store.dir().join("blobs")), [kept.hex()]);
    put(&store, &[2; 10_000]);
}

#[tokio::test]
async fn a_read_only_store_can_be_read_and_writing_says_what_to_do() {
    let Some(disk) = SmallDisk::new() else { return };
    let dir = disk.0.path().join("store");
    let store = Store::open(&dir).unwrap();
    let blob = put(&store, b"x");
    store.put(Kind::Image, "i", &0, &[blob]).unwrap();
    drop(store);
    mount_remount(disk.0.path(), MountFlags::RDONLY, c"").unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(fs::read(store.blob(&blob).unwrap()).unwrap(), b"x");
    assert_eq!(store.get(Kind::Image, "i").unwrap(), Some(0));
    assert!(store.verify(VerifyOptions::default(), &Progress::none()).await.unwrap().is_clean());
    assert_eq!(store.df().await.unwrap().blobs.count, 1);
    let errors = [
        store.put(Kind::Image, "j", &0, &[]).unwrap_err(),
        store.put_bytes(b"y", BlobMode::Data).unwrap_err(),
        store.remove(Kind::Image, "i").map(drop).unwrap_err(),
        store.gc(&GcOptions::default(), &Progress::none()).await.map(drop).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
        assert!(error.hint().unwrap().contains("SMARTVM_DATA_DIR"));
    }
}
