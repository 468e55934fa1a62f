//! A tree becomes an ext4 image.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read};
use std::sync::mpsc;

use mkext4::build::ImageWriter;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Layout, SparseSeg, SpecialKind};
use sha2::Digest as _;

use super::error::RootfsError;
use super::sink::{self, Sink};
use super::size::{JOURNAL_BLOCKS, Needs};
use super::sparse::BLOCK;
use super::tree::{File, Id, Inode, Meta, Node, ROOT, Tree, Xattrs};
use super::watch::Watch;
use super::{Built, Options};
use crate::Digest;

/// The form of images: it goes into their UUIDs, and changes when equal input gives other bytes.
const FORM: &[u8] = b"smartvm root file system 1, mkext4 0.0.3\n";

/// One file whose contents are to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fill {
    /// The layer, and the number of the entry in it.
    pub(super) source: (u32, u32),
    handle: InodeHandle,
}

/// Takes the contents of files, in the order of their sources.
pub(super) struct Filler<'f, 'a> {
    writer: ImageWriter<'f, &'f mut Sink<'a>>,
}

/// Why a file was not filled.
pub(super) enum FillError {
    /// Its contents could not be read.
    Read(io::Error),
    /// There are fewer of them than there were.
    Short,
    /// They could not be written.
    Write(RootfsError),
}

impl Filler<'_, '_> {
    pub(super) fn fill(&mut self, fill: Fill, contents: impl Read) -> Result<(), FillError> {
        let mut contents = Watched { inner: contents, error: None, short: false };
        match self.writer.fill(fill.handle, &mut contents) {
            Ok(()) => Ok(()),
            Err(_) if contents.error.is_some() => {
                Err(FillError::Read(contents.error.unwrap_or_else(|| io::Error::other("unknown"))))
            }
            Err(_) if contents.short => Err(FillError::Short),
            Err(error) => Err(FillError::Write(laid_out(error))),
        }
    }
}

/// Keeps what the builder would turn into a text.
struct Watched<R> {
    inner: R,
    error: Option<io::Error>,
    short: bool,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(into) {
            Ok(got) => {
                self.short = got == 0 && !into.is_empty();
                Ok(got)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.error = Some(error);
                Err(io::Error::other("see the kept error"))
            }
        }
    }
}

