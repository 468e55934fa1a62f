//! The front's standard input and output. Each has a thread: neither may block what hears keys and signals.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::keys::Action;

/// Standard input, read by a thread: a terminal shared with a shell must not be made non-blocking.
pub(super) struct Input {
    /// What was typed on a terminal, to be looked at for keys of ours.
    pub(super) keys: mpsc::Receiver<Vec<u8>>,
    pub(super) pending: VecDeque<Action>,
    /// Bytes on their way to the owner.
    pub(super) to_guest: mpsc::Sender<Vec<u8>>,
    /// Bytes that wait for room on that way.
    pub(super) backlog: Backlog,
}

impl Input {
    /// A guest takes typed bytes at its own pace: what was pasted waits here, and keys of ours behind it are heard.
    pub(super) fn forward(&mut self, bytes: Vec<u8>) {
        if !self.backlog.is_empty() {
            self.backlog.add(bytes);
        } else if let Err(TrySendError::Full(bytes)) = self.to_guest.try_send(bytes) {
            self.backlog.add(bytes);
        }
    }
}

/// Typed bytes that wait. More than [`Backlog::LIMIT`] are dropped with a bell, as a full terminal does.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    chunks: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Backlog {
    const LIMIT: usize = 16 << 20;

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn add(&mut self, bytes: Vec<u8>) {
        if self.bytes + bytes.len() > Self::LIMIT {
            let _ = io::stderr().write_all(b"\x07");
            return;
        }
        self.bytes += bytes.len();
        self.chunks.push_back(bytes);
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        let chunk = self.chunks.pop_front().unwrap_or_default();
        self.bytes -= chunk.len();
        chunk
    }
}

/// Reads standard input for the guest; from a terminal, for our keys first.
pub(super) fn read_input(to_data: OwnedWriteHalf, is_terminal: bool) -> Input {
    let (to_guest, from_user) = mpsc::channel(64);
    let (typed, keys) = mpsc::channel(64);
    let target = if is_terminal { typed } else { to_guest.clone() };
    // Through a pipe the channel and then the owner's connection fill up, and the thread waits: back-pressure.
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if target.blocking_send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    tokio::spawn(forward_input(from_user, to_data));
    if is_terminal {
        Input { keys, pending: VecDeque::new(), to_guest, backlog: Backlog::default() }
    } else {
        // Nobody else may hold the channel open: its end is the end of the guest's input.
        let (unused, _) = mpsc::channel(1);
        Input { keys, pending: VecDeque::new(), to_guest: unused, backlog: Backlog::default() }
    }
}

async fn forward_input(mut from_user: mpsc::Receiver<Vec<u8>>, mut to_data: OwnedWriteHalf) {
    while let Some(bytes) = from_user.recv().await {
        if to_data.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The end of our input is the end of the guest's, and of nothing else.
    let _ = to_data.shutdown().await;
}

pub(super) struct Printed {
    /// Comes once, when standard output takes no more.
    pub(super) gone: mpsc::Receiver<io::Error>,
    /// Resolves when everything was printed, or cannot be.
    pub(super) done: tokio::sync::oneshot::Receiver<()>,
}

/// Standard output, written by a thread: a slow reader must not keep signals and keys from being heard.
pub(super) fn print_console(mut from_data: OwnedReadHalf) -> (tokio::task::JoinHandle<()>, Printed) {
    let (to_thread, mut from_task) = mpsc::channel::<Vec<u8>>(8);
    let (say_gone, gone) = mpsc::channel(1);
    let (say_done, done) = tokio::sync::oneshot::channel();
    thread::spawn(move || {
        let mut out = io::stdout();
        while let Some(bytes) = from_task.blocking_recv() {
            if let Err(error) = out.write_all(&bytes).and_then(|()| out.flush()) {
                let _ = say_gone.try_send(error);
                break;
            }
        }
        let _ = say_done.send(());
    });
    let task = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from_data.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                // When nobody prints any more the owner must not be made to wait: read on.
                Ok(count) => drop(to_thread.send(buffer[..count].to_vec()).await),
            }
        }
    });
    (task, Printed { gone, done })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> (Input, mpsc::Receiver<Vec<u8>>) {
        let (to_guest, from_user) = mpsc::channel(2);
        let (_, keys) = mpsc::channel(1);
        (Input { keys, pending: VecDeque::new(), to_guest, backlog: Backlog::default() }, from_user)
    }

    #[tokio::test]
    async fn what_is_pasted_faster_than_the_guest_reads_comes_whole_and_in_order() {
        let (mut input, mut guest) = input();
        for chunk in 0..200 {
            input.forward(vec![chunk; 4096]);
        }
        let mut came = Vec::new();
        while let Ok(chunk) = guest.try_recv() {
            came.push(chunk[0]);
            if !input.backlog.is_empty() {
                input.to_guest.reserve().await.unwrap().send(input.backlog.take());
            }
        }
        assert_eq!(came, (0..200).collect::<Vec<u8>>());
        assert_eq!(input.backlog.bytes, 0);
    }

    #[test]
    fn what_waits_for_a_guest_that_reads_nothing_has_a_bound() {
        let (mut input, _guest) = input();
        for _ in 0..20 {
            input.forward(vec![b'x'; 1 << 20]);
        }
        assert_eq!(input.backlog.bytes, Backlog::LIMIT);
    }
}
