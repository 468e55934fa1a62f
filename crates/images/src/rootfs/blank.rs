//! An empty ext4 file system for what a machine writes.
//!
//! Little is written, whatever the size: each group keeps its own metadata (no `flex_bg`), which is what the kernel
//! assumes of a group whose bitmaps were never written; inode tables are holes, and are marked as zeroed, so that the
//! kernel does not write them after the first mount; and there is one copy of the superblock (`sparse_super2`).
//!
//! Source: Linux, Documentation/filesystems/ext4, and fs/ext4/balloc.c, `ext4_init_block_bitmap`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use mkext4::csum;
use mkext4::spec::{
    Extent, ExtentHeader, GroupDesc, Inode, JournalSuperblock, Superblock, bg_flags, file_type, iflags,
    incompat, ro_compat,
};

use super::error::RootfsError;
use super::sink;
use super::size::GROUP;
use super::sparse::BLOCK;

const BLOCK_SIZE: usize = BLOCK as usize;

/// Sizes that can be asked for, in bytes.
const SIZES: std::ops::RangeInclusive<u64> = 16 << 20..=16 << 40;

const ROOT_INODE: u32 = 2;
const JOURNAL_INODE: u32 = 8;
const LOST_AND_FOUND_INODE: u32 = 11;

/// has_journal, ext_attr, dir_index, sparse_super2.
const COMPAT: u32 = 0x4 | 0x8 | 0x20 | 0x200;

/// Where the superblock keeps the groups with copies of it.
const BACKUP_GROUPS: usize = 0x24c;

/// Makes an empty ext4 file system of this size (16 MiB to 16 TiB; what is no multiple of 4 KiB is left over at the
/// end) in `file`, which is emptied first. It is not synced. Equal arguments give equal bytes.
///
/// It takes a few milliseconds and some hundred KiB on disk, and 8 MiB at 16 TiB.
///
/// # Errors
/// When the size is out of range, or the file cannot be written.
pub fn blank(file: &File, size_bytes: u64, uuid: [u8; 16]) -> Result<(), RootfsError> {
    if !SIZES.contains(&size_bytes) {
        return Err(RootfsError::Layout(format!("{size_bytes} bytes are not between 16 MiB and 16 TiB")));
    }
    sink::empty(file, size_bytes).map_err(RootfsError::Write)?;
    let blank = Blank::new(size_bytes, uuid);
    blank.write(file).map_err(RootfsError::Write)
}

struct Blank {
    uuid: [u8; 16],
    seed: u32,
    blocks: u64,
    groups: u64,
    /// Blocks of the group descriptors.
    descriptors: u64,
    /// Inodes in a group, and the blocks of their table.
    inodes: u64,
    table: u64,
    journal: u64,
}

impl Blank {
    fn new(size_bytes: u64, uuid: [u8; 16]) -> Self {
        // Without the feature `64bit` block numbers have 32 bits.
        let mut blocks = (size_bytes / BLOCK).min(u64::from(u32::MAX) - 1);
        let mut groups = blocks.div_ceil(GROUP);
        // One inode for 16 KiB, as mke2fs has it.
        let inodes = if groups == 1 { (blocks / 4).next_multiple_of(16) } else { GROUP / 4 };
        let table = inodes / 16;
        let descriptors = (groups * 32).div_ceil(BLOCK);
        // A last group that has room for little but its own metadata is left over.
        let last = blocks - (groups - 1) * GROUP;
        if groups > 1 && last < 2 * (table + descriptors) {
            groups -= 1;
            blocks = groups * GROUP;
        }
        let journal = match blocks {
            0..GROUP => 1024,
            GROUP..1_048_576 => 4096,
            _ => 16_384,
        };
        Self { uuid, seed: csum::fs_seed(&uuid), blocks, groups, descriptors, inodes, table, journal }
    }

    fn has_superblock(&self, group: u64) -> bool {
        group < 2
    }

