//! Layers of entries become one tree.

use super::error::RootfsError;
use super::source::{Layer, Stream, TooLarge};
use super::tar::{Entries, Entry, Kind, TarError};
use super::tree::{Directory, File, Inode, Meta, Node, Tree, Xattrs};
use super::unpacked::Total;
use super::watch::Watch;
use super::{Limits, xattr};

/// A path longer than this is of no use in the guest (`PATH_MAX`).
const LONGEST_PATH: usize = 4096;

/// What ext4 can store: seconds since 1970 in 34 bits, from 1901 on.
const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;

/// Reads the layers, lowest first, and answers what they make together.
pub(super) fn layers(
    layers: &[Layer],
    whiteouts: bool,
    limits: &Limits,
    watch: &Watch,
) -> Result<(Tree, u64), RootfsError> {
    let mut merge = Merge {
        tree: Tree::new(),
        whiteouts,
        limits,
        total: Total::new(limits),
        entries: 0,
        metadata: 0,
        foreign: 0,
    };
    for (number, layer) in layers.iter().enumerate() {
        if number > 0 {
            merge.tree.next_layer();
        }
        merge.layer(number as u32, layer, watch)?;
    }
    if merge.foreign > 0 {
        watch.note(format!("{} extended attributes were left out that Linux does not have", merge.foreign));
    }
    if let Err(problem) = merge.tree.take_lost_and_found() {
        let layer = layers.last().map_or("no layer", Layer::name);
        return Err(RootfsError::entry(layer, b"lost+found", problem));
    }
    Ok((merge.tree, merge.entries))
}

/// Opens a layer for reading its entries.
pub(super) fn entries<'a>(
    layer: &Layer,
    limits: &Limits,
    watch: &'a Watch,
) -> Result<Entries<'a>, RootfsError> {
    let stream: Stream<'a> =
        layer.stream(limits, watch).map_err(|error| failure(layer, watch, 0, error.into()))?;
    Ok(Entries::new(stream))
}

/// What the failure of a reader means.
pub(super) fn failure(layer: &Layer, watch: &Watch, position: u64, error: TarError) -> RootfsError {
    let name = layer.name();
    match error {
        _ if watch.stopped() => RootfsError::Stopped,
        TarError::Read(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<TooLarge>()) {
            Some(TooLarge(limit)) => {
                RootfsError::Limit { layer: name.into(), what: "bytes when unpacked", limit: *limit }
            }
            None => {
                let problem = "the archive cannot be read on".into();
                RootfsError::Archive { layer: name.into(), problem, position, source: Some(error) }
            }
        },
        TarError::Malformed(problem) => {
            RootfsError::Archive { layer: name.into(), problem: problem.into(), position, source: None }
        }
        TarError::Entry(path, problem) => RootfsError::entry(name, &path, problem),
    }
}

struct Merge<'l> {
    tree: Tree,
    whiteouts: bool,
    limits: &'l Limits,
    total: Total,
    entries: u64,
    /// Bytes of names, links and attributes.
    metadata: u64,
    foreign: u64,
}

