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
    /// The kernel that it came with.
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
                Self::of_image(&found.image, known.unwrap_or_else(|| name.to_owned()))
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
