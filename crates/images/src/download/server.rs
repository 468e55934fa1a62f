//! A web server for tests that misbehaves on request: it says what its script says, byte for byte, and writes down
//! what it was asked.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use url::Url;

/// A running server. It ends when this is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    scheme: &'static str,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    asked: Mutex<Vec<Asked>>,
    body_bytes: AtomicU64,
}

/// The first byte of a client that wants TLS.
const TLS_HANDSHAKE: u8 = 0x16;

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query; the whole URL when we are asked as a proxy.
    pub(crate) target: String,
    headers: BTreeMap<String, String>,
    /// As long as the headers say.
    pub(crate) body: String,
}

impl Asked {
    /// A header's value, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is said and done in answer to one request; then the connection is closed.
pub(crate) struct Reply {
    head: String,
    body: Vec<u8>,
    end: End,
    gate: Option<Arc<Semaphore>>,
}

/// What happens after the last byte.
enum End {
    Close,
    Hang,
    Tunnel(SocketAddr),
}

impl Reply {
    /// A status line, headers and a body, whose length is announced.
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = body.len().to_string();
        let mut reply = Self::without_length(status, headers, body);
        reply.head = reply.head.trim_end().to_owned() + &format!("\r\ncontent-length: {length}\r\n\r\n");
        reply
    }

    /// The same with a body that lasts until the connection ends.
    pub(crate) fn without_length(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let mut head = format!("HTTP/1.1 {status} Whatever\r\nconnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        Self { head: head + "\r\n", body: body.into(), end: End::Close, gate: None }
    }

    /// 200 and a body.
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, &[], body)
    }

    /// A status without a body.
    pub(crate) fn status(status: u16) -> Self {
        Self::new(status, &[], "")
    }

    /// A redirect.
    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(302, &[("location", to)], "")
    }

    /// Exactly these bytes, HTTP or not.
    pub(crate) fn raw(bytes: impl Into<String>) -> Self {
        Self { head: bytes.into(), body: vec![], end: End::Close, gate: None }
    }

    /// What a good server answers that has `bytes` under this entity tag: ranges as in RFC 9110.
    pub(crate) fn file(asked: &Asked, bytes: &[u8], etag: &str) -> Self {
        let range = asked
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let same = asked.header("if-range").is_none_or(|tag| tag == etag);
        let headers = [("etag", etag), ("accept-ranges", "bytes")];
        match range.filter(|_| same) {
            Some(from) if from >= bytes.len() => {
                Self::new(416, &[("content-range", &format!("bytes */{}", bytes.len()))], "")
            }
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Self::new(206, &[headers[0], ("content-range", &range)], &bytes[from..])
            }
            None => Self::new(200, &headers, bytes),
        }
    }

    /// Ends the connection after `len` bytes of the body.
    pub(crate) fn cut(mut self, len: usize) -> Self {
        self.body.truncate(len);
        self
    }

    /// Sends `len` bytes of the body and then nothing more, without ending.
    pub(crate) fn hang(mut self, len: usize) -> Self {
        self.body.truncate(len);
        self.end = End::Hang;
        self
    }

    /// Says nothing before the gate has a permit.
    pub(crate) fn behind(mut self, gate: &Arc<Semaphore>) -> Self {
        self.gate = Some(Arc::clone(gate));
        self
    }

    /// Hangs without even a head.
    pub(crate) fn silence() -> Self {
        Self { head: String::new(), body: vec![], end: End::Hang, gate: None }
    }

    /// Agrees to be a tunnel, and is one.
    pub(crate) fn tunnel(to: SocketAddr) -> Self {
        Self { head: "HTTP/1.1 200 Connected\r\n\r\n".into(), body: vec![], end: End::Tunnel(to), gate: None }
    }
}

impl Server {
    /// A server that answers each request by what `answer` says, given the request and how many came before it.
    pub(crate) async fn new(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(None, answer).await
    }

    /// The same over TLS.
    pub(crate) async fn tls(
        certificate: &Certificate,
        answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start(Some(certificate.acceptor()), answer).await
    }

    /// Files by path; everything else is 404.
    pub(crate) async fn of_files(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let files: BTreeMap<String, Vec<u8>> = files.into_iter().collect();
        Self::new(move |asked, _| match files.get(&asked.target) {
            Some(bytes) => Reply::file(asked, bytes, "\"1\""),
            None => Reply::status(404),
        })
        .await
    }

    async fn start(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let seen = Arc::new(Seen::default());
        let (answer, shared) = (Arc::new(answer), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            // Connections end with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen, tls) = (Arc::clone(&answer), Arc::clone(&shared), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, &*answer, &seen).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &*answer, &seen).await,
                            Err(error) => Err(error),
                        },
                    }
                });
            }
        });
        Self { address, scheme, seen, task }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path on it, by the name `localhost`.
    pub(crate) fn url(&self, path: &str) -> Url {
        format!("{}://localhost:{}{path}", self.scheme, self.address.port()).parse().unwrap()
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.seen.asked.lock().unwrap().clone()
    }

    /// Bytes of bodies that it has sent so far, as far as the kernel took them.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.seen.body_bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: &(dyn Fn(&Asked, usize) -> Reply + Send + Sync),
    seen: &Seen,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
        if head == [TLS_HANDSHAKE] {
            // As servers do that speak none.
            return stream.shutdown().await;
        }
    }
    let mut asked = read_head(&String::from_utf8_lossy(&head));
    let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    asked.body = String::from_utf8_lossy(&body).into_owned();
    let before = {
        let mut all = seen.asked.lock().unwrap();
        all.push(asked.clone());
        all.len() - 1
    };
    let reply = answer(&asked, before);
    if let Some(gate) = &reply.gate {
        let _ = gate.acquire().await;
    }
    stream.write_all(reply.head.as_bytes()).await?;
    if asked.method != "HEAD" {
        for piece in reply.body.chunks(16 << 10) {
            stream.write_all(piece).await?;
            seen.body_bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
    }
    stream.flush().await?;
    match reply.end {
        End::Close => {}
        End::Hang => std::future::pending::<()>().await,
        End::Tunnel(to) => {
            let mut far = TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut far).await?;
        }
    }
    stream.shutdown().await
}

fn read_head(head: &str) -> Asked {
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default().into(), first.next().unwrap_or_default().into());
    let headers = lines.filter_map(|line| line.split_once(": "));
    Asked {
        method,
        target,
        headers: headers.map(|(name, value)| (name.to_lowercase(), value.into())).collect(),
        body: String::new(),
    }
}

/// A certificate for `localhost`, and the CA that signed it.
pub(crate) struct Certificate {
    ca_pem: String,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Certificate {
    /// A good one.
    pub(crate) fn good() -> Self {
        Self::with(|_| {})
    }

    /// One whose parameters `change` has spoilt.
    pub(crate) fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut ca = CertificateParams::new(vec![]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        Self { ca_pem, chain: vec![leaf.der().clone()], key: key.serialize_der() }
    }

    /// Writes the CA's certificate to a file.
    pub(crate) fn write_ca(&self, path: &Path) {
        std::fs::write(path, &self.ca_pem).unwrap();
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone().try_into().unwrap())
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Waits until `true_at_last`, at most 20 s.
pub(crate) async fn until(what: &str, true_at_last: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !true_at_last() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}
