//! What the front (on the terminal) and the owner (of the machine) say to each other.
//!
//! Two connections: *control* carries one JSON object a line, *data* the console's bytes, both ways. Apart, so that a
//! guest that reads no input, or a terminal that takes no output, cannot keep a stop from getting through. Where the
//! owner lives in the same process both are socket pairs too, so there is one way of running only.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smartvm::{Config, ImageMachineSpec, MachineId};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::arguments::LogLevelArgument;
use crate::report::{Problem, Report};

/// A path as this host has it: it need not be UTF-8, which JSON text would demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostPath(OsString);

impl From<&Path> for HostPath {
    fn from(path: &Path) -> Self {
        Self(path.into())
    }
}

impl From<&HostPath> for PathBuf {
    fn from(path: &HostPath) -> Self {
        Self::from(&path.0)
    }
}

/// A config that the front has read. Its standard input may be where it came from, and the owner has another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ReadConfig {
    text: String,
    base: HostPath,
    file: Option<HostPath>,
}

impl From<&Config> for ReadConfig {
    fn from(config: &Config) -> Self {
        let (text, base) = (config.text().to_owned(), config.base().into());
        Self { text, base, file: config.file().map(HostPath::from) }
    }
}

impl From<&ReadConfig> for Config {
    fn from(read: &ReadConfig) -> Self {
        let config = Self::from_json(read.text.clone(), &read.base);
        match &read.file {
            Some(file) => config.named(file),
            None => config,
        }
    }
}

/// What kind of machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum What {
    /// One of a Firecracker config.
    Config(ReadConfig),
    /// One that boots an image.
    Image(Box<ImageMachineSpec>),
}

/// What the owner is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunRequest {
    pub(crate) what: What,
    pub(crate) id: Option<MachineId>,
    pub(crate) firecracker: Option<HostPath>,
    pub(crate) marks: Vec<String>,
    pub(crate) stop_timeout_s: f64,
    pub(crate) log_level: Option<LogLevelArgument>,
    pub(crate) log_file: Option<HostPath>,
    pub(crate) boot_timer: bool,
    pub(crate) metadata: Option<HostPath>,
    pub(crate) enable_pci: bool,
    pub(crate) seccomp_filter: Option<HostPath>,
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
    Detached { id: MachineId, pid: u32, console_log: HostPath },
    /// It is over, and everything was released. More console bytes may still come on the data connection.
    Ended(Box<End>),
}

/// How a run ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// What may not be meant so in the config; in JSON only, as text they are told at the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<Problem>,
    /// How many bytes of the console are missing on standard output.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) lost_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl End {
    pub(crate) fn not_started(id: Option<MachineId>, report: Report) -> Self {
        Self {
            id,
            how: "the machine did not start".into(),
            exit_status: report.exit_status,
            error: Some(report),
            timeline: None,
            warnings: Vec::new(),
            lost_bytes: 0,
        }
    }
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

/// Longest message on the control connection, in bytes: room for the longest config with every byte escaped. The other
/// end is ourselves: this is a net against mistakes.
const LIMIT: u64 = 32 << 20;

/// The reading end of a control connection.
pub(crate) struct Receiver {
    connection: BufReader<OwnedReadHalf>,
    /// The beginning of a message whose end has not come yet.
    line: Vec<u8>,
}

/// The writing end of a control connection.
pub(crate) struct Sender(OwnedWriteHalf);

/// Both ends of a control connection.
pub(crate) fn control(stream: std::os::unix::net::UnixStream) -> io::Result<(Receiver, Sender)> {
    let (read, write) = connection(stream)?.into_split();
    let receiver = Receiver { connection: BufReader::new(read), line: Vec::new() };
    Ok((receiver, Sender(write)))
}

/// A connection for this runtime.
pub(crate) fn connection(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

impl Receiver {
    /// The next message; `None` when the other end is gone, or talks nonsense.
    ///
    /// # Cancel safety
    /// What was read of a message is kept for the next call.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        let room = LIMIT.saturating_sub(self.line.len() as u64);
        let read = (&mut self.connection).take(room).read_until(b'\n', &mut self.line).await;
        let line = std::mem::take(&mut self.line);
        match read {
            Ok(_) if !line.is_empty() => serde_json::from_slice(&line)
                .inspect_err(|error| tracing::error!(%error, "a message that is none"))
                .ok(),
            _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixStream as StdStream;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_message_that_comes_in_parts_survives_a_reader_that_gives_up_in_between() {
        let (ours, theirs) = StdStream::pair().unwrap();
        let mut receiver = control(ours).unwrap().0;
        let mut theirs = connection(theirs).unwrap();
        theirs.write_all(b"{\"Sto").await.unwrap();
        // Long enough for the first half to be read.
        let given_up = timeout(Duration::from_millis(50), receiver.next::<ToOwner>()).await;
        assert!(given_up.is_err(), "half a message was taken");
        theirs.write_all(b"p\":\"Asked\"}\n").await.unwrap();
        let message = receiver.next().await;
        assert!(matches!(message, Some(ToOwner::Stop(StopReason::Asked))), "{message:?}");
    }

    #[test]
    fn a_path_that_is_not_utf_8_comes_through() {
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/x\xff"));
        let sent = serde_json::to_vec(&HostPath::from(path)).unwrap();
        let come: HostPath = serde_json::from_slice(&sent).unwrap();
        assert_eq!(PathBuf::from(&come), path);
    }
}
