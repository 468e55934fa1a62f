//! The manifest of a base-image bundle, schema 1.
//!
//! ```json
//! {
//!   "schemaVersion": 1, "bundleId": "base-2026.11", "name": "our base", "arch": "x86_64",
//!   "firecrackerVersion": "v1.15.1", "rootfsType": "squashfs", "rootfsIsReadOnly": true,
//!   "bootArgs": "console=ttyS0 reboot=k panic=1",
//!   "kernel": { "url": "https://h/vmlinux", "sha256": "…", "sizeBytes": 42, "fileName": "vmlinux" },
//!   "rootfs": { "path": "rootfs.squashfs" }
//! }
//! ```
//!
//! Reading it is pure, and bounded for hostile input.

use serde::Deserialize;
use serde_json::{Map, Value};
use smartvm_core::target::Arch;
use url::Url;

use super::{Artifact, Place, RootfsType};
use crate::digest::Digest;
use crate::release::Version;

/// The most bytes of a manifest. Real ones have one or two thousand.
pub const LARGEST_MANIFEST: usize = 64 << 10;

/// The schema that is read here.
pub const SCHEMA: u64 = 1;

/// The longest bundle id: it becomes part of a kernel's name, which has a bound of its own.
const LONGEST_ID: usize = 90;

/// The longest kernel command line that Firecracker takes, in bytes.
const LONGEST_BOOT_ARGS: usize = 2048;

/// A bundle as its maker describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The cache key: letters, digits, dots, underscores, dashes; at most 90.
    pub bundle_id: String,
    /// A label for people.
    pub name: String,
    /// Whose kernel and programs these are.
    pub arch: Arch,
    /// The version of Firecracker that its maker tried it with.
    pub firecracker_version: Version,
    /// The file system of the root.
    pub rootfs_type: RootfsType,
    /// Whether it must not be written; always for squashfs.
    pub rootfs_is_read_only: bool,
    /// The kernel command line that the bundle wants.
    pub boot_args: String,
    /// The kernel.
    pub kernel: Artifact,
    /// The root file system.
    pub rootfs: Artifact,
    /// Fields that mean nothing to schema 1, by path.
    pub ignored: Vec<String>,
}

/// A manifest that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct BadManifest {
    /// The field at fault, as a path (`kernel.sha256`); `manifest` when it is the whole.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

fn bad(field: &str, why: impl Into<String>) -> BadManifest {
    BadManifest { field: field.to_owned(), why: why.into() }
}

/// The file's fields, none of them checked yet.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<Value>,
    bundle_id: Option<Value>,
    name: Option<Value>,
    arch: Option<Value>,
    firecracker_version: Option<Value>,
    rootfs_type: Option<Value>,
    rootfs_is_read_only: Option<Value>,
    boot_args: Option<Value>,
    kernel: Option<RawArtifact>,
    rootfs: Option<RawArtifact>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawArtifact {
    url: Option<Value>,
    path: Option<Value>,
    sha256: Option<Value>,
    size_bytes: Option<Value>,
    file_name: Option<Value>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// What tells the schema, whatever else there is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    schema_version: Option<Value>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`BadManifest`] names the first field that is missing or wrong.
    pub fn parse(text: &[u8]) -> Result<Self, BadManifest> {
        if text.len() > LARGEST_MANIFEST {
            return Err(bad(
                "manifest",
                format!("has {} bytes; {LARGEST_MANIFEST} are accepted", text.len()),
            ));
        }
        // Of another schema nothing else can be said, so this comes first.
        let Head { schema_version } = read(text)?;
        match schema_version {
            None => return Err(bad("schemaVersion", "is missing")),
            Some(value) if value.as_u64() == Some(SCHEMA) => {}
            Some(value) => {
                return Err(bad("schemaVersion", format!("is {}; this smartvm reads 1", short(&value))));
            }
        }
        let raw: Raw = read(text)?;
        debug_assert!(raw.schema_version.is_some());
        let mut ignored: Vec<String> = raw.other.keys().cloned().collect();
        let rootfs_type = one_of("rootfsType", raw.rootfs_type, &RootfsType::ALL, RootfsType::as_str)?;
        let manifest = Self {
            bundle_id: bundle_id(string("bundleId", raw.bundle_id)?)?,
            name: label("name", string("name", raw.name)?, 200)?,
            arch: one_of("arch", raw.arch, &[Arch::X86_64, Arch::Aarch64], Arch::as_str)?,
            firecracker_version: version(string("firecrackerVersion", raw.firecracker_version)?)?,
            rootfs_type,
            rootfs_is_read_only: read_only(raw.rootfs_is_read_only, rootfs_type)?,
            boot_args: label("bootArgs", string("bootArgs", raw.boot_args)?, LONGEST_BOOT_ARGS)?,
            kernel: artifact("kernel", raw.kernel, &mut ignored)?,
            rootfs: artifact("rootfs", raw.rootfs, &mut ignored)?,
            ignored: Vec::new(),
        };
        if manifest.name.trim().is_empty() {
            return Err(bad("name", "is empty"));
        }
        Ok(Self { ignored, ..manifest })
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, BadManifest> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if matches!(path.as_str(), "." | "?") { "manifest" } else { &path };
        bad(field, format!("cannot be read: {}", error.inner()))
    })?;
    json.end().map_err(|error| bad("manifest", format!("cannot be read: {error}")))?;
    Ok(value)
}

