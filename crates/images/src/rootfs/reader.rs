//! Reading an ext4 image: what an export needs, within bounds.
//!
//! Superblock, group descriptors, inodes and attributes are decoded (and their checksums compared) by `mkext4`. Extent trees
//! and directories are walked here, since an image that came from elsewhere may be hostile: a walk never takes more
//! steps or memory than the file system has blocks.
//!
//! Read are file systems with blocks of 4 KiB and extents, as `mkext4` and today's `mke2fs` make them, that were unmounted
//! cleanly. Others end in [`RootfsError::Image`], which says why.

use std::fs::File;
use std::os::unix::fs::FileExt;

use mkext4::reader::Fs;
use mkext4::spec::{self, DirentIter, Extent, ExtentHeader, ExtentIdx, Inode, XattrEntry};

use super::error::RootfsError;
use super::sparse::BLOCK;

/// The largest directory that is read, in bytes: ten million names of usual length.
const LARGEST_DIRECTORY: u64 = 512 << 20;

/// The number of the root directory's inode.
pub(super) const ROOT: u32 = 2;

/// `INCOMPAT_RECOVER`: the journal has something that is not in its place yet.
const NEEDS_RECOVERY: u32 = 0x4;

/// An open image.
pub(super) struct Reader<'a> {
    fs: Fs<&'a File>,
    file: &'a File,
    blocks: u64,
}

/// Data in a file, in bytes of the file and of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Where in the file. Ascending from run to run, without overlaps.
    pub(super) at: u64,
    /// How much; never 0, never beyond the end of the file.
    pub(super) len: u64,
    /// Where in the image.
    image: u64,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// Any bytes but `/` and NUL, neither `.` nor `..`, not empty.
    pub(super) bytes: Box<[u8]>,
    pub(super) inode: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn open(file: &'a File) -> Result<Self, RootfsError> {
        let len = file.metadata().map_err(|error| RootfsError::Image(error.to_string()))?.len();
        let mut superblock = [0; 1024];
        file.read_exact_at(&mut superblock, 1024).map_err(|error| damaged(error.into()))?;
        let word = |at: usize| {
            u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]])
        };
        if superblock[0x38..0x3a] != [0x53, 0xef] {
            return Err(RootfsError::Image("it is not ext4".into()));
        }
        // Before anything is computed from these.
        if word(0x18) != 2 {
            let size = 1024_u64.checked_shl(word(0x18)).unwrap_or(0);
            return Err(RootfsError::Image(format!("its blocks have {size} bytes; only 4096 is read")));
        }
        if word(0x60) & NEEDS_RECOVERY != 0 {
            return Err(RootfsError::Image(
                "its journal was not replayed; run `e2fsck -p` on a copy of it".into(),
            ));
        }
        let is_wide = word(0x60) & 0x80 != 0;
        let blocks = u64::from(word(0x04)) | if is_wide { u64::from(word(0x150)) << 32 } else { 0 };
        let descriptor = u16::from_le_bytes([superblock[0xfe], superblock[0xff]]);
        if word(0x14) != 0 || !matches!(descriptor, 0 | 32 | 64) || blocks > len / BLOCK {
            return Err(RootfsError::Image("its superblock does not fit it".into()));
        }
        let fs = Fs::open(file).map_err(damaged)?;
        let reader = Self { fs, file, blocks };
        for group in 0..reader.fs.superblock().group_count() {
            let table = reader.fs.group_desc(group).map_err(damaged)?.inode_table;
            reader.within(table, 1)?;
        }
        Ok(reader)
    }

    pub(super) fn inode(&self, number: u32) -> Result<Inode, RootfsError> {
        let inode = self.fs.inode(number).map_err(damaged)?;
        if inode.links_count == 0 {
            return Err(RootfsError::Image(format!("inode {number} is in a directory, and free")));
        }
        Ok(inode)
    }

    /// The names in a directory, sorted by their bytes.
    pub(super) fn names(&self, number: u32, inode: &Inode) -> Result<Vec<Name>, RootfsError> {
        let damage = |what: &str| RootfsError::Image(format!("directory inode {number} {what}"));
        if inode.size > LARGEST_DIRECTORY || !inode.size.is_multiple_of(BLOCK) {
            return Err(damage("has an impossible size"));
        }
        let mut names = Vec::new();
        let mut block = vec![0; BLOCK as usize];
        let mut read = 0;
        for run in self.runs(number, inode)? {
            for offset in (0..run.len).step_by(BLOCK as usize) {
                self.read(&run, offset, &mut block)?;
                read += BLOCK;
                // The inner nodes of an index look like blocks without names.
                for entry in DirentIter::new(&block) {
                    let entry = entry.map_err(damaged)?;
                    match entry.name {
                        b"." | b".." => continue,
                        b"" => return Err(damage("has an empty name")),
                        name if name.iter().any(|byte| matches!(byte, b'/' | 0)) => {
                            return Err(damage("has a name with a slash"));
                        }
                        name => names.push(Name { bytes: name.into(), inode: entry.inode }),
                    }
                }
            }
        }
        if read != inode.size {
            return Err(damage("has holes"));
        }
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0].bytes == pair[1].bytes) {
            return Err(damage("has a name twice"));
        }
        Ok(names)
    }

    /// Where the data of a file are; between them are zeros.
    pub(super) fn runs(&self, number: u32, inode: &Inode) -> Result<Vec<Run>, RootfsError> {
        if inode.size == 0 {
            return Ok(Vec::new());
        }
        let root = inode.extent_root().ok_or_else(|| {
            RootfsError::Image(format!("inode {number} has no extents: those of ext2 and ext3 are not read"))
        })?;
        let mut walk = Walk { reader: self, number, next: 0, runs: Vec::new(), size: inode.size };
        walk.node(root, None)?;
        Ok(walk.runs)
    }

    /// Reads data of a run, from `offset` in it. `into` is at most what is left of it, or one block of a directory.
    pub(super) fn read(&self, run: &Run, offset: u64, into: &mut [u8]) -> Result<(), RootfsError> {
        self.file.read_exact_at(into, run.image + offset).map_err(|error| damaged(error.into()))
    }

    /// Where a symlink leads.
    pub(super) fn target(&self, number: u32, inode: &Inode) -> Result<Vec<u8>, RootfsError> {
        if let Some(target) = inode.fast_symlink_target() {
            return Ok(target.to_vec());
        }
        let damage = || RootfsError::Image(format!("symlink inode {number} has an impossible size"));
        let mut target = vec![0; usize::try_from(inode.size).map_err(|_| damage())?.min(BLOCK as usize)];
        match self.runs(number, inode)?.as_slice() {
            [run] if run.at == 0 && run.len == inode.size && inode.size < BLOCK => {
                self.read(run, 0, &mut target)?;
                Ok(target)
            }
            _ => Err(damage()),
        }
    }

    /// The extended attributes, in the image's order.
    pub(super) fn attributes(&self, number: u32, inode: &Inode) -> Result<Vec<XattrEntry>, RootfsError> {
        if inode.file_acl != 0 {
            self.within(inode.file_acl, 1)?;
        }
        self.fs.xattrs(number).map_err(damaged)
    }

    /// That these blocks are in the file system.
    fn within(&self, block: u64, count: u64) -> Result<(), RootfsError> {
        match block.checked_add(count) {
            Some(end) if end <= self.blocks => Ok(()),
            _ => Err(RootfsError::Image(format!("block {block} is outside of it"))),
        }
    }
}

