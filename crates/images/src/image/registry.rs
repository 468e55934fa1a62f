//! One repository of a registry, asked by OCI's distribution protocol.
//!
//! Requests, retries and resumed bodies are the downloader's; here are the protocol's paths, and getting let in: a question
//! to `/v2/` tells whether credentials are wanted and how; a token is fetched where it wants one, and once more when
//! it has run out. Credentials go to the registry and to the token server that it names, and never along a redirect to
//! another host.
//!
//! Sources: OCI distribution spec, "Pull"; the distribution project's "Token Authentication Specification".

use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use url::{Host, Url};

use super::challenge::Challenge;
use super::credentials::Login;
use super::error::ImageError;
use super::manifest::{ACCEPT as MANIFESTS, Descriptor, MAX_CONFIG, MAX_MANIFEST};
use super::reference::{DEFAULT_REGISTRY, Reference};
use crate::digest::Digest;
use crate::download::{Answer, DownloadError, Downloader, Options, Proxy, Request};
use crate::store::{BlobMode, Store};

/// The largest answer of a token server or of `/v2/`, in bytes.
const MAX_ANSWER: u64 = 256 << 10;

/// How long a server that may speak plain HTTP has for an answer to TLS.
const LAX_TIME: Duration = Duration::from_secs(3);

/// When plain HTTP and certificates that nobody vouches for are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Insecure {
    /// From this host itself only.
    #[default]
    Loopback,
    /// From anywhere: whoever sits in between can read the credentials, and give another image.
    Always,
    /// From nowhere.
    Never,
}

/// One repository.
#[derive(Debug)]
pub(super) struct Registry {
    downloader: Downloader,
    /// For the token server, which may be another host: without what is allowed to the registry alone.
    strict: Downloader,
    insecure: Insecure,
    base: Url,
    reference: Reference,
    login: Login,
    challenge: Option<Challenge>,
    /// The header that lets us in.
    pass: Mutex<Option<HeaderValue>>,
}

impl Registry {
    /// Finds out how to speak with the registry and gets let in.
    pub(super) async fn connect(
        downloader: &Downloader,
        reference: &Reference,
        insecure: Insecure,
        login: Login,
    ) -> Result<Self, ImageError> {
        let host = match reference.registry() {
            // The name people write is that of a web site.
            DEFAULT_REGISTRY => "registry-1.docker.io",
            registry => registry,
        };
        let lax = match insecure {
            Insecure::Always => true,
            Insecure::Loopback => reference.is_loopback(),
            Insecure::Never => false,
        };
        let secure = url(&format!("https://{host}/v2/"), reference)?;
        let strict = downloader.clone();
        let (downloader, base, answer) = if lax {
            let mut options = Options { accept_invalid_certs: true, ..downloader.options().clone() };
            if reference.is_loopback() {
                // A proxy has another loopback, and is not to read what stays on this host.
                options.proxy = Proxy::None;
            }
            let progress = downloader.progress();
            // What speaks no TLS may just wait for more.
            let connect_timeout = options.connect_timeout.min(LAX_TIME);
            let once =
                Options { tries: 1, connect_timeout, stall: options.stall.min(LAX_TIME), ..options.clone() };
            let downloader = Downloader::new(options, progress.clone());
            match probe(&Downloader::new(once, progress.clone()), &secure).await {
                Ok(answer) => (downloader, secure, answer),
                // What cannot be reached at all is not reached by the other way either, but then says so in its words.
                Err(_) => {
                    let plain = url(&format!("http://{host}/v2/"), reference)?;
                    let answer = probe(&downloader, &plain).await?;
                    (downloader, plain, answer)
                }
            }
        } else {
            (downloader.clone(), secure.clone(), probe(downloader, &secure).await?)
        };
        let challenge = match answer.status {
            StatusCode::UNAUTHORIZED => {
                let headers = answer.headers.get_all(WWW_AUTHENTICATE).iter();
                let challenge = Challenge::best(headers.filter_map(|value| value.to_str().ok()));
                Some(challenge.ok_or_else(|| ImageError::Protocol {
                    registry: reference.registry().to_owned(),
                    why: "it wants credentials of a kind that is not known".into(),
                })?)
            }
            _ => None,
        };
        let (reference, pass) = (reference.clone(), Mutex::new(None));
        let registry = Self { downloader, strict, insecure, base, reference, login, challenge, pass };
        registry.get_let_in().await?;
        Ok(registry)
    }

