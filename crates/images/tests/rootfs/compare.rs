//! Two directories, entry by entry.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What can be told of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) size: u64,
    pub(crate) device: u64,
    pub(crate) target: Option<PathBuf>,
    /// The first path of the same inode, in the order of paths.
    pub(crate) first: PathBuf,
    pub(crate) names: u64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All entries below a directory and itself, by path.
pub(crate) fn entries(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut ahead = vec![PathBuf::new()];
    let mut inodes = BTreeMap::new();
    while let Some(path) = ahead.pop() {
        let full = root.join(&path);
        let metadata = full.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        if kind.is_dir() {
            ahead.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        let is_device = kind.is_char_device() || kind.is_block_device();
        let entry = Entry {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            size: if kind.is_dir() { 0 } else { metadata.len() },
            device: if is_device { metadata.rdev() } else { 0 },
            target: kind.is_symlink().then(|| fs::read_link(&full).unwrap()),
            first: PathBuf::new(),
            names: if kind.is_dir() { 1 } else { metadata.nlink() },
            xattrs: xattrs(&full),
        };
        inodes.insert(path.clone(), metadata.ino());
        entries.insert(path, entry);
    }
    let mut firsts = HashMap::new();
    for (path, entry) in &mut entries {
        entry.first.clone_from(firsts.entry(inodes[path]).or_insert_with(|| path.clone()));
    }
    entries
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        value.truncate(len);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Panics when the contents differ.
pub(crate) fn same_contents(ours: &Path, theirs: &Path) {
    let open = |path: &Path| fs::File::open(path).unwrap();
    let (mut a, mut b) = (open(ours), open(theirs));
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let got = a.read(&mut left).unwrap();
        b.read_exact(&mut right[..got]).unwrap();
        assert!(left[..got] == right[..got], "the contents of {} differ", ours.display());
        if got == 0 {
            return;
        }
    }
}

impl Entry {
    /// Leaves out what GNU tar's own format cannot say.
    pub(crate) fn forget(&mut self) {
        self.mtime.1 = 0;
        self.xattrs.clear();
    }
}
