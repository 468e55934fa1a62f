//! Which machines an image's programs are for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor, in the words of Go's `GOOS` and `GOARCH`, as OCI has them.
///
/// Source: OCI image spec, image-index.md, "platform".
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// A generation of the architecture: `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// What guests of this host run: Linux on the host's own processor.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Whether a machine of this platform runs programs of `image`. Variants are compared where both name one, and
    /// `v8` is what every 64-bit ARM processor is.
    pub fn runs(&self, image: &Self) -> bool {
        let variant = |platform: &Self| match (platform.architecture.as_str(), platform.variant.as_deref()) {
            ("arm64", None) => Some("v8".to_owned()),
            (_, None | Some("")) => None,
            (_, Some(variant)) => Some(variant.to_owned()),
        };
        self.os == image.os
            && self.architecture == image.architecture
            && match (variant(self), variant(image)) {
                (Some(own), Some(wanted)) => own == wanted,
                _ => true,
            }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

/// A text that is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform (such as linux/amd64 or linux/arm64/v8)")]
pub struct BadPlatform(String);

impl FromStr for Platform {
    type Err = BadPlatform;

    fn from_str(text: &str) -> Result<Self, BadPlatform> {
        let mut parts = text.split('/').map(str::to_owned);
        let is_part = |part: &String| {
            (1..=32).contains(&part.len())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        };
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None)
                if is_part(&os) && is_part(&architecture) && variant.as_ref().is_none_or(is_part) =>
            {
                Ok(Self { os, architecture, variant })
            }
            _ => Err(BadPlatform(text.chars().take(100).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Platform;

    #[test]
    fn variants_count_where_both_name_one() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        for (own, image, runs) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v9", false),
            ("linux/amd64", "linux/amd64/v3", true),
            ("linux/amd64/v2", "linux/amd64/v3", false),
        ] {
            assert_eq!(platform(own).runs(&platform(image)), runs, "{own} runs {image}");
        }
    }

    #[test]
    fn only_two_or_three_parts_are_a_platform() {
        for bad in ["", "linux", "linux/", "/amd64", "linux/a/b/c", "linux/a b", "linux/amd64/"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert_eq!("linux/arm64/v8".parse::<Platform>().unwrap().to_string(), "linux/arm64/v8");
    }
}
