//! Pulls from Debian's `docker-registry` on loopback.
//!
//! * `bench`: a registry, a store, images made of a few files
//! * `twice`: two processes that pull the same image at once
//! * `wire`: a connection that breaks

#[path = "registry/bench.rs"]
#[cfg(test)]
mod bench;
#[path = "registry/twice.rs"]
#[cfg(test)]
mod twice;
#[path = "registry/wire.rs"]
#[cfg(test)]
mod wire;

use std::fs;
use std::time::Duration;

use bench::{Bench, other_platform, some_bytes};
use smartvm_core::explain::{Code, Explain};
use smartvm_images::image::{
    Credentials, ImportOptions, ImportSource, Insecure, Login, Platform, PullOptions, Secret, import, pull,
    resolve,
};
use smartvm_images::progress::{Event, Progress};
use smartvm_images::{Digest, download};
use smartvm_lab::registry::RegistryOptions;
use wire::Wire;

#[tokio::test]
async fn an_image_is_pulled_made_named_and_not_fetched_twice() {
    let bench = Bench::new();
    let layers = [
        bench.tar(&[("etc/name", b"lower"), ("gone", b"x")]),
        bench.tar(&[("etc/name", b"upper"), (".wh.gone", b"")]),
    ];
    bench.push("team/tool:1", &layers);
    let pulled = bench.pull("team/tool:1").await.unwrap();
    assert!(!pulled.was_here);
    let root = bench.root(&pulled.image);
    assert_eq!(root.read("/etc/name").unwrap(), b"upper");
    assert!(!root.exists("/gone").unwrap());
    assert_eq!(pulled.image.config.cmd, ["/bin/sh"]);
    let name = bench.reference("team/tool:1");
    assert_eq!(pulled.image.source, name.to_string());
    assert_eq!(resolve(bench.store(), &name.to_string()).unwrap().image, pulled.image);
    // Of all that came, only the file system stays.
    assert_eq!(bench.blobs(), [pulled.image.root.digest.hex()]);
    bench.assert_clean().await;

    let blobs = bench.registry().requests("GET", "/blobs/").unwrap();
    assert_eq!(blobs, 3);
    let by_digest = format!("team/tool@{}", pulled.image.id);
    for again in ["team/tool:1", &by_digest] {
        let again = bench.pull(again).await.unwrap();
        assert!(again.was_here && again.image == pulled.image);
    }
    assert_eq!(bench.registry().requests("GET", "/blobs/").unwrap(), blobs, "a layer was fetched again");
    assert_eq!(resolve(bench.store(), &pulled.image.id.to_string()).unwrap().names.len(), 2);
}

