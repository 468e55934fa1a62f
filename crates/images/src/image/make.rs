//! Layers become an image in the store: the one place for all that is pulled or imported.

use super::config::ConfigDocument;
use super::error::ImageError;
use super::manifest::Descriptor;
use super::record::{self, CONVERTER, Image, Layer, Root, RootKind};
use crate::blocking::blocking;
use crate::digest::Digest;
use crate::progress::Progress;
use crate::rootfs::{self, Contents};
use crate::store::{BlobMode, Store};

/// What an image is made of, once all of it is here and proven.
pub(super) struct Ingredients {
    pub(super) id: Digest,
    pub(super) document: ConfigDocument,
    pub(super) layers: Vec<Descriptor>,
    pub(super) contents: Contents,
    pub(super) source: String,
    pub(super) limits: rootfs::Limits,
}

/// Makes the file system and the record. The caller holds the image's lock.
pub(super) async fn image(
    store: &Store,
    ingredients: Ingredients,
    progress: &Progress,
) -> Result<Image, ImageError> {
    let Ingredients { id, document, layers, contents, source, limits } = ingredients;
    let root = root(store, contents, limits, progress).await?;
    let sizes: Vec<u64> = layers.iter().map(|layer| layer.size).collect();
    let history = document.history_with_sizes(&sizes);
    let layers = layers.iter().zip(&document.diff_ids);
    let image = Image {
        id,
        root,
        history,
        layers: layers
            .map(|(layer, diff_id)| Layer { digest: layer.digest, diff_id: *diff_id, size: layer.size })
            .collect(),
        platform: document.platform,
        config: document.config,
        source,
        created: document.created,
        pulled: record::now(),
        converter: CONVERTER,
    };
    record::put(store, &image)?;
    Ok(image)
}

/// Makes the file system alone.
pub(super) async fn root(
    store: &Store,
    contents: Contents,
    limits: rootfs::Limits,
    progress: &Progress,
) -> Result<Root, ImageError> {
    let options = rootfs::Options { limits, ..Default::default() };
    let (store, progress) = (store.clone(), progress.clone());
    blocking(move |abandoned| {
        let mut staged = store.stage()?;
        let built = rootfs::build_now(&contents, staged.file(), &options, &progress, abandoned)?;
        staged.commit(built.digest, BlobMode::Data)?;
        Ok(Root {
            kind: RootKind::Ext4,
            digest: built.digest,
            uuid: Some(uuid_text(&built.uuid)),
            size_bytes: built.size_bytes,
            used_bytes: built.used_bytes,
        })
    })
    .await
}

/// That this is what was promised.
pub(super) fn prove(what: &str, expected: Option<Digest>, got: Digest) -> Result<(), ImageError> {
    match expected {
        Some(expected) if expected != got => {
            let (expected, got) = (Box::new(expected), Box::new(got));
            Err(ImageError::Mismatch { what: what.to_owned(), expected, got })
        }
        _ => Ok(()),
    }
}

/// As many promises as layers.
pub(super) fn check_count(what: &str, layers: usize, document: &ConfigDocument) -> Result<(), ImageError> {
    let promised = document.diff_ids.len();
    if layers == promised {
        return Ok(());
    }
    Err(ImageError::malformed(what, format!("its manifest has {layers} layers, its config {promised}")))
}

/// As guests and people write it.
pub(crate) fn uuid_text(bytes: &[u8; 16]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let groups = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    groups.join("-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_uuid_is_written_as_everybody_writes_it() {
        let bytes: Vec<u8> = (0..16).collect();
        let text = super::uuid_text(bytes.as_slice().try_into().unwrap());
        assert_eq!(text, "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
