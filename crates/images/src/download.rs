//! Fetches files, whatever the network does meanwhile.
//!
//! A [`Request`] names a thing and the places that have it. Each place is asked in turn; what may pass by itself (a lost
//! connection, a busy server) is tried again with growing pauses, what will not (404, a bad certificate) is not. Received
//! bytes are hashed as they come and kept in a file with a lasting name, so that the next place, the next try and the next
//! process go on where this one ended: see `partial`. Nothing leaves this module as complete that does not have the promised
//! digest and size.
//!
//! There is no limit on the whole time, only on silence ([`Options::stall`]): a slow link is not a broken one. There always is
//! a limit on size ([`Request::max_size`]).
//!
//! Proxies come from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. Trusted are the system's CA certificates, or
//! those in `SSL_CERT_FILE` and `SSL_CERT_DIR` where these are set, and [`Options::extra_ca`] besides.

mod answer;
mod attempt;
mod error;
mod http;
mod local;
mod partial;
mod retry;
mod rounds;
mod sink;

#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;
use url::Url;

use crate::blocking::blocking;
use crate::digest::Digest;
use crate::progress::Progress;
use crate::store::{BlobMode, Store, StoreLock};
pub(crate) use answer::Answer;
pub use error::{DownloadError, WAYS_OUT};
use http::Http;
pub(crate) use http::shown;
use partial::Partial;
use rounds::Rounds;
use sink::Sink;

/// How to fetch.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bound on name lookup, TCP and TLS together, per address that is asked.
    pub connect_timeout: Duration,
    /// How long a connection may bring nothing.
    pub stall: Duration,
    /// How many times in a row all places may fail without one byte of progress.
    pub tries: u32,
    /// The first pause before trying again; each following one is twice as long.
    pub first_pause: Duration,
    /// The longest pause, also when the server asks for a longer one: then the download fails and says so.
    pub longest_pause: Duration,
    /// How many redirects in a row are followed.
    pub redirects: u32,
    /// Which proxy to use.
    pub proxy: Proxy,
    /// PEM files of CA certificates to trust beside the system's.
    pub extra_ca: Vec<PathBuf>,
    /// Takes any certificate of a TLS server: nobody then knows who answers. For registries on the user's own word.
    pub accept_invalid_certs: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            tries: 4,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
            redirects: 10,
            proxy: Proxy::Environment,
            extra_ca: Vec::new(),
            accept_invalid_certs: false,
        }
    }
}

/// Which proxy to use. Printed, it shows no password.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Proxy {
    /// What the environment names: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`.
    #[default]
    Environment,
    /// None, whatever the environment names.
    None,
    /// This one for everything.
    Url(String),
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("Environment"),
            Self::None => f.write_str("None"),
            Self::Url(url) => f.debug_tuple("Url").field(&without_user_anywhere(url)).finish(),
        }
    }
}

/// A thing to fetch. Printed, it shows no password of a URL, and no header's value.
#[derive(Clone)]
pub struct Request {
    /// What it is, for messages and progress.
    pub what: String,
    /// The places that have it, best first: `http`, `https` and `file` URLs.
    pub urls: Vec<Url>,
    /// Headers for each of `urls`. They do not follow a redirect to another origin.
    pub headers: HeaderMap,
    /// Its digest. Without one, what comes is trusted as far as the connection is.
    pub digest: Option<Digest>,
    /// Its exact size in bytes.
    pub size: Option<u64>,
    /// The most bytes that are accepted, whoever promises what.
    pub max_size: u64,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, urls, headers, digest, size, max_size } = self;
        f.debug_struct("Request")
            .field("what", what)
            .field("urls", &urls.iter().map(shown).collect::<Vec<_>>())
            .field("headers", &headers.keys().map(|name| name.as_str()).collect::<Vec<_>>())
            .field("digest", digest)
            .field("size", size)
            .field("max_size", max_size)
            .finish()
    }
}

impl Request {
    /// `what` from one place, of at most `max_size` bytes.
    pub fn new(what: impl Into<String>, url: Url, max_size: u64) -> Self {
        Self {
            what: what.into(),
            urls: vec![url],
            headers: HeaderMap::new(),
            digest: None,
            size: None,
            max_size,
        }
    }

    /// The name of its partial file: by content where that is known, else by place.
    fn key(&self) -> String {
        let digest = self.digest.unwrap_or_else(|| {
            let places: Vec<&str> = self.urls.iter().map(Url::as_str).collect();
            Digest::of(format!("{} {:?} {:?}", self.what, places, self.size).as_bytes())
        });
        digest.hex()
    }
}

