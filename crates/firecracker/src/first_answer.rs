//! The first `GET /` of a start, on a connected stream and without an async runtime.
//!
//! Whoever starts a VMM waits for it in the thread that made it. Handing the stream to a runtime for one request
//! costs more than the request (0.1 ms of 0.9), so this one is asked by hand; everything later goes through
//! [`crate::Client`], on the same stream.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use crate::api::InstanceInfo;
use crate::client::Verb;
use crate::error::ApiError;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
/// Firecracker's answer has some 300 bytes.
const LIMIT: usize = 64 * 1024;

/// A `GET /` that was sent and is not answered yet. The stream stays with the caller.
///
/// Closing the stream with the answer outstanding may end the VMM: Firecracker writes without guarding against
/// SIGPIPE.
#[derive(Debug)]
pub struct FirstAnswer {
    received: Vec<u8>,
}

impl FirstAnswer {
    /// Sends the request. `stream` must be fresh.
    ///
    /// # Errors
    /// When it cannot be written: the peer has closed.
    pub fn ask(stream: &UnixStream) -> io::Result<Self> {
        send(stream, REQUEST)?;
        Ok(Self { received: Vec::new() })
    }

    /// Reads what has come, by a non-blocking `read` on the stream. `None`: not complete yet, wait until the stream
    /// is readable. Once the answer was given, the stream is ready for the next request.
    ///
    /// # Errors
    /// The peer closed, refused, or answered what is not its protocol.
    pub fn receive(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Option<InstanceInfo>, ApiError> {
        let mut chunk = [0; 1024];
        loop {
            if let Some(info) = parse(&self.received)? {
                return Ok(Some(info));
            }
            match receive(&mut self.received, &mut chunk, &mut read)? {
                Received::More => {}
                Received::NothingYet => return Ok(None),
            }
        }
    }
}

const KNOCK: &[u8] =
    b"PUT /machine-config HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";

/// A request head that waits to be told to go on with its body, which never comes.
///
/// Firecracker's API thread says so by itself, without the main thread that builds and runs the VM: so this neither hangs when
/// it meets the guest's end, nor makes a VMM panic that is about to report what is wrong with its config. A `GET /` does
/// both (seen with 1.12.1). Close the stream afterwards.
#[derive(Debug)]
pub struct Knock {
    received: Vec<u8>,
}

impl Knock {
    /// Sends the head. `stream` must be fresh.
    ///
    /// # Errors
    /// When it cannot be written: the peer has closed.
    pub fn ask(stream: &UnixStream) -> io::Result<Self> {
        send(stream, KNOCK)?;
        Ok(Self { received: Vec::new() })
    }

    /// Reads what has come, as [`FirstAnswer::receive`]. `true` once the API has answered.
    ///
    /// # Errors
    /// The peer closed, or answered what is not its protocol.
    pub fn receive(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<bool, ApiError> {
        let mut chunk = [0; 256];
        while !self.received.ends_with(b"\r\n\r\n") {
            match receive(&mut self.received, &mut chunk, &mut read)? {
                Received::More => {}
                Received::NothingYet => return Ok(false),
            }
        }
        match self.received.starts_with(b"HTTP/1.1 100") {
            true => Ok(true),
            false => Err(protocol("it does not ask for the rest of the request")),
        }
    }
}

fn send(mut stream: &UnixStream, request: &[u8]) -> io::Result<()> {
    // A fresh socket's buffer holds far more than this: a short write means that something is wrong.
    match stream.write(request)? == request.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

enum Received {
    More,
    NothingYet,
}

/// One read.
fn receive(
    received: &mut Vec<u8>,
    chunk: &mut [u8],
    read: &mut impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> Result<Received, ApiError> {
    match read(chunk) {
        Ok(0) => Err(protocol("it closed the connection before its answer was complete")),
        Ok(count) if received.len() + count <= LIMIT => {
            received.extend_from_slice(&chunk[..count]);
            Ok(Received::More)
        }
        Ok(_) => Err(ApiError::TooLarge { verb: Verb::Get, path: "/".into(), limit: LIMIT }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::NothingYet),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Received::More),
        Err(error) => Err(protocol(&format!("it cannot be read: {error}"))),
    }
}

/// `None` while more must come.
fn parse(received: &[u8]) -> Result<Option<InstanceInfo>, ApiError> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let head_length = match head.parse(received) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(protocol(&error.to_string())),
    };
    let length = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse::<usize>().ok())
        .ok_or_else(|| protocol("it does not say its length"))?;
    let body = &received[head_length..];
    if body.len() < length {
        return Ok(None);
    }
    if body.len() > length {
        return Err(protocol("it is longer than it says"));
    }
    if head.code != Some(200) {
        let status = head.code.unwrap_or_default();
        let said = String::from_utf8_lossy(body);
        return Err(protocol(&format!("its status is {status}: {said}")));
    }
    serde_json::from_slice(body).map(Some).map_err(|error| protocol(&error.to_string()))
}

fn protocol(problem: &str) -> ApiError {
    ApiError::Protocol { verb: Verb::Get, path: "/".into(), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    const BODY: &str = r#"{"id":"a","state":"Not started","vmm_version":"1.12.1","app_name":"Firecracker"}"#;

    fn answer(status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nServer: Firecracker API\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    #[test]
    fn an_answer_in_pieces_is_put_together() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut first = FirstAnswer::ask(&ours).unwrap();
        let mut request = [0; REQUEST.len()];
        theirs.read_exact(&mut request).unwrap();
        assert_eq!(request, REQUEST);
        let whole = answer("200 OK", BODY);
        for byte in &whole.as_bytes()[..whole.len() - 1] {
            theirs.write_all(&[*byte]).unwrap();
            assert_eq!(first.receive(|into| (&ours).read(into)).unwrap(), None);
        }
        theirs.write_all(&whole.as_bytes()[whole.len() - 1..]).unwrap();
        assert_eq!(
            first.receive(|into| (&ours).read(into)).unwrap().unwrap().vmm_version.to_string(),
            "1.12.1"
        );
    }

    #[test]
    fn a_knock_is_answered_by_being_told_to_go_on_and_by_nothing_else() {
        for (answer, good) in [
            ("HTTP/1.1 100 \r\nServer: Firecracker API\r\n\r\n", true),
            ("HTTP/1.1 400 \r\nContent-Length: 0\r\n\r\n", false),
        ] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let mut knock = Knock::ask(&ours).unwrap();
            assert!(!knock.receive(|into| (&ours).read(into)).unwrap());
            theirs.write_all(answer.as_bytes()).unwrap();
            assert_eq!(knock.receive(|into| (&ours).read(into)).unwrap_or(false), good, "{answer}");
        }
    }

    #[test]
    fn what_is_not_the_answer_is_an_error() {
        for wrong in [
            "garbage\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
            answer("400 Bad Request", r#"{"fault_message":"no"}"#),
            answer("200 OK", "{}"),
            answer("200 OK", BODY) + "more",
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut first = FirstAnswer::ask(&ours).unwrap();
        drop(theirs);
        assert!(first.receive(|into| (&ours).read(into)).is_err());
    }

    #[test]
    fn an_endless_answer_is_cut_off() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut first = FirstAnswer::ask(&ours).unwrap();
        theirs.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n").unwrap();
        let error = loop {
            theirs.write_all(&[b'x'; 4096]).unwrap();
            match first.receive(|into| (&ours).read(into)) {
                Ok(None) => {}
                Ok(Some(info)) => panic!("{info:?}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ApiError::TooLarge { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_an_error_or_incomplete(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }
    }
}
