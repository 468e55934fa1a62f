//! How large a file system has to be for what goes into it.

use super::Room;
use super::sparse::BLOCK;
use super::tree::{Directory, Inode, Node};

/// Blocks of the smallest journal that Linux mounts, which is enough for an image that is mounted read-only.
pub(super) const JOURNAL_BLOCKS: u32 = 1024;

/// Blocks in a group.
pub(super) const GROUP: u64 = 32_768;

/// What ext4 itself has beside the files: reserved inodes, and `lost+found` with four blocks.
const OWN_INODES: u64 = 11;
const OWN_BLOCKS: u64 = 4;

/// Extents in a block of an extent tree.
const EXTENTS: u64 = 340;

/// An upper bound of what the files need.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needs {
    pub(super) inodes: u64,
    pub(super) blocks: u64,
}

impl Needs {
    pub(super) fn add(&mut self, inode: &Inode) {
        self.inodes += 1;
        if let Some(xattrs) = &inode.xattrs {
            let bytes: usize = xattrs.iter().map(|(name, value)| 24 + name.len() + value.len()).sum();
            // What fits into the inode needs no block.
            self.blocks += u64::from(bytes + 8 > 92);
        }
        self.blocks += match &inode.node {
            Node::Directory(directory) => directory_blocks(directory),
            Node::Symlink(target) => u64::from(target.len() > 59),
            Node::File(file) => {
                let whole = [(0, file.size)];
                let ranges = file.blocks.as_deref().unwrap_or(&whole);
                let (mut blocks, mut extents) = (0, 0);
                for (start, end) in ranges {
                    let range = (end - start).div_ceil(BLOCK);
                    blocks += range;
                    extents += range.div_ceil(GROUP);
                }
                blocks + tree_blocks(extents)
            }
            _ => 0,
        };
    }

    /// Blocks of the whole file system, and its inodes.
    pub(super) fn geometry(&self, room: &Room) -> (u64, u64) {
        let inodes = OWN_INODES + self.inodes + room.inodes.max(self.inodes / 16);
        let wanted = self.blocks + OWN_BLOCKS + u64::from(JOURNAL_BLOCKS) + room.bytes.div_ceil(BLOCK);
        let mut blocks =
            wanted.max(4 * u64::from(JOURNAL_BLOCKS)).max((inodes.div_ceil(GROUP) - 1) * GROUP + 1);
        loop {
            let needed = wanted + overhead(blocks, inodes);
            if needed <= blocks {
                return (ending_well(blocks, inodes), inodes);
            }
            blocks = needed;
        }
    }
}

/// Blocks of an extent tree beyond what the inode holds.
fn tree_blocks(extents: u64) -> u64 {
    if extents <= 4 { 0 } else { extents.div_ceil(EXTENTS) + extents.div_ceil(EXTENTS * EXTENTS) }
}

/// Entries are packed in the order of their hashes: the last one that did not fit leaves a gap in each block.
fn directory_blocks(directory: &Directory) -> u64 {
    let entry = |name: &str| (8 + name.len() as u64).next_multiple_of(4);
    let (mut bytes, mut longest) = (24 + 20, 20);
    for name in directory.names.keys() {
        bytes += entry(name);
        longest = longest.max(entry(name));
    }
    let leaves = bytes.div_ceil(BLOCK - 12 - longest + 4);
    // The root of the index, and nodes of 508 entries below it.
    if leaves <= 1 { 1 } else { leaves + 1 + leaves / 500 + 1 }
}

/// Blocks that hold no files in a file system of so many blocks.
fn overhead(blocks: u64, inodes: u64) -> u64 {
    let groups = blocks.div_ceil(GROUP);
    let table = table_blocks(groups, inodes);
    let descriptors = (groups * 32).div_ceil(BLOCK);
    let backups = (1..groups).filter(|group| has_backup(*group)).count() as u64;
    let spans = groups.div_ceil(16);
    // A file cut in two by metadata may need a block for its extents.
    let cuts = 2 * (backups + spans + 2);
    // An inode table does not lie across a backup of the superblock: there is a gap before it.
    let gaps = if 16 * (2 + table) + 2 * descriptors >= GROUP { spans * 6 * table } else { 0 };
    1 + descriptors + backups * (1 + descriptors) + groups * (2 + table) + cuts + gaps
}

fn table_blocks(groups: u64, inodes: u64) -> u64 {
    inodes.div_ceil(groups).div_ceil(16)
}

/// The last groups must have room for their own metadata.
fn ending_well(blocks: u64, inodes: u64) -> u64 {
    let groups = blocks.div_ceil(GROUP);
    let descriptors = (groups * 32).div_ceil(BLOCK);
    let span = (groups - 1) / 16 * 16;
    let members = groups - span;
    let span_needs =
        (members * (2 + table_blocks(groups, inodes)) + 16 * (1 + descriptors) + 64).min(members * GROUP);
    let last_needs = (descriptors + 64).min(GROUP);
    blocks.max(span * GROUP + span_needs).max((groups - 1) * GROUP + last_needs)
}

fn has_backup(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut rest = group;
        while rest.is_multiple_of(base) {
            rest /= base;
        }
        rest == 1
    };
    group == 1 || (group > 1 && (is_power(3) || is_power(5) || is_power(7)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_laid_out_has_room_for_what_it_is_for() {
        // Around the places where groups, spans of groups and backups begin.
        for groups in [1, 2, 17, 33, 50] {
            for inodes in [1, 5000, 30_000 * groups] {
                for beside in [-40i64, 1] {
                    let blocks = (groups * GROUP).saturating_add_signed(beside).saturating_sub(inodes / 16);
                    let needs = Needs { inodes, blocks };
                    let (size, inodes) = needs.geometry(&Room::default());
                    let mut options = mkext4::Options::new(size * BLOCK, [7; 16], 0);
                    options.inodes = mkext4::InodeCount::Exact(inodes as u32);
                    options.journal_blocks = Some(JOURNAL_BLOCKS);
                    options.reserved_percent = 0;
                    let mut builder = mkext4::FsBuilder::new(options).unwrap();
                    let meta = mkext4::Meta::new(0o644, 0, 0, (0, 0));
                    let file = (blocks - 1 - tree_blocks(blocks.div_ceil(GROUP))) * BLOCK;
                    builder.file(mkext4::ROOT, "f", meta, file).unwrap();
                    builder.seal().unwrap_or_else(|error| panic!("{needs:?}: {error}"));
                    let most = blocks + inodes / 16 + blocks / 1000 + 3000 + 40 * (groups + 1);
                    assert!(size < most, "{needs:?} make {size}");
                }
            }
        }
    }
}
