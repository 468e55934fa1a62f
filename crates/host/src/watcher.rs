//! The one thread that drains all output of all VMMs and reaps them.
//!
//! It is a thread of its own, not a task: a user's async runtime that is busy, or was dropped, must neither stall
//! a VMM nor leave a zombie. It never waits for anybody: rings overwrite, sockets are unlinked, statuses are published.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use tokio::sync::Notify;

use crate::output::Output;
use crate::process::{Exit, ProcessId};
use crate::prompt::prompt_thread;
use crate::socket_path::OwnSocket;
use crate::vmm::{Ended, Rung};

/// One child of ours, shared between its handle and the watcher.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) console: Output,
    pub(crate) diagnostics: Output,
    /// When it had become its program.
    pub(crate) running: Instant,
    first_output: OnceLock<Instant>,
    pidfd: OwnedFd,
    socket: Mutex<Option<OwnSocket>>,
    /// It was killed because it hung at its exit.
    hung: AtomicBool,
    /// The highest rung tried, as `Rung as u8 + 1`; 0 for none.
    tried: AtomicU8,
    ended: OnceLock<Ended>,
    ended_now: Notify,
}

impl Child {
    pub(crate) fn new(
        pid: Pid,
        pidfd: OwnedFd,
        running: Instant,
        keep_output: usize,
        socket: Option<OwnSocket>,
    ) -> Self {
        Self {
            pid,
            console: Output::new(keep_output),
            diagnostics: Output::new(keep_output),
            running,
            first_output: OnceLock::new(),
            pidfd,
            socket: Mutex::new(socket),
            hung: AtomicBool::new(false),
            tried: AtomicU8::new(0),
            ended: OnceLock::new(),
            ended_now: Notify::new(),
        }
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    pub(crate) fn first_output(&self) -> Option<Instant> {
        self.first_output.get().copied()
    }

    /// We are connected to its socket.
    pub(crate) fn socket_confirmed(&self) {
        if let Some(socket) = self.socket().as_mut() {
            socket.confirm();
        }
    }

    /// Whether its socket stands where it shall be; remembered if so.
    pub(crate) fn socket_is_there(&self) -> bool {
        self.socket().as_mut().is_some_and(OwnSocket::confirm)
    }

    /// The socket is somebody else's: leave it alone when this child ends.
    pub(crate) fn disown_socket(&self) {
        *self.socket() = None;
    }

    fn socket(&self) -> MutexGuard<'_, Option<OwnSocket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended.get().copied()
    }

    /// Its identity, `None` once it has ended.
    pub(crate) fn process_id(&self) -> io::Result<Option<ProcessId>> {
        let id = ProcessId::of(self.pid.as_raw_pid())?;
        // A child that lives even now had its pid to itself when we looked.
        let mut pidfd = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ended = rustix::io::retry_on_intr(|| poll(&mut pidfd, Some(&Timespec::default())))? > 0;
        Ok(id.filter(|_| !ended))
    }

    pub(crate) async fn wait(&self) -> Ended {
        loop {
            let ended_now = self.ended_now.notified();
            let mut ended_now = std::pin::pin!(ended_now);
            // Registered before looking, so that an end in between is not missed.
            ended_now.as_mut().enable();
            if let Some(ended) = self.ended() {
                return ended;
            }
            ended_now.await;
        }
    }

    /// Notes the rung before it takes effect, so that an end it causes is put down to it.
    pub(crate) fn note(&self, rung: Rung) {
        self.tried.fetch_max(rung as u8 + 1, Ordering::SeqCst);
    }

    /// Sends a signal; a child that has gone is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(pid = self.pid.as_raw_pid(), %error, "cannot signal the VMM"),
        }
    }

    /// Kills a child that hangs at its exit.
    pub(crate) fn end_hung(&self) {
        tracing::warn!(pid = self.pid.as_raw_pid(), "Firecracker hung after its guest had ended: killing it");
        self.hung.store(true, Ordering::SeqCst);
        self.signal(Signal::KILL);
    }

    /// A killed child that could not be given to the watcher: waits for its end here.
    pub(crate) fn finish_unwatched(&self) {
        let mut pidfd = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let _ = rustix::io::retry_on_intr(|| poll(&mut pidfd, None));
        self.finish();
    }

    /// Collects the status, removes the socket, then tells everybody.
    fn finish(&self) {
        let exit = match Exit::collect(&self.pidfd) {
            Exit::Signal(9) if self.hung.load(Ordering::SeqCst) => Exit::HungAtExit,
            exit => exit,
        };
        if let Some(socket) = self.socket().take() {
            socket.remove();
        }
        self.console.close();
        self.diagnostics.close();
        let by = Rung::from_tried(self.tried.load(Ordering::SeqCst));
        // Whoever watches the child gets here, once.
        let _ = self.ended.set(Ended { exit, by });
        self.ended_now.notify_waiters();
    }
}

