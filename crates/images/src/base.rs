//! Base-image bundles: a kernel and a root file system that are known to work together, for a quick start.
//!
//! ```text
//! preset ── latest, lts ── bucket ─┐
//!        └─ hosted ────── manifest ┴─ Resolved ── download ── kernel bundle + image ── BaseImage (record)
//! ```
//!
//! A bundle is known by its id. One that is there is used again, unless a new download is asked for; and where the network
//! cannot be reached, a preset means the newest of its bundles that is there. `keep` bundles stay in the store (two if
//! nothing else is said); those that were not used for longest go first, with a warning before.
//!
//! What the bucket holds comes with a size but no digest: the first download is trusted as far as the connection is, its
//! digest is kept, and a later download that differs is told. Production should use `hosted`, whose digests are the
//! maker's.

mod bucket;
mod error;
pub mod image;
mod manifest;
mod presets;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use smartvm_core::target::Arch;
use url::Url;

use crate::blocking::blocking;
use crate::digest::Digest;
use crate::download::{self, DownloadError, Downloader, Request, shown};
use crate::kernel::{self, Kernel};
use crate::release::{Releases, Version};
use crate::store::{BASES_KEPT, BlobMode, GcOptions, Kind, Store, StoreError, StoreLock};
pub use error::BaseError;
pub use manifest::{BadManifest, LARGEST_MANIFEST, Manifest, SCHEMA};

/// The bucket of Firecracker's CI. By path, since the certificate does not fit the bucket's dots.
pub const OFFICIAL: &str = "https://s3.amazonaws.com/spec.ccfc.min";

/// The variable that names other buckets, separated by blanks, best first.
pub const URL_VARIABLE: &str = "SMARTVM_BASE_URL";

/// The variable that names the manifest of the preset `hosted`: a URL or a path.
pub const MANIFEST_VARIABLE: &str = "SMARTVM_BASE_MANIFEST";

/// The most bytes that are accepted as a kernel.
const LARGEST_KERNEL: u64 = 512 << 20;

/// The most bytes that are accepted as a root file system.
const LARGEST_ROOTFS: u64 = 64 << 30;

/// Where a bundle comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The newest kernel and root of Firecracker's CI.
    #[default]
    Latest,
    /// Those of the CI for Firecracker 1.7, and that release.
    Lts,
    /// What a manifest describes.
    Hosted,
}

impl Preset {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Lts => "lts",
            Self::Hosted => "hosted",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Preset {
    type Err = BaseError;

    fn from_str(text: &str) -> Result<Self, BaseError> {
        let all = [Self::Latest, Self::Lts, Self::Hosted];
        all.into_iter()
            .find(|preset| preset.as_str() == text)
            .ok_or_else(|| BaseError::BadPreset(text.chars().take(60).collect()))
    }
}

/// The file system of a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsType {
    /// ext4.
    Ext4,
    /// squashfs.
    Squashfs,
}

impl RootfsType {
    /// Both, the better one last.
    pub const ALL: [Self; 2] = [Self::Ext4, Self::Squashfs];

    /// Its name, as mount(8) and the manifest write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }
}

/// A kernel or root file system to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Where it is.
    pub place: Place,
    /// Its SHA-256, where the maker tells it.
    pub sha256: Option<Digest>,
    /// Its size in bytes, where the maker tells it.
    pub size: Option<u64>,
    /// Its name, for people.
    pub file_name: Option<String>,
}

impl Artifact {
    /// Takes it from `dir` if that has a file of its name. Whether it is the right one, its digest says.
    pub(crate) fn find_in(&mut self, dir: &Path) {
        let Place::Url(url) = &self.place else { return };
        let segment = url.path_segments().and_then(|mut segments| segments.next_back());
        let Some(name) = self.file_name.as_deref().or(segment).filter(|name| !name.is_empty()) else {
            return;
        };
        let path = dir.join(name);
        if path.is_file() {
            self.place = Place::Path(path);
        }
    }
}

/// Where an artifact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// One URL.
    Url(Url),
    /// The same thing at several URLs, best first.
    Mirrors(Vec<Url>),
    /// A file of this host; a relative one from the manifest's folder.
    Path(PathBuf),
}

