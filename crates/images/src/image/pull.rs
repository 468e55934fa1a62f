//! Pulling an image from a registry.
//!
//! ```text
//! name ─ manifest (index → platform) ─ here already? ─ lock ─ here now? ─ config ─ layers (3 at a time) ─ make ─ name it
//! ```
//!
//! Each document and layer is checked against its digest and size when it has come, and each layer against its diff id
//! before the file system is made. A layer that has come is a blob of the store until the image is there; then it is
//! removed: only the file system is kept. So a pull that was killed goes on where it was, and one that fails for good leaves
//! its layers to the next gc.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::config::ConfigDocument;
use super::credentials::Credentials;
use super::error::ImageError;
use super::make::{self, Ingredients};
use super::manifest::{Descriptor, Document, Manifest};
use super::platform::Platform;
use super::record::{self, Image};
use super::reference::Reference;
use super::registry::{Insecure, Registry};
use crate::blocking::blocking;
use crate::digest::Digest;
use crate::download::{self, Downloader};
use crate::progress::Progress;
use crate::rootfs::{self, Contents};
use crate::store::Store;

/// How many layers come side by side.
const AT_ONCE: usize = 3;

/// How deep indexes may lie in indexes.
const DEPTH: usize = 3;

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Which of several images to take. Default: what guests of this host run.
    pub platform: Platform,
    /// When plain HTTP and unknown certificates are taken. Default: from this host itself.
    pub insecure: Insecure,
    /// Who we are. Default: what the environment says.
    pub credentials: Credentials,
    /// How to fetch: certificates, proxy, patience.
    pub download: download::Options,
    /// What layers may not exceed.
    pub limits: rootfs::Limits,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            insecure: Insecure::default(),
            credentials: Credentials::default(),
            download: download::Options::default(),
            limits: rootfs::Limits::default(),
        }
    }
}

/// A pulled image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// Whether it was here already, so that no layer was fetched.
    pub was_here: bool,
}

/// Pulls an image, makes its file system, and gives it its name. Of two processes that pull the same image, the second
/// waits for the first and finds it.
///
/// # Errors
/// See [`ImageError`]. The store then has no half image.
///
/// # Cancel safety
/// When the future is dropped, the work stops soon, and what has been fetched stays for the next try.
pub async fn pull(
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    progress: &Progress,
) -> Result<Pulled, ImageError> {
    let (credentials, name) = (options.credentials.clone(), reference.clone());
    let login = blocking(move |abandoned| credentials.login(&name, abandoned)).await?;
    let downloader = Downloader::new(options.download.clone(), progress.clone());
    let registry = Registry::connect(&downloader, reference, options.insecure, login).await?;
    let (manifest, id) = find(&registry, reference, &options.platform).await?;
    if let Some(image) = here(store, reference, id, &options.platform)? {
        return Ok(Pulled { image, was_here: true });
    }
    let _lock = record::lock(store, id, progress).await?;
    if let Some(image) = here(store, reference, id, &options.platform)? {
        return Ok(Pulled { image, was_here: true });
    }
    let what = format!("the image {}", reference.familiar());
    let bytes = registry.config(&manifest.config).await?;
    let document = ConfigDocument::parse(&bytes)
        .map_err(|error| ImageError::malformed(&what, format!("its config is not as expected: {error}")))?;
    make::check_count(&what, manifest.layers.len(), &document)?;
    if !options.platform.runs(&document.platform) {
        let available = vec![document.platform];
        return Err(ImageError::NoPlatform { what, wanted: options.platform.clone(), available });
    }
    // A registry may promise any size, and then send so much.
    let size = manifest.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
    let limit = options.limits.unpacked_bytes;
    if size > limit {
        return Err(rootfs::RootfsError::Limit { layer: what, what: "bytes", limit }.into());
    }
    // A handle of its own, so that the layers are held no longer than they are needed.
    let layers_here = store.anew();
    let layers = fetch(&registry, &layers_here, &manifest, &document, options).await?;
    let ingredients = Ingredients {
        id,
        document,
        layers: manifest.layers.clone(),
        contents: Contents::Layers(layers),
        source: reference.to_string(),
        limits: options.limits,
    };
    let image = make::image(store, ingredients, progress).await?;
    record::put_tag(store, reference, id)?;
    drop(layers_here);
    let (store, layers) = (store.anew(), digests(&manifest.layers));
    blocking(move |_| {
        // The image is there: layers that stay cost room until the next gc, and nothing else.
        if let Err(error) = store.discard(&layers) {
            tracing::debug!(%error, "layers stay until the next gc");
        }
    })
    .await;
    Ok(Pulled { image, was_here: false })
}

