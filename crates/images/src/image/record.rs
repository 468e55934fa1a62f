//! What is kept of an image: its record, and the names that lead to it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::config::{History, ImageConfig};
use super::error::ImageError;
use super::platform::Platform;
use super::reference::{BadReference, Reference};
use crate::digest::Digest;
use crate::progress::Progress;
use crate::store::{Kind, RecordId, Store};

/// The version of how layers become a file system. An image that an older version made is made again when it is pulled
/// or imported next; until then it stays usable.
pub const CONVERTER: u32 = 1;

/// The fewest digits of an id that are taken for one.
const SHORTEST_PREFIX: usize = 4;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name for ever: the digest of its manifest, or of what stands for one where it came without.
    pub id: Digest,
    /// The root file system.
    pub root: Root,
    /// What it runs on.
    pub platform: Platform,
    /// What to run in it.
    pub config: ImageConfig,
    /// The layers it was made of, lowest first. They are not kept.
    #[serde(default)]
    pub layers: Vec<Layer>,
    /// How it was built, as far as it says.
    #[serde(default)]
    pub history: Vec<History>,
    /// Where it came from: a reference, or a path with its kind.
    pub source: String,
    /// When it was built, in RFC 3339, as it says itself.
    #[serde(default)]
    pub created: Option<String>,
    /// When it was pulled or imported, in seconds since 1970.
    pub pulled: u64,
    /// The version of the code that made the file system: [`CONVERTER`]. 0 for one that came as a file system.
    pub converter: u32,
}

/// A file that a machine mounts as its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// What is in it.
    pub kind: RootKind,
    /// The blob in the store.
    pub digest: Digest,
    /// The UUID of the file system, in lower case, by which guests find the disk. `None` where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The file's length.
    pub size_bytes: u64,
    /// What it takes on disk: holes take nothing.
    pub used_bytes: u64,
}

/// The kind of a root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootKind {
    /// ext4, as all that is converted.
    Ext4,
    /// squashfs, as some base images are.
    Squashfs,
}

/// A layer that an image was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Of its bytes as stored in the registry.
    pub digest: Digest,
    /// Of the unpacked tar archive.
    pub diff_id: Digest,
    /// As stored in the registry, in bytes.
    pub size: u64,
}

/// What a name says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tag {
    image: Digest,
}

/// An image with its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Named {
    /// The image.
    #[serde(flatten)]
    pub image: Image,
    /// Its names, sorted.
    pub names: Vec<Reference>,
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// The image that is gone with its last name. Its blob goes with the next gc.
    pub deleted: Option<Digest>,
}

/// All images, by id, each with its names.
///
/// # Errors
/// The store cannot be read.
pub fn list(store: &Store) -> Result<Vec<Named>, ImageError> {
    let images: Vec<(String, Image)> = store.list(Kind::Image)?;
    let mut names = names_by_image(store)?;
    let named = images.into_iter().map(|(_, image)| {
        let names = names.remove(&image.id).unwrap_or_default();
        Named { image, names }
    });
    Ok(named.collect())
}

/// The image that a user means: by name, by id, or by the beginning of an id (at least 4 digits, with or without `sha256:`).
/// A name comes first where a text could be both.
///
/// # Errors
/// [`ImageError::NotFound`], [`ImageError::Ambiguous`], [`ImageError::Reference`].
pub fn resolve(store: &Store, text: &str) -> Result<Named, ImageError> {
    let parsed = text.parse::<Reference>();
    if let Ok(reference) = &parsed
        && let Some(tag) = store.get::<Tag>(Kind::Tag, &reference.to_string())?
        && let Some(image) = by_id(store, tag.image)?
    {
        return named(store, image);
    }
    let digits = text.strip_prefix("sha256:").unwrap_or(text).to_owned();
    let is_id = (SHORTEST_PREFIX..=64).contains(&digits.len())
        && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_id {
        let images: Vec<(String, Image)> = store.list(Kind::Image)?;
        let mut found: Vec<Image> = images
            .into_iter()
            .map(|(_, image)| image)
            .filter(|image| image.id.hex().starts_with(&digits))
            .collect();
        if found.len() > 1 {
            let ids = found.iter().map(|image| image.id.hex()[..16].to_owned()).collect();
            return Err(ImageError::Ambiguous { prefix: text.to_owned(), ids });
        }
        if let Some(image) = found.pop() {
            return named(store, image);
        }
    }
    match parsed {
        Err(source) if !is_id => {
            Err(ImageError::Reference { text: text.chars().take(300).collect(), source })
        }
        _ => Err(ImageError::NotFound { name: text.to_owned() }),
    }
}

