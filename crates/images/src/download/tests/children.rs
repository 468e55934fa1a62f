//! What needs a process of its own: an environment, a limit, a death. The child is this test program once more, told by a
//! variable what to do.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::download::server::{Certificate, until};

const ROLE: &str = "SMARTVM_DOWNLOAD_TEST";

/// This test program again, to fetch `url` into the store in `store`.
fn child(store: &std::path::Path, url: &Url, env: &[(&str, &str)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "download::tests::children::role_of_the_child",
        "--nocapture",
        "--test-threads=1",
    ]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.env(ROLE, format!("{}\n{url}", store.display())).envs(env.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

/// What the child said of its download.
async fn said(child: Child) -> String {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.split_once("said: ")).map(|(_, said)| said.to_owned()).unwrap_or(text)
}

/// No test: the child's work. Run by hand it does nothing.
#[test]
fn role_of_the_child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (store, url) = role.split_once('\n').unwrap();
    if let Ok(limit) = std::env::var("SMARTVM_DOWNLOAD_TEST_FSIZE") {
        // Beyond the limit a signal comes first, which ends a process that does not handle it.
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Default::default()).unwrap();
        let limit = Some(limit.parse().unwrap());
        let limit = rustix::process::Rlimit { current: limit, maximum: limit };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let fetched = runtime.block_on(async {
        let store = Store::open(store.as_ref()).unwrap();
        let options =
            Options { proxy: Proxy::Environment, tries: 1, stall: Duration::from_secs(60), ..impatient() };
        let downloader = Downloader::new(options, Progress::none());
        downloader.fetch_blob(&store, &unknown(url.parse().unwrap()), BlobMode::Data).await
    });
    match fetched {
        Ok(digest) => println!("said: {digest}"),
        Err(error) => println!("said: {} {error}", error.code()),
    }
}

#[tokio::test]
async fn proxies_are_taken_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let direct = Server::new(|_, _| Reply::ok("direct")).await;
    let proxy = Server::new(|asked, _| match asked.method.as_str() {
        "CONNECT" => Reply::status(403),
        _ => Reply::ok("by proxy"),
    })
    .await;
    let by = format!("http://{}", proxy.address());
    let store = dir.path().join("store");
    let run = async |url: Url, env: &[(&str, &str)]| said(child(&store, &url, env)).await;
    let far: Url = "http://far.invalid/x".parse().unwrap();
    assert_eq!(run(far.clone(), &[("HTTP_PROXY", &by)]).await, Digest::of(b"by proxy").to_string());
    assert_eq!(run(far, &[("all_proxy", &by)]).await, Digest::of(b"by proxy").to_string());
    let url = direct.url("/x");
    let excepted = [("http_proxy", by.as_str()), ("no_proxy", "example.com,localhost")];
    assert_eq!(run(url, &excepted).await, Digest::of(b"direct").to_string());
    let refused = run("https://far.invalid/x".parse().unwrap(), &[("HTTPS_PROXY", &by)]).await;
    assert!(refused.starts_with("DOWNLOAD_FAILED the proxy does not connect to"), "{refused}");
}

#[tokio::test]
async fn ssl_cert_file_names_whom_to_trust() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = Certificate::good();
    let server = Server::tls(&certificate, |_, _| Reply::ok("right")).await;
    let pem = dir.path().join("ca.pem");
    certificate.write_ca(&pem);
    let store = dir.path().join("store");
    let trusted = said(child(&store, &server.url("/x"), &[("SSL_CERT_FILE", pem.to_str().unwrap())])).await;
    assert_eq!(trusted, Digest::of(b"right").to_string());
    let other = dir.path().join("other.pem");
    Certificate::good().write_ca(&other);
    let refused = said(child(&store, &server.url("/x"), &[("SSL_CERT_FILE", other.to_str().unwrap())])).await;
    assert!(refused.starts_with("DOWNLOAD_FAILED no trusted TLS connection"), "{refused}");
}

#[tokio::test]
async fn a_file_that_may_not_grow_is_named_as_a_lack_of_room() {
    let dir = tempfile::tempdir().unwrap();
    // No length is announced, so only the write finds out.
    let server = Server::new(|_, _| Reply::without_length(200, &[], noise(2 << 20))).await;
    let store = dir.path().join("store");
    let limit = [("SMARTVM_DOWNLOAD_TEST_FSIZE", "1000000")];
    let refused = said(child(&store, &server.url("/x"), &limit)).await;
    assert!(refused.starts_with("HOST no room for a thing in "), "{refused}");
}

#[tokio::test]
async fn killed_in_the_middle_the_next_try_fetches_the_rest() {
    let bytes = noise(8 << 20);
    let served = bytes.clone();
    let server = Server::new(move |asked, before| {
        let reply = Reply::file(asked, &served, "\"1\"");
        if before == 0 { reply.hang(5 << 20) } else { reply }
    })
    .await;
    let bench = Bench::new();
    let request = unknown(server.url("/x"));
    let path = bench.store.dir().join("partial").join(request.key());
    let mut child = child(bench.store.dir(), &request.urls[0], &[]);
    let written = || std::fs::metadata(&path).map_or(0, |file| file.len());
    until("most of what was sent is on the disk", || written() >= 4 << 20).await;
    child.kill().unwrap();
    tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    let kept = written();
    let sent_to_the_dead = server.body_bytes();
    assert_eq!(bench.fetch(&request).await.unwrap(), bytes);
    let range = server.asked()[1].header("range").map(str::to_owned);
    assert_eq!(range, Some(format!("bytes={kept}-")));
    assert_eq!(server.body_bytes() - sent_to_the_dead, (8 << 20) - kept);
}
