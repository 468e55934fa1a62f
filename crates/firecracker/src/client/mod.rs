//! A client for one VMM: one keep-alive HTTP/1 connection over its API socket.
//!
//! * Requests are sent one after the other, in the order in which they were asked for: Firecracker
//!   answers in order and works on one at a time anyway.
//! * A request that timed out, or whose future was dropped, gives its connection up, so that its answer
//!   can never be taken for the next one's. The next request opens a new connection (Firecracker takes ten).
//! * Nothing that may have been processed is ever sent again.
//! * Every answer has a bound, and every request but one a deadline ([`Client::with_deadline`]).
//! * Bodies are never logged. `tracing` sees verb, path, status, sizes and time.
//!
//! `requests` has a method for every verb and path; [`Client::raw`] sends anything else. All of them need a
//! tokio runtime with I/O and time, and one client stays with one runtime.
//!
//! A connection costs one registered descriptor between requests: hyper's buffers live for the request
//! only (see `connection`), so that thousands of idle machines cost next to nothing.

mod connection;
mod message;
mod requests;

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::UnixStream;

use crate::error::ApiError;
use crate::socket;
use crate::version::Version;

use connection::{Broken, exchange};
use message::request;
pub use message::{Answer, Verb};

/// Deadline of a request when none is set: Firecracker answers in well under a millisecond.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Deadline of `PUT /snapshot/load`, which may read a whole memory file.
pub const LOAD_DEADLINE: Duration = Duration::from_secs(30);
/// Deadline of `PUT /actions` and `PATCH /vm`: Firecracker itself waits up to 30 s for its vCPUs.
pub const VCPU_DEADLINE: Duration = Duration::from_secs(40);

/// An answer that takes longer makes the client's attendant look after the VMM ([`Client::with_attendant`]).
pub const SLOW: Duration = Duration::from_millis(100);

/// Bound of an answer in bytes.
pub const ANSWER_LIMIT: usize = 1 << 20;
/// Bound of the answer of `GET /vm/config`, which lists every device and the whole CPU template.
pub const CONFIG_LIMIT: usize = 4 << 20;
/// Bound of the answer of `GET /mmds`: the data store may be as large as `--mmds-size-limit` says.
pub const MMDS_LIMIT: usize = 64 << 20;

/// A client for one VMM. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    vmm: Arc<Vmm>,
    /// `None`: by request. `Some(None)`: never.
    deadline: Option<Option<Duration>>,
}

struct Vmm {
    api_sock: PathBuf,
    /// Taken out while a request runs: whatever ends that request early drops the connection with it.
    link: tokio::sync::Mutex<Link>,
    version: Mutex<Option<Version>>,
    attendant: OnceLock<Attendant>,
    /// The only process to speak to.
    peer: OnceLock<i32>,
}

/// Called again and again while an answer is outstanding for long.
struct Attendant(Box<dyn Fn() + Send + Sync>);

enum Link {
    Closed,
    /// Given by the caller, not yet known to a runtime.
    Given(StdStream),
    Open(UnixStream),
}

impl Client {
    /// A client for the VMM that listens on `api_sock`; connects with the first request.
    pub fn new(api_sock: PathBuf) -> Self {
        Self::with_link(api_sock, Link::Closed)
    }

    /// A client that first uses `stream`, already connected to `api_sock`, and reconnects there later.
    ///
    /// # Errors
    /// The stream could not be made non-blocking.
    pub fn from_stream(api_sock: PathBuf, stream: StdStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::with_link(api_sock, Link::Given(stream)))
    }

    fn with_link(api_sock: PathBuf, link: Link) -> Self {
        let vmm = Vmm {
            api_sock,
            link: tokio::sync::Mutex::new(link),
            version: Mutex::new(None),
            attendant: OnceLock::new(),
            peer: OnceLock::new(),
        };
        Self { vmm: Arc::new(vmm), deadline: None }
    }

    /// The same connection with the given deadline for every request made through the returned client;
    /// `None` waits for ever. It counts from the call, waiting for earlier requests included.
    ///
    /// Without this: 10 s; 30 s for loading a snapshot; 40 s for actions, pause and resume; none for
    /// creating a snapshot, which takes as long as writing the guest's memory takes.
    #[must_use]
    pub fn with_deadline(&self, deadline: Option<Duration>) -> Self {
        Self { vmm: Arc::clone(&self.vmm), deadline: Some(deadline) }
    }

    /// Tells the client (and its clones) the VMM's version, so that it need not be asked for.
    #[must_use]
    pub fn with_version(self, version: Version) -> Self {
        self.vmm.learn(version);
        self
    }

    /// Has `look` called each [`SLOW`] while an answer is outstanding, by this client or a clone: whoever owns the process
    /// behind the socket can tell a VMM that is slow from one that will never answer, and end it. The first one
    /// given stays.
    #[must_use]
    pub fn with_attendant(self, look: impl Fn() + Send + Sync + 'static) -> Self {
        let _ = self.vmm.attendant.set(Attendant(Box::new(look)));
        self
    }

    /// Has the client and its clones connect to this process only: when the VMM has gone, another may listen on its path. The
    /// first one given stays.
    #[must_use]
    pub fn with_peer(self, pid: i32) -> Self {
        let _ = self.vmm.peer.set(pid);
        self
    }

    /// The VMM's version, when it was told or has been asked for.
    pub fn known_version(&self) -> Option<Version> {
        self.vmm.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the VMM listens.
    pub fn api_sock(&self) -> &Path {
        &self.vmm.api_sock
    }

    /// Sends any request and returns the answer as it came, whatever its status. `body` should be JSON.
    ///
    /// # Errors
    /// The VMM could not be reached, did not answer in time, or answered what is not HTTP or too much.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection up once the request is on its way; the request may then
    /// have taken effect.
    pub async fn raw(&self, verb: Verb, path: &str, body: Option<Bytes>) -> Result<Answer, ApiError> {
        let begun = Instant::now();
        let sent_bytes = body.as_ref().map_or(0, Bytes::len);
        let deadline = self.deadline.unwrap_or_else(|| default_deadline(verb, path));
        let sent = AtomicBool::new(false);
        let exchanged = self.vmm.attended(self.vmm.exchange(verb, path, body, &sent));
        let result = match deadline {
            None => exchanged.await,
            Some(limit) => tokio::time::timeout(limit, exchanged).await.unwrap_or_else(|_| {
                let sent = sent.load(Ordering::Relaxed);
                Err(ApiError::Timeout { verb, path: path.to_owned(), deadline: limit, sent })
            }),
        };
        match &result {
            Ok(answer) => tracing::debug!(
                %verb, path, status = answer.status, sent_bytes, answer_bytes = answer.body.len(),
                micros = begun.elapsed().as_micros() as u64, "asked the VMM"
            ),
            Err(error) => tracing::debug!(%verb, path, sent_bytes, %error, "asked the VMM in vain"),
        }
        result
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("api_sock", &self.vmm.api_sock).finish_non_exhaustive()
    }
}

