//! From a process that runs to a VMM whose API answered, or to an error that says why not.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use smartvm_firecracker::api::InstanceInfo;
use smartvm_firecracker::first_answer::FirstAnswer;
use smartvm_firecracker::{ApiError, Client};
use tokio::time::{Instant as Deadline, sleep, timeout};

use crate::error::SpawnError;
use crate::launch::Readiness;
use crate::process::Exit;
use crate::spawner::{Connected, Owned, Started, try_connect};
use crate::vmm::Rung;

/// How many of the VMM's last lines an error carries.
const LAST_WORDS: usize = 20;

/// A VMM whose API answered.
pub(crate) struct Ready {
    pub(crate) client: Client,
    pub(crate) info: InstanceInfo,
    /// When it connected.
    pub(crate) socket: Instant,
    /// When it answered.
    pub(crate) api: Instant,
}

/// Waits for what the spawning thread did not wait for.
pub(crate) async fn ready(
    started: &mut Started,
    api_sock: &Path,
    limits: Readiness,
) -> Result<Ready, SpawnError> {
    let child = &started.owned.child;
    let connected = match started.connected.take() {
        Some(connected) => connected,
        None => connect_late(&started.owned, api_sock, limits.socket).await?,
    };
    let socket = connected.at;
    let (stream, info, api) = match connected.answer {
        Some((info, at)) => (connected.stream, info, at),
        None => tokio::select! {
            biased;
            ended = child.wait() => return Err(exited(&started.owned, ended.exit)),
            answer = timeout(limits.api, answered(connected.stream, connected.first)) => match answer {
                Ok(Ok((stream, info))) => (stream, info, Instant::now()),
                Ok(Err(source)) => return Err(broken(&started.owned, source).await),
                Err(_) => return Err(SpawnError::ApiTimeout {
                    path: api_sock.to_owned(),
                    within: limits.api,
                    last_words: child.diagnostics.last_lines(LAST_WORDS),
                }),
            },
        },
    };
    let client = Client::from_stream(api_sock.to_owned(), stream)
        .map_err(|source| SpawnError::host("use the connection to the API", source))?
        .with_version(info.vmm_version.clone());
    Ok(Ready { client, info, socket, api })
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
async fn connect_late(owned: &Owned, api_sock: &Path, limit: Duration) -> Result<Connected, SpawnError> {
    let child = &owned.child;
    let until = Deadline::from_std(child.running) + limit;
    loop {
        tokio::select! {
            biased;
            ended = child.wait() => return Err(exited(owned, ended.exit)),
            () = sleep(Duration::from_millis(2)) => {}
        }
        if let Some(connected) = try_connect(child, api_sock)? {
            return Ok(connected);
        }
        if Deadline::now() >= until {
            return Err(SpawnError::SocketTimeout {
                path: api_sock.to_owned(),
                within: limit,
                last_words: child.diagnostics.last_lines(LAST_WORDS),
            });
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
async fn broken(owned: &Owned, broken: Broken) -> SpawnError {
    let source = match broken {
        Broken::Host(source) => return SpawnError::host("wait for the API's answer", source),
        Broken::Api(source) => source,
    };
    match timeout(Duration::from_millis(500), owned.child.wait()).await {
        Ok(ended) => exited(owned, ended.exit),
        Err(_) => SpawnError::Api { source, last_words: owned.child.diagnostics.last_lines(LAST_WORDS) },
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
