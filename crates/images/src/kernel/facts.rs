//! What a kernel can do, told from its build configuration and its modules, and what therefore does not work.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;

use serde::{Deserialize, Serialize};

use super::lists::Lists;

/// Longest build configuration, in bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// Whether a kernel can do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It is part of the kernel.
    BuiltIn,
    /// A module in the bundle's initramfs, loaded at boot.
    Module,
    /// Built as a module that the bundle does not carry.
    LeftOut,
    /// The kernel was built without it.
    Absent,
    /// Neither configuration nor lists say.
    Unknown,
}

impl Presence {
    /// Whether it works in a guest. `None`: unknown.
    pub const fn works(self) -> Option<bool> {
        match self {
            Self::BuiltIn | Self::Module => Some(true),
            Self::LeftOut | Self::Absent => Some(false),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "built in",
            Self::Module => "module, loaded at boot",
            Self::LeftOut => "module, not in the bundle",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
        })
    }
}

/// Something that matters for a guest of Firecracker.
#[derive(Debug)]
struct Feature {
    name: &'static str,
    /// The option of the kernel's build, without `CONFIG_`.
    option: &'static str,
    /// The module, where it can be one.
    module: Option<&'static str>,
    /// What does not work without it, as a sentence.
    without: &'static str,
}

const fn feature(
    name: &'static str,
    option: &'static str,
    module: Option<&'static str>,
    without: &'static str,
) -> Feature {
    Feature { name, option, module, without }
}

const FEATURES: [Feature; 23] = [
    feature(
        "initramfs",
        "BLK_DEV_INITRD",
        None,
        "Our guest init does not start: the kernel unpacks no initramfs.",
    ),
    feature("devtmpfs", "DEVTMPFS", None, "Devices have no nodes in /dev, so the root disk is not found."),
    feature(
        "tmpfs",
        "TMPFS",
        None,
        "Nothing in the guest can be written in memory: /run, /tmp, a tmpfs overlay.",
    ),
    feature(
        "virtio-mmio",
        "VIRTIO_MMIO",
        Some("virtio_mmio"),
        "The guest sees no device of Firecracker without its option --enable-pci.",
    ),
    feature(
        "acpi",
        "ACPI",
        None,
        "Devices and processors are found only through the kernel's command line and tables of before ACPI.",
    ),
    feature(
        "virtio-mmio-cmdline",
        "VIRTIO_MMIO_CMDLINE_DEVICES",
        None,
        "Devices that are named on the kernel's command line are not seen; with ACPI that does not matter.",
    ),
    feature("pci", "PCI", None, "Firecracker's option --enable-pci cannot be used."),
    feature(
        "virtio-pci",
        "VIRTIO_PCI",
        Some("virtio_pci"),
        "The guest sees no device of Firecracker with its option --enable-pci.",
    ),
    feature("virtio-blk", "VIRTIO_BLK", Some("virtio_blk"), "Disks, and so images, do not work."),
    feature("virtio-net", "VIRTIO_NET", Some("virtio_net"), "The network does not work."),
    feature(
        "vsock",
        "VIRTIO_VSOCKETS",
        Some("vmw_vsock_virtio_transport"),
        "Exec, file copies and port forwarding through vsock do not work.",
    ),
    feature(
        "virtio-rng",
        "HW_RANDOM_VIRTIO",
        Some("virtio_rng"),
        "The guest gets no entropy from the host; it has what its processor gives.",
    ),
    feature(
        "balloon",
        "VIRTIO_BALLOON",
        Some("virtio_balloon"),
        "The balloon does not work: memory that a guest has used is not given back.",
    ),
    feature(
        "overlayfs",
        "OVERLAY_FS",
        Some("overlay"),
        "An image cannot be shared: each machine needs a copy of its root file system.",
    ),
    feature("ext4", "EXT4_FS", Some("ext4"), "Images cannot be mounted: they are ext4."),
    feature(
        "squashfs",
        "SQUASHFS",
        Some("squashfs"),
        "Base images in the squashfs format cannot be mounted.",
    ),
    feature(
        "af-packet",
        "PACKET",
        Some("af_packet"),
        "DHCP clients and packet capture do not work in the guest.",
    ),
    feature(
        "console",
        "SERIAL_8250_CONSOLE",
        None,
        "Nothing is seen of the guest: it writes to no serial console.",
    ),
    feature(
        "ctrl-alt-del",
        "KEYBOARD_ATKBD",
        Some("atkbd"),
        "Ctrl+Alt+Del does not reach the guest: it can be stopped from within or by force only.",
    ),
    feature(
        "cgroups",
        "CGROUPS",
        None,
        "The guest has no control groups: container runtimes and systemd fail.",
    ),
    feature(
        "kvm-clock",
        "KVM_GUEST",
        None,
        "The guest's clock drifts and stands still in snapshots: there is no kvm-clock.",
    ),
    feature(
        "ptp-kvm",
        "PTP_1588_CLOCK_KVM",
        Some("ptp_kvm"),
        "The guest cannot read the host's clock through /dev/ptp0.",
    ),
    feature(
        "vmgenid",
        "VMGENID",
        Some("vmgenid"),
        "Clones of a snapshot are not told that they are clones: their random numbers may repeat.",
    ),
];