/// The manifest for the platform, and its digest.
async fn find(
    registry: &Registry,
    reference: &Reference,
    platform: &Platform,
) -> Result<(Manifest, Digest), ImageError> {
    let mut pointer = reference.pointer();
    for _ in 0..DEPTH {
        let (bytes, digest) = registry.manifest(&pointer).await?;
        let what = || format!("the manifest of {}", reference.familiar());
        match Document::parse(&bytes).map_err(|error| ImageError::manifest(what(), &error))? {
            Document::Manifest(manifest) => return Ok((manifest, digest)),
            Document::Index(index) => match index.pick(platform) {
                Some(entry) => pointer = entry.digest.to_string(),
                None => {
                    return Err(ImageError::NoPlatform {
                        what: reference.to_string(),
                        wanted: platform.clone(),
                        available: index.platforms(),
                    });
                }
            },
        }
    }
    Err(ImageError::malformed(reference.to_string(), "its indexes lie in each other too deep"))
}

/// The image with this id if it need not be made, named.
fn here(
    store: &Store,
    reference: &Reference,
    id: Digest,
    wanted: &Platform,
) -> Result<Option<Image>, ImageError> {
    let Some(image) = record::usable(store, id)? else { return Ok(None) };
    // Without an index, the manifest is the same whatever platform is asked for.
    if !wanted.runs(&image.platform) {
        let what = format!("the image {}", reference.familiar());
        let available = vec![image.platform];
        return Err(ImageError::NoPlatform { what, wanted: wanted.clone(), available });
    }
    record::put_tag(store, reference, id)?;
    Ok(Some(image))
}

/// Fetches and proves the layers, in the manifest's order.
async fn fetch(
    registry: &Registry,
    store: &Store,
    manifest: &Manifest,
    document: &ConfigDocument,
    options: &PullOptions,
) -> Result<Vec<rootfs::Layer>, ImageError> {
    // A layer may stand in an image twice (an empty one often does).
    let each: BTreeMap<Digest, (&Descriptor, Digest)> = manifest
        .layers
        .iter()
        .zip(&document.diff_ids)
        .map(|(layer, diff_id)| (layer.digest, (layer, *diff_id)))
        .collect();
    let limits = options.limits;
    let total = Arc::new(rootfs::Total::new(&limits));
    let fetched: BTreeMap<Digest, rootfs::Layer> = stream::iter(each)
        .map(async |(digest, (layer, diff_id))| {
            registry.layer(store, layer).await?;
            let name = format!("layer {}", &digest.hex()[..12]);
            let path = store.require(&digest, &name)?;
            let total = Arc::clone(&total);
            let made = blocking(move |abandoned| {
                let file =
                    std::fs::File::open(&path).map_err(|error| ImageError::file("open", &path, error))?;
                let len = file.metadata().map_err(|error| ImageError::file("read", &path, error))?.len();
                let layer = rootfs::Layer::part(name, file.into(), 0, len);
                let unpacked = layer.counted_digest_now(digest, &limits, &total, abandoned)?;
                make::prove(&format!("{}, unpacked,", layer.name()), Some(diff_id), unpacked)?;
                Ok::<_, ImageError>(layer.identified(diff_id))
            });
            Ok::<_, ImageError>((digest, made.await?))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    for (layer, diff_id) in manifest.layers.iter().zip(&document.diff_ids) {
        // The same bytes cannot unpack to two contents.
        let proven =
            manifest.layers.iter().zip(&document.diff_ids).find(|(other, _)| other.digest == layer.digest);
        if let Some((_, other)) = proven {
            make::prove(&format!("layer {}, unpacked,", &layer.digest.hex()[..12]), Some(*other), *diff_id)?;
        }
    }
    Ok(manifest.layers.iter().filter_map(|layer| fetched.get(&layer.digest).cloned()).collect())
}

fn digests(layers: &[Descriptor]) -> Vec<Digest> {
    layers.iter().map(|layer| layer.digest).collect()
}
