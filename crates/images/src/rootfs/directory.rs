//! A directory of this host becomes a tree, and its files are read in a second pass.
//!
//! Everything is opened relative to the directory and no symlink is followed, so that whoever writes in it meanwhile
//! cannot lead us elsewhere.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::error::RootfsError;
use super::merge::storable;
use super::sparse::Map;
use super::tree::{self, Id, Inode, Meta, Node, ROOT, Tree, Xattrs};
use super::watch::Watch;
use super::write::{Fill, FillError, Filler};
use super::{Limits, xattr};

/// A directory of this host that holds a root file system.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
    cross_mounts: bool,
}

impl Directory {
    /// The directory at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), cross_mounts: false }
    }

    /// Takes along what is mounted in it. Otherwise mount points become empty directories, and files on other devices
    /// are left out.
    pub fn cross_mounts(mut self) -> Self {
        self.cross_mounts = true;
        self
    }
}

/// A directory that was looked through.
pub(super) struct Scanned {
    root: OwnedFd,
    at: PathBuf,
    files: Vec<Seen>,
    pub(super) entries: u64,
}

/// Contents of small files are kept when they are looked at: opening a file again costs more than reading it.
/// Files of up to so many bytes, and so many bytes in all.
const SMALL: u64 = 8 << 10;
const KEPT: u64 = 48 << 20;

/// A file with contents, as it was when it was looked at.
struct Seen {
    /// Relative to the directory.
    path: Box<[u8]>,
    identity: Identity,
    map: Option<Map>,
    contents: Option<Box<[u8]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size.unsigned_abs(),
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
        }
    }
}

/// Looks at everything in the directory. `image` is left out: it may lie in it.
pub(super) fn scan(
    directory: &Directory,
    image: &fs::File,
    limits: &Limits,
    watch: &Watch,
) -> Result<(Tree, Scanned), RootfsError> {
    let at = directory.path.clone();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&at, flags, Mode::empty()).map_err(|error| failure(&at, "open", error))?;
    let stat = rustix::fs::fstat(&root).map_err(|error| failure(&at, "look at", error))?;
    let image = image.metadata().map_err(RootfsError::Write)?;
    let mut scan = Scan {
        tree: Tree::new(),
        limits,
        device: stat.st_dev,
        cross_mounts: directory.cross_mounts,
        image: (image.dev(), image.ino()),
        linked: HashMap::new(),
        buffer: vec![0; 64 << 10],
        metadata: 0,
        left_out: 0,
        foreign: 0,
        kept: 0,
        scanned: Scanned { root, at, files: Vec::new(), entries: 0 },
    };
    let attributes = Attributes::at(&scan.scanned.root, Path::new("."));
    let xattrs = scan.xattrs(&attributes, b"")?;
    scan.tree.set_root(meta(&stat), xattrs);
    let mut ahead: Vec<(Id, Vec<u8>)> = vec![(ROOT, Vec::new())];
    while let Some((id, path)) = ahead.pop() {
        scan.directory(id, &path, &mut ahead)?;
        if watch.stopped() {
            return Err(RootfsError::Stopped);
        }
    }
    if let Err(problem) = scan.tree.take_lost_and_found() {
        return Err(RootfsError::File { path: scan.scanned.at.join("lost+found"), problem: problem.into() });
    }
    if scan.left_out > 0 {
        watch.note(format!("{} mount points and files on other devices were left out", scan.left_out));
    }
    if scan.foreign > 0 {
        watch.note(format!("{} extended attributes were left out that ext4 cannot store", scan.foreign));
    }
    Ok((scan.tree, scan.scanned))
}

struct Scan<'l> {
    tree: Tree,
    limits: &'l Limits,
    device: u64,
    cross_mounts: bool,
    image: (u64, u64),
    /// Inodes with several names, by device and number.
    linked: HashMap<(u64, u64), Id>,
    buffer: Vec<u8>,
    metadata: u64,
    left_out: u64,
    foreign: u64,
    /// Bytes of contents in memory.
    kept: u64,
    scanned: Scanned,
}