/// What a kernel can do, by the names of [`names`].
pub type Facts = BTreeMap<String, Presence>;

/// The names that [`Facts`] have.
pub fn names() -> impl Iterator<Item = &'static str> {
    FEATURES.iter().map(|feature| feature.name)
}

const NO_DEVICES: &str =
    "The guest sees no device of Firecracker: it has virtio neither over MMIO nor over PCI.";

/// What does not work with these facts, one sentence each. What is unknown is not claimed.
pub fn consequences(facts: &Facts) -> Vec<&'static str> {
    let works = |name: &str| facts.get(name).and_then(|presence| presence.works());
    let lacks = |name| works(name) == Some(false);
    let (no_mmio, no_pci) = (lacks("virtio-mmio"), lacks("pci") || lacks("virtio-pci"));
    FEATURES
        .iter()
        .filter(|feature| works(feature.name) == Some(false))
        // Said once: the option is no way out where it does not work.
        .filter(|feature| match feature.name {
            "pci" => !no_mmio,
            "virtio-pci" => !no_mmio && !lacks("pci"),
            _ => true,
        })
        // With ACPI nobody needs it.
        .filter(|feature| feature.name != "virtio-mmio-cmdline" || works("acpi") == Some(false))
        .map(|feature| match feature.name {
            "virtio-mmio" if no_pci => NO_DEVICES,
            _ => feature.without,
        })
        .collect()
}

/// The options of a kernel's build that matter here and are set: name without `CONFIG_`, and value.
pub(super) type Config = BTreeMap<String, String>;