fn string(field: &str, value: Option<Value>) -> Result<String, BadManifest> {
    match value {
        None => Err(bad(field, "is missing")),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(bad(field, format!("is {}, not a text", short(&other)))),
    }
}

fn label(field: &str, text: String, longest: usize) -> Result<String, BadManifest> {
    if text.len() > longest {
        return Err(bad(field, format!("has {} bytes; {longest} are accepted", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(bad(field, "holds control characters"));
    }
    Ok(text)
}

fn one_of<T: Copy>(
    field: &str,
    value: Option<Value>,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, BadManifest> {
    let text = string(field, value)?;
    all.iter().copied().find(|one| name(*one) == text).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|one| name(*one)).collect();
        bad(field, format!("is `{}`, not {}", clip(&text), names.join(" or ")))
    })
}

fn bundle_id(text: String) -> Result<String, BadManifest> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let why = if text.is_empty() {
        "is empty".to_owned()
    } else if text.len() > LONGEST_ID {
        format!("has {} characters; {LONGEST_ID} are accepted", text.len())
    } else if !text.bytes().all(allowed) || text == "." || text == ".." {
        format!("is `{}`; letters, digits, dots, underscores and dashes are accepted", clip(&text))
    } else {
        return Ok(text);
    };
    Err(bad("bundleId", why))
}

fn version(text: String) -> Result<Version, BadManifest> {
    text.parse().map_err(|_| bad("firecrackerVersion", format!("is `{}`, not like v1.15.1", clip(&text))))
}

fn read_only(value: Option<Value>, rootfs_type: RootfsType) -> Result<bool, BadManifest> {
    let field = "rootfsIsReadOnly";
    match value {
        None => Err(bad(field, "is missing")),
        Some(Value::Bool(false)) if rootfs_type == RootfsType::Squashfs => {
            Err(bad(field, "is false, but a squashfs can only be read"))
        }
        Some(Value::Bool(read_only)) => Ok(read_only),
        Some(other) => Err(bad(field, format!("is {}, not true or false", short(&other)))),
    }
}