impl Scan<'_> {
    fn full(&self, path: &[u8]) -> PathBuf {
        self.scanned.at.join(Path::new(std::ffi::OsStr::from_bytes(path)))
    }

    fn directory(&mut self, id: Id, path: &[u8], ahead: &mut Vec<(Id, Vec<u8>)>) -> Result<(), RootfsError> {
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        if !self.cross_mounts {
            resolve |= ResolveFlags::NO_XDEV;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let relative = if path.is_empty() { b"." } else { path };
        let opened = match rustix::fs::openat2(&self.scanned.root, relative, flags, Mode::empty(), resolve) {
            Ok(opened) => opened,
            // A mount point: what lies below it is another file system.
            Err(Errno::XDEV) => {
                self.left_out += 1;
                return Ok(());
            }
            Err(error) => return Err(failure(&self.full(path), "open", error)),
        };
        let told = |error| failure(&self.full(path), "read", error);
        let mut names = Vec::new();
        for entry in Dir::read_from(&opened).map_err(told)? {
            let entry = entry.map_err(told)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        // The same directory always makes the same image.
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, kind) in names {
            self.entry(id, &opened, path, (&name, kind), ahead)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: Id,
        opened: &OwnedFd,
        way: &[u8],
        (name, kind): (&CStr, FileType),
        ahead: &mut Vec<(Id, Vec<u8>)>,
    ) -> Result<(), RootfsError> {
        let mut path = way.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        // A file that is open tells all of itself without its name being looked up again.
        let file = match kind {
            FileType::RegularFile => rustix::fs::openat(opened, name, READ, Mode::empty()).map(Some),
            _ => Ok(None),
        };
        let stat = match &file {
            Ok(Some(file)) => rustix::fs::fstat(file),
            Ok(None) => rustix::fs::statat(opened, name, AtFlags::SYMLINK_NOFOLLOW),
            Err(error) => Err(*error),
        };
        let (file, stat) = match (file, stat) {
            (Ok(file), Ok(stat)) => (file, stat),
            (_, Err(Errno::NOENT | Errno::LOOP)) => {
                return Err(RootfsError::Changed { path: self.full(&path) });
            }
            (_, Err(error)) | (Err(error), _) => return Err(failure(&self.full(&path), "open", error)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if (stat.st_dev, stat.st_ino) == self.image {
            return Ok(());
        }
        if stat.st_dev != self.device && !self.cross_mounts && kind != FileType::Directory {
            self.left_out += 1;
            return Ok(());
        }
        let full = self.full(&path);
        let unusable = |problem: &str| RootfsError::File { path: full.clone(), problem: problem.into() };
        let text =
            name.to_str().map_err(|_| unusable("has a name that is not UTF-8, which is not supported"))?;
        let shared = (stat.st_dev, stat.st_ino);
        if let Some(id) = self.linked.get(&shared).copied() {
            self.count(path.len())?;
            return self.tree.link(parent, text, id).map_err(unusable);
        }
        let (node, attributes) = match &file {
            Some(file) if kind == FileType::RegularFile => {
                (self.file(file, &path, &stat)?, Attributes::Of(file))
            }
            _ => {
                let name_alone = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
                (self.node(opened, name, &path, &stat, kind)?, Attributes::at(opened, name_alone))
            }
        };
        let xattrs = self.xattrs(&attributes, &path)?;
        self.count(path.len())?;
        let inode = Inode::new(meta(&stat), node, xattrs);
        let inserted = self.tree.insert(parent, text, inode);
        let id = inserted
            .map_err(|problem| RootfsError::File { path: self.full(&path), problem: problem.into() })?;
        if kind == FileType::Directory {
            ahead.push((id, path));
        } else if stat.st_nlink > 1 {
            self.linked.insert(shared, id);
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize) -> Result<(), RootfsError> {
        self.scanned.entries += 1;
        self.metadata += bytes as u64;
        let layer = || self.scanned.at.display().to_string();
        let Limits { entries, metadata_bytes, .. } = *self.limits;
        if self.scanned.entries > entries {
            return Err(RootfsError::Limit { layer: layer(), what: "entries", limit: entries });
        }
        if self.metadata > metadata_bytes {
            let what = "bytes of names and attributes";
            return Err(RootfsError::Limit { layer: layer(), what, limit: metadata_bytes });
        }
        Ok(())
    }

    fn node(
        &mut self,
        opened: &OwnedFd,
        name: &CStr,
        path: &[u8],
        stat: &Stat,
        kind: FileType,
    ) -> Result<Node, RootfsError> {
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let unusable = |problem: &str| RootfsError::File { path: self.full(path), problem: problem.into() };
        Ok(match kind {
            FileType::Directory => Node::Directory(tree::Directory::default()),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(opened, name, Vec::new())
                    .map_err(|error| failure(&self.full(path), "read", error))?;
                let target = target.to_str();
                Node::Symlink(target.map_err(|_| unusable("leads to a name that is not UTF-8"))?.into())
            }
            FileType::CharacterDevice => Node::CharDevice(device.0, device.1),
            FileType::BlockDevice => Node::BlockDevice(device.0, device.1),
            FileType::Fifo => Node::Fifo,
            FileType::Socket => Node::Socket,
            FileType::RegularFile => {
                // The directory did not tell.
                let file = rustix::fs::openat(opened, name, READ, Mode::empty())
                    .map_err(|error| failure(&self.full(path), "open", error))?;
                let stat = rustix::fs::fstat(&file);
                let stat = stat.map_err(|error| failure(&self.full(path), "look at", error))?;
                self.file(&file, path, &stat)?
            }
            FileType::Unknown => return Err(unusable("is of a kind that is not known")),
        })
    }

    fn file(&mut self, file: &OwnedFd, path: &[u8], stat: &Stat) -> Result<Node, RootfsError> {
        let identity = Identity::of(stat);
        let size = identity.size;
        if size > super::LARGEST_FILE {
            let problem = "is larger than a file on ext4 can be".into();
            return Err(RootfsError::File { path: self.full(path), problem });
        }
        let map =
            if stat.st_blocks.unsigned_abs() * 512 < size { self.holes(file, path, size)? } else { None };
        let blocks = map.as_ref().map(|map| map.blocks(size).into_boxed_slice());
        let has_data = blocks.as_ref().map_or(size > 0, |blocks| !blocks.is_empty());
        let ordinal = self.scanned.files.len() as u32;
        if has_data {
            let contents = match &map {
                None if size <= SMALL && self.kept + size <= KEPT => Some(self.contents(file, path, size)?),
                _ => None,
            };
            self.scanned.files.push(Seen { path: path.into(), identity, map, contents });
        }
        Ok(Node::File(tree::File { size, source: has_data.then_some((0, ordinal)), blocks }))
    }

    /// All of a small file.
    fn contents(&mut self, file: &OwnedFd, path: &[u8], size: u64) -> Result<Box<[u8]>, RootfsError> {
        let mut contents = vec![0; size as usize];
        let got = rustix::io::pread(file, &mut contents, 0);
        let got = got.map_err(|error| failure(&self.full(path), "read", error))?;
        if got < contents.len() {
            return Err(RootfsError::Changed { path: self.full(path) });
        }
        self.kept += size;
        Ok(contents.into())
    }

    /// Where a file has data. `None` when its file system does not say.
    fn holes(&self, file: &OwnedFd, path: &[u8], size: u64) -> Result<Option<Map>, RootfsError> {
        let told = |error| failure(&self.full(path), "read", error);
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
                Err(error) => return Err(told(error)),
            };
            let end = rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(told)?;
            ranges.push((start, end.saturating_sub(start)));
            at = end;
        }
        let changed = |_| RootfsError::Changed { path: self.full(path) };
        // Whole blocks, as they are read: then what is read has exactly the bytes of the map.
        let map = Map::new(ranges, size).map_err(changed)?;
        let blocks = map.blocks(size).into_iter().map(|(start, end)| (start, end - start));
        Map::new(blocks, size).map(Some).map_err(changed)
    }

    fn xattrs(&mut self, of: &Attributes<'_>, path: &[u8]) -> Result<Xattrs, RootfsError> {
        let mut xattrs = Xattrs::new();
        let told = |scan: &Self, error| failure(&scan.full(path), "read the attributes of", error);
        let len = match with_room(&mut self.buffer, |buffer| of.names(buffer)) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(told(self, error)),
        };
        if len == 0 {
            return Ok(xattrs);
        }
        let names = self.buffer[..len].to_vec();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let len = match with_room(&mut self.buffer, |buffer| of.value(name, buffer)) {
                Ok(len) => len,
                Err(Errno::NODATA) => return Err(RootfsError::Changed { path: self.full(path) }),
                Err(error) => return Err(told(self, error)),
            };
            match xattr::add(&mut xattrs, name, &self.buffer[..len]) {
                Ok(true) => self.metadata += (name.len() + len) as u64,
                Ok(false) => self.foreign += 1,
                Err(problem) => {
                    return Err(RootfsError::File { path: self.full(path), problem: problem.into() });
                }
            }
        }
        Ok(xattrs)
    }
}