    /// Blocks of the superblock and the descriptors at the beginning of a group.
    fn head(&self, group: u64) -> u64 {
        if self.has_superblock(group) { 1 + self.descriptors } else { 0 }
    }

    fn in_group(&self, group: u64) -> u64 {
        (self.blocks - group * GROUP).min(GROUP)
    }

    /// Blocks at the beginning of a group that hold metadata.
    fn metadata(&self, group: u64) -> u64 {
        self.head(group) + 2 + self.table
    }

    /// Blocks of the first group that are in use: metadata, the root directory, `lost+found`, the journal.
    fn first_used(&self) -> u64 {
        self.metadata(0) + 2 + self.journal
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let at = |block: u64, bytes: &[u8]| file.write_all_at(bytes, block * BLOCK);
        let first = bitmap(self.first_used(), self.in_group(0));
        let inodes = bitmap(11, self.inodes);
        let (root, lost_and_found) = (self.metadata(0), self.metadata(0) + 1);
        let journal = lost_and_found + 1;
        at(self.head(0), &first)?;
        at(self.head(0) + 1, &inodes)?;
        at(self.head(0) + 2, &self.first_inodes(root, lost_and_found, journal))?;
        at(
            root,
            &self.directory(
                ROOT_INODE,
                &[(ROOT_INODE, "."), (ROOT_INODE, ".."), (LOST_AND_FOUND_INODE, "lost+found")],
            ),
        )?;
        at(
            lost_and_found,
            &self.directory(LOST_AND_FOUND_INODE, &[(LOST_AND_FOUND_INODE, "."), (ROOT_INODE, "..")]),
        )?;
        at(journal, &self.journal_superblock())?;

        let last = self.groups - 1;
        let last_bitmap = bitmap(self.metadata(last), self.in_group(last));
        if last > 0 {
            at(last * GROUP + self.head(last), &last_bitmap)?;
        }
        let descriptors = self.descriptors(&first, &inodes, &last_bitmap);
        for group in (0..self.groups).filter(|group| self.has_superblock(*group)) {
            let mut block = vec![0; BLOCK_SIZE];
            // The first one lies behind the boot sector.
            let place = if group == 0 { 1024 } else { 0 };
            self.superblock(group, journal, &mut block[place..place + 1024]);
            at(group * GROUP, &block)?;
            at(group * GROUP + 1, &descriptors)?;
        }
        Ok(())
    }

    fn descriptors(&self, first: &[u8], inodes: &[u8], last_bitmap: &[u8]) -> Vec<u8> {
        let mut all = vec![0; self.descriptors as usize * BLOCK_SIZE];
        let places = all.chunks_exact_mut(32).take(self.groups as usize);
        for (group, place) in places.enumerate() {
            let number = group as u64;
            let (start, head, is_last) = (number * GROUP, self.head(number), number == self.groups - 1);
            let mut descriptor = GroupDesc {
                block_bitmap: start + head,
                inode_bitmap: start + head + 1,
                inode_table: start + head + 2,
                free_blocks_count: (self.in_group(number) - self.metadata(number)) as u32,
                free_inodes_count: self.inodes as u32,
                itable_unused: self.inodes as u32,
                // The bitmap of the last group has a padding, which nobody would write.
                flags: bg_flags::INODE_ZEROED
                    | bg_flags::INODE_UNINIT
                    | if is_last { 0 } else { bg_flags::BLOCK_UNINIT },
                ..GroupDesc::default()
            };
            if is_last {
                descriptor.block_bitmap_csum = u32::from(csum::block_bitmap(self.seed, last_bitmap));
            }
            if group == 0 {
                descriptor.flags = bg_flags::INODE_ZEROED;
                descriptor.free_blocks_count = (self.in_group(0) - self.first_used()) as u32;
                descriptor.free_inodes_count -= 11;
                descriptor.itable_unused -= 11;
                descriptor.used_dirs_count = 2;
                descriptor.block_bitmap_csum = u32::from(csum::block_bitmap(self.seed, first));
                descriptor.inode_bitmap_csum =
                    u32::from(csum::inode_bitmap(self.seed, inodes, self.inodes as u32));
            }
            descriptor.encode32(place);
            descriptor.checksum = csum::group_desc(self.seed, group as u32, place);
            descriptor.encode32(place);
        }
        all
    }

