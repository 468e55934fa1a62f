//! Registries that want to know who we are, and busy ones.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use smartvm_core::explain::{Code, Explain};

use super::super::*;
use crate::download::Proxy;
use crate::download::server::{Asked, Reply, Server};
use crate::image::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::image::{Credentials, Platform, PullOptions, Pulled, Secret, pull};
use crate::progress::Progress;

/// A registry's contents by path, for a server that guards them as it likes.
#[derive(Clone)]
struct Shelf(Arc<HashMap<String, Vec<u8>>>);

impl Shelf {
    /// The image `team/tool:1` of one layer.
    fn new() -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        builder.append_data(&mut header, "a", &b"a"[..]).unwrap();
        let layer = builder.into_inner().unwrap();
        let platform = Platform::host();
        let config = json!({"os": platform.os, "architecture": platform.architecture,
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}})
        .to_string()
        .into_bytes();
        let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config), "layers": [descriptor(OCI_LAYER, &layer)]});
        let blob = |bytes: &[u8]| format!("/v2/team/tool/blobs/{}", Digest::of(bytes));
        Self(Arc::new(HashMap::from([
            ("/v2/".to_owned(), b"{}".to_vec()),
            ("/v2/team/tool/manifests/1".to_owned(), manifest.to_string().into_bytes()),
            (blob(&config), config),
            (blob(&layer), layer),
        ])))
    }

    fn give(&self, asked: &Asked) -> Reply {
        match self.0.get(asked.target.split('?').next().unwrap()) {
            Some(bytes) => Reply::ok(bytes.clone()),
            None => Reply::status(404),
        }
    }
}

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    server: Server,
}

impl Bench {
    async fn new(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store, server: Server::new(answer).await }
    }

    async fn pull(&self, login: Login) -> Result<Pulled, ImageError> {
        let reference = format!("{}/team/tool:1", self.server.address()).parse().unwrap();
        let options = PullOptions {
            credentials: Credentials::Login(login),
            download: Options {
                proxy: Proxy::None,
                tries: 2,
                first_pause: Duration::from_millis(1),
                ..Options::default()
            },
            ..PullOptions::default()
        };
        pull(&self.store, &reference, &options, &Progress::none()).await
    }

    fn asked(&self, part: &str) -> Vec<Asked> {
        self.server.asked().into_iter().filter(|asked| asked.target.contains(part)).collect()
    }
}

fn me() -> Login {
    Login::Password { username: "me".into(), password: Secret::new("hush") }
}

fn host(asked: &Asked) -> String {
    asked.header("host").unwrap().to_owned()
}

fn wants_token(asked: &Asked) -> Reply {
    let challenge =
        format!("Bearer realm=\"http://{}/token\",service=\"the registry\",scope=\"x\"", host(asked));
    Reply::new(401, &[("www-authenticate", &challenge)], "{}")
}

