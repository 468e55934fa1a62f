//! A file system as a value: names, inodes, and the rules by which a layer changes what lies below it.
//!
//! Names are followed as container runtimes follow them: symlinks on the way to an entry are resolved within the
//! root, `..` in them never leaves it, and missing directories are made. The last name of a path is never followed.

use std::collections::BTreeMap;

/// An inode's place in the tree.
pub(super) type Id = u32;

/// The root directory.
pub(super) const ROOT: Id = 0;

/// The most names of one inode: what ext4 can count.
const MOST_LINKS: u32 = 65_000;

/// The deepest directory. Programs in the guest fail beyond `PATH_MAX` bytes, which is half as deep.
const DEEPEST: u32 = 4096;

/// Steps on the way to one entry: a path of `PATH_MAX` bytes has at most 2048 names, and links add some.
const MOST_STEPS: u32 = 8192;

/// Symlinks on the way to one entry, as in Linux.
const MOST_SYMLINKS: u32 = 40;

/// Owner, permissions and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
}

impl Meta {
    /// Of a directory that no entry describes: as container runtimes make it, at a time that is always the same.
    pub(super) const IMPLIED: Self = Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) };
}

/// Extended attributes by name, ready to be stored.
pub(super) type Xattrs = BTreeMap<Box<str>, Box<[u8]>>;

/// One file of whatever kind.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) meta: Meta,
    pub(super) node: Node,
    pub(super) xattrs: Option<Box<Xattrs>>,
    /// How many names it has.
    pub(super) names: u32,
    /// The layer that described it last.
    layer: u32,
}

impl Inode {
    pub(super) fn new(meta: Meta, node: Node, xattrs: Xattrs) -> Self {
        let xattrs = (!xattrs.is_empty()).then(|| Box::new(xattrs));
        Self { meta, node, xattrs, names: 0, layer: 0 }
    }
}

/// What an inode is.
#[derive(Debug)]
pub(super) enum Node {
    Directory(Directory),
    File(File),
    Symlink(Box<str>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
    /// It has no name any more.
    Gone,
}

/// The names in a directory.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) names: BTreeMap<Box<str>, Name>,
    depth: u32,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) id: Id,
    /// The last layer that made it or went through it.
    layer: u32,
}

/// A regular file.
#[derive(Debug)]
pub(super) struct File {
    /// Holes included, in bytes.
    pub(super) size: u64,
    /// Where its contents are: the layer, and the number of the entry in it. Nowhere when there are none.
    pub(super) source: Option<(u32, u32)>,
    /// The blocks with data, as starts and ends; `None` when all have some.
    pub(super) blocks: Option<Box<[(u64, u64)]>>,
}

/// A file system being made of layers.
#[derive(Debug)]
pub(super) struct Tree {
    inodes: Vec<Inode>,
    layer: u32,
}

/// Why an entry cannot be taken.
pub(super) type Problem = &'static str;

impl Tree {
    pub(super) fn new() -> Self {
        let mut root = Inode::new(Meta::IMPLIED, Node::Directory(Directory::default()), Xattrs::new());
        root.names = 1;
        Self { inodes: vec![root], layer: 0 }
    }

    /// From here on changes come from the next layer.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// How many inodes were ever made.
    pub(super) fn made(&self) -> usize {
        self.inodes.len()
    }

    pub(super) fn get(&self, id: Id) -> &Inode {
        &self.inodes[id as usize]
    }

    fn directory(&mut self, id: Id) -> Result<&mut Directory, Problem> {
        match &mut self.inodes[id as usize].node {
            Node::Directory(directory) => Ok(directory),
            _ => Err("is below something that is no directory"),
        }
    }