/// What a preset means at this moment, nothing of it fetched yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The preset.
    pub preset: Preset,
    /// The architecture.
    pub arch: Arch,
    /// The train of the CI, for its presets.
    pub ci_version: Option<String>,
    /// The Firecracker that it was tried with.
    pub firecracker_version: Version,
    /// A label for people.
    pub name: String,
    /// The kernel.
    pub kernel: Artifact,
    /// The root file system.
    pub rootfs: Artifact,
    /// Its type.
    pub rootfs_type: RootfsType,
    /// Whether it must not be written.
    pub rootfs_is_read_only: bool,
    /// The kernel command line that the bundle wants.
    pub boot_args: String,
    /// The cache key.
    pub bundle_id: String,
    /// The bucket's or the manifest's address.
    pub origin: String,
}

impl Resolved {
    /// Bytes to fetch, as far as they are known.
    pub fn size(&self) -> Option<u64> {
        self.kernel.size?.checked_add(self.rootfs.size?)
    }
}

/// A bundle in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BaseImage {
    /// Its id.
    pub bundle_id: String,
    /// A label for people.
    pub name: String,
    /// The preset that it came by.
    pub preset: Preset,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// The train of the CI, for its presets.
    pub ci_version: Option<String>,
    /// The Firecracker that it was tried with.
    pub firecracker_version: Version,
    /// The kernel bundle that was made of its kernel, by name.
    pub kernel: String,
    /// The kernel as it came.
    pub kernel_sha256: Digest,
    /// Where that was from.
    pub kernel_source: String,
    /// The image that was made of its root file system.
    pub image: Digest,
    /// The root file system, a blob of the store.
    pub rootfs: Digest,
    /// Where that was from.
    pub rootfs_source: String,
    /// Its size in bytes.
    pub rootfs_size: u64,
    /// Its type.
    pub rootfs_type: RootfsType,
    /// Whether it must not be written.
    pub rootfs_is_read_only: bool,
    /// The kernel command line that the bundle wants.
    pub boot_args: String,
    /// The bucket's or the manifest's address.
    pub origin: String,
}

/// A listed bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The bundle.
    pub image: BaseImage,
    /// When it was last asked for.
    pub last_access: SystemTime,
}

/// How bundles are found and kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The architecture when a call names none.
    pub arch: Arch,
    /// Buckets laid out as Firecracker's CI has it, best first.
    pub bases: Vec<Url>,
    /// The manifest of the preset `hosted`, when a call names none.
    pub manifest: Option<Url>,
    /// How many bundles stay in the store.
    pub keep: usize,
}

impl Options {
    /// The official bucket, or what `SMARTVM_BASE_URL` and `SMARTVM_BASE_MANIFEST` name, for this host.
    ///
    /// # Errors
    /// A variable holds something else than URLs and paths.
    pub fn from_environment() -> Result<Self, DownloadError> {
        let variable = |name| download::variable(name, std::env::var_os(name));
        let bases = variable(URL_VARIABLE)?.unwrap_or_else(|| OFFICIAL.to_owned());
        let bases = bases.split_whitespace().map(download::place).collect::<Result<_, _>>()?;
        let manifest = variable(MANIFEST_VARIABLE)?.map(|place| download::place(&place)).transpose()?;
        Ok(Self { arch: Arch::HOST, bases, manifest, keep: BASES_KEPT })
    }
}

/// What is wanted in one call.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Where from.
    pub preset: Preset,
    /// For which architecture; that of the options when none is named.
    pub arch: Option<Arch>,
    /// The manifest of the preset `hosted`; that of the options when none is named.
    pub manifest: Option<Url>,
    /// Fetch it although it is there.
    pub force: bool,
}

/// The base images in a store.
#[derive(Debug, Clone)]
pub struct BaseImages {
    store: Store,
    downloader: Downloader,
    releases: Releases,
    options: Options,
}

impl BaseImages {
    /// The base images in `store`, fetched by `downloader`; `releases` says which Firecracker is the newest.
    pub fn new(store: Store, downloader: Downloader, releases: Releases, options: Options) -> Self {
        Self { store, downloader, releases, options }
    }

    /// What `wanted` means at this moment; only lists and manifests are fetched.
    ///
    /// # Errors
    /// Nothing answers, or there is nothing for this architecture.
    pub async fn resolve(&self, wanted: &Wanted) -> Result<Resolved, BaseError> {
        let arch = wanted.arch.unwrap_or(self.options.arch);
        match wanted.preset {
            Preset::Latest => {
                presets::latest(&self.downloader, &self.options.bases, &self.releases, arch).await
            }
            Preset::Lts => presets::lts(&self.downloader, &self.options.bases, arch).await,
            Preset::Hosted => {
                let manifest = wanted.manifest.as_ref().or(self.options.manifest.as_ref());
                self.hosted(manifest.ok_or(BaseError::NoManifest)?, arch).await
            }
        }
    }

