//! Bundles from a loopback server that plays the CI's bucket and the release page.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;
use smartvm_core::explain::{Code, Explain};
use tempfile::TempDir;

use super::*;
use crate::download::Proxy;
use crate::download::server::{Asked, Reply, Server};
use crate::image::{self as images, RootKind};
use crate::kernel::pack;
use crate::progress::{Event, Progress};
use crate::release;
use crate::store::VerifyOptions;

/// The files of a bucket, by key.
pub(crate) type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// A bucket at `/bucket`, which lists two keys per answer, and a release page at `/releases` whose newest is 1.15.1.
pub(crate) fn answer(files: &Files, asked: &Asked) -> Reply {
    let target: Url = format!("http://x{}", asked.target).parse().unwrap();
    match target.path() {
        "/releases/latest" => Reply::redirect("/releases/tag/v1.15.1"),
        "/releases/tag/v1.15.1" => Reply::ok("a page"),
        "/bucket/" => list(&files.lock().unwrap(), &target),
        path => match path.strip_prefix("/bucket/").and_then(|key| files.lock().unwrap().get(key).cloned()) {
            Some(bytes) => Reply::file(asked, &bytes, "\"1\""),
            None => Reply::status(404),
        },
    }
}

fn list(files: &BTreeMap<String, Vec<u8>>, target: &Url) -> Reply {
    let query: BTreeMap<_, _> = target.query_pairs().collect();
    assert_eq!(query["list-type"], "2");
    let prefix = query["prefix"].as_ref();
    let mut entries: BTreeMap<String, String> = BTreeMap::new();
    for (key, bytes) in files.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix)) {
        match key[prefix.len()..].split_once('/') {
            Some((folder, _)) => {
                let folder = format!("{prefix}{folder}/");
                let entry = format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>");
                entries.insert(folder, entry);
            }
            None => {
                let size = bytes.len();
                entries
                    .insert(key.clone(), format!("<Contents><Key>{key}</Key><Size>{size}</Size></Contents>"));
            }
        }
    }
    let after = query.get("continuation-token").map(|token| token.to_string()).unwrap_or_default();
    let mut left: Vec<_> = entries.into_iter().filter(|(key, _)| *key > after).collect();
    let more = left.len() > 2;
    left.truncate(2);
    let next = match left.last() {
        Some((last, _)) if more => format!("<NextContinuationToken>{last}</NextContinuationToken>"),
        _ => String::new(),
    };
    let entries: String = left.into_iter().map(|(_, entry)| entry).collect();
    Reply::ok(format!(
        "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\">{entries}<IsTruncated>{more}</IsTruncated>{next}</ListBucketResult>"
    ))
}

pub(crate) fn squashfs(salt: &str) -> Vec<u8> {
    let mut bytes = b"hsqs".to_vec();
    bytes.resize(4096, 0);
    bytes.extend_from_slice(salt.as_bytes());
    bytes
}

pub(crate) fn ext4(salt: &str) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    bytes[1128..1144].copy_from_slice(&std::array::from_fn::<u8, 16, _>(|at| at as u8 + 1));
    bytes.extend_from_slice(salt.as_bytes());
    bytes
}