    fn superblock(&self, group: u64, journal: u64, into: &mut [u8]) {
        let used: u64 = (1..self.groups).map(|group| self.metadata(group)).sum();
        let overhead = self.metadata(0) + used + self.journal;
        let mut journal_blocks = [0; 17];
        let root = extent(journal, self.journal);
        for (word, bytes) in journal_blocks.iter_mut().zip(root.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        journal_blocks[16] = (self.journal * BLOCK) as u32;
        let mut superblock = Superblock {
            inodes_count: (self.inodes * self.groups) as u32,
            blocks_count: self.blocks,
            r_blocks_count: 0,
            free_blocks_count: self.blocks - used - self.first_used(),
            free_inodes_count: (self.inodes * self.groups) as u32 - 11,
            first_data_block: 0,
            log_block_size: 2,
            log_cluster_size: 2,
            blocks_per_group: GROUP as u32,
            clusters_per_group: GROUP as u32,
            inodes_per_group: self.inodes as u32,
            mtime: 0,
            wtime: 0,
            mnt_count: 0,
            max_mnt_count: u16::MAX,
            state: 1,
            errors: 1,
            minor_rev_level: 0,
            lastcheck: 0,
            checkinterval: 0,
            creator_os: 0,
            rev_level: 1,
            def_resuid: 0,
            def_resgid: 0,
            first_ino: 11,
            inode_size: 256,
            block_group_nr: group as u16,
            feature_compat: COMPAT,
            feature_incompat: incompat::FILETYPE | incompat::EXTENTS,
            feature_ro_compat: ro_compat::WRITER & !ro_compat::SPARSE_SUPER,
            uuid: self.uuid,
            volume_name: [0; 16],
            last_mounted: [0; 64],
            reserved_gdt_blocks: 0,
            journal_uuid: [0; 16],
            journal_inum: JOURNAL_INODE,
            journal_dev: 0,
            last_orphan: 0,
            hash_seed: mkext4::dirhash::seed_from_uuid(&self.uuid),
            def_hash_version: 1,
            jnl_backup_type: 1,
            desc_size: 0,
            // user_xattr and acl, as mke2fs has it.
            default_mount_opts: 0x0c,
            first_meta_bg: 0,
            mkfs_time: 0,
            jnl_blocks: journal_blocks,
            min_extra_isize: 32,
            want_extra_isize: 32,
            // Names are hashed as signed bytes.
            flags: 1,
            log_groups_per_flex: 0,
            checksum_type: 1,
            kbytes_written: 0,
            overhead_clusters: overhead as u32,
            lpf_ino: 0,
            checksum_seed: 0,
            checksum: 0,
        };
        superblock.encode(into);
        let backup = u32::from(self.groups > 1);
        into[BACKUP_GROUPS..BACKUP_GROUPS + 4].copy_from_slice(&backup.to_le_bytes());
        superblock.checksum = csum::superblock(into);
        into[0x3fc..0x400].copy_from_slice(&superblock.checksum.to_le_bytes());
    }

    /// The first block of the inode table: all that are in use, and the reserved ones.
    fn first_inodes(&self, root: u64, lost_and_found: u64, journal: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK_SIZE];
        let slots = block.chunks_exact_mut(256).take(11);
        for (number, slot) in (1..).zip(slots) {
            let (mode, links, start, blocks) = match number {
                ROOT_INODE => (0o040_755, 3, root, 1),
                JOURNAL_INODE => (0o100_600, 1, journal, self.journal),
                LOST_AND_FOUND_INODE => (0o040_700, 2, lost_and_found, 1),
                _ => {
                    let checksum = csum::inode(self.seed, number, 0, slot);
                    slot[0x7c..0x7e].copy_from_slice(&(checksum as u16).to_le_bytes());
                    continue;
                }
            };
            let mut inode = Inode {
                mode,
                uid: 0,
                gid: 0,
                size: blocks * BLOCK,
                atime: 0,
                ctime: 0,
                mtime: 0,
                dtime: 0,
                links_count: links,
                blocks: blocks * 8,
                flags: iflags::EXTENTS,
                version: 0,
                block: extent(start, blocks),
                generation: 0,
                file_acl: 0,
                extra_isize: 32,
                checksum: 0,
                ctime_extra: 0,
                mtime_extra: 0,
                atime_extra: 0,
                crtime: 0,
                crtime_extra: 0,
                projid: 0,
                ibody: Vec::new(),
            };
            inode.encode(slot);
            inode.checksum = csum::inode(self.seed, number, 0, slot);
            inode.encode(slot);
        }
        block
    }

