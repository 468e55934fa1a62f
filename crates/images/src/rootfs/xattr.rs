//! Extended attributes as ext4 stores them.

use super::tree::Xattrs;

/// Why an attribute cannot be stored.
pub(super) type Problem = &'static str;

/// All attributes of one inode have room in the inode and one block; what is certainly too much is refused early.
const MOST_BYTES: usize = 4096 + 96;

/// Adds one attribute. `false` when Linux has no such attribute (those of macOS): it is left out, as container
/// runtimes do.
pub(super) fn add(xattrs: &mut Xattrs, name: &[u8], value: &[u8]) -> Result<bool, Problem> {
    let name = std::str::from_utf8(name).map_err(|_| "has an extended attribute whose name is not UTF-8")?;
    let value = match name {
        "system.posix_acl_access" | "system.posix_acl_default" => acl(value)?,
        _ => {
            let spaces = ["user.", "trusted.", "security."];
            let Some(rest) = spaces.iter().find_map(|space| name.strip_prefix(space)) else {
                return Ok(false);
            };
            if rest.is_empty() || rest.len() > 250 || rest.contains('\0') {
                return Err("has an extended attribute with an unusable name");
            }
            value.into()
        }
    };
    let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes + name.len() + value.len() > MOST_BYTES {
        return Err("has more extended attributes than ext4 can store");
    }
    xattrs.insert(name.into(), value);
    Ok(true)
}

/// From the form of the system calls (version 2, 8 bytes each) to that on disk (version 1, 4 bytes for those that
/// name nobody).
///
/// Source: Linux, include/uapi/linux/posix_acl_xattr.h and fs/ext4/acl.h.
fn acl(value: &[u8]) -> Result<Box<[u8]>, Problem> {
    const MALFORMED: Problem = "has a malformed access control list";
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let entries = value.strip_prefix(&2u32.to_le_bytes()).ok_or(MALFORMED)?;
    if !entries.len().is_multiple_of(8) {
        return Err(MALFORMED);
    }
    let mut stored = 1u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        match tag {
            USER | GROUP => stored.extend_from_slice(entry),
            0x01 | 0x04 | 0x10 | 0x20 => stored.extend_from_slice(&entry[..4]),
            _ => return Err(MALFORMED),
        }
    }
    Ok(stored.into())
}

/// The way back, for reading images.
pub(super) fn acl_for_system_calls(stored: &[u8]) -> Option<Vec<u8>> {
    let mut entries = stored.strip_prefix(&1u32.to_le_bytes())?;
    let mut value = 2u32.to_le_bytes().to_vec();
    while !entries.is_empty() {
        let tag = u16::from_le_bytes([*entries.first()?, *entries.get(1)?]);
        let len = if matches!(tag, 0x02 | 0x08) { 8 } else { 4 };
        value.extend_from_slice(entries.get(..len)?);
        if len == 4 {
            value.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        entries = &entries[len..];
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_rights_change_their_form_and_back() {
        let entry = |tag: u16, rights: u16, id: u32| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let list = [
            2u32.to_le_bytes().to_vec(),
            entry(1, 7, u32::MAX),
            entry(2, 5, 1000),
            entry(4, 5, u32::MAX),
            entry(16, 5, u32::MAX),
            entry(32, 0, u32::MAX),
        ]
        .concat();
        let stored = acl(&list).unwrap();
        assert_eq!(stored.len(), 4 + 4 * 4 + 8);
        assert_eq!(acl_for_system_calls(&stored), Some(list.clone()));
        for bad in [&list[..11], &list[4..], &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0], b""] {
            assert!(acl(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_what_linux_has_is_stored() {
        let mut xattrs = Xattrs::new();
        assert_eq!(add(&mut xattrs, b"com.apple.provenance", b"x"), Ok(false));
        assert_eq!(add(&mut xattrs, b"user.a", b"x"), Ok(true));
        assert!(add(&mut xattrs, b"user.", b"x").is_err());
        assert!(add(&mut xattrs, b"user.\xff", b"x").is_err());
        assert!(add(&mut xattrs, b"user.b", &[0; 5000]).is_err());
        assert_eq!(xattrs.len(), 1);
    }
}