    /// The directory at these names, made where it is missing.
    pub(super) fn make_way<'p>(
        &mut self,
        names: impl DoubleEndedIterator<Item = &'p str>,
    ) -> Result<Id, Problem> {
        // Without creation there is an answer `None`; with it there is none.
        self.walk(names, true)?.ok_or("is below something that is missing")
    }

    /// The directory at these names, if there is one.
    pub(super) fn find_way<'p>(
        &mut self,
        names: impl DoubleEndedIterator<Item = &'p str>,
    ) -> Result<Option<Id>, Problem> {
        self.walk(names, false)
    }

    fn walk<'p>(
        &mut self,
        names: impl DoubleEndedIterator<Item = &'p str>,
        make: bool,
    ) -> Result<Option<Id>, Problem> {
        let mut way = vec![ROOT];
        let mut ahead: Vec<Box<str>> = names.rev().map(Box::from).collect();
        let (mut steps, mut symlinks) = (0, 0);
        while let Some(name) = ahead.pop() {
            steps += 1;
            if steps > MOST_STEPS {
                return Err("has too many names on its way");
            }
            let here = way.last().copied().unwrap_or(ROOT);
            match &*name {
                "" | "." => continue,
                ".." => {
                    way.truncate((way.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let layer = self.layer;
            let directory = self.directory(here)?;
            let Some(found) = directory.names.get_mut(&name) else {
                if !make {
                    return Ok(None);
                }
                check_name(&name)?;
                let inode = Inode::new(Meta::IMPLIED, Node::Directory(Directory::default()), Xattrs::new());
                way.push(self.insert(here, &name, inode)?);
                continue;
            };
            let id = found.id;
            match &self.inodes[id as usize].node {
                Node::Directory(_) => {
                    if make && let Some(name) = self.directory(here)?.names.get_mut(&name) {
                        name.layer = layer;
                    }
                    way.push(id);
                }
                Node::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > MOST_SYMLINKS {
                        return Err("has too many symlinks on its way");
                    }
                    if target.starts_with('/') {
                        way.truncate(1);
                    }
                    ahead.extend(target.rsplit('/').map(Box::from));
                }
                _ if make => return Err("is below something that is no directory"),
                _ => return Ok(None),
            }
        }
        Ok(way.pop())
    }

    /// Puts an inode under a name. A directory over a directory is merged: it keeps what is in it and takes over
    /// everything else. Anything else replaces what was there.
    pub(super) fn insert(&mut self, parent: Id, name: &str, mut inode: Inode) -> Result<Id, Problem> {
        check_name(name)?;
        let layer = self.layer;
        inode.layer = layer;
        let directory = self.directory(parent)?;
        let depth = directory.depth + 1;
        if let Node::Directory(new) = &mut inode.node {
            if depth > DEEPEST {
                return Err("is too deep");
            }
            new.depth = depth;
            if let Some(found) = directory.names.get_mut(name) {
                let id = found.id;
                let old = &mut self.inodes[id as usize];
                if matches!(old.node, Node::Directory(_)) {
                    (old.meta, old.xattrs, old.layer) = (inode.meta, inode.xattrs, layer);
                    self.touch(parent, name);
                    return Ok(id);
                }
            }
        }
        let id = Id::try_from(self.inodes.len()).map_err(|_| "is one too many")?;
        self.inodes.push(inode);
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Gives an inode that is no directory another name, replacing what has it.
    pub(super) fn link(&mut self, parent: Id, name: &str, id: Id) -> Result<(), Problem> {
        check_name(name)?;
        let layer = self.layer;
        let inode = &mut self.inodes[id as usize];
        if inode.names >= MOST_LINKS {
            return Err("is one hardlink too many for one file");
        }
        inode.names += 1;
        if let Some(old) = self.directory(parent)?.names.insert(name.into(), Name { id, layer }) {
            self.unlinked(old.id);
        }
        Ok(())
    }

    /// What a hardlink of these names would share. The last name is not followed.
    pub(super) fn target<'p>(
        &mut self,
        names: impl DoubleEndedIterator<Item = &'p str>,
        last: &str,
    ) -> Result<Option<Id>, Problem> {
        let Some(parent) = self.find_way(names)? else { return Ok(None) };
        Ok(self.directory(parent)?.names.get(last).map(|name| name.id))
    }

    /// What the root directory is like.
    pub(super) fn set_root(&mut self, meta: Meta, xattrs: Xattrs) {
        let root = Inode::new(meta, Node::Gone, xattrs);
        let old = &mut self.inodes[ROOT as usize];
        (old.meta, old.xattrs) = (root.meta, root.xattrs);
    }

    /// Hides what lower layers have under a name; what this layer put there stays.
    pub(super) fn whiteout(&mut self, parent: Id, name: &str) -> Result<(), Problem> {
        let layer = self.layer;
        let directory = self.directory(parent)?;
        let Some(found) = directory.names.get(name).copied() else { return Ok(()) };
        if found.layer < layer {
            directory.names.remove(name);
            self.unlinked(found.id);
        } else {
            self.forget_lower(found.id);
            self.hide_below(found.id);
        }
        Ok(())
    }

    /// Hides what lower layers have in a directory; what this layer put there stays.
    pub(super) fn opaque(&mut self, directory: Id) {
        self.hide_below(directory);
    }

    fn hide_below(&mut self, id: Id) {
        let layer = self.layer;
        let mut ahead = vec![id];
        while let Some(id) = ahead.pop() {
            let Ok(directory) = self.directory(id) else { continue };
            let lower = directory.names.extract_if(.., |_, name| name.layer < layer);
            let lower: Vec<Id> = lower.map(|(_, name)| name.id).collect();
            let kept: Vec<Id> = directory.names.values().map(|name| name.id).collect();
            lower.into_iter().for_each(|id| self.unlinked(id));
            for id in kept {
                self.forget_lower(id);
                ahead.push(id);
            }
        }
    }

    /// A directory that this layer only went through is what it would be without the lower layers.
    fn forget_lower(&mut self, id: Id) {
        let layer = self.layer;
        let inode = &mut self.inodes[id as usize];
        if matches!(inode.node, Node::Directory(_)) && inode.layer < layer {
            (inode.meta, inode.xattrs, inode.layer) = (Meta::IMPLIED, None, layer);
        }
    }

    fn touch(&mut self, parent: Id, name: &str) {
        let layer = self.layer;
        if let Node::Directory(directory) = &mut self.inodes[parent as usize].node
            && let Some(name) = directory.names.get_mut(name)
        {
            name.layer = layer;
        }
    }

    /// An inode lost a name. With the last one it goes, and a directory takes all below it along.
    fn unlinked(&mut self, id: Id) {
        let mut ahead = vec![id];
        while let Some(id) = ahead.pop() {
            let inode = &mut self.inodes[id as usize];
            inode.names = inode.names.saturating_sub(1);
            if inode.names == 0 {
                inode.xattrs = None;
                if let Node::Directory(directory) = std::mem::replace(&mut inode.node, Node::Gone) {
                    ahead.extend(directory.names.into_values().map(|name| name.id));
                }
            }
        }
    }

    /// Takes an empty directory out of the root: `lost+found`, which each ext4 has anyway.
    pub(super) fn take_lost_and_found(&mut self) -> Result<(), Problem> {
        const NAME: &str = "lost+found";
        let root = self.directory(ROOT)?;
        let Some(id) = root.names.get(NAME).map(|name| name.id) else { return Ok(()) };
        match &self.inodes[id as usize].node {
            Node::Directory(directory) if directory.names.is_empty() => {}
            _ => return Err("is not empty, and ext4 keeps this name for itself"),
        }
        self.directory(ROOT)?.names.remove(NAME);
        self.unlinked(id);
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), Problem> {
    match name {
        "" | "." | ".." => Err("has no name"),
        _ if name.len() > 255 => Err("has a name of more than 255 bytes"),
        _ if name.contains(['/', '\0']) => Err("has a name with a NUL byte"),
        _ => Ok(()),
    }
}
