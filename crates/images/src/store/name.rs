//! Names of records as file names: any text in, one safe path component out, no two texts alike.

use std::fmt::Write as _;

use crate::Digest;

/// The longest file name made here, in bytes: file systems allow 255, and `.json` follows.
const LONGEST: usize = 200;

/// How much of a longer name stays readable.
const READABLE: usize = 100;

/// The file name for `name`: letters, digits, `-`, `_` and inner `.` as they are, every other byte as `%` and two
/// hexadecimal digits. A long one is cut and ends in `~` and the SHA-256 of the whole name.
pub(super) fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len() + 8);
    for (index, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(byte.into()),
            b'.' if index > 0 => escaped.push('.'),
            // Writing to a String cannot fail.
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    if escaped.is_empty() {
        // No other name gives this: a `%` is always followed by two digits.
        escaped.push('%');
    }
    if escaped.len() > LONGEST {
        escaped.truncate(READABLE);
        escaped.push('~');
        escaped.push_str(&Digest::of(name.as_bytes()).hex());
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_stay_readable() {
        assert_eq!(escape("debian-12"), "debian-12");
        assert_eq!(escape("docker.io/library/debian:12"), "docker.io%2Flibrary%2Fdebian%3A12");
        assert_eq!(escape(".."), "%2E.");
        assert_eq!(escape(""), "%");
        assert!(escape(&"a/".repeat(300)).starts_with("a%2Fa%2F"));
    }

    /// Reads back what was not cut.
    fn unescape(escaped: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = escaped.as_bytes();
        while let [first, after @ ..] = rest {
            if *first == b'%' && after.len() >= 2 {
                bytes.push(u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap());
                rest = &after[2..];
            } else {
                bytes.extend((*first != b'%').then_some(*first));
                rest = after;
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn any_name_is_one_safe_component(name in any::<String>()) {
            let escaped = escape(&name);
            prop_assert!(!escaped.is_empty() && escaped.len() <= LONGEST);
            prop_assert!(!escaped.starts_with('.'));
            prop_assert!(escaped.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
            if !escaped.contains('~') {
                prop_assert_eq!(unescape(&escaped), name.as_bytes());
            }
        }

        #[test]
        fn long_names_that_differ_at_their_end_differ(name in "[a-z:/]{150,400}") {
            prop_assert_ne!(escape(&format!("{name}x")), escape(&format!("{name}y")));
        }
    }
}
