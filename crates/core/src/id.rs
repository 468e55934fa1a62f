//! The name of a machine. It is part of paths, links, cgroups and namespaces, so its form is strict
//! and it is never rewritten: what the user gave is what is on disk, or an error.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::explain::{Code, Explain, Happened};

/// 1 to 64 of `a`–`z`, `0`–`9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(String);

impl MachineId {
    /// The longest id, in bytes; also Firecracker's and the jailer's own bound for `--id`.
    pub const MAX_LEN: usize = 64;

    /// Takes `id` as it is.
    ///
    /// # Errors
    /// [`BadMachineId`] with the reason, when it is not of the form.
    pub fn new(id: &str) -> Result<Self, BadMachineId> {
        let bad = |reason| Err(BadMachineId { id: id.chars().take(2 * Self::MAX_LEN).collect(), reason });
        if id.is_empty() {
            return bad(BadIdReason::Empty);
        }
        if let Some(found) = id.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return bad(BadIdReason::Character(found));
        }
        if id.len() > Self::MAX_LEN {
            return bad(BadIdReason::TooLong(id.len()));
        }
        Ok(Self(id.to_owned()))
    }

    /// A fresh id from 40 random bits, easy to read out and to type: `bado-kufi-nasi-tomu`.
    ///
    /// Short rather than unique for all time: among a thousand machines, two get the same id with a
    /// chance of one in two million. Whoever makes the machine's directory finds that out and draws again.
    pub fn generate(random: [u8; 5]) -> Self {
        // 8 consonants and 4 vowels: no letter that looks or sounds like another of the same place.
        const CONSONANTS: &[u8; 8] = b"bdfkmnst";
        const VOWELS: &[u8; 4] = b"aiou";
        let mut bits = random.iter().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
        let mut take = |count: u32| {
            let index = (bits & ((1 << count) - 1)) as usize;
            bits >>= count;
            index
        };
        let mut id = String::with_capacity(19);
        for group in 0..4 {
            if group > 0 {
                id.push('-');
            }
            for _pair in 0..2 {
                id.push(CONSONANTS[take(3)].into());
                id.push(VOWELS[take(2)].into());
            }
        }
        Self(id)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for MachineId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for MachineId {
    type Err = BadMachineId;

    fn from_str(id: &str) -> Result<Self, BadMachineId> {
        Self::new(id)
    }
}

impl TryFrom<String> for MachineId {
    type Error = BadMachineId;

    fn try_from(id: String) -> Result<Self, BadMachineId> {
        Self::new(&id)
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.0
    }
}

/// A text that cannot name a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{id:?} cannot name a machine: {reason}")]
pub struct BadMachineId {
    /// What was given, cut to 128 characters.
    pub id: String,
    /// What is wrong with it.
    pub reason: BadIdReason,
}

/// Why a text cannot name a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadIdReason {
    /// There is no text.
    Empty,
    /// It has this many bytes.
    TooLong(usize),
    /// It holds this character.
    Character(char),
}

impl fmt::Display for BadIdReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "it is empty"),
            Self::TooLong(len) => write!(f, "it is {len} characters long"),
            Self::Character(found) => write!(f, "it contains {found:?}"),
        }
    }
}

impl Explain for BadMachineId {
    fn code(&self) -> Code {
        Code::InvalidId
    }

    fn hint(&self) -> Option<String> {
        Some(format!("use 1 to {} of the characters a-z, 0-9 and -", MachineId::MAX_LEN))
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bounds_of_the_length_are_1_and_64() {
        assert!(MachineId::new("a").is_ok());
        assert!(MachineId::new(&"a".repeat(64)).is_ok());
        assert_eq!(MachineId::new(&"a".repeat(65)).unwrap_err().reason, BadIdReason::TooLong(65));
        assert_eq!(MachineId::new("").unwrap_err().reason, BadIdReason::Empty);
    }

    #[test]
    fn an_error_says_what_is_wrong_and_what_is_right() {
        let error = MachineId::new("../etc").unwrap_err();
        assert_eq!(error.to_string(), r#""../etc" cannot name a machine: it contains '.'"#);
        assert_eq!(error.code().as_str(), "INVALID_ID");
        assert_eq!(error.hint().as_deref(), Some("use 1 to 64 of the characters a-z, 0-9 and -"));
    }

    #[test]
    fn json_holds_the_bare_text_and_refuses_a_bad_one() {
        let id: MachineId = serde_json::from_str(r#""web-1""#).unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), r#""web-1""#);
        assert!(serde_json::from_str::<MachineId>(r#""Web""#).is_err());
    }

    proptest! {
        #[test]
        fn an_accepted_id_is_of_the_form_and_unchanged(text in "[a-z0-9-]{0,70}|\\PC{0,70}") {
            let of_the_form = (1..=64).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            match MachineId::new(&text) {
                Ok(id) => { prop_assert!(of_the_form); prop_assert_eq!(id.as_str(), text); }
                Err(_) => prop_assert!(!of_the_form),
            }
        }

        #[test]
        fn generated_ids_are_valid_and_differ_when_the_bits_differ(a: [u8; 5], b: [u8; 5]) {
            let [first, second] = [a, b].map(MachineId::generate);
            prop_assert_eq!(MachineId::new(first.as_str()), Ok(first.clone()));
            prop_assert_eq!(first == second, a == b);
        }
    }
}
