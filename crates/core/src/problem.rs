//! What is wrong with a spec, one finding at a time: found by [`validate`](crate::validate) without
//! looking at the host, and by `smartvm_host::checks` with a look at it.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::explain::{Code, Explain, Happened};

/// One finding about one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its kind: a stable name to match on.
    pub code: ProblemCode,
    /// Whether the machine cannot work, or only may not do what was meant.
    pub severity: Severity,
    /// The field, as the path in Firecracker's config file: `drives[0].path_on_host`.
    pub path: String,
    /// What is wrong, in one clause: lower case, no full stop.
    pub what: String,
    /// What to do about it, in one sentence or more.
    pub hint: String,
}

impl Problem {
    /// A problem with which the machine cannot work.
    pub fn error(
        code: ProblemCode,
        path: impl Into<String>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { code, severity: Severity::Error, path: path.into(), what: what.into(), hint: hint.into() }
    }

    /// Something that Firecracker accepts and that hardly does what was meant.
    pub fn warning(
        code: ProblemCode,
        path: impl Into<String>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, path, what, hint) }
    }

    /// Whether the machine cannot work.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The machine may work, though hardly as was meant.
    Warning,
    /// The machine cannot work: Firecracker refuses, or what was asked for cannot come about.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// A spec that cannot work, with all that is wrong with it: at least one error, warnings among them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the machine cannot work: {}", summary(.problems))]
pub struct InvalidSpec {
    /// All problems, in the order of the config file's sections.
    pub problems: Vec<Problem>,
}

impl InvalidSpec {
    /// The problems again when all are warnings.
    ///
    /// # Errors
    /// [`InvalidSpec`] when there is an error among them.
    pub fn unless_only_warnings(problems: Vec<Problem>) -> Result<Vec<Problem>, Self> {
        if problems.iter().any(Problem::is_error) { Err(Self { problems }) } else { Ok(problems) }
    }
}

fn summary(problems: &[Problem]) -> String {
    let mut errors = problems.iter().filter(|problem| problem.is_error());
    match (errors.next(), errors.count()) {
        (Some(first), 0) => first.to_string(),
        (Some(first), more) => format!("{first} (and {more} more)"),
        (None, _) => "no error is known".to_owned(),
    }
}

impl Explain for InvalidSpec {
    fn code(&self) -> Code {
        Code::InvalidConfig
    }