/// The read ends of a child's output. A detached child has none.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) console: Option<OwnedFd>,
    pub(crate) diagnostics: Option<OwnedFd>,
}

#[derive(Debug)]
struct Watched {
    child: Arc<Child>,
    pipes: Pipes,
}

/// The watcher of this process.
#[derive(Debug)]
pub(crate) struct Watcher {
    epoll: OwnedFd,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    watched: HashMap<u64, Watched>,
}

/// What an epoll event is about: the low two bits of its data, the rest is the entry's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Source {
    Exit = 0,
    Console = 1,
    Diagnostics = 2,
}

impl Source {
    fn token(self, number: u64) -> epoll::EventData {
        epoll::EventData::new_u64(number << 2 | self as u64)
    }

    fn parse(data: u64) -> Option<(u64, Self)> {
        let source = match data & 3 {
            0 => Self::Exit,
            1 => Self::Console,
            2 => Self::Diagnostics,
            _ => return None,
        };
        Some((data >> 2, source))
    }
}

static WATCHER: Mutex<Option<Arc<Watcher>>> = Mutex::new(None);

impl Watcher {
    /// The watcher of this process, started at the first call.
    ///
    /// # Errors
    /// When its descriptor or its thread cannot be made; the next call tries again.
    pub(crate) fn get() -> io::Result<Arc<Self>> {
        let mut slot = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = slot.as_ref() {
            return Ok(Arc::clone(watcher));
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watcher = Arc::new(Self { epoll, table: Mutex::default() });
        let of_thread = Arc::clone(&watcher);
        thread::Builder::new()
            .name("vmm-watcher".into())
            .stack_size(128 * 1024)
            .spawn(move || of_thread.run())?;
        *slot = Some(Arc::clone(&watcher));
        Ok(watcher)
    }

    /// Watches a child from now on. When this fails, the child is not watched at all: the caller must end it.
    pub(crate) fn watch(&self, child: &Arc<Child>, pipes: Pipes) -> io::Result<()> {
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        let add = |fd: &OwnedFd, source: Source| {
            epoll::add(&self.epoll, fd, source.token(number), epoll::EventFlags::IN)
        };
        // The exit comes last: while it is not added, nothing removes the entry.
        let added = pipes
            .console
            .as_ref()
            .map_or(Ok(()), |fd| add(fd, Source::Console))
            .and_then(|()| pipes.diagnostics.as_ref().map_or(Ok(()), |fd| add(fd, Source::Diagnostics)))
            .and_then(|()| add(&child.pidfd, Source::Exit));
        added?;
        // Of a detached child nothing comes this way, and nobody shall wait for it.
        for (pipe, output) in [(&pipes.console, &child.console), (&pipes.diagnostics, &child.diagnostics)] {
            if pipe.is_none() {
                output.close();
            }
        }
        table.watched.insert(number, Watched { child: Arc::clone(child), pipes });
        Ok(())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        prompt_thread();
        let mut events = Vec::with_capacity(64);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    // Only a wrong descriptor or pointer gets here; both are ours.
                    tracing::error!(%error, "the VMM watcher cannot wait for events");
                    return;
                }
            }
            for event in &events {
                if let Some((number, source)) = Source::parse(event.data.u64()) {
                    self.handle(number, source, &mut buffer);
                }
            }
        }
    }

    fn handle(&self, number: u64, source: Source, buffer: &mut [u8]) {
        let mut table = self.table();
        if source == Source::Exit {
            let Some(mut watched) = table.watched.remove(&number) else { return };
            drop(table);
            // The Child may live on in handles, and its pidfd stays readable: out of the epoll set with it.
            let _ = epoll::delete(&self.epoll, &watched.child.pidfd);
            watched.drain(&self.epoll, buffer);
            watched.child.finish();
        } else if let Some(watched) = table.watched.get_mut(&number) {
            watched.read_once(&self.epoll, source, buffer);
        }
    }
}

impl Watched {
    /// Reads what there is, at most one buffer full, so that a flooding guest leaves time for the others.
    /// `false` when there is nothing more for now, or ever.
    fn read_once(&mut self, epoll: &OwnedFd, source: Source, buffer: &mut [u8]) -> bool {
        let Self { child, pipes } = self;
        let (slot, output) = match source {
            Source::Console => (&mut pipes.console, &child.console),
            Source::Diagnostics => (&mut pipes.diagnostics, &child.diagnostics),
            Source::Exit => return false,
        };
        let Some(pipe) = slot.as_ref() else { return false };
        match rustix::io::read(pipe.as_fd(), &mut *buffer) {
            Ok(0) => {
                close(epoll, slot, output);
                false
            }
            Ok(count) => {
                if source == Source::Console {
                    child.first_output.get_or_init(Instant::now);
                }
                output.push(&buffer[..count]);
                true
            }
            Err(rustix::io::Errno::INTR) => true,
            Err(rustix::io::Errno::AGAIN) => false,
            Err(error) => {
                tracing::warn!(%error, "cannot read a VMM's output");
                close(epoll, slot, output);
                false
            }
        }
    }

