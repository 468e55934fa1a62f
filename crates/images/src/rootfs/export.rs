//! An ext4 image becomes a tar archive: the way back of [`build`](super::build).
//!
//! Everything that the file system keeps is in the archive, in a fixed order (names sorted by their bytes, a directory before
//! what is in it), so equal images give equal archives. The format is PAX, as GNU tar, Go and libarchive read it: long
//! names, large numbers, nanoseconds, attributes (`SCHILY.xattr.*`) and sparse files (GNU's format 1.0) stand in extended
//! headers, and only where they are needed.
//!
//! Tar has no sockets: they are left out, counted and noted. An empty `lost+found` is the file system's own, and left out too.
//!
//! Source: POSIX.1-2024, pax; GNU tar's manual, "Storing Sparse Files".

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;

use mkext4::spec::Inode;
use mkext4::spec::inode::FileType;

use super::error::RootfsError;
use super::reader::{Name, ROOT, Reader, Run};
use super::watch::Watch;
use super::xattr::acl_for_system_calls;
use crate::blocking::Abandoned;
use crate::progress::Progress;

/// The size of a header and the unit of contents.
const RECORD: u64 = 512;

/// A file becomes a sparse one when its holes together are as large as this. Simple readers (busybox) know no
/// sparse files, so small ones are better written out.
const SPARSE_FROM: u64 = 1 << 20;

/// The most pieces of a sparse file: what readers (our own too) accept.
const MOST_PIECES: usize = 50_000;

/// Which tar archive is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Meaning {
    /// A root file system: all names mean themselves.
    #[default]
    Root,
    /// A layer of an OCI image: `.wh.` at the beginning of a name would mean removal, so such names are an error.
    Layer,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// Entries of the archive.
    pub entries: u64,
    /// The archive's length.
    pub bytes: u64,
    /// Sockets, which tar has not.
    pub sockets: u64,
}

/// Writes the tar archive of an ext4 image, from beginning to end, on this thread. Memory grows with names and hardlinks, never
/// with contents.
///
/// # Errors
/// [`RootfsError::Image`] for what cannot be read, [`RootfsError::Entry`] for what cannot be said in tar,
/// [`RootfsError::Export`] when `out` does not take it.
pub fn export_now(
    image: &File,
    out: impl Write,
    meaning: Meaning,
    progress: &Progress,
    abandoned: &Abandoned,
) -> Result<Exported, RootfsError> {
    let watch = Watch::new(abandoned, progress, "export root file system", None);
    let reader = Reader::open(image)?;
    let mut export = Export {
        reader: &reader,
        out,
        watch: &watch,
        meaning,
        first_names: HashMap::new(),
        done: Exported::default(),
        open: Vec::new(),
    };
    export.tree()?;
    // Two empty records are the end; whole blocks of ten KiB are what tar writes since tapes.
    let end = (export.done.bytes + 2 * RECORD).next_multiple_of(20 * RECORD) - export.done.bytes;
    export.zeros(end)?;
    export.out.flush().map_err(RootfsError::Export)?;
    if export.done.sockets > 0 {
        watch.note(format!("{} sockets were left out: a tar archive has none", export.done.sockets));
    }
    Ok(export.done)
}

struct Export<'r, 'a, W> {
    reader: &'r Reader<'a>,
    out: W,
    watch: &'r Watch,
    meaning: Meaning,
    /// The path of each inode with several names, once it was written.
    first_names: HashMap<u32, Vec<u8>>,
    done: Exported,
    /// The inodes of the directories that we are in, so that a loop is found.
    open: Vec<u32>,
}

/// A directory on the way down.
struct Level {
    names: std::vec::IntoIter<Name>,
    /// The length of the path without it.
    parent_len: usize,
}