/// Lays the tree out, writes all metadata, and lets `contents` fill the files it is given: those with data, in the
/// order of their sources.
pub(super) fn image(
    tree: Tree,
    entries: u64,
    identities: &[Option<Digest>],
    file: &fs::File,
    options: &Options,
    watch: &Watch,
    contents: impl FnOnce(&mut Filler<'_, '_>, &[Fill]) -> Result<(), RootfsError>,
) -> Result<Built, RootfsError> {
    let laid_out = LaidOut::of(tree, identities, options, watch)?;
    let LaidOut { uuid, inodes, layout, fills } = laid_out;
    let size_bytes = layout.image_len();
    sink::empty(file, size_bytes).map_err(RootfsError::Write)?;

    let (complete, told) = mpsc::channel();
    let (digest, used_bytes) = std::thread::scope(|scope| {
        let hasher = scope.spawn(move || sink::hash(file, &told));
        let written = fill(&layout, &fills, Sinking { file: Some(file), complete, size_bytes }, contents);
        let hashed = hasher.join();
        let written = written?;
        match hashed {
            Ok(digest) => Ok((digest.map_err(RootfsError::Write)?, written)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    if watch.stopped() {
        return Err(RootfsError::Stopped);
    }
    Ok(Built { uuid, digest, size_bytes, used_bytes, inodes, entries })
}

/// A file system before anything of it is written.
struct LaidOut {
    uuid: [u8; 16],
    inodes: u64,
    layout: Layout,
    fills: Vec<Fill>,
}

impl LaidOut {
    fn of(
        tree: Tree,
        identities: &[Option<Digest>],
        options: &Options,
        watch: &Watch,
    ) -> Result<Self, RootfsError> {
        let plan = Plan::of(&tree, identities, options);
        let (blocks, most_inodes) = plan.needs.geometry(&options.room);
        let mut declared = Err(RootfsError::Layout(String::new()));
        // The bound is an upper one; should it ever not be, a larger file system is better than none.
        for extra in [0, blocks / 16 + 256, blocks / 2 + 4096] {
            declared = declare(&tree, &plan, blocks + extra, most_inodes);
            if watch.stopped() {
                return Err(RootfsError::Stopped);
            }
            if declared.is_ok() {
                break;
            }
        }
        let (layout, fills) = declared?;
        let (uuid, inodes) = (plan.uuid, plan.needs.inodes);
        Ok(Self { uuid, inodes, layout, fills })
    }
}

/// Does all that [`image`] does, but writes nothing.
pub(super) fn rehearsal(
    tree: Tree,
    options: &Options,
    watch: &Watch,
    contents: impl FnOnce(&mut Filler<'_, '_>, &[Fill]) -> Result<(), RootfsError>,
) -> Result<(), RootfsError> {
    let LaidOut { layout, fills, .. } = LaidOut::of(tree, &[], options, watch)?;
    let (complete, _) = mpsc::channel();
    let to = Sinking { file: None, complete, size_bytes: layout.image_len() };
    fill(&layout, &fills, to, contents).map(drop)
}

/// Where [`fill`] writes.
struct Sinking<'a> {
    file: Option<&'a fs::File>,
    complete: mpsc::Sender<u64>,
    size_bytes: u64,
}

/// Writes the image and answers how many bytes of it are no zeros.
fn fill(
    layout: &Layout,
    fills: &[Fill],
    to: Sinking<'_>,
    contents: impl FnOnce(&mut Filler<'_, '_>, &[Fill]) -> Result<(), RootfsError>,
) -> Result<u64, RootfsError> {
    let filling = Cell::new(false);
    let complete = to.complete.clone();
    let mut sink = Sink::new(to.file, &filling, to.complete);
    let mut filler = Filler { writer: layout.writer(&mut sink).map_err(laid_out)? };
    filling.set(true);
    contents(&mut filler, fills)?;
    filler.writer.finish().map_err(laid_out)?;
    sink.flush().map_err(RootfsError::Write)?;
    // Behind the last file there is nothing but what was there from the start.
    let _ = complete.send(to.size_bytes);
    Ok(sink.written())
}

fn laid_out(error: mkext4::Error) -> RootfsError {
    match error {
        mkext4::Error::Io(error) => RootfsError::Write(error),
        other => RootfsError::Layout(other.to_string()),
    }
}

/// What one walk over the tree finds.
struct Plan<'t> {
    uuid: [u8; 16],
    needs: Needs,
    /// Directories in an order in which each comes after the one it is in: parent's place in this list, name, id.
    directories: Vec<(u32, &'t str, Id)>,
    /// All other names, in the order in which they are declared: place of the directory, name, id.
    names: Vec<(u32, &'t str, Id)>,
}

impl<'t> Plan<'t> {
    fn of(tree: &'t Tree, identities: &[Option<Digest>], options: &Options) -> Self {
        let mut hasher = sha2::Sha256::new();
        hasher.update(FORM);
        for identity in identities {
            hasher.update(identity.as_ref().map_or(&[0; 32], Digest::as_bytes));
        }
        hasher.update(options.room.bytes.to_le_bytes());
        hasher.update(options.room.inodes.to_le_bytes());
        let mut needs = Needs::default();
        let mut directories = vec![(0, "", ROOT)];
        let mut names = Vec::new();
        let mut counted = vec![false; tree.made()];
        let mut at = 0;
        while let Some(&(_, _, id)) = directories.get(at) {
            let inode = tree.get(id);
            needs.add(inode);
            describe(&mut hasher, inode);
            if let Node::Directory(directory) = &inode.node {
                for (name, child) in &directory.names {
                    let inode = tree.get(child.id);
                    hasher.update((name.len() as u32).to_le_bytes());
                    hasher.update(name.as_bytes());
                    if matches!(inode.node, Node::Directory(_)) {
                        directories.push((at as u32, name, child.id));
                        continue;
                    }
                    hasher.update(child.id.to_le_bytes());
                    names.push((at as u32, &**name, child.id));
                    if !std::mem::replace(&mut counted[child.id as usize], true) {
                        needs.add(inode);
                        describe(&mut hasher, inode);
                    }
                }
            }
            at += 1;
        }
        // Contents are written in the order in which they will be read.
        let source = |id: Id| match &tree.get(id).node {
            Node::File(File { source, .. }) => *source,
            _ => None,
        };
        names.sort_by_key(|(_, _, id)| source(*id));
        let digest: [u8; 32] = hasher.finalize().into();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest[..16]);
        // RFC 9562: version 8 (made by a rule of our own), variant 1.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Self { uuid, needs, directories, names }
    }
}

/// All of an inode but the contents of files.
fn describe(hasher: &mut sha2::Sha256, inode: &Inode) {
    let Meta { mode, uid, gid, mtime: (seconds, nanos) } = inode.meta;
    hasher.update(mode.to_le_bytes());
    [uid, gid, nanos].iter().for_each(|number| hasher.update(number.to_le_bytes()));
    hasher.update(seconds.to_le_bytes());
    match &inode.node {
        Node::Directory(directory) => {
            hasher.update(b"d");
            hasher.update((directory.names.len() as u64).to_le_bytes());
        }
        Node::File(File { size, blocks, .. }) => {
            hasher.update(b"f");
            hasher.update(size.to_le_bytes());
            for (start, end) in blocks.iter().flatten() {
                hasher.update(start.to_le_bytes());
                hasher.update(end.to_le_bytes());
            }
        }
        Node::Symlink(target) => {
            hasher.update(b"l");
            hasher.update((target.len() as u64).to_le_bytes());
            hasher.update(target.as_bytes());
        }
        Node::CharDevice(major, minor) | Node::BlockDevice(major, minor) => {
            hasher.update(if matches!(inode.node, Node::CharDevice(..)) { b"c" } else { b"b" });
            hasher.update(major.to_le_bytes());
            hasher.update(minor.to_le_bytes());
        }
        Node::Fifo => hasher.update(b"p"),
        Node::Socket => hasher.update(b"s"),
        Node::Gone => hasher.update(b"-"),
    }
    for (name, value) in inode.xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update((value.len() as u64).to_le_bytes());
        hasher.update(value);
    }
}

fn declare(
    tree: &Tree,
    plan: &Plan<'_>,
    blocks: u64,
    inodes: u64,
) -> Result<(Layout, Vec<Fill>), RootfsError> {
    let too_large = || RootfsError::Layout("it would be larger than 16 TiB".into());
    let bytes = blocks.checked_mul(BLOCK).ok_or_else(too_large)?;
    let mut options = mkext4::Options::new(bytes, plan.uuid, 0);
    options.inodes = InodeCount::Exact(u32::try_from(inodes).map_err(|_| too_large())?);
    options.reserved_percent = 0;
    options.journal_blocks = Some(JOURNAL_BLOCKS);
    let mut builder = FsBuilder::new(options).map_err(laid_out)?;

    let mut places = Vec::with_capacity(plan.directories.len());
    for (parent, name, id) in &plan.directories {
        let inode = tree.get(*id);
        let handle = match places.get(*parent as usize) {
            Some(parent) => builder.mkdir(*parent, name, meta(inode)).map_err(laid_out)?,
            None => {
                builder.set_meta(mkext4::ROOT, meta(inode)).map_err(laid_out)?;
                mkext4::ROOT
            }
        };
        set_xattrs(&mut builder, handle, inode)?;
        places.push(handle);
    }
    let mut handles: Vec<Option<InodeHandle>> = vec![None; tree.made()];
    let mut fills = Vec::new();
    for (parent, name, id) in &plan.names {
        let parent = places[*parent as usize];
        if let Some(handle) = handles[*id as usize] {
            builder.hardlink(parent, name, handle).map_err(laid_out)?;
            continue;
        }
        let inode = tree.get(*id);
        let handle = declare_inode(&mut builder, parent, name, inode)?;
        set_xattrs(&mut builder, handle, inode)?;
        handles[*id as usize] = Some(handle);
        if let Node::File(File { source: Some(source), .. }) = &inode.node {
            fills.push(Fill { source: *source, handle });
        }
    }
    Ok((builder.seal().map_err(laid_out)?, fills))
}

fn declare_inode(
    builder: &mut FsBuilder,
    parent: InodeHandle,
    name: &str,
    inode: &Inode,
) -> Result<InodeHandle, RootfsError> {
    let meta = meta(inode);
    let handle = match &inode.node {
        Node::File(File { size, blocks: None, .. }) => builder.file(parent, name, meta, *size),
        Node::File(File { size: 0, .. }) => builder.file(parent, name, meta, 0),
        Node::File(File { size, blocks: Some(blocks), .. }) => {
            builder.file_sparse(parent, name, meta, &segments(blocks, *size))
        }
        Node::Symlink(target) => builder.symlink(parent, name, target, meta),
        Node::CharDevice(major, minor) => {
            builder.mknod(parent, name, meta, SpecialKind::Char { major: *major, minor: *minor })
        }
        Node::BlockDevice(major, minor) => {
            builder.mknod(parent, name, meta, SpecialKind::Block { major: *major, minor: *minor })
        }
        Node::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo),
        Node::Socket => builder.mknod(parent, name, meta, SpecialKind::Socket),
        Node::Directory(_) | Node::Gone => {
            Err(mkext4::Error::Invalid("a name without an inode was to be declared".into()))
        }
    };
    handle.map_err(laid_out)
}

fn segments(blocks: &[(u64, u64)], size: u64) -> Vec<SparseSeg> {
    let mut segments = Vec::with_capacity(2 * blocks.len() + 1);
    let mut at = 0;
    for (start, end) in blocks {
        if *start > at {
            segments.push(SparseSeg::Hole(start - at));
        }
        segments.push(SparseSeg::Data(end - start));
        at = *end;
    }
    if at < size {
        segments.push(SparseSeg::Hole(size - at));
    }
    segments
}

fn meta(inode: &Inode) -> mkext4::Meta {
    let Meta { mode, uid, gid, mtime } = inode.meta;
    mkext4::Meta::new(mode, uid, gid, mtime)
}

fn set_xattrs(builder: &mut FsBuilder, handle: InodeHandle, inode: &Inode) -> Result<(), RootfsError> {
    let none = Xattrs::new();
    for (name, value) in inode.xattrs.as_deref().unwrap_or(&none) {
        builder.set_xattr(handle, name, value).map_err(laid_out)?;
    }
    Ok(())
}
