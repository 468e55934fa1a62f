use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;
use std::sync::{Arc, Mutex};

use smartvm_core::explain::{Code, Explain};

use super::*;
use crate::image::{Format, ImageConfig, ImportOptions, ImportSource, Platform, Root, adopt, import, tag};
use crate::store::BlobMode;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn import(&self, from: &Path, format: Format, name: Option<&str>) -> Image {
        let config = ImageConfig {
            entrypoint: vec!["/bin/tool".into()],
            cmd: vec!["--serve".into()],
            env: vec!["A=b=c".into()],
            workdir: Some("/srv".into()),
            user: Some("1000:1000".into()),
            labels: [("maintainer".to_owned(), "me".to_owned())].into(),
            ..ImageConfig::default()
        };
        let name = name.map(|name| name.parse().unwrap());
        let options = ImportOptions { format, config, name, ..ImportOptions::default() };
        let source = ImportSource::Path(from.to_owned());
        import(&self.store, source, &options, &Progress::none()).await.unwrap().image
    }

    /// A folder with something in it, as an image.
    async fn image(&self) -> Image {
        let tree = self.path("tree");
        fs::create_dir_all(tree.join("bin/empty")).unwrap();
        fs::write(tree.join("bin/tool"), vec![b'x'; 300_000]).unwrap();
        fs::hard_link(tree.join("bin/tool"), tree.join("bin/same")).unwrap();
        symlink("bin/tool", tree.join("link")).unwrap();
        File::create(tree.join("sparse")).unwrap().set_len(3 << 30).unwrap();
        self.import(&tree, Format::Root, Some("tool:1")).await
    }

    async fn export(&self, image: &str, format: ExportFormat, to: &Path) -> Result<Exported, ImageError> {
        let target = ExportTarget::Path(to.to_owned());
        export(&self.store, image, format, target, &Progress::none()).await
    }

    /// The tar archive of an image's root: all that is in it.
    fn archive(&self, image: &Image) -> Vec<u8> {
        let file = File::open(self.store.blob(&image.root.digest).unwrap()).unwrap();
        let mut archive = Vec::new();
        rootfs::export_now(&file, &mut archive, Meaning::Root, &Progress::none(), &Abandoned::never())
            .unwrap();
        archive
    }
}

/// What is written to it.
#[derive(Clone, Default)]
struct Stream(Arc<Mutex<Vec<u8>>>);

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_exported_image_comes_back_with_an_equal_tree_and_config() {
    let bench = Bench::new();
    let image = bench.image().await;
    tag(&bench.store, "tool:1", &"other:2".parse().unwrap()).unwrap();
    for (format, to, kind) in [
        (ExportFormat::OciTar, bench.path("a.tar"), Format::Image),
        (ExportFormat::OciDirectory, bench.path("layout"), Format::Image),
        (ExportFormat::RootfsTar, bench.path("root.tar"), Format::Root),
    ] {
        let exported = bench.export("tool:1", format, &to).await.unwrap();
        assert_eq!((exported.image, exported.sockets), (image.id, 0));
        assert!(exported.size_bytes < 1 << 20, "{exported:?}");
        if to.is_file() {
            assert_eq!(fs::metadata(&to).unwrap().len(), exported.size_bytes);
        }
        let other = Bench::new();
        let back = other.import(&to, kind, None).await;
        assert_eq!((&back.config, &back.platform), (&image.config, &image.platform), "{format:?}");
        assert!(other.archive(&back) == bench.archive(&image), "{format:?}: another tree");
        if let Some(manifest) = exported.manifest {
            assert_eq!(back.id, manifest);
            let names = crate::image::resolve(&other.store, &manifest.to_string()).unwrap().names;
            assert_eq!(names, ["tool:1".parse().unwrap()]);
        }
    }
    // Nothing else was left anywhere.
    let mut names: Vec<_> = fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.tar", "layout", "root.tar", "store", "tree"]);
}