    fn directory(&self, number: u32, entries: &[(u32, &str)]) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK_SIZE);
        for (position, (inode, name)) in entries.iter().enumerate() {
            let start = block.len();
            let is_last = position + 1 == entries.len();
            let len = if is_last { BLOCK_SIZE - 12 - start } else { (8 + name.len()).next_multiple_of(4) };
            block.extend_from_slice(&inode.to_le_bytes());
            block.extend_from_slice(&(len as u16).to_le_bytes());
            block.extend_from_slice(&[name.len() as u8, file_type::DIR]);
            block.extend_from_slice(name.as_bytes());
            block.resize(start + len, 0);
        }
        // An entry that is none holds the checksum.
        block.extend_from_slice(&[0, 0, 0, 0, 12, 0, 0, 0xde, 0, 0, 0, 0]);
        let checksum = csum::dirent_block(csum::inode_seed(self.seed, number, 0), &block);
        block[BLOCK_SIZE - 4..].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    fn journal_superblock(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_SIZE];
        JournalSuperblock {
            blocktype: 4,
            blocksize: BLOCK as u32,
            maxlen: self.journal as u32,
            first: 1,
            sequence: 1,
            start: 0,
            errno: 0,
            feature_compat: 0,
            feature_incompat: 0,
            feature_ro_compat: 0,
            uuid: self.uuid,
            nr_users: 1,
            dynsuper: 0,
            max_transaction: 0,
            max_trans_data: 0,
            checksum_type: 0,
            num_fc_blocks: 0,
            head: 0,
            checksum: 0,
        }
        .encode(&mut block);
        block
    }
}

/// The root of an extent tree that has one extent.
fn extent(start: u64, blocks: u64) -> [u8; 60] {
    let mut root = [0; 60];
    ExtentHeader { entries: 1, max: 4, depth: 0, generation: 0 }.encode(&mut root);
    Extent { logical: 0, raw_len: blocks as u16, start }.encode(&mut root[ExtentHeader::LEN..]);
    root
}

/// A block of bits: the first `used` ones are set, and those from `end` on, which stand for nothing.
fn bitmap(used: u64, end: u64) -> Vec<u8> {
    let mut bits = vec![0u8; BLOCK_SIZE];
    for bit in (0..used).chain(end..8 * BLOCK) {
        bits[(bit / 8) as usize] |= 1 << (bit % 8);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        blank(&file, size, [7; 16]).unwrap();
        file
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        let file = tempfile::tempfile().unwrap();
        for size in [0, (16 << 20) - 1, (16 << 40) + 1, u64::MAX] {
            assert!(matches!(blank(&file, size, [7; 16]), Err(RootfsError::Layout(_))), "{size}");
        }
    }

    #[test]
    fn little_is_written_and_always_the_same() {
        use std::io::Read;
        use std::os::unix::fs::MetadataExt;
        let (mut a, mut b) = (made(64 << 20), made(64 << 20));
        let (mut left, mut right) = (Vec::new(), Vec::new());
        a.read_to_end(&mut left).unwrap();
        b.read_to_end(&mut right).unwrap();
        assert!(left == right);
        assert!(made(100 << 30).metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
