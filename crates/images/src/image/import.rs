//! Importing an image from a file, a directory or a stream.
//!
//! | what | how it is recognised |
//! | --- | --- |
//! | OCI layout | a directory or tar with `oci-layout` and `index.json` |
//! | `docker save` | a tar with `manifest.json` |
//! | root file system | any other tar, or directory |
//!
//! Tars may be compressed (gzip, zstd, xz, bzip2). Layers are read in place; only a compressed archive of an image, and
//! what comes from a pipe, is first written to a file of the store, since it is read more than once. Without root,
//! a directory has the owners that this user can give, and no device nodes: import a tar to keep those.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::archive::{Amount, Holds, Place, Seen};
use super::config::{ConfigDocument, ImageConfig};
use super::error::ImageError;
use super::make::{self, Ingredients};
use super::manifest::{
    Descriptor, Document, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, Manifest, OCI_CONFIG, OCI_LAYER,
};
use super::platform::Platform;
use super::record::{self, Image};
use super::reference::Reference;
use crate::blocking::{Abandoned, blocking};
use crate::digest::Digest;
use crate::progress::Progress;
use crate::rootfs::{self, Contents};
use crate::store::{Staged, Store};

/// How deep indexes may lie in indexes.
const DEPTH: usize = 3;

/// Where an image comes from.
pub enum ImportSource {
    /// A file, a fifo or a directory.
    Path(PathBuf),
    /// A stream, such as standard input; it is read to its end. The text names it in errors.
    Stream(String, Box<dyn Read + Send>),
}

impl std::fmt::Debug for ImportSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stream(name, _) => f.debug_tuple("Stream").field(name).finish_non_exhaustive(),
        }
    }
}

/// What a source is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// What it looks like.
    #[default]
    Detect,
    /// An image: an OCI layout, or what `docker save` wrote.
    Image,
    /// A root file system, whatever lies in it.
    Root,
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// What the source is.
    pub format: Format,
    /// Which image, where the source holds several: its name or tag in there.
    pub select: Option<String>,
    /// Which platform, where an image has several; and the platform of a root file system.
    pub platform: Platform,
    /// What to run in a root file system.
    pub config: ImageConfig,
    /// The name to give. Without one, the names that `docker save` wrote are given.
    pub name: Option<Reference>,
    /// What archives may not exceed.
    pub limits: rootfs::Limits,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            format: Format::Detect,
            select: None,
            platform: Platform::host(),
            config: ImageConfig::default(),
            name: None,
            limits: rootfs::Limits::default(),
        }
    }
}

/// An imported image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image.
    pub image: Image,
    /// The names that it was given.
    pub names: Vec<Reference>,
    /// Whether it was here already.
    pub was_here: bool,
}

/// Imports an image, makes its file system, and names it.
///
/// # Errors
/// See [`ImageError`]. The store then has no half image.
///
/// # Cancel safety
/// When the future is dropped, the work stops soon and leaves nothing.
pub async fn import(
    store: &Store,
    source: ImportSource,
    options: &ImportOptions,
    progress: &Progress,
) -> Result<Imported, ImageError> {
    let read = {
        let (store, options, progress) = (store.clone(), options.clone(), progress.clone());
        let read = blocking(move |abandoned| read(&store, source, &options, &progress, abandoned)).await;
        read.map_err(damaged)?
    };
    let Found { what, names, made, _spooled } = read;
    let (image, was_here) = match made {
        Made::Image(ingredients) => {
            let id = ingredients.id;
            let _lock = record::lock(store, id, progress).await?;
            match record::usable(store, id)? {
                Some(image) => (image, true),
                None => (make::image(store, *ingredients, progress).await?, false),
            }
        }
        Made::Directory(contents) => {
            let root = make::root(store, contents, options.limits, progress).await?;
            let id = record::id_of_file(&root, &options.platform, &options.config);
            let was_here = record::usable(store, id)?.is_some();
            let image =
                record::adopt(store, root, options.platform.clone(), options.config.clone(), &what, None)?;
            (image, was_here)
        }
    };
    let names = match &options.name {
        Some(name) => {
            record::check_pin(name, image.id)?;
            vec![name.clone()]
        }
        // An archive may call itself what it likes, but not by the digest of another image.
        None => names.into_iter().filter(|name| record::check_pin(name, image.id).is_ok()).collect(),
    };
    for name in &names {
        record::put_tag(store, name, image.id)?;
    }
    Ok(Imported { image, names, was_here })
}

