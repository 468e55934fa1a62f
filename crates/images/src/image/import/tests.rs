use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use smartvm_core::explain::{Code, Explain};

use super::*;
use crate::image::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::image::{list, resolve};
use crate::store::VerifyOptions;

/// A store, and a folder for sources.
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

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    async fn import(&self, path: &Path, options: &ImportOptions) -> Result<Imported, ImageError> {
        import(&self.store, ImportSource::Path(path.to_owned()), options, &Progress::none()).await
    }

    /// Refused with this code; nothing is left in the store.
    async fn refused(&self, path: &Path, options: &ImportOptions, code: Code) -> String {
        let error = self.import(path, options).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(list(&self.store).unwrap(), []);
        assert_eq!(fs::read_dir(self.path("store/tmp")).unwrap().count(), 0);
        error.to_string()
    }

    fn root(&self, image: &Image) -> ext4_view::Ext4 {
        let path = self.store.blob(&image.root.digest).unwrap();
        ext4_view::Ext4::load(Box::new(fs::File::open(path).unwrap())).unwrap()
    }
}

fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // By hand, since the crate refuses what is hostile.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(platform: &str, layers: &[&[u8]]) -> Vec<u8> {
    let (os, architecture) = platform.split_once('/').unwrap();
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({"os": os, "architecture": architecture, "created": "2024-05-06T07:08:09Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["A=1"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "one"}, {"created_by": "env", "empty_layer": true}, {"created_by": "two"}]})
    .to_string()
    .into_bytes()
}

/// The files of an OCI layout, to be changed before they are written.
struct Layout {
    files: Vec<(String, Vec<u8>)>,
    manifests: Vec<Value>,
}

impl Layout {
    fn new() -> Self {
        let mark = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        Self { files: vec![("oci-layout".into(), mark)], manifests: Vec::new() }
    }

    fn blob(&mut self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.files.push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        digest
    }

    /// One image of gzipped layers; answers its manifest's digest.
    fn image(&mut self, platform: &str, layers: &[&[u8]]) -> (Digest, usize) {
        let packed: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
        let descriptors: Vec<Value> = packed
            .iter()
            .map(|layer| {
                json!({"mediaType": format!("{OCI_LAYER}+gzip"), "digest": self.blob(layer), "size": layer.len()})
            })
            .collect();
        let config = config(platform, layers);
        let config = json!({"mediaType": OCI_CONFIG, "digest": self.blob(&config), "size": config.len()});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": descriptors});
        let bytes = manifest.to_string().into_bytes();
        (self.blob(&bytes), bytes.len())
    }

    fn entry(&mut self, kind: &str, (digest, size): (Digest, usize), more: Value) {
        let mut entry = json!({"mediaType": kind, "digest": digest, "size": size});
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.manifests.push(entry);
    }

    fn finish(mut self) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests}).to_string();
        self.files.push(("index.json".into(), index.into_bytes()));
        self.files
    }
}

fn here() -> String {
    Platform::host().to_string()
}

fn simple() -> (Layout, Digest) {
    let lower = tar(&[("etc/name", b"lower"), ("etc/gone", b"x"), ("kept", b"kept")]);
    let upper = tar(&[("etc/name", b"upper"), ("etc/.wh.gone", b"")]);
    let mut layout = Layout::new();
    let image = layout.image(&here(), &[&lower, &upper]);
    layout.entry(OCI_MANIFEST, image, json!({"annotations": {"org.opencontainers.image.ref.name": "one"}}));
    (layout, image.0)
}

fn write_all(bench: &Bench, files: &[(String, Vec<u8>)]) -> PathBuf {
    for (name, bytes) in files {
        bench.write(&format!("layout/{name}"), bytes);
    }
    bench.path("layout")
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    tar(&entries)
}

