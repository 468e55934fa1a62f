//! From a process that runs to a VMM whose API answered, or to an error that says why not.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use smartvm_firecracker::api::InstanceInfo;
use smartvm_firecracker::{ApiError, Client};
use tokio::time::{Instant as Deadline, sleep, sleep_until, timeout};

use crate::error::SpawnError;
use crate::launch::Readiness;
use crate::process::Exit;
use crate::spawner::{Asked, Boot, Connected, Owned, Started, connector, try_connect};
use crate::stuck::has_vcpu;
use crate::vmm::Rung;
use crate::watcher::Child;

/// How many of the VMM's last lines an error carries.
const LAST_WORDS: usize = 20;

/// A VMM whose API answered, or whose guest was faster.
pub(crate) struct Ready {
    pub(crate) client: Client,
    /// When it connected.
    pub(crate) socket: Option<Instant>,
    /// When the API had answered and, from a config file, the guest ran. `None`: it has ended by then.
    pub(crate) api: Option<Instant>,
    /// What the VMM said of itself; not asked when it boots from a config file.
    pub(crate) info: Option<InstanceInfo>,
}

/// Waits for what the spawning thread did not wait for. A guest that Firecracker boots at once, and that ends in order before
/// we have seen it run, is no failure.
pub(crate) async fn ready(
    started: &mut Started,
    api_sock: &Path,
    limits: Readiness,
    boot: Boot,
) -> Result<Ready, SpawnError> {
    let mut socket = None;
    let fresh = || Client::new(api_sock.to_owned());
    match waited(started, api_sock, limits, boot, &mut socket).await {
        Ok(Seen::Instance(stream, info, at)) => {
            let client = Client::from_stream(api_sock.to_owned(), stream)
                .map_err(|source| SpawnError::host("use the connection to the API", source))?
                .with_version(info.vmm_version.clone());
            Ok(Ready { client, socket, api: Some(at), info: Some(info) })
        }
        Ok(Seen::Guest(at)) => Ok(Ready { client: fresh(), socket, api: Some(at), info: None }),
        Err(Stopped::Exited(exit)) if boot == Boot::FromConfig && exit.is_guests_end() => {
            Ok(Ready { client: fresh(), socket, api: None, info: None })
        }
        Err(Stopped::Exited(exit)) => Err(exited(&started.owned, exit)),
        Err(Stopped::Failed(error)) => Err(error),
    }
}

/// What makes a VMM ready.
enum Seen {
    /// The answer to `GET /`, and the stream it came on.
    Instance(UnixStream, InstanceInfo, Instant),
    /// The API answered and the guest runs.
    Guest(Instant),
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
    boot: Boot,
    socket: &mut Option<Instant>,
) -> Result<Seen, Stopped> {
    let child = &started.owned.child;
    let (connected, runs) = match started.connected.take() {
        Some(connected) => (connected, false),
        None => match first_sign(&started.owned, api_sock, limits.socket, boot).await? {
            Sign::Connected(connected, runs) => (connected, runs),
            Sign::Guest(at) => return Ok(Seen::Guest(at)),
        },
    };
    *socket = Some(connected.at);
    if let Some((info, at)) = connected.answer {
        return Ok(Seen::Instance(connected.stream, info, at));
    }
    tokio::select! {
        biased;
        ended = child.wait() => Err(Stopped::Exited(ended.exit)),
        seen = timeout(limits.api, answered(child, connected.stream, connected.asked, runs)) => match seen {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(source)) => Err(broken(&started.owned, source).await),
            Err(_) => Err(Stopped::Failed(SpawnError::ApiTimeout {
                path: api_sock.to_owned(),
                within: limits.api,
                last_words: child.diagnostics.last_lines(LAST_WORDS),
            })),
        },
    }
}

/// What is seen first of a VMM that the spawning thread did not wait for.
enum Sign {
    Connected(Connected, bool),
    /// The guest runs, so the socket was made before it (Firecracker binds it before it builds the VM) and is there.
    Guest(Instant),
}

