//! Manifests and indexes: what an image consists of, and which images stand under one name.
//!
//! OCI's and Docker's (schema 2) documents differ in their media types only; both are read by the same code. Everything here
//! comes from strangers: sizes are bounded, an ambiguous document is refused.
//!
//! Sources: OCI image spec (manifest.md, image-index.md, descriptor.md); the distribution project's "Image Manifest V 2, Schema 2".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::platform::Platform;
use crate::digest::Digest;

/// The largest manifest or index, in bytes. Source: OCI distribution spec, "Pushing manifests" (registries hold at least 4 MiB).
pub(super) const MAX_MANIFEST: u64 = 4 << 20;

/// The largest image config, in bytes: as Docker's own client has it.
pub(super) const MAX_CONFIG: u64 = 8 << 20;

/// The most layers of an image. Docker makes at most 127.
pub(super) const MAX_LAYERS: usize = 1000;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a registry is told that we read.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Media types of layers that are tar archives. How they are compressed is seen from their first bytes.
const LAYERS: &[&str] = &[
    OCI_LAYER,
    OCI_LAYER_GZIP,
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// A content by its kind, digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The name that a layout gives to an image (`org.opencontainers.image.ref.name`).
    pub(super) fn ref_name(&self) -> Option<&str> {
        self.annotations.get("org.opencontainers.image.ref.name").map(String::as_str)
    }

    /// The whole name, where the tool that made the layout wrote one.
    pub(super) fn full_name(&self) -> Option<&str> {
        self.annotations.get("io.containerd.image.name").map(String::as_str)
    }

    /// Whether a layout gives it this name, or it has this digest.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.ref_name() == Some(name) || self.full_name() == Some(name) || self.digest.to_string() == name
    }

    /// Whether it is an index or a manifest.
    pub(super) fn is_document(&self) -> bool {
        [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].contains(&self.media_type.as_str())
    }

    /// Proofs of how an image was built stand in an index beside the images themselves.
    fn is_attestation(&self) -> bool {
        self.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
    }
}

/// One image: its config and its layers, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    schema_version: u32,
    media_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// Several images, one for each platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    schema_version: u32,
    media_type: String,
    pub(super) manifests: Vec<Descriptor>,
}

/// What stands under a name or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// Why a document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadManifest {
    #[error("it is not valid JSON of its kind: {0}")]
    Json(String),
    #[error(
        "it is a manifest of Docker's schema 1, which was given up in 2017; push the image again with a newer client"
    )]
    Schema1,
    #[error("schema version {0} is not known")]
    Version(u64),
    #[error("it is both a manifest and an index")]
    Ambiguous,
    #[error("it is neither a manifest nor an index (media type `{0}`)")]
    Kind(String),
    #[error("it is not a container image: its config is `{0}`")]
    Config(String),
    #[error("layer {number} is `{media_type}`, which is no layer of a file system that can be read")]
    Layer { number: usize, media_type: String },
    #[error("it has {0} layers; at most {MAX_LAYERS} are read")]
    TooManyLayers(usize),
}

impl Document {
    /// Reads a manifest or an index.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BadManifest> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| BadManifest::Json(e.to_string()))?;
        match value.get("schemaVersion").and_then(Value::as_u64) {
            Some(2) => {}
            Some(1) => return Err(BadManifest::Schema1),
            Some(other) => return Err(BadManifest::Version(other)),
            None => return Err(BadManifest::Json("`schemaVersion` is missing".to_owned())),
        }
        let has = |name: &str| value.get(name).is_some_and(|value| !value.is_null());
        let is_index = has("manifests");
        if is_index && (has("layers") || has("config")) {
            return Err(BadManifest::Ambiguous);
        }
        // The type in the document may be absent (OCI), and may not contradict its shape.
        let media_type = value.get("mediaType").and_then(Value::as_str).unwrap_or_default();
        let expected = if is_index { [OCI_INDEX, DOCKER_INDEX] } else { [OCI_MANIFEST, DOCKER_MANIFEST] };
        if !media_type.is_empty() && !expected.contains(&media_type) {
            return Err(BadManifest::Kind(shown(media_type)));
        }
        if !is_index && !has("config") {
            return Err(BadManifest::Kind(shown(media_type)));
        }
        let is_silent = media_type.is_empty();
        let mut value = value;
        if is_silent && let Some(object) = value.as_object_mut() {
            object.insert("mediaType".to_owned(), expected[0].into());
        }
        if is_index {
            Ok(Self::Index(Deserialize::deserialize(value).map_err(json)?))
        } else {
            let manifest: Manifest = Deserialize::deserialize(value).map_err(json)?;
            manifest.check()?;
            Ok(Self::Manifest(manifest))
        }
    }
}

impl Manifest {
    /// A manifest in OCI's words.
    pub(super) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: OCI_MANIFEST.to_owned(), config, layers }
    }

    fn check(&self) -> Result<(), BadManifest> {
        if ![OCI_CONFIG, DOCKER_CONFIG].contains(&self.config.media_type.as_str()) {
            return Err(BadManifest::Config(shown(&self.config.media_type)));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(BadManifest::TooManyLayers(self.layers.len()));
        }
        for (index, layer) in self.layers.iter().enumerate() {
            if !LAYERS.contains(&layer.media_type.as_str()) {
                let media_type = shown(&layer.media_type);
                return Err(BadManifest::Layer { number: index + 1, media_type });
            }
        }
        Ok(())
    }
}

