//! The console between the machine and whoever looks at it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use smartvm::OutputReader;
use smartvm::image_machine::ReportFilter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// Guest to front, until the console ends; after a detach, guest to `log`.
///
/// With a `filter`, the guest's report at the end is left out. Says on `lost` how many bytes the front did not take in time.
pub(crate) async fn output(
    mut console: OutputReader,
    mut filter: Option<ReportFilter>,
    mut data: OwnedWriteHalf,
    detach: oneshot::Receiver<PathBuf>,
    lost: mpsc::UnboundedSender<u64>,
) {
    // Its sender goes when the machine has ended. That is no reason to drop a step half done: the front is still taking
    // what the console said last.
    let detach = async {
        match detach.await {
            Ok(log) => log,
            Err(_) => std::future::pending().await,
        }
    };
    let mut detach = std::pin::pin!(detach);
    let mut rest = Vec::new();
    let log = loop {
        let step = async {
            let Some(chunk) = console.next().await else {
                rest = filter.take().map(ReportFilter::finish).unwrap_or_default();
                let _ = data.write_all(&rest).await;
                return false;
            };
            if chunk.lost > 0 {
                let _ = lost.send(chunk.lost);
            }
            rest = match &mut filter {
                Some(filter) => filter.push(&chunk.bytes),
                None => chunk.bytes,
            };
            // When the front is gone the console is read on all the same: nothing may stall, and marks go on.
            let _ = data.write_all(&rest).await;
            rest.clear();
            true
        };
        tokio::select! {
            more = step => if !more { break None },
            log = &mut detach => break Some(log),
        }
    };
    let _ = data.shutdown().await;
    drop(data);
    let Some(log) = log else { return };
    match ConsoleLog::open(log) {
        Ok(mut log) => {
            // What the front had not taken when it left: perhaps some of it twice, rather than not at all.
            log.write(&rest);
            // A log may well say how the guest ended.
            log.write(&filter.map(ReportFilter::finish).unwrap_or_default());
            while let Some(chunk) = console.next().await {
                log.write(&chunk.bytes);
            }
        }
        Err(error) => tracing::warn!(%error, "the console goes nowhere"),
    }
}

/// Front to guest. The end of the front's input, or of the front, ends the guest's input and nothing else.
pub(crate) async fn input(mut data: OwnedReadHalf, guest: OwnedFd) {
    let Ok(mut guest) = pipe::Sender::from_owned_fd(guest) else { return };
    let mut buffer = [0; 4096];
    loop {
        match data.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                // A guest that takes no input makes this wait, and the front with it: that is the back-pressure.
                if guest.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Firecracker's log, line by line, to ours.
pub(crate) async fn log(mut diagnostics: OutputReader) {
    /// A longer line is told in pieces.
    const LONGEST: usize = 64 * 1024;
    let mut rest = Vec::new();
    while let Some(chunk) = diagnostics.next().await {
        rest.extend(chunk.bytes);
        if rest.len() > LONGEST && !rest.contains(&b'\n') {
            rest.push(b'\n');
        }
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            tracing::info!(target: "firecracker", "{}", String::from_utf8_lossy(&line).trim_end());
        }
    }
}

/// The console of a detached machine: the last one to two [`ConsoleLog::LIMIT`] bytes in two files.
struct ConsoleLog {
    path: PathBuf,
    file: File,
    written: usize,
}

impl ConsoleLog {
    const LIMIT: usize = 1 << 20;

    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: File::create(&path)?, path, written: 0 })
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.written + bytes.len() > Self::LIMIT {
            self.turn();
        }
        self.written += bytes.len();
        if let Err(error) = self.file.write_all(bytes) {
            tracing::debug!(%error, "the console's log cannot be written");
        }
    }

    fn turn(&mut self) {
        let older = older(&self.path);
        if std::fs::rename(&self.path, older).is_ok()
            && let Ok(file) = File::create(&self.path)
        {
            self.file = file;
            self.written = 0;
        }
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_a_detached_console_has_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::open(path.clone()).unwrap();
        let line = [b'x'; 1000];
        for _ in 0..3500 {
            log.write(&line);
        }
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&older(&path)) <= ConsoleLog::LIMIT as u64);
        assert!(size(&path) <= ConsoleLog::LIMIT as u64);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
