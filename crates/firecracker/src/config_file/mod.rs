//! Firecracker's config file (`--config-file`): the whole machine as one JSON text.
//!
//! [`VmConfig`] is what it says; [`ConfigFile`] also remembers how it was written, so that a file which is
//! changed in one place keeps the order of its keys everywhere else.
//!
//! Read like Firecracker 1.12.1 reads it (tried on its binary): `drives` must be there, even if empty;
//! unknown *sections* are taken and ignored, so a section that this Firecracker is too old for does nothing
//! at all ([`VmConfig::ignored_sections`] and the `Requires` of [`VmConfig`] find them); unknown *fields* are
//! refused in all sections but `metrics`. The one difference: a section of a newer Firecracker must have its
//! form, though 1.12.1 would not look at it.

mod error;
mod layout;
mod paths;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::api::open_struct;
use crate::api::{
    Balloon, BootSource, CpuConfig, Drive, EntropyDevice, Logger, MachineConfiguration, MemoryHotplugConfig,
    Metrics, MmdsConfig, NetworkInterface, Pmem, SerialDevice, Vsock,
};
use crate::capability::{Capability, Requires};

pub use error::ConfigError;
use error::nearest;

open_struct! {
    /// What a config file says. Sections that Firecracker does not know are in `extra`.
    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct VmConfig {
        /// The memory balloon.
        balloon: Option<Balloon>,
        /// The drives. The section must be there, even if empty.
        drives: Vec<Drive>,
        /// Kernel, initrd and command line.
        boot_source as "boot-source": BootSource,
        /// A custom CPU template.
        cpu_config as "cpu-config": Option<CpuTemplateSource>,
        /// Firecracker's log.
        logger: Option<Logger>,
        /// vCPUs and memory; 1 vCPU and 128 MiB when absent.
        machine_config as "machine-config": Option<MachineConfiguration>,
        /// Firecracker's metrics.
        metrics: Option<Metrics>,
        /// Which interfaces reach the metadata service.
        mmds_config as "mmds-config": Option<MmdsConfig>,
        /// The network interfaces.
        network_interfaces as "network-interfaces" (or Vec::new()): Vec<NetworkInterface>,
        /// The vsock device.
        vsock: Option<Vsock>,
        /// The entropy device.
        entropy: Option<EntropyDevice>,
        /// Persistent-memory devices. Since 1.14.
        pmem: Option<Vec<Pmem>>,
        /// Memory hotplug. Since 1.14.
        memory_hotplug as "memory-hotplug": Option<MemoryHotplugConfig>,
        /// The serial console. No Firecracker up to 1.17 reads it from a config file: it takes effect only
        /// when sent as `PUT /serial` (since 1.14).
        serial: Option<SerialDevice>,
    }
}

/// The section `cpu-config`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(untagged)]
pub enum CpuTemplateSource {
    /// The path of a file with a [`CpuConfig`].
    Path(String),
    /// The template itself. Since 1.13.
    Inline(Box<CpuConfig>),
}

impl<'de> Deserialize<'de> for CpuTemplateSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = CpuTemplateSource;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the path of a CPU template, or the template itself")
            }

            fn visit_str<E>(self, path: &str) -> Result<CpuTemplateSource, E> {
                Ok(CpuTemplateSource::Path(path.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CpuTemplateSource, A::Error> {
                let template = CpuConfig::deserialize(MapAccessDeserializer::new(map))?;
                Ok(CpuTemplateSource::Inline(Box::new(template)))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl Requires for VmConfig {
    fn requires(&self) -> Vec<Capability> {
        fn of<T: Requires>(section: &Option<T>) -> Vec<Capability> {
            section.as_ref().map(Requires::requires).unwrap_or_default()
        }
        let inline = matches!(self.cpu_config, Some(CpuTemplateSource::Inline(_)));
        let mut all = [
            of(&self.balloon),
            of(&self.machine_config),
            of(&self.metrics),
            of(&self.mmds_config),
            of(&self.memory_hotplug),
            of(&self.serial),
            self.network_interfaces.iter().flat_map(Requires::requires).collect(),
            self.pmem.iter().flatten().flat_map(Requires::requires).collect(),
            if inline { vec![Capability::CONFIG_INLINE_CPU_TEMPLATE] } else { Vec::new() },
        ]
        .concat();
        all.sort();
        all.dedup();
        all
    }
}

/// A section that Firecracker takes and ignores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredSection {
    /// Its name in the file.
    pub name: String,
    /// The section that was probably meant.
    pub nearest: Option<&'static str>,
}

/// The sections of the config file that some Firecracker reads.
pub const SECTIONS: &[&str] = &[
    "balloon",
    "boot-source",
    "cpu-config",
    "drives",
    "entropy",
    "logger",
    "machine-config",
    "memory-hotplug",
    "metrics",
    "mmds-config",
    "network-interfaces",
    "pmem",
    "vsock",
];

impl VmConfig {
    /// Reads a config file.
    ///
    /// # Errors
    /// It is not JSON, or a field is unknown, missing or of another form: with line, column and path.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let config = serde_path_to_error::deserialize(&mut json).map_err(ConfigError::new)?;
        json.end().map_err(|error| ConfigError::at_top(&error))?;
        Ok(config)
    }

    /// Writes a config file: indented, sections in Firecracker's own order.
    pub fn to_json(&self) -> String {
        ConfigFile { config: self.clone(), original: Value::Null }.to_json()
    }

    /// Sections that no Firecracker reads from a file, most often misspelt; to be told to the user.
    pub fn ignored_sections(&self) -> Vec<IgnoredSection> {
        let serial =
            self.serial.as_ref().map(|_| IgnoredSection { name: "serial".to_owned(), nearest: None });
        let unknown = self.extra.keys().map(|name| IgnoredSection {
            name: name.clone(),
            nearest: nearest(name, SECTIONS.iter().copied()),
        });
        serial.into_iter().chain(unknown).collect()
    }
}

/// A config file that may be changed and written back in its own layout.
///
/// Kept are the order of keys, explicit nulls and unknown sections; not kept are white space, the array form
/// of an object and the spelling of a log level, which mean the same written otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigFile {
    /// What the file says.
    pub config: VmConfig,
    original: Value,
}

impl ConfigFile {
    /// Reads a config file.
    ///
    /// # Errors
    /// As [`VmConfig::parse`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config = VmConfig::parse(text)?;
        let original = serde_json::from_str(text).map_err(|error| ConfigError::at_top(&error))?;
        Ok(Self { config, original })
    }

    /// Writes the file, indented.
    pub fn to_json(&self) -> String {
        let written = serde_json::to_value(&self.config).unwrap_or_default();
        format!("{:#}", layout::arrange(written, &self.original))
    }
}

#[cfg(test)]
mod tests;
