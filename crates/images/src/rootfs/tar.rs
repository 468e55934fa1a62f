//! The entries of a tar archive, one after another, within bounds.
//!
//! Sources: POSIX.1-2024, pax, "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format". Where
//! writers and readers disagree, this reads as Go's archive/tar does, for that is what wrote and unpacks
//! nearly all OCI layers: hardlinks, symlinks, directories and device nodes have no contents, whatever
//! size their headers state.
//!
//! Own code and not the crate `tar`: that one loses extended attributes with newlines in their values (and
//! then the size of the next entry), and reads long names of any length into memory.

use std::io::{self, Read};

use super::pax::{self, Extended};
use super::source::{Stream, cut_short};
use super::sparse::Map;

/// A block of an archive, in bytes.
const RECORD: usize = 512;

/// The longest extension header, in bytes: names, links and all extended attributes of one entry.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Ranges of one sparse file: what two levels of an extent tree can hold.
const SPARSE_RANGES: usize = 100_000;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Hardlink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry, complete.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    /// Permission bits, setuid, setgid and sticky ones included.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The size of the file, holes included, in bytes.
    pub(super) size: u64,
    /// Where a sparse file has data.
    pub(super) map: Option<Map>,
}

/// Why an archive cannot be read on.
#[derive(Debug)]
pub(super) enum TarError {
    /// The bytes could not be had: truncated, corrupt compression, too large, stopped.
    Read(io::Error),
    /// They are not a tar archive.
    Malformed(&'static str),
    /// An entry is not one that we can take.
    Entry(Vec<u8>, &'static str),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Reads the entries of one archive.
pub(super) struct Entries<'a> {
    stream: Stream<'a>,
    global: Extended,
    /// Bytes of the current entry's contents not read yet.
    left: u64,
    /// Bytes after them up to the next header.
    padding: u64,
}

impl<'a> Entries<'a> {
    pub(super) fn new(stream: Stream<'a>) -> Self {
        Self { stream, global: Extended::default(), left: 0, padding: 0 }
    }

    /// How far the archive was read, in unpacked bytes.
    pub(super) fn position(&self) -> u64 {
        self.stream.position()
    }

    /// The next entry; `None` at the end of the archive. What was not read of the last one's contents is
    /// skipped.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = self.global.clone();
        let (mut long_path, mut long_link) = (None, None);
        let mut extensions = 0;
        loop {
            self.stream.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let Some(block) = self.header()? else {
                return if extensions == 0 { Ok(None) } else { Err(TarError::Read(cut_short())) };
            };
            let header = Header(&block);
            let flag = header.0[156];
            if !matches!(flag, b'x' | b'g' | b'L' | b'K' | b'X') {
                return self.entry(&block, extended, long_path, long_link).map(Some);
            }
            // A handful describe one entry; thousands would be a way to keep us busy.
            extensions += 1;
            if extensions > 16 {
                return Err(TarError::Malformed("there are too many extension headers in a row"));
            }
            let size = header.size().map_err(TarError::Malformed)?;
            let data = self.extension(size)?;
            let malformed = |problem| TarError::Entry(header.path(), problem);
            match flag {
                b'x' | b'X' => extended.read(&data).map_err(malformed)?,
                b'g' => {
                    self.global.read_global(&data).map_err(malformed)?;
                    extended = self.global.clone();
                }
                b'L' => long_path = Some(until_nul(&data).to_vec()),
                _ => long_link = Some(until_nul(&data).to_vec()),
            }
        }
    }

    /// The contents of the current entry as stored (of a sparse file: only its data).
    pub(super) fn contents(&mut self) -> Contents<'_, 'a> {
        Contents(self)
    }

    /// Reads to the end of the file behind the archive, so that damage there is seen as well.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        while self.stream.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The next header block whose checksum is right; `None` at the mark of the end, or where the file
    /// simply ends, which is how some builders write archives.
    fn header(&mut self) -> Result<Option<[u8; RECORD]>, TarError> {
        let mut block = [0; RECORD];
        let mut have = 0;
        while have < RECORD {
            match self.stream.read(&mut block[have..])? {
                0 if have == 0 => return Ok(None),
                0 => return Err(TarError::Read(cut_short())),
                got => have += got,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let spaced =
            block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        // Some old writers summed up signed bytes.
        let unsigned: u64 = spaced.clone().map(u64::from).sum();
        let signed: i64 = spaced.map(|byte| i64::from(byte as i8)).sum();
        let stated = number(&block[148..156]).map_err(TarError::Malformed)?;
        if stated != unsigned && i64::try_from(stated).ok() != Some(signed) {
            return Err(TarError::Malformed("the checksum of a header is wrong, or this is no tar archive"));
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > LONGEST_EXTENSION {
            return Err(TarError::Malformed("an extension header is larger than 1 MiB"));
        }
        let mut data = vec![0; size as usize];
        self.read_exactly(&mut data)?;
        self.padding = padding(size);
        Ok(data)
    }

    fn read_exactly(&mut self, into: &mut [u8]) -> Result<(), TarError> {
        self.stream.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Read(cut_short()),
            _ => TarError::Read(error),
        })
    }

    fn entry(
        &mut self,
        block: &[u8; RECORD],
        extended: Extended,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let header = Header(block);
        let Extended { path, link, size, uid, gid, mtime, xattrs, mut sparse } = extended;
        let sparse_name = sparse.name.take();
        let path = sparse_name.or(path).or(long_path).unwrap_or_else(|| header.path());
        let refuse = |problem| TarError::Entry(path.clone(), problem);
        let kind = match header.0[156] {
            0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(refuse("is of a kind that is not known")),
        };
        let link = link.or(long_link).unwrap_or_else(|| until_nul(&header.0[157..257]).to_vec());
        let has_contents = kind == Kind::File;
        let stored = match (has_contents, size) {
            (false, _) => 0,
            (true, Some(size)) => size,
            (true, None) => header.size().map_err(refuse)?,
        };
        if stored > super::LARGEST_FILE {
            return Err(refuse("is larger than a file on ext4 can be"));
        }
        self.left = stored;
        self.padding = padding(stored);
        let (size, map) = if header.0[156] == b'S' {
            let (map, size) = self.old_sparse(block, stored).map_err(|error| named(error, &path))?;
            (size, Some(map))
        } else if has_contents && (sparse.major.is_some() || !sparse.map.is_empty()) {
            let size = sparse.size.ok_or_else(|| refuse("is sparse and does not say its size"))?;
            let map = self.pax_sparse(&sparse, size).map_err(|error| named(error, &path))?;
            (size, Some(map))
        } else {
            (stored, None)
        };
        if map.as_ref().is_some_and(|map| map.stored() != self.left) {
            return Err(refuse("has a sparse map that does not fit its data"));
        }
        let owner = |extended: Option<u32>, field| match extended {
            Some(id) => Ok(id),
            None => u32::try_from(number(field)?).map_err(|_| "has an owner beyond 32 bits"),
        };
        Ok(Entry {
            mode: (number(&header.0[100..108]).map_err(refuse)? & 0o7777) as u16,
            uid: owner(uid, &header.0[108..116]).map_err(refuse)?,
            gid: owner(gid, &header.0[116..124]).map_err(refuse)?,
            mtime: match mtime {
                Some(mtime) => mtime,
                None => (signed_number(&header.0[136..148]).map_err(refuse)?, 0),
            },
            device: match kind {
                Kind::CharDevice | Kind::BlockDevice => header.device().map_err(refuse)?,
                _ => (0, 0),
            },
            path,
            link,
            kind,
            xattrs,
            size,
            map,
        })
    }

    /// GNU tar's oldest way: four ranges in the header, more in blocks that follow it.
    fn old_sparse(&mut self, block: &[u8; RECORD], stored: u64) -> Result<(Map, u64), TarError> {
        let mut ranges = Vec::new();
        let mut add = |fields: &[u8]| -> Result<(), &'static str> {
            for field in fields.chunks_exact(24) {
                if field[0] != 0 {
                    ranges.push((number(&field[..12])?, number(&field[12..])?));
                }
            }
            if ranges.len() > SPARSE_RANGES { Err("has too many sparse ranges") } else { Ok(()) }
        };
        add(&block[386..482]).map_err(TarError::Malformed)?;
        let mut more = block[482] != 0;
        while more {
            let mut next = [0; RECORD];
            self.read_exactly(&mut next)?;
            add(&next[..504]).map_err(TarError::Malformed)?;
            more = next[504] != 0;
        }
        (self.left, self.padding) = (stored, padding(stored));
        let size = number(&block[483..495]).map_err(TarError::Malformed)?;
        Ok((Map::new(ranges, size).map_err(TarError::Malformed)?, size))
    }

    /// GNU tar's newer ways: the map in the PAX header, or in front of the data.
    fn pax_sparse(&mut self, sparse: &pax::SparseKeys, size: u64) -> Result<Map, TarError> {
        let mut numbers = sparse.map.clone();
        if sparse.major == Some(1) {
            let count = self.sparse_number()?;
            let count = usize::try_from(count).ok().filter(|count| *count <= SPARSE_RANGES);
            let count = count.ok_or(TarError::Malformed("has too many sparse ranges"))?;
            numbers.clear();
            for _ in 0..2 * count {
                numbers.push(self.sparse_number()?);
            }
            // The map fills whole records.
            let read = self.padding_of_contents();
            self.skip_contents(read)?;
        } else if sparse.major.is_some_and(|major| major != 0) {
            return Err(TarError::Malformed("is sparse in a format that is not known"));
        }
        if !numbers.len().is_multiple_of(2) || numbers.len() > 2 * SPARSE_RANGES {
            return Err(TarError::Malformed("has a malformed sparse map"));
        }
        Map::new(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])), size).map_err(TarError::Malformed)
    }

    /// Bytes from here to the next multiple of a record within the contents.
    fn padding_of_contents(&self) -> u64 {
        // Contents end `padding` bytes before a record's end, so this is how far into one we are.
        (self.left + self.padding) % RECORD as u64
    }

    fn skip_contents(&mut self, count: u64) -> Result<(), TarError> {
        self.left = self.left.checked_sub(count).ok_or(TarError::Malformed("has a malformed sparse map"))?;
        Ok(self.stream.skip(count)?)
    }

    /// One decimal line of the map in front of the data.
    fn sparse_number(&mut self) -> Result<u64, TarError> {
        const MALFORMED: TarError = TarError::Malformed("has a malformed sparse map");
        let mut value: u64 = 0;
        for digits in 0..=20 {
            let mut byte = [0];
            self.left = self.left.checked_sub(1).ok_or(MALFORMED)?;
            self.read_exactly(&mut byte)?;
            match byte[0] {
                b'\n' if digits > 0 => return Ok(value),
                digit @ b'0'..=b'9' => {
                    let next = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(digit - b'0')));
                    value = next.ok_or(MALFORMED)?;
                }
                _ => return Err(MALFORMED),
            }
        }
        Err(MALFORMED)
    }
}

