//! Answers that are not the thing.

use std::os::unix::ffi::OsStrExt as _;

use super::*;

async fn refused_by(
    reply: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
) -> (Server, Code, String) {
    let server = Server::new(reply).await;
    let (_, code, text) = Bench::new().refused(&known(server.url("/x"), b"right")).await;
    assert!(text.contains("localhost"), "which place: {text}");
    (server, code, text)
}

#[tokio::test]
async fn statuses_that_do_not_pass_are_not_asked_again() {
    for (status, code, part) in [
        (400, Code::DownloadFailed, "answered 400, which brings no file"),
        (401, Code::Unauthorized, "answered 401: it refuses these credentials"),
        (403, Code::Unauthorized, "answered 403: it refuses these credentials"),
        (404, Code::NotFound, "does not exist (HTTP 404)"),
        (410, Code::NotFound, "does not exist (HTTP 410)"),
        (204, Code::DownloadFailed, "answered 204, which brings no file"),
        (304, Code::DownloadFailed, "answered 304, which brings no file"),
    ] {
        let (server, got, text) =
            refused_by(move |_, _| Reply::raw(format!("HTTP/1.1 {status} x\r\n\r\n"))).await;
        assert_eq!(got, code, "{text}");
        assert!(text.contains(part), "{text}");
        assert_eq!(server.asked().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_failing_server_is_asked_again_and_again_until_it_is_too_often() {
    for (status, part) in
        [(500, "answered 500: the server failed"), (503, "answered 503"), (429, "answered 429: too many")]
    {
        let (server, code, text) = refused_by(move |_, _| Reply::status(status)).await;
        assert_eq!(code, Code::DownloadFailed);
        assert!(text.contains(part), "{text}");
        assert_eq!(server.asked().len(), 3, "{status}");
        let server =
            Server::new(move |_, before| if before < 2 { Reply::status(status) } else { Reply::ok("right") })
                .await;
        let bench = Bench::new();
        assert_eq!(bench.fetch(&known(server.url("/x"), b"right")).await.unwrap(), b"right");
        assert!(bench.notes().iter().all(|note| note.contains("trying again in")), "{:?}", bench.notes());
    }
}

#[tokio::test]
async fn the_time_that_a_server_asks_for_is_given_to_it_within_bounds() {
    let server = Server::new(|_, before| match before {
        0 => Reply::new(429, &[("retry-after", "1")], ""),
        _ => Reply::ok("right"),
    })
    .await;
    let began = std::time::Instant::now();
    assert_eq!(Bench::new().fetch(&known(server.url("/x"), b"right")).await.unwrap(), b"right");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());

    let late = [("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("retry-after", "Sun, 06 Nov 1994 09:49:37 GMT")];
    let (server, _, text) = refused_by(move |_, _| Reply::new(503, &late, "")).await;
    assert!(text.contains("to be asked again in 3600 s"), "{text}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_wrong_content_is_refused_with_both_digests_and_forgotten() {
    let server = Server::new(|_, _| Reply::ok("wrong")).await;
    let bench = Bench::new();
    let (_, code, text) = bench.refused(&known(server.url("/x"), b"right")).await;
    assert_eq!(code, Code::DigestMismatch);
    let (expected, got) = (Digest::of(b"right"), Digest::of(b"wrong"));
    assert!(text.ends_with(&format!("has the wrong content: expected {expected}, got {got}")), "{text}");
    assert_eq!(server.asked().len(), 1);
    assert!(bench.store.blob(&got).is_none());
    let left = std::fs::metadata(bench.store.dir().join("partial").join(expected.hex())).unwrap();
    assert_eq!(left.len(), 0);
}

#[tokio::test]
async fn a_wrong_size_is_seen_before_the_body_and_without_an_announcement() {
    let (server, code, text) = refused_by(|_, _| Reply::ok(noise(1 << 20)).hang(0)).await;
    assert_eq!(code, Code::DigestMismatch);
    assert!(text.contains("expected 5 bytes, got 1048576"), "{text}");
    assert_eq!(server.asked().len(), 1);
    let (_, code, text) = refused_by(|_, _| Reply::without_length(200, &[], noise(1 << 20))).await;
    assert_eq!(code, Code::DigestMismatch);
    assert!(text.contains("expected 5 bytes, got"), "{text}");
    let (_, code, text) = refused_by(|_, _| Reply::without_length(200, &[], "righ")).await;
    assert_eq!(code, Code::DigestMismatch);
    assert!(text.contains("expected 5 bytes, got 4"), "{text}");
}

#[tokio::test]
async fn nothing_without_a_bound_is_accepted() {
    let server = Server::new(|asked, _| match asked.target.as_str() {
        "/announced" => Reply::ok(noise(1001)).hang(0),
        _ => Reply::without_length(200, &[], noise(4 << 20)),
    })
    .await;
    for path in ["/announced", "/endless"] {
        let request = Request { max_size: 1000, ..unknown(server.url(path)) };
        let (_, code, text) = Bench::new().refused(&request).await;
        assert_eq!(code, Code::DownloadFailed);
        assert!(text.contains("is larger than the 1000 bytes that are accepted for it"), "{text}");
        assert!(Bench::new().downloader.bytes(&request).await.is_err());
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_named_with_its_bytes() {
    let server = Server::new(|_, _| Reply::ok(noise(1000)).cut(400)).await;
    let (_, code, text) = Bench::new().refused(&unknown(server.url("/x"))).await;
    assert_eq!(code, Code::DownloadFailed);
    assert!(text.contains("ended after 400 bytes of 1000"), "{text}");
    assert_eq!(server.asked().len(), 4, "one round with progress, three without");
}

#[tokio::test]
async fn what_is_not_http_is_named() {
    for garbage in ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "", "HTTP/1.1 200 OK\r\ncontent-length: lots\r\n\r\n"] {
        let (_, code, text) = refused_by(move |_, _| Reply::raw(garbage)).await;
        assert_eq!(code, Code::DownloadFailed);
        assert!(text.contains("gave no valid answer: "), "{text}");
    }
}

#[tokio::test]
async fn a_disk_that_is_too_small_is_named_before_the_first_byte() {
    let huge = 1u64 << 60;
    let server = Server::new(move |_, _| {
        Reply::raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {huge}\r\n\r\nsome bytes"))
    })
    .await;
    let bench = Bench::new();
    let request = Request { max_size: u64::MAX, ..unknown(server.url("/x")) };
    let (_, code, text) = bench.refused(&request).await;
    assert_eq!(code, Code::Host);
    assert!(
        text.contains("no room for a thing in ") && text.contains(&format!("{huge} bytes are to come, ")),
        "{text}"
    );
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn redirects_are_followed_and_credentials_stay_at_home() {
    let far = Server::new(|_, _| Reply::ok("right")).await;
    let to = far.url("/far").to_string();
    let near = Server::new(move |asked, _| match asked.target.as_str() {
        "/a" => Reply::redirect("b"),
        "/b" => Reply::redirect(&to),
        _ => Reply::status(404),
    })
    .await;
    let bench = Bench::new();
    let mut request = known(near.url("/a"), b"right");
    request.headers.insert("authorization", "Bearer secret".parse().unwrap());
    assert_eq!(bench.fetch(&request).await.unwrap(), b"right");
    assert!(near.asked().iter().all(|asked| asked.header("authorization") == Some("Bearer secret")));
    assert_eq!(near.asked().len(), 2);
    assert_eq!(far.asked()[0].header("authorization"), None);
    assert_eq!(bench.downloader.destination(&request).await.unwrap(), far.url("/far"));
}

#[tokio::test]
async fn redirects_that_lead_astray_are_not_followed() {
    for (to, part) in [
        ("/x", "there are too many redirects"),
        ("ftp://localhost/x", "only http and https addresses are followed"),
        ("http://[", "that is no address"),
    ] {
        let (server, code, text) = refused_by(move |_, _| Reply::redirect(to)).await;
        assert_eq!(code, Code::DownloadFailed);
        assert!(text.contains("redirects to ") && text.contains(part), "{text}");
        assert!(server.asked().len() <= 11);
    }
    let (_, _, text) = refused_by(|_, _| Reply::status(302)).await;
    assert!(text.contains("redirects to nowhere: the answer names no address"), "{text}");
}

#[tokio::test]
async fn passwords_are_used_and_not_shown() {
    let server = Server::new(|asked, _| match asked.header("authorization") {
        Some("Basic dXNlcjpoZW1saWNo") => Reply::status(404),
        _ => Reply::status(401),
    })
    .await;
    let mut url = server.url("/x");
    url.set_username("user").unwrap();
    url.set_password(Some("hemlich")).unwrap();
    let (error, code, text) = Bench::new().refused(&unknown(url)).await;
    assert_eq!(code, Code::NotFound);
    assert!(!format!("{text} {error:?}").contains("hemlich"), "{text}");
}

#[test]
fn a_place_that_is_refused_shows_no_password() {
    for text in ["ftp://user:hemlich@host/x", "http://user:hem/lich@host:x/y", "https://user:hemlich@"] {
        let error = super::super::place(text).unwrap_err().to_string();
        assert!(!error.contains("lich"), "{error}");
    }
    let odd = std::path::Path::new(std::ffi::OsStr::from_bytes(b"/tmp/\xff"));
    assert_eq!(super::super::place_of(odd).unwrap().to_file_path().unwrap(), odd);
}
