//! Releases from a loopback server that plays the release page.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use smartvm_core::explain::{Code, Explain};
use tar::EntryType;
use tempfile::TempDir;

use super::*;
use crate::download::server::{Reply, Server};
use crate::progress::Progress;
use crate::store::GcOptions;

/// A gzip'd tar of these entries.
pub(crate) fn tgz(entries: &[(&str, &[u8])]) -> Vec<u8> {
    tgz_of(|archive| {
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o755);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
    })
}

fn tgz_of(fill: impl FnOnce(&mut tar::Builder<flate2::write::GzEncoder<Vec<u8>>>)) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    fill(&mut archive);
    archive.into_inner().unwrap().finish().unwrap()
}

/// Something that looks like a program, and differs by `salt`.
pub(crate) fn program(salt: &str) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    bytes.extend_from_slice(salt.as_bytes());
    bytes
}

/// A release as GitHub has it, of programs that only look like ones.
pub(crate) fn release(version: &str) -> Vec<u8> {
    let folder = format!("release-{version}-x86_64");
    tgz(&[
        (&format!("{folder}/LICENSE"), b"free"),
        (&format!("{folder}/firecracker-{version}-x86_64.debug"), &[0; 100_000]),
        (&format!("{folder}/firecracker-{version}-x86_64"), &program(&format!("firecracker {version}"))),
        (&format!("{folder}/jailer-{version}-x86_64"), &program(&format!("jailer {version}"))),
    ])
}

/// The path of an archive below the base, and what `sha256sum` prints for it.
pub(crate) fn published(version: &str, archive: &[u8]) -> [(String, Vec<u8>); 2] {
    let name = format!("firecracker-{version}-x86_64.tgz");
    let sum = format!("{}  {name}\n", Digest::of(archive).hex());
    let path = format!("/releases/download/{version}/{name}");
    [(format!("{path}.sha256.txt"), sum.into_bytes()), (path, archive.to_vec())]
}

struct Page {
    server: Server,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    dir: TempDir,
    store: Store,
}

impl Page {
    /// A release page with these files, whose newest version is 1.13.0.
    async fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let files = Arc::new(Mutex::new(files.into_iter().collect::<BTreeMap<_, _>>()));
        let served = Arc::clone(&files);
        let server = Server::new(move |asked, _| match asked.target.as_str() {
            "/releases/latest" => Reply::redirect("/releases/tag/v1.13.0"),
            "/releases/tag/v1.13.0" => Reply::ok("<html>a page</html>"),
            path => match served.lock().unwrap().get(path) {
                Some(bytes) => Reply::file(asked, bytes, "\"1\""),
                None => Reply::status(404),
            },
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { server, files, dir, store }
    }

    fn releases(&self) -> Releases {
        releases(&self.store, self.server.url("/releases"))
    }

    async fn refused(&self, version: &str) -> (Code, String) {
        let error = self.releases().install(version.parse().unwrap(), false).await.unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.len() > 20), "{error}");
        assert!(self.store.list::<Installed>(Kind::Firecracker).unwrap().is_empty());
        let tmp = std::fs::read_dir(self.store.dir().join("tmp")).unwrap();
        assert_eq!(tmp.count(), 0, "{error}");
        (error.code(), error.to_string())
    }
}

fn releases(store: &Store, base: Url) -> Releases {
    let options =
        download::Options { tries: 1, proxy: download::Proxy::None, ..download::Options::default() };
    let downloader = Downloader::new(options, Progress::none());
    Releases::new(store.clone(), downloader, Options { bases: vec![base], arch: Arch::X86_64 })
}

fn exactly(version: &str) -> Wanted {
    version.parse().unwrap()
}