fn artifact(
    field: &str,
    raw: Option<RawArtifact>,
    ignored: &mut Vec<String>,
) -> Result<Artifact, BadManifest> {
    let raw = raw.ok_or_else(|| bad(field, "is missing"))?;
    let at = |name: &str| format!("{field}.{name}");
    ignored.extend(raw.other.keys().map(|name| at(name)));
    let place = match (raw.url, raw.path) {
        (Some(_), Some(_)) => return Err(bad(field, "has both url and path")),
        (None, None) => return Err(bad(field, "has neither url nor path")),
        (Some(url), None) => {
            let text = string(&at("url"), Some(url))?;
            let url = Url::parse(&text).map_err(|error| bad(&at("url"), format!("is no URL: {error}")))?;
            if !matches!(url.scheme(), "http" | "https") {
                return Err(bad(&at("url"), "is not an http or https URL"));
            }
            Place::Url(url)
        }
        (None, Some(path)) => {
            let text = label(&at("path"), string(&at("path"), Some(path))?, 4096)?;
            if text.is_empty() {
                return Err(bad(&at("path"), "is empty"));
            }
            Place::Path(text.into())
        }
    };
    let sha256 = match raw.sha256 {
        None if matches!(place, Place::Url(_)) => {
            return Err(bad(&at("sha256"), "is missing; what comes from a URL needs one"));
        }
        None => None,
        Some(value) => {
            let text = string(&at("sha256"), Some(value))?;
            let digest = Digest::from_hex(&text);
            Some(digest.ok_or_else(|| bad(&at("sha256"), "is not 64 hexadecimal digits"))?)
        }
    };
    let size = match raw.size_bytes {
        None => None,
        Some(value) => match value.as_u64() {
            Some(size) if size > 0 => Some(size),
            _ => return Err(bad(&at("sizeBytes"), format!("is {}, not a number of bytes", short(&value)))),
        },
    };
    let file_name = match raw.file_name {
        None => None,
        Some(value) => {
            let text = label(&at("fileName"), string(&at("fileName"), Some(value))?, 255)?;
            if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\\']) {
                return Err(bad(&at("fileName"), format!("is `{}`, not a plain file name", clip(&text))));
            }
            Some(text)
        }
    };
    Ok(Artifact { place, sha256, size, file_name })
}

fn short(value: &Value) -> String {
    clip(&value.to_string())
}

