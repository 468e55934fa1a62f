//! MMDS contents reach neither a log nor the text of an error.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::json;
use smartvm_core::explain::Explain;
use smartvm_firecracker::api::MmdsContents;
use smartvm_firecracker::client::Verb;
use smartvm_firecracker::{ApiError, Client};
use tempfile::TempDir;

use crate::support::Firecracker;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const SECRET: &str = "hunter2";

#[track_caller]
fn is_quiet(what: &str, error: &ApiError) {
    let cause = std::error::Error::source(error).map(|source| format!("{source} {source:?}"));
    let texts = [error.to_string(), format!("{error:?} {error:#?}"), error.hint().unwrap_or_default()];
    for text in texts.into_iter().chain(cause) {
        assert!(!text.contains(SECRET), "{what}: {text}");
    }
}

/// A peer that answers every request with these bytes.
fn peer(answer: String) -> (TempDir, Client) {
    let dir = TempDir::new().unwrap();
    let api_sock = dir.path().join("s");
    let listener = UnixListener::bind(&api_sock).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            while stream.read(&mut request).is_ok_and(|n| n > 0)
                && stream.write_all(answer.as_bytes()).is_ok()
            {}
        }
    });
    (dir, Client::new(api_sock))
}

#[tokio::test]
async fn an_answer_that_quotes_mmds_contents_is_not_printed() {
    let contents = MmdsContents(json!({ "password": SECRET }));
    let fault = format!("{{\"fault_message\":\"invalid type: string \\\"{SECRET}\\\"\"}}");
    let cases = [
        format!("HTTP/1.1 400 \r\nContent-Length: {}\r\n\r\n{fault}", fault.len()),
        format!("HTTP/1.1 400 \r\nContent-Length: {}\r\n\r\n{SECRET}", SECRET.len()),
        format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{SECRET}", SECRET.len()),
        format!("{SECRET}\r\n\r\n"),
        format!("HTTP/1.1 200 \r\n{SECRET}\r\n\r\n"),
    ];
    for answer in cases {
        let (_dir, client) = peer(answer.clone());
        is_quiet(&answer, &client.mmds().await.unwrap_err());
        let changed = [client.put_mmds(&contents).await, client.patch_mmds(&contents).await];
        changed.iter().filter_map(|result| result.as_ref().err()).for_each(|error| is_quiet(&answer, error));
        if let Err(ApiError::Fault { fault_message, .. }) = &changed[0] {
            assert!(fault_message.as_str().contains(SECRET), "kept whole for who asks for it");
        }
    }
}

#[tokio::test]
async fn mmds_contents_are_never_printed() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer({
            let log = log.clone();
            move || log.clone()
        })
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let vmm = Firecracker::start(&["--level", "Trace"]);
    let client = vmm.client();
    let contents = MmdsContents(json!({ "password": SECRET, SECRET: 1 }));
    client.put_mmds(&contents).await.unwrap();
    client.patch_mmds(&contents).await.unwrap();
    let read = client.mmds().await.unwrap();
    assert_eq!(read, contents);
    assert!(!format!("{read:?} {client:?}").contains(SECRET));

    // Refusals of every kind, some of which quote the body.
    let long = format!("{{\"a\":\"{}\"}}", format!("{SECRET}\\r\\n").repeat(6000));
    let lines = format!("{SECRET}\r\n{SECRET}: {SECRET}\r\n\r\n").repeat(3000);
    for (verb, path, body) in [
        (Verb::Put, "/mmds", format!("{{\"{SECRET}\": {SECRET}}}")),
        (Verb::Put, "/mmds", format!("{{\"a\": \"{SECRET}")),
        (Verb::Patch, "/mmds", format!("[\"{SECRET}\"] \"{SECRET}\"")),
        (Verb::Put, "/mmds/other", format!("{{\"a\": \"{SECRET}\"}}")),
        (Verb::Put, "/mmds", long),
        (Verb::Put, "/mmds", lines),
    ] {
        let answer = client.raw(verb, path, Some(Bytes::from(body))).await.unwrap();
        assert!(!format!("{answer:?}").contains(SECRET));
        is_quiet(path, &answer.success(verb, path).unwrap_err());
    }
    // Firecracker 1.12.1 answers this with the contents.
    let answer = client.raw(Verb::Get, "/mmds/config", None).await.unwrap();
    assert!(String::from_utf8_lossy(&answer.body).contains(SECRET));

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("/mmds"), "the requests are logged: {text}");
    assert!(!text.contains(SECRET), "{text}");
}
