//! What a user's name of an image means: a root file system in the store, and what is to run in it.

use smartvm_core::image_machine::ImageProcess;
use smartvm_guest_api::boot::{FileSystem, Uuid};
use smartvm_images::Digest;
use smartvm_images::base::{BaseImage, RootfsType};
use smartvm_images::image::{self, Image, RootKind};
use smartvm_images::store::{Kind, Store, StoreError};

use super::ImageMachineError;

/// Before the name of a base image.
pub const BASE_PREFIX: &str = "base:";

/// A root file system in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootImage {
    /// Its name for people.
    pub name: String,
    /// The blob.
    pub blob: Digest,
    /// What is on it.
    pub file_system: FileSystem,
    /// Its id, where it has one.
    pub id: Option<Uuid>,
    /// What is to run in it.
    pub process: ImageProcess,
    /// The kernel that it came with, for the image of a base image by whatever name.
    pub kernel: Option<String>,
}

impl RootImage {
    /// What the name means in this store: an image's name or id, or `base:` with a preset or a bundle's id.
    ///
    /// # Errors
    /// There is nothing of this name, or the store cannot be read.
    pub fn find(store: &Store, name: &str) -> Result<Self, ImageMachineError> {
        match name.strip_prefix(BASE_PREFIX) {
            Some(base) => base_image(store, base)?
                .map(|base| Self::of_base(&base))
                .ok_or_else(|| ImageMachineError::NoBase { name: base.chars().take(100).collect() }),
            None => {
                let found = image::resolve(store, name)?;
                let known = found.names.first().map(image::Reference::familiar);
                let root = Self::of_image(&found.image, known.unwrap_or_else(|| name.to_owned()))?;
                // A base image boots with its own kernel, whatever it is called.
                let bundle = smartvm_images::base::image::of_image(store, found.image.id)?;
                Ok(Self { kernel: bundle.map(|bundle| bundle.kernel), ..root })
            }
        }
    }

    /// An image of the store; `name` is for people.
    fn of_image(image: &Image, name: String) -> Result<Self, ImageMachineError> {
        let config = &image.config;
        // Ours to write and to read: what is no id was written by somebody else.
        let id = image.root.uuid.as_deref().map(str::parse::<Uuid>).transpose();
        let id = id.map_err(|error| StoreError::BadRecord {
            path: image.id.to_string().into(),
            reason: format!("the id of its file system is {error}"),
        })?;
        Ok(Self {
            name,
            blob: image.root.digest,
            file_system: match image.root.kind {
                RootKind::Ext4 => FileSystem::Ext4,
                RootKind::Squashfs => FileSystem::Squashfs,
            },
            id,
            process: ImageProcess {
                entrypoint: config.entrypoint.clone(),
                cmd: config.cmd.clone(),
                env: config.env.clone(),
                workdir: config.workdir.clone(),
                user: config.user.clone(),
            },
            kernel: None,
        })
    }

    /// A base image says nothing of what to run: a shell, then, on the console.
    fn of_base(base: &BaseImage) -> Self {
        Self {
            name: format!("{BASE_PREFIX}{}", base.bundle_id),
            blob: base.rootfs,
            file_system: match base.rootfs_type {
                RootfsType::Ext4 => FileSystem::Ext4,
                RootfsType::Squashfs => FileSystem::Squashfs,
            },
            // Two machines of one bundle need no more than its place, and a file of somebody else's may have any id.
            id: None,
            process: ImageProcess { cmd: vec!["/bin/sh".to_owned()], ..ImageProcess::default() },
            kernel: Some(base.kernel.clone()),
        }
    }
}

/// The bundle of this id, or the newest that came by this preset.
fn base_image(store: &Store, name: &str) -> Result<Option<BaseImage>, ImageMachineError> {
    if let Some(base) = store.get::<BaseImage>(Kind::Base, name)? {
        return Ok(Some(base));
    }
    let mut records = store.records::<BaseImage>(Kind::Base)?.records;
    records.retain(|record| record.value.preset.as_str() == name);
    Ok(records.into_iter().max_by_key(|record| record.created).map(|record| record.value))
}

#[cfg(test)]
mod tests {
    use smartvm_images::base::Preset;
    use smartvm_images::image::{ImportOptions, ImportSource};
    use smartvm_images::progress::Progress;

    use super::*;

    #[tokio::test]
    async fn a_base_image_boots_with_its_own_kernel_by_whatever_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "").unwrap();
        let options = ImportOptions::default();
        let imported = image::import(&store, ImportSource::Path(tree), &options, &Progress::none()).await;
        let made = imported.unwrap().image;
        let id = made.id.to_string();
        image::tag(&store, &id, &"mine".parse().unwrap()).unwrap();
        assert_eq!(RootImage::find(&store, "mine").unwrap().kernel, None);
        let bundle = BaseImage {
            bundle_id: "ci".into(),
            name: "CI".into(),
            preset: Preset::Latest,
            arch: "x86_64".into(),
            ci_version: None,
            firecracker_version: "1.12.1".parse().unwrap(),
            kernel: "base-ci".into(),
            kernel_sha256: made.root.digest,
            kernel_source: String::new(),
            image: made.id,
            rootfs: made.root.digest,
            rootfs_source: String::new(),
            rootfs_size: made.root.size_bytes,
            rootfs_type: RootfsType::Ext4,
            rootfs_is_read_only: true,
            boot_args: String::new(),
            origin: String::new(),
        };
        store.put(Kind::Base, "ci", &bundle, &[bundle.rootfs]).unwrap();
        for name in ["mine", &id, "base:ci", "base:latest"] {
            let found = RootImage::find(&store, name).unwrap();
            assert_eq!(found.kernel.as_deref(), Some("base-ci"), "{name}");
        }
    }
}