impl Merge<'_> {
    fn layer(&mut self, number: u32, layer: &Layer, watch: &Watch) -> Result<(), RootfsError> {
        let mut entries = entries(layer, self.limits, watch)?;
        let mut ordinal = 0;
        loop {
            let next = entries.next().map_err(|error| failure(layer, watch, entries.position(), error))?;
            let Some(entry) = next else { break };
            self.count(layer, &entry)?;
            self.add(&entry, (number, ordinal))
                .map_err(|problem| RootfsError::entry(layer.name(), &entry.path, problem))?;
            ordinal += 1;
        }
        entries.drain().map_err(|error| failure(layer, watch, entries.position(), error.into()))?;
        self.total.add(layer, entries.position())
    }

    fn count(&mut self, layer: &Layer, entry: &Entry) -> Result<(), RootfsError> {
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.entries += 1;
        self.metadata += (entry.path.len() + entry.link.len() + xattrs) as u64;
        let over = |what, limit| RootfsError::Limit { layer: layer.name().into(), what, limit };
        let Limits { entries, metadata_bytes, .. } = *self.limits;
        // Directories that no entry describes are made as well.
        if self.entries > entries || self.tree.made() as u64 > entries {
            return Err(over("entries", entries));
        }
        if self.metadata > metadata_bytes {
            return Err(over("bytes of names and attributes", metadata_bytes));
        }
        Ok(())
    }

    fn add(&mut self, entry: &Entry, source: (u32, u32)) -> Result<(), &'static str> {
        let path = path(&entry.path)?;
        let Some((last, way)) = path.split_last() else {
            return match entry.kind {
                Kind::Directory => {
                    let (meta, xattrs) = self.described(entry)?;
                    self.tree.set_root(meta, xattrs);
                    Ok(())
                }
                _ => Err("is the root and no directory"),
            };
        };
        let (last, way) = (*last, way.iter().copied());
        if self.whiteouts
            && let Some(hidden) = last.strip_prefix(".wh.")
        {
            return self.hide(hidden, way);
        }
        if entry.kind == Kind::Hardlink {
            return self.hardlink(entry, way, last);
        }
        let node = match entry.kind {
            Kind::File | Kind::Hardlink => file(entry, source)?,
            Kind::Directory => Node::Directory(Directory::default()),
            Kind::Symlink => Node::Symlink(symlink(&entry.link)?.into()),
            Kind::CharDevice => Node::CharDevice(major(entry)?, minor(entry)?),
            Kind::BlockDevice => Node::BlockDevice(major(entry)?, minor(entry)?),
            Kind::Fifo => Node::Fifo,
        };
        let (meta, xattrs) = self.described(entry)?;
        let parent = self.tree.make_way(way)?;
        self.tree.insert(parent, last, Inode::new(meta, node, xattrs))?;
        Ok(())
    }

    /// Source: OCI image spec, layer.md, "Whiteouts". Names that begin with `.wh..wh.` are AUFS's own and mean
    /// nothing, but for the one that makes a directory opaque.
    fn hide<'p>(
        &mut self,
        hidden: &str,
        way: impl DoubleEndedIterator<Item = &'p str>,
    ) -> Result<(), &'static str> {
        let Some(parent) = self.tree.find_way(way)? else { return Ok(()) };
        match hidden {
            ".wh..opq" => self.tree.opaque(parent),
            "" | "." | ".." => return Err("is a whiteout of nothing that has a name"),
            _ if hidden.starts_with(".wh.") => {}
            _ => self.tree.whiteout(parent, hidden)?,
        }
        Ok(())
    }

    /// A hardlink shares all of its target; what its own header says of owner, mode and time is not applied.
    fn hardlink<'p>(
        &mut self,
        entry: &Entry,
        way: impl DoubleEndedIterator<Item = &'p str>,
        last: &str,
    ) -> Result<(), &'static str> {
        let target = path(&entry.link).map_err(|_| "is a hardlink to an unusable path")?;
        let (target, target_way) = target.split_last().ok_or("is a hardlink to a directory")?;
        let target = self.tree.target(target_way.iter().copied(), target)?;
        let target = target.ok_or("is a hardlink to something that is missing")?;
        if matches!(self.tree.get(target).node, Node::Directory(_)) {
            return Err("is a hardlink to a directory");
        }
        let parent = self.tree.make_way(way)?;
        if let Node::Directory(directory) = &self.tree.get(parent).node
            && directory
                .names
                .get(last)
                .is_some_and(|name| name.id == target && self.tree.get(target).names == 1)
        {
            return Err("is a hardlink to itself");
        }
        self.tree.link(parent, last, target)
    }

    fn described(&mut self, entry: &Entry) -> Result<(Meta, Xattrs), &'static str> {
        let mut xattrs = Xattrs::new();
        for (name, value) in &entry.xattrs {
            if !xattr::add(&mut xattrs, name, value)? {
                self.foreign += 1;
            }
        }
        let meta = Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: storable(entry.mtime) };
        Ok((meta, xattrs))
    }
}

/// The nearest time that ext4 can store, as the kernel does it.
pub(super) fn storable((seconds, nanos): (i64, u32)) -> (i64, u32) {
    match seconds.clamp(*TIMES.start(), *TIMES.end()) {
        clamped if clamped != seconds => (clamped, 0),
        _ => (seconds, nanos),
    }
}

/// The names in a path. Leading slashes and dots mean nothing; `..` is refused.
fn path(path: &[u8]) -> Result<Vec<&str>, &'static str> {
    if path.len() > LONGEST_PATH {
        return Err("has a path of more than 4096 bytes");
    }
    if path.contains(&0) {
        return Err("has a name with a NUL byte");
    }
    let path =
        std::str::from_utf8(path).map_err(|_| "has a name that is not UTF-8, which is not supported")?;
    let names: Vec<&str> = path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    if names.contains(&"..") { Err("has `..` in its path") } else { Ok(names) }
}

fn symlink(target: &[u8]) -> Result<&str, &'static str> {
    match std::str::from_utf8(target) {
        Ok("") => Err("is a symlink to nothing"),
        Ok(target) if target.len() >= LONGEST_PATH => Err("is a symlink to more than 4095 bytes"),
        Ok(target) => Ok(target),
        Err(_) => Err("is a symlink to a name that is not UTF-8, which is not supported"),
    }
}

fn file(entry: &Entry, source: (u32, u32)) -> Result<Node, &'static str> {
    if entry.size > super::LARGEST_FILE {
        return Err("is larger than a file on ext4 can be");
    }
    let blocks = entry.map.as_ref().map(|map| map.blocks(entry.size).into_boxed_slice());
    let has_data = blocks.as_ref().map_or(entry.size > 0, |blocks| !blocks.is_empty());
    Ok(Node::File(File { size: entry.size, source: has_data.then_some(source), blocks }))
}

fn major(entry: &Entry) -> Result<u32, &'static str> {
    let major = entry.device.0;
    if major < 1 << 12 { Ok(major) } else { Err("has a device number that Linux does not have") }
}

fn minor(entry: &Entry) -> Result<u32, &'static str> {
    let minor = entry.device.1;
    if minor < 1 << 20 { Ok(minor) } else { Err("has a device number that Linux does not have") }
}
