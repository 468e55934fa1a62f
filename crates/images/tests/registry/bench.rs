//! A registry, a store, and images made of a few files.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use smartvm_images::image::{Image, ImageError, Platform, PullOptions, Pulled, Reference, pull};
use smartvm_images::progress::Progress;
use smartvm_images::store::VerifyOptions;
use smartvm_images::{Digest, Store, download};
use smartvm_lab::registry::{LayoutImage, Registry, RegistryOptions, with_minbase, write_layout};
use tempfile::TempDir;

pub(crate) struct Bench {
    dir: TempDir,
    registry: Registry,
    store: Store,
    files: Cell<u32>,
}

/// A layer as its manifest has it.
#[derive(Clone)]
pub(crate) struct Described {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(RegistryOptions::default())
    }

    pub(crate) fn with(options: RegistryOptions) -> Self {
        Self::of(|dir| Registry::start(dir, options))
    }

    pub(crate) fn minbase() -> Self {
        Self::of(|dir| with_minbase(dir, RegistryOptions::default()))
    }

    fn of(start: impl FnOnce(&Path) -> smartvm_lab::fault::Result<Registry>) -> Self {
        let dir = tempfile::Builder::new().prefix("smartvm-registry-").tempdir().unwrap();
        let registry = dir.path().join("registry");
        fs::create_dir(&registry).unwrap();
        let registry = start(&registry).unwrap_or_else(|fault| panic!("{}", fault.report()));
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, registry, store, files: Cell::new(0) }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn restart(&mut self) {
        self.registry.start_again().unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.registry.kill();
    }

    fn new_path(&self, kind: &str) -> PathBuf {
        self.files.set(self.files.get() + 1);
        self.dir.path().join(format!("{kind}-{}", self.files.get()))
    }

    /// A layer.
    pub(crate) fn tar(&self, entries: &[(&str, &[u8])]) -> PathBuf {
        let path = self.new_path("layer");
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.finish().unwrap();
        path
    }

    pub(crate) fn push(&self, name: &str, layers: &[PathBuf]) {
        self.push_images(name, vec![layout_image(&Platform::host().to_string(), layers.to_vec())]);
    }

    pub(crate) fn push_platforms(&self, name: &str, images: &[(String, PathBuf)]) {
        let images = images.iter().map(|(platform, layer)| layout_image(platform, vec![layer.clone()]));
        self.push_images(name, images.collect());
    }

    fn push_images(&self, name: &str, images: Vec<LayoutImage>) {
        let layout = self.new_path("layout");
        write_layout(&layout, &images).unwrap();
        self.registry.push(&layout, name).unwrap_or_else(|fault| panic!("{}", fault.report()));
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.registry.address()).parse().unwrap()
    }

    /// As a user would, but not patient with the dead, and without this machine's own logins.
    pub(crate) fn options(&self) -> PullOptions {
        PullOptions {
            credentials: smartvm_images::image::Credentials::Files(Vec::new()),
            download: download::Options {
                first_pause: Duration::from_millis(20),
                tries: 2,
                proxy: download::Proxy::None,
                ..download::Options::default()
            },
            ..PullOptions::default()
        }
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<Pulled, ImageError> {
        self.pull_with(name, &self.options()).await
    }

    pub(crate) async fn pull_with(&self, name: &str, options: &PullOptions) -> Result<Pulled, ImageError> {
        self.pull_telling(name, options, &Progress::none()).await
    }

    pub(crate) async fn pull_telling(
        &self,
        name: &str,
        options: &PullOptions,
        progress: &Progress,
    ) -> Result<Pulled, ImageError> {
        // A handle for each piece of work, as programs have it.
        pull(&self.store.anew(), &self.reference(name), options, progress).await
    }

    pub(crate) fn root(&self, image: &Image) -> ext4_view::Ext4 {
        let path = self.store.blob(&image.root.digest).unwrap();
        ext4_view::Ext4::load_from_path(path).unwrap()
    }

    pub(crate) fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.store_dir().join("blobs")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub(crate) async fn assert_clean(&self) {
        let report = self.store.verify(VerifyOptions::default(), &Progress::none()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.findings);
    }

    /// How much of a blob was kept from a try that failed.
    pub(crate) fn partial(&self, digest: &Digest) -> u64 {
        let entries = fs::read_dir(self.store_dir().join("partial")).unwrap().map(Result::unwrap);
        let of_this = entries.filter(|entry| entry.file_name().to_string_lossy().contains(&digest.hex()));
        of_this.map(|entry| entry.metadata().unwrap().len()).max().unwrap_or(0)
    }

    fn raw_manifest(&self, name: &str) -> Vec<u8> {
        let source = format!("docker://{}", self.reference(name));
        let output = Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false", &source])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    pub(crate) fn manifest_digest(&self, name: &str) -> Digest {
        Digest::of(&self.raw_manifest(name))
    }

    pub(crate) fn layers(&self, name: &str) -> Vec<Described> {
        let manifest: Value = serde_json::from_slice(&self.raw_manifest(name)).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter().map(|layer| Described {
            digest: layer["digest"].as_str().unwrap().parse().unwrap(),
            size: layer["size"].as_u64().unwrap(),
        });
        layers.collect()
    }

    pub(crate) fn skopeo_save(&self, name: &str, as_name: &str) -> PathBuf {
        let path = self.new_path("saved.tar");
        let source = format!("docker://{}", self.reference(name));
        let to = format!("docker-archive:{}:{as_name}", path.display());
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--src-tls-verify=false", &source, &to])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        path
    }
}

fn layout_image(platform: &str, layers: Vec<PathBuf>) -> LayoutImage {
    LayoutImage { platform: platform.into(), config: json!({"Cmd": ["/bin/sh"]}), layers }
}

pub(crate) fn other_platform() -> String {
    if Platform::host().architecture == "arm64" { "linux/amd64".into() } else { "linux/arm64".into() }
}

/// Bytes that no compression makes smaller.
pub(crate) fn some_bytes(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(size).collect()
}
