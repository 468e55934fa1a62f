//! An import of a kernel, killed. What is imported is the size of a kernel, so that kills find it at every step.

use std::any::Any;
use std::fs;
use std::io::Write as _;

use smartvm_images::Progress;
use smartvm_images::kernel::{self, Import};

use crate::operation::Operation;
use crate::scene::Scene;
use smartvm_lab::random::Random;

/// A compressed kernel becomes two blobs, a record, and the choice of the default.
pub(crate) const IMPORT: Operation = Operation {
    name: "kernel-import",
    prepare,
    before: |_| {},
    work: |scene| {
        let import = Import { name: Some("k".into()), ..Import::paths([scene.inputs().join("vmlinux.gz")]) };
        scene.run(kernel::import(&scene.store(), import, &Progress::none())).unwrap();
    },
    after: |scene| {
        let store = scene.store();
        let kernel = kernel::default(&store).unwrap();
        assert_eq!((kernel.name.as_str(), kernel.vmlinux_size), ("k", elf().len() as u64));
        assert_eq!(scene.names("blobs").len(), 2);
    },
};

fn prepare(scene: &Scene) -> Box<dyn Any> {
    let file = fs::File::create(scene.inputs().join("vmlinux.gz")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    gzip.write_all(&elf()).unwrap();
    gzip.finish().unwrap();
    Box::new(())
}

/// Something that Firecracker would boot.
fn elf() -> Vec<u8> {
    let mut elf = smartvm_core::bare_metal::Guest::ByteThenReset.elf();
    elf.extend(Random::of(1).bytes(8 << 20));
    elf
}
