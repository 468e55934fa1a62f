use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;
use smartvm_core::explain::{Code, Explain};
use smartvm_core::target::Arch;
use tempfile::TempDir;

use super::*;
use crate::base::Preset;
use crate::base::tests::{Files, answer, ext4, squashfs};
use crate::digest::Digest;
use crate::download::server::{Reply, Server};
use crate::download::{Options, Proxy};
use crate::kernel::pack;
use crate::progress::Progress;
use crate::release::tests::{published, release as archive};

struct Host {
    dir: TempDir,
    server: Server,
}

impl Host {
    /// A fresh host, and a server that has the release 1.15.1 and a base image.
    async fn new() -> Self {
        let train = "firecracker-ci/20260717-a-0/x86_64";
        let files = [
            (format!("{train}/vmlinux-6.18.36"), pack::kernel("6.18.36")),
            (format!("{train}/ubuntu-24.04.squashfs"), squashfs("new")),
        ];
        let files: Files = Arc::new(Mutex::new(files.into_iter().collect()));
        let releases: BTreeMap<_, _> = published("v1.15.1", &archive("v1.15.1")).into_iter().collect();
        let server = Server::new(move |asked, _| match releases.get(&asked.target) {
            Some(bytes) => Reply::file(asked, bytes, "\"1\""),
            None => answer(&files, asked),
        })
        .await;
        Self { dir: tempfile::tempdir().unwrap(), server }
    }

    fn setup(&self) -> Setup {
        self.setup_with(self.server.url("/releases"), self.server.url("/bucket"))
    }

    fn setup_with(&self, releases: url::Url, bucket: url::Url) -> Setup {
        let store = Store::open(&self.dir.path().join("store")).unwrap();
        let options = Options { tries: 1, proxy: Proxy::None, ..Options::default() };
        let downloader = Downloader::new(options, Progress::none());
        let arch = Arch::X86_64;
        let releases = release::Options { bases: vec![releases], arch };
        let bases = base::Options { arch, bases: vec![bucket], manifest: None, keep: 2 };
        Setup::new(store, downloader, releases, bases)
    }

    /// The same host when nothing can be reached any more.
    fn offline(&self) -> Setup {
        // Port 1 is never listened on by a test.
        let nowhere = |path: &str| format!("http://127.0.0.1:1/{path}").parse().unwrap();
        self.setup_with(nowhere("releases"), nowhere("bucket"))
    }

    /// A folder with these files.
    fn folder(&self, files: &[(&str, &[u8])]) -> PathBuf {
        let dir = self.dir.path().join("brought");
        for (name, bytes) in files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        dir
    }
}

/// A tar with one file.
fn root_archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o755);
    builder.append_data(&mut header, "init", &b"run"[..]).unwrap();
    builder.into_inner().unwrap()
}

fn image_config(layer: &[u8]) -> Vec<u8> {
    let config = json!({
        "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": [Digest::of(layer)] },
    });
    config.to_string().into_bytes()
}

fn image_manifest(config: &[u8], layer: &[u8]) -> Vec<u8> {
    let part = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "config": part("application/vnd.oci.image.config.v1+json", config),
        "layers": [part("application/vnd.oci.image.layer.v1.tar", layer)],
    });
    manifest.to_string().into_bytes()
}

