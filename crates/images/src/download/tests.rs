//! Downloads from servers that misbehave in every way we know.

mod answers;
mod children;
mod connections;
mod resume;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use smartvm_core::explain::{Code, Explain};
use tempfile::TempDir;
use url::Url;

use super::server::{Asked, Reply, Server};
use super::{DownloadError, Downloader, Options, Proxy, Request};
use crate::digest::Digest;
use crate::progress::{Event, Progress};
use crate::store::{BlobMode, Store};

/// A store, a downloader without patience, and what it reported.
struct Bench {
    dir: TempDir,
    store: Store,
    downloader: Downloader,
    events: Arc<Mutex<Vec<Event>>>,
}

fn impatient() -> Options {
    Options {
        connect_timeout: Duration::from_millis(500),
        stall: Duration::from_millis(300),
        tries: 3,
        first_pause: Duration::from_millis(2),
        longest_pause: Duration::from_millis(1500),
        proxy: Proxy::None,
        ..Options::default()
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(impatient())
    }

    fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&events);
        let progress = Progress::new(move |event| to.lock().unwrap().push(event));
        Self { dir, store, downloader: Downloader::new(options, progress), events }
    }

    /// Fetches into a blob, and gives its bytes.
    async fn fetch(&self, request: &Request) -> Result<Vec<u8>, DownloadError> {
        let digest = self.downloader.fetch_blob(&self.store, request, BlobMode::Data).await?;
        let bytes = std::fs::read(self.store.blob(&digest).unwrap()).unwrap();
        assert_eq!(Digest::of(&bytes), digest);
        assert_eq!(self.partials(), Vec::<String>::new(), "a finished download leaves nothing but the blob");
        Ok(bytes)
    }

    /// The failure of fetching, its code and its text with all causes.
    async fn refused(&self, request: &Request) -> (DownloadError, Code, String) {
        let error = self.fetch(request).await.unwrap_err();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(at) = cause {
            let one = at.to_string();
            assert!(!text.contains(&one), "`{text}` repeats its cause `{one}`");
            text = format!("{text}: {one}");
            cause = at.source();
        }
        assert!(error.hint().is_some_and(|hint| hint.len() > 20), "{text}: no hint");
        let code = error.code();
        (error, code, text)
    }

    fn partials(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.store.dir().join("partial")).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn notes(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let notes = events.iter().filter_map(|event| match event {
            Event::Note { text } => Some(text.clone()),
            _ => None,
        });
        notes.collect()
    }
}

/// Some bytes without a pattern.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    bytes.take(len).collect()
}

/// These bytes at this place, with everything known of them.
fn known(url: Url, bytes: &[u8]) -> Request {
    let (digest, size) = (Some(Digest::of(bytes)), Some(bytes.len() as u64));
    Request { digest, size, ..Request::new("a thing", url, 1 << 30) }
}

/// The same with nothing known.
fn unknown(url: Url) -> Request {
    Request::new("a thing", url, 10 << 20)
}

#[tokio::test]
async fn what_is_fetched_is_kept_and_not_fetched_again() {
    let bytes = noise(3 << 20);
    let served = bytes.clone();
    let server = Server::new(move |asked, _| Reply::file(asked, &served, "\"1\"")).await;
    let bench = Bench::new();
    let request = known(server.url("/thing?a=b"), &bytes);
    assert_eq!(
        bench.downloader.size(&Request { size: None, ..request.clone() }).await.unwrap(),
        Some(3 << 20)
    );
    assert_eq!(bench.fetch(&request).await.unwrap(), bytes);
    assert_eq!(bench.fetch(&request).await.unwrap(), bytes);
    let asked = server.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!((asked[0].method.as_str(), asked[1].method.as_str()), ("HEAD", "GET"));
    assert_eq!(asked[1].target, "/thing?a=b");
    assert!(asked[1].header("user-agent").unwrap().starts_with("smartvm/"));
    assert_eq!(asked[1].header("range"), None);
    let events = bench.events.lock().unwrap();
    let what: Arc<str> = "download a thing".into();
    let [first, .., last, end] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(*first, Event::Started { what: what.clone(), total: Some(3 << 20) });
    assert_eq!(*last, Event::Advanced { what: what.clone(), done: 3 << 20 });
    assert_eq!(*end, Event::Finished { what });
}

#[tokio::test]
async fn what_nothing_is_known_of_is_fetched_too() {
    let bytes = noise(100_000);
    let served = bytes.clone();
    let server = Server::new(move |_, _| Reply::without_length(200, &[], served.clone())).await;
    let bench = Bench::new();
    assert_eq!(bench.fetch(&unknown(server.url("/"))).await.unwrap(), bytes);
    assert_eq!(bench.downloader.bytes(&unknown(server.url("/"))).await.unwrap(), bytes);
    assert_eq!(bench.downloader.size(&unknown(server.url("/"))).await.unwrap(), None);
}

