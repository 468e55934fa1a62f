//! An image's config: what to run in it and how it was built.
//!
//! Source: OCI image spec, config.md. Docker's documents are the same with more fields, which are not kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::manifest::null_is_empty;
use super::platform::Platform;
use crate::digest::Digest;

/// What the image says about the process that is to run in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Words before [`ImageConfig::cmd`].
    pub entrypoint: Vec<String>,
    /// The words that a user replaces by giving a command.
    pub cmd: Vec<String>,
    /// `NAME=value` each, in the image's order.
    pub env: Vec<String>,
    /// The directory to start in. `None` is `/`.
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group`, … as the image has it. `None` is root.
    pub user: Option<String>,
    /// Notes for people and tools.
    pub labels: BTreeMap<String, String>,
    /// `80/tcp` each: what the process listens on.
    pub exposed_ports: Vec<String>,
    /// Directories that hold data rather than program.
    pub volumes: Vec<String>,
    /// The signal that asks the process to end: `SIGTERM` or a number.
    pub stop_signal: Option<String>,
}

/// One step of how an image was built.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// A note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// The size of its layer in the registry, in bytes; 0 for a step that made none.
    pub size: u64,
}

/// The document as a registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigDocument {
    pub(super) platform: Platform,
    pub(super) created: Option<String>,
    pub(super) config: ImageConfig,
    /// The digests of the layers as plain tar archives, the lowest first.
    pub(super) diff_ids: Vec<Digest>,
    pub(super) history: Vec<HistoryEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct HistoryEntry {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    created_by: Option<String>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    empty_layer: bool,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    created: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    architecture: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    os: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    config: WireConfig,
    rootfs: WireRoot,
    #[serde(default, deserialize_with = "null_is_empty")]
    history: Vec<HistoryEntry>,
}

#[derive(Deserialize)]
struct WireRoot {
    #[serde(default, deserialize_with = "null_is_empty")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct WireConfig {
    #[serde(deserialize_with = "null_is_empty")]
    user: String,
    #[serde(deserialize_with = "null_is_empty")]
    exposed_ports: BTreeMap<String, Value>,
    #[serde(deserialize_with = "null_is_empty")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    volumes: BTreeMap<String, Value>,
    #[serde(deserialize_with = "null_is_empty")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_empty")]
    stop_signal: String,
}

impl ConfigDocument {
    /// Reads a config. A missing platform is the one that most images had before they named it: linux/amd64.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let wire: Wire = serde_json::from_slice(bytes)?;
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let some = |text: String| (!text.is_empty()).then_some(text);
        let config = wire.config;
        Ok(Self {
            platform: Platform {
                os: or(wire.os, "linux"),
                architecture: or(wire.architecture, "amd64"),
                variant: wire.variant.and_then(some),
            },
            created: wire.created,
            config: ImageConfig {
                entrypoint: config.entrypoint,
                cmd: config.cmd,
                env: config.env,
                workdir: some(config.working_dir),
                user: some(config.user),
                labels: config.labels,
                exposed_ports: config.exposed_ports.into_keys().collect(),
                volumes: config.volumes.into_keys().collect(),
                stop_signal: some(config.stop_signal),
            },
            diff_ids: wire.rootfs.diff_ids,
            history: wire.history,
        })
    }

    /// The history with the sizes of the layers, as far as both agree.
    pub(super) fn history_with_sizes(&self, layers: &[u64]) -> Vec<History> {
        let mut sizes = layers.iter();
        let steps = self.history.iter().map(|entry| History {
            created: entry.created.clone(),
            created_by: entry.created_by.clone(),
            comment: entry.comment.clone(),
            size: if entry.empty_layer { 0 } else { sizes.next().copied().unwrap_or(0) },
        });
        steps.collect()
    }

    /// The document in OCI's words; the same for the same content.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let config = &self.config;
        let set = |names: &[String]| names.iter().map(|name| (name.clone(), json!({}))).collect::<Value>();
        let mut process = json!({});
        for (name, value) in [
            ("User", json!(config.user)),
            ("ExposedPorts", set(&config.exposed_ports)),
            ("Env", json!(config.env)),
            ("Entrypoint", json!(config.entrypoint)),
            ("Cmd", json!(config.cmd)),
            ("Volumes", set(&config.volumes)),
            ("WorkingDir", json!(config.workdir)),
            ("Labels", json!(config.labels)),
            ("StopSignal", json!(config.stop_signal)),
        ] {
            let is_empty = value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(serde_json::Map::is_empty);
            if !is_empty {
                process[name] = value;
            }
        }
        let mut document = json!({
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        if let Some(variant) = &self.platform.variant {
            document["variant"] = json!(variant);
        }
        if let Some(created) = &self.created {
            document["created"] = json!(created);
        }
        if !self.history.is_empty() {
            document["history"] = json!(self.history);
        }
        document.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_nulls_are_nothing() {
        let text = r#"{"architecture":"arm64","os":"linux","variant":"","created":"2024-01-01T00:00:00Z",
            "config":{"User":"","ExposedPorts":null,"Env":["A=b=c"],"Entrypoint":null,"Cmd":["sh"],"Volumes":null,
            "WorkingDir":"","Labels":null,"OnBuild":null,"Hostname":"x"},
            "rootfs":{"type":"layers","diff_ids":null},"history":null,"container":"x","docker_version":"1"}"#;
        let document = ConfigDocument::parse(text.as_bytes()).unwrap();
        assert_eq!(document.platform.to_string(), "linux/arm64");
        let expected =
            ImageConfig { env: vec!["A=b=c".into()], cmd: vec!["sh".into()], ..Default::default() };
        assert_eq!(document.config, expected);
        let bare = ConfigDocument::parse(br#"{"rootfs":{"diff_ids":[]},"config":null}"#).unwrap();
        assert_eq!(bare.platform.to_string(), "linux/amd64");
        assert!(ConfigDocument::parse(b"{}").is_err());
        assert!(ConfigDocument::parse(br#"{"rootfs":{"diff_ids":["sha256:1"]}}"#).is_err());
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let document = ConfigDocument {
            platform: "linux/arm64/v8".parse().unwrap(),
            created: Some("2024-01-01T00:00:00Z".into()),
            config: ImageConfig {
                entrypoint: vec!["/init".into()],
                cmd: vec!["a".into(), "b".into()],
                env: vec!["PATH=/bin".into()],
                workdir: Some("/srv".into()),
                user: Some("1000:1000".into()),
                labels: [("k".to_owned(), "v".to_owned())].into(),
                exposed_ports: vec!["80/tcp".into()],
                volumes: vec!["/data".into()],
                stop_signal: Some("SIGINT".into()),
            },
            diff_ids: vec![Digest::of(b"a")],
            history: vec![HistoryEntry {
                created: None,
                created_by: Some("x".into()),
                comment: None,
                empty_layer: false,
            }],
        };
        assert_eq!(ConfigDocument::parse(&document.to_json()).unwrap(), document);
    }

    #[test]
    fn steps_without_a_layer_take_no_size() {
        let text = r#"{"rootfs":{"diff_ids":[]},"history":[{"created_by":"ADD"},{"created_by":"CMD","empty_layer":true},{"created_by":"RUN"},{"created_by":"more"}]}"#;
        let document = ConfigDocument::parse(text.as_bytes()).unwrap();
        let sizes: Vec<u64> = document.history_with_sizes(&[10, 20]).iter().map(|step| step.size).collect();
        assert_eq!(sizes, [10, 0, 20, 0]);
    }
}
