use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::blocking::Abandoned;

fn damage(store: &Store, digest: &Digest) {
    let path = store.blob_path(digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "other bytes").unwrap();
}

async fn verify(store: &Store, repair: bool) -> VerifyReport {
    store.verify(VerifyOptions { repair }, &Progress::none()).await.unwrap()
}

#[tokio::test]
async fn a_whole_store_is_clean_though_the_killed_left_something() {
    let (_dir, store) = store();
    let blob = put(&store, b"x");
    store.put(Kind::Image, "i", &0, &[blob]).unwrap();
    fs::write(store.dir().join("tmp/dead"), "half").unwrap();
    let report = verify(&store, false).await;
    assert_eq!(report, VerifyReport { blobs: 1, bytes: 1, records: 1, findings: Vec::new() });
}

#[tokio::test]
async fn every_damage_is_found_and_a_repair_moves_it_away_and_says_what_to_fetch() {
    let (_dir, store) = store();
    let [bad, missing, fine] = [b"a", b"b", b"c"].map(|bytes| put(&store, bytes));
    store.put(Kind::Image, "i", &0, &[bad, fine]).unwrap();
    store.put(Kind::Kernel, "k", &0, &[missing, fine]).unwrap();
    damage(&store, &bad);
    fs::remove_file(store.blob_path(&missing)).unwrap();
    fs::write(store.dir().join("blobs/readme.txt"), "").unwrap();
    fs::write(store.dir().join("records/image/torn.json"), "{\"schema\"").unwrap();

    let report = verify(&store, false).await;
    let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 5, "{texts:#?}");
    let got = Digest::of(b"other bytes");
    assert!(texts[0].ends_with(&format!("its 11 bytes have the digest {got}")), "{texts:#?}");
    assert!(texts[1].ends_with("readme.txt` is no blob"), "{texts:#?}");
    assert_eq!(texts[2], format!("kernel `k` lacks {missing}: fetch or import it again"));
    assert_eq!(texts[3], format!("image `i` lacks {bad}: fetch or import it again"));
    assert!(texts[4].contains("torn.json"), "{texts:#?}");
    assert!(store.blob_path(&bad).exists(), "only a repair moves");

    let repaired = verify(&store, true).await;
    let places = |finding: &Finding| match finding {
        Finding::BadBlob { moved_to, .. }
        | Finding::BadRecord { moved_to, .. }
        | Finding::Foreign { moved_to, .. } => moved_to.clone(),
        Finding::MissingBlob { .. } => None,
    };
    let moved: Vec<PathBuf> = repaired.findings.iter().filter_map(places).collect();
    assert_eq!(moved.len(), 3);
    assert!(moved.iter().all(|path| path.exists()));
    assert_eq!(store.blob(&bad), None);

    // What is to be fetched again is all that is left, and fetching it makes the store whole.
    let after = verify(&store, false).await;
    assert!(after.findings.iter().all(|finding| matches!(finding, Finding::MissingBlob { .. })), "{after:?}");
    assert_eq!(after.findings.len(), 2);
    put(&store, b"a");
    put(&store, b"b");
    assert!(verify(&store, false).await.is_clean());
    // The same damage again finds another name.
    damage(&store, &bad);
    assert_eq!(verify(&store, true).await.findings.len(), 2);
    assert_eq!(names(&store.dir().join("damaged")).len(), 4);
}

#[test]
fn a_blob_that_may_not_be_opened_is_one_finding_among_others() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let (_dir, store) = store();
    let [closed, bad, fine] = [b"a", b"b", b"c"].map(|bytes| put(&store, bytes));
    store.put(Kind::Image, "i", &0, &[closed, fine]).unwrap();
    damage(&store, &bad);
    fs::set_permissions(store.blob_path(&closed), fs::Permissions::from_mode(0o000)).unwrap();
    let look = |repair| {
        // On a thread of its own, that gives up what lets root open everything.
        std::thread::scope(|scope| {
            let look = scope.spawn(|| {
                let mut sets = capabilities(None).unwrap();
                sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
                set_capabilities(None, sets).unwrap();
                store.look_through(VerifyOptions { repair }, &Progress::none(), &Abandoned::never()).unwrap()
            });
            look.join().unwrap()
        })
    };
    let report = look(false);
    assert_eq!((report.blobs, report.findings.len()), (3, 3), "{report:?}");
    let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let denied = format!("blob {closed}: it cannot be opened: Permission denied (os error 13)");
    assert!(texts.contains(&denied), "{texts:#?}");
    assert!(texts.contains(&format!("image `i` lacks {closed}: fetch or import it again")), "{texts:#?}");
    look(true);
    assert_eq!(store.blob(&closed), None, "a repair moves it away");
    put(&store, b"a");
    assert!(look(false).is_clean());
}

#[tokio::test]
async fn an_abandoned_verification_ends() {
    let (_dir, store) = store();
    put(&store, &vec![7; 1 << 20]);
    let abandoned = crate::blocking::blocking(|abandoned| abandoned.clone());
    // Dropping a future that has ended marks it abandoned as well.
    let abandoned = abandoned.await;
    let error = store.look_through(VerifyOptions::default(), &Progress::none(), &abandoned).unwrap_err();
    assert!(matches!(error, StoreError::Abandoned), "{error}");
}