/// What is here already has not been changed on its way from a registry: the source itself is damaged.
fn damaged(error: ImageError) -> ImageError {
    match error {
        ImageError::Mismatch { what, expected, got } => {
            ImageError::malformed(what, format!("it is damaged: expected {expected}, got {got}"))
        }
        error => error,
    }
}

/// What a source was found to hold.
struct Found {
    what: String,
    names: Vec<Reference>,
    made: Made,
    /// What the layers are read from, where it is ours: gone when this is dropped.
    _spooled: Vec<Staged>,
}

enum Made {
    Image(Box<Ingredients>),
    Directory(Contents),
}

/// One image of a place, before it is proven.
struct Chosen {
    manifest: Option<Manifest>,
    id: Option<Digest>,
    config: Vec<u8>,
    layers: Vec<String>,
    names: Vec<Reference>,
}

fn read(
    store: &Store,
    source: ImportSource,
    options: &ImportOptions,
    progress: &Progress,
    abandoned: &Abandoned,
) -> Result<Found, ImageError> {
    let mut spooled = Vec::new();
    let (name, layer, file) = match source {
        ImportSource::Path(path) => {
            let metadata =
                std::fs::metadata(&path).map_err(|error| ImageError::file("open", &path, error))?;
            let name = path.display().to_string();
            if metadata.is_dir() {
                return directory(path, name, options, abandoned);
            }
            let file = File::open(&path).map_err(|error| ImageError::file("open", &path, error))?;
            if metadata.is_file() {
                let file = Arc::new(file);
                let layer = rootfs::Layer::part(name.clone(), Arc::clone(&file), 0, metadata.len());
                (name, layer, file)
            } else {
                let (staged, layer, file) = spool(store, &name, file, options, progress, abandoned)?;
                spooled.push(staged);
                (name, layer, file)
            }
        }
        ImportSource::Stream(name, stream) => {
            let (staged, layer, file) = spool(store, &name, stream, options, progress, abandoned)?;
            spooled.push(staged);
            (name, layer, file)
        }
    };
    let seen = Seen::of(&layer, &options.limits, abandoned)?;
    // Else a pipe whose first command failed would become an image that is good for nothing.
    if seen.amount() != Amount::Files {
        let is_stream = !spooled.is_empty() && seen.amount() == Amount::Nothing;
        return Err(ImageError::Empty { what: name, is_stream });
    }
    let holds = match (options.format, seen.holds()) {
        (Format::Root, _) => Holds::Root,
        (Format::Image, Holds::Root) => {
            return Err(ImageError::malformed(
                name,
                "it holds neither an OCI layout nor what `docker save` writes",
            ));
        }
        (_, holds) => holds,
    };
    if holds == Holds::Root {
        return root_archive(layer, name, options, abandoned, spooled);
    }
    let file = if layer.is_packed()? {
        let mut staged = store.stage()?;
        layer.unpack_now(staged.file(), &options.limits, progress, abandoned)?;
        let file = reopen(&staged)?;
        spooled.push(staged);
        file
    } else {
        file
    };
    let place = seen.in_file(&name, file);
    image(&place, holds, options, abandoned, spooled)
}

