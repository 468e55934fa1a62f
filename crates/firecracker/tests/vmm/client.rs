//! The client against the real Firecracker and against peers that misbehave.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::{Firecracker, version};
use bytes::Bytes;
use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_firecracker::api::InstanceState;
use smartvm_firecracker::client::{ANSWER_LIMIT, Verb};
use smartvm_firecracker::{ApiError, Client};
use tempfile::TempDir;

const ANSWER: &str = "HTTP/1.1 200 \r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}";

/// A peer that serves each connection in order with the given function, in a thread of its own. What it
/// sends on `log` is for the test to wait on.
struct Peer {
    api_sock: PathBuf,
    _dir: TempDir,
}

impl Peer {
    fn new(mut serve: impl FnMut(usize, UnixStream) + Send + 'static) -> Self {
        let dir = TempDir::new().unwrap();
        let api_sock = dir.path().join("s");
        let listener = UnixListener::bind(&api_sock).unwrap();
        std::thread::spawn(move || {
            for (count, stream) in listener.incoming().enumerate() {
                serve(count, stream.unwrap());
            }
        });
        Self { api_sock, _dir: dir }
    }

    fn client(&self) -> Client {
        Client::new(self.api_sock.clone())
    }
}

/// Reads one request head (the requests here have no bodies); empty at the end of the stream.
fn request(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn the_real_vmm_says_who_it_is() {
    let vmm = Firecracker::start(&["--id", "who-1"]);
    let client = vmm.client();
    assert_eq!(client.known_version(), None);
    let info = client.describe_instance().await.unwrap();
    assert_eq!(info.id, "who-1");
    assert_eq!(info.state, InstanceState::NotStarted);
    assert_eq!(info.app_name, "Firecracker");
    assert_eq!(info.vmm_version, version());
    assert_eq!(client.known_version(), Some(version()), "learned from the answer");
    assert_eq!(client.version().await.unwrap(), version());
}

#[tokio::test]
async fn a_given_stream_is_used_and_later_replaced() {
    let mut vmm = Firecracker::start(&[]);
    let client = Client::from_stream(vmm.api_sock(), vmm.stream()).unwrap();
    client.describe_instance().await.unwrap();
    vmm.kill();
    let error = client.describe_instance().await.unwrap_err();
    assert_eq!(error.code(), Code::ApiDisconnected);
    assert_eq!(error.happened(), Happened::NeverStarted, "the end was seen before sending: {error}");
}

#[tokio::test]
async fn one_connection_carries_all_requests() {
    let (log, seen) = mpsc::channel();
    let peer = Peer::new(move |count, mut stream| {
        while !request(&mut stream).is_empty() {
            log.send(count).unwrap();
            stream.write_all(ANSWER.as_bytes()).unwrap();
        }
    });
    let client = peer.client();
    for _ in 0..5 {
        assert_eq!(client.raw(Verb::Get, "/", None).await.unwrap().status, 200);
    }
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [0; 5]);
}

#[tokio::test]
async fn a_closed_connection_is_replaced_for_the_next_request() {
    let (log, closed) = mpsc::channel();
    let peer = Peer::new(move |_, mut stream| {
        request(&mut stream);
        stream.write_all(ANSWER.as_bytes()).unwrap();
        drop(stream);
        log.send(()).unwrap();
    });
    let client = peer.client();
    for _ in 0..20 {
        assert_eq!(client.raw(Verb::Get, "/", None).await.unwrap().status, 200);
        closed.recv().unwrap();
    }
}

#[tokio::test]
async fn a_request_that_may_have_been_processed_is_never_sent_again() {
    let (log, seen) = mpsc::channel();
    let peer = Peer::new(move |_, mut stream| {
        let head = request(&mut stream);
        log.send(head.lines().next().unwrap().to_owned()).unwrap();
        // Closed without an answer.
    });
    let error = peer.client().raw(Verb::Put, "/actions", Some(Bytes::new())).await.unwrap_err();
    assert!(matches!(error, ApiError::Disconnected { sent: true, .. }), "{error:?}");
    assert_eq!(error.happened(), Happened::Unknown);
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["PUT /actions HTTP/1.1"]);
}

