//! One try at one place.

use reqwest::header::{
    CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{Method, Response};
use url::{Host, Url};

use super::error::DownloadError;
use super::http::{self, shown};
use super::partial::Origin;
use super::rounds::Rounds;
use super::sink::Sink;
use super::{Downloader, Request, local};
use crate::progress::Task;

/// Fills `sink` with the whole and right thing, from whichever place has it.
pub(super) async fn fill(
    downloader: &Downloader,
    request: &Request,
    sink: &mut Sink,
) -> Result<(), DownloadError> {
    // An earlier process may have got to the end and no further.
    if sink.len() > 0 && request.digest == Some(sink.digest()) {
        return Ok(());
    }
    let mut filling = Filling { downloader, request, sink, task: None };
    let mut rounds = Rounds::new(downloader, request);
    let mut most = filling.sink.len();
    loop {
        for (index, url) in rounds.open() {
            match filling.attempt(url).await {
                Ok(()) => return Ok(()),
                Err(error) => rounds.failed(index, error)?,
            }
        }
        let now = filling.sink.len();
        rounds.pause(now > most).await?;
        most = most.max(now);
    }
}

/// A request that is being fulfilled.
struct Filling<'a> {
    downloader: &'a Downloader,
    request: &'a Request,
    sink: &'a mut Sink,
    task: Option<Task>,
}

/// What the head of an answer says of the bytes that follow.
struct Head {
    /// The size of the whole.
    total: Option<u64>,
    origin: Origin,
}