/// Writes a stream into a file of the store, since it will be read more than once.
fn spool(
    store: &Store,
    name: &str,
    mut stream: impl Read,
    options: &ImportOptions,
    progress: &Progress,
    abandoned: &Abandoned,
) -> Result<(Staged, rootfs::Layer, Arc<File>), ImageError> {
    let mut staged = store.stage()?;
    let mut task = progress.task(format!("read {name}"), None);
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0_u64;
    loop {
        let got = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ImageError::file("read", Path::new(name), error)),
        };
        if abandoned.is() {
            return Err(rootfs::RootfsError::Stopped.into());
        }
        size += got as u64;
        if size > options.limits.unpacked_bytes {
            let limit = options.limits.unpacked_bytes;
            return Err(rootfs::RootfsError::Limit { layer: name.to_owned(), what: "bytes", limit }.into());
        }
        staged.write_all(&buffer[..got]).map_err(|error| staged.failed("write", error))?;
        task.advance(got as u64);
    }
    let file = reopen(&staged)?;
    let layer = rootfs::Layer::part(name, Arc::clone(&file), 0, size);
    Ok((staged, layer, file))
}

fn reopen(staged: &Staged) -> Result<Arc<File>, ImageError> {
    let file = File::open(staged.path()).map_err(|error| ImageError::file("open", staged.path(), error))?;
    Ok(Arc::new(file))
}

fn directory(
    path: PathBuf,
    name: String,
    options: &ImportOptions,
    abandoned: &Abandoned,
) -> Result<Found, ImageError> {
    let is_layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
    match (options.format, is_layout) {
        (Format::Image, false) => Err(ImageError::malformed(name, "it is no OCI layout")),
        (Format::Detect | Format::Image, true) => {
            image(&Place::Directory(path), Holds::Layout, options, abandoned, Vec::new())
        }
        (Format::Detect | Format::Root, _) => {
            // One that cannot be read is told of when its files are.
            if std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none()) {
                return Err(ImageError::Empty { what: name, is_stream: false });
            }
            Ok(Found {
                what: format!("directory {name}"),
                names: Vec::new(),
                made: Made::Directory(Contents::Directory(rootfs::Directory::new(path))),
                _spooled: Vec::new(),
            })
        }
    }
}

/// A tar of a root file system becomes an image of one layer.
fn root_archive(
    layer: rootfs::Layer,
    name: String,
    options: &ImportOptions,
    abandoned: &Abandoned,
    spooled: Vec<Staged>,
) -> Result<Found, ImageError> {
    let stored = layer.stored_digest_now(abandoned)?;
    let unpacked = layer.unpacked_digest_now(stored, &options.limits, abandoned)?;
    let document = ConfigDocument {
        platform: options.platform.clone(),
        created: None,
        config: options.config.clone(),
        diff_ids: vec![unpacked],
        history: Vec::new(),
    };
    // The unpacked archive is what counts: the same root compressed otherwise is the same image.
    let size = layer.len();
    let layers = vec![descriptor(OCI_LAYER, stored, size)];
    let id = synthetic(&document.to_json(), vec![descriptor(OCI_LAYER, unpacked, 0)]).1;
    let what = format!("root archive {name}");
    let contents = Contents::Archive(layer.identified(unpacked));
    let (source, limits) = (what.clone(), options.limits);
    let ingredients = Ingredients { id, document, layers, contents, source, limits };
    Ok(Found { what, names: Vec::new(), made: Made::Image(Box::new(ingredients)), _spooled: spooled })
}

