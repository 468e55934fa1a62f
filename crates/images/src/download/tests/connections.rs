//! Connections that do not come about.

use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use super::*;
use crate::download::error::Verdict;
use crate::download::server::Certificate;

#[tokio::test]
async fn nobody_listens() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    let bench = Bench::new();
    let url = format!("http://127.0.0.1:{port}/x").parse().unwrap();
    let (error, code, text) = bench.refused(&unknown(url)).await;
    assert_eq!(code, Code::DownloadFailed);
    assert!(
        text.contains("cannot connect to http://127.0.0.1") && text.contains("Connection refused"),
        "{text}"
    );
    assert!(error.is_offline());
    assert_eq!(bench.notes().len(), 2, "three tries: {:?}", bench.notes());
    let hint = error.hint().unwrap();
    for way in ["HTTPS_PROXY", "--from DIR", "SMARTVM_FIRECRACKER_URL"] {
        assert!(hint.contains(way), "{hint}");
    }
}

#[tokio::test]
async fn the_name_has_no_address() {
    // Reserved by RFC 2606 never to exist. A label this long is refused by the resolver itself, without a network.
    let host = format!("{}.invalid", "x".repeat(70));
    let bench = Bench::with(Options { tries: 3, ..impatient() });
    let (error, code, text) = bench.refused(&unknown(format!("http://{host}/x").parse().unwrap())).await;
    assert!(matches!(error, DownloadError::Lookup { .. }), "{error:?}");
    assert_eq!(code, Code::DownloadFailed);
    assert!(text.contains(&format!("cannot look up the host `{host}`")) && error.is_offline(), "{text}");
    assert!(error.hint().unwrap().contains("/etc/resolv.conf"));
    assert_eq!(bench.notes(), Vec::<String>::new(), "nothing to try again");
}

#[test]
fn only_a_resolver_that_says_so_is_asked_again() {
    for (words, again) in [
        ("failed to lookup address information: Name or service not known", false),
        ("failed to lookup address information: No address associated with hostname", false),
        ("failed to lookup address information: Non-recoverable failure in name resolution", false),
        ("failed to lookup address information: Temporary failure in name resolution", true),
        ("failed to lookup address information: Try again", true),
    ] {
        let source = std::io::Error::other(words);
        let error = DownloadError::Lookup { url: "http://x/".into(), host: "x".into(), source };
        assert_eq!(matches!(error.verdict(), Verdict::Again(None)), again, "{words}");
    }
}

#[tokio::test]
async fn nobody_answers() {
    // Accepted by the kernel, and then TLS is never spoken.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("https://127.0.0.1:{}/x", listener.local_addr().unwrap().port()).parse().unwrap();
    let (error, _, text) = Bench::with(Options { tries: 1, ..impatient() }).refused(&unknown(url)).await;
    assert!(matches!(error, DownloadError::ConnectTimeout { .. }), "{error:?}");
    assert!(text.contains("no connection to https://127.0.0.1") && text.contains("within 500ms"), "{text}");

    let server = Server::new(|_, _| Reply::silence()).await;
    let bench = Bench::with(Options { tries: 1, ..impatient() });
    let (error, _, text) = bench.refused(&unknown(server.url("/x"))).await;
    assert!(matches!(error, DownloadError::Stalled { got: 0, .. }), "{error:?}");
    assert!(text.contains("sent nothing for 300ms"), "{text}");
}

async fn tls_refused(certificate: Certificate, trusted: bool) -> (String, String) {
    let server = Server::tls(&certificate, |_, _| Reply::ok("right")).await;
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("ca.pem");
    certificate.write_ca(&pem);
    let extra_ca = if trusted { vec![pem] } else { vec![] };
    let bench = Bench::with(Options { extra_ca, ..impatient() });
    let (error, code, text) = bench.refused(&known(server.url("/x"), b"right")).await;
    assert!(matches!(error, DownloadError::Tls { .. }), "{error:?}");
    assert_eq!(code, Code::DownloadFailed);
    assert!(text.starts_with("no trusted TLS connection to https://localhost"), "{text}");
    assert!(bench.notes().is_empty(), "a certificate does not become better: {:?}", bench.notes());
    (text, error.hint().unwrap())
}

#[tokio::test]
async fn certificates_that_are_no_good() {
    let (text, hint) = tls_refused(Certificate::good(), false).await;
    assert!(text.contains("UnknownIssuer") && hint.contains("SSL_CERT_FILE"), "{text}; {hint}");
    let expired = Certificate::with(|params| {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let (text, hint) = tls_refused(expired, true).await;
    assert!(text.contains("expired") && hint.contains("clock"), "{text}; {hint}");
    let foreign = Certificate::with(|params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("elsewhere.example".try_into().unwrap())];
    });
    let (text, hint) = tls_refused(foreign, true).await;
    assert!(text.contains("localhost") && hint.contains("another host"), "{text}; {hint}");
}

