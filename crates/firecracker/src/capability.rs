//! What each Firecracker version can do, in one table.
//!
//! A request names the capabilities that it uses ([`Requires`]); the client looks them up before anything
//! is sent. What every version from 1.7 on can do has no entry. Versions are those in which the request
//! parser first took the thing (facts: the OpenAPI files and parsers of each release). `1.17` is known
//! from its development branch only.

use crate::error::ApiError;
use crate::version::Version;

/// A release (major, minor, patch).
type Release = (u32, u32, u32);

/// Something that not every supported Firecracker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Capability(usize);

/// One line of the table.
struct Entry {
    /// As an error names it.
    what: &'static str,
    /// From this release on, every version can do it.
    since: Release,
    /// Fix releases of earlier series in which it appeared too: from that patch on, within that series.
    backports: &'static [Release],
}

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident: $what:literal, $since:expr $(, backports [$($backport:expr),*])?;)*) => {
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "numbers the lines of the table")]
        #[derive(Clone, Copy)]
        enum Line { $($name),* }

        impl Capability {
            $($(#[$doc])* pub const $name: Self = Self(Line::$name as usize);)*

            /// Every capability, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }

        const TABLE: &[Entry] = &[$(Entry {
            what: $what,
            since: $since,
            backports: &[$($($backport),*)?],
        }),*];
    };
}

table! {
    /// `network_overrides` on load.
    LOAD_NETWORK_OVERRIDES: "`network_overrides` in PUT /snapshot/load", (1, 12, 0);
    /// `track_dirty_pages` on load, in place of `enable_diff_snapshots`.
    LOAD_TRACK_DIRTY_PAGES: "`track_dirty_pages` in PUT /snapshot/load", (1, 13, 0);
    /// `imds_compat` of MMDS.
    MMDS_IMDS_COMPAT: "`imds_compat` in PUT /mmds/config", (1, 13, 0);
    /// The flag `--enable-pci`.
    FLAG_ENABLE_PCI: "the flag `--enable-pci`", (1, 13, 0);
    /// A CPU template written into the config file, not named by its path.
    CONFIG_INLINE_CPU_TEMPLATE: "a CPU template inside the config file", (1, 13, 0);
    /// Persistent-memory devices.
    PMEM: "PUT /pmem/{id}", (1, 14, 0);
    /// Memory that is added while the guest runs.
    MEMORY_HOTPLUG: "/hotplug/memory", (1, 14, 0);
    /// A file for the serial console.
    SERIAL: "PUT /serial", (1, 14, 0);
    /// The balloon's `free_page_hinting`, and the runs it enables.
    BALLOON_HINTING: "free page hinting of the balloon", (1, 14, 0);
    /// The balloon's `free_page_reporting`.
    BALLOON_REPORTING: "free page reporting of the balloon", (1, 14, 0);
    /// `clock_realtime` on load.
    LOAD_CLOCK_REALTIME: "`clock_realtime` in PUT /snapshot/load", (1, 16, 0), backports [(1, 14, 4), (1, 15, 1)];
    /// `vsock_override` on load.
    LOAD_VSOCK_OVERRIDE: "`vsock_override` in PUT /snapshot/load", (1, 16, 0);
    /// `mtu` of a network interface.
    NETWORK_MTU: "`mtu` of a network interface", (1, 16, 0);
    /// `rate_limiter` of a persistent-memory device, and changing it.
    PMEM_RATE_LIMITER: "`rate_limiter` of a pmem device", (1, 16, 0);
    /// `rate_limiter` of the serial console.
    SERIAL_RATE_LIMITER: "`rate_limiter` in PUT /serial", (1, 16, 0);
    /// Adding devices to a running guest and removing them (preview; needs `--enable-pci`).
    DEVICE_HOTPLUG: "removing a device", (1, 16, 0);
    /// `huge_pages: Transparent`.
    HUGE_PAGES_TRANSPARENT: "`huge_pages`: \"Transparent\"", (1, 17, 0);
    /// `huge_pages` on load.
    LOAD_HUGE_PAGES: "`huge_pages` in PUT /snapshot/load", (1, 17, 0);
    /// `emit_id` of the metrics.
    METRICS_EMIT_ID: "`emit_id` in PUT /metrics", (1, 17, 0);
    /// `properties` of the metrics.
    METRICS_PROPERTIES: "`properties` in PUT /metrics", (1, 17, 0);
    /// bzImage kernels.
    KERNEL_BZIMAGE: "a bzImage kernel", (1, 17, 0);
}

impl Capability {
    fn entry(self) -> &'static Entry {
        &TABLE[self.0]
    }

    /// What it is, as an error names it.
    pub fn what(self) -> &'static str {
        self.entry().what
    }

    /// Whether this version has it.
    pub fn is_in(self, version: &Version) -> bool {
        let (major, minor, patch) = version.number();
        let backported = self.entry().backports.iter().any(|b| (b.0, b.1) == (major, minor) && patch >= b.2);
        backported || version.number() >= self.entry().since
    }

    /// The versions that have it: `Firecracker 1.14 or later`.
    pub fn needs(self) -> String {
        let since = short(self.entry().since);
        match self.entry().backports {
            [] => format!("Firecracker {since} or later"),
            backports => {
                let fixes: Vec<_> = backports.iter().copied().map(short).collect();
                format!("Firecracker {since} or later (or {} or later in its series)", fixes.join(", "))
            }
        }
    }

    /// Nothing when this version has it.
    ///
    /// # Errors
    /// [`ApiError::Unsupported`], naming both versions.
    pub fn check(self, version: &Version) -> Result<(), ApiError> {
        match self.is_in(version) {
            true => Ok(()),
            false => Err(ApiError::Unsupported {
                what: self.what().to_owned(),
                needs: self.needs(),
                version: version.clone(),
            }),
        }
    }
}