    /// The manifest or index under a tag or digest: bytes with the right digest.
    pub(super) async fn manifest(&self, pointer: &str) -> Result<(Vec<u8>, Digest), ImageError> {
        let url = self.url(&format!("manifests/{pointer}"))?;
        let what = format!("the manifest of {}", self.reference);
        let answer = self
            .admitted(async |pass| {
                let mut request = Request::new(what.clone(), url.clone(), MAX_MANIFEST);
                request.headers = pass;
                request.headers.insert(ACCEPT, HeaderValue::from_static(MANIFESTS));
                let answer = self.downloader.answer(&request, None).await?;
                if answer.status == StatusCode::OK { Ok(answer) } else { Err(answer.refused(&url)) }
            })
            .await?;
        let got = Digest::of(&answer.body);
        let announced = answer.headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
        // A tag's digest is only announced; one of another algorithm than ours says nothing to us.
        let expected = pointer.parse().ok().or(announced.and_then(|text| text.parse().ok()));
        match expected {
            Some(expected) if expected != got => {
                Err(ImageError::Mismatch { what, expected: Box::new(expected), got: Box::new(got) })
            }
            _ => Ok((answer.body, got)),
        }
    }

    /// A config.
    pub(super) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let request = self.blob(descriptor, MAX_CONFIG, "config")?;
        self.admitted(async |pass| {
            let request = Request { headers: pass, ..request.clone() };
            self.downloader.bytes(&request).await
        })
        .await
    }

    /// A layer, into a blob of the store, unless it is there.
    pub(super) async fn layer(&self, store: &Store, descriptor: &Descriptor) -> Result<Digest, ImageError> {
        let request = self.blob(descriptor, descriptor.size, "layer")?;
        self.admitted(async |pass| {
            let request = Request { headers: pass, ..request.clone() };
            self.downloader.fetch_blob(store, &request, BlobMode::Data).await
        })
        .await
    }

    fn blob(&self, descriptor: &Descriptor, max: u64, kind: &str) -> Result<Request, ImageError> {
        let url = self.url(&format!("blobs/{}", descriptor.digest))?;
        let what = format!("{kind} {} of {}", &descriptor.digest.hex()[..12], self.reference.familiar());
        let mut request = Request::new(what, url, max);
        request.digest = Some(descriptor.digest);
        request.size = Some(descriptor.size);
        Ok(request)
    }

    /// Asks with the pass that we have, and once more with a new one when that has run out.
    async fn admitted<T>(
        &self,
        ask: impl AsyncFn(HeaderMap) -> Result<T, DownloadError>,
    ) -> Result<T, ImageError> {
        let pass = self.pass();
        match ask(headers(pass.as_ref())).await {
            Err(DownloadError::Unauthorized { status: 401, .. })
                if matches!(self.challenge, Some(Challenge::Bearer { .. })) =>
            {
                // Layers come side by side: one of them fetches the new pass for all.
                if self.pass() == pass {
                    self.get_let_in().await?;
                }
                ask(headers(self.pass().as_ref())).await.map_err(|error| self.explain(error))
            }
            other => other.map_err(|error| self.explain(error)),
        }
    }

    fn explain(&self, error: DownloadError) -> ImageError {
        match error {
            DownloadError::Unauthorized { .. } => self.unauthorized(String::new()),
            DownloadError::NotFound { .. } => {
                ImageError::NotInRegistry { reference: self.reference.to_string(), source: Box::new(error) }
            }
            other => other.into(),
        }
    }

    fn unauthorized(&self, message: String) -> ImageError {
        ImageError::Unauthorized {
            registry: self.reference.registry().to_owned(),
            reference: self.reference.to_string(),
            had_credentials: self.login != Login::Anonymous,
            message,
        }
    }

    fn pass(&self) -> Option<HeaderValue> {
        self.pass.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    async fn get_let_in(&self) -> Result<(), ImageError> {
        let pass = match (&self.challenge, &self.login) {
            (None, _) => None,
            (Some(Challenge::Basic), Login::Password { username, password }) => {
                Some(basic(username, password.expose()))
            }
            // Without credentials that fit: what is asked for next says what is missing.
            (Some(Challenge::Basic), _) => None,
            (Some(Challenge::Bearer { realm, service }), _) => {
                Some(self.token(realm, service.as_deref()).await?)
            }
        };
        *self.pass.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = pass;
        Ok(())
    }

    /// A pass from the token server.
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<HeaderValue, ImageError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let protocol = |why: &str| ImageError::Protocol {
            registry: self.reference.registry().to_owned(),
            why: why.to_owned(),
        };
        let mut url = Url::parse(realm).map_err(|_| protocol("it names no valid token server"))?;
        // What is allowed of a registry on this host is not allowed of the host that it sends our password to.
        let lax = match self.insecure {
            Insecure::Always => true,
            Insecure::Loopback => is_loopback(&url),
            Insecure::Never => false,
        };
        let downloader = if lax { &self.downloader } else { &self.strict };
        let plain = lax && url.scheme() == "http" && self.base.scheme() == "http";
        if (url.scheme() != "https" && !plain) || !url.has_host() {
            return Err(protocol("its token server cannot be asked over an encrypted connection"));
        }
        let scope = format!("repository:{}:pull", self.reference.repository());
        let mut request;
        let answer = match &self.login {
            Login::IdentityToken(token) => {
                request = Request::new("a token of the registry", url.clone(), MAX_ANSWER);
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", service.unwrap_or_default()),
                    ("client_id", "smartvm"),
                    ("scope", &scope),
                    ("refresh_token", token.expose()),
                ];
                downloader.answer(&request, Some(&form)).await?
            }
            login => {
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                url.query_pairs_mut().append_pair("scope", &scope);
                request = Request::new("a token of the registry", url.clone(), MAX_ANSWER);
                if let Login::Password { username, password } = login {
                    request.headers.insert(AUTHORIZATION, basic(username, password.expose()));
                }
                downloader.answer(&request, None).await?
            }
        };
        if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST)
        {
            return Err(self.unauthorized(said(&answer)));
        }
        if answer.status != StatusCode::OK {
            return Err(self.explain(answer.refused(&url)));
        }
        let token: Token = serde_json::from_slice(&answer.body)
            .map_err(|_| protocol("its token server's answer is not JSON of the expected form"))?;
        let token = token.token.filter(|token| !token.is_empty()).or(token.access_token);
        let token = token.ok_or_else(|| protocol("its token server gives no token"))?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| protocol("its token server gives something that is no token"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn url(&self, path: &str) -> Result<Url, ImageError> {
        url(&format!("{}{}/{path}", self.base, self.reference.repository()), &self.reference)
    }
}

async fn probe(downloader: &Downloader, base: &Url) -> Result<Answer, DownloadError> {
    downloader.answer(&Request::new("the registry", base.clone(), MAX_ANSWER), None).await
}

fn url(text: &str, reference: &Reference) -> Result<Url, ImageError> {
    Url::parse(text).map_err(|error| ImageError::Protocol {
        registry: reference.registry().to_owned(),
        why: format!("it has no valid address: {error}"),
    })
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn headers(pass: Option<&HeaderValue>) -> HeaderMap {
    pass.map(|pass| (AUTHORIZATION, pass.clone())).into_iter().collect()
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    let mut value = HeaderValue::from_str(&format!("Basic {text}")).expect("base64 is ASCII");
    value.set_sensitive(true);
    value
}

/// The server's words in an answer that refuses.
fn said(answer: &Answer) -> String {
    let value: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let words = value["errors"][0]["message"].as_str().or(value["details"].as_str());
    words.unwrap_or_default().chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests;
