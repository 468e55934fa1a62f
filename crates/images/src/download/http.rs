//! One question and its answer over HTTP: redirects followed, every failure named.

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode};
use url::Url;

use super::error::DownloadError;
use super::{Options, Proxy, retry};

/// The client, made at its first use: reading the system's certificates takes milliseconds, and where there are none,
/// local files can still be read.
#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    connect_timeout: Duration,
    stall: Duration,
    redirects: u32,
    proxied: bool,
}

/// The names of the variables that make [`Proxy::Environment`] use a proxy.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

impl Http {
    /// The client that these options ask for.
    pub(super) fn new(options: &Options) -> Result<Self, DownloadError> {
        install_provider();
        check_environment(&options.proxy, |name| std::env::var_os(name))?;
        let client = |source: Box<dyn Error + Send + Sync>| DownloadError::Client { source };
        let mut builder = Client::builder()
            .user_agent(concat!("smartvm/", env!("CARGO_PKG_VERSION")))
            // Redirects are followed here, where each step can be judged and named.
            .redirect(reqwest::redirect::Policy::none())
            // What to try again is decided where the bytes are counted.
            .retry(reqwest::retry::never())
            .connect_timeout(options.connect_timeout)
            .http1_only()
            .referer(false)
            .dns_resolver(Arc::new(Resolver));
        let mut certificates = Vec::new();
        for path in &options.extra_ca {
            let pem = std::fs::read(path).map_err(|source| DownloadError::File {
                doing: "read the CA certificates in",
                path: path.clone(),
                source,
            })?;
            certificates
                .extend(reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| client(error.into()))?);
        }
        if !certificates.is_empty() {
            builder = builder.tls_certs_merge(certificates);
        }
        if options.accept_invalid_certs {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let proxied = match &options.proxy {
            Proxy::Environment => PROXY_VARIABLES
                .iter()
                .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())),
            Proxy::None => {
                builder = builder.no_proxy();
                false
            }
            Proxy::Url(url) => {
                let proxy = reqwest::Proxy::all(url.clone()).map_err(|error| client(error.into()))?;
                builder = builder.no_proxy().proxy(proxy);
                true
            }
        };
        let client = builder.build().map_err(|error| client(root(&error).into()))?;
        Ok(Self {
            client,
            connect_timeout: options.connect_timeout,
            stall: options.stall,
            redirects: options.redirects,
            proxied,
        })
    }

    /// Asks `method` of `url` and gives the first answer that is no redirect, with the URL it came from. `headers` go to
    /// `url` and along redirects within its origin only; `always` go along every redirect.
    pub(super) async fn ask(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        always: &HeaderMap,
    ) -> Result<(Response, Url), DownloadError> {
        let mut at = url.clone();
        for _ in 0..=self.redirects {
            let mut sent = always.clone();
            sent.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if same_origin(url, &at) {
                sent.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
            let asked = self.client.request(method.clone(), at.clone()).headers(sent).send();
            // The connect timeout runs inside of this one.
            let response = tokio::time::timeout(self.connect_timeout.saturating_add(self.stall), asked)
                .await
                .map_err(|_| DownloadError::Stalled { url: shown(url), after: self.stall, got: 0 })?
                .map_err(|error| self.explain(&error, url, &at))?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok((response, at));
            }
            at = next(url, &at, &response)?;
        }
        Err(DownloadError::Redirect { url: shown(url), to: shown(&at), why: "there are too many redirects" })
    }

    /// Sends a form. No redirect is followed: what is in it is for this server alone.
    pub(super) async fn post(
        &self,
        url: &Url,
        headers: HeaderMap,
        form: String,
    ) -> Result<Response, DownloadError> {
        let asked = self.client.post(url.clone()).headers(headers).body(form).send();
        tokio::time::timeout(self.connect_timeout + self.stall, asked)
            .await
            .map_err(|_| DownloadError::Stalled { url: shown(url), after: self.stall, got: 0 })?
            .map_err(|error| self.explain(&error, url, url))
    }

    /// What the failure of a request to `at` means, which began at `url`.
    fn explain(&self, error: &reqwest::Error, url: &Url, at: &Url) -> DownloadError {
        let url = shown(url);
        if let Some(source) = find::<rustls::Error>(error) {
            return DownloadError::Tls { url, source: source.clone() };
        }
        if let Some(LookupFailed { host, source }) = find::<LookupFailed>(error) {
            let source = io::Error::new(source.kind(), source.to_string());
            return DownloadError::Lookup { url, host: host.clone(), source };
        }
        if error.is_timeout() {
            return DownloadError::ConnectTimeout { url, after: self.connect_timeout };
        }
        let why = root(error);
        if error.is_connect() {
            let source = match find::<io::Error>(error) {
                Some(source) => copy(source),
                // The error type of a refused tunnel is not public; the tests hold its text.
                None => match why.strip_prefix("tunnel error: ") {
                    Some(why) => return DownloadError::Proxy { url: shown(at), why: why.to_owned() },
                    None => io::Error::other(why),
                },
            };
            return DownloadError::Connect { url, proxied: self.proxied, source };
        }
        DownloadError::Protocol { url, why }
    }
}

/// Refuses variables that nothing can be done with. The client would go on as if they were not set: past a proxy that is to be
/// used, and with other certificates than those that are to be trusted.
fn check_environment(
    proxy: &Proxy,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<(), DownloadError> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let refuse = |name, why: String| Err(DownloadError::Variable { name, why });
    if let Some(path) = set("SSL_CERT_FILE")
        && let Err(error) = std::fs::metadata(&path)
    {
        return refuse("SSL_CERT_FILE", format!("{}: {error}", path.display()));
    }
    for name in PROXY_VARIABLES.into_iter().filter(|_| *proxy == Proxy::Environment) {
        let Some(value) = set(name) else { continue };
        let Some(text) = value.to_str() else { return refuse(name, "it is not UTF-8".into()) };
        // Often it is named as `host:port`.
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        match Url::parse(&url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
            Ok(url) => {
                return refuse(name, format!("a proxy is reached by http or https, not by {}", url.scheme()));
            }
            Err(error) => return refuse(name, format!("it names no proxy: {error}")),
        }
    }
    Ok(())
}