#[tokio::test]
async fn an_own_ca_is_trusted_when_it_is_named() {
    let certificate = Certificate::good();
    let server = Server::tls(&certificate, |_, _| Reply::ok("right")).await;
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("ca.pem");
    certificate.write_ca(&pem);
    let bench = Bench::with(Options { extra_ca: vec![pem.clone()], ..impatient() });
    assert_eq!(bench.fetch(&known(server.url("/x"), b"right")).await.unwrap(), b"right");

    std::fs::write(&pem, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let (error, _, _) =
        Bench::with(Options { extra_ca: vec![pem], ..impatient() }).refused(&unknown(server.url("/"))).await;
    assert!(matches!(error, DownloadError::Client { .. }), "{error:?}");
    let missing = Options { extra_ca: vec!["/nowhere.pem".into()], ..impatient() };
    let (_, _, text) = Bench::with(missing).refused(&unknown(server.url("/"))).await;
    assert!(text.contains("cannot read the CA certificates in /nowhere.pem"), "{text}");
}

#[tokio::test]
async fn a_port_that_does_not_speak_tls_is_named() {
    let server = Server::new(|_, _| Reply::ok("right")).await;
    let mut url = server.url("/x");
    url.set_scheme("https").unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
    let plain = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let (error, _, text) = Bench::new().refused(&unknown(url)).await;
    assert!(matches!(error, DownloadError::Tls { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("speaks TLS"), "{text}");
    plain.abort();
}

#[tokio::test]
async fn encryption_is_not_left_again() {
    let plain = Server::new(|_, _| Reply::ok("right")).await;
    let to = plain.url("/y").to_string();
    let certificate = Certificate::good();
    let server = Server::tls(&certificate, move |_, _| Reply::redirect(&to)).await;
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("ca.pem");
    certificate.write_ca(&pem);
    let bench = Bench::with(Options { extra_ca: vec![pem], ..impatient() });
    let (_, code, text) = bench.refused(&known(server.url("/x"), b"right")).await;
    assert_eq!(code, Code::DownloadFailed);
    assert!(text.contains("that would leave the encrypted connection"), "{text}");
    assert_eq!(plain.asked().len(), 0);
}

#[tokio::test]
async fn proxies_carry_both_kinds_and_say_no_in_words() {
    let certificate = Certificate::good();
    let secure = Server::tls(&certificate, |_, _| Reply::ok("right")).await;
    let target = secure.address();
    let proxy =
        Server::new(move |asked, _| match (asked.method.as_str(), asked.header("proxy-authorization")) {
            (_, None) => Reply::new(407, &[("proxy-authenticate", "Basic")], ""),
            ("CONNECT", _) if asked.target.starts_with("localhost:") => Reply::tunnel(target),
            ("CONNECT", _) => Reply::status(403),
            _ => Reply::ok("right"),
        })
        .await;
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("ca.pem");
    certificate.write_ca(&pem);
    let with = |proxy: &str| {
        Bench::with(Options {
            proxy: Proxy::Url(proxy.to_owned()),
            extra_ca: vec![pem.clone()],
            tries: 1,
            ..impatient()
        })
    };
    let address = proxy.address();
    let bench = with(&format!("http://user:pass@{address}"));
    assert_eq!(bench.fetch(&known(secure.url("/x"), b"right")).await.unwrap(), b"right");
    assert_eq!(
        with(&format!("http://user:pass@{address}"))
            .fetch(&known("http://far.invalid/x".parse().unwrap(), b"right"))
            .await
            .unwrap(),
        b"right"
    );
    assert_eq!(proxy.asked()[1].target, "http://far.invalid/x");

    let bare = with(&format!("http://user:pass@{address}"));
    for _ in 0..2 {
        assert_eq!(
            bare.downloader.bytes(&unknown("http://far.invalid/x".parse().unwrap())).await.unwrap(),
            b"right"
        );
    }
    let text = "what comes from http://far.invalid could be changed on its way: use https".to_owned();
    assert_eq!(
        bare.events
            .lock()
            .unwrap()
            .iter()
            .filter(|event| **event == Event::Warning { text: text.clone() })
            .count(),
        1
    );

    let (error, code, text) = bench.refused(&unknown("https://elsewhere.invalid/x".parse().unwrap())).await;
    assert!(matches!(error, DownloadError::Proxy { .. }), "{error:?}");
    assert_eq!(code, Code::DownloadFailed);
    assert!(
        text.contains("the proxy does not connect to https://elsewhere.invalid/x: unsuccessful"),
        "{text}"
    );
    for url in ["http://far.invalid/x", "https://far.invalid/x"] {
        let bench = with(&format!("http://{address}"));
        let (error, _, text) = bench.refused(&unknown(url.parse().unwrap())).await;
        assert!(matches!(error, DownloadError::Proxy { .. }), "{error:?}");
        assert!(text.contains("proxy auth"), "{text}");
        assert!(error.hint().unwrap().contains("user:password"));
    }
    drop(proxy);
    let (error, _, text) =
        with(&format!("http://{address}")).refused(&unknown("https://far.invalid/x".parse().unwrap())).await;
    assert!(matches!(error, DownloadError::Connect { proxied: true, .. }), "{error:?}");
    assert!(error.hint().unwrap().starts_with("a proxy is set"), "{text}");
}