    /// The bundle that `wanted` means, fetched unless it is there. Where the network cannot be reached, the newest one
    /// that came by the same preset will do, unless `force` is set.
    ///
    /// # Errors
    /// It cannot be fetched, or its parts are not what they should be.
    pub async fn ensure(&self, wanted: &Wanted) -> Result<BaseImage, BaseError> {
        let resolved = match self.resolve(wanted).await {
            Err(error) if error.is_offline() && !wanted.force => {
                let Some(kept) = self.kept_for(wanted).await? else { return Err(error) };
                self.downloader.progress().note(format!(
                    "{error}; the base image `{}`, which is in the store, is used for the preset `{}`",
                    kept.bundle_id, wanted.preset
                ));
                return self.taken_up(kept).await;
            }
            resolved => resolved?,
        };
        self.import(&resolved, wanted.force).await
    }

    /// Fetches a resolved bundle, unless it is there.
    ///
    /// # Errors
    /// As [`BaseImages::ensure`].
    pub async fn import(&self, resolved: &Resolved, force: bool) -> Result<BaseImage, BaseError> {
        let id = &resolved.bundle_id;
        let progress = self.downloader.progress();
        let _lock = self.lock(id).await?;
        let before = self.look_for(id).await?;
        if let Some(bundle) = before.clone().filter(|_| !force) {
            return self.taken_up(bundle).await;
        }
        let bundle = self.fetch(resolved).await?;
        let changed = before
            .filter(|before| (before.kernel_sha256, before.rootfs) != (bundle.kernel_sha256, bundle.rootfs));
        if changed.is_some() {
            progress.warn(format!("the content of the base image `{id}` is another one than before"));
        }
        let store = self.store.clone();
        let bundle = blocking(move |_| {
            let keeps = image::keeps(&bundle);
            store.put_keeping(Kind::Base, &bundle.bundle_id, &bundle, &[bundle.rootfs], &keeps)?;
            if let Some(before) = changed.filter(|before| before.image != bundle.image) {
                image::release(&store, &before)?;
            }
            Ok::<_, BaseError>(bundle)
        })
        .await?;
        self.retain().await?;
        Ok(bundle)
    }