struct Ci {
    server: Server,
    files: Files,
    dir: TempDir,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Ci {
    async fn new<const N: usize>(files: [(&str, Vec<u8>); N]) -> Self {
        let files: BTreeMap<_, _> = files.into_iter().map(|(key, bytes)| (key.to_owned(), bytes)).collect();
        let files: Files = Arc::new(Mutex::new(files));
        let served = Arc::clone(&files);
        let server = Server::new(move |asked, _| answer(&served, asked)).await;
        Self { server, files, dir: tempfile::tempdir().unwrap(), events: Arc::default() }
    }

    /// A bucket as it was in summer 2026, in small.
    async fn summer() -> Self {
        let kernel = pack::kernel;
        Self::new([
            ("firecracker-ci/20260717-5ac3f5ffdcd7-0/x86_64/vmlinux-6.1.176", kernel("6.1.176")),
            ("firecracker-ci/20260717-5ac3f5ffdcd7-0/x86_64/vmlinux-6.18.9", kernel("6.18.9")),
            ("firecracker-ci/20260717-5ac3f5ffdcd7-0/x86_64/vmlinux-6.18.36", kernel("6.18.36")),
            ("firecracker-ci/20260717-5ac3f5ffdcd7-0/x86_64/vmlinux-6.18.36.config", b"CONFIG".to_vec()),
            ("firecracker-ci/20260717-5ac3f5ffdcd7-0/x86_64/vmlinux-6.18.99-no-acpi", b"no".to_vec()),
            ("firecracker-ci/20260717-5ac3f5ffdcd7-0/x86_64/debug/vmlinux-6.19.1", b"no".to_vec()),
            ("firecracker-ci/20260717-5ac3f5ffdcd7-0/x86_64/ubuntu-24.04.squashfs", squashfs("new")),
            ("firecracker-ci/20260717-5ac3f5ffdcd7-0/x86_64/ubuntu-26.04.ext4", ext4("new")),
            ("firecracker-ci/20260717-5ac3f5ffdcd7-0/x86_64/amazonlinux-2023.squashfs", squashfs("other")),
            // The newest is still being filled.
            ("firecracker-ci/20260801-aaaaaaaaaaaa-0/x86_64/vmlinux-6.18.40", kernel("6.18.40")),
            ("firecracker-ci/v1.15/x86_64/vmlinux-6.1.155", kernel("6.1.155")),
            ("firecracker-ci/v1.15/x86_64/ubuntu-24.04.squashfs", squashfs("1.15")),
            ("firecracker-ci/v1.7/x86_64/vmlinux-5.10.217", kernel("5.10.217")),
            ("firecracker-ci/v1.7/x86_64/vmlinux-6.1.90", kernel("6.1.90")),
            ("firecracker-ci/v1.7/x86_64/ubuntu-22.04.ext4", ext4("old")),
            ("firecracker-ci/vTest-somebody/x86_64/vmlinux-9.9.9", kernel("9.9.9")),
        ])
        .await
    }

    /// With a handle of its own on the store, as a command has.
    fn images(&self) -> BaseImages {
        let events = Arc::clone(&self.events);
        let progress = Progress::new(move |event| events.lock().unwrap().push(event));
        let options = download::Options { tries: 1, proxy: Proxy::None, ..download::Options::default() };
        let downloader = Downloader::new(options, progress);
        let store = Store::open(&self.dir.path().join("store")).unwrap();
        let arch = Arch::X86_64;
        let releases = release::Options { bases: vec![self.server.url("/releases")], arch };
        let releases = Releases::new(store.clone(), downloader.clone(), releases);
        let bases = vec![self.server.url("/bucket")];
        let options = Options { arch, bases, manifest: None, keep: 2 };
        BaseImages::new(store, downloader, releases, options)
    }

    fn told(&self, part: &str) -> bool {
        let events = self.events.lock().unwrap();
        events.iter().any(|event| match event {
            Event::Note { text } | Event::Warning { text } => text.contains(part),
            _ => false,
        })
    }

    /// Writes a manifest beside its kernel and root, and gives its place.
    fn manifest(&self, id: &str, change: impl FnOnce(&mut serde_json::Value)) -> Wanted {
        let dir = self.dir.path().join(id);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("vmlinux"), pack::kernel(&format!("6.6.1-{id}"))).unwrap();
        std::fs::write(dir.join("root"), squashfs(id)).unwrap();
        let mut manifest = json!({
            "schemaVersion": 1, "bundleId": id, "name": id, "arch": "x86_64", "firecrackerVersion": "v1.15.1",
            "rootfsType": "squashfs", "rootfsIsReadOnly": true, "bootArgs": "console=ttyS0 our=own",
            "kernel": { "path": "vmlinux" }, "rootfs": { "path": "root", "fileName": "root.squashfs" },
        });
        change(&mut manifest);
        let path = dir.join("manifest.json");
        std::fs::write(&path, manifest.to_string()).unwrap();
        let manifest = Some(download::place(path.to_str().unwrap()).unwrap());
        Wanted { preset: Preset::Hosted, manifest, ..Wanted::default() }
    }