/// Reads a kernel's `.config`.
pub(super) fn parse_config(text: &[u8]) -> Config {
    let text = String::from_utf8_lossy(text);
    let options = text.lines().filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='));
    let matters = |name: &str| FEATURES.iter().any(|feature| feature.option == name);
    options
        .filter(|(name, _)| matters(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The configuration that a kernel built with `IKCONFIG` carries: gzip between two marks.
pub(super) fn embedded_config(kernel: &[u8]) -> Option<Vec<u8>> {
    let start = memchr::memmem::find(kernel, b"IKCFG_ST\x1f\x8b")? + b"IKCFG_ST".len();
    let mut config = Vec::new();
    flate2::read::GzDecoder::new(&kernel[start..]).take(MAX_CONFIG).read_to_end(&mut config).ok()?;
    Some(config)
}

/// The line by which a kernel greets: `6.1.0-9-amd64 (who@where) #1 SMP ...`.
pub(super) fn banner(kernel: &[u8]) -> Option<String> {
    const BEGIN: &[u8] = b"Linux version ";
    let found = memchr::memmem::find_iter(kernel, BEGIN).map(|at| &kernel[at + BEGIN.len()..]);
    // There is also the format string of /proc/version, with `%s` for the release.
    let rest = found.into_iter().find(|rest| rest.first().is_some_and(u8::is_ascii_digit))?;
    let rest = &rest[..rest.len().min(512)];
    let end = rest.iter().position(|byte| matches!(byte, b'\n' | 0))?;
    let text = String::from_utf8_lossy(&rest[..end]);
    // It is shown on terminals, which obey control characters.
    Some(text.chars().filter(|char| !char.is_control()).collect())
}

/// What a kernel can do. `carried` are the modules of its bundle, `has_tree` tells whether its modules were given.
pub(super) fn find(
    config: Option<&Config>,
    lists: &Lists,
    has_tree: bool,
    carried: &BTreeSet<String>,
) -> Facts {
    let presence = |feature: &Feature| {
        if feature.module.is_some_and(|module| carried.contains(module)) {
            return Presence::Module;
        }
        if let Some(config) = config {
            return match config.get(feature.option).map(String::as_str) {
                Some("y") => Presence::BuiltIn,
                Some("m") => Presence::LeftOut,
                _ => Presence::Absent,
            };
        }
        // Lists know only of what can be a module. One that is neither listed nor carried may be left out or absent.
        match feature.module.map(|module| lists.is_builtin(module)) {
            Some(Some(true)) => Presence::BuiltIn,
            Some(Some(false)) if has_tree && super::order::is_wanted(feature.module) => Presence::Absent,
            _ => Presence::Unknown,
        }
    };
    FEATURES.iter().map(|feature| (feature.name.to_owned(), presence(feature))).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn facts(config: Option<&str>, builtin: Option<&str>, carried: &[&str]) -> Facts {
        let mut lists = Lists::default();
        if let Some(builtin) = builtin {
            lists.add("modules.builtin", builtin.as_bytes()).unwrap();
        }
        let config = config.map(|text| parse_config(text.as_bytes()));
        let carried = carried.iter().map(|name| (*name).to_owned()).collect();
        find(config.as_ref(), &lists, true, &carried)
    }

    #[test]
    fn the_configuration_says_it_all() {
        let config = "CONFIG_ACPI=y\nCONFIG_VIRTIO_MMIO=y\nCONFIG_OVERLAY_FS=m\nCONFIG_VMGENID=m\n# CONFIG_PCI is not set\n";
        let facts = facts(Some(config), None, &["overlay"]);
        assert_eq!(facts["acpi"], Presence::BuiltIn);
        assert_eq!(facts["overlayfs"], Presence::Module);
        assert_eq!(facts["vmgenid"], Presence::LeftOut);
        assert_eq!(facts["pci"], Presence::Absent);
        assert!(!facts.values().any(|presence| *presence == Presence::Unknown));
        let said = consequences(&facts);
        assert!(said.contains(&"Firecracker's option --enable-pci cannot be used."));
        assert!(
            !said.iter().any(|text| text.contains("named on the kernel's command line")),
            "there is ACPI"
        );
    }

    #[test]
    fn that_no_device_is_seen_is_said_once() {
        let said = consequences(&facts(Some("CONFIG_ACPI=y\n"), None, &[]));
        assert!(said.contains(&NO_DEVICES));
        assert!(!said.iter().any(|text| text.contains("--enable-pci")), "{said:?}");
    }

    #[test]
    fn without_a_configuration_the_lists_tell_what_they_can() {
        let facts = facts(None, Some("kernel/fs/ext4/ext4.ko\n"), &["virtio_blk"]);
        assert_eq!(facts["ext4"], Presence::BuiltIn);
        assert_eq!(facts["virtio-blk"], Presence::Module);
        assert_eq!(facts["squashfs"], Presence::Absent);
        assert_eq!((facts["ptp-kvm"], facts["acpi"]), (Presence::Unknown, Presence::Unknown));
    }

    #[test]
    fn nothing_known_claims_nothing() {
        let facts = facts(None, None, &[]);
        assert!(facts.values().all(|presence| *presence == Presence::Unknown));
        assert!(consequences(&facts).is_empty());
    }

    #[test]
    fn an_embedded_configuration_and_the_greeting_are_found() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"CONFIG_ACPI=y\n").unwrap();
        let mut kernel = b"..Linux version %s..Linux version 6.1.0-9 (a@b) #1 SMP\n..IKCFG_ST".to_vec();
        kernel.extend(gzip.finish().unwrap());
        kernel.extend(b"IKCFG_ED....");
        assert_eq!(embedded_config(&kernel).unwrap(), b"CONFIG_ACPI=y\n");
        assert_eq!(banner(&kernel).unwrap(), "6.1.0-9 (a@b) #1 SMP");
        assert_eq!(embedded_config(b"IKCFG_ST\x1f\x8bxxxx"), None);
        assert_eq!(banner(b"Linux version 6"), None);
        assert_eq!(banner(b"Linux version 6.1\x1b[2J (a)\n").unwrap(), "6.1[2J (a)");
    }

    #[test]
    fn every_sentence_ends() {
        assert!(FEATURES.iter().all(|feature| feature.without.ends_with('.')));
        assert_eq!(names().collect::<BTreeSet<_>>().len(), FEATURES.len());
    }
}
