//! What is fuzzed: everything that reads bytes of strangers. Each function takes any bytes, and may neither panic nor
//! take much time or memory; what the bytes mean is for the unit tests of their readers.
//!
//! `cargo xtask fuzz` runs each of them under libFuzzer. What it found worth keeping lies in `corpus/`, and every test
//! run reads all of that again.

use smartvm_images::base::Manifest;
use smartvm_images::kernel::{bzimage as bz, lists, modinfo};
use smartvm_images::rootfs::{self, Layer, Limits, Options};

/// Layers are merged and an image is laid out and filled, only not kept.
///
/// The first byte says by how many cuts the rest becomes layers, and the next bytes where they are, in blocks of an
/// archive. Checksums of headers are put right: they would only keep the fuzzer out.
pub fn tar_merge(bytes: &[u8]) {
    let Some((cuts, rest)) = bytes.split_first() else { return };
    let Some((cuts, archive)) = rest.split_at_checked(usize::from(cuts % 4)) else { return };
    let mut layers = Vec::new();
    let mut archive = archive.to_vec();
    archive.chunks_exact_mut(512).for_each(put_right);
    for cut in cuts {
        let at = (usize::from(*cut) * 512).min(archive.len());
        let rest = archive.split_off(at);
        layers.push(std::mem::replace(&mut archive, rest));
    }
    layers.push(archive);
    let layers: Vec<Layer> = layers.into_iter().map(|layer| Layer::memory("layer", layer)).collect();
    let mut options = Options::default();
    options.limits = Limits::default();
    options.limits.entries = 2000;
    options.limits.metadata_bytes = 1 << 20;
    options.limits.unpacked_bytes = 4 << 20;
    let _ = rootfs::rehearse(&layers, &options);
}

/// Makes the checksum of a block right that looks like a header.
fn put_right(block: &mut [u8]) {
    if &block[257..262] != b"ustar" {
        return;
    }
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The set-up header of a kernel, and the length of its payload.
pub fn bzimage(bytes: &[u8]) {
    if let Ok(image) = bz::parse(bytes) {
        let _ = image.compressed_by();
        // What it promises to unpack to is bounded there, but not by what is quick.
        let promised = image.payload.last_chunk::<4>().map(|length| u32::from_le_bytes(*length));
        if promised.is_some_and(|length| length < 4 << 20) {
            let _ = bz::vmlinux(bytes);
        }
    }
}

/// The list of modules and what each of them needs, and what a module says of itself.
pub fn modules_dep(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for (name, dependency) in lists::parse_dep(&text) {
        assert!(!dependency.path.is_empty(), "{name} is nowhere");
    }
    let _ = modinfo::parse(bytes);
}

/// The manifest of a base-image bundle.
pub fn manifest(bytes: &[u8]) {
    let _ = Manifest::parse(bytes);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    type Target = (&'static str, fn(&[u8]));

    #[test]
    fn what_was_kept_passes() {
        let targets: [Target; 4] = [
            ("tar-merge", super::tar_merge),
            ("bzimage", super::bzimage),
            ("modules-dep", super::modules_dep),
            ("manifest", super::manifest),
        ];
        for (target, run) in targets {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
            let mut files = 0;
            for file in fs::read_dir(&corpus).unwrap() {
                run(&fs::read(file.unwrap().path()).unwrap());
                files += 1;
            }
            assert!(files > 0, "{} is empty", corpus.display());
        }
    }
}
