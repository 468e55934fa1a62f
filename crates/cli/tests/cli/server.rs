//! A loopback web server that plays a release page, a bucket and a slow line.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::scene::patience;

/// Files by path, and what it was asked.
#[derive(Default)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    redirects: BTreeMap<String, String>,
    /// What files say that they are.
    types: BTreeMap<String, String>,
    /// Bodies of these paths stop in their middle and never end.
    slow: Vec<String>,
    /// `METHOD path range`, in the order in which they came.
    asked: Vec<String>,
    /// Bodies that have stopped in their middle so far.
    stalled: usize,
}

/// A server on a port of its own, until the test's process ends.
pub(crate) struct Server {
    port: u16,
    shared: Arc<(Mutex<Shared>, Condvar)>,
}

impl Server {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared: Arc<(Mutex<Shared>, Condvar)> = Arc::default();
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), shared) = (stream, Arc::clone(&serving)) else { return };
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn file(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.shared.0.lock().unwrap().files.insert(path.to_owned(), bytes.into());
    }

    /// A file that says what it is.
    pub(crate) fn typed(&self, path: &str, kind: &str, bytes: impl Into<Vec<u8>>) {
        self.file(path, bytes);
        self.shared.0.lock().unwrap().types.insert(path.to_owned(), kind.to_owned());
    }

    pub(crate) fn redirect(&self, path: &str, to: &str) {
        self.shared.0.lock().unwrap().redirects.insert(path.to_owned(), to.to_owned());
    }

    /// Whether bodies of this path stop in their middle.
    pub(crate) fn slow(&self, path: &str, slow: bool) {
        let mut shared = self.shared.0.lock().unwrap();
        shared.slow.retain(|other| other != path);
        if slow {
            shared.slow.push(path.to_owned());
        }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.shared.0.lock().unwrap().asked.clone()
    }

    /// Waits until a body has stopped in its middle.
    pub(crate) fn await_stall(&self) {
        let until = Instant::now() + patience();
        let mut shared = self.shared.0.lock().unwrap();
        while shared.stalled == 0 {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nobody asks: {:?}", shared.asked);
            shared = self.shared.1.wait_timeout(shared, left).unwrap().0;
        }
    }
}

/// Answers one request; a connection that the client ends is nobody's fault.
fn serve(mut stream: TcpStream, shared: &(Mutex<Shared>, Condvar)) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut from = None;
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            from = range.strip_suffix('-').and_then(|from| from.parse::<usize>().ok());
        }
    }
    let path = target.split('?').next()?.to_owned();
    let (file, redirect, slow, kind) = {
        let mut shared = shared.0.lock().unwrap();
        let range = from.map_or_else(String::new, |from| format!(" from {from}"));
        shared.asked.push(format!("{method} {target}{range}"));
        let file = shared.files.get(&target).or_else(|| shared.files.get(&path)).cloned();
        let kind =
            shared.types.get(&path).map_or_else(String::new, |kind| format!("content-type: {kind}\r\n"));
        (file, shared.redirects.get(&path).cloned(), shared.slow.contains(&path), kind)
    };
    let head = |status: &str, length: usize, more: &str| {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{kind}{more}\r\n")
    };
    let (head, body) = match (file, redirect, from) {
        (_, Some(to), _) => (head("302 Found", 0, &format!("location: {to}\r\n")), Vec::new()),
        (None, ..) => (head("404 Not Found", 0, ""), Vec::new()),
        (Some(bytes), _, Some(from)) if from < bytes.len() => {
            let range =
                format!("etag: \"1\"\r\ncontent-range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            (head("206 Partial Content", bytes.len() - from, &range), bytes[from..].to_vec())
        }
        (Some(bytes), ..) => (head("200 OK", bytes.len(), "etag: \"1\"\r\naccept-ranges: bytes\r\n"), bytes),
    };
    let sent = send(&mut stream, &head, if method == "HEAD" { &[] } else { &body }, slow);
    if sent.is_ok() && slow && method != "HEAD" {
        shared.0.lock().unwrap().stalled += 1;
        shared.1.notify_all();
        // Until the client goes.
        let _ = io::copy(&mut stream, &mut io::sink());
    }
    Some(())
}

fn send(stream: &mut TcpStream, head: &str, body: &[u8], half: bool) -> io::Result<()> {
    stream.write_all(head.as_bytes())?;
    stream.write_all(if half { &body[..body.len() / 2] } else { body })?;
    stream.flush()
}