/// A token that lasts for two answers, so that it runs out within a pull.
#[tokio::test]
async fn a_token_is_fetched_with_the_password_and_again_when_it_has_run_out() {
    let shelf = Shelf::new();
    let tokens = std::sync::Mutex::new((0, 0));
    let bench = Bench::new(move |asked, _| {
        let mut tokens = tokens.lock().unwrap();
        if asked.target.starts_with("/token") {
            *tokens = (tokens.0 + 1, 2);
            return Reply::ok(json!({"token": format!("t{}", tokens.0), "expires_in": 60}).to_string());
        }
        let fits = asked.header("authorization") == Some(&format!("Bearer t{}", tokens.0));
        if !fits || tokens.1 == 0 {
            return wants_token(asked);
        }
        tokens.1 -= 1;
        shelf.give(asked)
    })
    .await;
    bench.pull(me()).await.unwrap();
    let tokens = bench.asked("/token");
    assert_eq!(tokens.len(), 2);
    for asked in tokens {
        assert_eq!(asked.target, "/token?service=the+registry&scope=repository%3Ateam%2Ftool%3Apull");
        assert_eq!(asked.header("authorization"), Some("Basic bWU6aHVzaA=="));
    }
    // The password itself goes to nobody else.
    for asked in bench.asked("/v2/") {
        assert!(asked.header("authorization").is_none_or(|value| value.starts_with("Bearer ")), "{asked:?}");
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let shelf = Shelf::new();
    let bench = Bench::new(move |asked, _| match asked.target.as_str() {
        "/token" => Reply::ok(r#"{"access_token": "short"}"#),
        _ if asked.header("authorization") == Some("Bearer short") => shelf.give(asked),
        _ => wants_token(asked),
    })
    .await;
    bench.pull(Login::IdentityToken(Secret::new("long&lasting"))).await.unwrap();
    let asked = &bench.asked("/token")[0];
    assert_eq!(asked.method, "POST");
    for part in
        ["grant_type=refresh_token", "refresh_token=long%26lasting", "scope=repository%3Ateam%2Ftool%3Apull"]
    {
        assert!(asked.body.contains(part), "{}", asked.body);
    }
}

#[tokio::test]
async fn a_refused_password_is_told_in_the_servers_words_and_without_it() {
    let bench = Bench::new(|asked, _| match asked.target.starts_with("/token") {
        true => Reply::new(401, &[], r#"{"details": "incorrect username or password"}"#),
        false => wants_token(asked),
    })
    .await;
    let error = bench.pull(me()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthorized);
    assert_eq!(error.last_words(), ["incorrect username or password"]);
    assert!(!format!("{error:?}").contains("hush"), "{error:?}");
}

#[tokio::test]
async fn credentials_do_not_follow_blobs_to_another_host() {
    let shelf = Shelf::new();
    let elsewhere = Server::new({
        let shelf = shelf.clone();
        move |asked, _| shelf.give(asked)
    })
    .await;
    let away = elsewhere.url("/");
    let bench = Bench::new(move |asked, _| match asked.header("authorization") {
        Some("Basic bWU6aHVzaA==") if asked.target.contains("/blobs/") => {
            Reply::redirect(away.join(&asked.target).unwrap().as_str())
        }
        Some("Basic bWU6aHVzaA==") => shelf.give(asked),
        _ => Reply::new(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
    })
    .await;
    bench.pull(me()).await.unwrap();
    let asked = elsewhere.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|asked| asked.header("authorization").is_none()), "{asked:?}");
}

#[tokio::test]
async fn a_manifest_that_cannot_be_used_is_refused_before_anything_is_fetched() {
    let large = vec![b' '; MAX_MANIFEST as usize + 1];
    for (announced, body, code, words) in [
        (None, br#"{"schemaVersion": 1}"#.to_vec(), Code::InvalidImage, "schema 1"),
        (None, large, Code::DownloadFailed, "larger than"),
        (None, b"<html>".to_vec(), Code::InvalidImage, "not valid JSON"),
        (Some(Digest::of(b"other")), b"{}".to_vec(), Code::DigestMismatch, "expected sha256:"),
    ] {
        let bench = Bench::new(move |asked, _| match asked.target.as_str() {
            "/v2/" => Reply::ok("{}"),
            _ => {
                let announced = announced.map(|digest| digest.to_string());
                let header = announced.as_deref().map(|digest| ("docker-content-digest", digest));
                Reply::new(200, header.as_slice(), body.clone())
            }
        })
        .await;
        let error = bench.pull(Login::Anonymous).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(bench.asked("/blobs/").is_empty());
    }
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let shelf = Shelf::new();
    let bench = Bench::new(move |asked, number| match number % 2 {
        0 => Reply::new(429, &[("retry-after", "0")], ""),
        _ => shelf.give(asked),
    })
    .await;
    bench.pull(Login::Anonymous).await.unwrap();
    assert!(bench.dir.path().join("store").is_dir());
}