fn short((major, minor, patch): Release) -> String {
    match patch {
        0 => format!("{major}.{minor}"),
        _ => format!("{major}.{minor}.{patch}"),
    }
}

/// What a request or a config asks of Firecracker's version.
pub trait Requires {
    /// The capabilities in use, given the fields that are set. Empty when every version from 1.7 on will do.
    fn requires(&self) -> Vec<Capability> {
        Vec::new()
    }

    /// Whether `version` can do all of it.
    ///
    /// # Errors
    /// [`ApiError::Unsupported`] for the first capability that is missing, and for a version older than 1.7.
    fn check(&self, version: &Version) -> Result<(), ApiError> {
        if !version.is_supported() {
            return Err(ApiError::Unsupported {
                what: "smartvm".to_owned(),
                needs: format!("Firecracker {} or later", short(Version::OLDEST_SUPPORTED.number())),
                version: version.clone(),
            });
        }
        self.requires().into_iter().try_for_each(|capability| capability.check(version))
    }
}

/// The format of the snapshots that a version writes, by minor version; it reads that format only (and
/// earlier minor numbers of it).
const SNAPSHOT_FORMATS: &[(Release, Release)] = &[
    ((1, 7, 0), (1, 0, 0)),
    ((1, 8, 0), (2, 0, 0)),
    ((1, 9, 0), (3, 0, 0)),
    ((1, 10, 0), (4, 0, 0)),
    ((1, 11, 0), (5, 0, 0)),
    ((1, 12, 0), (6, 0, 0)),
    ((1, 13, 0), (8, 0, 0)),
    ((1, 14, 0), (8, 0, 0)),
    ((1, 15, 0), (9, 0, 0)),
    ((1, 16, 0), (10, 0, 0)),
    ((1, 17, 0), (11, 0, 0)),
];

/// The snapshot format of a Firecracker version; `None` for series that this table does not know.
/// `firecracker --snapshot-version` is the authority.
pub fn snapshot_format(version: &Version) -> Option<Version> {
    let series = (version.major, version.minor, 0);
    let (_, format) = SNAPSHOT_FORMATS.iter().find(|(release, _)| *release == series)?;
    Some(Version::new(format.0, format.1, format.2))
}

/// Something that still works and should not be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deprecation {
    /// What it is.
    pub what: &'static str,
    /// What takes its place.
    pub instead: &'static str,
}

