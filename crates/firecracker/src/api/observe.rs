//! Logs and metrics: `/logger` and `/metrics`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::open::open_struct;
use crate::capability::{Capability, Requires};

/// Body of `PUT /logger` (before boot). May be sent again: absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// A file or named pipe, which must exist before 1.14. Absent: standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<String>,
    /// The least severe level that is logged. Default `Info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether lines name their level. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether lines name the file and line they come from. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Log only lines from this module path of Firecracker's source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

impl Requires for Logger {}

/// The least severe level that is logged. Read in any case of letters, and `warn` as well as `warning`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What looks wrong.
    Warning,
    /// What happens.
    Info,
    /// More of it.
    Debug,
    /// All of it.
    Trace,
}

impl LogLevel {
    /// As Firecracker spells it, in JSON and for `--level`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "Off",
            Self::Error => "Error",
            Self::Warning => "Warning",
            Self::Info => "Info",
            Self::Debug => "Debug",
            Self::Trace => "Trace",
        }
    }

    /// Reads a level as Firecracker does.
    pub fn parse(text: &str) -> Option<Self> {
        let level = match text.to_ascii_lowercase().as_str() {
            "off" => Self::Off,
            "error" => Self::Error,
            "warn" | "warning" => Self::Warning,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        };
        Some(level)
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const NAMES: &[&str] = &["Off", "Error", "Warning", "Info", "Debug", "Trace"];
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::unknown_variant(&text, NAMES))
    }
}

open_struct! {
    /// Body of `PUT /metrics` (before boot, once). Firecracker writes a JSON line every 60 s and on
    /// `FlushMetrics`; see [`crate::metrics`].
    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct Metrics {
        /// A file or named pipe, which must exist before 1.14.
        metrics_path: String,
        /// Whether lines carry the instance's id as `id`. Since 1.17. Default false.
        emit_id: Option<bool>,
        /// Pairs that lines carry as `properties`. Since 1.17.
        properties: Option<BTreeMap<String, String>>,
    }
}

impl Requires for Metrics {
    fn requires(&self) -> Vec<Capability> {
        let emit_id = self.emit_id.map(|_| Capability::METRICS_EMIT_ID);
        let properties = self.properties.as_ref().map(|_| Capability::METRICS_PROPERTIES);
        emit_id.into_iter().chain(properties).collect()
    }
}