#[tokio::test]
async fn a_plan_says_what_and_how_large_and_a_run_does_it_once() {
    let host = Host::new().await;
    let plan = host.setup().plan(&Wanted::default()).await.unwrap();
    let (release_size, base_size) =
        (archive("v1.15.1").len() as u64, (pack::kernel("6.18.36").len() + squashfs("new").len()) as u64);
    let steps: Vec<_> = plan.steps.iter().map(|step| (step.what.as_str(), step.present, step.size)).collect();
    assert_eq!(
        steps,
        [
            ("Firecracker v1.15.1", false, Some(release_size)),
            (
                "the base image ci-20260717-a-0-x86_64-6.18.36-ubuntu-24.04.squashfs \
                 (Firecracker CI 20260717-a-0: Linux 6.18.36, ubuntu-24.04.squashfs)",
                false,
                Some(base_size)
            ),
        ]
    );
    assert_eq!((plan.size(), plan.is_done()), ((release_size + base_size, true), false));
    assert!(plan.free_bytes > 0);
    assert!(host.server.body_bytes() < 2000, "planning fetches lists only");

    let mut small = plan.clone();
    small.free_bytes = 10;
    let error = host.setup().run(&small).await.unwrap_err();
    assert_eq!(error.code(), Code::Host);
    assert!(
        error.to_string().contains("bytes are to be fetched") && error.to_string().contains("has 10 free")
    );

    let done = host.setup().run(&plan).await.unwrap();
    assert_eq!(done.firecracker.unwrap().version.to_string(), "v1.15.1");
    assert_eq!(done.base.as_ref().unwrap().rootfs, Digest::of(&squashfs("new")));
    let again = host.setup().plan(&Wanted::default()).await.unwrap();
    assert!(again.is_done() && again.size() == (0, true), "{again:?}");
    assert_eq!(host.setup().run(&again).await.unwrap().base, done.base);

    // From now on the network is not needed.
    let offline = host.offline().plan(&Wanted::default()).await.unwrap();
    assert!(offline.is_done(), "{offline:?}");
    host.offline().run(&offline).await.unwrap();
}

#[tokio::test]
async fn without_a_network_and_with_nothing_there_one_message_names_the_ways_out() {
    let host = Host::new().await;
    let error = host.offline().plan(&Wanted::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::DownloadFailed);
    assert_eq!(
        error.to_string(),
        "this host cannot reach the network, and the store has no Firecracker and no base image"
    );
    let hint = error.hint().unwrap();
    for way in ["HTTPS_PROXY", "SMARTVM_FIRECRACKER_URL", "SMARTVM_BASE_URL", "smartvm setup --from DIR"] {
        assert!(hint.contains(way), "{hint}");
    }
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("cannot connect to http://127.0.0.1:1/"), "{cause}");
    // A place that answers and has it not is another matter.
    let wanted = Wanted { firecracker: Some("1.2.3".parse().unwrap()), base: None };
    let error = host.setup().plan(&wanted).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