/// Gives an image one more name. A name that another image had is taken from it.
///
/// # Errors
/// The image cannot be found, the name has the digest of another image, the store cannot be written.
pub fn tag(store: &Store, image: &str, name: &Reference) -> Result<Named, ImageError> {
    let image = resolve(store, image)?.image;
    check_pin(name, image.id)?;
    put_tag(store, name, image.id)?;
    named(store, image)
}

/// Removes a name, and the image with its last name. Given an id, removes the image with all its names, when it has
/// at most one or `force` is set.
///
/// # Errors
/// [`ImageError::InUse`] when a machine runs from it; when it belongs to a base image, which is removed as a whole.
/// [`ImageError::SeveralNames`] when it has several and only its id is given.
pub fn remove(store: &Store, text: &str, force: bool) -> Result<Removed, ImageError> {
    let found = resolve(store, text)?;
    let by_name = text.parse::<Reference>().ok().filter(|name| found.names.contains(name));
    let goes = match &by_name {
        Some(name) => vec![name.clone()],
        None if found.names.len() > 1 && !force => {
            let names: Vec<String> = found.names.iter().map(Reference::familiar).collect();
            return Err(ImageError::SeveralNames { id: text.to_owned(), names });
        }
        None => found.names.clone(),
    };
    let deleted = goes.len() == found.names.len();
    if deleted {
        if let Some(keeper) = keeper(store, found.image.id)? {
            return Err(ImageError::InUse { name: text.to_owned(), by: format!("by the {keeper}") });
        }
        let users = store.users_of(&[found.image.root.digest])?;
        // Another record, of a base bundle or a second image, may keep the same file for them; then they do not mind.
        if let Some(user) = users.first()
            && !force
        {
            return Err(ImageError::InUse { name: text.to_owned(), by: format!("by machine `{}`", user.id) });
        }
    }
    let mut removed = Removed::default();
    for name in goes {
        store.remove(Kind::Tag, &name.to_string())?;
        removed.untagged.push(name);
    }
    // Names first: killed in between, we leave an image without name, and never a name without image.
    if deleted {
        store.remove(Kind::Image, &found.image.id.to_string())?;
        removed.deleted = Some(found.image.id);
    }
    Ok(removed)
}

/// Takes a name from an image, if it still is that image's, and the image with its last name. Where somebody else keeps it or runs
/// a machine from it, it stays.
pub(crate) fn release(store: &Store, id: Digest, name: Option<&Reference>) -> Result<(), ImageError> {
    if let Some(name) = name.map(Reference::to_string)
        && store.get::<Tag>(Kind::Tag, &name)?.is_some_and(|tag| tag.image == id)
    {
        store.remove(Kind::Tag, &name)?;
    }
    let Some(image) = by_id(store, id)? else { return Ok(()) };
    let is_free = !names_by_image(store)?.contains_key(&id)
        && keeper(store, id)?.is_none()
        && store.users_of(&[image.root.digest])?.is_empty();
    if is_free {
        store.remove(Kind::Image, &id.to_string())?;
    }
    Ok(())
}

/// The base-image bundle that an image belongs to.
fn keeper(store: &Store, id: Digest) -> Result<Option<RecordId>, ImageError> {
    let id = RecordId::new(Kind::Image, id.to_string());
    let bases = store.records::<serde_json::Value>(Kind::Base)?.records;
    Ok(bases.into_iter().find(|base| base.keeps.contains(&id)).map(|base| base.id))
}

/// Keeps a root file system that came as one: its blob is in the store already.
///
/// # Errors
/// The blob is missing, the store cannot be written.
pub fn adopt(
    store: &Store,
    root: Root,
    platform: Platform,
    config: ImageConfig,
    source: &str,
    name: Option<&Reference>,
) -> Result<Image, ImageError> {
    let id = id_of_file(&root, &platform, &config);
    let image = Image {
        id,
        root,
        platform,
        config,
        layers: Vec::new(),
        history: Vec::new(),
        source: source.to_owned(),
        created: None,
        pulled: now(),
        converter: 0,
    };
    put(store, &image)?;
    if let Some(name) = name {
        put_tag(store, name, id)?;
    }
    Ok(image)
}

