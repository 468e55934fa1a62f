//! What the front (on the terminal) and the owner (of the machine) say to each other.
//!
//! Two connections: *control* carries one JSON object a line, *data* the console's bytes, both ways. Apart, so that a
//! guest that reads no input, or a terminal that takes no output, cannot keep a stop from getting through. Where the
//! owner lives in the same process both are socket pairs too, so there is one way of running only.

use std::io;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smartvm::MachineId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::arguments::LogLevelArgument;
use crate::report::{Problem, Report};

/// What the owner is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunRequest {
    pub(crate) config_file: PathBuf,
    pub(crate) id: Option<MachineId>,
    pub(crate) firecracker: Option<PathBuf>,
    pub(crate) marks: Vec<String>,
    pub(crate) stop_timeout_s: f64,
    pub(crate) log_level: Option<LogLevelArgument>,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) boot_timer: bool,
    pub(crate) metadata: Option<PathBuf>,
    pub(crate) enable_pci: bool,
    pub(crate) seccomp_filter: Option<PathBuf>,
    pub(crate) no_seccomp: bool,
}

/// From the front to the owner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ToOwner {
    /// The first, and only once.
    Run(Box<RunRequest>),
    /// Stop the machine; the second time: kill it.
    Stop(StopReason),
    /// Kill it now.
    Kill,
    /// Go on without a front.
    Detach,
}

/// Who or what wants the machine to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StopReason {
    /// The escape sequence.
    Asked,
    /// Ctrl-C or SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP, or the front is gone.
    HangUp,
    /// Nobody reads standard output.
    OutputClosed,
}

/// From the owner to the front.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ToFront {
    /// The owner is there; from here on it gives the terminal back should the front be killed.
    Ready { pid: u32 },
    /// The guest runs.
    Started { id: MachineId, warnings: Vec<Problem> },
    /// The console had more bytes than were taken in time: this many are missing here.
    Lost { bytes: u64 },
    /// The machine runs on without the front.
    Detached { id: MachineId, pid: u32, console_log: PathBuf },
    /// It is over, and everything was released. More console bytes may still come on the data connection.
    Ended(Box<End>),
}

/// How a run ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct End {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<MachineId>,
    /// In words.
    pub(crate) how: String,
    pub(crate) exit_status: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Report>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeline: Option<Timeline>,
}

/// When the start reached what, in milliseconds from the moment the VMM was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timeline {
    /// The Firecracker process runs.
    pub(crate) process_ms: f64,
    /// Its API socket took a connection.
    pub(crate) socket_ms: Option<f64>,
    /// Its API answered: the VM was built and InstanceStart done.
    pub(crate) instance_start_ms: Option<f64>,
    /// The guest's first byte on the console.
    pub(crate) first_byte_ms: Option<f64>,
    /// When the marks first appeared on the console.
    pub(crate) marks: Vec<Mark>,
    /// The VMM had ended and everything was released.
    pub(crate) end_ms: f64,
}

/// A text that was waited for on the console.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) text: String,
    /// `None`: it never appeared.
    pub(crate) ms: Option<f64>,
}

/// Longest message on the control connection, in bytes. The other end is ourselves: this is a net against mistakes.
const LIMIT: u64 = 4 << 20;

/// The reading end of a control connection.
pub(crate) struct Receiver(BufReader<OwnedReadHalf>);

/// The writing end of a control connection.
pub(crate) struct Sender(OwnedWriteHalf);

/// Both ends of a control connection.
pub(crate) fn control(stream: std::os::unix::net::UnixStream) -> io::Result<(Receiver, Sender)> {
    let (read, write) = connection(stream)?.into_split();
    Ok((Receiver(BufReader::new(read)), Sender(write)))
}

/// A connection for this runtime.
pub(crate) fn connection(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

impl Receiver {
    /// The next message; `None` when the other end is gone, or talks nonsense.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        let mut line = Vec::new();
        let read = (&mut self.0).take(LIMIT).read_until(b'\n', &mut line).await;
        match read {
            Ok(0) | Err(_) => None,
            Ok(_) => serde_json::from_slice(&line)
                .inspect_err(|error| tracing::error!(%error, "a message that is none"))
                .ok(),
        }
    }
}

impl Sender {
    /// Sends one message; whether anybody took it.
    pub(crate) async fn send(&mut self, message: &impl Serialize) -> bool {
        let Ok(mut line) = serde_json::to_vec(message) else { return false };
        line.push(b'\n');
        self.0.write_all(&line).await.is_ok()
    }
}