    /// Takes what the ended child left in its pipes and closes them. Bounded, since somebody else may hold the write ends.
    fn drain(&mut self, epoll: &OwnedFd, buffer: &mut [u8]) {
        const MOST_READS: usize = 64;
        for source in [Source::Console, Source::Diagnostics] {
            for _ in 0..MOST_READS {
                if !self.read_once(epoll, source, buffer) {
                    break;
                }
            }
        }
        let Self { child, pipes } = self;
        close(epoll, &mut pipes.console, &child.console);
        close(epoll, &mut pipes.diagnostics, &child.diagnostics);
    }
}

/// Takes a pipe out of the epoll set and closes it. Closing alone would leave it there, ready for ever, while a process
/// forked from this one has a copy.
fn close(epoll: &OwnedFd, pipe: &mut Option<OwnedFd>, output: &Output) {
    if let Some(pipe) = pipe.take() {
        let _ = epoll::delete(epoll, &pipe);
    }
    output.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    /// A watcher without its thread.
    fn idle() -> Watcher {
        Watcher { epoll: epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(), table: Mutex::default() }
    }

    /// Handles what has happened; how many events that were.
    fn turn(watcher: &Watcher) -> usize {
        let mut events = Vec::with_capacity(4);
        let now = Timespec::default();
        epoll::wait(&watcher.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)).unwrap();
        for event in &events {
            let (number, source) = Source::parse(event.data.u64()).unwrap();
            watcher.handle(number, source, &mut [0; 16]);
        }
        events.len()
    }

    fn ourselves() -> Arc<Child> {
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        Arc::new(Child::new(getpid(), pidfd, Instant::now(), 16, None))
    }

    #[test]
    fn an_ended_childs_pid_is_nobodys_identity() {
        let mut program = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = Pid::from_raw(program.id().cast_signed()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        program.wait().unwrap();
        // As if the pid had gone to the next process, which is this one.
        let child = Child::new(getpid(), pidfd, Instant::now(), 1, None);
        assert_eq!(child.process_id().unwrap(), None);
    }

    /// A program that has written `text` and ended, and nobody has looked since.
    fn ended(watcher: &Watcher, text: &str) -> Arc<Child> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK).unwrap();
        let mut program = std::process::Command::new("/bin/echo");
        #[expect(clippy::zombie_processes, reason = "the watcher reaps it")]
        let program = program.args(["-n", text]).stdout(write).spawn().unwrap();
        let pid = Pid::from_raw(program.id().cast_signed()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let child = Arc::new(Child::new(pid, pidfd, Instant::now(), 1000, None));
        watcher.watch(&child, Pipes { console: Some(read), diagnostics: None }).unwrap();
        poll(&mut [PollFd::new(child.pidfd(), PollFlags::IN)], None).unwrap();
        child
    }

    #[test]
    fn the_last_words_are_heard_whichever_comes_first() {
        let watcher = idle();
        let child = ended(&watcher, &"farewell".repeat(30));
        watcher.handle(0, Source::Exit, &mut [0; 16]);
        assert!(child.ended().is_some());
        assert_eq!(child.console.tail(), "farewell".repeat(30).into_bytes());
    }

    #[test]
    fn an_ended_child_whose_handle_is_kept_does_not_keep_the_watcher_busy() {
        let watcher = idle();
        let child = ended(&watcher, "");
        turn(&watcher);
        assert_eq!(child.ended(), Some(Ended { exit: Exit::Status(0), by: None }));
        assert_eq!(turn(&watcher), 0);
    }

    #[test]
    fn a_copy_of_a_pipe_in_a_forked_process_does_not_keep_the_watcher_busy() {
        let watcher = idle();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        // Stands for the copy that a fork without exec has.
        let copy = read.try_clone().unwrap();
        watcher.watch(&ourselves(), Pipes { console: Some(read), diagnostics: None }).unwrap();
        drop(write);
        // A program that another test starts may have a copy of that end until it runs.
        let begun = Instant::now();
        let events = loop {
            match turn(&watcher) {
                0 => assert!(begun.elapsed().as_secs() < 20, "the end of the output is not heard"),
                events => break events,
            }
        };
        assert_eq!(events, 1);
        assert_eq!(turn(&watcher), 0);
        drop(copy);
    }
}