/// The id of an image that has no manifest: of the file and what is said about it.
pub(super) fn id_of_file(root: &Root, platform: &Platform, config: &ImageConfig) -> Digest {
    let said =
        serde_json::json!({"root": root.digest, "kind": root.kind, "platform": platform, "config": config});
    Digest::of(said.to_string().as_bytes())
}

/// The image of this id, when this code would make the same file of it, and it is whole. It is held then.
pub(super) fn usable(store: &Store, id: Digest) -> Result<Option<Image>, ImageError> {
    let image = by_id(store, id)?;
    Ok(image.filter(|image| {
        (image.converter == CONVERTER || image.converter == 0) && store.blob(&image.root.digest).is_some()
    }))
}

pub(super) fn by_id(store: &Store, id: Digest) -> Result<Option<Image>, ImageError> {
    Ok(store.get(Kind::Image, &id.to_string())?)
}

pub(super) fn put(store: &Store, image: &Image) -> Result<(), ImageError> {
    Ok(store.put(Kind::Image, &image.id.to_string(), image, &[image.root.digest])?)
}

/// Only who fetched an image by its digest knows that it has it.
pub(super) fn check_pin(name: &Reference, image: Digest) -> Result<(), ImageError> {
    match name.digest() {
        Some(digest) if digest != image => {
            Err(ImageError::Reference { text: name.familiar(), source: BadReference::Pinned })
        }
        _ => Ok(()),
    }
}

pub(super) fn put_tag(store: &Store, name: &Reference, image: Digest) -> Result<(), ImageError> {
    let text = name.to_string();
    if store.get::<Tag>(Kind::Tag, &text)?.is_some_and(|tag| tag.image == image) {
        return Ok(());
    }
    // An image that has a name of its own stays when the base image goes that it came with.
    let keeps = [RecordId::new(Kind::Image, image.to_string())];
    Ok(store.put_keeping(Kind::Tag, &text, &Tag { image }, &[], &keeps)?)
}

/// One process at a time makes an image.
pub(super) async fn lock(
    store: &Store,
    id: Digest,
    progress: &Progress,
) -> Result<crate::store::StoreLock, ImageError> {
    Ok(store.lock("make image", &id.to_string(), progress).await?)
}

pub(super) fn named(store: &Store, image: Image) -> Result<Named, ImageError> {
    let names = names_by_image(store)?.remove(&image.id).unwrap_or_default();
    Ok(Named { image, names })
}

fn names_by_image(store: &Store) -> Result<BTreeMap<Digest, Vec<Reference>>, ImageError> {
    let mut names: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
    let tags: Vec<(String, Tag)> = store.list(Kind::Tag)?;
    for (name, tag) in tags {
        if let Ok(name) = name.parse() {
            names.entry(tag.image).or_default().push(name);
        }
    }
    Ok(names)
}