    fn hint(&self) -> Option<String> {
        self.problems.iter().find(|problem| problem.is_error()).map(|problem| problem.hint.clone())
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

/// Declares the codes once: the variant, its printed name, its meaning.
macro_rules! problem_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// The kind of a problem, printed in upper case. A name never changes its meaning; new ones may
        /// be added.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum ProblemCode {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl ProblemCode {
            /// Every code, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The code as it is printed and documented.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

problem_codes! {
    // Of the spec itself.
    /// A path that must name something is empty.
    EmptyPath => "EMPTY_PATH",
    /// vCPUs are not 1 to 32.
    VcpuCountOutOfRange => "VCPU_COUNT_OUT_OF_RANGE",
    /// With SMT, an odd number of vCPUs above 1.
    VcpuCountOddWithSmt => "VCPU_COUNT_ODD_WITH_SMT",
    /// SMT where the architecture has none.
    SmtUnsupported => "SMT_UNSUPPORTED",
    /// Too little memory for any kernel, or more than can be addressed.
    MemSizeOutOfRange => "MEM_SIZE_OUT_OF_RANGE",
    /// Memory is not a whole number of huge pages.
    MemSizeNotHugePages => "MEM_SIZE_NOT_HUGE_PAGES",
    /// Reserved huge pages together with a balloon.
    HugePagesWithBalloon => "HUGE_PAGES_WITH_BALLOON",
    /// Huge pages whose gain dirty-page tracking undoes.
    HugePagesWithDirtyTracking => "HUGE_PAGES_WITH_DIRTY_TRACKING",
    /// No such static CPU template on this architecture.
    UnknownCpuTemplate => "UNKNOWN_CPU_TEMPLATE",
    /// The kernel's command line does not fit.
    BootArgsTooLong => "BOOT_ARGS_TOO_LONG",
    /// The kernel's command line holds a NUL byte.
    BootArgsNul => "BOOT_ARGS_NUL",
    /// Neither a root device nor an initrd.
    NoRootDevice => "NO_ROOT_DEVICE",
    /// More than one root device.
    TwoRootDevices => "TWO_ROOT_DEVICES",
    /// Two drives of one id.
    DuplicateDriveId => "DUPLICATE_DRIVE_ID",
    /// Two pmem devices of one id.
    DuplicatePmemId => "DUPLICATE_PMEM_ID",
    /// Two network interfaces of one id.
    DuplicateIfaceId => "DUPLICATE_IFACE_ID",
    /// An id that the API cannot name, so that the device cannot be changed while the guest runs.
    IdNotInApi => "ID_NOT_IN_API",
    /// A drive with neither a file nor a socket.
    DriveWithoutBacking => "DRIVE_WITHOUT_BACKING",
    /// A drive with a file and a socket.
    DriveWithTwoBackings => "DRIVE_WITH_TWO_BACKINGS",
    /// A field that a vhost-user drive must not have.
    SocketDriveOption => "SOCKET_DRIVE_OPTION",
    /// A partition id on a drive that is not the root device.
    PartuuidWithoutRoot => "PARTUUID_WITHOUT_ROOT",
    /// One file behind two devices, and the guest may write to it.
    SharedWritableFile => "SHARED_WRITABLE_FILE",
    /// Not a MAC address.
    BadMac => "BAD_MAC",
    /// A MAC address that no interface can have.
    MacNotUnicast => "MAC_NOT_UNICAST",
    /// Two interfaces with one MAC address.
    DuplicateMac => "DUPLICATE_MAC",
    /// Not a possible name of a TAP device.
    BadHostDevName => "BAD_HOST_DEV_NAME",
    /// A name that the kernel completes, so that nobody knows it beforehand.
    HostDevNameNotFixed => "HOST_DEV_NAME_NOT_FIXED",
    /// Two interfaces on one TAP device.
    DuplicateHostDevName => "DUPLICATE_HOST_DEV_NAME",
    /// An MTU outside of 68 to 65,535.
    MtuOutOfRange => "MTU_OUT_OF_RANGE",
    /// A rate limiter that limits nothing.
    RateLimiterWithoutEffect => "RATE_LIMITER_WITHOUT_EFFECT",
    /// A context id that is reserved, or none.
    GuestCidOutOfRange => "GUEST_CID_OUT_OF_RANGE",
    /// A socket path beyond the kernel's 107 bytes.
    UdsPathTooLong => "UDS_PATH_TOO_LONG",
    /// A balloon larger than the guest's memory.
    BalloonTooLarge => "BALLOON_TOO_LARGE",
    /// An interval that does not fit into 16 bits.
    BalloonIntervalOutOfRange => "BALLOON_INTERVAL_OUT_OF_RANGE",
    /// Sizes of hot-plugged memory that do not fit each other.
    BadMemoryHotplugSize => "BAD_MEMORY_HOTPLUG_SIZE",
    /// A metadata service without an interface.
    MmdsWithoutInterface => "MMDS_WITHOUT_INTERFACE",
    /// A metadata service on an interface that does not exist.
    MmdsUnknownInterface => "MMDS_UNKNOWN_INTERFACE",
    /// A metadata address that is not a usable link-local one.
    BadMmdsAddress => "BAD_MMDS_ADDRESS",
    /// More devices than there are interrupts for.
    TooManyDevices => "TOO_MANY_DEVICES",

    // Of the spec on this host.
    /// No file of this name.
    FileNotFound => "FILE_NOT_FOUND",
    /// It is a directory, a socket or the like.
    NotAFile => "NOT_A_FILE",
    /// It may not be read.
    FileNotReadable => "FILE_NOT_READABLE",
    /// It may not be written.
    FileNotWritable => "FILE_NOT_WRITABLE",
    /// It has no content.
    FileEmpty => "FILE_EMPTY",
    /// Its size is not a whole number of sectors: the rest is cut off.
    SizeNotSectors => "SIZE_NOT_SECTORS",
    /// It is not a kernel that this Firecracker boots on this architecture.
    KernelNotBootable => "KERNEL_NOT_BOOTABLE",
    /// The initrd does not fit into the guest's memory.
    InitrdTooLarge => "INITRD_TOO_LARGE",
    /// The directory for a file to be made does not exist.
    DirectoryNotFound => "DIRECTORY_NOT_FOUND",
    /// Something is already where Firecracker makes its socket.
    UdsPathExists => "UDS_PATH_EXISTS",
    /// It is not a socket.
    NotASocket => "NOT_A_SOCKET",
    /// No network device of this name.
    TapNotFound => "TAP_NOT_FOUND",
    /// A network device that is not a TAP.
    NotATap => "NOT_A_TAP",
    /// Not enough free huge pages.
    HugePagesUnavailable => "HUGE_PAGES_UNAVAILABLE",
    /// More memory than the host has at hand.
    MemoryShort => "MEMORY_SHORT",
    /// The KVM device cannot be opened.
    KvmUnavailable => "KVM_UNAVAILABLE",
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ProblemCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_its_variant_in_upper_case() {
        for code in ProblemCode::ALL {
            let words = format!("{code:?}").chars().fold(String::new(), |mut words, c| {
                if c.is_ascii_uppercase() && !words.is_empty() {
                    words.push('_');
                }
                words.push(c.to_ascii_uppercase());
                words
            });
            assert_eq!(code.as_str(), words);
        }
    }

    #[test]
    fn an_invalid_spec_tells_its_first_error_and_how_many_follow() {
        let warning = Problem::warning(ProblemCode::NoRootDevice, "drives", "no root", "add one");
        let error = |path: &str| Problem::error(ProblemCode::BadMac, path, "no MAC", "write one");
        assert_eq!(InvalidSpec::unless_only_warnings(vec![warning.clone()]), Ok(vec![warning.clone()]));
        let invalid = InvalidSpec::unless_only_warnings(vec![warning, error("a"), error("b")]).unwrap_err();
        assert_eq!(invalid.to_string(), "the machine cannot work: a: no MAC (and 1 more)");
        assert_eq!(invalid.hint().as_deref(), Some("write one"));
        assert_eq!(invalid.code().as_str(), "INVALID_CONFIG");
    }

    #[test]
    fn json_has_the_code_and_the_severity_as_words() {
        let problem = Problem::warning(ProblemCode::BadMac, "a[0].b", "what", "hint");
        let expected = serde_json::json!({
            "code": "BAD_MAC", "severity": "warning", "path": "a[0].b", "what": "what", "hint": "hint",
        });
        assert_eq!(serde_json::to_value(&problem).unwrap(), expected);
        assert_eq!(problem.to_string(), "a[0].b: what");
    }
}