/// On its way through an extent tree.
struct Walk<'r, 'a> {
    reader: &'r Reader<'a>,
    number: u32,
    /// The first block of the file that may come next. It only grows, so the walk ends.
    next: u64,
    runs: Vec<Run>,
    size: u64,
}

impl Walk<'_, '_> {
    fn node(&mut self, node: &[u8], depth: Option<u16>) -> Result<(), RootfsError> {
        let inode = self.number;
        let damage = |what: &str| RootfsError::Image(format!("the extent tree of inode {inode} {what}"));
        let header = ExtentHeader::decode(node).map_err(damaged)?;
        let room = (node.len() - ExtentHeader::LEN) / ExtentHeader::ENTRY_LEN;
        // Source: Linux, fs/ext4/extents.c: at most 5 levels.
        if header.depth > 5 || depth.is_some_and(|depth| depth != header.depth) {
            return Err(damage("has an impossible depth"));
        }
        if usize::from(header.entries) > room || (depth.is_some() && header.entries == 0) {
            return Err(damage("has an impossible number of entries"));
        }
        let mut last_index = None;
        for number in 0..usize::from(header.entries) {
            let entry = spec::extent::entry(node, number);
            if header.depth > 0 {
                let index = ExtentIdx::decode(entry);
                if last_index.is_some_and(|last| index.logical <= last) {
                    return Err(damage("is not sorted"));
                }
                last_index = Some(index.logical);
                self.reader.within(index.leaf, 1)?;
                let child = self.reader.fs.read_block(index.leaf).map_err(damaged)?;
                let before = self.next;
                self.node(&child, Some(header.depth - 1))?;
                if self.next == before {
                    return Err(damage("goes in circles"));
                }
                continue;
            }
            let extent = Extent::decode(entry);
            if extent.is_empty() || u64::from(extent.logical) < self.next {
                return Err(damage("is not sorted"));
            }
            let (logical, len) = (u64::from(extent.logical), u64::from(extent.len()));
            self.next = logical + len;
            self.reader.within(extent.start, len)?;
            let at = logical * BLOCK;
            // Preallocated blocks may follow the end of the file.
            let len = (len * BLOCK).min(self.size.saturating_sub(at));
            if extent.is_unwritten() || len == 0 {
                continue;
            }
            let image = extent.start * BLOCK;
            match self.runs.last_mut() {
                Some(last) if last.at + last.len == at && last.image + last.len == image => last.len += len,
                _ => self.runs.push(Run { at, len, image }),
            }
        }
        // More data than the file system has: blocks that count for many.
        if self.next > (1 << 32) || self.runs.len() as u64 > self.reader.blocks {
            return Err(damage("has more extents than the file system has blocks"));
        }
        Ok(())
    }
}

fn damaged(error: mkext4::Error) -> RootfsError {
    match error {
        mkext4::Error::Unsupported(what) => {
            RootfsError::Image(format!("it has what is not understood: {what}"))
        }
        error => RootfsError::Image(error.to_string()),
    }
}