#[tokio::test]
async fn the_real_programs_come_out_as_they_went_in_and_run() {
    let firecracker = smartvm_lab::firecracker();
    let real =
        [firecracker.clone(), firecracker.with_file_name("jailer")].map(|path| std::fs::read(path).unwrap());
    let archive = tgz(&[
        ("release-v1.12.1-x86_64/firecracker-v1.12.1-x86_64", &real[0]),
        ("release-v1.12.1-x86_64/jailer-v1.12.1-x86_64", &real[1]),
    ]);
    let page = Page::new(published("v1.12.1", &archive)).await;
    let releases = page.releases();
    let plan = releases.plan(exactly("1.12.1")).await.unwrap();
    assert_eq!((plan.installed, plan.size), (false, Some(archive.len() as u64)));
    let installed = releases.install(exactly("1.12.1"), false).await.unwrap();
    assert_eq!(installed.archive, Digest::of(&archive));
    let programs = releases.programs(&installed).unwrap();
    for (path, bytes) in [&programs.firecracker, &programs.jailer].into_iter().zip(&real) {
        assert!(std::fs::read(path).unwrap() == *bytes);
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o555);
    }
    assert!(programs.firecracker.ends_with("bin/v1.12.1/firecracker"), "the jailer goes by the file's name");
    let said = std::process::Command::new(&programs.firecracker).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("Firecracker v"));
    assert_eq!(std::fs::read_dir(page.store.dir().join("partial")).unwrap().count(), 0);

    // Once installed, nobody is asked again.
    let asked = page.server.asked().len();
    assert_eq!(releases.install(exactly("v1.12.1"), false).await.unwrap(), installed);
    assert!(releases.plan(exactly("1.12.1")).await.unwrap().installed);
    assert_eq!(page.server.asked().len(), asked);
    assert_eq!(releases.install(exactly("v1.12.1"), true).await.unwrap(), installed);
    assert!(page.server.asked().len() > asked);
}

#[tokio::test]
async fn versions_live_side_by_side_and_one_is_the_default() {
    let files = ["v1.12.1", "v1.13.0"].map(|version| published(version, &release(version)));
    let page = Page::new(files.into_iter().flatten()).await;
    let releases = page.releases();
    assert_eq!(releases.latest().await.unwrap().to_string(), "v1.13.0");
    releases.install(exactly("1.12.1"), false).await.unwrap();
    releases.install(exactly("latest"), false).await.unwrap();
    let listed = || -> Vec<(String, bool)> {
        let all = releases.list().unwrap();
        all.iter().map(|listed| (listed.installed.version.to_string(), listed.default)).collect()
    };
    assert_eq!(listed(), [("v1.13.0".into(), false), ("v1.12.1".into(), true)]);
    releases.choose("1.13.0".parse().unwrap()).await.unwrap();
    let found = find(Some(Path::new("/x")), Some(&page.store)).unwrap().unwrap();
    assert_eq!(found.by, FoundBy::Caller);
    let chosen = default(&page.store).unwrap().unwrap();
    assert_eq!(
        std::fs::read(releases.programs(&chosen).unwrap().firecracker).unwrap(),
        program("firecracker v1.13.0")
    );

    let error = releases.remove("1.13.0".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Code::InUse);
    assert_eq!(error.to_string(), "Firecracker v1.13.0 is the default version, and others are installed");
    let error = releases.choose("1.9.0".parse().unwrap()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Code::NotFound, "Firecracker v1.9.0 is not installed")
    );
    releases.remove("1.12.1".parse().unwrap()).await.unwrap();
    assert_eq!(listed(), [("v1.13.0".into(), true)]);
    assert!(!page.store.dir().join("bin/v1.12.1").exists());
    page.store.anew().gc(&GcOptions::default(), &Progress::none()).await.unwrap();
    drop(page.store.blob(&chosen.firecracker).unwrap());
    releases.remove("1.13.0".parse().unwrap()).await.unwrap();
    assert_eq!((listed(), default(&page.store).unwrap()), (vec![], None));
    assert!(matches!(
        releases.remove("1.13.0".parse().unwrap()).await,
        Err(ReleaseError::NotInstalled { .. })
    ));
}

