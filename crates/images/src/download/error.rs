//! Why something could not be fetched, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use smartvm_core::explain::{Code, Explain};

use crate::digest::Digest;
use crate::store::StoreError;

/// Something could not be fetched. URLs in it never show a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The text is neither a URL that can be fetched nor a path.
    #[error("cannot fetch from `{text}`: {why}")]
    BadUrl {
        /// What was given.
        text: String,
        /// Why not.
        why: String,
    },
    /// The HTTP client could not be made: no CA certificates, a malformed proxy or CA file.
    #[error("cannot make an HTTPS client")]
    Client {
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A variable of the environment that says how to connect cannot be followed.
    #[error("cannot follow the variable {name}: {why}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Why not; without a password that it may hold.
        why: String,
    },
    /// The host's name has no address, or no name server answered.
    #[error("cannot look up the host `{host}` of {url}")]
    Lookup {
        /// What was to be fetched.
        url: String,
        /// The name.
        host: String,
        /// The resolver's words.
        source: io::Error,
    },
    /// No connection: refused, unreachable, reset.
    #[error("cannot connect to {url}")]
    Connect {
        /// What was to be fetched.
        url: String,
        /// Whether a proxy is set, which then is what could not be reached.
        proxied: bool,
        /// Why not.
        source: io::Error,
    },
    /// No connection in time.
    #[error("no connection to {url} within {after:?}")]
    ConnectTimeout {
        /// What was to be fetched.
        url: String,
        /// Name lookup, TCP and TLS together.
        after: Duration,
    },
    /// The proxy refused to connect to the host.
    #[error("the proxy does not connect to {url}: {why}")]
    Proxy {
        /// What was to be fetched.
        url: String,
        /// What it answered.
        why: String,
    },
    /// TLS was refused by one side.
    #[error("no trusted TLS connection to {url}")]
    Tls {
        /// What was to be fetched.
        url: String,
        /// Which check failed.
        source: rustls::Error,
    },
    /// 401 or 403.
    #[error("{url} answered {status}: it refuses these credentials, or wants some")]
    Unauthorized {
        /// What was to be fetched.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// 404 or 410.
    #[error("{url} does not exist (HTTP {status})")]
    NotFound {
        /// What was to be fetched.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// 429.
    #[error("{url} answered 429: too many requests{}", Later(*.retry_after))]
    TooManyRequests {
        /// What was to be fetched.
        url: String,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// 5xx.
    #[error("{url} answered {status}: the server failed{}", Later(*.retry_after))]
    Server {
        /// What was to be fetched.
        url: String,
        /// The HTTP status.
        status: u16,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Any other status than the ones that bring a body.
    #[error("{url} answered {status}, which brings no file")]
    Status {
        /// What was to be fetched.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// A redirect that is not followed.
    #[error("{url} redirects to {to}: {why}")]
    Redirect {
        /// What was to be fetched.
        url: String,
        /// Where to.
        to: String,
        /// Why it is not followed.
        why: &'static str,
    },
    /// The connection ended, or its bytes are not HTTP.
    #[error("{url} gave no valid answer: {why}")]
    Protocol {
        /// What was to be fetched.
        url: String,
        /// What was wrong.
        why: String,
    },
    /// The body ended early.
    #[error("the body of {url} ended after {got} bytes{}", Promised(*.expected))]
    ShortBody {
        /// What was to be fetched.
        url: String,
        /// Bytes received, earlier tries included.
        got: u64,
        /// Bytes promised.
        expected: Option<u64>,
    },
    /// No byte came for a while.
    #[error("{url} sent nothing for {after:?} (after {got} bytes)")]
    Stalled {
        /// What was to be fetched.
        url: String,
        /// For how long.
        after: Duration,
        /// Bytes received, earlier tries included.
        got: u64,
    },
    /// Not the promised size.
    #[error("{url} has the wrong size: expected {expected} bytes, got {got}")]
    Size {
        /// What was to be fetched.
        url: String,
        /// Bytes promised.
        expected: u64,
        /// Bytes that the server announces or sent.
        got: u64,
    },
    /// More than may be fetched.
    #[error("{url} is larger than the {max} bytes that are accepted for it")]
    TooLarge {
        /// What was to be fetched.
        url: String,
        /// The bound in bytes.
        max: u64,
    },
    /// Not the promised content.
    #[error("{url} has the wrong content: expected {expected}, got {got}")]
    Digest {
        /// What was to be fetched.
        url: String,
        /// The promised digest.
        expected: Box<Digest>,
        /// The digest of what came.
        got: Box<Digest>,
    },
    /// The disk is full, or would be.
    #[error("no room for {what} in {}{}", path.display(), Room { needed: *.needed, free: *.free })]
    NoRoom {
        /// What was to be fetched.
        what: String,
        /// Where it was to be written.
        path: PathBuf,
        /// Bytes still to come, if known.
        needed: Option<u64>,
        /// Bytes that were free, if known.
        free: Option<u64>,
    },
    /// A local file cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done to it.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The store cannot take it.
    #[error("cannot keep what was fetched")]
    Store {
        /// Why not.
        source: Box<StoreError>,
    },
    /// Each of several places failed.
    #[error("none of the {} places has {what}:{}", failures.len(), Each(failures))]
    Everywhere {
        /// What was to be fetched.
        what: String,
        /// The last failure of each place, in the order they were given.
        failures: Vec<DownloadError>,
    },
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same place may do better soon, or at the time it says.
    Again(Option<Duration>),
    /// This place will not do better; another may.
    NotHere,
    /// No place helps: the fault is on this side.
    Stop,
}

impl DownloadError {
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            // That there is no such name will be so in a second, too.
            Self::Lookup { source, .. } if !is_temporary(source) => Verdict::NotHere,
            Self::Lookup { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Protocol { .. }
            | Self::ShortBody { .. }
            | Self::Stalled { .. }
            | Self::Status { status: 408, .. } => Verdict::Again(None),
            Self::TooManyRequests { retry_after, .. } | Self::Server { retry_after, .. } => {
                Verdict::Again(*retry_after)
            }
            Self::Proxy { .. }
            | Self::Tls { .. }
            | Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Size { .. }
            | Self::TooLarge { .. }
            | Self::Digest { .. }
            | Self::BadUrl { .. }
            | Self::Everywhere { .. } => Verdict::NotHere,
            // A file that is missing is one place's fault, a file that cannot be written is ours.
            Self::File { doing, .. } if *doing == READ => Verdict::NotHere,
            Self::File { .. }
            | Self::NoRoom { .. }
            | Self::Client { .. }
            | Self::Variable { .. }
            | Self::Store { .. } => Verdict::Stop,
        }
    }

    /// Whether nothing could be reached: this host may have no way to the network at all.
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Lookup { .. } | Self::Connect { .. } | Self::ConnectTimeout { .. } => true,
            Self::Everywhere { failures, .. } => {
                !failures.is_empty() && failures.iter().all(Self::is_offline)
            }
            _ => false,
        }
    }
}

/// Whether the resolver itself says that another answer may come soon (`EAI_AGAIN`): no name server answered, or one that has
/// no answer yet. The standard library passes its words on, not its number.
///
/// Source: `gai_strerror` of glibc and of musl.
fn is_temporary(lookup: &io::Error) -> bool {
    let words = lookup.to_string();
    words.contains("Temporary failure in name resolution") || words.ends_with("Try again")
}

/// What is being done to a local source.
pub(super) const READ: &str = "read";

/// The ways to get things onto a host that cannot reach the network.
pub const WAYS_OUT: &str = "behind a proxy set HTTPS_PROXY (and NO_PROXY); a mirror can be named by SMARTVM_FIRECRACKER_URL and \
     SMARTVM_BASE_URL; on a host without network bring the files along and use `smartvm setup --from DIR`";

impl Explain for DownloadError {
    fn code(&self) -> Code {
        match self {
            Self::Unauthorized { .. } => Code::Unauthorized,
            Self::NotFound { .. } => Code::NotFound,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NotFound,
            Self::Size { .. } | Self::Digest { .. } => Code::DigestMismatch,
            Self::File { .. } | Self::NoRoom { .. } => Code::Host,
            Self::Store { source } => source.code(),
            Self::Everywhere { failures, .. } => match failures.split_first() {
                Some((first, rest)) if rest.iter().all(|other| other.code() == first.code()) => first.code(),
                _ => Code::DownloadFailed,
            },
            _ => Code::DownloadFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        self.hint_with(WAYS_OUT)
    }
}

impl DownloadError {
    /// The hint, with these ways out where this host may have no way to the network.
    pub(crate) fn hint_with(&self, ways_out: &str) -> Option<String> {
        Some(match self {
            Self::BadUrl { .. } => "give an http:// or https:// URL, a file:// URL or an absolute path".into(),
            Self::Variable { name, .. } if name.starts_with("SSL") => {
                format!("let {name} name a PEM file of CA certificates, or unset it")
            }
            Self::Variable { name, .. } => format!("write {name} like http://user:password@host:port, or unset it"),
            Self::Client { .. } => {
                "install the ca-certificates of your distribution, or name a PEM file with SSL_CERT_FILE; check HTTPS_PROXY".into()
            }
            Self::Lookup { .. } => format!("check the name and this host's DNS (/etc/resolv.conf); {ways_out}"),
            Self::Connect { proxied: true, .. } => {
                format!("a proxy is set: check that it runs, or unset it; {ways_out}")
            }
            Self::Connect { .. } | Self::ConnectTimeout { .. } => {
                format!("check that the server runs and that a firewall lets this host through; {ways_out}")
            }
            Self::Proxy { .. } => {
                "check HTTPS_PROXY (with user and password if it wants some: http://user:password@host:port), or except the host by NO_PROXY".into()
            }
            Self::Tls { source, .. } => tls_hint(source).into(),
            Self::Unauthorized { .. } => {
                "check the credentials and the address; object stores answer 403 also for what does not exist".into()
            }
            Self::NotFound { .. } => "check the address and the version; a mirror may not have it yet".into(),
            Self::TooManyRequests { .. } => "wait before you try again, or use a mirror or a proxy with a cache".into(),
            Self::Server { .. } => "try again later, or use a mirror".into(),
            Self::Status { .. } | Self::Protocol { .. } => {
                "check the address, and whether a proxy or a login page answers in the server's place".into()
            }
            Self::Redirect { .. } => "name the final https:// address".into(),
            Self::ShortBody { .. } | Self::Stalled { .. } => {
                "try again: what has been received is kept, and the download goes on from there".into()
            }
            Self::Size { .. } | Self::Digest { .. } => {
                "the file was changed or damaged on its way, or the promised value is of another version: get both from the same place".into()
            }
            Self::TooLarge { .. } => "check the address: this is not the file that is meant".into(),
            Self::NoRoom { .. } => {
                "free some space (`smartvm store gc`), or move the store with SMARTVM_DATA_DIR".into()
            }
            Self::File { .. } => "check the path and its permissions".into(),
            Self::Store { source } => return source.hint(),
            Self::Everywhere { failures, .. } => return failures.first().and_then(|first| first.hint_with(ways_out)),
        })
    }
}

fn tls_hint(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        ) => "check this host's clock; if it is right, the server's certificate must be renewed",
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "the server's certificate is for another host: check the address"
        }
        rustls::Error::InvalidCertificate(_) => {
            "where an own CA or an inspecting proxy signs, put its certificate among the system's, or in a PEM file named by SSL_CERT_FILE"
        }
        _ => "check that the port speaks TLS 1.2 or later, and whether a proxy inspects the connection",
    }
}

/// When to come back.
struct Later(Option<Duration>);

impl fmt::Display for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(after) => write!(f, ", to be asked again in {} s", after.as_secs()),
            None => Ok(()),
        }
    }
}

/// How many bytes were promised.
struct Promised(Option<u64>);

impl fmt::Display for Promised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, " of {bytes}"),
            None => Ok(()),
        }
    }
}

/// How much room there is and how much is needed.
struct Room {
    needed: Option<u64>,
    free: Option<u64>,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.needed, self.free) {
            (Some(needed), Some(free)) => write!(f, ": {needed} bytes are to come, {free} are free"),
            (Some(needed), None) => write!(f, ": {needed} bytes are to come"),
            _ => Ok(()),
        }
    }
}

/// A line per place.
struct Each<'a>(&'a [DownloadError]);

impl fmt::Display for Each<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in self.0 {
            write!(f, "\n  {failure}")?;
            let mut source = failure.source();
            while let Some(cause) = source {
                write!(f, ": {cause}")?;
                source = cause.source();
            }
        }
        Ok(())
    }
}