impl Filling<'_> {
    /// Fetches from one place, from where the last try ended if that is possible, and checks what came.
    async fn attempt(&mut self, url: &Url) -> Result<(), DownloadError> {
        let began_at = self.sink.len();
        let received = self.receive(url).await;
        // What came is kept whatever ended it.
        let kept = self.sink.flush().await;
        received.and(kept)?;
        match self.check(url) {
            Err(DownloadError::Digest { .. }) if began_at > 0 => {
                // The older part may be to blame: once more from the beginning, and that counts.
                let what = &self.request.what;
                self.downloader
                    .progress()
                    .note(format!("what was kept of {what} is not right; starting over"));
                self.sink.restart()?;
                let received = self.receive(url).await;
                let kept = self.sink.flush().await;
                received.and(kept)?;
                self.judge(url)
            }
            _ => self.judge(url),
        }
    }

    /// The check, after which wrong bytes are gone.
    fn judge(&mut self, url: &Url) -> Result<(), DownloadError> {
        let checked = self.check(url);
        if checked.is_err() {
            self.sink.restart()?;
        }
        checked
    }

    fn check(&self, url: &Url) -> Result<(), DownloadError> {
        let (got, size) = (self.sink.digest(), self.sink.len());
        if let Some(expected) = self.request.size.filter(|expected| *expected != size) {
            return Err(DownloadError::Size { url: shown(url), expected, got: size });
        }
        match self.request.digest {
            Some(expected) if expected != got => Err(DownloadError::Digest {
                url: shown(url),
                expected: Box::new(expected),
                got: Box::new(got),
            }),
            _ => Ok(()),
        }
    }

    async fn receive(&mut self, url: &Url) -> Result<(), DownloadError> {
        if url.scheme() == "file" {
            return self.copy(url).await;
        }
        let Some((mut response, head)) = self.ask(url).await? else { return Ok(()) };
        self.begin(url, head.total)?;
        self.sink.set_origin(head.origin)?;
        let stall = self.downloader.shared.options.stall;
        loop {
            let stalled = |got| DownloadError::Stalled { url: shown(url), after: stall, got };
            let chunk = tokio::time::timeout(stall, response.chunk()).await;
            let broken = |got| DownloadError::ShortBody { url: shown(url), got, expected: head.total };
            match chunk.map_err(|_| stalled(self.sink.len()))? {
                Ok(Some(bytes)) => self.take(url, &bytes).await?,
                Ok(None) if head.total.is_some_and(|total| self.sink.len() < total) => {
                    return Err(broken(self.sink.len()));
                }
                Ok(None) if head.total.is_some_and(|total| self.sink.len() > total) => {
                    self.sink.restart()?;
                    let why = "it sent more than it had announced".into();
                    return Err(DownloadError::Protocol { url: shown(url), why });
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::debug!(url = shown(url), error = http::root(&error), "the body ended early");
                    return Err(broken(self.sink.len()));
                }
            }
        }
    }

    /// Asks for what is still missing. None when nothing is.
    async fn ask(&mut self, url: &Url) -> Result<Option<(Response, Head)>, DownloadError> {
        if self.request.digest.is_none() && !is_protected(url) {
            let (shared, host) = (&self.downloader.shared, url.host_str().unwrap_or_default());
            shared.unprotected.call_once(|| {
                shared
                    .progress
                    .warn(format!("what comes from http://{host} could be changed on its way: use https"));
            });
        }
        let range = self.range(url);
        if range.is_none() {
            self.sink.restart()?;
        }
        // The range goes along redirects: releases and blobs are often served by another host than the one that is asked.
        let always = range.clone().unwrap_or_default();
        let ask = async |always: &HeaderMap| {
            self.downloader.http()?.ask(Method::GET, url, &self.request.headers, always).await
        };
        let (mut response, _) = ask(&always).await?;
        if response.status() == 416 && range.is_some() {
            let (_, total) = content_range(&response);
            if total == Some(self.sink.len()) {
                // Nothing is missing; whether it is right is checked next.
                return Ok(None);
            }
            self.sink.restart()?;
            (response, _) = ask(&HeaderMap::new()).await?;
        }
        let length = http::length(response.headers());
        let total = match response.status().as_u16() {
            200 => {
                if self.sink.len() > 0 {
                    let what = &self.request.what;
                    self.downloader.progress().note(format!("the server starts {what} over"));
                    self.sink.restart()?;
                }
                length
            }
            206 => match content_range(&response) {
                // It should have sent the whole. With a digest, that finds out in the end.
                _ if self.request.digest.is_none() && is_of_another(&always, response.headers()) => {
                    self.sink.restart()?;
                    let why = "it sent the rest of another version than the one that was begun".into();
                    return Err(DownloadError::Protocol { url: shown(url), why });
                }
                (Some(from), total) if from == self.sink.len() && total.is_none_or(|total| total >= from) => {
                    total.or(length.and_then(|length| length.checked_add(from)))
                }
                _ => {
                    // Not what was asked for: without a range there is nothing to misunderstand.
                    self.sink.restart()?;
                    let why = "it sent another part than the one that was asked for".into();
                    return Err(DownloadError::Protocol { url: shown(url), why });
                }
            },
            _ => return Err(http::refused(url, &response)),
        };
        let origin = Origin::new(url, validator(response.headers()));
        Ok(Some((response, Head { total, origin })))
    }

    /// The headers that ask for the rest, if the rest of this place fits what there is.
    fn range(&self, url: &Url) -> Option<HeaderMap> {
        let len = self.sink.len();
        if len == 0 {
            return None;
        }
        let origin = self.sink.origin().filter(|origin| origin.is_of(url));
        let validator = origin.and_then(|origin| origin.validator.clone());
        // A digest finds out in the end what does not fit; without one, the server must vouch for it.
        if validator.is_none() && self.request.digest.is_none() {
            return None;
        }
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, format!("bytes={len}-").parse().ok()?);
        if let Some(validator) = validator.and_then(|validator| HeaderValue::from_str(&validator).ok()) {
            headers.insert(IF_RANGE, validator);
        }
        Some(headers)
    }

    /// Before the first byte: what can be known to be wrong already, and the word to whoever watches.
    fn begin(&mut self, url: &Url, total: Option<u64>) -> Result<(), DownloadError> {
        let Request { what, size, max_size, .. } = self.request;
        if let (Some(expected), Some(got)) = (*size, total)
            && expected != got
        {
            return Err(DownloadError::Size { url: shown(url), expected, got });
        }
        if total.is_some_and(|total| total > *max_size) {
            return Err(DownloadError::TooLarge { url: shown(url), max: *max_size });
        }
        let done = self.sink.len();
        if let (Some(total), Some((free, path))) = (total, self.sink.room())
            && total.saturating_sub(done) > free
        {
            let (needed, free) = (Some(total.saturating_sub(done)), Some(free));
            return Err(DownloadError::NoRoom { what: what.clone(), path, needed, free });
        }
        let progress = self.downloader.progress();
        let task =
            self.task.get_or_insert_with(|| progress.task(format!("download {what}"), total.or(*size)));
        task.set(done);
        Ok(())
    }

    async fn take(&mut self, url: &Url, bytes: &[u8]) -> Result<(), DownloadError> {
        let Request { size, max_size, .. } = self.request;
        let after = self.sink.len() + bytes.len() as u64;
        if let Some(expected) = size.filter(|expected| after > *expected) {
            self.sink.restart()?;
            return Err(DownloadError::Size { url: shown(url), expected, got: after });
        }
        if after > *max_size {
            self.sink.restart()?;
            return Err(DownloadError::TooLarge { url: shown(url), max: *max_size });
        }
        self.sink.append(bytes).await?;
        if let Some(task) = &mut self.task {
            task.set(after);
        }
        Ok(())
    }

    async fn copy(&mut self, url: &Url) -> Result<(), DownloadError> {
        self.sink.restart()?;
        let mut source = local::Source::open(url)?;
        self.begin(url, Some(source.size()))?;
        loop {
            let (moved, read) = crate::blocking::blocking(move |_| {
                let read = source.read_on();
                (source, read)
            })
            .await;
            source = moved;
            let bytes = read?;
            if bytes.is_empty() {
                return Ok(());
            }
            self.take(url, &bytes).await?;
        }
    }
}

/// Whether nobody on the way can change what comes: encrypted, or never on a wire.
fn is_protected(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => true,
    };
    url.scheme() != "http" || loopback
}

/// `bytes 5-9/10` or `bytes */10`: the first byte and the size of the whole.
fn content_range(response: &Response) -> (Option<u64>, Option<u64>) {
    let text = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let Some((range, total)) =
        text.and_then(|text| text.strip_prefix("bytes ")).and_then(|text| text.split_once('/'))
    else {
        return (None, None);
    };
    let from = range.split_once('-').and_then(|(from, _)| from.parse().ok());
    (from, total.parse().ok())
}

/// Whether an answer to a range names another version than the `If-Range` that was asked for. Silence is consent: a server
/// need not repeat the time of the last change.
fn is_of_another(asked: &HeaderMap, answer: &HeaderMap) -> bool {
    let Some(wanted) = asked.get(IF_RANGE) else { return false };
    let name = if wanted.as_bytes().starts_with(b"\"") { ETAG } else { LAST_MODIFIED };
    answer.get(name).is_some_and(|got| got != wanted)
}

/// What identifies these very bytes: a strong entity tag, else the time of the last change.
///
/// Source: RFC 9110, section 13.1.5.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = text(ETAG).filter(|etag| !etag.starts_with("W/"));
    etag.or(text(LAST_MODIFIED)).map(str::to_owned)
}