pub(super) fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use smartvm_core::explain::{Code, Explain};

    use super::*;
    use crate::store::{BlobMode, GcOptions};

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    fn image(store: &Store, content: &str, name: Option<&str>) -> Image {
        let digest = store.put_bytes(content.as_bytes(), BlobMode::Data).unwrap();
        let root = Root { kind: RootKind::Squashfs, digest, uuid: None, size_bytes: 1, used_bytes: 1 };
        let name = name.map(reference);
        adopt(store, root, Platform::host(), ImageConfig::default(), "base", name.as_ref()).unwrap()
    }

    #[test]
    fn an_image_is_found_by_name_id_and_the_ids_beginning() {
        let (_dir, store) = store();
        let one = image(&store, "one", Some("alpine:3"));
        image(&store, "two", Some("debian"));
        for text in
            ["alpine:3", "docker.io/library/alpine:3", &one.id.to_string(), &one.id.hex(), &one.id.hex()[..8]]
        {
            let found = resolve(&store, text).unwrap();
            assert_eq!((found.image.id, found.names), (one.id, vec![reference("alpine:3")]), "{text}");
        }
        for text in ["alpine", "quay.io/alpine:3", &one.id.hex()[..3]] {
            assert_eq!(resolve(&store, text).unwrap_err().code(), Code::NotFound, "{text}");
        }
        assert_eq!(resolve(&store, "A B").unwrap_err().code(), Code::InvalidId);
    }

    #[test]
    fn an_ids_beginning_that_fits_two_names_both() {
        let (_dir, store) = store();
        let same = |last: u8| {
            let mut bytes = [0xab; 32];
            bytes[31] = last;
            Digest::from_bytes(bytes)
        };
        let template = image(&store, "x", None);
        for id in [same(1), same(2)] {
            put(&store, &Image { id, ..template.clone() }).unwrap();
        }
        let error = resolve(&store, "abab").unwrap_err();
        assert!(matches!(&error, ImageError::Ambiguous { ids, .. } if ids.len() == 2), "{error}");
        assert_eq!(resolve(&store, &same(2).hex()).unwrap().image.id, same(2));
    }

    #[test]
    fn no_name_passes_an_image_off_as_another() {
        let (_dir, store) = store();
        let one = image(&store, "one", Some("a:1"));
        let two = image(&store, "two", None);
        let id = two.id.to_string();
        assert_eq!(id.parse::<Reference>(), Err(BadReference::Identifier));
        assert_eq!(id[..20].parse::<Reference>(), Err(BadReference::Identifier));
        assert_eq!(resolve(&store, &id[..20]).unwrap().image.id, two.id);
        let error = tag(&store, "a:1", &reference(&format!("b@{id}"))).unwrap_err();
        assert_eq!(error.code(), Code::InvalidId);
        tag(&store, "a:1", &reference(&format!("b@{}", one.id))).unwrap();
    }

    #[test]
    fn the_last_name_takes_the_image_along() {
        let (_dir, store) = store();
        let one = image(&store, "one", Some("a:1"));
        tag(&store, "a:1", &reference("b:2")).unwrap();
        let removed = remove(&store, "a:1", false).unwrap();
        assert_eq!(removed, Removed { untagged: vec![reference("a:1")], deleted: None });
        let removed = remove(&store, "b:2", false).unwrap();
        assert_eq!(removed, Removed { untagged: vec![reference("b:2")], deleted: Some(one.id) });
        assert_eq!(list(&store).unwrap(), []);
    }

    #[test]
    fn an_id_removes_all_names_only_when_forced() {
        let (_dir, store) = store();
        let one = image(&store, "one", Some("a:1"));
        tag(&store, "a:1", &reference("b:2")).unwrap();
        let id = one.id.to_string();
        let error = remove(&store, &id, false).unwrap_err();
        assert_eq!(error.code(), Code::InUse);
        assert!(error.to_string().contains("a:1, b:2"), "{error}");
        assert_eq!(error.hint().unwrap(), "remove its names first: smartvm image rm NAME");
        assert_eq!(remove(&store, &id, true).unwrap().untagged.len(), 2);
    }

    #[test]
    fn an_image_in_use_stays() {
        let (_dir, store) = store();
        let one = image(&store, "one", Some("a:1"));
        tag(&store, "a:1", &reference("b:2")).unwrap();
        let guard = store.use_blobs("web-1", &[one.root.digest]).unwrap();
        // Its names may go, as long as one is left.
        remove(&store, "a:1", false).unwrap();
        let error = remove(&store, "b:2", false).unwrap_err();
        assert_eq!(error.code(), Code::InUse);
        assert!(error.to_string().contains("web-1"), "{error}");
        drop(guard);
        remove(&store, "b:2", false).unwrap();
    }

    #[tokio::test]
    async fn a_name_moves_from_one_image_to_another_and_gc_keeps_both() {
        let (_dir, store) = store();
        let one = image(&store, "one", Some("a:1"));
        let two = image(&store, "two", Some("a:1"));
        assert_eq!(resolve(&store, "a:1").unwrap().image.id, two.id);
        assert_eq!(resolve(&store, &one.id.to_string()).unwrap().names, []);
        let report = store.anew().gc(&GcOptions::default(), &Progress::none()).await.unwrap();
        assert_eq!(report.blobs.len(), 0);
        assert!(usable(&store, one.id).unwrap().is_some());
        let newer = Image { converter: CONVERTER + 1, ..two };
        put(&store, &newer).unwrap();
        assert!(usable(&store, newer.id).unwrap().is_none());
    }
}
