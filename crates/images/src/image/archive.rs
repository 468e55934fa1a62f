//! Where an import finds its documents and layers: a directory, or members of one tar file.
//!
//! Nothing is unpacked to a name that an archive chooses: names are only looked up, so `..` and absolute paths lead
//! nowhere. Links inside of a `docker save` archive are followed among its own members.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::error::ImageError;
use crate::blocking::Abandoned;
use crate::rootfs::{self, Limits, MemberKind};

/// The most members of an archive that are remembered. An image has a few for each layer.
const MAX_MEMBERS: usize = 100_000;

/// How many links in a row are followed.
const MAX_LINKS: usize = 8;

/// What an archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// `oci-layout` and `index.json`.
    Layout,
    /// `manifest.json`, as `docker save` writes it.
    DockerSave,
    /// A root file system.
    Root,
}

/// Named contents.
#[derive(Debug)]
pub(super) enum Place {
    Directory(PathBuf),
    Tar(Tar),
}

#[derive(Debug)]
pub(super) struct Tar {
    name: String,
    file: Arc<File>,
    members: HashMap<String, MemberKind>,
}

/// What was seen of an archive's members.
#[derive(Debug, Default)]
pub(super) struct Seen {
    members: HashMap<String, MemberKind>,
    amount: Amount,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Amount {
    #[default]
    Nothing,
    /// The folder that all would be in, as `tar -c .` writes it first.
    EmptyFolder,
    Files,
}

impl Seen {
    /// Looks through an archive, compressed or not. Blocks.
    pub(super) fn of(
        layer: &rootfs::Layer,
        limits: &Limits,
        abandoned: &Abandoned,
    ) -> Result<Self, ImageError> {
        let mut members = HashMap::new();
        let mut too_many = false;
        let mut amount = Amount::Nothing;
        layer.members_now(limits, abandoned, |member| {
            if member.path.iter().any(|byte| !matches!(byte, b'.' | b'/')) {
                amount = Amount::Files;
            } else if amount == Amount::Nothing {
                amount = Amount::EmptyFolder;
            }
            if let Some(name) = image_part(&member.path) {
                // The last of one name counts, as when unpacking.
                members.insert(name, member.kind);
                too_many = members.len() > MAX_MEMBERS;
            }
            !too_many
        })?;
        // So many names that could be an image's are a root file system's, or an attack.
        Ok(Self { members: if too_many { HashMap::new() } else { members }, amount })
    }

    pub(super) fn amount(&self) -> Amount {
        self.amount
    }

    pub(super) fn holds(&self) -> Holds {
        let has = |name: &str| self.members.contains_key(name);
        match () {
            () if has("oci-layout") && has("index.json") => Holds::Layout,
            () if has("manifest.json") => Holds::DockerSave,
            () => Holds::Root,
        }
    }