#[tokio::test]
async fn a_default_that_is_missing_is_told_and_another_can_be_chosen() {
    let files = ["v1.12.1", "v1.13.0"].map(|version| published(version, &release(version)));
    let page = Page::new(files.into_iter().flatten()).await;
    let releases = page.releases();
    releases.install(exactly("1.12.1"), false).await.unwrap();
    page.store.remove(Kind::Firecracker, "v1.12.1").unwrap();
    // Whatever the environment of the tests names.
    let error = find::find_in(None, Some(&page.store), |_| None).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(error.to_string(), "Firecracker v1.12.1 is the default version, but is not in the store");
    // What is installed next is the default.
    releases.install(exactly("1.13.0"), false).await.unwrap();
    assert_eq!(default(&page.store).unwrap().unwrap().version.to_string(), "v1.13.0");
}

#[tokio::test]
async fn what_a_machine_runs_is_not_removed() {
    let page = Page::new(published("v1.12.1", &release("v1.12.1"))).await;
    let releases = page.releases();
    let installed = releases.install(exactly("1.12.1"), false).await.unwrap();
    let programs = releases.programs(&installed).unwrap();
    let blob = blob_at(&page.store, &programs.firecracker).unwrap();
    assert_eq!(blob, Some(installed.firecracker));
    assert_eq!(blob_at(&page.store, &programs.jailer).unwrap(), None);
    let used = page.store.use_blobs("runs", &[installed.firecracker]).unwrap();
    let error = releases.remove(installed.version).await.unwrap_err();
    assert_eq!(error.code(), Code::InUse);
    assert_eq!(error.to_string(), "Firecracker v1.12.1 is in use by the machine `runs`");
    drop(used);
    releases.remove(installed.version).await.unwrap();
    assert_eq!(releases.list().unwrap(), []);
}

#[tokio::test]
async fn the_default_and_a_removal_do_not_cross() {
    let files = ["v1.12.1", "v1.13.0"].map(|version| published(version, &release(version)));
    let page = Page::new(files.into_iter().flatten()).await;
    let releases = page.releases();
    let (old, new) = ("1.12.1".parse().unwrap(), "1.13.0".parse().unwrap());
    for _ in 0..20 {
        releases.install(exactly("1.12.1"), false).await.unwrap();
        releases.install(exactly("1.13.0"), false).await.unwrap();
        releases.choose(old).await.unwrap();
        let (chosen, removed) = tokio::join!(releases.choose(new), releases.remove(new));
        assert!(chosen.is_err() || removed.is_err(), "both did it");
        assert!(default(&page.store).unwrap().is_some());
    }
}

