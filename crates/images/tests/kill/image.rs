//! A pull from a registry, and an import from a file.

use std::any::Any;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use smartvm_images::Progress;
use smartvm_images::download;
use smartvm_images::image::{
    Credentials, ImportOptions, ImportSource, Platform, PullOptions, import, list, pull, resolve,
};
use smartvm_lab::registry::{LayoutImage, Registry, RegistryOptions, write_layout};

use crate::operation::Operation;
use crate::scene::Scene;
use smartvm_lab::random::Random;

pub(crate) const PULL: Operation = Operation {
    name: "pull image",
    prepare: |scene| {
        let layout = layout(&scene.inputs());
        let dir = scene.inputs().join("registry");
        fs::create_dir(&dir).unwrap();
        let registry = Registry::start(&dir, RegistryOptions::default()).unwrap();
        registry.push(&layout, "team/tool:1").unwrap();
        let name = format!("{}/team/tool:1", registry.address());
        fs::write(scene.inputs().join("name"), name).unwrap();
        Box::new(registry)
    },
    before: no_parts,
    work: |scene| {
        let options = PullOptions {
            credentials: Credentials::Files(Vec::new()),
            download: download::Options { proxy: download::Proxy::None, ..Default::default() },
            ..PullOptions::default()
        };
        let store = scene.store();
        scene.run(pull(&store, &name(scene).parse().unwrap(), &options, &Progress::none())).unwrap();
    },
    after: |scene| one_whole_image(scene, &name(scene)),
};

pub(crate) const IMPORT: Operation = Operation {
    name: "import image",
    prepare: |scene| {
        let layout = layout(&scene.inputs());
        let archive = scene.inputs().join("layout.tar");
        let mut builder = tar::Builder::new(fs::File::create(&archive).unwrap());
        builder.append_dir_all(".", layout).unwrap();
        builder.finish().unwrap();
        Box::new(()) as Box<dyn Any>
    },
    before: no_parts,
    work: |scene| {
        // As from a pipe, so that it is spooled.
        let archive = fs::File::open(scene.inputs().join("layout.tar")).unwrap();
        let source = ImportSource::Stream("layout.tar".into(), Box::new(archive));
        let options = ImportOptions { name: Some("tool:1".parse().unwrap()), ..Default::default() };
        scene.run(import(&scene.store(), source, &options, &Progress::none())).unwrap();
    },
    after: |scene| one_whole_image(scene, "tool:1"),
};

fn name(scene: &Scene) -> String {
    fs::read_to_string(scene.inputs().join("name")).unwrap()
}

/// Each round begins as the first one: without parts of downloads that an earlier kill left.
fn no_parts(scene: &Scene) {
    let _ = fs::remove_dir_all(scene.dir().join("store/partial"));
}

fn one_whole_image(scene: &Scene, name: &str) {
    let store = scene.store();
    assert_eq!(list(&store).unwrap().len(), 1);
    let image = resolve(&store, name).unwrap().image;
    let root = ext4_view::Ext4::load_from_path(store.blob(&image.root.digest).unwrap()).unwrap();
    for layer in 0..LAYERS {
        assert!(root.read(format!("/large-{layer}").as_str()).unwrap() == content(layer));
    }
}

const LAYERS: u64 = 4;

fn content(layer: u64) -> Vec<u8> {
    Random::of(layer).bytes(2 << 20)
}

/// An image of a few layers, each with one large file and many small ones.
fn layout(dir: &Path) -> PathBuf {
    let layers = (0..LAYERS).map(|layer| {
        let path = dir.join(format!("layer-{layer}"));
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, bytes).unwrap();
        };
        add(&format!("large-{layer}"), &content(layer));
        for file in 0..200 {
            add(&format!("small/{file}"), &[layer as u8; 100]);
        }
        builder.finish().unwrap();
        path
    });
    let image = LayoutImage {
        platform: Platform::host().to_string(),
        config: json!({"Cmd": ["/bin/sh"]}),
        layers: layers.collect(),
    };
    let layout = dir.join("layout");
    write_layout(&layout, &[image]).unwrap();
    layout
}
