//! Writes the initramfs: a cpio archive of the "newc" kind, not compressed, so that nothing has to be unpacked in the
//! guest before its init runs.
//!
//! Everything in it belongs to root and has no time, inodes count up, and the order is fixed: equal input gives equal
//! bytes.

use std::io::{self, Write};

use cpio::newc::{Builder, trailer};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Parents must be added before what is in them.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive that goes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// A directory, mode 0755.
    ///
    /// # Errors
    /// When the path is empty or has a NUL byte, or `out` fails; so for all that is added.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), b"")
    }

    /// A file. `mode` has the permission bits only. At most 4 GiB, by the format.
    ///
    /// # Errors
    /// As for directories.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | (mode & 0o7777), (0, 0), content)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// As for directories.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device, mode 0600.
    ///
    /// # Errors
    /// As for directories.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), b"")
    }

    /// Writes the end mark and gives the output back.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn finish(self) -> io::Result<W> {
        trailer(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if path.is_empty() || path.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("bad archive path {path:?}")));
        }
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is over 4 GiB")))?;
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let entry = Builder::new(path).ino(self.entries).mode(mode).nlink(links);
        let mut writer = entry.rdev_major(device.0).rdev_minor(device.1).write(&mut self.out, size);
        writer.write_all(content)?;
        writer.finish().map(drop)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "the reference reader is a program")]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.character_device("dev/console", 5, 1).unwrap();
        archive.file("/init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.file("empty", 0o644, b"").unwrap();
        archive.file("abcd", 0o600, b"12345").unwrap();
        archive.link("sh", "init").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn every_entry_starts_at_a_multiple_of_four() {
        let bytes = sample();
        assert_eq!(bytes.len() % 4, 0);
        let starts: Vec<_> = bytes.windows(6).enumerate().filter(|(_, w)| w == b"070701").collect();
        assert_eq!(starts.len(), 7);
        assert!(starts.iter().all(|(at, _)| at % 4 == 0));
    }

    #[test]
    fn refuses_an_empty_path() {
        assert!(Archive::new(Vec::new()).file("/", 0o644, b"").is_err());
        assert!(Archive::new(Vec::new()).file("a\0b", 0o644, b"").is_err());
    }

    /// The reference reader agrees. Needs the `cpio` program, one of the lab's packages.
    #[test]
    fn cpio_lists_what_was_written() {
        let mut child = Command::new("cpio")
            .args(["-tv", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed by `cargo xtask test`");
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<_>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
        let seen: Vec<_> = lines.iter().map(|words| (words[0], words[words.len() - 1])).collect();
        assert_eq!(
            seen,
            [
                ("drwxr-xr-x", "dev"),
                ("crw-------", "dev/console"),
                ("-rwxr-xr-x", "init"),
                ("-rw-r--r--", "empty"),
                ("-rw-------", "abcd"),
                ("lrwxrwxrwx", "init"),
            ],
            "{listing}"
        );
        assert_eq!(lines[4][4], "5", "size of abcd: {listing}");
    }
}
