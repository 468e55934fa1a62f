//! From a process that runs to a VMM whose API answered, or to an error that says why not.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use smartvm_firecracker::api::InstanceInfo;
use smartvm_firecracker::client::SLOW;
use smartvm_firecracker::first_answer::FirstAnswer;
use smartvm_firecracker::{ApiError, Client};
use tokio::time::{sleep, timeout};

use crate::error::SpawnError;
use crate::launch::Readiness;
use crate::process::Exit;
use crate::spawner::{Connected, Owned, Started, connector, try_connect};
use crate::stuck::HangWatch;
use crate::vmm::Rung;
use crate::watcher::Child;

/// How many of the VMM's last lines an error carries.
const LAST_WORDS: usize = 20;

/// A VMM whose API answered, or whose guest was faster.
pub(crate) struct Ready {
    pub(crate) client: Client,
    /// When it connected.
    pub(crate) socket: Option<Instant>,
    /// What the API answered and when.
    pub(crate) answer: Option<(InstanceInfo, Instant)>,
}

/// Waits for what the spawning thread did not wait for. A guest that `boots` at once and ends in order before the API
/// has answered is no failure.
pub(crate) async fn ready(
    started: &mut Started,
    api_sock: &Path,
    limits: Readiness,
    boots: bool,
) -> Result<Ready, SpawnError> {
    let mut socket = None;
    let stopped = match waited(started, api_sock, limits, &mut socket).await {
        Ok((stream, info, at)) => {
            let client = Client::from_stream(api_sock.to_owned(), stream)
                .map_err(|source| SpawnError::host("use the connection to the API", source))?
                .with_version(info.vmm_version.clone());
            return Ok(Ready { client, socket, answer: Some((info, at)) });
        }
        Err(stopped) => stopped,
    };
    match stopped {
        Stopped::Exited(exit) if boots && exit.is_guests_end() => {
            Ok(Ready { client: Client::new(api_sock.to_owned()), socket, answer: None })
        }
        Stopped::Exited(exit) => Err(exited(&started.owned, exit)),
        Stopped::Failed(error) => Err(error),
    }
}

/// Why there is no answer.
enum Stopped {
    Exited(Exit),
    Failed(SpawnError),
}

impl From<SpawnError> for Stopped {
    fn from(error: SpawnError) -> Self {
        Self::Failed(error)
    }
}

async fn waited(
    started: &mut Started,
    api_sock: &Path,
    limits: Readiness,
    socket: &mut Option<Instant>,
) -> Result<(UnixStream, InstanceInfo, Instant), Stopped> {
    let child = &started.owned.child;
    let connected = match started.connected.take() {
        Some(connected) => connected,
        None => connect_late(&started.owned, api_sock, limits.socket).await?,
    };
    *socket = Some(connected.at);
    if let Some((info, at)) = connected.answer {
        return Ok((connected.stream, info, at));
    }
    tokio::select! {
        biased;
        ended = child.wait() => Err(Stopped::Exited(ended.exit)),
        () = ending_hung(child) => Err(Stopped::Exited(child.wait().await.exit)),
        answer = timeout(limits.api, answered(connected.stream, connected.first)) => match answer {
            Ok(Ok((stream, info))) => Ok((stream, info, Instant::now())),
            Ok(Err(source)) => Err(broken(&started.owned, source).await),
            Err(_) => Err(Stopped::Failed(SpawnError::ApiTimeout {
                path: api_sock.to_owned(),
                within: limits.api,
                last_words: child.diagnostics.last_lines(LAST_WORDS),
            })),
        },
    }
}

/// Returns once the child was seen hanging at its exit and was killed; else never.
async fn ending_hung(child: &Child) {
    let watch = HangWatch::default();
    loop {
        sleep(SLOW).await;
        if watch.look(child) {
            return;
        }
    }
}

async fn answered(stream: UnixStream, mut first: FirstAnswer) -> Result<(UnixStream, InstanceInfo), Broken> {
    let stream = tokio::net::UnixStream::from_std(stream).map_err(Broken::Host)?;
    loop {
        stream.readable().await.map_err(Broken::Host)?;
        if let Some(info) = first.receive(|into| stream.try_read(into)).map_err(Broken::Api)? {
            return Ok((stream.into_std().map_err(Broken::Host)?, info));
        }
    }
}

/// Why there was no first answer.
enum Broken {
    Host(io::Error),
    Api(ApiError),
}

/// For a VMM that did not listen within the spawning thread's patience.
async fn connect_late(owned: &Owned, api_sock: &Path, limit: Duration) -> Result<Connected, Stopped> {
    let child = &owned.child;
    let mut connector = connector(api_sock)?;
    loop {
        tokio::select! {
            biased;
            ended = child.wait() => return Err(Stopped::Exited(ended.exit)),
            () = sleep(Duration::from_millis(2)) => {}
        }
        if let Some(connected) = try_connect(child, api_sock, &mut connector)? {
            return Ok(connected);
        }
        if child.running.elapsed() >= limit {
            return Err(Stopped::Failed(SpawnError::SocketTimeout {
                path: api_sock.to_owned(),
                within: limit,
                last_words: child.diagnostics.last_lines(LAST_WORDS),
            }));
        }
    }
}

fn exited(owned: &Owned, exit: Exit) -> SpawnError {
    let child = &owned.child;
    let mut last_words = child.diagnostics.last_lines(LAST_WORDS);
    if last_words.is_empty() {
        last_words = child.console.last_lines(LAST_WORDS);
    }
    SpawnError::ProcessExited { exit, last_words }
}

/// A connection that broke is most often the VMM's end: its exit says more than the broken connection.
async fn broken(owned: &Owned, broken: Broken) -> Stopped {
    match timeout(Duration::from_millis(500), owned.child.wait()).await {
        Ok(ended) => Stopped::Exited(ended.exit),
        Err(_) => Stopped::Failed(match broken {
            Broken::Host(source) => SpawnError::host("wait for the API's answer", source),
            Broken::Api(source) => {
                SpawnError::Api { source, last_words: owned.child.diagnostics.last_lines(LAST_WORDS) }
            }
        }),
    }
}

/// Ends a VMM that did not become ready.
pub(crate) async fn end(owned: &Owned) {
    owned.child.note(Rung::Kill);
    owned.child.signal(Signal::KILL);
    // Only a process that the kernel cannot end yet takes longer; the watcher will see it all the same.
    if timeout(Duration::from_secs(5), owned.child.wait()).await.is_err() {
        tracing::warn!(pid = owned.child.pid.as_raw_pid(), "the killed VMM has not ended yet");
    }
}
