//! What is built once and kept: directories named after the hash of their recipe.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::fault::{AtPath, Fault, Result};

/// Says on standard error what takes time.
pub fn progress(text: &str) {
    eprintln!("lab: {text}");
}

/// The lab's part of the developers' cache.
///
/// An entry is complete or it is not there: it is built under another name and renamed. Builders of the same
/// entry, in any process, wait for each other.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The usual one: `lab` in [`crate::dev_cache`].
    pub fn open() -> Self {
        Self::at(crate::dev_cache().join("lab"))
    }

    /// One in a directory of the caller's; it is made when something is kept.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where an entry is or would be.
    pub fn place(&self, kind: &str, key: &Key) -> PathBuf {
        self.dir.join(format!("{kind}-{key}"))
    }

    /// The entry, built by `build` in an empty directory when it is not there. Of each kind the `keep` most
    /// recently used ones stay.
    ///
    /// # Errors
    /// Those of `build` and of the file system. Nothing incomplete is left then, as far as it can be removed.
    pub fn entry(
        &self,
        kind: &str,
        key: &Key,
        keep: usize,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = self.place(kind, key);
        if place.is_dir() {
            touch(&place);
            return Ok(place);
        }
        fs::create_dir_all(&self.dir).at("cannot make", &self.dir)?;
        let _lock = self.lock(kind)?;
        if place.is_dir() {
            return Ok(place);
        }
        // Under the lock, whatever lies here was left by a builder that died.
        let unfinished = self.dir.join(format!("{kind}-{key}.unfinished"));
        remove(&unfinished)?;
        fs::create_dir(&unfinished).at("cannot make", &unfinished)?;
        match build(&unfinished) {
            Ok(()) => fs::rename(&unfinished, &place).at("cannot rename to", &place)?,
            Err(fault) => {
                let _ = remove(&unfinished);
                return Err(fault);
            }
        }
        touch(&place);
        self.prune(kind, &place, keep);
        Ok(place)
    }

    fn lock(&self, kind: &str) -> Result<File> {
        let path = self.dir.join(format!("{kind}.lock"));
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).at("cannot open", &path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                progress(&format!("another process builds {kind}, waiting for it"));
                flock(&file, FlockOperation::LockExclusive).at("cannot lock", &path)?;
            }
            other => other.at("cannot lock", &path)?,
        }
        Ok(file)
    }

    /// Removes the entries of this kind that were not used for the longest time. Best effort: what is in use
    /// keeps working, its files are open.
    fn prune(&self, kind: &str, current: &Path, keep: usize) {
        let Ok(items) = fs::read_dir(&self.dir) else { return };
        let mut others: Vec<(SystemTime, PathBuf)> = items
            .filter_map(|item| {
                let path = item.ok()?.path();
                let name = path.file_name()?.to_str()?;
                let key = name.strip_prefix(kind)?.strip_prefix('-')?;
                let is_entry = key.len() == Key::LENGTH && path != current;
                is_entry.then(|| (fs::metadata(&path).and_then(|m| m.modified()).ok(), path.clone()))
            })
            .filter_map(|(time, path)| Some((time?, path)))
            .collect();
        others.sort();
        let surplus = (others.len() + 1).saturating_sub(keep.max(1));
        for (_, path) in others.into_iter().take(surplus) {
            let _ = remove(&path);
        }
    }
}

fn touch(place: &Path) {
    if let Ok(dir) = File::open(place) {
        let _ = dir.set_modified(SystemTime::now());
    }
}

/// Removes a directory. What root made for us, root removes.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            run_to_end(as_root("rm").arg("-rf").arg(path))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("cannot remove", path),
        _ => Ok(()),
    }
}

/// A program that needs root: directly, or through sudo. It is ended after half an hour.
pub(crate) fn as_root(program: &str) -> Command {
    let mut words = vec!["timeout", "--foreground", "--kill-after=30", "1800", program];
    if !rustix::process::geteuid().is_root() {
        words.splice(0..0, ["sudo", "--"]);
    }
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// The hash of everything that an entry is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    const LENGTH: usize = 16;

    /// The key of these pieces; where one ends and the next begins counts too.
    pub fn of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for piece in pieces {
            hash.update((piece.len() as u64).to_le_bytes());
            hash.update(piece);
        }
        Self(hash.finalize().iter().take(Self::LENGTH / 2).map(|byte| format!("{byte:02x}")).collect())
    }

    /// The key of these files' contents.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of_files(paths: &[&Path]) -> Result<Self> {
        let contents =
            paths.iter().map(|path| fs::read(path).at("cannot read", path)).collect::<Result<Vec<_>>>()?;
        Ok(Self::of(contents.iter().map(Vec::as_slice)))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs a program of an image build to its end.
///
/// # Errors
/// When it cannot be started or fails, with its last lines of output.
pub(crate) fn run_to_end(command: &mut Command) -> Result<()> {
    const HINT: &str =
        "the first time needs apt's Debian mirror, and the programs that `cargo xtask setup` installs";
    let line = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Fault::because(format!("cannot start {line}"), error).with_hint(HINT))?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let fault = Fault::because(format!("a step of an image build failed ({})", output.status), line);
    Err(fault.with_last_words(&text).with_hint(HINT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::of([text.as_bytes()])
    }

    #[test]
    fn pieces_do_not_run_together() {
        assert_ne!(Key::of([&b"ab"[..], b"c"]), Key::of([&b"a"[..], b"bc"]));
        assert_eq!(key("a").as_str().len(), Key::LENGTH);
    }

    #[test]
    fn a_failed_build_leaves_nothing_and_a_good_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let failed = cache.entry("thing", &key("a"), 3, |dir| {
            fs::write(dir.join("half"), "").unwrap();
            Err(Fault::new("no"))
        });
        assert!(failed.is_err());
        assert!(!cache.place("thing", &key("a")).exists());
        let place = cache
            .entry("thing", &key("a"), 3, |dir| {
                assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
                fs::write(dir.join("whole"), "").at("write", dir)
            })
            .unwrap();
        assert!(place.join("whole").exists());
        cache.entry("thing", &key("a"), 3, |_| panic!("built twice")).unwrap();
    }

    #[test]
    fn the_most_recently_used_entries_stay() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        for (age, name) in [(30, "a"), (10, "b"), (20, "c")] {
            let place = cache.entry("thing", &key(name), 9, |_| Ok(())).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            File::open(place).unwrap().set_modified(then).unwrap();
        }
        cache.entry("other", &key("a"), 1, |_| Ok(())).unwrap();
        cache.entry("thing", &key("d"), 2, |_| Ok(())).unwrap();
        let there = |name| cache.place("thing", &key(name)).exists();
        assert_eq!(["a", "b", "c", "d"].map(there), [false, true, false, true]);
        assert!(cache.place("other", &key("a")).exists());
    }
}