#[tokio::test]
async fn what_was_brought_along_is_taken_without_a_network() {
    let host = Host::new().await;
    let bytes = archive("v1.12.1");
    let [(_, sum), _] = published("v1.12.1", &bytes);
    let (kernel, root) = (pack::kernel("6.6.1"), squashfs("brought"));
    let manifest = json!({
        "schemaVersion": 1, "bundleId": "brought", "name": "x", "arch": "x86_64", "firecrackerVersion": "v1.12.1",
        "rootfsType": "squashfs", "rootfsIsReadOnly": true, "bootArgs": "",
        // As it is published: the files lie beside it all the same.
        "kernel": { "url": "https://far.invalid/a/vmlinux-base", "sha256": Digest::of(&kernel).hex() },
        "rootfs": { "url": "https://far.invalid/1", "sha256": Digest::of(&root).hex(), "fileName": "root.squashfs" },
    })
    .to_string();
    let own = pack::kernel("6.12.9");
    let archive = root_archive();
    let (config, layer) = (image_config(&archive), Digest::of(&archive).hex());
    let document = image_manifest(&config, &archive);
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(&document),
            "size": document.len(), "annotations": { "io.containerd.image.name": "quay.io/org/tool:7" },
        }],
    })
    .to_string();
    let blob = |digest: &str| format!("layout/blobs/sha256/{digest}");
    let dir = host.folder(&[
        ("layout/index.json", index.as_bytes()),
        (&blob(&Digest::of(&document).hex()), &document),
        (&blob(&Digest::of(&config).hex()), &config),
        (&blob(&layer), &archive),
        ("firecracker-v1.12.1-x86_64.tgz", &bytes),
        ("firecracker-v1.12.1-x86_64.tgz.sha256.txt", &sum),
        ("firecracker-v1.12.1-aarch64.tgz", b"x"),
        ("base.json", manifest.as_bytes()),
        ("vmlinux-base", &kernel),
        ("root.squashfs", &root),
        ("vmlinux-own", &own),
        ("lonely.ext4", &ext4("x")),
        ("package.json", b"{}"),
        ("smartvm", b"\x7fELF\x02\x01 a program"),
        ("busybox.deb", b"!<arch>\nx"),
        ("layout/oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("Rescue-1.tar", &archive),
        ("notes.txt", b"hello"),
        ("folder/file", b"hello"),
    ]);
    let report = host.offline().import_dir(&dir).await.unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let imported: Vec<_> = report.imported.iter().map(|(path, what)| (name(path), what.as_str())).collect();
    let expected = [
        ("firecracker-v1.12.1-x86_64.tgz", "Firecracker v1.12.1"),
        ("base.json", "the base image brought"),
        ("vmlinux-own", "the kernel 6.12.9"),
        ("Rescue-1.tar", "the image rescue-1"),
        ("layout", "the image quay.io/org/tool:7"),
    ];
    assert_eq!(imported, expected.map(|(path, what)| (path.to_owned(), what)));
    let skipped: Vec<_> = report.skipped.iter().map(|(path, _)| name(path)).collect();
    assert_eq!(
        skipped,
        [
            "busybox.deb",
            "firecracker-v1.12.1-aarch64.tgz",
            "folder",
            "notes.txt",
            "package.json",
            "smartvm",
            "lonely.ext4"
        ]
    );
    assert!(dir.join("vmlinux-base").exists(), "the folder stays as it was");
    let wanted = Wanted {
        firecracker: Some(release::Wanted::Latest),
        base: Some(base::Wanted {
            preset: Preset::Hosted,
            manifest: Some("http://127.0.0.1:1/m".parse().unwrap()),
            ..base::Wanted::default()
        }),
    };
    assert!(host.offline().plan(&wanted).await.unwrap().is_done());
}

#[tokio::test]
async fn one_bad_file_does_not_keep_the_others_out() {
    let host = Host::new().await;
    let bytes = archive("v1.12.1");
    let [(_, sum), _] = published("v1.12.1", b"something else");
    let dir = host.folder(&[
        ("firecracker-v1.12.1-x86_64.tgz", &bytes),
        ("firecracker-v1.12.1-x86_64.tgz.sha256.txt", &sum),
        ("firecracker-v1.13.0-x86_64.tgz", &bytes),
        ("bad.json", br#"{"schemaVersion": 3, "bundleId": "x"}"#),
        ("vmlinux", b"\x7fELF\x02\x01 no kernel"),
        ("layers.tar.gz", b"\x1f\x8b\x08"),
        ("vmlinux-good", &pack::kernel("6.12.9")),
    ]);
    let report = host.offline().import_dir(&dir).await.unwrap();
    let failed: Vec<_> = report
        .failed
        .iter()
        .map(|(path, error)| (path.file_name().unwrap().to_str().unwrap(), error.code()))
        .collect();
    assert_eq!(
        failed,
        [
            ("firecracker-v1.13.0-x86_64.tgz", Code::NotFound),
            ("firecracker-v1.12.1-x86_64.tgz", Code::DigestMismatch),
            ("bad.json", Code::InvalidConfig),
            ("vmlinux", Code::InvalidKernel),
            ("layers.tar.gz", Code::InvalidImage),
        ]
    );
    assert!(report.failed.iter().all(|(_, error)| error.hint().is_some()));
    let without = report.failed[0].1.to_string();
    assert_eq!(without, "there is no firecracker-v1.13.0-x86_64.tgz.sha256.txt beside it");
    assert_eq!(report.imported.len(), 1);

    let empty = host.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let error = host.offline().import_dir(&empty).await.unwrap_err();
    assert!(matches!(error, SetupError::NothingFound { .. }) && error.code() == Code::NotFound);
    let error = host.offline().import_dir(&host.dir.path().join("missing")).await.unwrap_err();
    assert!(matches!(error, SetupError::Read { .. }), "{error}");
}