/// A guest that boots by itself is listened for, which costs nothing, while its socket is hardly tried for.
async fn first_sign(owned: &Owned, api_sock: &Path, limit: Duration, boot: Boot) -> Result<Sign, Stopped> {
    if boot == Boot::ByApi {
        return Ok(Sign::Connected(connect_late(owned, api_sock, limit, boot, OFTEN).await?, false));
    }
    tokio::select! {
        biased;
        () = guest_runs(&owned.child) => {}
        connected = async {
            sleep(RARELY).await;
            connect_late(owned, api_sock, limit, boot, RARELY).await
        } => return Ok(Sign::Connected(connected?, false)),
        ended = owned.child.wait() => return Err(Stopped::Exited(ended.exit)),
    }
    if owned.child.socket_is_there() {
        return Ok(Sign::Guest(Instant::now()));
    }
    Ok(Sign::Connected(connect_late(owned, api_sock, limit, boot, OFTEN).await?, true))
}

/// Between two tries of [`connect_late`] for a VMM whose guest will tell when it listens.
const RARELY: Duration = Duration::from_millis(100);

/// Between two tries of [`connect_late`] for a VMM that should listen any moment.
const OFTEN: Duration = Duration::from_millis(2);

async fn answered(child: &Child, stream: UnixStream, asked: Asked, runs: bool) -> Result<Seen, Broken> {
    let stream = tokio::net::UnixStream::from_std(stream).map_err(Broken::Host)?;
    match asked {
        Asked::Instance(mut first) => loop {
            stream.readable().await.map_err(Broken::Host)?;
            if let Some(info) = first.receive(|into| stream.try_read(into)).map_err(Broken::Api)? {
                let stream = stream.into_std().map_err(Broken::Host)?;
                return Ok(Seen::Instance(stream, info, Instant::now()));
            }
        },
        Asked::Knock(mut knock) => {
            loop {
                stream.readable().await.map_err(Broken::Host)?;
                if knock.receive(|into| stream.try_read(into)).map_err(Broken::Api)? {
                    break;
                }
            }
            drop(stream);
            if !runs {
                guest_runs(child).await;
            }
            Ok(Seen::Guest(Instant::now()))
        }
    }
}

/// Firecracker's log once the VM of a config file was built and started.
const STARTED: &str = "Successfully started microvm";

/// Waits for a sign that the guest runs: a byte of it, or Firecracker's log saying so. Where neither comes to us, or both are
/// silent, a vCPU's thread is looked for; rarely, since a look costs more than all the rest of a start's watching.
async fn guest_runs(child: &Child) {
    const MOST_RARELY: Duration = Duration::from_millis(500);
    let blind = child.console.is_closed() && child.diagnostics.is_closed();
    let mut pause = Duration::from_millis(if blind { 8 } else { 250 });
    let (mut console, mut log) = (child.console.reader(), child.diagnostics.reader());
    let (mut console_open, mut log_open) = (true, true);
    let mut said = String::new();
    let mut next_look = Deadline::now() + pause;
    loop {
        tokio::select! {
            biased;
            byte = console.next(), if console_open => match byte {
                Some(_) => return,
                None => console_open = false,
            },
            chunk = log.next(), if log_open => match chunk {
                // What comes before it is far less than the ring keeps.
                Some(chunk) => {
                    said += &String::from_utf8_lossy(&chunk.bytes);
                    if said.contains(STARTED) {
                        return;
                    }
                }
                None => log_open = false,
            },
            () = sleep_until(next_look) => {
                if has_vcpu(child.pid.as_raw_pid()) {
                    return;
                }
                pause = (pause * 2).min(MOST_RARELY);
                next_look = Deadline::now() + pause;
            }
        }
    }
}

/// Why there was no first answer.
enum Broken {
    Host(io::Error),
    Api(ApiError),
}

/// For a VMM that the spawning thread did not wait for, or not for as long as it took.
async fn connect_late(
    owned: &Owned,
    api_sock: &Path,
    limit: Duration,
    boot: Boot,
    pause: Duration,
) -> Result<Connected, Stopped> {
    let child = &owned.child;
    let mut connector = connector(api_sock)?;
    loop {
        if let Some(connected) = try_connect(child, api_sock, &mut connector, boot)? {
            return Ok(connected);
        }
        tokio::select! {
            biased;
            ended = child.wait() => return Err(Stopped::Exited(ended.exit)),
            () = sleep(pause) => {}
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