#[tokio::test]
async fn of_several_platforms_the_wanted_one_is_pulled() {
    let bench = Bench::new();
    let (ours, other) = (bench.tar(&[("ours", b"1")]), bench.tar(&[("other", b"2")]));
    bench.push_platforms("multi", &[(other_platform(), other), (Platform::host().to_string(), ours)]);
    let pulled = bench.pull("multi").await.unwrap();
    assert!(bench.root(&pulled.image).exists("/ours").unwrap());
    assert_eq!(pulled.image.platform, Platform::host());
    let wanted = |platform: &str| PullOptions { platform: platform.parse().unwrap(), ..bench.options() };
    let pulled = bench.pull_with("multi", &wanted(&other_platform())).await.unwrap();
    assert!(bench.root(&pulled.image).exists("/other").unwrap());
    let error = bench.pull_with("multi", &wanted("linux/riscv64")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let text = error.to_string();
    assert!(text.contains("riscv64") && text.contains(&other_platform()) && text.contains("amd64"), "{text}");
    // One without an index says it in its config.
    bench.push_platforms("single", &[(other_platform(), bench.tar(&[("x", b"x")]))]);
    let error = bench.pull("single").await.unwrap_err();
    assert!(error.to_string().contains(&other_platform()), "{error}");
    // And so it does when it is here already.
    bench.pull_with("single", &wanted(&other_platform())).await.unwrap();
    let error = bench.pull("single").await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.to_string().ends_with(&format!("it has {}", other_platform())), "{error}");
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let bench = Bench::new();
    bench.push("tool:1", &[bench.tar(&[("a", b"a")])]);
    for name in ["tool:2", "nothing"] {
        let error = bench.pull(name).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
        assert!(error.to_string().contains(&bench.reference(name).to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_password_is_asked_for_over_tls_and_taken_from_a_file() {
    let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (pem, key) = (dir.path().join("ca.pem"), dir.path().join("key.pem"));
    fs::write(&pem, certificate.cert.pem()).unwrap();
    fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
    let login = Some(("me".to_owned(), "hush-hush".to_owned()));
    let bench =
        Bench::with(RegistryOptions { login, tls: Some((pem.clone(), key)), ..RegistryOptions::default() });
    bench.push("private:1", &[bench.tar(&[("a", b"a")])]);

    let auth = dir.path().join("auth.json");
    let entry = |text: &str| {
        use base64::Engine as _;
        let auth = base64::engine::general_purpose::STANDARD.encode(text);
        serde_json::json!({"auths": {bench.registry().address().to_string(): {"auth": auth}}}).to_string()
    };
    let strict = PullOptions {
        insecure: Insecure::Never,
        credentials: Credentials::Files(vec![auth.clone()]),
        download: download::Options { extra_ca: vec![pem], ..bench.options().download },
        ..bench.options()
    };
    let error = bench.pull_with("private:1", &strict).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthorized, "{error}");
    assert!(error.to_string().contains("without credentials"), "{error}");
    assert!(error.hint().unwrap().contains("docker login"), "{error:?}");
    fs::write(&auth, entry("me:wrong-secret")).unwrap();
    let error = bench.pull_with("private:1", &strict).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthorized);
    assert!(error.to_string().contains("with these credentials"), "{error}");
    assert!(!format!("{error} {error:?}").contains("wrong-secret"), "{error:?}");
    fs::write(&auth, entry("me:hush-hush")).unwrap();
    bench.pull_with("private:1", &strict).await.unwrap();

    // A certificate that nobody vouches for is taken from loopback, and not where that is forbidden.
    let password = Login::Password { username: "me".into(), password: Secret::new("hush-hush") };
    let lax = PullOptions { credentials: Credentials::Login(password), ..bench.options() };
    assert!(bench.pull_with("private:1", &lax).await.unwrap().was_here);
    let strict = PullOptions { insecure: Insecure::Never, ..lax };
    let error = bench.pull_with("private:1", &strict).await.unwrap_err();
    assert_eq!(error.code(), Code::DownloadFailed, "{error}");
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[tokio::test]
async fn a_layer_or_manifest_that_was_tampered_with_is_refused() {
    let bench = Bench::new();
    bench.push("tool:1", &[bench.tar(&[("a", &some_bytes(200_000))])]);
    let digest = bench.layers("tool:1")[0].digest;
    let path = bench.registry().blob(&digest.hex());
    let right = fs::read(&path).unwrap();
    let mut wrong = right.clone();
    wrong[right.len() / 2] ^= 1;
    fs::write(&path, wrong).unwrap();
    let error = bench.pull("tool:1").await.unwrap_err();
    assert_eq!(error.code(), Code::DigestMismatch);
    assert!(error.to_string().contains(&digest.to_string()), "{error}");
    bench.assert_clean().await;
    assert!(bench.blobs().is_empty());
    fs::write(&path, right).unwrap();
    bench.pull("tool:1").await.unwrap();

    bench.push("other:1", &[bench.tar(&[("b", b"b")])]);
    let id = bench.manifest_digest("other:1");
    let path = bench.registry().blob(&id.hex());
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("layers", "LAYERS")).unwrap();
    bench.pull("other:1").await.unwrap_err();
}

#[tokio::test]
async fn a_registry_that_dies_within_a_layer_is_gone_on_with() {
    let mut bench = Bench::new();
    let size = 8 << 20;
    bench.push("large:1", &[bench.tar(&[("large", &some_bytes(size))])]);
    let layer = bench.layers("large:1")[0].clone();
    let wire = Wire::to(bench.registry().address(), layer.size / 2).await;
    let name = format!("{}/large:1", wire.address()).parse().unwrap();
    let options = bench.options();
    let store = bench.store().anew();
    let dies = async {
        wire.cut().await;
        bench.kill();
    };
    let silent = Progress::none();
    let (pulled, ()) = tokio::join!(pull(&store, &name, &options, &silent), dies);
    let error = pulled.unwrap_err();
    assert_eq!(error.code(), Code::DownloadFailed, "{error}");
    let kept = bench.partial(&layer.digest);
    assert!(kept > 0 && kept < layer.size, "{kept}");

    bench.restart();
    wire.mend();
    let (tell, told) = std::sync::mpsc::channel();
    let progress = Progress::new(move |event| {
        let _ = tell.send(event);
    });
    let pulled = pull(&store, &name, &options, &progress).await.unwrap();
    let first = told.try_iter().find_map(|event| match event {
        Event::Advanced { what, done } if what.contains("layer") => Some(done),
        _ => None,
    });
    assert!(first.unwrap() >= kept, "{first:?} of {kept}: it began anew");
    assert_eq!(bench.root(&pulled.image).read("/large").unwrap(), some_bytes(size));
    bench.assert_clean().await;
}

#[tokio::test]
async fn nothing_that_listens_is_said_so_soon() {
    let mut bench = Bench::new();
    bench.kill();
    let began = std::time::Instant::now();
    let error = bench.pull("tool:1").await.unwrap_err();
    assert_eq!(error.code(), Code::DownloadFailed);
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn what_skopeo_saved_for_docker_is_imported() {
    let bench = Bench::new();
    bench.push("tool:1", &[bench.tar(&[("a", b"a")]), bench.tar(&[("b", b"b")])]);
    let pulled = bench.pull("tool:1").await.unwrap();
    let archive = bench.skopeo_save("tool:1", "saved:2");
    let imported =
        import(bench.store(), ImportSource::Path(archive), &ImportOptions::default(), &Progress::none())
            .await
            .unwrap();
    assert_eq!(imported.names, ["saved:2".parse().unwrap()]);
    // The same layers make the same file.
    assert_eq!(imported.image.root, pulled.image.root);
    assert_eq!(imported.image.config, pulled.image.config);
}

#[tokio::test]
async fn debians_minbase_becomes_a_clean_file_system() {
    let bench = Bench::minbase();
    let pulled = bench.pull("debian:minbase").await.unwrap();
    let path = bench.store().blob(&pulled.image.root.digest).unwrap();
    let fsck = std::process::Command::new("e2fsck").arg("-fn").arg(&path).output().unwrap();
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    let root = bench.root(&pulled.image);
    let release = root.read_to_string("/etc/os-release").unwrap();
    assert!(release.contains("ID=debian"), "{release}");
    assert_eq!(Digest::of(&fs::read(&path).unwrap()), pulled.image.root.digest);
}
