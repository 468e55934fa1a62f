//! A log that Firecracker writes to a file of the user's: its end, for errors.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A log file, and how long it was before this VMM.
#[derive(Debug)]
pub(super) struct LogFile {
    path: Option<PathBuf>,
    begin: u64,
}

/// Lines longer than this in all are cut off at the beginning.
const TAIL: u64 = 64 * 1024;

impl LogFile {
    /// Remembers where the file ends now. A FIFO is its reader's own.
    pub(super) fn begin(path: Option<PathBuf>) -> Self {
        let begin = path.as_deref().map_or(0, length);
        Self { path, begin }
    }

    /// The last lines that were written since.
    pub(super) fn last_lines(&self, most: usize) -> Vec<String> {
        let Some(path) = &self.path else { return Vec::new() };
        let end = length(path);
        // Firecracker, or the user, may have begun it anew.
        let begin = if self.begin <= end { self.begin } else { 0 };
        let mut text = Vec::new();
        if end > begin
            && let Ok(mut file) = File::open(path)
            && file.seek(SeekFrom::Start(begin.max(end.saturating_sub(TAIL)))).is_ok()
        {
            let _ = file.take(TAIL).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<String> =
            text.lines().rev().filter(|line| !line.trim().is_empty()).take(most).map(str::to_owned).collect();
        lines.reverse();
        lines
    }
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_what_was_written_since_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "of another run\n").unwrap();
        let log = LogFile::begin(Some(path.clone()));
        assert!(log.last_lines(9).is_empty());
        fs::write(&path, "of another run\none\n\ntwo\nthree").unwrap();
        assert_eq!(log.last_lines(2), ["two", "three"]);
        fs::write(&path, "anew\n").unwrap();
        assert_eq!(log.last_lines(2), ["anew"]);
        fs::remove_file(&path).unwrap();
        assert!(log.last_lines(2).is_empty());
        assert!(LogFile::begin(None).last_lines(2).is_empty());
    }
}