    /// What is there, most recently used first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, BaseError> {
        let records = self.store.records::<BaseImage>(Kind::Base)?.records;
        let listed =
            |record: crate::store::Record<_>| Listed { image: record.value, last_access: record.last_used };
        let mut all: Vec<Listed> = records.into_iter().map(listed).collect();
        all.sort_by_key(|listed| std::cmp::Reverse(listed.last_access));
        Ok(all)
    }

    /// Removes a bundle, and the kernel and the image that were made of it; their blobs go with the next gc. A kernel or image
    /// that a machine runs stays, and so does an image that has another name.
    ///
    /// # Errors
    /// There is no such bundle.
    pub async fn remove(&self, bundle_id: &str) -> Result<(), BaseError> {
        // An import of it at the same time is done before, or begins after.
        let _lock = self.lock(bundle_id).await?;
        let (this, id) = (self.clone(), bundle_id.to_owned());
        blocking(move |_| this.remove_now(&id)).await
    }

    async fn lock(&self, bundle_id: &str) -> Result<StoreLock, BaseError> {
        Ok(self.store.lock("import the base image", bundle_id, self.downloader.progress()).await?)
    }

    fn remove_now(&self, bundle_id: &str) -> Result<(), BaseError> {
        let image = self.store.get::<BaseImage>(Kind::Base, bundle_id)?;
        let image = image.ok_or_else(|| BaseError::NotFound(bundle_id.chars().take(100).collect()))?;
        self.store.remove(Kind::Base, bundle_id)?;
        image::release(&self.store, &image)?;
        match kernel::remove(&self.store, &image.kernel) {
            // A machine still runs it, or somebody else removed it: then it stays, or is gone.
            Err(kernel::KernelError::InUse { .. } | kernel::KernelError::NotFound(_)) | Ok(()) => Ok(()),
            Err(source) => Err(BaseError::Kernel { bundle_id: image.bundle_id, source: Box::new(source) }),
        }
    }

    /// Bytes that a resolved bundle has, where somebody says how many. What its maker does not tell, its server is asked.
    ///
    /// # Errors
    /// A server answers that it has no such thing, or does not answer.
    pub async fn size(&self, resolved: &Resolved) -> Result<Option<u64>, BaseError> {
        let id = &resolved.bundle_id;
        let kernel = self.downloader.size(&request(id, "kernel", &resolved.kernel, LARGEST_KERNEL)?).await?;
        let rootfs = request(id, "root file system", &resolved.rootfs, LARGEST_ROOTFS)?;
        let rootfs = self.downloader.size(&rootfs).await?;
        Ok(kernel.zip(rootfs).and_then(|(kernel, rootfs)| kernel.checked_add(rootfs)))
    }

    /// What a manifest describes.
    ///
    /// # Errors
    /// It cannot be read, is not accepted, or is for another architecture.
    pub async fn read_manifest(&self, at: &Url) -> Result<Resolved, BaseError> {
        self.hosted(at, self.options.arch).await
    }

    async fn hosted(&self, at: &Url, arch: Arch) -> Result<Resolved, BaseError> {
        let origin = shown(at);
        let request = Request::new("the manifest", at.clone(), LARGEST_MANIFEST as u64);
        let text = self.downloader.bytes(&request).await?;
        let refuse = |source| BaseError::Manifest { origin: origin.clone(), source };
        let manifest = Manifest::parse(&text).map_err(refuse)?;
        for field in &manifest.ignored {
            self.downloader
                .progress()
                .note(format!("the manifest {origin} has a field `{field}` that means nothing"));
        }
        if manifest.arch != arch {
            let bundle_id = manifest.bundle_id;
            return Err(BaseError::Arch { bundle_id, arch: manifest.arch, wanted: arch });
        }
        // Asked only of file URLs: an http URL of localhost would be taken for a path too.
        let file = (at.scheme() == "file").then(|| at.to_file_path().ok()).flatten();
        let folder = file.and_then(|path| path.parent().map(Path::to_owned));
        let place = |field: &str, artifact: Artifact| match (&artifact.place, &folder) {
            (Place::Path(path), Some(folder)) => {
                Ok(Artifact { place: Place::Path(folder.join(path)), ..artifact })
            }
            // Whoever wrote it elsewhere has no say over files of this host.
            (Place::Path(_), None) => Err(refuse(BadManifest {
                field: format!("{field}.path"),
                why: "only a manifest on this host may name files of it; use url".into(),
            })),
            _ => Ok(artifact),
        };
        Ok(Resolved {
            preset: Preset::Hosted,
            arch: manifest.arch,
            ci_version: None,
            firecracker_version: manifest.firecracker_version,
            name: manifest.name,
            kernel: place("kernel", manifest.kernel)?,
            rootfs: place("rootfs", manifest.rootfs)?,
            rootfs_type: manifest.rootfs_type,
            rootfs_is_read_only: manifest.rootfs_is_read_only,
            boot_args: manifest.boot_args,
            bundle_id: manifest.bundle_id,
            origin,
        })
    }

    async fn fetch(&self, resolved: &Resolved) -> Result<BaseImage, BaseError> {
        let id = &resolved.bundle_id;
        let kernel_request = request(id, "kernel", &resolved.kernel, LARGEST_KERNEL)?;
        let rootfs_request = request(id, "root file system", &resolved.rootfs, LARGEST_ROOTFS)?;
        let came = self.downloader.fetch(&self.store, &kernel_request).await?;
        let kernel_sha256 = came.digest();
        let kernel = self.import_kernel(id, came.path()).await;
        came.discard();
        let kernel = kernel?;
        let rootfs = self.downloader.fetch(&self.store, &rootfs_request).await?;
        let (rootfs_size, found) = (rootfs.size(), file_system(&mut rootfs.open()?));
        if !matches!(found, Ok(Some(found)) if found == resolved.rootfs_type) {
            let wanted = resolved.rootfs_type.as_str();
            let why = match found {
                Ok(Some(found)) => format!("it is {}, not {wanted}", found.as_str()),
                Ok(None) => format!("it is not {wanted}"),
                Err(error) => format!("it cannot be read: {error}"),
            };
            rootfs.discard();
            return Err(BaseError::Rootfs { bundle_id: id.clone(), why });
        }
        let rootfs = rootfs.commit(BlobMode::Data).await?;
        let (store, of, arch, kind) = (self.store.clone(), id.clone(), resolved.arch, resolved.rootfs_type);
        let image = blocking(move |_| image::adopt(&store, &of, arch.as_str(), kind, rootfs)).await?;
        Ok(BaseImage {
            bundle_id: id.clone(),
            name: resolved.name.clone(),
            preset: resolved.preset,
            arch: resolved.arch.to_string(),
            ci_version: resolved.ci_version.clone(),
            firecracker_version: resolved.firecracker_version,
            kernel: kernel.name,
            kernel_sha256,
            kernel_source: kernel_request.urls.first().map(shown).unwrap_or_default(),
            image,
            rootfs,
            rootfs_source: rootfs_request.urls.first().map(shown).unwrap_or_default(),
            rootfs_size,
            rootfs_type: resolved.rootfs_type,
            rootfs_is_read_only: resolved.rootfs_is_read_only,
            boot_args: resolved.boot_args.clone(),
            origin: resolved.origin.clone(),
        })
    }

    async fn import_kernel(&self, bundle_id: &str, path: &Path) -> Result<Kernel, BaseError> {
        let name = Some(format!("base-{bundle_id}"));
        let import = kernel::Import { name, ..kernel::Import::paths([path.to_owned()]) };
        kernel::import(&self.store, import, self.downloader.progress())
            .await
            .map_err(|source| BaseError::Kernel { bundle_id: bundle_id.to_owned(), source: Box::new(source) })
    }

    /// A bundle that is there is used once more.
    async fn taken_up(&self, bundle: BaseImage) -> Result<BaseImage, BaseError> {
        let store = self.store.clone();
        blocking(move |_| {
            store.touch(Kind::Base, &bundle.bundle_id);
            image::restore(&store, &bundle)?;
            Ok(bundle)
        })
        .await
    }

    /// The record of a bundle of which everything is there.
    pub(crate) async fn look_for(&self, bundle_id: &str) -> Result<Option<BaseImage>, BaseError> {
        // The store's locks block for as long as a collection needs.
        let (this, id) = (self.clone(), bundle_id.to_owned());
        blocking(move |_| this.present(&id)).await
    }

    fn present(&self, bundle_id: &str) -> Result<Option<BaseImage>, BaseError> {
        let Some(image) = self.store.get::<BaseImage>(Kind::Base, bundle_id)? else { return Ok(None) };
        let Some(kernel) = self.store.get::<Kernel>(Kind::Kernel, &image.kernel)? else { return Ok(None) };
        let blobs = [image.rootfs, kernel.vmlinux, kernel.initramfs];
        Ok(blobs.iter().all(|blob| self.store.blob(blob).is_some()).then_some(image))
    }

    /// The newest bundle that came by the same preset.
    pub(crate) async fn kept_for(&self, wanted: &Wanted) -> Result<Option<BaseImage>, BaseError> {
        let (this, preset) = (self.clone(), wanted.preset);
        let arch = wanted.arch.unwrap_or(self.options.arch);
        blocking(move |_| this.newest_of(preset, arch)).await
    }

    fn newest_of(&self, preset: Preset, arch: Arch) -> Result<Option<BaseImage>, BaseError> {
        let mut records = self.store.records::<BaseImage>(Kind::Base)?.records;
        records.retain(|record| record.value.preset == preset && record.value.arch == arch.as_str());
        records.sort_by_key(|record| std::cmp::Reverse(record.created));
        for record in records {
            if let Some(image) = self.present(&record.value.bundle_id)? {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// Evicts what is beyond `keep`.
    async fn retain(&self) -> Result<(), BaseError> {
        if self.store.records::<BaseImage>(Kind::Base)?.records.len() <= self.options.keep {
            return Ok(());
        }
        let options = GcOptions { keep_bases: self.options.keep, ..GcOptions::default() };
        match self.store.anew().gc(&options, self.downloader.progress()).await {
            Ok(_) => Ok(()),
            // The bundle is there; what is too many goes another time.
            Err(error @ StoreError::Busy { .. }) => {
                self.downloader.progress().note(format!("old base images stay for now: {error}"));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn request(bundle_id: &str, part: &str, artifact: &Artifact, max_size: u64) -> Result<Request, BaseError> {
    let urls = match &artifact.place {
        Place::Url(url) => vec![url.clone()],
        Place::Mirrors(urls) => urls.clone(),
        Place::Path(path) => vec![download::place_of(path)?],
    };
    let file = artifact.file_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    Ok(Request {
        what: format!("the {part} of {bundle_id}{file}"),
        urls,
        headers: Default::default(),
        digest: artifact.sha256,
        size: artifact.size,
        max_size,
    })
}

/// Which file system this is, by its first bytes.
///
/// Source: the kernel's `squashfs_fs.h` (`SQUASHFS_MAGIC`) and `ext4.rst` (`s_magic`).
pub(crate) fn file_system(file: &mut File) -> io::Result<Option<RootfsType>> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(1024 + 58).read_to_end(&mut head)?;
    Ok(if head.starts_with(b"hsqs") {
        Some(RootfsType::Squashfs)
    } else if head.get(1024 + 56..) == Some(&[0x53, 0xef]) {
        Some(RootfsType::Ext4)
    } else {
        None
    })
}