impl Vmm {
    fn learn(&self, version: Version) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version);
    }

    async fn attended<T>(&self, exchange: impl Future<Output = T>) -> T {
        let Some(Attendant(look)) = self.attendant.get() else { return exchange.await };
        let mut exchange = pin!(exchange);
        loop {
            match tokio::time::timeout(SLOW, exchange.as_mut()).await {
                Ok(answer) => return answer,
                Err(_) => look(),
            }
        }
    }

    async fn exchange(
        &self,
        verb: Verb,
        path: &str,
        body: Option<Bytes>,
        sent: &AtomicBool,
    ) -> Result<Answer, ApiError> {
        let mut link = self.link.lock().await;
        let limit = answer_limit(verb, path);
        loop {
            let (stream, reused) = match std::mem::replace(&mut *link, Link::Closed).ready() {
                Some(stream) => (stream, true),
                None => (self.connect(verb, path).await?, false),
            };
            let request = request(verb, path, body.clone())?;
            sent.store(true, Ordering::Relaxed);
            match exchange(stream, request, limit).await {
                Ok((answer, stream)) => {
                    *link = stream.map_or(Link::Closed, Link::Open);
                    return Ok(answer);
                }
                // The VMM closed the idle connection and nothing of the request went out: once more, on a
                // new connection.
                Err(Broken::BeforeSending(_)) if reused => sent.store(false, Ordering::Relaxed),
                Err(broken) => return Err(broken.into_error(verb, path, limit)),
            }
        }
    }

    /// Connects; waits only while the VMM's backlog is full.
    async fn connect(&self, verb: Verb, path: &str) -> Result<UnixStream, ApiError> {
        let failed = |source| ApiError::Connect {
            verb,
            path: path.to_owned(),
            api_sock: self.api_sock.clone(),
            source,
        };
        loop {
            match socket::connect(&self.api_sock) {
                Ok(stream) => {
                    let listener = socket::listener_pid(&stream);
                    if let (Some(listener), Some(peer)) = (listener, self.peer.get())
                        && listener != *peer
                    {
                        let other = format!("process {listener} listens there now, not process {peer}");
                        return Err(failed(io::Error::other(other)));
                    }
                    return UnixStream::from_std(stream).map_err(failed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl Link {
    /// The open stream, unless the peer has closed it meanwhile.
    fn ready(self) -> Option<UnixStream> {
        let stream = match self {
            Self::Closed => return None,
            Self::Given(stream) => UnixStream::from_std(stream).ok()?,
            Self::Open(stream) => stream,
        };
        (!socket::is_spent(&stream)).then_some(stream)
    }
}

fn default_deadline(verb: Verb, path: &str) -> Option<Duration> {
    match (verb, path) {
        (Verb::Put, "/snapshot/create") => None,
        (Verb::Put, "/snapshot/load") => Some(LOAD_DEADLINE),
        (Verb::Put, "/actions") | (Verb::Patch, "/vm") => Some(VCPU_DEADLINE),
        _ => Some(DEADLINE),
    }
}

fn answer_limit(verb: Verb, path: &str) -> usize {
    match (verb, path) {
        (Verb::Get, "/mmds") => MMDS_LIMIT,
        (Verb::Get, "/vm/config") => CONFIG_LIMIT,
        _ => ANSWER_LIMIT,
    }
}