/// Finds the image that is meant, and proves all of it.
fn image(
    place: &Place,
    holds: Holds,
    options: &ImportOptions,
    abandoned: &Abandoned,
    spooled: Vec<Staged>,
) -> Result<Found, ImageError> {
    let chosen = match holds {
        Holds::Layout => layout(place, options)?,
        _ => docker_save(place, options)?,
    };
    let document = ConfigDocument::parse(&chosen.config).map_err(|error| {
        ImageError::malformed(place.name(), format!("the image's config is not as expected: {error}"))
    })?;
    make::check_count(&place.name(), chosen.layers.len(), &document)?;
    if !options.platform.runs(&document.platform) {
        let available = vec![document.platform];
        return Err(ImageError::NoPlatform {
            what: place.name(),
            wanted: options.platform.clone(),
            available,
        });
    }
    let total = rootfs::Total::new(&options.limits);
    let mut layers = Vec::new();
    let mut descriptors = Vec::new();
    for (number, (name, diff_id)) in chosen.layers.iter().zip(&document.diff_ids).enumerate() {
        let layer = place.layer(name)?;
        let stored = layer.stored_digest_now(abandoned)?;
        let promised = chosen.manifest.as_ref().map(|manifest| &manifest.layers[number]);
        make::prove(layer.name(), promised.map(|layer| layer.digest), stored)?;
        // Only now, so that what nobody promised is not unpacked.
        let unpacked = layer.counted_digest_now(stored, &options.limits, &total, abandoned)?;
        make::prove(&format!("{}, unpacked,", layer.name()), Some(*diff_id), unpacked)?;
        if promised.is_some_and(|promised| promised.size != layer.len()) {
            return Err(ImageError::malformed(
                layer.name(),
                "it has another size than the manifest promises",
            ));
        }
        descriptors.push(descriptor(OCI_LAYER, stored, layer.len()));
        layers.push(layer.identified(*diff_id));
    }
    let id = chosen.id.unwrap_or_else(|| synthetic(&chosen.config, descriptors.clone()).1);
    let kind = if holds == Holds::Layout { "OCI layout" } else { "docker save" };
    let what = format!("{kind} {}", place.name());
    let ingredients = Ingredients {
        id,
        document,
        layers: descriptors,
        contents: Contents::Layers(layers),
        source: what.clone(),
        limits: options.limits,
    };
    Ok(Found { what, names: chosen.names, made: Made::Image(Box::new(ingredients)), _spooled: spooled })
}

/// The image of a layout: the selected one, or the only one (for the platform).
fn layout(place: &Place, options: &ImportOptions) -> Result<Chosen, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Mark {
        image_layout_version: String,
    }
    let name = place.name();
    let mark = serde_json::from_slice::<Mark>(&place.read("oci-layout", 64 << 10)?);
    if !mark.is_ok_and(|mark| mark.image_layout_version.starts_with("1.")) {
        return Err(ImageError::malformed(name, "`oci-layout` does not name version 1 of the layout"));
    }
    let parse = |what: &str, bytes: &[u8]| {
        Document::parse(bytes).map_err(|error| ImageError::manifest(format!("{what} of {name}"), &error))
    };
    let index = match parse("`index.json`", &place.read("index.json", MAX_MANIFEST)?)? {
        Document::Index(index) => index,
        Document::Manifest(_) => return Err(ImageError::malformed(name, "`index.json` is not an index")),
    };
    let images: Vec<&Descriptor> = index
        .manifests
        .iter()
        .filter(|entry| entry.is_document())
        .filter(|entry| options.select.as_deref().is_none_or(|wanted| entry.is_called(wanted)))
        .collect();
    let entry = match images.as_slice() {
        [only] => *only,
        [] => {
            return Err(none_selected(
                &name,
                options,
                index.manifests.iter().filter_map(Descriptor::ref_name),
            ));
        }
        // Several may be one image for several platforms.
        _ if options.select.is_some() || images.iter().all(|entry| entry.ref_name().is_none()) => {
            index_pick(&images, options).ok_or_else(|| ImageError::NoPlatform {
                what: name.clone(),
                wanted: options.platform.clone(),
                available: index.platforms(),
            })?
        }
        _ => return Err(several(&name, images.iter().filter_map(|entry| entry.ref_name()))),
    };
    let names: Vec<Reference> = entry.full_name().and_then(|name| name.parse().ok()).into_iter().collect();
    let mut entry = entry.clone();
    for _ in 0..DEPTH {
        let bytes = blob(place, &entry, MAX_MANIFEST)?;
        match parse(&format!("manifest {}", entry.digest), &bytes)? {
            Document::Manifest(manifest) => {
                let config = blob(place, &manifest.config, MAX_CONFIG)?;
                let layers = manifest.layers.iter().map(|layer| blob_name(layer.digest)).collect();
                return Ok(Chosen {
                    id: Some(entry.digest),
                    manifest: Some(manifest),
                    config,
                    layers,
                    names,
                });
            }
            Document::Index(inner) => {
                let available = inner.platforms();
                entry = inner.pick(&options.platform).cloned().ok_or_else(|| ImageError::NoPlatform {
                    what: name.clone(),
                    wanted: options.platform.clone(),
                    available,
                })?;
            }
        }
    }
    Err(ImageError::malformed(name, "its indexes lie in each other too deep"))
}