    /// The archive as a place, given its unpacked bytes.
    pub(super) fn in_file(self, name: &str, file: Arc<File>) -> Place {
        Place::Tar(Tar { name: name.to_owned(), file, members: self.members })
    }
}

/// The name of a member if it could be a part of an image: `index.json`, `blobs/sha256/…`, `<digits>/layer.tar`, …
fn image_part(path: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(path).ok()?;
    let name = text.trim_start_matches("./").trim_start_matches('/');
    let is_digits = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = name.split('/').collect();
    let fits = match parts.as_slice() {
        [file] => {
            matches!(*file, "oci-layout" | "index.json" | "manifest.json" | "repositories")
                || file
                    .split_once('.')
                    .is_some_and(|(stem, end)| is_digits(stem) && matches!(end, "json" | "tar"))
        }
        [id, "layer.tar"] => is_digits(id),
        ["blobs", "sha256", digest] => is_digits(digest),
        _ => false,
    };
    fits.then(|| name.to_owned())
}

impl Place {
    /// How it is called in errors.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::Tar(tar) => tar.name.clone(),
        }
    }

    /// A small document.
    pub(super) fn read(&self, name: &str, max: u64) -> Result<Vec<u8>, ImageError> {
        let too_large = || ImageError::malformed(self.name(), format!("`{name}` is larger than {max} bytes"));
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                let mut bytes = Vec::new();
                let file = self.part(&path, name)?;
                file.take(max + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|error| ImageError::file("read", &path, error))?;
                if bytes.len() as u64 > max { Err(too_large()) } else { Ok(bytes) }
            }
            Self::Tar(tar) => {
                let (offset, size) = tar.find(name)?;
                if size > max {
                    return Err(too_large());
                }
                let mut bytes = vec![0; usize::try_from(size).map_err(|_| too_large())?];
                let short = |error| ImageError::file("read", Path::new(&tar.name), error);
                tar.file.read_exact_at(&mut bytes, offset).map_err(short)?;
                Ok(bytes)
            }
        }
    }

    /// Opens a part of the image. One that is not there is the image's fault, as in an archive, not a wrong path of the user's.
    fn part(&self, path: &Path, name: &str) -> Result<File, ImageError> {
        open(path).map_err(|error| match error {
            ImageError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                ImageError::malformed(self.name(), format!("`{name}` is missing"))
            }
            error => error,
        })
    }

    /// A layer.
    pub(super) fn layer(&self, name: &str) -> Result<rootfs::Layer, ImageError> {
        let shown = format!("`{name}` of {}", self.name());
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                let file = self.part(&path, name)?;
                let len = file.metadata().map_err(|error| ImageError::file("read", &path, error))?.len();
                Ok(rootfs::Layer::part(shown, Arc::new(file), 0, len))
            }
            Self::Tar(tar) => {
                let (offset, size) = tar.find(name)?;
                Ok(rootfs::Layer::part(shown, Arc::clone(&tar.file), offset, size))
            }
        }
    }
}

impl Tar {
    fn find(&self, name: &str) -> Result<(u64, u64), ImageError> {
        let missing = |why: &str| ImageError::malformed(&self.name, format!("`{name}` {why}"));
        let mut at = name.trim_start_matches("./").to_owned();
        for _ in 0..MAX_LINKS {
            match self.members.get(&at) {
                Some(MemberKind::File { offset, size }) => return Ok((*offset, *size)),
                Some(MemberKind::Link(target)) => {
                    let target = std::str::from_utf8(target).map_err(|_| missing("is a link to nowhere"))?;
                    at = beside(&at, target).ok_or_else(|| missing("is a link out of the archive"))?;
                }
                Some(MemberKind::Other) => return Err(missing("is not a file")),
                None => return Err(missing("is missing")),
            }
        }
        Err(missing("is a link to a link without end"))
    }
}

/// Where a link leads: relative to its own folder (a symlink), and from the top where that is what it names (a hardlink).
fn beside(link: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    if target.starts_with('.') {
        parts.extend(link.split('/'));
        parts.pop();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Opens a file of a directory that may be anybody's: no device, no fifo that would hold us, no link to elsewhere.
fn open(path: &Path) -> Result<File, ImageError> {
    let fail = |error: std::io::Error| ImageError::file("open", path, error);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|error| fail(error.into()))?);
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(fail(std::io::Error::other("it is not a regular file")));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_image_consists_of_is_remembered() {
        let digits = "0123456789abcdef".repeat(4);
        for (path, part) in [
            ("./index.json".to_owned(), Some("index.json".to_owned())),
            (format!("blobs/sha256/{digits}"), Some(format!("blobs/sha256/{digits}"))),
            (format!("{digits}/layer.tar"), Some(format!("{digits}/layer.tar"))),
            (format!("{digits}.json"), Some(format!("{digits}.json"))),
            ("/manifest.json".to_owned(), Some("manifest.json".to_owned())),
            ("etc/index.json".to_owned(), None),
            ("../index.json".to_owned(), None),
            ("blobs/sha256/short".to_owned(), None),
            (format!("blobs/sha256/../{digits}"), None),
        ] {
            assert_eq!(image_part(path.as_bytes()), part, "{path}");
        }
    }

    #[test]
    fn links_stay_in_the_archive() {
        assert_eq!(beside("a/layer.tar", "../b/layer.tar").as_deref(), Some("b/layer.tar"));
        assert_eq!(beside("a/layer.tar", "b/layer.tar").as_deref(), Some("b/layer.tar"));
        assert_eq!(beside("a/layer.tar", "../../etc/passwd"), None);
        assert_eq!(beside("x.tar", "./y.tar").as_deref(), Some("y.tar"));
    }
}