fn check_simple(bench: &Bench, imported: &Imported, id: Digest) {
    let image = &imported.image;
    assert_eq!(image.id, id);
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    assert_eq!(image.created.as_deref(), Some("2024-05-06T07:08:09Z"));
    assert_eq!(image.layers.len(), 2);
    let sizes: Vec<u64> = image.history.iter().map(|step| step.size).collect();
    assert_eq!(sizes, [image.layers[0].size, 0, image.layers[1].size]);
    let root = bench.root(image);
    assert_eq!(root.read("/etc/name").unwrap(), b"upper");
    assert_eq!(root.read("/kept").unwrap(), b"kept");
    assert!(!root.exists("/etc/gone").unwrap());
    let uuid = root.uuid();
    assert_eq!(image.root.uuid.as_deref(), Some(uuid.to_string().to_lowercase().as_str()));
}

#[tokio::test]
async fn a_layout_is_the_same_image_as_directory_tar_packed_tar_and_stream() {
    let (layout, id) = simple();
    let files = layout.finish();
    let bench = Bench::new();
    let directory = write_all(&bench, &files);
    let options = ImportOptions { name: Some("mine:1".parse().unwrap()), ..Default::default() };
    let first = bench.import(&directory, &options).await.unwrap();
    check_simple(&bench, &first, id);
    assert!(!first.was_here);
    assert_eq!(resolve(&bench.store, "mine:1").unwrap().image, first.image);

    let plain = bench.write("layout.tar", &tar_of(&files));
    let packed = bench.write("layout.tar.gz", &gzip(&tar_of(&files)));
    for path in [&plain, &packed] {
        let again = bench.import(path, &ImportOptions::default()).await.unwrap();
        assert!(again.was_here && again.image == first.image);
        let other = Bench::new();
        check_simple(&other, &other.import(path, &ImportOptions::default()).await.unwrap(), id);
    }
    for bytes in [fs::read(&plain).unwrap(), fs::read(&packed).unwrap()] {
        let other = Bench::new();
        let source = ImportSource::Stream("standard input".into(), Box::new(io::Cursor::new(bytes)));
        let imported =
            import(&other.store, source, &ImportOptions::default(), &Progress::none()).await.unwrap();
        check_simple(&other, &imported, id);
        // What was spooled is gone.
        assert_eq!(fs::read_dir(other.path("store/tmp")).unwrap().count(), 0);
        let report = other.store.verify(VerifyOptions::default(), &Progress::none()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

#[tokio::test]
async fn one_of_several_images_is_chosen_by_name_and_platform() {
    let mut layout = Layout::new();
    let named = |name: &str| json!({"annotations": {"org.opencontainers.image.ref.name": name}});
    let one = layout.image(&here(), &[&tar(&[("one", b"1")])]);
    layout.entry(OCI_MANIFEST, one, named("one"));
    let (ours, other) = (layout.image(&here(), &[&tar(&[("x", b"2")])]), layout.image("linux/s390x", &[]));
    let entry = |(digest, size): (Digest, usize), platform: &str| {
        let platform: Platform = platform.parse().unwrap();
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": platform})
    };
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry(other, "linux/s390x"), entry(ours, &here())]})
    .to_string();
    let index = (layout.blob(index.as_bytes()), index.len());
    layout.entry(OCI_INDEX, index, named("two"));
    let bench = Bench::new();
    let path = write_all(&bench, &layout.finish());
    let select = |name: &str| ImportOptions { select: Some(name.into()), ..Default::default() };
    let error = bench.refused(&path, &ImportOptions::default(), Code::InvalidImage).await;
    assert!(error.contains("several images") && error.contains("one, two"), "{error}");
    let error = bench.refused(&path, &select("three"), Code::NotFound).await;
    assert!(error.contains("no image `three`: one, two"), "{error}");
    let wanted = ImportOptions { platform: "linux/riscv64".parse().unwrap(), ..select("two") };
    let error = bench.refused(&path, &wanted, Code::NotFound).await;
    assert!(error.contains("linux/s390x") && error.contains(&here()), "{error}");
    let wanted = ImportOptions { platform: "linux/riscv64".parse().unwrap(), ..select("one") };
    bench.refused(&path, &wanted, Code::NotFound).await;
    assert_eq!(bench.import(&path, &select("one")).await.unwrap().image.id, one.0);
    assert_eq!(bench.import(&path, &select("two")).await.unwrap().image.id, ours.0);
}

