//! One file per run of the lab: commands, their output, the machine's console.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::fault::{AtPath, Result};

/// So many logs of former runs are kept.
const KEEP: usize = 20;
/// A log stops growing there.
const MAX: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct RunLog {
    path: PathBuf,
    begun: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    written: u64,
    /// Whether the last byte ended a line.
    at_line_start: bool,
}

impl RunLog {
    pub(super) fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).at("cannot make", dir)?;
        prune(dir);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = dir.join(format!("{}-{}.log", now.as_millis(), std::process::id()));
        let file = File::create(&path).at("cannot create", &path)?;
        let inner = Mutex::new(Inner { file, written: 0, at_line_start: true });
        Ok(Self { path, begun: Instant::now(), inner })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A line of our own, with the seconds since the run's begin.
    pub(super) fn note(&self, text: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.at_line_start {
            inner.write(b"\n");
        }
        inner.write(format!("== {seconds:8.3} {text}\n").as_bytes());
    }

    /// Output as it comes.
    pub(super) fn output(&self, bytes: &[u8]) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
    }

    /// What a file has from `offset` on, at most 1 MiB of it.
    pub(super) fn copy(&self, title: &str, file: &Path, offset: u64) {
        let mut bytes = Vec::new();
        let read = File::open(file).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.take(1 << 20).read_to_end(&mut bytes)
        });
        match read {
            Ok(0) => {}
            Ok(_) => {
                self.note(title);
                self.output(&bytes);
            }
            Err(error) => self.note(&format!("{title}: {error}")),
        }
    }
}

impl Inner {
    /// A log that cannot be written must not fail the run.
    fn write(&mut self, bytes: &[u8]) {
        if self.written < MAX {
            let _ = self.file.write_all(bytes);
            self.written += bytes.len() as u64;
            self.at_line_start = bytes.last().is_none_or(|last| *last == b'\n');
        }
    }
}

fn prune(dir: &Path) {
    let Ok(items) = fs::read_dir(dir) else { return };
    let mut logs: Vec<_> = items
        .filter_map(|item| Some(item.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    // Names begin with the time.
    logs.sort();
    for old in &logs[..logs.len().saturating_sub(KEEP - 1)] {
        let _ = fs::remove_file(old);
    }
}