fn clip(text: &str) -> String {
    if text.chars().count() <= 60 {
        text.to_owned()
    } else {
        text.chars().take(60).chain("…".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "schemaVersion": 1, "bundleId": "base-2026.11_a", "name": "our base", "arch": "x86_64",
            "firecrackerVersion": "v1.15.1", "rootfsType": "squashfs", "rootfsIsReadOnly": true,
            "bootArgs": "console=ttyS0 reboot=k panic=1",
            "kernel": { "url": "https://h/a/vmlinux", "sha256": "ab".repeat(32), "sizeBytes": 42, "fileName": "vmlinux" },
            "rootfs": { "path": "rootfs.squashfs" },
        })
    }

    #[test]
    fn a_good_one_is_read_whole() {
        let manifest = Manifest::parse(good().to_string().as_bytes()).unwrap();
        assert_eq!(manifest.bundle_id, "base-2026.11_a");
        assert_eq!((manifest.arch, manifest.rootfs_type), (Arch::X86_64, RootfsType::Squashfs));
        assert_eq!(manifest.firecracker_version.to_string(), "v1.15.1");
        assert_eq!(manifest.kernel.sha256, Digest::from_hex(&"ab".repeat(32)));
        assert_eq!((manifest.kernel.size, manifest.kernel.file_name.as_deref()), (Some(42), Some("vmlinux")));
        assert_eq!(manifest.rootfs.place, Place::Path("rootfs.squashfs".into()));
        assert!(manifest.ignored.is_empty());
    }

    #[test]
    fn what_schema_1_does_not_know_is_named_and_ignored() {
        let mut value = good();
        value["description"] = json!("x");
        value["rootfs"]["mirror"] = json!("x");
        let manifest = Manifest::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(manifest.ignored, ["description", "rootfs.mirror"]);
    }

    #[test]
    fn each_error_names_its_field() {
        let removed = Value::String("<removed>".into());
        for (pointer, value, field, why) in [
            ("/schemaVersion", removed.clone(), "schemaVersion", "is missing"),
            ("/schemaVersion", json!(2), "schemaVersion", "is 2; this smartvm reads 1"),
            ("/schemaVersion", json!("1"), "schemaVersion", "is \"1\"; this smartvm reads 1"),
            ("/schemaVersion", json!(1.0), "schemaVersion", "is 1.0; this smartvm reads 1"),
            ("/bundleId", removed.clone(), "bundleId", "is missing"),
            ("/bundleId", json!(""), "bundleId", "is empty"),
            ("/bundleId", json!("../x"), "bundleId", "is `../x`; letters"),
            ("/bundleId", json!(".."), "bundleId", "is `..`; letters"),
            ("/bundleId", json!("ü"), "bundleId", "letters, digits"),
            ("/bundleId", json!("x".repeat(91)), "bundleId", "has 91 characters"),
            ("/bundleId", json!(7), "bundleId", "is 7, not a text"),
            ("/name", removed.clone(), "name", "is missing"),
            ("/name", json!(" "), "name", "is empty"),
            ("/name", json!("a\u{1b}[2J"), "name", "holds control characters"),
            ("/arch", json!("riscv64"), "arch", "is `riscv64`, not x86_64 or aarch64"),
            ("/arch", removed.clone(), "arch", "is missing"),
            ("/firecrackerVersion", json!("latest"), "firecrackerVersion", "is `latest`, not like v1.15.1"),
            ("/rootfsType", json!("btrfs"), "rootfsType", "is `btrfs`, not ext4 or squashfs"),
            ("/rootfsIsReadOnly", json!(false), "rootfsIsReadOnly", "a squashfs can only be read"),
            ("/rootfsIsReadOnly", json!("true"), "rootfsIsReadOnly", "not true or false"),
            ("/rootfsIsReadOnly", removed.clone(), "rootfsIsReadOnly", "is missing"),
            ("/bootArgs", json!("a\nb"), "bootArgs", "holds control characters"),
            ("/bootArgs", json!("x".repeat(2049)), "bootArgs", "has 2049 bytes"),
            ("/bootArgs", removed.clone(), "bootArgs", "is missing"),
            ("/kernel", removed.clone(), "kernel", "is missing"),
            ("/kernel", json!("vmlinux"), "kernel", "cannot be read"),
            ("/kernel/url", removed.clone(), "kernel", "has neither url nor path"),
            ("/kernel/path", json!("x"), "kernel", "has both url and path"),
            ("/kernel/url", json!("file:///etc/passwd"), "kernel.url", "is not an http or https URL"),
            ("/kernel/url", json!("vmlinux"), "kernel.url", "is no URL"),
            (
                "/kernel/sha256",
                removed.clone(),
                "kernel.sha256",
                "is missing; what comes from a URL needs one",
            ),
            ("/kernel/sha256", json!("abcd"), "kernel.sha256", "is not 64 hexadecimal digits"),
            ("/kernel/sha256", json!(null), "kernel.sha256", "is missing"),
            ("/kernel/sizeBytes", json!(-1), "kernel.sizeBytes", "is -1, not a number of bytes"),
            ("/kernel/sizeBytes", json!(0), "kernel.sizeBytes", "is 0, not"),
            ("/kernel/fileName", json!("../vmlinux"), "kernel.fileName", "not a plain file name"),
            ("/kernel/fileName", json!("a\\b"), "kernel.fileName", "not a plain file name"),
            ("/kernel/fileName", json!(".."), "kernel.fileName", "not a plain file name"),
            ("/kernel/fileName", json!(""), "kernel.fileName", "not a plain file name"),
            ("/rootfs", removed.clone(), "rootfs", "is missing"),
            ("/rootfs/path", json!(""), "rootfs.path", "is empty"),
        ] {
            let mut manifest = good();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let parent = manifest.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            if value == removed {
                parent.remove(name);
            } else {
                parent.insert(name.to_owned(), value);
            }
            let error = Manifest::parse(manifest.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.field, field, "{pointer}: {error}");
            assert!(error.why.contains(why), "{pointer}: {error}");
        }
    }

    #[test]
    fn what_is_no_object_is_named_as_a_whole() {
        for text in ["", "{", "[]", "null", "1", "{} x", "\u{feff}{}"] {
            let error = Manifest::parse(text.as_bytes()).unwrap_err();
            assert!(["manifest", "schemaVersion"].contains(&error.field.as_str()), "{text}: {error}");
        }
        let twice = good().to_string().replacen('{', r#"{"bundleId":"other","#, 1);
        let error = Manifest::parse(twice.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("duplicate field `bundleId`"), "{error}");
        let large = format!("{}{}", good(), " ".repeat(LARGEST_MANIFEST));
        assert_eq!(Manifest::parse(large.as_bytes()).unwrap_err().field, "manifest");
        let deep = format!(r#"{{"schemaVersion":1,"x":{}"#, "[".repeat(60_000));
        assert!(Manifest::parse(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(at in 0usize..400, byte: u8, cut in 0usize..600) {
            let mut text = good().to_string().into_bytes();
            let len = text.len();
            text[at % len] = byte;
            text.truncate(cut);
            let _ = Manifest::parse(&text);
        }
    }
}