/// All that Firecracker has deprecated and not removed, up to 1.17.
pub const DEPRECATIONS: &[Deprecation] = &[
    Deprecation { what: "`vsock_id` in PUT /vsock", instead: "nothing: leave it out" },
    Deprecation { what: "`mem_file_path` in PUT /snapshot/load", instead: "`mem_backend`" },
    Deprecation {
        what: "`enable_diff_snapshots` in PUT /snapshot/load",
        instead: "`track_dirty_pages` (1.13 or later)",
    },
    Deprecation { what: "MMDS version `V1`", instead: "`V2`" },
    Deprecation { what: "`cpu_template`", instead: "a custom template in `cpu-config`" },
    Deprecation { what: "the tool rebase-snap", instead: "snapshot-editor" },
    Deprecation { what: "the flags `--start-time-us` and `--start-time-cpu-us`", instead: "nothing" },
    Deprecation { what: "booting with an MPTable", instead: "ACPI (1.8 or later)" },
];

#[cfg(test)]
mod tests {
    use super::*;
    use smartvm_core::explain::{Code, Explain, Happened};

    fn has(capability: Capability, version: &str) -> bool {
        capability.is_in(&version.parse().unwrap())
    }

    #[test]
    fn the_refusal_names_both_versions() {
        let error = Capability::SERIAL.check(&Version::new(1, 12, 1)).unwrap_err();
        assert_eq!(error.to_string(), "PUT /serial needs Firecracker 1.14 or later; this is 1.12.1");
        assert_eq!(error.code(), Code::UnsupportedVersion);
        assert_eq!(error.happened(), Happened::NeverStarted);
    }

    #[test]
    fn a_capability_begins_with_its_release() {
        assert!(!has(Capability::LOAD_NETWORK_OVERRIDES, "1.11.9"));
        assert!(has(Capability::LOAD_NETWORK_OVERRIDES, "1.12.0"));
        assert!(has(Capability::LOAD_NETWORK_OVERRIDES, "2.0.0"));
        assert!(
            has(Capability::METRICS_EMIT_ID, "1.17.0-dev"),
            "a development version has what its release has"
        );
    }

    #[test]
    fn clock_realtime_depends_on_the_patch_release() {
        for (version, expected) in [
            ("1.13.9", false),
            ("1.14.3", false),
            ("1.14.4", true),
            ("1.14.9", true),
            ("1.15.0", false),
            ("1.15.1", true),
            ("1.16.0", true),
            ("1.17.0-dev", true),
        ] {
            assert_eq!(has(Capability::LOAD_CLOCK_REALTIME, version), expected, "{version}");
        }
        let error = Capability::LOAD_CLOCK_REALTIME.check(&Version::new(1, 15, 0)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`clock_realtime` in PUT /snapshot/load needs Firecracker 1.16 or later (or 1.14.4, 1.15.1 or later \
             in its series); this is 1.15.0"
        );
    }

    #[test]
    fn every_line_is_named_and_later_than_the_oldest_supported_version() {
        assert_eq!(Capability::ALL.len(), TABLE.len());
        for capability in Capability::ALL {
            assert!(!capability.what().is_empty());
            assert!(!capability.is_in(&Version::OLDEST_SUPPORTED), "{} needs no line", capability.what());
            let entry = capability.entry();
            assert!(entry.backports.iter().all(|b| *b < entry.since && b.2 > 0), "{}", capability.what());
        }
    }

    #[test]
    fn snapshot_formats_follow_the_series() {
        assert_eq!(snapshot_format(&Version::new(1, 12, 1)), Some(Version::new(6, 0, 0)));
        assert_eq!(snapshot_format(&Version::new(1, 14, 4)), snapshot_format(&Version::new(1, 13, 2)));
        assert_eq!(snapshot_format(&Version::new(1, 99, 0)), None);
    }

    #[test]
    fn a_version_older_than_the_oldest_supported_is_refused() {
        struct Plain;
        impl Requires for Plain {}
        let error = Plain.check(&Version::new(1, 6, 0)).unwrap_err();
        assert_eq!(error.to_string(), "smartvm needs Firecracker 1.7 or later; this is 1.6.0");
        assert!(Plain.check(&Version::new(1, 7, 0)).is_ok());
    }
}
