//! The records of a PAX extended header.
//!
//! Source: POSIX.1-2024, pax, "pax Extended Header"; `SCHILY.xattr.*` is star's and GNU tar's,
//! `LIBARCHIVE.xattr.*` is bsdtar's, `GNU.sparse.*` is described in GNU tar's manual, "Sparse Formats".
//!
//! Read here and not by the crate `tar`: that one splits the records at newlines, and the values of
//! extended attributes are bytes of any kind.

use base64::Engine as _;

/// What the records say of the entry that follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// Seconds and nanoseconds since 1970; the latter count forward from the former, also before 1970.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseKeys,
}

/// What GNU tar says of a sparse file, in its three formats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SparseKeys {
    /// Format 1.0: the map is in front of the data.
    pub(super) major: Option<u64>,
    pub(super) size: Option<u64>,
    /// Formats 0.0 and 0.1: offsets and lengths by turns.
    pub(super) map: Vec<u64>,
    pub(super) name: Option<Vec<u8>>,
}

/// Why records cannot be used.
pub(super) type Problem = &'static str;

impl Extended {
    /// Reads the records of a header that counts for one entry.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), Problem> {
        while !records.is_empty() {
            let (key, value, rest) = record(records)?;
            self.set(key, value)?;
            records = rest;
        }
        Ok(())
    }

    /// Reads the records of a header that counts for the rest of the archive: times and owners. The other
    /// keys make no sense for more than one entry, and are not applied.
    pub(super) fn read_global(&mut self, mut records: &[u8]) -> Result<(), Problem> {
        while !records.is_empty() {
            let (key, value, rest) = record(records)?;
            if matches!(key, b"mtime" | b"uid" | b"gid") {
                self.set(key, value)?;
            }
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = optional(value, number)?,
            b"uid" => self.uid = optional(value, id)?,
            b"gid" => self.gid = optional(value, id)?,
            b"mtime" => self.mtime = optional(value, time)?,
            b"GNU.sparse.major" => self.sparse.major = Some(number(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(number(value)?),
            b"GNU.sparse.name" => self.sparse.name = text(value)?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(number(value)?),
            b"GNU.sparse.map" => {
                self.sparse.map = value.split(|byte| *byte == b',').map(number).collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name.to_vec(), value.to_vec());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = base64(value).ok_or("has an extended attribute that is not base64")?;
                    self.set_xattr(percent_decoded(name), value);
                }
                // Everything else says nothing that a file system keeps (comments, character sets, access
                // times that would differ each time the image is made), or is some other program's own.
            }
        }
        Ok(())
    }

    /// bsdtar writes each attribute twice, in both ways.
    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) {
        match self.xattrs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.xattrs.push((name, value)),
        }
    }
}

/// Key, value, and what follows them.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record, `LENGTH KEY=VALUE\n`, and what follows it.
fn record(records: &[u8]) -> Result<Record<'_>, Problem> {
    const MALFORMED: Problem = "has a malformed PAX header";
    let space = records.iter().position(|byte| *byte == b' ').ok_or(MALFORMED)?;
    let length = usize::try_from(number(&records[..space]).map_err(|_| MALFORMED)?).map_err(|_| MALFORMED)?;
    if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
        return Err(MALFORMED);
    }
    let pair = &records[space + 1..length - 1];
    let equals = pair.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or(MALFORMED)?;
    Ok((&pair[..equals], &pair[equals + 1..], &records[length..]))
}

/// An empty value takes back what a global header said.
fn optional<T>(value: &[u8], read: fn(&[u8]) -> Result<T, Problem>) -> Result<Option<T>, Problem> {
    if value.is_empty() { Ok(None) } else { read(value).map(Some) }
}

fn text(value: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
    if value.contains(&0) {
        return Err("has a name with a NUL byte");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Decimal digits and nothing else.
pub(super) fn number(value: &[u8]) -> Result<u64, Problem> {
    const MALFORMED: Problem = "has a malformed number in its PAX header";
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or(MALFORMED)
}

fn id(value: &[u8]) -> Result<u32, Problem> {
    u32::try_from(number(value)?).map_err(|_| "has an owner beyond 32 bits")
}

/// Decimal seconds with an optional sign and fraction.
fn time(value: &[u8]) -> Result<(i64, u32), Problem> {
    const MALFORMED: Problem = "has a malformed time in its PAX header";
    let (negative, value) = match value {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let whole = number(parts.next().unwrap_or_default()).map_err(|_| MALFORMED)?;
    let seconds = i64::try_from(whole).map_err(|_| MALFORMED)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(MALFORMED);
    }
    let nanos = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = nanos.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Ok(match (negative, nanos) {
        (false, nanos) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn base64(value: &[u8]) -> Option<Vec<u8>> {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
    STANDARD_NO_PAD.decode(value).or_else(|_| STANDARD.decode(value)).ok()
}

fn percent_decoded(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                rest = &tail[2..];
            }
            _ => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
        let mut line = format!("{length} {key}=").into_bytes();
        line.extend_from_slice(value);
        line.push(b'\n');
        line
    }

    fn read(lines: &[(&str, &[u8])]) -> Result<Extended, Problem> {
        let mut extended = Extended::default();
        let records: Vec<u8> = lines.iter().flat_map(|(key, value)| line(key, value)).collect();
        extended.read(&records).map(|()| extended)
    }

    #[test]
    fn values_are_bytes_of_any_kind() {
        let capability = b"\x01\0\0\x02\n\n=\0\x0a\x14";
        let extended = read(&[
            ("SCHILY.xattr.security.capability", capability),
            ("LIBARCHIVE.xattr.user.a%20b", b"bmV3CmxpbmU"),
            ("size", b"8589934592"),
            ("path", "bücher".as_bytes()),
        ])
        .unwrap();
        assert_eq!(extended.size, Some(8 << 30));
        assert_eq!(extended.path.as_deref(), Some("bücher".as_bytes()));
        assert_eq!(
            extended.xattrs,
            [
                (b"security.capability".to_vec(), capability.to_vec()),
                (b"user.a b".to_vec(), b"new\nline".to_vec())
            ]
        );
    }

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, expected) in [
            (&b"1700000000.123456789"[..], (1_700_000_000, 123_456_789)),
            (b"1.5", (1, 500_000_000)),
            (b"-1.25", (-2, 750_000_000)),
            (b"-3", (-3, 0)),
            (b"5.0000000019", (5, 1)),
        ] {
            assert_eq!(time(text), Ok(expected));
        }
        for bad in [&b"x"[..], b"1.x", b"--1", b"1e3", b"99999999999999999999"] {
            assert!(time(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"0 a=b\n",
            b"3 \n",
            b"6 a-b\n",
            b"7 =abc\n",
            b"x a=b\n",
            b"18446744073709551616 a=b\n",
        ] {
            assert!(Extended::default().read(bad).is_err(), "{bad:?}");
        }
        assert!(read(&[("path", b"a\0b")]).is_err());
        assert!(read(&[("uid", b"4294967296")]).is_err());
        assert!(read(&[("LIBARCHIVE.xattr.user.a", b"???")]).is_err());
    }

    #[test]
    fn global_records_give_times_and_owners_only() {
        let mut global = Extended::default();
        let records = [line("path", b"x"), line("mtime", b"7"), line("uid", b"5")].concat();
        global.read_global(&records).unwrap();
        assert_eq!(global, Extended { mtime: Some((7, 0)), uid: Some(5), ..Extended::default() });
        global.read(&line("uid", b"")).unwrap();
        assert_eq!(global.uid, None);
    }
}
