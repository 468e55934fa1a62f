//! Registries that mean harm, or lead elsewhere; those that want a login are in `logins`.

mod logins;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::json;
use smartvm_core::explain::{Code, Explain};

use super::*;
use crate::download::server::{Reply, Server};
use crate::image::manifest::{OCI_CONFIG, OCI_INDEX, OCI_LAYER};
use crate::image::{Credentials, PullOptions, Secret, pull};
use crate::progress::Progress;

const PASSWORD: &str = "hunter2-not-to-be-seen";

struct Bench {
    dir: tempfile::TempDir,
    options: PullOptions,
}

impl Bench {
    fn new() -> Self {
        let login = Login::Password { username: "me".into(), password: Secret::new(PASSWORD) };
        // Plain servers that await a whole request never answer a TLS greeting.
        let connect_timeout = std::time::Duration::from_millis(500);
        let download = Options { tries: 1, proxy: Proxy::None, connect_timeout, ..Options::default() };
        let credentials = Credentials::Login(login);
        let options = PullOptions { credentials, download, ..PullOptions::default() };
        Self { dir: tempfile::tempdir().unwrap(), options }
    }

    fn store(&self) -> Store {
        Store::open(&self.dir.path().join("store")).unwrap()
    }

    async fn refused(&self, server: &Server) -> ImageError {
        let name: Reference = format!("127.0.0.1:{}/x:1", server.url("/").port().unwrap()).parse().unwrap();
        let error = pull(&self.store(), &name, &self.options, &Progress::none()).await.unwrap_err();
        let texts = format!("{error} {error:?} {:?} {:?}", self.options, error.hint());
        assert!(!texts.contains(PASSWORD), "{texts}");
        assert_eq!(crate::image::list(&self.store()).unwrap(), []);
        error
    }
}

/// A registry that wants a token of this place.
async fn wants_token(realm: &str) -> Server {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
    Server::new(move |_, _| Reply::new(401, &[("www-authenticate", &challenge)], "")).await
}

#[tokio::test]
async fn a_password_goes_to_no_other_host_in_plain_text() {
    // An address for documents: a connection to it would take until a timeout.
    for realm in ["http://192.0.2.1/token", "ftp://127.0.0.1/token", "file:///etc/passwd", "token", ""] {
        let error = Bench::new().refused(&wants_token(realm).await).await;
        assert!(matches!(error, ImageError::Protocol { .. }), "{realm}: {error}");
    }
}

#[tokio::test]
async fn a_token_server_on_this_host_may_be_plain_and_its_words_are_told() {
    let tokens = Server::new(|asked, _| {
        assert!(asked.header("authorization").is_some_and(|value| value.starts_with("Basic ")));
        Reply::new(401, &[], r#"{"details": "no\u0007 such user"}"#)
    })
    .await;
    let error = Bench::new().refused(&wants_token(tokens.url("/token").as_str()).await).await;
    assert_eq!((error.code(), error.last_words()), (Code::Unauthorized, &["no such user".to_owned()][..]));
    assert_eq!(tokens.asked().len(), 1);
    // Nowhere means nowhere.
    let mut bench = Bench::new();
    bench.options.insecure = Insecure::Never;
    bench.refused(&wants_token(tokens.url("/token").as_str()).await).await;
    assert_eq!(tokens.asked().len(), 1);
}

#[tokio::test]
async fn credentials_do_not_follow_to_another_server() {
    let other = Server::new(|asked, _| {
        assert_eq!(asked.header("authorization"), None);
        Reply::status(404)
    })
    .await;
    let to = other.url("/there").to_string();
    let server = Server::new(move |asked, _| match asked.header("authorization") {
        Some(_) => Reply::redirect(&to),
        None => Reply::new(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
    })
    .await;
    let error = Bench::new().refused(&server).await;
    assert!(matches!(error, ImageError::NotInRegistry { .. }), "{error}");
    assert_eq!(other.asked().len(), 1);
}

/// A registry that answers `manifest` for every manifest that is asked for.
async fn gives(manifest: Vec<u8>) -> Server {
    Server::new(move |asked, _| match asked.target.as_str() {
        "/v2/" => Reply::ok("{}"),
        target if target.contains("/manifests/") => Reply::ok(manifest.clone()),
        target => panic!("{target} is asked for"),
    })
    .await
}

#[tokio::test]
async fn a_layer_of_an_endless_size_is_not_begun() {
    let part = |kind: &str, size: u64| json!({"mediaType": kind, "digest": Digest::of(b"{}"), "size": size});
    for layers in [vec![part(OCI_LAYER, u64::MAX)], vec![part(OCI_LAYER, u64::MAX), part(OCI_LAYER, 7)]] {
        let config = json!({"rootfs": {"diff_ids": vec![Digest::of(b"x"); layers.len()]}}).to_string();
        let descriptor =
            json!({"mediaType": OCI_CONFIG, "digest": Digest::of(config.as_bytes()), "size": config.len()});
        let manifest = json!({"schemaVersion": 2, "config": descriptor, "layers": layers}).to_string();
        let asked = Arc::new(AtomicU16::new(0));
        let count = Arc::clone(&asked);
        let blob = format!("/blobs/{}", Digest::of(config.as_bytes()));
        let server = Server::new(move |asked, _| match asked.target.as_str() {
            "/v2/" => Reply::ok("{}"),
            target if target.contains("/manifests/") => Reply::ok(manifest.clone()),
            target if target.ends_with(&blob) => Reply::ok(config.clone()),
            _ => {
                count.fetch_add(1, Ordering::Relaxed);
                Reply::status(404)
            }
        })
        .await;
        let error = Bench::new().refused(&server).await;
        assert!(matches!(error, ImageError::Rootfs(_)), "{error}");
        assert_eq!(asked.load(Ordering::Relaxed), 0, "no layer is asked for");
    }
}

#[tokio::test]
async fn an_index_that_leads_to_another_content_or_is_too_large_is_refused() {
    let entry = json!({"mediaType": OCI_INDEX, "digest": Digest::of(b"x"), "size": 7});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let error = Bench::new().refused(&gives(index.into_bytes()).await).await;
    assert_eq!(error.code(), Code::DigestMismatch, "{error}");
    let error = Bench::new().refused(&gives(vec![b' '; MAX_MANIFEST as usize + 1]).await).await;
    assert!(error.to_string().contains("is larger than the 4194304 bytes"), "{error}");
}
