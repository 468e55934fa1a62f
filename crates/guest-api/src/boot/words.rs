//! Bytes as words of a kernel command line, and back.

/// Splits a command line as the kernel does: at white space that is not between double quotes.
pub(super) fn split(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let separates = move |byte: &u8| {
        quoted ^= *byte == b'"';
        !quoted && byte.is_ascii_whitespace()
    };
    line.split(separates).filter(|word| !word.is_empty())
}

/// Appends bytes with all but harmless ones as `%XX`, so that they are one word wherever they go.
pub(super) fn encode(bytes: &[u8], into: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/:@+,=".contains(byte) {
            into.push(char::from(*byte));
        } else {
            into.push('%');
            into.extend([byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)])));
        }
    }
}

/// The bytes that [`encode`] was given. `None` for a `%` without two hexadecimal digits.
pub(super) fn decode(word: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let (digits, after) = rest.split_first_chunk::<2>()?;
            bytes.push(hex(*digits)?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    Some(bytes)
}

/// The value of two hexadecimal digits.
pub(super) fn hex(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(high? * 16 + low?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_back_from_one_word(bytes: Vec<u8>) {
            let mut word = String::new();
            encode(&bytes, &mut word);
            prop_assert!(word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"'), "{}", word);
            prop_assert_eq!(decode(word.as_bytes()), Some(bytes));
        }

        #[test]
        fn any_line_is_split_and_decoded(line: Vec<u8>) {
            split(&line).for_each(|word| drop(decode(word)));
        }
    }

    #[test]
    fn quotes_hold_a_word_together() {
        let words: Vec<&[u8]> = split(b" a  b=\"c d\"e\tf \n\"g h").collect();
        assert_eq!(words, [&b"a"[..], b"b=\"c d\"e", b"f", b"\"g h"]);
    }

    #[test]
    fn half_an_escape_is_none() {
        for bad in ["%", "%4", "a%zz", "%+1"] {
            assert_eq!(decode(bad.as_bytes()), None, "{bad}");
        }
    }
}