/// Answers every request with its path as the body, `/slow` only when told to.
fn slow_peer() -> (Peer, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    let peer = Peer::new(move |_, mut stream| {
        let wait = std::sync::Arc::clone(&wait);
        std::thread::spawn(move || {
            loop {
                let head = request(&mut stream);
                let Some(path) = head.split(' ').nth(1) else { return };
                if path == "/slow" {
                    let _ = wait.lock().unwrap().recv();
                }
                let answer = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{path}", path.len());
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
    });
    (peer, go)
}

#[tokio::test]
async fn a_late_answer_is_never_taken_for_the_next_requests() {
    let (peer, go) = slow_peer();
    let client = peer.client();
    let hurried = client.with_deadline(Some(Duration::from_millis(20)));
    let error = hurried.raw(Verb::Get, "/slow", None).await.unwrap_err();
    assert_eq!(error.code(), Code::ApiTimeout);
    assert_eq!(error.happened(), Happened::Unknown);
    go.send(()).unwrap();
    for _ in 0..10 {
        assert_eq!(client.raw(Verb::Get, "/quick", None).await.unwrap().body, "/quick");
    }
}

#[tokio::test]
async fn a_dropped_request_gives_its_connection_up() {
    let (peer, go) = slow_peer();
    let client = peer.client();
    {
        let mut slow = std::pin::pin!(client.raw(Verb::Get, "/slow", None));
        let polled = tokio::time::timeout(Duration::from_millis(20), slow.as_mut()).await;
        assert!(polled.is_err(), "it waits for its answer");
    }
    go.send(()).unwrap();
    for _ in 0..10 {
        assert_eq!(client.raw(Verb::Get, "/quick", None).await.unwrap().body, "/quick");
    }
}

#[tokio::test]
async fn requests_wait_for_each_other_in_order_and_a_waiting_one_that_times_out_never_started() {
    let (peer, go) = slow_peer();
    let client = peer.client();
    let slow = tokio::spawn({
        let client = client.with_deadline(None);
        async move { client.raw(Verb::Get, "/slow", None).await }
    });
    tokio::task::yield_now().await;
    let hurried = client.with_deadline(Some(Duration::from_millis(20)));
    let error = hurried.raw(Verb::Get, "/quick", None).await.unwrap_err();
    assert!(matches!(error, ApiError::Timeout { sent: false, .. }), "{error:?}");
    assert_eq!(error.happened(), Happened::NeverStarted);
    go.send(()).unwrap();
    assert_eq!(slow.await.unwrap().unwrap().body, "/slow");
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let peer = Peer::new(|_, mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream.write_all(format!("10000\r\n{}\r\n", "x".repeat(65536)).as_bytes()).is_ok() {}
    });
    let error = peer.client().raw(Verb::Get, "/", None).await.unwrap_err();
    assert!(matches!(error, ApiError::TooLarge { limit: ANSWER_LIMIT, .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_not_http_is_said_to_be_so() {
    let peer = Peer::new(|_, mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n\r\n");
    });
    let error = peer.client().raw(Verb::Get, "/", None).await.unwrap_err();
    assert_eq!(error.code(), Code::ApiProtocol, "{error:?}");
}

#[tokio::test]
async fn extra_bytes_after_an_answer_end_the_connection() {
    let peer = Peer::new(|count, mut stream| {
        while !request(&mut stream).is_empty() {
            let extra = if count == 0 { "HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n" } else { "" };
            if stream.write_all(format!("{ANSWER}{extra}").as_bytes()).is_err() {
                return;
            }
        }
    });
    let client = peer.client();
    for _ in 0..20 {
        assert_eq!(client.raw(Verb::Get, "/", None).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_missing_socket_is_named() {
    let dir = TempDir::new().unwrap();
    let client = Client::new(dir.path().join("none"));
    let error = client.describe_instance().await.unwrap_err();
    assert!(matches!(&error, ApiError::Connect { api_sock, .. } if api_sock.ends_with("none")), "{error:?}");
    assert_eq!(error.happened(), Happened::NeverStarted);
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn a_refusal_keeps_firecrackers_reason_and_the_connection() {
    let vmm = Firecracker::start(&[]);
    let client = vmm.client();
    let answer = client.raw(Verb::Get, "/nope", None).await.unwrap();
    assert_eq!(answer.status, 400);
    let error = answer.success(Verb::Get, "/nope").unwrap_err();
    assert_eq!(error.fault_message().unwrap().as_str(), "Invalid request method and/or path: GET nope.");
    client.describe_instance().await.unwrap();
}
#[tokio::test]
async fn a_payload_over_the_limit_is_one_clear_fault_and_the_next_request_works() {
    let vmm = Firecracker::start(&[]);
    let client = vmm.client();
    for _ in 0..20 {
        let body = Bytes::from(format!("{{\"state\":\"{}\"}}", "x".repeat(60_000)));
        let answer = client.raw(Verb::Patch, "/vm", Some(body)).await.unwrap();
        let error = answer.success(Verb::Patch, "/vm").unwrap_err();
        assert!(error.to_string().contains("larger than the limit of 51200"), "{error}");
        assert!(error.hint().unwrap().contains("--http-api-max-payload-size"));
        client.describe_instance().await.unwrap_or_else(|error| panic!("{error:?}\n{}", vmm.output()));
    }
}