/// A problem of the entry's own gets the entry's name.
fn named(error: TarError, path: &[u8]) -> TarError {
    match error {
        TarError::Malformed(problem) => TarError::Entry(path.to_vec(), problem),
        other => other,
    }
}

/// See [`Entries::contents`].
pub(super) struct Contents<'e, 'a>(&'e mut Entries<'a>);

impl Read for Contents<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let want = into.len().min(usize::try_from(self.0.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.0.stream.read(&mut into[..want])?;
        if got == 0 {
            return Err(cut_short());
        }
        self.0.left -= got as u64;
        Ok(got)
    }
}

struct Header<'a>(&'a [u8; RECORD]);

impl Header<'_> {
    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        // GNU's own format keeps other things where the prefix is; star's has a shorter one.
        let prefix = match (&self.0[257..263], &self.0[508..512]) {
            (b"ustar\0", b"tar\0") => until_nul(&self.0[345..476]),
            (b"ustar\0", _) => until_nul(&self.0[345..500]),
            _ => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn size(&self) -> Result<u64, &'static str> {
        number(&self.0[124..136])
    }

    fn device(&self) -> Result<(u32, u32), &'static str> {
        let part = |field| u32::try_from(number(field)?).map_err(|_| "has a device number beyond 32 bits");
        Ok((part(&self.0[329..337])?, part(&self.0[337..345])?))
    }
}