/// How files are opened for reading: never waiting, never following.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Whose extended attributes are asked for.
enum Attributes<'a> {
    Of(&'a OwnedFd),
    /// What cannot be opened for reading: by a way that goes through the open directory and follows no symlink.
    At(PathBuf),
}

impl Attributes<'_> {
    fn at(directory: &OwnedFd, name: &Path) -> Self {
        let way = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
        Self::At(way.join(name))
    }

    fn names(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Of(file) => rustix::fs::flistxattr(file, buffer),
            Self::At(path) => rustix::fs::llistxattr(path, buffer),
        }
    }

    fn value(&self, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Of(file) => rustix::fs::fgetxattr(file, name, buffer),
            Self::At(path) => rustix::fs::lgetxattr(path, name, buffer),
        }
    }
}

/// Asks with little room first: the kernel clears as much memory as it is offered.
fn with_room(buffer: &mut [u8], ask: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<usize, Errno> {
    match ask(&mut buffer[..512]) {
        Err(Errno::RANGE) => ask(buffer),
        answer => answer,
    }
}

/// Reads the files that were seen, and gives them their contents.
pub(super) fn fill(
    scanned: &Scanned,
    watch: &Watch,
    filler: &mut Filler<'_, '_>,
    fills: &[Fill],
) -> Result<(), RootfsError> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    for fill in fills {
        let seen = &scanned.files[fill.source.1 as usize];
        let path = || scanned.at.join(Path::new(std::ffi::OsStr::from_bytes(&seen.path)));
        let changed = || RootfsError::Changed { path: path() };
        if let Some(contents) = &seen.contents {
            watch.advance(contents.len() as u64).map_err(|_| RootfsError::Stopped)?;
            match filler.fill(*fill, &**contents) {
                Ok(()) => continue,
                Err(FillError::Write(error)) => return Err(error),
                Err(FillError::Short | FillError::Read(_)) => return Err(changed()),
            }
        }
        let opened = rustix::fs::openat2(&scanned.root, &*seen.path, READ, Mode::empty(), resolve);
        let opened = opened.map_err(|error| match error {
            Errno::NOENT | Errno::LOOP | Errno::NOTDIR => changed(),
            error => failure(&path(), "open", error),
        })?;
        let is_same = || rustix::fs::fstat(&opened).is_ok_and(|stat| Identity::of(&stat) == seen.identity);
        if !is_same() {
            return Err(changed());
        }
        let ranges = match &seen.map {
            Some(map) => map.blocks(seen.identity.size),
            None => vec![(0, seen.identity.size)],
        };
        let contents = Ranges { file: &opened, ranges: ranges.into_iter(), current: (0, 0), watch };
        match filler.fill(*fill, contents) {
            Ok(()) if is_same() => {}
            Ok(()) | Err(FillError::Short) => return Err(changed()),
            Err(FillError::Write(error)) => return Err(error),
            Err(FillError::Read(_)) if watch.stopped() => return Err(RootfsError::Stopped),
            Err(FillError::Read(source)) => {
                return Err(RootfsError::Read { action: "read", path: path(), source });
            }
        }
    }
    Ok(())
}

/// Reads ranges of a file one after another.
struct Ranges<'a> {
    file: &'a OwnedFd,
    ranges: std::vec::IntoIter<(u64, u64)>,
    current: (u64, u64),
    watch: &'a Watch,
}

impl Read for Ranges<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.current.0 >= self.current.1 {
            match self.ranges.next() {
                Some(next) => self.current = next,
                None => return Ok(0),
            }
        }
        let (at, end) = self.current;
        let want = into.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let got = rustix::io::pread(self.file, &mut into[..want], at)?;
        self.current.0 += got as u64;
        self.watch.advance(got as u64)?;
        Ok(got)
    }
}

fn meta(stat: &Stat) -> Meta {
    let mtime = storable((stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)));
    Meta { mode: (stat.st_mode & 0o7777) as u16, uid: stat.st_uid, gid: stat.st_gid, mtime }
}

fn failure(path: &Path, action: &'static str, error: Errno) -> RootfsError {
    RootfsError::Read { action, path: path.into(), source: error.into() }
}