#[tokio::test]
async fn what_is_not_what_was_published_is_not_installed() {
    let good = release("v1.12.1");
    let [sum, archive] = published("v1.12.1", &good);
    for (files, code, part) in [
        (vec![], Code::NotFound, "there is no published SHA-256 of Firecracker v1.12.1"),
        (vec![archive.clone()], Code::NotFound, "there is no published SHA-256 of Firecracker v1.12.1"),
        (vec![sum.clone()], Code::NotFound, "v1.12.1-x86_64.tgz does not exist (HTTP 404)"),
        (
            vec![sum.clone(), (archive.0.clone(), release("v1.12.2"))],
            Code::DigestMismatch,
            "has the wrong content",
        ),
        (
            vec![sum.clone(), (archive.0.clone(), good[..good.len() / 2].to_vec())],
            Code::DigestMismatch,
            "has the wrong content",
        ),
        (
            vec![(sum.0.clone(), b"not a digest".to_vec()), archive.clone()],
            Code::DownloadFailed,
            "holds no SHA-256",
        ),
        (
            vec![
                (sum.0.clone(), format!("{}  another.tgz\n", Digest::of(&good).hex()).into_bytes()),
                archive.clone(),
            ],
            Code::DownloadFailed,
            "holds no SHA-256",
        ),
        (
            vec![(sum.0.clone(), vec![b'a'; 1 << 20]), archive.clone()],
            Code::DownloadFailed,
            "larger than the 4096 bytes",
        ),
    ] {
        let page = Page::new(files).await;
        let (got, text) = page.refused("1.12.1").await;
        assert_eq!(got, code, "{text}");
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn hostile_archives_are_refused_whatever_their_digest() {
    let (good, folder) = (program("x"), "release-v1.12.1-x86_64");
    let (firecracker, jailer) =
        (format!("{folder}/firecracker-v1.12.1-x86_64"), format!("{folder}/jailer-v1.12.1-x86_64"));
    let link = |kind, name: &str, to: &str| {
        tgz_of(|archive| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            archive.append_link(&mut header, name, to).unwrap();
        })
    };
    let escaping = tgz_of(|archive| {
        let mut header = tar::Header::new_gnu();
        let name = b"../../etc/cron.d/x";
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(0);
        header.set_cksum();
        archive.append(&header, std::io::empty()).unwrap();
    });
    let lying = tgz_of(|archive| {
        let mut header = tar::Header::new_gnu();
        header.set_path(&firecracker).unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        archive.append(&header, &good[..]).unwrap();
    });
    let short = tgz_of(|archive| {
        let mut header = tar::Header::new_gnu();
        header.set_path(&firecracker).unwrap();
        header.set_size(100_000);
        header.set_cksum();
        archive.append(&header, &good[..]).unwrap();
    });
    let many = tgz_of(|archive| {
        for index in 0..2000 {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            archive.append_data(&mut header, format!("{index}"), std::io::empty()).unwrap();
        }
    });
    // A name that somebody who reads it must take into memory first, however long it is.
    let named = tgz_of(|archive| {
        for (path, kind, bytes) in [
            ("././@LongLink", EntryType::GNULongName, firecracker.as_bytes()),
            ("other", EntryType::Regular, &good),
            (&jailer, EntryType::Regular, &good),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_path(path).unwrap();
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            archive.append(&header, bytes).unwrap();
        }
    });
    let mut arm = good.clone();
    arm[18] = 183;
    let cut = release("v1.12.1");
    for (archive, part) in [
        (tgz(&[]), "it has no file `firecracker-v1.12.1-x86_64`"),
        (named, "it has no file `firecracker-v1.12.1-x86_64`"),
        (tgz(&[(&firecracker, &good)]), "it has no file `jailer-v1.12.1-x86_64`"),
        (tgz(&[("release-v1.13.0-x86_64/firecracker-v1.13.0-x86_64", &good)]), "it has no file"),
        (
            tgz(&[(&firecracker, &good), (&firecracker, &good), (&jailer, &good)]),
            "it has two files `firecracker`",
        ),
        (tgz(&[(&firecracker, b"#!/bin/sh\nrm -rf /\n")]), "is not a program for x86_64"),
        (tgz(&[(&firecracker, &arm)]), "is not a program for x86_64"),
        (link(EntryType::Symlink, &firecracker, "/bin/sh"), "is not a regular file"),
        (link(EntryType::Link, &firecracker, "/bin/sh"), "is not a regular file"),
        (escaping, "leads out of it"),
        (lying, "bytes"),
        (short, "ends early"),
        (many, "more than 1000 entries"),
        (b"<html>not found</html>".to_vec(), "it cannot be read"),
        (cut[..cut.len() - 200].to_vec(), "cannot be read"),
    ] {
        let page = Page::new(published("v1.12.1", &archive)).await;
        let (code, text) = page.refused("1.12.1").await;
        assert_eq!(code, Code::InvalidImage, "{text}");
        assert!(
            text.starts_with("the archive of Firecracker v1.12.1 is not accepted: ") && text.contains(part),
            "{text}"
        );
    }
}

#[tokio::test]
async fn an_archive_on_this_host_needs_its_name_and_its_digest() {
    let page = Page::new([]).await;
    let (releases, bytes) = (page.releases(), release("v1.12.1"));
    let path = page.dir.path().join("firecracker-v1.12.1-x86_64.tgz");
    std::fs::write(&path, &bytes).unwrap();
    let error = releases.import(&path, Digest::of(b"other")).await.unwrap_err();
    assert_eq!(error.code(), Code::DigestMismatch);
    let installed = releases.import(&path, Digest::of(&bytes)).await.unwrap();
    assert_eq!(installed.version.to_string(), "v1.12.1");
    assert!(installed.source.starts_with("file:///"));
    let other = page.dir.path().join("firecracker-v1.12.1-aarch64.tgz");
    let error = releases.import(&other, Digest::of(&bytes)).await.unwrap_err();
    assert!(error.to_string().contains("is not named like a Firecracker release for x86_64"), "{error}");
    assert_eq!(page.server.asked().len(), 0);
}

#[tokio::test]
async fn a_folder_is_a_mirror_too() {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in published("v1.12.1", &release("v1.12.1")) {
        let path = dir.path().join(&path[1..]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    std::fs::write(dir.path().join("releases/latest"), "1.12.1\n").unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let base = download::place(dir.path().join("releases").to_str().unwrap()).unwrap();
    let releases = releases(&store, base);
    let installed = releases.install(Wanted::Latest, false).await.unwrap();
    assert_eq!(installed.version.to_string(), "v1.12.1");
}

#[tokio::test]
async fn a_page_that_names_no_newest_version_is_told_so() {
    for reply in ["<html>welcome</html>".to_owned(), "x".repeat(10_000)] {
        let server = Server::new(move |_, _| Reply::ok(reply.clone())).await;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let error = releases(&store, server.url("/releases/")).latest().await.unwrap_err();
        assert!(matches!(error, ReleaseError::NoLatest { .. }), "{error}");
        assert!(error.to_string().contains("/releases/latest does not say which"), "{error}");
    }
}

#[tokio::test]
async fn a_name_of_a_blob_that_was_replaced_is_made_again() {
    let page = Page::new(published("v1.12.1", &release("v1.12.1"))).await;
    let installed = page.releases().install(exactly("1.12.1"), false).await.unwrap();
    let path = page.releases().programs(&installed).unwrap().firecracker;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "damaged").unwrap();
    assert_eq!(page.releases().programs(&installed).unwrap().firecracker, path);
    assert_eq!(std::fs::read(&path).unwrap(), program("firecracker v1.12.1"));
    // A blob that is lost is fetched again.
    std::fs::remove_file(page.store.blob(&installed.jailer).unwrap()).unwrap();
    let error = page.releases().programs(&installed).unwrap_err();
    assert_eq!(error.code(), Code::Store);
    page.files.lock().unwrap().remove("nothing");
    page.releases().install(exactly("1.12.1"), false).await.unwrap();
    assert!(page.releases().programs(&installed).unwrap().jailer.is_file());
}

#[test]
fn versions_and_checksums_are_read_strictly() {
    for (text, shown) in [("v1.12.1", "v1.12.1"), ("1.7.0", "v1.7.0"), ("v10.0.99999", "v10.0.99999")] {
        assert_eq!(text.parse::<Version>().unwrap().to_string(), shown);
    }
    for bad in ["", "v", "1.2", "1.2.3.4", "v1.2.x", "1.2.3-dev", "+1.2.3", "1..3", "1.2.123456", "../1.2.3"]
    {
        assert!(bad.parse::<Version>().is_err(), "{bad}");
    }
    let hex = Digest::of(b"x").hex();
    let read = |text: &str| read_checksum(text.as_bytes(), "a.tgz");
    assert_eq!(read(&format!("{hex}  a.tgz\n")), Some(Digest::of(b"x")));
    assert_eq!(read(&format!("{hex} *build/a.tgz")), Some(Digest::of(b"x")));
    assert_eq!(read(&hex), Some(Digest::of(b"x")));
    for bad in ["", "a.tgz", &hex[1..], &format!("{hex}  b.tgz")] {
        assert_eq!(read(bad), None, "{bad}");
    }
    let base: Url = "https://h/a/?token=x".parse().unwrap();
    assert_eq!(below(&base, &["b", "c d"]).as_str(), "https://h/a/b/c%20d");
    assert_eq!(version_in("firecracker-v1.12.1-x86_64.tgz", Arch::X86_64).unwrap().to_string(), "v1.12.1");
    for bad in
        ["firecracker-1.12.1-x86_64.tgz", "firecracker-v1.12.1-aarch64.tgz", "jailer-v1.12.1-x86_64.tgz"]
    {
        assert_eq!(version_in(bad, Arch::X86_64), None, "{bad}");
    }
}