fn padding(size: u64) -> u64 {
    (RECORD as u64 - size % RECORD as u64) % RECORD as u64
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn number(field: &[u8]) -> Result<u64, &'static str> {
    u64::try_from(signed_number(field)?).map_err(|_| "has a negative number in its header")
}

/// Octal digits between spaces and NULs; or, with the first bit set, binary in two's complement.
fn signed_number(field: &[u8]) -> Result<i64, &'static str> {
    const MALFORMED: &str = "has a malformed number in its header";
    if field[0] & 0x80 != 0 {
        let first = i128::from(((field[0] << 1) as i8) >> 1);
        // 12 bytes fit; what remains beyond 64 bits is no number of ours.
        let value = field[1..].iter().fold(first, |value, byte| (value << 8) | i128::from(*byte));
        return i64::try_from(value).map_err(|_| MALFORMED);
    }
    let digits = until_nul(field).trim_ascii();
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).map(|value| value + i64::from(digit - b'0')).ok_or(MALFORMED),
        _ => Err(MALFORMED),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644 \0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\x01\0\0"), Ok(65536));
        assert_eq!(signed_number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"), Ok(-2));
        assert!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe").is_err());
        for bad in
            [&b"0000689\0"[..], b"x\0\0\0\0\0\0\0", b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert!(number(bad).is_err(), "{bad:?}");
        }
    }
}