    async fn refused(&self, wanted: &Wanted) -> (Code, String) {
        let images = self.images();
        let error = images.ensure(wanted).await.unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.len() > 15), "{error}");
        assert!(images.list().unwrap().is_empty());
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        (error.code(), format!("{error}{cause}"))
    }
}

fn preset(preset: Preset) -> Wanted {
    Wanted { preset, ..Wanted::default() }
}

#[tokio::test]
async fn latest_is_the_newest_train_that_has_everything() {
    let place = Ci::summer().await;
    let images = place.images();
    let resolved = images.resolve(&preset(Preset::Latest)).await.unwrap();
    assert_eq!(resolved.ci_version.as_deref(), Some("20260717-5ac3f5ffdcd7-0"));
    assert_eq!(resolved.firecracker_version.to_string(), "v1.15.1");
    assert_eq!(resolved.bundle_id, "ci-20260717-5ac3f5ffdcd7-0-x86_64-6.18.36-ubuntu-24.04.squashfs");
    assert_eq!((resolved.rootfs_type, resolved.rootfs_is_read_only), (RootfsType::Squashfs, true));
    let size = pack::kernel("6.18.36").len() + squashfs("new").len();
    assert_eq!(resolved.size(), Some(size as u64));

    let image = images.ensure(&preset(Preset::Latest)).await.unwrap();
    let bytes = |digest: &Digest| std::fs::read(images.store.blob(digest).unwrap()).unwrap();
    assert_eq!(bytes(&image.rootfs), squashfs("new"));
    assert_eq!(image.kernel_sha256, Digest::of(&pack::kernel("6.18.36")));
    let kernel = kernel::inspect(&images.store, &image.kernel).unwrap();
    assert_eq!(kernel.release, "6.18.36");
    assert_eq!(kernel::default(&images.store).unwrap().name, image.kernel, "the first kernel is the default");
    let [listed] = &images.list().unwrap()[..] else { panic!("one") };
    assert_eq!(listed.image, image);
    assert!(listed.last_access.elapsed().unwrap().as_secs() < 60);
    assert_eq!(std::fs::read_dir(images.store.dir().join("partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn lts_is_pinned_and_takes_ext4_where_there_is_nothing_else() {
    let place = Ci::summer().await;
    let image = place.images().ensure(&preset(Preset::Lts)).await.unwrap();
    assert_eq!(image.ci_version.as_deref(), Some("v1.7"));
    assert_eq!(image.firecracker_version.to_string(), "v1.7.0");
    assert_eq!((image.rootfs_type, image.rootfs_is_read_only), (RootfsType::Ext4, false));
    assert!(image.kernel_source.ends_with("/bucket/firecracker-ci/v1.7/x86_64/vmlinux-6.1.90"));
    place
        .files
        .lock()
        .unwrap()
        .insert("firecracker-ci/v1.7/x86_64/ubuntu-22.04.squashfs".into(), squashfs("old"));
    let resolved = place.images().resolve(&preset(Preset::Lts)).await.unwrap();
    assert_eq!(resolved.rootfs_type, RootfsType::Squashfs, "squashfs is preferred");
}

#[tokio::test]
async fn older_buckets_have_trains_by_version() {
    let place = Ci::new([
        ("firecracker-ci/v1.9/x86_64/vmlinux-6.1.111", pack::kernel("6.1.111")),
        ("firecracker-ci/v1.9/x86_64/ubuntu-22.04.squashfs", squashfs("1.9")),
        ("firecracker-ci/v1.10/x86_64/vmlinux-6.1.128", pack::kernel("6.1.128")),
        ("firecracker-ci/v1.10/x86_64/ubuntu-24.04.squashfs", squashfs("1.10")),
    ])
    .await;
    let resolved = place.images().resolve(&preset(Preset::Latest)).await.unwrap();
    assert_eq!(resolved.ci_version.as_deref(), Some("v1.10"));
    assert_eq!(resolved.firecracker_version.to_string(), "v1.10.0");
}

#[tokio::test]
async fn what_is_there_is_used_again_unless_forced() {
    let place = Ci::summer().await;
    let wanted = preset(Preset::Lts);
    let first = place.images().ensure(&wanted).await.unwrap();
    let sent = place.server.asked().len();
    assert_eq!(place.images().ensure(&wanted).await.unwrap(), first);
    let news: Vec<_> = place.server.asked()[sent..].iter().map(|asked| asked.target.clone()).collect();
    assert!(news.iter().all(|target| target.contains("list-type=2")), "{news:?}");
    // The same name, another content: told, and taken.
    let key = "firecracker-ci/v1.7/x86_64/ubuntu-22.04.ext4";
    place.files.lock().unwrap().insert(key.into(), ext4("neu"));
    let forced = place.images().ensure(&Wanted { force: true, ..wanted.clone() }).await.unwrap();
    assert_eq!(forced.rootfs, Digest::of(&ext4("neu")));
    assert!(place.told("another one than before"));
    // A lost blob is fetched again without force.
    let images = place.images();
    std::fs::remove_file(images.store.blob(&forced.rootfs).unwrap()).unwrap();
    assert_eq!(images.ensure(&wanted).await.unwrap(), forced);
}

#[tokio::test]
async fn without_a_network_the_newest_one_that_is_there_will_do() {
    let mut place = Ci::summer().await;
    let image = place.images().ensure(&preset(Preset::Latest)).await.unwrap();
    // Its port stays free for the moment of this test.
    place.server = Server::new(|_, _| Reply::status(404)).await;
    let gone = place.server.url("/").port().unwrap();
    let images = place.images();
    drop(std::mem::replace(&mut place.server, Server::new(|_, _| Reply::status(404)).await));
    let again = images.ensure(&preset(Preset::Latest)).await.unwrap();
    assert_eq!(again, image, "port {gone}");
    assert!(place.told("which is in the store, is used for the preset `latest`"));
    for wanted in [preset(Preset::Lts), Wanted { force: true, ..preset(Preset::Latest) }] {
        let error = images.ensure(&wanted).await.unwrap_err();
        assert!(error.is_offline() && error.code() == Code::DownloadFailed, "{error}");
        assert!(error.hint().unwrap().contains("--from DIR"));
    }
}

#[tokio::test]
async fn a_manifest_on_this_host_names_files_beside_it() {
    let place = Ci::summer().await;
    let wanted = place.manifest("ours", |manifest| manifest["comment"] = json!("x"));
    let image = place.images().ensure(&wanted).await.unwrap();
    assert_eq!((image.bundle_id.as_str(), image.boot_args.as_str()), ("ours", "console=ttyS0 our=own"));
    assert_eq!(image.rootfs, Digest::of(&squashfs("ours")));
    assert_eq!(image.preset, Preset::Hosted);
    assert!(image.origin.ends_with("/ours/manifest.json"));
    assert!(place.told("has a field `comment` that means nothing"));
    assert_eq!(place.server.asked().len(), 0);
}

#[tokio::test]
async fn a_manifest_from_a_server_is_checked_by_its_digests() {
    let place = Ci::summer().await;
    let (kernel, root) = (pack::kernel("6.6.2"), squashfs("hosted"));
    let hosted = |digest: &str| {
        json!({
            "schemaVersion": 1, "bundleId": "hosted", "name": "x", "arch": "x86_64", "firecrackerVersion": "1.15.1",
            "rootfsType": "squashfs", "rootfsIsReadOnly": true, "bootArgs": "",
            "kernel": { "url": place.server.url("/bucket/k").as_str(), "sha256": Digest::of(&kernel).hex(), "sizeBytes": kernel.len() },
            "rootfs": { "url": place.server.url("/bucket/r").as_str(), "sha256": digest },
        })
    };
    let serve = |manifest: &serde_json::Value| {
        let mut files = place.files.lock().unwrap();
        files.insert("m.json".into(), manifest.to_string().into_bytes());
        files.insert("k".into(), kernel.clone());
        files.insert("r".into(), root.clone());
    };
    let manifest = Some(place.server.url("/bucket/m.json"));
    let wanted = Wanted { preset: Preset::Hosted, manifest, ..Wanted::default() };
    serve(&hosted(&"ab".repeat(32)));
    let (code, text) = place.refused(&wanted).await;
    assert_eq!(code, Code::DigestMismatch);
    assert!(text.contains("/bucket/r has the wrong content: expected sha256:abab"), "{text}");

    let mut reaching = hosted(&Digest::of(&root).hex());
    reaching["rootfs"] = json!({ "path": "/etc/passwd" });
    serve(&reaching);
    let (code, text) = place.refused(&wanted).await;
    assert_eq!(code, Code::InvalidConfig);
    assert!(text.contains("rootfs.path: only a manifest on this host may name files of it"), "{text}");

    let mut short = hosted(&Digest::of(&root).hex());
    short["rootfs"]["sizeBytes"] = json!(root.len() + 1);
    serve(&short);
    let (code, text) = place.refused(&wanted).await;
    assert_eq!(code, Code::DigestMismatch);
    assert!(text.contains("has the wrong size: expected 4103 bytes, got 4102"), "{text}");

    serve(&hosted(&Digest::of(&root).hex()));
    let image = place.images().ensure(&wanted).await.unwrap();
    assert_eq!((image.rootfs, image.rootfs_size), (Digest::of(&root), root.len() as u64));
}

#[tokio::test]
async fn parts_that_are_something_else_are_refused() {
    let place = Ci::summer().await;
    let (code, text) = place.refused(&preset(Preset::Hosted)).await;
    assert_eq!((code, text.as_str()), (Code::InvalidConfig, "the preset `hosted` needs a manifest"));
    let arm = place.manifest("arm", |manifest| manifest["arch"] = json!("aarch64"));
    let (code, text) = place.refused(&arm).await;
    assert_eq!(
        (code, text.as_str()),
        (Code::InvalidImage, "the base image `arm` is for aarch64, not for x86_64")
    );
    let wrong = place.manifest("wrong", |manifest| manifest["rootfsType"] = json!("ext4"));
    let (code, text) = place.refused(&wrong).await;
    assert_eq!(code, Code::InvalidImage);
    assert!(text.contains("`wrong` is not accepted: it is squashfs, not ext4"), "{text}");
    let swapped = place.manifest("swapped", |manifest| manifest["rootfs"]["path"] = json!("vmlinux"));
    let (_, text) = place.refused(&swapped).await;
    assert!(text.contains("it is not squashfs"), "{text}");
    let swapped = place.manifest("swapped", |manifest| manifest["kernel"]["path"] = json!("root"));
    let (code, text) = place.refused(&swapped).await;
    assert_eq!(code, Code::InvalidKernel, "{text}");
    assert!(text.contains("the kernel of the base image `swapped` is not accepted"), "{text}");
    let bad = place.manifest("bad", |manifest| manifest["schemaVersion"] = json!(2));
    let (code, text) = place.refused(&bad).await;
    assert_eq!(code, Code::InvalidConfig);
    assert!(text.contains("schemaVersion: is 2; this smartvm reads 1"), "{text}");

    let nothing = Wanted { arch: Some(Arch::Aarch64), ..preset(Preset::Latest) };
    let (code, text) = place.refused(&nothing).await;
    assert_eq!(code, Code::NotFound);
    assert_eq!(
        text,
        "the preset `latest` finds no kernel and root file system for aarch64 in firecracker-ci/"
    );
    let (code, text) = place.refused(&Wanted { arch: Some(Arch::Aarch64), ..preset(Preset::Lts) }).await;
    assert_eq!((code, text.contains("firecracker-ci/v1.7/aarch64/")), (Code::NotFound, true), "{text}");
    assert!(matches!("newest".parse::<Preset>(), Err(BaseError::BadPreset(_))));
}

#[tokio::test]
async fn a_server_that_is_no_bucket_is_told_so() {
    let mut place = Ci::summer().await;
    place.server = Server::new(|_, _| Reply::ok("<html>please log in</html>")).await;
    let (code, text) = place.refused(&preset(Preset::Lts)).await;
    assert_eq!(code, Code::DownloadFailed);
    assert!(text.contains("is not the list of a bucket: it is not a ListBucketResult"), "{text}");
    // It never says that it is done.
    let endless = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken></ListBucketResult>";
    place.server = Server::new(move |_, _| Reply::ok(endless)).await;
    let (_, text) = place.refused(&preset(Preset::Lts)).await;
    assert!(text.contains("it does not end"), "{text}");
}

#[tokio::test]
async fn two_bundles_stay_and_the_older_ones_go_after_a_warning() {
    let place = Ci::summer().await;
    let mut oldest = None;
    for (id, hours) in [("one", 2), ("two", 1), ("three", 0)] {
        let wanted = place.manifest(id, |_| {});
        let image = place.images().ensure(&wanted).await.unwrap();
        // The default would stay without its bundle.
        kernel::set_default(&place.images().store, &image.kernel).unwrap();
        oldest.get_or_insert(image);
        let record = place.dir.path().join(format!("store/records/base/{id}.json"));
        let used = SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        File::open(record).unwrap().set_modified(used).unwrap();
    }
    let images = place.images();
    let ids: Vec<_> = images.list().unwrap().into_iter().map(|listed| listed.image.bundle_id).collect();
    assert_eq!(ids, ["three", "two"]);
    assert!(place.told("base `one` is evicted"));
    let oldest = oldest.unwrap();
    assert!(images.store.blob(&oldest.rootfs).is_none());
    assert!(matches!(kernel::inspect(&images.store, &oldest.kernel), Err(kernel::KernelError::NotFound(_))));

    images.remove("two").await.unwrap();
    assert!(matches!(images.remove("two").await, Err(BaseError::NotFound(_))));
    assert_eq!(images.list().unwrap().len(), 1);
    assert!(kernel::inspect(&images.store, "base-two").is_err());
    assert!(kernel::inspect(&images.store, "base-three").is_ok());
}

#[tokio::test]
async fn a_bundle_is_an_image_by_name_that_knows_its_kernel() {
    let place = Ci::summer().await;
    for (wanted, kind) in [(Preset::Latest, RootKind::Squashfs), (Preset::Lts, RootKind::Ext4)] {
        let bundle = place.images().ensure(&preset(wanted)).await.unwrap();
        let images = place.images();
        let found = images::resolve(&images.store, &format!("base:{}", bundle.bundle_id)).unwrap();
        assert_eq!((found.image.id, found.image.root.digest), (bundle.image, bundle.rootfs));
        assert_eq!((found.image.root.kind, found.image.root.size_bytes), (kind, bundle.rootfs_size));
        assert!(found.image.root.used_bytes > 0);
        let uuid = (kind == RootKind::Ext4).then(|| "01020304-0506-0708-090a-0b0c0d0e0f10".to_owned());
        assert_eq!(found.image.root.uuid, uuid);
        assert_eq!(found.image.config.cmd, ["/bin/sh"]);
        assert_eq!(found.image.platform.to_string(), "linux/amd64");
        let whose = image::of_image(&images.store, found.image.id).unwrap().unwrap();
        assert_eq!(whose.kernel, bundle.kernel);
    }
    let store = Store::open(&place.dir.path().join("store")).unwrap();
    store.gc(&GcOptions::default(), &Progress::none()).await.unwrap();
    let report = store.verify(VerifyOptions::default(), &Progress::none()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((images::list(&store).unwrap().len(), place.images().list().unwrap().len()), (2, 2));
}

#[tokio::test]
async fn an_image_goes_with_its_bundle_unless_it_has_another_name() {
    let place = Ci::summer().await;
    let mut bundles = Vec::new();
    for (id, hours) in [("one", 3), ("two", 2), ("three", 1), ("four", 0)] {
        let wanted = place.manifest(id, |_| {});
        bundles.push(place.images().ensure(&wanted).await.unwrap());
        if id == "one" {
            let store = place.images().store;
            images::tag(&store, "base:one", &"mine".parse().unwrap()).unwrap();
        }
        let record = place.dir.path().join(format!("store/records/base/{id}.json"));
        let used = SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        File::open(record).unwrap().set_modified(used).unwrap();
    }
    let images = place.images();
    let names = || -> Vec<_> {
        let all = images::list(&images.store).unwrap();
        let mut names: Vec<_> =
            all.iter().flat_map(|image| &image.names).map(|name| name.familiar()).collect();
        names.sort();
        names
    };
    assert_eq!(
        names(),
        ["base:four", "base:three", "mine"],
        "the name of an evicted bundle goes, a user's stays"
    );
    assert!(images.store.blob(&bundles[0].rootfs).is_some());
    assert!(images.store.blob(&bundles[1].rootfs).is_none());

    // An image is not taken away from a bundle.
    let error = images::remove(&images.store, "base:three", true).unwrap_err();
    assert_eq!(error.to_string(), "the image `base:three` is in use: by the base `three`");
    images.remove("three").await.unwrap();
    assert_eq!(names(), ["base:four", "mine"]);
    let machine = images.store.use_blobs("web-1", &[bundles[3].rootfs]).unwrap();
    images.remove("four").await.unwrap();
    assert_eq!(names(), ["mine"]);
    assert!(images::resolve(&images.store, &bundles[3].image.to_string()).is_ok(), "a machine runs from it");
    drop(machine);
}

#[tokio::test]
async fn a_bundle_is_not_removed_while_it_is_imported() {
    let place = Ci::summer().await;
    let one = place.manifest("one", |_| {});
    place.images().ensure(&one).await.unwrap();
    let images = place.images();
    let lock = images.store.lock("import the base image", "one", &Progress::none()).await.unwrap();
    let (removed, ()) = tokio::join!(images.remove("one"), async {
        crate::download::server::until("the removal waits", || place.told("waiting to import")).await;
        assert!(images.present("one").unwrap().is_some());
        drop(lock);
    });
    removed.unwrap();
    assert!(images.present("one").unwrap().is_none());
}

#[tokio::test]
async fn a_name_that_was_given_to_another_image_does_not_take_that_along() {
    let place = Ci::summer().await;
    let [one, other] = ["one", "other"].map(|id| place.manifest(id, |_| {}));
    let one = place.images().ensure(&one).await.unwrap();
    let store = place.images().store;
    let blob = store.put_bytes(b"users", BlobMode::Data).unwrap();
    let root =
        images::Root { kind: RootKind::Squashfs, digest: blob, uuid: None, size_bytes: 5, used_bytes: 5 };
    let name = image::name("one");
    let users =
        images::adopt(&store, root, images::Platform::host(), Default::default(), "user", name.as_ref());
    let users = users.unwrap();
    place.images().ensure(&other).await.unwrap();
    let options = GcOptions { keep_bases: 0, ..GcOptions::default() };
    drop(store);
    let store = Store::open(&place.dir.path().join("store")).unwrap();
    store.gc(&options, &Progress::none()).await.unwrap();
    let left: Vec<_> = images::list(&store).unwrap().into_iter().map(|named| named.image.id).collect();
    assert_eq!(left, [users.id]);
    assert!(store.blob(&one.rootfs).is_none() && store.blob(&blob).is_some());
}

#[tokio::test]
async fn a_bundle_is_given_its_image_again_and_a_replaced_one_goes() {
    let place = Ci::summer().await;
    let wanted = preset(Preset::Lts);
    let first = place.images().ensure(&wanted).await.unwrap();
    let store = place.images().store;
    let name = image::name(&first.bundle_id).unwrap().to_string();
    store.remove(Kind::Tag, &name).unwrap();
    store.remove(Kind::Image, &first.image.to_string()).unwrap();
    let sent = place.server.body_bytes();
    place.images().ensure(&wanted).await.unwrap();
    assert!(place.server.body_bytes() - sent < 4096, "nothing is fetched for it");
    assert_eq!(images::resolve(&store, &name).unwrap().image.id, first.image);
    let key = "firecracker-ci/v1.7/x86_64/ubuntu-22.04.ext4";
    place.files.lock().unwrap().insert(key.into(), ext4("neu"));
    let forced = place.images().ensure(&Wanted { force: true, ..wanted }).await.unwrap();
    let left: Vec<_> = images::list(&store).unwrap().into_iter().map(|named| named.image.id).collect();
    assert_eq!(left, [forced.image]);
}
