//! What the host and the agent inside of the lab say to each other over TCP.
//!
//! One connection carries one request. A frame is a kind (1 byte), the body's length (4 bytes, little
//! endian, at most [`MAX_BODY`]) and the body. The first frame is `Hello` with the token, the second a
//! [`Request`] as JSON. What follows depends on the request and is told there.

use std::io::{self, Read, Write};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

/// The port that the agent listens on, inside of the lab.
pub const AGENT_PORT: u16 = 7777;
/// A longer body is a protocol error.
pub const MAX_BODY: usize = 1 << 20;
/// Data is sent in pieces of this size.
pub const PIECE: usize = 256 << 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the agent: the token, as text.
    Hello = 1,
    /// To the agent: a [`Request`] as JSON.
    Request,
    /// To the agent: bytes for the command's standard input.
    Stdin,
    /// To the agent: no more input.
    StdinEnd,
    /// From the agent: bytes of the command's standard output.
    Stdout,
    /// From the agent: bytes of the command's standard error.
    Stderr,
    /// From the agent: the request is done; what it answers, as JSON.
    Answer,
    /// From the agent: the request failed; why, as text.
    Refused,
    /// A file, directory or link of a transfer: an [`Entry`] as JSON.
    Entry,
    /// Bytes of the file that was named last.
    Data,
    /// The end of a transfer.
    End,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        const ALL: [Kind; 11] = [
            Kind::Hello,
            Kind::Request,
            Kind::Stdin,
            Kind::StdinEnd,
            Kind::Stdout,
            Kind::Stderr,
            Kind::Answer,
            Kind::Refused,
            Kind::Entry,
            Kind::Data,
            Kind::End,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What the agent is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Run a command. `Stdin` and `StdinEnd` frames go in; `Stdout` and `Stderr` come out, then an
    /// [`Exit`] as the answer. When the connection closes before, the command's processes are killed.
    Run(Run),
    /// Take files: `Entry` and `Data` frames and one `End` go in, an empty answer comes out.
    Push {
        /// Absolute directory (made if missing) that the entries' paths are relative to.
        into: String,
    },
    /// Give a file or directory: `Entry` and `Data` frames and one `End` come out.
    Pull {
        /// Absolute path. A file comes as one entry with an empty path.
        from: String,
    },
    /// A new lease: sets the clock, the token of later connections and the idle limit. Empty answer.
    Lease {
        /// Nanoseconds since 1970.
        unix_nanos: u64,
        /// The token that counts from now on.
        token: String,
        /// Power off after so many seconds without a connection.
        idle_seconds: u64,
    },
    /// Empty answer.
    Ping,
    /// Power off, after an empty answer.
    PowerOff,
    /// Stay connected: the agent powers off when this connection closes. Empty answer at once.
    Hold,
}

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Program and arguments. The program is looked up on the PATH of `env`, else the agent's.
    pub argv: Vec<String>,
    /// Variables added to the agent's few.
    pub env: Vec<(String, String)>,
    /// Working directory, `/root` when none.
    pub cwd: Option<String>,
    /// The whole process tree is killed after so long. In milliseconds.
    pub timeout_ms: u64,
    /// Whether processes that outlive the command may live on.
    pub keep_survivors: bool,
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, when it exited by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was killed because its time was over.
    pub timed_out: bool,
    /// Processes of the command that outlived it, as `pid name`. Killed unless they were to be kept.
    pub survivors: Vec<String>,
}

/// One item of a transfer. Paths are relative and have no `..`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where, relative to the transfer's root; empty for the root itself.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub what: What,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A directory.
    Directory,
    /// A file; so many bytes follow as `Data`.
    File(u64),
    /// A symbolic link to this.
    Link(String),
}

/// Writes one frame. The body must be within [`MAX_BODY`].
pub fn write_frame(out: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    if body.len() > MAX_BODY {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "frame body over its bound"));
    }
    let mut header = [kind as u8; 5];
    header[1..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    if body.len() <= 1024 {
        // One packet for the many small frames.
        let mut whole = Vec::with_capacity(5 + body.len());
        whole.extend_from_slice(&header);
        whole.extend_from_slice(body);
        return out.write_all(&whole);
    }
    out.write_all(&header)?;
    out.write_all(body)
}

/// Writes a value as one JSON frame.
pub fn write_json(out: &mut impl Write, kind: Kind, value: &impl Serialize) -> io::Result<()> {
    write_frame(out, kind, &serde_json::to_vec(value)?)
}

/// Reads one frame into `body`; `None` at a clean end, an error when the stream ends inside a frame.
pub fn read_frame(from: &mut impl Read, body: &mut Vec<u8>) -> io::Result<Option<Kind>> {
    let mut kind = [0];
    loop {
        match from.read(&mut kind) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let kind = Kind::of(kind[0]).ok_or_else(|| invalid(format!("unknown frame kind {}", kind[0])))?;
    if length > MAX_BODY {
        return Err(invalid(format!("frame body of {length} bytes")));
    }
    body.resize(length, 0);
    from.read_exact(body)?;
    Ok(Some(kind))
}

/// Reads the body of a JSON frame.
pub fn from_json<'de, T: Deserialize<'de>>(body: &'de [u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Refuses entry paths that could leave the transfer's root.
pub fn check_path(path: &str) -> io::Result<&Path> {
    let path = Path::new(path);
    if path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(path);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("unsafe path {}", path.display())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_come_back_as_they_went(bodies in proptest::collection::vec((1_u8..=11, proptest::collection::vec(any::<u8>(), 0..3000)), 0..8)) {
            let mut stream = Vec::new();
            for (kind, body) in &bodies {
                write_frame(&mut stream, Kind::of(*kind).unwrap(), body).unwrap();
            }
            let mut rest = &stream[..];
            let mut body = Vec::new();
            for (kind, expected) in &bodies {
                prop_assert_eq!(read_frame(&mut rest, &mut body).unwrap().map(|kind| kind as u8), Some(*kind));
                prop_assert_eq!(&body, expected);
            }
            prop_assert_eq!(read_frame(&mut rest, &mut body).unwrap(), None);
        }

        #[test]
        fn a_cut_stream_is_an_error_and_never_a_frame(body in proptest::collection::vec(any::<u8>(), 0..2000), cut in 1_usize..2005) {
            let mut stream = Vec::new();
            write_frame(&mut stream, Kind::Data, &body).unwrap();
            prop_assume!(cut < stream.len());
            prop_assert!(read_frame(&mut &stream[..cut], &mut Vec::new()).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_frame(&mut &bytes[..], &mut Vec::new());
        }
    }

    #[test]
    fn a_body_over_the_bound_is_refused_unread() {
        let mut stream = vec![Kind::Data as u8];
        stream.extend_from_slice(&(MAX_BODY as u32 + 1).to_le_bytes());
        let error = read_frame(&mut &stream[..], &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn paths_stay_inside() {
        assert!(check_path("a/b").is_ok());
        assert!(check_path("").is_ok());
        for bad in ["..", "a/../../b", "/etc/passwd", "./a/.."] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}
