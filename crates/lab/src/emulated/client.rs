//! The host's side of the agent's protocol.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::fault::{Fault, Result};
use crate::transfer;
use crate::wire::{self, Exit, Kind, Request, Run};

/// Longest silence within a transfer or a short request.
const SILENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether to go on waiting.
const GLANCE: Duration = Duration::from_millis(100);

/// Where a lab's agent is, and the word it wants to hear.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) port: u16,
    pub(crate) token: String,
    /// When it says true, nothing is awaited any more.
    pub(crate) interrupted: fn() -> bool,
}

/// Which of a command's streams bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a command reads on its standard input.
#[derive(Debug, Default)]
pub enum Input {
    /// Nothing.
    #[default]
    None,
    /// These bytes.
    Bytes(Vec<u8>),
    /// What comes on this process's standard input while the command runs.
    Inherit,
}

impl Client {
    fn begin(&self, request: &Request, silence: Duration) -> io::Result<TcpStream> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(SILENCE))?;
        wire::write_frame(&mut stream, Kind::Hello, self.token.as_bytes())?;
        wire::write_json(&mut stream, Kind::Request, request)?;
        Ok(stream)
    }

    /// A request that is answered by nothing but its end.
    pub(crate) fn ask(&self, request: &Request, silence: Duration) -> io::Result<TcpStream> {
        let stream = self.begin(request, silence)?;
        answer(&stream)?;
        Ok(stream)
    }

    /// Asks until the agent answers. `given_up` says why there is no sense in waiting any more.
    pub(crate) fn await_ready(&self, deadline: Instant, given_up: impl Fn() -> Option<String>) -> Result<()> {
        loop {
            let silence = Duration::from_secs(2);
            match self.ask(&Request::Ping, silence) {
                Ok(_) => return Ok(()),
                Err(error) => {
                    if let Some(why) = given_up() {
                        return Err(Fault::new(format!("the lab's agent does not answer: {why}")));
                    }
                    if (self.interrupted)() {
                        return Err(Fault::new("interrupted"));
                    }
                    if Instant::now() > deadline {
                        return Err(Fault::because("the lab's agent does not answer in time", error));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// Sets clock, token and idle limit, and uses that token from then on.
    pub(crate) fn lease(&mut self, token: String, idle: Duration) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let request = Request::Lease {
            unix_nanos: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            token: token.clone(),
            idle_seconds: idle.as_secs(),
        };
        self.ask(&request, Duration::from_secs(10))
            .map_err(|error| Fault::because("cannot take over the lab", error))?;
        self.token = token;
        Ok(())
    }

    pub(crate) fn push(&self, from: &Path, to: &str) -> Result<()> {
        let push = || -> io::Result<()> {
            let stream = self.begin(&Request::Push { into: to.to_owned() }, SILENCE)?;
            let mut out = io::BufWriter::with_capacity(wire::PIECE, &stream);
            transfer::send(&mut out, from, "")?;
            wire::write_frame(&mut out, Kind::End, b"")?;
            io::Write::flush(&mut out)?;
            answer(&stream)
        };
        push().map_err(|error| Fault::because(format!("cannot push {} to {to}", from.display()), error))
    }

    pub(crate) fn pull(&self, from: &str, to: &Path) -> Result<()> {
        let pull = || -> io::Result<()> {
            let stream = self.begin(&Request::Pull { from: from.to_owned() }, SILENCE)?;
            transfer::receive(&mut BufReader::with_capacity(wire::PIECE, stream), to)
        };
        pull().map_err(|error| Fault::because(format!("cannot pull {from} to {}", to.display()), error))
    }

    /// Runs a command; `sink` gets its output as it comes. Ends `grace` after the command's own time limit
    /// at the latest.
    pub(crate) fn run(
        &self,
        run: &Run,
        input: Input,
        grace: Duration,
        sink: &mut dyn FnMut(Stream, &[u8]),
    ) -> io::Result<Exit> {
        let deadline = Instant::now() + Duration::from_millis(run.timeout_ms) + grace;
        let stream = self.begin(&Request::Run(run.clone()), SILENCE)?;
        feed(input, stream.try_clone()?)?;
        let mut from = BufReader::with_capacity(wire::PIECE, stream.try_clone()?);
        let mut body = Vec::new();
        loop {
            self.await_data(&mut from, deadline)?;
            match wire::read_frame(&mut from, &mut body)? {
                Some(Kind::Stdout) => sink(Stream::Stdout, &body),
                Some(Kind::Stderr) => sink(Stream::Stderr, &body),
                Some(Kind::Answer) => {
                    let _ = stream.shutdown(Shutdown::Both);
                    return wire::from_json(&body);
                }
                other => return Err(unexpected(other, &body)),
            }
        }
    }

    /// Returns when there is something to read, or the end of the stream.
    fn await_data(&self, from: &mut BufReader<TcpStream>, deadline: Instant) -> io::Result<()> {
        from.get_ref().set_read_timeout(Some(GLANCE))?;
        loop {
            match from.fill_buf() {
                Ok(_) => break,
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if (self.interrupted)() {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the lab does not answer"));
            }
        }
        // The rest of a frame that has begun follows soon.
        from.get_ref().set_read_timeout(Some(SILENCE))
    }
}

/// With a timeout set, a read that takes too long is told in either of two ways.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Sends a command's input from a thread of its own: the command may write before it reads.
fn feed(input: Input, mut stream: TcpStream) -> io::Result<()> {
    let mut source: Box<dyn Read + Send> = match input {
        Input::None => return wire::write_frame(&mut stream, Kind::StdinEnd, b""),
        Input::Bytes(bytes) => Box::new(io::Cursor::new(bytes)),
        Input::Inherit => Box::new(io::stdin()),
    };
    std::thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        loop {
            match source.read(&mut piece) {
                Ok(0) => break,
                Ok(got) => {
                    if wire::write_frame(&mut stream, Kind::Stdin, &piece[..got]).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let _ = wire::write_frame(&mut stream, Kind::StdinEnd, b"");
    });
    Ok(())
}

fn answer(mut stream: &TcpStream) -> io::Result<()> {
    let mut body = Vec::new();
    match wire::read_frame(&mut stream, &mut body)? {
        Some(Kind::Answer) => Ok(()),
        other => Err(unexpected(other, &body)),
    }
}

fn unexpected(kind: Option<Kind>, body: &[u8]) -> io::Error {
    match kind {
        None => io::ErrorKind::UnexpectedEof.into(),
        Some(Kind::Refused) => io::Error::other(String::from_utf8_lossy(body).into_owned()),
        Some(other) => io::Error::new(io::ErrorKind::InvalidData, format!("unexpected {other:?}")),
    }
}