#[tokio::test]
async fn a_damaged_layout_is_refused_at_the_damaged_part() {
    let (layout, _) = simple();
    let files = layout.finish();
    for index in 0..files.len() {
        let mut damaged = files.clone();
        let (name, bytes) = &mut damaged[index];
        let name = name.clone();
        // Somewhere in the middle, in a way that stays valid JSON where it was.
        let at = bytes.len() / 2;
        bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
        let bench = Bench::new();
        let path = write_all(&bench, &damaged);
        let error = bench.import(&path, &ImportOptions::default()).await.unwrap_err();
        if name.starts_with("blobs/") {
            assert_eq!(error.code(), Code::InvalidImage, "{name}: {error}");
            assert!(error.to_string().contains(&name), "{error}");
        }
        let mut missing = files.clone();
        missing.remove(index);
        let bench = Bench::new();
        let options = ImportOptions { format: Format::Image, ..Default::default() };
        bench.refused(&write_all(&bench, &missing), &options, Code::InvalidImage).await;
        let bench = Bench::new();
        let path = bench.write("cut.tar", &tar_of(&missing));
        bench.refused(&path, &options, Code::InvalidImage).await;
    }
}

#[tokio::test]
async fn a_layout_that_lies_about_its_layers_is_refused() {
    let layer = tar(&[("a", b"a")]);
    let packed = gzip(&layer);
    type Change = fn(&mut Value, &mut Value);
    let changes: [(&str, Change); 4] = [
        ("another size", |manifest, _| manifest["layers"][0]["size"] = 1.into()),
        ("unpacked", |_, config| config["rootfs"]["diff_ids"][0] = json!(Digest::of(b"other"))),
        ("1 layers, its config 2", |_, config| {
            config["rootfs"]["diff_ids"] = json!([Digest::of(b"a"), Digest::of(b"b")]);
        }),
        ("application/x", |manifest, _| manifest["layers"][0]["mediaType"] = "application/x".into()),
    ];
    for (words, change) in changes {
        let mut layout = Layout::new();
        let digest = layout.blob(&packed);
        let layers = json!([{"mediaType": OCI_LAYER, "digest": digest, "size": packed.len()}]);
        let mut manifest = json!({"schemaVersion": 2, "config": {}, "layers": layers});
        let mut document: Value = serde_json::from_slice(&config(&here(), &[&layer])).unwrap();
        change(&mut manifest, &mut document);
        let document = document.to_string();
        let digest = layout.blob(document.as_bytes());
        manifest["config"] = json!({"mediaType": OCI_CONFIG, "digest": digest, "size": document.len()});
        let manifest = manifest.to_string();
        let entry = (layout.blob(manifest.as_bytes()), manifest.len());
        layout.entry(OCI_MANIFEST, entry, json!({}));
        let bench = Bench::new();
        let path = write_all(&bench, &layout.finish());
        let error = bench.import(&path, &ImportOptions::default()).await.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[tokio::test]
async fn a_layout_cannot_lead_out_of_its_directory() {
    let (layout, _) = simple();
    let mut files = layout.finish();
    let (name, bytes) = files.remove(1);
    let bench = Bench::new();
    let path = write_all(&bench, &files);
    let outside = bench.write("outside", &bytes);
    symlink(outside, path.join(name)).unwrap();
    bench.refused(&path, &ImportOptions::default(), Code::Host).await;
}

/// `docker save` before version 25: a folder for each layer, links where two images share one.
fn saved(tags: &[&str]) -> Vec<(String, Vec<u8>)> {
    let lower = tar(&[("etc/name", b"lower"), ("etc/gone", b"x"), ("kept", b"kept")]);
    let upper = tar(&[("etc/name", b"upper"), ("etc/.wh.gone", b"")]);
    let config = config(&here(), &[&lower, &upper]);
    let (a, b) = (Digest::of(b"a").hex(), Digest::of(b"b").hex());
    let name = format!("{}.json", Digest::of(&config).hex());
    let layers = [&a, &b].map(|id| format!("{id}/layer.tar"));
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": layers}]).to_string();
    vec![
        (format!("{a}/layer.tar"), lower),
        (format!("{b}/layer.tar"), upper),
        (name, config),
        ("manifest.json".into(), manifest.into_bytes()),
    ]
}

#[tokio::test]
async fn what_docker_saved_keeps_its_names() {
    let bench = Bench::new();
    let path = bench.write("saved.tar", &tar_of(&saved(&["mine:1", "quay.io/a/b:2"])));
    let imported = bench.import(&path, &ImportOptions::default()).await.unwrap();
    check_simple(&bench, &imported, imported.image.id);
    for name in ["mine:1", "quay.io/a/b:2"] {
        assert_eq!(resolve(&bench.store, name).unwrap().image, imported.image);
    }
    let options = ImportOptions { select: Some("docker.io/library/mine:1".into()), ..Default::default() };
    assert!(bench.import(&path, &options).await.unwrap().was_here);
    // Without names it is the same image.
    let path = bench.write("nameless.tar", &tar_of(&saved(&[])));
    assert_eq!(bench.import(&path, &ImportOptions::default()).await.unwrap().image.id, imported.image.id);
}

#[tokio::test]
async fn an_archive_does_not_take_the_name_of_a_digest() {
    let bench = Bench::new();
    let trusted = Digest::of(b"trusted");
    let names = [format!("debian@{trusted}"), trusted.to_string(), "honest:1".to_owned()];
    let path = bench.write("saved.tar", &tar_of(&saved(&names.each_ref().map(String::as_str))));
    let imported = bench.import(&path, &ImportOptions::default()).await.unwrap();
    assert_eq!(imported.names, ["honest:1".parse().unwrap()]);
    for name in &names[..2] {
        assert_eq!(resolve(&bench.store, name).unwrap_err().code(), Code::NotFound, "{name}");
    }
}

#[tokio::test]
async fn what_docker_saved_may_link_within_itself_only() {
    for (target, fine) in
        [("../{a}/layer.tar", true), ("../../../etc/hostname", false), ("{b}/layer.tar", false)]
    {
        let (a, b) = (Digest::of(b"a").hex(), Digest::of(b"b").hex());
        let target = target.replace("{a}", &a).replace("{b}", &b);
        let layer = tar(&[("x", b"x")]);
        let config = config(&here(), &[&layer, &layer]);
        let layers = [&a, &b].map(|id| format!("{id}/layer.tar"));
        let manifest =
            json!([{"Config": "c.json".replace('c', &Digest::of(b"c").hex()), "Layers": layers}]).to_string();
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, name, bytes).unwrap();
        };
        add(&format!("{a}/layer.tar"), &layer);
        add(&format!("{}.json", Digest::of(b"c").hex()), &config);
        add("manifest.json", manifest.as_bytes());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, format!("{b}/layer.tar"), &target).unwrap();
        let bench = Bench::new();
        let path = bench.write("saved.tar", &archive.into_inner().unwrap());
        let imported = bench.import(&path, &ImportOptions::default()).await;
        assert_eq!(imported.is_ok(), fine, "{target}: {imported:?}");
    }
}