impl Index {
    /// The first entry for a platform. One that names no platform fits when it is the only one.
    pub(super) fn pick(&self, platform: &Platform) -> Option<&Descriptor> {
        let images = || self.manifests.iter().filter(|entry| entry.is_document() && !entry.is_attestation());
        let named = images().find(|entry| entry.platform.as_ref().is_some_and(|own| platform.runs(own)));
        let mut all = images();
        named.or(match (all.next(), all.next()) {
            (Some(only), None) if only.platform.is_none() => Some(only),
            _ => None,
        })
    }

    /// The platforms that it has, each once.
    pub(super) fn platforms(&self) -> Vec<Platform> {
        let mut platforms: Vec<Platform> = Vec::new();
        for platform in self.manifests.iter().filter_map(|entry| entry.platform.as_ref()) {
            if platform.os != "unknown" && !platforms.contains(platform) {
                platforms.push(platform.clone());
            }
        }
        platforms
    }
}

fn json(error: serde_json::Error) -> BadManifest {
    BadManifest::Json(error.to_string())
}

/// A stranger's word, short enough for an error.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// `null` where a list or map is meant: Go's clients write it.
pub(super) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(media_type: &str, platform: Option<&str>) -> Value {
        let mut value =
            json!({"mediaType": media_type, "digest": Digest::of(media_type.as_bytes()), "size": 7});
        if let Some(platform) = platform {
            value["platform"] = serde_json::to_value(platform.parse::<Platform>().unwrap()).unwrap();
        }
        value
    }

    fn parse(value: &Value) -> Result<Document, BadManifest> {
        Document::parse(value.to_string().as_bytes())
    }

    #[test]
    fn ocis_and_dockers_manifests_are_read() {
        for (kind, config, layer) in [
            (OCI_MANIFEST, OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd"),
            (DOCKER_MANIFEST, DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
            ("", OCI_CONFIG, OCI_LAYER),
        ] {
            let mut value = json!({"schemaVersion": 2, "config": descriptor(config, None),
                "layers": [descriptor(layer, None)], "annotations": null});
            if !kind.is_empty() {
                value["mediaType"] = kind.into();
            }
            let Document::Manifest(manifest) = parse(&value).unwrap() else { panic!("{value}") };
            assert_eq!((manifest.layers.len(), manifest.layers[0].size), (1, 7));
        }
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let config = descriptor(OCI_CONFIG, None);
        let chart = descriptor("application/vnd.cncf.helm.config.v1+json", None);
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar+encrypted", None);
        for (value, expected) in [
            (json!({"schemaVersion": 1, "fsLayers": []}), BadManifest::Schema1),
            (json!({"schemaVersion": 3}), BadManifest::Version(3)),
            (json!({"schemaVersion": 2, "manifests": [], "layers": []}), BadManifest::Ambiguous),
            (
                json!({"schemaVersion": 2, "manifests": [], "mediaType": OCI_MANIFEST}),
                BadManifest::Kind(OCI_MANIFEST.into()),
            ),
            (json!({"schemaVersion": 2}), BadManifest::Kind(String::new())),
            (
                json!({"schemaVersion": 2, "config": chart, "layers": []}),
                BadManifest::Config("application/vnd.cncf.helm.config.v1+json".into()),
            ),
            (
                json!({"schemaVersion": 2, "config": config, "layers": [layer]}),
                BadManifest::Layer {
                    number: 1,
                    media_type: "application/vnd.oci.image.layer.v1.tar+encrypted".into(),
                },
            ),
            (
                json!({"schemaVersion": 2, "config": config, "layers": vec![descriptor(OCI_LAYER, None); MAX_LAYERS + 1]}),
                BadManifest::TooManyLayers(MAX_LAYERS + 1),
            ),
        ] {
            assert_eq!(parse(&value), Err(expected));
        }
        for text in
            ["", "[]", "{", "{\"schemaVersion\":2,\"config\":{},\"layers\":[]}", "{\"schemaVersion\":\"2\"}"]
        {
            assert!(matches!(Document::parse(text.as_bytes()), Err(BadManifest::Json(_))), "{text}");
        }
    }

    #[test]
    fn the_hosts_platform_is_picked_and_proofs_are_not() {
        let mut proof = descriptor(OCI_MANIFEST, Some("linux/amd64"));
        proof["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        let mut unknown = descriptor(OCI_MANIFEST, None);
        unknown["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        let value = json!({"schemaVersion": 2, "manifests": [proof, unknown, descriptor(OCI_MANIFEST, Some("linux/arm64/v8")),
            descriptor(DOCKER_MANIFEST, Some("linux/amd64")), descriptor(OCI_MANIFEST, Some("linux/amd64"))]});
        let Document::Index(index) = parse(&value).unwrap() else { panic!() };
        let pick = |text: &str| index.pick(&text.parse().unwrap()).map(|entry| entry.media_type.as_str());
        assert_eq!(pick("linux/amd64"), Some(DOCKER_MANIFEST));
        assert_eq!(pick("linux/arm64"), Some(OCI_MANIFEST));
        assert_eq!(pick("linux/riscv64"), None);
        let platforms: Vec<String> = index.platforms().iter().map(Platform::to_string).collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64/v8"]);
    }

    #[test]
    fn a_lone_entry_without_platform_fits() {
        let index = |entries: Value| match parse(&json!({"schemaVersion": 2, "manifests": entries})).unwrap()
        {
            Document::Index(index) => index,
            Document::Manifest(_) => panic!(),
        };
        let lone = descriptor(OCI_MANIFEST, None);
        assert!(index(json!([lone])).pick(&Platform::host()).is_some());
        assert!(index(json!([lone, lone])).pick(&Platform::host()).is_none());
        assert!(index(json!([descriptor("text/plain", None)])).pick(&Platform::host()).is_none());
    }
}
