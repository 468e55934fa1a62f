//! What others say of an image: e2fsck, and the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::compare::{entries, same_contents};

/// What the source of an image could not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sockets {
    Kept,
    /// By our own writer of archives, which keeps everything else.
    LeftOut,
    Lost,
    LostWithAttributesAndNanoseconds,
}

/// e2fsck finds nothing to say.
pub(crate) fn fsck(image: &Path) {
    let output = Command::new("e2fsck").args(["-fn"]).arg(image).output().expect("e2fsck of e2fsprogs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains("Fix?"), "{said}");
}

/// An image that is mounted while this lives.
pub(crate) struct Mounted {
    at: tempfile::TempDir,
}

impl Mounted {
    /// Mounts it read-only. `None` where the kernel does not; why is printed.
    pub(crate) fn new(image: &Path) -> Option<Self> {
        Self::with("ro,loop", image)
    }

    fn with(options: &str, image: &Path) -> Option<Self> {
        let at = tempfile::TempDir::new().unwrap();
        let output = Command::new("mount")
            .args(["-t", "ext4", "-o", options])
            .arg(image)
            .arg(at.path())
            .output()
            .unwrap();
        if output.status.success() {
            return Some(Self { at });
        }
        eprintln!(
            "not mounted, read by ext4-view instead: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.at.path()).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.at.path().display());
        }
    }
}

/// The image holds what the directory holds, and `lost+found`.
pub(crate) fn same(tree: &Path, image: &Path, lost: Sockets) {
    let Some(mounted) = Mounted::new(image) else { return same_by_reader(tree, image, lost) };
    let mut expected = entries(tree);
    let mut found = entries(mounted.path());
    assert!(found.remove(Path::new("lost+found")).is_some());
    if lost != Sockets::Kept {
        expected.retain(|_, entry| entry.mode & 0o170_000 != 0o140_000);
    }
    if !matches!(lost, Sockets::Kept | Sockets::LeftOut) {
        // GNU tar packs each name of a fifo as one of its own.
        expected.iter_mut().filter(|(_, entry)| entry.mode & 0o170_000 == 0o010_000).for_each(
            |(path, entry)| {
                (entry.first, entry.names) = (path.clone(), 1);
            },
        );
    }
    if lost == Sockets::LostWithAttributesAndNanoseconds {
        expected.values_mut().for_each(|entry| entry.forget());
        found.values_mut().for_each(|entry| entry.forget());
    }
    let paths =
        |entries: &std::collections::BTreeMap<PathBuf, _>| entries.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&expected), paths(&found));
    for (path, expected) in &expected {
        assert_eq!(&found[path], expected, "{}", path.display());
        if expected.mode & 0o170_000 == 0o100_000 && expected.first == *path && expected.size < 1 << 30 {
            same_contents(&tree.join(path), &mounted.path().join(path));
        }
    }
    same_sparse(&tree.join("sparse"), &mounted.path().join("sparse"));
}

/// A directory holds what another one does, but for sockets.
pub(crate) fn same_directories(tree: &Path, other: &Path) {
    let mut expected = entries(tree);
    expected.retain(|_, entry| entry.mode & 0o170_000 != 0o140_000);
    let found = entries(other);
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (path, expected) in &expected {
        assert_eq!(&found[path], expected, "{}", path.display());
    }
    same_names_and_contents(tree, other);
    same_sparse(&tree.join("sparse"), &other.join("sparse"));
}

/// The same names, kinds, owners, modes and contents, but for sockets.
pub(crate) fn same_names_and_contents(tree: &Path, other: &Path) {
    let found = entries(other);
    for (path, expected) in entries(tree) {
        if expected.mode & 0o170_000 == 0o140_000 {
            continue;
        }
        let found = found.get(&path).unwrap_or_else(|| panic!("{} is missing", path.display()));
        assert_eq!((found.mode, found.owner, found.size), (expected.mode, expected.owner, expected.size));
        assert_eq!(found.target, expected.target);
        if expected.mode & 0o170_000 == 0o100_000 && expected.size < 1 << 30 {
            same_contents(&tree.join(&path), &other.join(&path));
        }
    }
}

/// The kernel reads the large sparse file where it has data, and it has as little of it.
fn same_sparse(ours: &Path, theirs: &Path) {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let open = |path: &Path| std::fs::File::open(path).unwrap();
    let (a, b) = (open(ours), open(theirs));
    for at in [0, 4096, 4 << 30, (4 << 30) + 65_536, (5 << 30) - 5000] {
        let (mut left, mut right) = (vec![0; 70_000], vec![0; 70_000]);
        let (got, other) = (a.read_at(&mut left, at).unwrap(), b.read_at(&mut right, at).unwrap());
        assert_eq!(got, other);
        assert!(left[..got] == right[..got], "at {at}");
    }
    assert!(b.metadata().unwrap().blocks() <= a.metadata().unwrap().blocks() + 64);
}

/// The same as far as ext4-view tells it: neither devices, attributes nor hardlinks.
fn same_by_reader(tree: &Path, image: &Path, lost: Sockets) {
    let fs = ext4_view::Ext4::load_from_path(image).unwrap();
    for (path, expected) in entries(tree) {
        let is_socket = expected.mode & 0o170_000 == 0o140_000;
        if is_socket && lost != Sockets::Kept {
            continue;
        }
        let inside = Path::new("/").join(&path);
        let inside = inside.to_str().unwrap();
        let found = fs.symlink_metadata(inside).unwrap_or_else(|error| panic!("{inside}: {error}"));
        assert_eq!(u32::from(found.mode()) & 0o7777, expected.mode & 0o7777, "{inside}");
        assert_eq!((found.uid(), found.gid()), expected.owner, "{inside}");
        assert_eq!(found.is_dir(), expected.mode & 0o170_000 == 0o040_000, "{inside}");
        if let Some(target) = expected.target {
            assert_eq!(fs.read_link(inside).unwrap().to_str().ok(), target.to_str());
        } else if expected.mode & 0o170_000 == 0o100_000 && expected.size < 1 << 30 {
            assert!(fs.read(inside).unwrap() == std::fs::read(tree.join(&path)).unwrap(), "{inside}");
        }
    }
}

/// The kernel mounts an empty file system and writes to all over it.
pub(crate) fn written_to(image: &Path) {
    let Some(mounted) = Mounted::with("rw,loop", image) else { return };
    for number in 0..40 {
        let folder = mounted.path().join(format!("{number}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("file"), vec![number; 100_000]).unwrap();
    }
    let file = mounted.path().join("39/file");
    assert!(std::fs::read(file).unwrap() == vec![39; 100_000]);
}