#[tokio::test]
async fn a_root_archive_is_one_image_however_it_is_packed() {
    let bytes = tar(&[("etc/name", b"root"), ("etc/.wh.kept", b"a name as any other")]);
    let bench = Bench::new();
    let config = ImageConfig { cmd: vec!["/bin/x".into()], ..Default::default() };
    let options =
        ImportOptions { config: config.clone(), name: Some("r".parse().unwrap()), ..Default::default() };
    let plain = bench.import(&bench.write("root.tar", &bytes), &options).await.unwrap();
    assert_eq!(bench.root(&plain.image).read("/etc/name").unwrap(), b"root");
    assert!(bench.root(&plain.image).exists("/etc/.wh.kept").unwrap());
    assert_eq!(plain.image.config, config);
    let packed = bench.import(&bench.write("root.tar.gz", &gzip(&bytes)), &options).await.unwrap();
    assert!(packed.was_here && packed.image == plain.image);
    // Another command makes another image of the same file.
    let other = bench.import(&bench.path("root.tar"), &ImportOptions::default()).await.unwrap();
    assert_ne!(other.image.id, plain.image.id);
    assert_eq!(other.image.root, plain.image.root);
}

#[tokio::test]
async fn a_directory_becomes_an_image() {
    let bench = Bench::new();
    bench.write("tree/etc/name", b"tree");
    symlink("name", bench.path("tree/etc/link")).unwrap();
    let options = ImportOptions { name: Some("tree".parse().unwrap()), ..Default::default() };
    let imported = bench.import(&bench.path("tree"), &options).await.unwrap();
    assert_eq!(bench.root(&imported.image).read("/etc/link").unwrap(), b"tree");
    let again = bench.import(&bench.path("tree"), &options).await.unwrap();
    assert!(again.was_here && again.image.id == imported.image.id);
}

