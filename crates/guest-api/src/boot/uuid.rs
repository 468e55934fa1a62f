//! The id of a file system.

use std::fmt;
use std::str::FromStr;

/// The id in a file system's superblock, by which its disk is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

/// Not a UUID: 32 hexadecimal digits with hyphens after the 8th, 12th, 16th and 20th.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID (such as 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0)")]
pub struct InvalidUuid;

/// Before these bytes stands a hyphen.
const GROUPS: [usize; 4] = [4, 6, 8, 10];

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if GROUPS.contains(&at) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = InvalidUuid;

    fn from_str(text: &str) -> Result<Self, InvalidUuid> {
        let mut bytes = [0; 16];
        let mut rest = text.as_bytes();
        for (at, byte) in bytes.iter_mut().enumerate() {
            if GROUPS.contains(&at) {
                rest = rest.strip_prefix(b"-").ok_or(InvalidUuid)?;
            }
            let (digits, after) = rest.split_first_chunk::<2>().ok_or(InvalidUuid)?;
            *byte = super::words::hex(*digits).ok_or(InvalidUuid)?;
            rest = after;
        }
        if rest.is_empty() { Ok(Self(bytes)) } else { Err(InvalidUuid) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_uuid_comes_back_from_its_text(bytes: [u8; 16]) {
            prop_assert_eq!(Uuid(bytes).to_string().parse(), Ok(Uuid(bytes)));
        }

        #[test]
        fn nothing_else_is_a_uuid(text in "[0-9a-fA-F-]{0,40}") {
            if let Ok(uuid) = text.parse::<Uuid>() {
                prop_assert_eq!(uuid.to_string(), text.to_ascii_lowercase());
            }
        }
    }

    #[test]
    fn the_form_is_strict() {
        let good = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        assert!(good.parse::<Uuid>().is_ok());
        for bad in
            ["", "0f1e2d3c4b5a69788796a5b4c3d2e1f0", &good[1..], &format!("{good}0"), &good.replace('f', "+")]
        {
            assert_eq!(bad.parse::<Uuid>(), Err(InvalidUuid), "{bad}");
        }
    }
}