#[tokio::test]
async fn the_next_place_is_asked_and_all_are_named_when_none_has_it() {
    let good = Server::of_files([("/".to_owned(), b"right".to_vec())]).await;
    let bad = Server::new(|asked, _| match asked.target.as_str() {
        "/missing" => Reply::status(404),
        "/wrong" => Reply::ok("wrong"),
        _ => Reply::status(500),
    })
    .await;
    let bench = Bench::new();
    let mut request = known(bad.url("/missing"), b"right");
    request.urls.extend([bad.url("/wrong"), bad.url("/broken"), good.url("/")]);
    assert_eq!(bench.fetch(&request).await.unwrap(), b"right");
    assert_eq!(bad.asked().len(), 3);
    let notes = bench.notes();
    assert!(notes[0].contains("/missing does not exist (HTTP 404); trying the next place"), "{notes:?}");
    assert!(notes[1].contains("wrong content"), "{notes:?}");

    request.urls.pop();
    let (error, code, text) = Bench::new().refused(&request).await;
    assert_eq!(code, Code::DownloadFailed);
    assert!(matches!(&error, DownloadError::Everywhere { failures, .. } if failures.len() == 3), "{error:?}");
    for part in [
        "none of the 3 places has a thing",
        "/missing does not exist",
        "/wrong has the wrong content",
        "/broken answered 500",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[tokio::test]
async fn files_of_this_host_are_places() {
    let bench = Bench::new();
    let bytes = noise(3_000_000);
    let path = bench.dir.path().join("a file with blanks");
    std::fs::write(&path, &bytes).unwrap();
    let url = super::place(path.to_str().unwrap()).unwrap();
    assert_eq!(bench.fetch(&known(url.clone(), &bytes)).await.unwrap(), bytes);
    assert_eq!(bench.downloader.bytes(&unknown(url.clone())).await.unwrap(), bytes);
    assert_eq!(bench.downloader.size(&unknown(url.clone())).await.unwrap(), Some(3_000_000));

    let (_, code, text) = bench.refused(&known(url.clone(), b"other")).await;
    assert_eq!(
        (code, text.contains("expected 5 bytes, got 3000000")),
        (Code::DigestMismatch, true),
        "{text}"
    );
    let (_, code, text) = bench.refused(&Request { max_size: 1000, ..unknown(url) }).await;
    assert_eq!((code, text.contains("larger than the 1000 bytes")), (Code::DownloadFailed, true), "{text}");

    let missing = super::place("/nowhere/to/be/found").unwrap();
    let (_, code, text) = bench.refused(&unknown(missing)).await;
    assert_eq!((code, text.contains("cannot read /nowhere/to/be/found")), (Code::NotFound, true), "{text}");
    let folder = super::place(bench.dir.path().to_str().unwrap()).unwrap();
    let (_, _, text) = bench.refused(&unknown(folder)).await;
    assert!(text.contains("not a regular file"), "{text}");
    // Opening a FIFO that nobody writes to would wait for ever.
    let fifo = bench.dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let (_, _, text) = bench.refused(&unknown(super::place(fifo.to_str().unwrap()).unwrap())).await;
    assert!(text.contains("not a regular file"), "{text}");
}

#[test]
fn a_place_is_a_url_or_a_path() {
    let place = |text| super::place(text).map(|url| url.to_string());
    assert_eq!(place("https://h/a b?c").unwrap(), "https://h/a%20b?c");
    assert_eq!(place("/a b/ü").unwrap(), "file:///a%20b/%C3%BC");
    assert_eq!(place("file:///x").unwrap(), "file:///x");
    let here = std::env::current_dir().unwrap();
    assert_eq!(place("x/y").unwrap(), Url::from_file_path(here.join("x/y")).unwrap().to_string());
    for bad in ["", "ftp://h/x", "http://", "file://host/x", "https://[::1"] {
        let error = place(bad).unwrap_err();
        assert!(matches!(error, DownloadError::BadUrl { .. }), "{bad}: {error}");
        assert!(error.hint().is_some());
    }
}

/// Whoever fetches several things at once spawns these futures.
#[test]
fn futures_may_change_threads() {
    fn may<T: Send>(_: T) {}
    let bench = Bench::new();
    let request = unknown("http://localhost/".parse().unwrap());
    may(bench.downloader.fetch(&bench.store, &request));
    may(bench.downloader.fetch_blob(&bench.store, &request, BlobMode::Data));
    may(bench.downloader.bytes(&request));
    may(bench.downloader.size(&request));
}

#[test]
fn what_is_printed_holds_no_secret() {
    let mut request = unknown("https://me:hunter2@example.com/x?token=hunter2".parse().unwrap());
    request.headers.insert("authorization", "Basic hunter2".parse().unwrap());
    let printed = format!("{request:?}");
    assert!(printed.contains("authorization") && printed.contains("https://example.com/x"), "{printed}");
    assert!(!printed.contains("hunter2"), "{printed}");
    for proxy in ["http://me:hunter2@proxy:3128", "me:hunter2@proxy:3128", "http://me:hunter2@/@proxy:3128"] {
        let downloader = Downloader::new(
            Options { proxy: Proxy::Url(proxy.into()), ..Options::default() },
            Progress::none(),
        );
        let printed = format!("{downloader:?}");
        assert!(printed.contains("proxy:3128") && !printed.contains("hunter2"), "{printed}");
    }
}

#[test]
fn a_variable_that_is_no_text_is_told_and_not_left_out() {
    use std::os::unix::ffi::OsStringExt as _;
    let variable = |value: Option<&[u8]>| {
        super::variable("SMARTVM_BASE_URL", value.map(|value| std::ffi::OsString::from_vec(value.to_vec())))
    };
    assert_eq!(variable(None).unwrap(), None);
    assert_eq!(variable(Some(b" ")).unwrap(), None);
    assert_eq!(variable(Some(b"/x")).unwrap().as_deref(), Some("/x"));
    let error = variable(Some(b"http://mirror/\xff")).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot fetch from `http://mirror/\u{fffd}`: the variable SMARTVM_BASE_URL is not UTF-8"
    );
}