#[tokio::test]
async fn what_is_no_archive_is_refused() {
    for bytes in [&b"#!/bin/sh\n"[..], &[0x1f, 0x8b, 8, 0], &[7; 5000]] {
        let bench = Bench::new();
        let path = bench.write("file", bytes);
        bench.refused(&path, &ImportOptions::default(), Code::InvalidImage).await;
    }
    let bench = Bench::new();
    bench.refused(&bench.path("missing"), &ImportOptions::default(), Code::NotFound).await;
    let path = bench.write("root.tar", &tar(&[("a", b"a")]));
    let options = ImportOptions { format: Format::Image, ..Default::default() };
    bench.refused(&path, &options, Code::InvalidImage).await;
}

#[tokio::test]
async fn what_is_empty_does_not_become_an_image() {
    let bench = Bench::new();
    let options = ImportOptions::default();
    for bytes in [Vec::new(), gzip(b""), vec![0; 10240], gzip(&tar(&[])), tar(&[("./", b"")])] {
        let path = bench.write("empty.tar", &bytes);
        let error = bench.refused(&path, &options, Code::InvalidImage).await;
        assert!(error.ends_with("empty.tar has no files"), "{error}");
    }
    for bytes in [Vec::new(), gzip(b"")] {
        let source = ImportSource::Stream("standard input".into(), Box::new(io::Cursor::new(bytes)));
        let error = import(&bench.store, source, &options, &Progress::none()).await.unwrap_err();
        assert_eq!(
            (error.code(), &*error.to_string()),
            (Code::InvalidImage, "nothing came from standard input")
        );
        assert!(error.hint().unwrap().contains("did the command before the pipe fail?"));
    }
    fs::create_dir(bench.path("empty")).unwrap();
    for format in [Format::Detect, Format::Root] {
        let options = ImportOptions { format, ..ImportOptions::default() };
        let error = bench.refused(&bench.path("empty"), &options, Code::InvalidImage).await;
        assert!(error.ends_with("empty has no files"), "{error}");
    }
}

#[tokio::test]
async fn a_stream_without_end_stops_at_the_limit() {
    let bench = Bench::new();
    let mut options = ImportOptions::default();
    options.limits.unpacked_bytes = 1 << 20;
    let source = ImportSource::Stream("zeros".into(), Box::new(io::repeat(0)));
    let error = import(&bench.store, source, &options, &Progress::none()).await.unwrap_err();
    assert!(error.to_string().contains("1048576 bytes"), "{error}");
    assert_eq!(fs::read_dir(bench.path("store/tmp")).unwrap().count(), 0);
}