/// Reads what a user gives as a place: an `http`, `https` or `file` URL, or a path (a relative one from the current directory).
///
/// # Errors
/// [`DownloadError::BadUrl`].
pub fn place(text: &str) -> Result<Url, DownloadError> {
    let bad = |why: &str| DownloadError::BadUrl { text: without_user(text), why: why.to_owned() };
    if text.contains("://") {
        let url = Url::parse(text).map_err(|error| bad(&error.to_string()))?;
        return match url.scheme() {
            "http" | "https" if url.has_host() => Ok(url),
            "file" if url.to_file_path().is_ok() => Ok(url),
            "file" => Err(bad("a file URL names a path on this host")),
            _ => Err(bad("only http, https and file URLs can be fetched")),
        };
    }
    if text.is_empty() {
        return Err(bad("it is empty"));
    }
    place_of(Path::new(text))
}

/// What a variable of the environment says of places; none when it is empty or blank.
///
/// # Errors
/// [`DownloadError::BadUrl`]: what is not text is not taken for nothing.
pub(crate) fn variable(name: &str, value: Option<OsString>) -> Result<Option<String>, DownloadError> {
    let text = value.unwrap_or_default().into_string().map_err(|value| DownloadError::BadUrl {
        text: without_user(&value.to_string_lossy()),
        why: format!("the variable {name} is not UTF-8"),
    })?;
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}

/// A file of this host as a place, whatever bytes its path has.
///
/// # Errors
/// [`DownloadError::BadUrl`].
pub fn place_of(path: &Path) -> Result<Url, DownloadError> {
    let bad = |why: String| DownloadError::BadUrl { text: path.display().to_string(), why };
    let absolute = std::path::absolute(path).map_err(|error| bad(error.to_string()))?;
    Url::from_file_path(&absolute).map_err(|()| bad("it is no path".into()))
}

/// What was given, as it may be shown: without a user and a password before the host.
fn without_user(text: &str) -> String {
    let shown = match text.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            // A password may hold what should have been escaped.
            let user = rest[..host].rfind('@').or_else(|| rest.rfind('@')).map_or(0, |at| at + 1);
            format!("{scheme}://{}", &rest[user..])
        }
        None => text.to_owned(),
    };
    shown.chars().take(300).collect()
}

/// The same of what may lack a scheme: proxies are often named `user:password@host:port`.
fn without_user_anywhere(text: &str) -> String {
    match text.contains("://") {
        true => without_user(text),
        false => text.rsplit('@').next().unwrap_or_default().to_owned(),
    }
}

/// Fetches things. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Downloader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    progress: Progress,
    http: OnceLock<Http>,
    /// Whether it was told that nothing protects what comes.
    unprotected: Once,
}

/// What is asked of a place without fetching from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Size,
    Destination,
}

/// How often a partial file is tried for that somebody has locked.
const LOCKED_PAUSE: Duration = Duration::from_millis(50);

impl Downloader {
    /// A downloader that reports to `progress`.
    pub fn new(options: Options, progress: Progress) -> Self {
        let (http, unprotected) = (OnceLock::new(), Once::new());
        Self { shared: Arc::new(Shared { options, progress, http, unprotected }) }
    }

    /// How it fetches.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Where it reports to.
    pub fn progress(&self) -> &Progress {
        &self.shared.progress
    }

    /// Fetches a thing into a file of `store`. Bytes of an earlier try are used. Of two processes or tasks that fetch the
    /// same thing at once, the second waits for the first.
    ///
    /// # Errors
    /// See [`DownloadError`]. What has been received stays for the next try, unless it was wrong.
    ///
    /// # Cancel safety
    /// When the future is dropped, the transfer ends and what has been received stays for the next try.
    pub async fn fetch(&self, store: &Store, request: &Request) -> Result<Fetched, DownloadError> {
        let (lock, partial) = self.partial(store, request).await?;
        self.fetch_into(store, request, lock, partial).await
    }

    /// Fetches a thing into a blob of `store`, unless it is there already.
    ///
    /// # Errors
    /// See [`DownloadError`].
    ///
    /// # Cancel safety
    /// As [`Downloader::fetch`].
    pub async fn fetch_blob(
        &self,
        store: &Store,
        request: &Request,
        mode: BlobMode,
    ) -> Result<Digest, DownloadError> {
        // Apart: the store's locks block for as long as a collection needs.
        let present = async || {
            let (store, digest) = (store.clone(), request.digest);
            blocking(move |_| digest.filter(|digest| store.blob(digest).is_some())).await
        };
        if let Some(digest) = present().await {
            return Ok(digest);
        }
        let (lock, partial) = self.partial(store, request).await?;
        // Whoever had the lock before us may have made the blob.
        if let Some(digest) = present().await {
            let (path, _locked) = partial.into_file();
            let _ = std::fs::remove_file(path);
            return Ok(digest);
        }
        self.fetch_into(store, request, lock, partial).await?.commit(mode).await
    }

    /// Fetches a small thing into memory.
    ///
    /// # Errors
    /// See [`DownloadError`].
    pub async fn bytes(&self, request: &Request) -> Result<Vec<u8>, DownloadError> {
        let mut sink = Sink::memory();
        attempt::fill(self, request, &mut sink).await?;
        Ok(sink.into_bytes())
    }