/// The error of a status that brings no file.
pub(super) fn refused(url: &Url, response: &Response) -> DownloadError {
    let (status, headers) = (response.status().as_u16(), response.headers());
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let retry_after = text(RETRY_AFTER).and_then(|value| retry::retry_after(value, text(DATE)));
    let url = shown(url);
    match status {
        401 | 403 => DownloadError::Unauthorized { url, status },
        404 | 410 => DownloadError::NotFound { url, status },
        407 => DownloadError::Proxy { url, why: "proxy authentication required".into() },
        429 => DownloadError::TooManyRequests { url, retry_after },
        500..=599 => DownloadError::Server { url, status, retry_after },
        _ => DownloadError::Status { url, status },
    }
}

/// The length that the answer announces for its body.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Where a redirect leads.
fn next(url: &Url, at: &Url, response: &Response) -> Result<Url, DownloadError> {
    let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
    let refuse = |to: &str, why| Err(DownloadError::Redirect { url: shown(url), to: to.to_owned(), why });
    let Some(to) = to else { return refuse("nowhere", "the answer names no address") };
    let Ok(next) = at.join(to) else {
        return refuse(&to.chars().take(200).collect::<String>(), "that is no address");
    };
    match (at.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => Ok(next),
        ("https", "http") => refuse(&shown(&next), "that would leave the encrypted connection"),
        _ => refuse(&shown(&next), "only http and https addresses are followed"),
    }
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host() == other.host()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// What the names of parameters contain that give access: signed links, tokens.
const SECRETS: [&str; 7] = ["sig", "token", "secret", "password", "credential", "auth", "key"];

/// The URL as it may be shown: without user, password, fragment and secret parameters, and not endless.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Refused by URLs that have no host, which have no user either.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    if let Some(query) = url.query() {
        let kept = query.split('&').map(|pair| match pair.split_once('=') {
            Some((name, _)) if SECRETS.iter().any(|secret| name.to_ascii_lowercase().contains(secret)) => {
                format!("{name}=...")
            }
            _ => pair.to_owned(),
        });
        let kept: Vec<String> = kept.collect();
        url.set_query(Some(&kept.join("&")));
    }
    let text = url.as_str();
    if text.len() <= 300 { text.to_owned() } else { text.chars().take(300).chain("…".chars()).collect() }
}

/// The innermost cause as text. The outer ones only say that a request failed.
pub(super) fn root(error: &(dyn Error + 'static)) -> String {
    chain(error).pop().unwrap_or_default()
}

fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts = vec![];
    let mut at = Some(error);
    while let Some(cause) = at {
        texts.push(cause.to_string());
        at = below(cause);
    }
    texts
}

/// The first cause of this type.
pub(super) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut at = Some(error);
    while let Some(cause) = at {
        if let Some(found) = cause.downcast_ref::<T>() {
            return Some(found);
        }
        at = below(cause);
    }
    None
}

/// What an error wraps. An `io::Error` hides the error inside itself and names only that one's source.
fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return Some(inner);
    }
    error.source()
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// reqwest takes the process's default; a program that has chosen one keeps it.
fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Refused only when there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// The system's resolver, with a failure that can be recognised.
struct Resolver;

/// A name that has no address.
#[derive(Debug, thiserror::Error)]
#[error("cannot look up `{host}`")]
struct LookupFailed {
    host: String,
    source: io::Error,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await;
            match found.map(Iterator::collect::<Vec<SocketAddr>>) {
                Ok(addresses) => Ok(Box::new(addresses.into_iter()) as Addrs),
                Err(source) => Err(LookupFailed { host, source }.into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_cannot_be_followed_are_refused() {
        let check = |proxy: &Proxy, name: &str, value: &str| {
            check_environment(proxy, |asked| (asked == name).then(|| value.into()))
                .map_err(|error| error.to_string())
        };
        let environment = &Proxy::Environment;
        for good in ["", "proxy:3128", "http://u:p@proxy:3128", "https://proxy", "10.0.0.1:8080"] {
            assert_eq!(check(environment, "HTTPS_PROXY", good), Ok(()), "{good}");
        }
        for bad in ["junk://x", "http://", "http://a:b", "socks5://u:secret@x:1"] {
            let said = check(environment, "HTTPS_PROXY", bad).unwrap_err();
            assert!(said.contains("the variable HTTPS_PROXY") && !said.contains("secret"), "{said}");
            assert_eq!(check(&Proxy::None, "HTTPS_PROXY", bad), Ok(()));
        }
        let said = check(&Proxy::None, "SSL_CERT_FILE", "/no/such.pem").unwrap_err();
        assert!(said.contains("SSL_CERT_FILE: /no/such.pem: No such file"), "{said}");
    }

    #[test]
    fn what_gives_access_is_not_shown() {
        for (url, wanted) in [
            ("https://u:p@h/a?list-type=2&prefix=x#f", "https://h/a?list-type=2&prefix=x"),
            ("https://h/a?X-Amz-Signature=00ff&x=1&sp=r", "https://h/a?X-Amz-Signature=...&x=1&sp=r"),
            ("https://h/a?access_token=t", "https://h/a?access_token=..."),
        ] {
            assert_eq!(shown(&url.parse().unwrap()), wanted);
        }
    }
}
