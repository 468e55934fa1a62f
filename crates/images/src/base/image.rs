//! The image of a bundle: what is booted, listed and named like every other image.
//!
//! Its name is `base:` and the bundle's id, so that what `image ls` shows is what `run` takes. The root file system is taken
//! as it came; it says nothing of what to run, so that is a shell.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use super::{BaseError, BaseImage, RootfsType};
use crate::digest::Digest;
use crate::image::{self, ImageConfig, Platform, Reference, Root, RootKind};
use crate::store::{Kind, RecordId, Store, StoreError};

/// The repository of the images of bundles.
const REPOSITORY: &str = "base";

/// What a bundle's machine runs when nothing else is said.
const SHELL: &str = "/bin/sh";

/// Where the superblock of ext4 has the file system's UUID. Source: the kernel's `ext4.h` (`s_uuid`), 1024 bytes in.
const UUID_AT: u64 = 1024 + 0x68;

/// What the image of the bundle with this id is called. `None` for an id that no tag can be: one that begins with `.` or `-`.
pub fn name(bundle_id: &str) -> Option<Reference> {
    format!("{REPOSITORY}:{bundle_id}").parse().ok()
}

/// The bundle that an image came with, which says what kernel it boots with. Of several with the same root file system, the
/// newest.
///
/// # Errors
/// The store cannot be read.
pub fn of_image(store: &Store, image: Digest) -> Result<Option<BaseImage>, StoreError> {
    let mut records = store.records::<BaseImage>(Kind::Base)?.records;
    records.retain(|record| record.value.image == image);
    Ok(records.into_iter().max_by_key(|record| record.created).map(|record| record.value))
}

/// Makes the image of a root file system that is in the store, and names it. Made again, it is the same.
pub(super) fn adopt(
    store: &Store,
    bundle_id: &str,
    arch: &str,
    kind: RootfsType,
    rootfs: Digest,
) -> Result<Digest, BaseError> {
    let path = store.require(&rootfs, bundle_id)?;
    let root = root(&path, kind, rootfs).map_err(|error| BaseError::Rootfs {
        bundle_id: bundle_id.to_owned(),
        why: format!("it cannot be read: {error}"),
    })?;
    // As images call them.
    let architecture = match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let platform = Platform { os: "linux".into(), architecture: architecture.into(), variant: None };
    let config = ImageConfig { cmd: vec![SHELL.into()], ..ImageConfig::default() };
    let source = format!("base image {bundle_id}");
    let image = image::adopt(store, root, platform, config, &source, name(bundle_id).as_ref());
    Ok(image.map_err(|source| refused(bundle_id, source))?.id)
}

/// Makes the image of a bundle again where somebody removed it or its name. A name that now leads elsewhere is left to its
/// new owner.
pub(super) fn restore(store: &Store, bundle: &BaseImage) -> Result<(), BaseError> {
    let id = &bundle.bundle_id;
    let is_there = store.get::<serde_json::Value>(Kind::Image, &bundle.image.to_string())?.is_some();
    let is_named = match name(id) {
        Some(name) => store.get::<serde_json::Value>(Kind::Tag, &name.to_string())?.is_some(),
        None => true,
    };
    if !is_there || !is_named {
        adopt(store, id, &bundle.arch, bundle.rootfs_type, bundle.rootfs)?;
    }
    Ok(())
}

fn root(path: &Path, kind: RootfsType, digest: Digest) -> io::Result<Root> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let (kind, uuid) = match kind {
        RootfsType::Squashfs => (RootKind::Squashfs, None),
        RootfsType::Ext4 => {
            let mut uuid = [0; 16];
            file.read_exact_at(&mut uuid, UUID_AT)?;
            // All zeros is none.
            (RootKind::Ext4, (uuid != [0; 16]).then(|| image::uuid_text(&uuid)))
        }
    };
    // Source: stat(2): `st_blocks` counts 512 bytes each.
    Ok(Root { kind, digest, uuid, size_bytes: metadata.len(), used_bytes: metadata.blocks() * 512 })
}

/// Records that a bundle's record keeps, and that go with it.
pub(super) fn keeps(bundle: &BaseImage) -> Vec<RecordId> {
    let mut keeps = vec![
        RecordId::new(Kind::Kernel, &bundle.kernel),
        RecordId::new(Kind::Image, bundle.image.to_string()),
    ];
    keeps.extend(name(&bundle.bundle_id).map(|name| RecordId::new(Kind::Tag, name.to_string())));
    keeps
}

/// Takes back what [`adopt`] gave, once the bundle's record does not keep it any more. What has another name, belongs to another
/// bundle, or runs in a machine, stays.
pub(super) fn release(store: &Store, bundle: &BaseImage) -> Result<(), BaseError> {
    let id = &bundle.bundle_id;
    image::release(store, bundle.image, name(id).as_ref()).map_err(|source| refused(id, source))
}

fn refused(bundle_id: &str, source: image::ImageError) -> BaseError {
    BaseError::Image { bundle_id: bundle_id.to_owned(), source: Box::new(source) }
}