fn index_pick<'a>(images: &[&'a Descriptor], options: &ImportOptions) -> Option<&'a Descriptor> {
    images.iter().copied().find(|entry| entry.platform.as_ref().is_some_and(|own| options.platform.runs(own)))
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A document of a layout, proven.
fn blob(place: &Place, descriptor: &Descriptor, max: u64) -> Result<Vec<u8>, ImageError> {
    let name = blob_name(descriptor.digest);
    let bytes = place.read(&name, max)?;
    make::prove(&format!("`{name}` of {}", place.name()), Some(descriptor.digest), Digest::of(&bytes))?;
    Ok(bytes)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default, deserialize_with = "super::manifest::null_is_empty")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "super::manifest::null_is_empty")]
    layers: Vec<String>,
}

/// The image of what `docker save` wrote: the selected one, or the only one.
fn docker_save(place: &Place, options: &ImportOptions) -> Result<Chosen, ImageError> {
    let name = place.name();
    let bytes = place.read("manifest.json", MAX_MANIFEST)?;
    let images: Vec<Saved> = serde_json::from_slice(&bytes).map_err(|error| {
        ImageError::malformed(&name, format!("`manifest.json` is not what `docker save` writes: {error}"))
    })?;
    let is_selected = |image: &&Saved| {
        options.select.as_deref().is_none_or(|wanted| {
            let meant = wanted.parse::<Reference>().ok();
            image.repo_tags.iter().any(|tag| tag == wanted || (meant.is_some() && tag.parse().ok() == meant))
        })
    };
    let mut found = images.iter().filter(is_selected);
    let tags = || images.iter().flat_map(|image| image.repo_tags.iter().map(String::as_str));
    let image = match (found.next(), found.next()) {
        (Some(image), None) => image,
        (None, _) => return Err(none_selected(&name, options, tags())),
        (Some(_), Some(_)) => return Err(several(&name, tags())),
    };
    if image.layers.len() > MAX_LAYERS {
        let why = format!("it has {} layers; at most {MAX_LAYERS} are read", image.layers.len());
        return Err(ImageError::malformed(name, why));
    }
    Ok(Chosen {
        manifest: None,
        id: None,
        config: place.read(&image.config, MAX_CONFIG)?,
        layers: image.layers.clone(),
        names: image.repo_tags.iter().filter_map(|tag| tag.parse().ok()).collect(),
    })
}

fn none_selected<'a>(
    place: &str,
    options: &ImportOptions,
    names: impl Iterator<Item = &'a str>,
) -> ImageError {
    match &options.select {
        Some(wanted) => ImageError::NotInside {
            what: place.to_owned(),
            wanted: wanted.chars().take(100).collect(),
            names: some_of(names),
        },
        None => ImageError::malformed(place, "it has no image"),
    }
}

fn several<'a>(place: &str, names: impl Iterator<Item = &'a str>) -> ImageError {
    ImageError::Several { what: place.to_owned(), names: some_of(names) }
}

/// No more than fit in a message.
fn some_of<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names.take(20).map(|name| name.chars().take(100).collect()).collect()
}

pub(super) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    let annotations = std::collections::BTreeMap::new();
    Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations }
}

/// The manifest of what came without one, and its digest.
pub(super) fn synthetic(config: &[u8], layers: Vec<Descriptor>) -> (Vec<u8>, Digest) {
    let manifest = Manifest::new(descriptor(OCI_CONFIG, Digest::of(config), config.len() as u64), layers);
    let bytes = serde_json::to_vec(&manifest).expect("it has no map with keys other than text");
    let digest = Digest::of(&bytes);
    (bytes, digest)
}

#[cfg(test)]
mod tests;