#[tokio::test]
async fn equal_images_are_exported_as_equal_bytes_to_files_and_streams() {
    let bench = Bench::new();
    bench.image().await;
    for format in [ExportFormat::OciTar, ExportFormat::RootfsTar] {
        let to = bench.path("out.tar");
        fs::write(&to, "what was there before").unwrap();
        bench.export("tool:1", format, &to).await.unwrap();
        let stream = Stream::default();
        let target = ExportTarget::Stream("stream".into(), Box::new(stream.clone()));
        export(&bench.store, "tool:1", format, target, &Progress::none()).await.unwrap();
        assert!(*stream.0.lock().unwrap() == fs::read(&to).unwrap());
    }
    assert_eq!(fs::read_dir(bench.path("store/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn skopeo_takes_an_exported_image() {
    let bench = Bench::new();
    let image = bench.image().await;
    let (archive, layout) = (bench.path("a.tar"), bench.path("layout"));
    let exported = bench.export("tool:1", ExportFormat::OciTar, &archive).await.unwrap();
    bench.export("tool:1", ExportFormat::OciDirectory, &layout).await.unwrap();
    let skopeo = |words: &[&str]| {
        let output = Command::new("skopeo").args(words).output().expect("skopeo");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let archive = archive.to_str().unwrap();
    let said = skopeo(&["inspect", &format!("oci-archive:{archive}")]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["Digest"], exported.manifest.unwrap().to_string());
    assert_eq!(said["Labels"]["maintainer"], "me");
    skopeo(&["inspect", &format!("oci:{}:1", layout.display())]);
    skopeo(&["inspect", &format!("docker-archive:{archive}")]);
    let converted = bench.path("converted.tar");
    skopeo(&[
        "--insecure-policy",
        "copy",
        "--quiet",
        &format!("oci-archive:{archive}"),
        &format!("docker-archive:{}:tool:1", converted.display()),
    ]);
    let other = Bench::new();
    let back = other.import(&converted, Format::Image, None).await;
    assert_eq!(back.config, image.config);
    assert!(other.archive(&back) == bench.archive(&image), "another tree");
}

#[tokio::test]
async fn what_cannot_be_exported_is_said_and_nothing_is_made() {
    let bench = Bench::new();
    bench.image().await;
    let to = bench.path("out");
    let error = bench.export("none:1", ExportFormat::OciTar, &to).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);

    let digest = bench.store.put_bytes(b"hsqs", BlobMode::Data).unwrap();
    let root = Root { kind: RootKind::Squashfs, digest, uuid: None, size_bytes: 4, used_bytes: 4 };
    let name: Reference = "squash:1".parse().unwrap();
    adopt(&bench.store, root, Platform::host(), ImageConfig::default(), "x", Some(&name)).unwrap();
    let error = bench.export("squash:1", ExportFormat::RootfsTar, &to).await.unwrap_err();
    assert!(matches!(error, ImageError::Squashfs { .. }));
    assert!(error.hint().unwrap().contains("unsquashfs"), "{:?}", error.hint());

    // What is no image: a file of ours that is damaged.
    let root = Root { kind: RootKind::Ext4, digest, uuid: None, size_bytes: 4, used_bytes: 4 };
    let name: Reference = "damaged:1".parse().unwrap();
    adopt(&bench.store, root, Platform::host(), ImageConfig::default(), "x", Some(&name)).unwrap();
    for format in [ExportFormat::OciTar, ExportFormat::OciDirectory, ExportFormat::RootfsTar] {
        let error = bench.export("damaged:1", format, &to).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidImage, "{error}");
    }
    assert!(!to.exists());

    // A folder of the user's is not replaced, and neither is a file by a folder.
    fs::create_dir(&to).unwrap();
    fs::write(to.join("mine"), "mine").unwrap();
    for format in [ExportFormat::OciTar, ExportFormat::OciDirectory] {
        bench.export("tool:1", format, &to).await.unwrap_err();
    }
    let error = bench.export("tool:1", ExportFormat::OciDirectory, &to).await.unwrap_err();
    assert!(error.to_string().ends_with("out` is not a new or empty folder"), "{error}");
    assert_eq!(fs::read(to.join("mine")).unwrap(), b"mine");
    // A place that cannot be written is named by its own name alone.
    for format in [ExportFormat::OciTar, ExportFormat::OciDirectory, ExportFormat::RootfsTar] {
        let error = bench.export("tool:1", format, Path::new("/proc/nowhere/x")).await.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            error.to_string().contains("`/proc/nowhere/x`") && !source.contains(TEMPORARY),
            "{error}: {source}"
        );
    }
    let left = fs::read_dir(bench.dir.path()).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY))
    });
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn a_device_is_written_to_and_stays() {
    let bench = Bench::new();
    bench.image().await;
    let device = Path::new("/dev/null");
    let before = fs::metadata(device).unwrap();
    bench.export("tool:1", ExportFormat::OciTar, device).await.unwrap();
    let after = fs::metadata(device).unwrap();
    assert_eq!((before.ino(), before.rdev()), (after.ino(), after.rdev()));
}