    /// Asks how large a thing is, without fetching it. None when nobody says.
    ///
    /// # Errors
    /// See [`DownloadError`].
    pub async fn size(&self, request: &Request) -> Result<Option<u64>, DownloadError> {
        if request.size.is_some() {
            return Ok(request.size);
        }
        self.of_the_first(request, Question::Size).await.map(|(size, _)| size)
    }

    /// Where `request` leads in the end, by following redirects; nothing is fetched.
    ///
    /// # Errors
    /// See [`DownloadError`].
    pub async fn destination(&self, request: &Request) -> Result<Url, DownloadError> {
        self.of_the_first(request, Question::Destination).await.map(|(_, url)| url)
    }

    /// The answer of the first place that has one, asked with the same patience as for the thing itself.
    async fn of_the_first(
        &self,
        request: &Request,
        question: Question,
    ) -> Result<(Option<u64>, Url), DownloadError> {
        let mut rounds = Rounds::new(self, request);
        loop {
            for (index, url) in rounds.open() {
                match self.head(request, url, question).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => rounds.failed(index, error)?,
                }
            }
            rounds.pause(false).await?;
        }
    }

    async fn head(
        &self,
        request: &Request,
        url: &Url,
        question: Question,
    ) -> Result<(Option<u64>, Url), DownloadError> {
        if url.scheme() == "file" {
            return Ok((Some(local::size(url)?), url.clone()));
        }
        let (answer, at) = self.http()?.ask(Method::HEAD, url, &request.headers, &HeaderMap::new()).await?;
        match answer.status().as_u16() {
            200 => Ok((http::length(answer.headers()), at)),
            // A server need not answer this question.
            405 | 501 if question == Question::Size => Ok((None, at)),
            _ => Err(http::refused(url, &answer)),
        }
    }

    async fn fetch_into(
        &self,
        store: &Store,
        request: &Request,
        lock: StoreLock,
        partial: Partial,
    ) -> Result<Fetched, DownloadError> {
        let mut sink = Sink::file(partial);
        attempt::fill(self, request, &mut sink).await?;
        let (digest, size) = (sink.digest(), sink.len());
        let (path, file) = sink.into_file().expect("it was made of a file");
        Ok(Fetched { store: store.clone(), path, file, digest, size, lock })
    }

    /// Opens and locks the partial file, once nobody else fetches the same, and reads what is in it.
    async fn partial(&self, store: &Store, request: &Request) -> Result<(StoreLock, Partial), DownloadError> {
        let kept = |source| DownloadError::Store { source: Box::new(source) };
        let key = request.key();
        let thing = match (request.digest, request.urls.first()) {
            (None, Some(url)) => http::shown(url),
            _ => format!("sha256:{key}"),
        };
        let lock = store.lock("fetch", &thing, self.progress()).await.map_err(kept)?;
        let dir = store.dir().join("partial");
        let mut partial = loop {
            if let Some(partial) = Partial::open(&dir, &key, &request.what)? {
                break partial;
            }
            // gc looks at it.
            tokio::time::sleep(LOCKED_PAUSE).await;
        };
        loop {
            let (moved, more) = blocking(move |_| {
                let more = partial.read_on();
                (partial, more)
            })
            .await;
            partial = moved;
            if !more? {
                return Ok((lock, partial));
            }
        }
    }

    fn http(&self) -> Result<&Http, DownloadError> {
        if let Some(http) = self.shared.http.get() {
            return Ok(http);
        }
        let http = Http::new(&self.shared.options)?;
        Ok(self.shared.http.get_or_init(|| http))
    }
}

/// A complete file, which nobody else touches until this is dropped. Dropped, it stays for the next who fetches the same:
/// take it by [`Fetched::commit`] or remove it by [`Fetched::discard`].
#[derive(Debug)]
pub struct Fetched {
    store: Store,
    path: PathBuf,
    file: File,
    digest: Digest,
    size: u64,
    lock: StoreLock,
}

impl Fetched {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, readable from its beginning.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&self) -> Result<File, DownloadError> {
        File::open(&self.path).map_err(|source| DownloadError::File {
            doing: "open",
            path: self.path.clone(),
            source,
        })
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes it a blob of the store.
    ///
    /// # Errors
    /// The store cannot take it.
    pub async fn commit(self, mode: BlobMode) -> Result<Digest, DownloadError> {
        let Self { store, path, file, digest, lock, .. } = self;
        blocking(move |_| {
            // Before the file is given up as a partial one: a kill while the disk works should cost nothing.
            file.sync_all().map_err(|source| partial::failed("what was fetched", "write", &path, source))?;
            let committed = store.adopt(&path, file).and_then(|staged| staged.commit(digest, mode));
            drop(lock);
            committed.map(|()| digest).map_err(|source| DownloadError::Store { source: Box::new(source) })
        })
        .await
    }

    /// Removes it.
    pub fn discard(self) {
        // A file that stays is found and used by the next try, or removed by gc.
        let _ = std::fs::remove_file(&self.path);
    }
}