impl<W: Write> Export<'_, '_, W> {
    fn tree(&mut self) -> Result<(), RootfsError> {
        let root = self.reader.inode(ROOT)?;
        if root.file_type() != FileType::Dir {
            return Err(RootfsError::Image("its root is no directory".into()));
        }
        let mut path = Vec::new();
        self.entry(b"./", ROOT, &root, &root_kind())?;
        self.open.push(ROOT);
        let names = self.reader.names(ROOT, &root)?.into_iter();
        let mut levels = vec![Level { names, parent_len: 0 }];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                path.truncate(level.parent_len);
                levels.pop();
                self.open.pop();
                continue;
            };
            if self.watch.stopped() {
                return Err(RootfsError::Stopped);
            }
            let parent_len = path.len();
            path.extend_from_slice(&name.bytes);
            if self.meaning == Meaning::Layer && name.bytes.starts_with(b".wh.") {
                let problem = "has a name that means removal in a layer: export it as rootfs-tar";
                return Err(RootfsError::entry("the image", &path, problem));
            }
            let inode = self.reader.inode(name.inode)?;
            if inode.file_type() != FileType::Dir {
                self.other(&path, name.inode, &inode)?;
                path.truncate(parent_len);
                continue;
            }
            if self.open.contains(&name.inode) {
                return Err(RootfsError::Image(format!("directory inode {} is in itself", name.inode)));
            }
            let names = self.reader.names(name.inode, &inode)?;
            if levels.len() == 1 && &*name.bytes == b"lost+found" && names.is_empty() {
                path.truncate(parent_len);
                continue;
            }
            path.push(b'/');
            self.entry(&path, name.inode, &inode, &root_kind())?;
            self.open.push(name.inode);
            levels.push(Level { names: names.into_iter(), parent_len });
        }
        Ok(())
    }

    /// Anything but a directory.
    fn other(&mut self, path: &[u8], number: u32, inode: &Inode) -> Result<(), RootfsError> {
        let kind = inode.file_type();
        if kind == FileType::Socket {
            self.done.sockets += 1;
            return Ok(());
        }
        if inode.links_count > 1 {
            if let Some(first) = self.first_names.get(&number).cloned() {
                return self.entry(path, number, inode, &Kind { flag: b'1', link: &first, ..root_kind() });
            }
            self.first_names.insert(number, path.to_vec());
        }
        match kind {
            FileType::Regular => self.file(path, number, inode),
            FileType::Symlink => {
                let target = self.reader.target(number, inode)?;
                self.entry(path, number, inode, &Kind { flag: b'2', link: &target, ..root_kind() })
            }
            FileType::CharDev | FileType::BlockDev => {
                let flag = if kind == FileType::CharDev { b'3' } else { b'4' };
                let device = inode.dev_numbers().unwrap_or_default();
                self.entry(path, number, inode, &Kind { flag, device, ..root_kind() })
            }
            FileType::Fifo => self.entry(path, number, inode, &Kind { flag: b'6', ..root_kind() }),
            FileType::Dir | FileType::Socket | FileType::Unknown => {
                Err(RootfsError::Image(format!("inode {number} is of an unknown kind")))
            }
        }
    }

    fn file(&mut self, path: &[u8], number: u32, inode: &Inode) -> Result<(), RootfsError> {
        let runs = self.reader.runs(number, inode)?;
        let data: u64 = runs.iter().map(|run| run.len).sum();
        let mut buffer = vec![0; 128 << 10];
        if inode.size - data < SPARSE_FROM {
            self.entry(path, number, inode, &Kind { flag: b'0', size: inode.size, ..root_kind() })?;
            self.contents(&runs, 0, inode.size, &mut buffer)?;
            return self.pad(inode.size);
        }
        let pieces = pieces(&runs, inode.size);
        let mut map = format!("{}\n", pieces.len()).into_bytes();
        for (at, len) in &pieces {
            map.extend_from_slice(format!("{at}\n{len}\n").as_bytes());
        }
        map.resize(map.len().next_multiple_of(RECORD as usize), 0);
        let size = map.len() as u64 + pieces.iter().map(|(_, len)| len).sum::<u64>();
        let kind = Kind { flag: b'0', size, sparse: Some(inode.size), ..root_kind() };
        self.entry(path, number, inode, &kind)?;
        self.write(&map)?;
        let mut runs = runs.as_slice();
        for (at, len) in pieces {
            let begin = runs.partition_point(|run| run.at + run.len <= at);
            runs = &runs[begin..];
            self.contents(runs, at, len, &mut buffer)?;
        }
        self.pad(size)
    }

    /// A part of a file; between the runs there are zeros.
    fn contents(&mut self, runs: &[Run], at: u64, len: u64, buffer: &mut [u8]) -> Result<(), RootfsError> {
        let (mut at, end) = (at, at + len);
        for run in runs {
            if run.at >= end {
                break;
            }
            self.zeros(run.at.saturating_sub(at))?;
            at = at.max(run.at);
            let until = end.min(run.at + run.len);
            while at < until {
                let now = usize::try_from(until - at).unwrap_or(usize::MAX).min(buffer.len());
                self.reader.read(run, at - run.at, &mut buffer[..now])?;
                self.write(&buffer[..now])?;
                at += now as u64;
            }
        }
        self.zeros(end - at)
    }

    /// The headers of one entry.
    fn entry(&mut self, path: &[u8], number: u32, inode: &Inode, kind: &Kind<'_>) -> Result<(), RootfsError> {
        let mut records = Records::default();
        let (seconds, nanoseconds) = Inode::timestamp(inode.mtime, inode.mtime_extra);
        let sparse_name = [&b"GNUSparseFile.0/"[..], &path[path.len().saturating_sub(80)..]].concat();
        let shown = if kind.sparse.is_some() { &sparse_name } else { path };
        if let Some(size) = kind.sparse {
            records.add(b"GNU.sparse.major", b"1");
            records.add(b"GNU.sparse.minor", b"0");
            records.add(b"GNU.sparse.name", path);
            records.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
        } else if needs_record(path) {
            records.add(b"path", path);
        }
        if needs_record(kind.link) {
            records.add(b"linkpath", kind.link);
        }
        for (key, value, most) in [
            (&b"size"[..], kind.size, 0o77_777_777_777),
            (b"uid", inode.uid.into(), 0o7_777_777),
            (b"gid", inode.gid.into(), 0o7_777_777),
        ] {
            if value > most {
                records.add(key, value.to_string().as_bytes());
            }
        }
        if nanoseconds > 0 || !(0..=0o77_777_777_777).contains(&seconds) {
            records.add(b"mtime", time(seconds, nanoseconds.min(999_999_999)).as_bytes());
        }
        // A hardlink's attributes stand at its first name.
        if kind.flag != b'1' {
            for attribute in self.reader.attributes(number, inode)? {
                let refuse = |problem| RootfsError::entry("the image", path, problem);
                let name = attribute
                    .full_name()
                    .ok_or_else(|| refuse("has an extended attribute that Linux does not know"))?;
                if name.iter().any(|byte| matches!(byte, b'=' | 0)) {
                    return Err(refuse(
                        "has an extended attribute whose name cannot be written to a tar archive",
                    ));
                }
                let value = match name.starts_with(b"system.posix_acl_") {
                    true => acl_for_system_calls(&attribute.value)
                        .ok_or_else(|| refuse("has a malformed access control list"))?,
                    false => attribute.value,
                };
                records.add(&[b"SCHILY.xattr.", &*name].concat(), &value);
            }
        }
        if !records.0.is_empty() {
            let size = records.0.len() as u64;
            let name = [&b"PaxHeaders/"[..], &path[path.len().saturating_sub(80)..]].concat();
            let extension = Kind { flag: b'x', size, ..root_kind() }.header(&name, 0o644, (0, 0), 0);
            self.write(&extension)?;
            self.write(&records.0)?;
            self.pad(size)?;
        }
        let mode = u32::from(inode.mode) & 0o7777;
        let header = kind.header(shown, mode, (inode.uid, inode.gid), seconds);
        self.done.entries += 1;
        self.write(&header)
    }

    fn pad(&mut self, size: u64) -> Result<(), RootfsError> {
        self.zeros(size.next_multiple_of(RECORD) - size)
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), RootfsError> {
        static ZEROS: [u8; 32 << 10] = [0; 32 << 10];
        while count > 0 {
            let now = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(&ZEROS[..now])?;
            count -= now as u64;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RootfsError> {
        self.watch.advance(bytes.len() as u64).map_err(|_| RootfsError::Stopped)?;
        self.out.write_all(bytes).map_err(RootfsError::Export)?;
        self.done.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// The pieces of a sparse file: offset and length, and at its end an empty one where it ends with a hole. Small holes are
/// written out where there are too many.
fn pieces(runs: &[Run], size: u64) -> Vec<(u64, u64)> {
    let mut smallest = 1;
    loop {
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for run in runs {
            match pieces.last_mut() {
                Some((at, len)) if run.at - (*at + *len) < smallest => *len = run.at + run.len - *at,
                _ => pieces.push((run.at, run.len)),
            }
        }
        if pieces.last().is_none_or(|(at, len)| at + len < size) {
            pieces.push((size, 0));
        }
        if pieces.len() <= MOST_PIECES {
            return pieces;
        }
        smallest *= 2;
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy)]
struct Kind<'a> {
    flag: u8,
    link: &'a [u8],
    /// Bytes of contents in the archive.
    size: u64,
    device: (u32, u32),
    /// The size of a sparse file.
    sparse: Option<u64>,
}

/// A directory, from which the others differ.
fn root_kind() -> Kind<'static> {
    Kind { flag: b'5', link: b"", size: 0, device: (0, 0), sparse: None }
}

impl Kind<'_> {
    /// A ustar header. What has no room in it stands in the extended one, and here as far as it goes.
    fn header(&self, path: &[u8], mode: u32, owner: (u32, u32), mtime: i64) -> [u8; RECORD as usize] {
        let mut block = [0; RECORD as usize];
        let mut text = |at: usize, room: usize, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(room)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        text(0, 100, path);
        text(157, 100, self.link);
        text(257, 8, b"ustar\x0000");
        text(156, 1, &[self.flag]);
        let mut number = |at: usize, digits: usize, value: u64| {
            let value = value.min((1 << (3 * digits)) - 1);
            text(at, digits, format!("{value:0digits$o}").as_bytes());
        };
        number(100, 7, mode.into());
        number(108, 7, owner.0.into());
        number(116, 7, owner.1.into());
        number(124, 11, self.size);
        number(136, 11, u64::try_from(mtime).unwrap_or(0));
        if matches!(self.flag, b'3' | b'4') {
            number(329, 7, self.device.0.into());
            number(337, 7, self.device.1.into());
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// Whether a name has no room in the header, or is not ASCII.
fn needs_record(name: &[u8]) -> bool {
    name.len() > 100 || !name.is_ascii()
}

/// Seconds and their fraction, which counts forward also before 1970.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, part) = (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
    let text = format!("{sign}{whole}.{part:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The records of an extended header.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        let mut records = Records::default();
        records.add(b"k", b"v");
        records.add(b"path", &[b'x'; 90]);
        records.add(b"path", &[b'x'; 91]);
        let expected = format!("6 k=v\n99 path={0}\n101 path={0}x\n", "x".repeat(90));
        assert_eq!(String::from_utf8(records.0).unwrap(), expected);
    }

    #[test]
    fn times_have_a_fraction_that_counts_forward() {
        for (seconds, nanoseconds, expected) in [
            (0, 0, "0"),
            (1_700_000_000, 123_000_000, "1700000000.123"),
            (-6, 750_000_000, "-5.25"),
            (-1, 999_999_999, "-0.000000001"),
            (-86_400, 0, "-86400"),
            (10, 1, "10.000000001"),
        ] {
            assert_eq!(time(seconds, nanoseconds), expected);
        }
    }
}
