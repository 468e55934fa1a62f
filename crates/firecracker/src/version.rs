//! Firecracker's version numbers. What each version can do: [`crate::capability`].

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smartvm_core::explain::{Code, Explain, Happened};

/// A Firecracker version: `1.12.1`, `1.17.0-dev`.
///
/// Ordered by number; at equal numbers a version with a suffix comes before the one without.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version {
    /// 1 since 2021.
    pub major: u32,
    /// Grows with each release.
    pub minor: u32,
    /// Grows with each fix of a release.
    pub patch: u32,
    /// What stands after the number, without its hyphen: `dev`. Never empty.
    pub suffix: Option<Box<str>>,
}

impl Version {
    /// The oldest Firecracker that smartvm drives.
    pub const OLDEST_SUPPORTED: Self = Self::new(1, 7, 0);

    /// A released version.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch, suffix: None }
    }

    /// The numbers alone: what decides about capabilities, since `1.17.0-dev` can what 1.17 can.
    pub const fn number(&self) -> (u32, u32, u32) {
        (self.major, self.minor, self.patch)
    }

    /// Whether smartvm drives this version: 1.7 or later.
    pub fn is_supported(&self) -> bool {
        self.number() >= Self::OLDEST_SUPPORTED.number()
    }

    /// Finds the version in what `firecracker --version` prints (`Firecracker v1.12.1`, then other lines).
    ///
    /// # Errors
    /// No line of the output has that form: it is no Firecracker.
    pub fn from_output(output: &str) -> Result<Self, ParseVersionError> {
        output
            .lines()
            .find_map(|line| line.trim().strip_prefix("Firecracker ")?.trim().parse().ok())
            .ok_or_else(|| ParseVersionError::of(output))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        match &self.suffix {
            Some(suffix) => write!(f, "-{suffix}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Version {
    type Err = ParseVersionError;

    /// Reads `1.12.1`, `v1.12.1`, `1.17.0-dev` or `Firecracker v1.12.1`; the patch number may be left out.
    fn from_str(text: &str) -> Result<Self, ParseVersionError> {
        parse(text).ok_or_else(|| ParseVersionError::of(text))
    }
}

fn parse(text: &str) -> Option<Version> {
    let text = text.trim();
    let text = text.strip_prefix("Firecracker ").unwrap_or(text).trim_start();
    let text = text.strip_prefix('v').unwrap_or(text);
    let (numbers, suffix) = match text.split_once('-') {
        Some((numbers, suffix)) => (numbers, Some(suffix)),
        None => (text, None),
    };
    if suffix.is_some_and(|s| s.is_empty() || !s.bytes().all(|b| b.is_ascii_graphic())) {
        return None;
    }
    let mut parts = numbers.split('.');
    let mut next = || parts.next().map(number);
    let (major, minor) = (next()??, next()??);
    let patch = next().unwrap_or(Some(0))?;
    match parts.next() {
        Some(_) => None,
        None => Some(Version { major, minor, patch, suffix: suffix.map(Into::into) }),
    }
}

/// Digits only: `u32::from_str` would take a sign too.
fn number(digits: &str) -> Option<u32> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number().cmp(&other.number()).then_with(|| match (&self.suffix, &other.suffix) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) => a.cmp(b),
        })
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no Firecracker version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a Firecracker version")]
pub struct ParseVersionError {
    /// The beginning of the text (at most 80 characters of its first line).
    pub text: String,
}

impl ParseVersionError {
    fn of(text: &str) -> Self {
        let line = text.trim().lines().next().unwrap_or_default();
        Self { text: line.chars().filter(|c| !c.is_control()).take(80).collect() }
    }
}

impl Explain for ParseVersionError {
    fn code(&self) -> Code {
        Code::FirecrackerNotFound
    }

    fn hint(&self) -> Option<String> {
        Some("a version looks like `1.12.1`; is this program really Firecracker?".to_owned())
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn every_usual_spelling_is_read() {
        for text in ["1.12.1", "v1.12.1", "Firecracker v1.12.1", " Firecracker v1.12.1\n"] {
            assert_eq!(version(text), Version::new(1, 12, 1), "{text}");
        }
        assert_eq!(version("1.14"), Version::new(1, 14, 0));
        assert_eq!(version("1.17.0-dev").suffix.as_deref(), Some("dev"));
        assert_eq!(version("v1.4.0-12-gabc-dirty").to_string(), "1.4.0-12-gabc-dirty");
    }

    #[test]
    fn the_output_of_the_binary_is_read_past_its_log_lines() {
        let output = "Firecracker v1.12.1\n\n2026-11-24T06:04:32.630961874 [anonymous-instance:main] \
                      Firecracker exiting successfully. exit_code=0\n";
        assert_eq!(Version::from_output(output), Ok(Version::new(1, 12, 1)));
        assert!(Version::from_output("jailer v1.12.1").is_err());
    }

    #[test]
    fn what_is_no_version_is_an_error_that_quotes_it() {
        for text in
            ["", "1", "1.", "1.x", "1.2.3.4", "1.2.3-", "+1.2.3", "1.-2.3", "v", "1.2. 3", "1.99999999999"]
        {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
        assert_eq!(
            "curl 8".parse::<Version>().unwrap_err().to_string(),
            "`curl 8` is not a Firecracker version"
        );
    }

    #[test]
    fn versions_are_ordered_by_number_then_suffix() {
        let sorted = ["1.7.0", "1.9.1", "1.10.0", "1.17.0-dev", "1.17.0", "2.0.0"].map(version);
        assert!(sorted.is_sorted());
        assert!(version("1.17.0-dev") < version("1.17.0"));
        assert!(!version("1.6.9").is_supported());
        assert!(version("1.7.0-dev").is_supported());
    }

    #[test]
    fn serde_uses_the_text() {
        let json = serde_json::to_string(&version("1.17.0-dev")).unwrap();
        assert_eq!(json, "\"1.17.0-dev\"");
        assert_eq!(serde_json::from_str::<Version>(&json).unwrap(), version("1.17.0-dev"));
        assert!(serde_json::from_str::<Version>("\"x\"").is_err());
    }

    proptest! {
        #[test]
        fn any_version_survives_its_text(major: u32, minor: u32, patch: u32, suffix in "|[a-z0-9.-]{1,12}") {
            let suffix = (!suffix.is_empty()).then(|| suffix.into_boxed_str());
            let version = Version { major, minor, patch, suffix };
            prop_assert_eq!(version.to_string().parse::<Version>(), Ok(version));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Version>();
            let _ = Version::from_output(&text);
        }
    }
}
