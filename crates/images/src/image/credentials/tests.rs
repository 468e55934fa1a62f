use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn login_in(content: &Value, name: &str) -> Result<Option<Login>, ImageError> {
    let content: Content = serde_json::from_value(content.clone()).unwrap();
    content.login(&reference(name), Path::new("/f/auth.json"), &Abandoned::never())
}

fn password(username: &str, password: &str) -> Option<Login> {
    Some(Login::Password { username: username.into(), password: Secret::new(password) })
}

fn auth(text: &str) -> Value {
    json!({"auth": base64::engine::general_purpose::STANDARD.encode(text)})
}

#[test]
fn the_longest_part_of_the_name_decides() {
    let content = json!({"auths": {
        "quay.io": auth("host:1"), "quay.io/org": auth("org:2"), "quay.io/org/tool": auth("tool:3"),
        "https://index.docker.io/v1/": auth("hub:4:with:colons"), "http://localhost:5000/v2/": auth("local:5"),
    }});
    for (name, expected) in [
        ("quay.io/org/tool", password("tool", "3")),
        ("quay.io/org/other", password("org", "2")),
        ("quay.io/organic/x", password("host", "1")),
        ("quay.io:443/org/x", None),
        ("alpine", password("hub", "4:with:colons")),
        ("localhost:5000/x", password("local", "5")),
        ("ghcr.io/x", None),
    ] {
        assert_eq!(login_in(&content, name).unwrap(), expected, "{name}");
    }
}

#[test]
fn every_way_to_write_an_entry_is_read() {
    for (entry, expected) in [
        (json!({"username": "u", "password": "p"}), password("u", "p")),
        (json!({"identitytoken": "t", "auth": "YTpi"}), Some(Login::IdentityToken(Secret::new("t")))),
        (json!({"auth": "YTpiAAA="}), password("a", "b")),
        (json!({"auth": null}), None),
        (json!({}), None),
    ] {
        assert_eq!(login_in(&json!({"auths": {"r.io": entry}}), "r.io/x").unwrap(), expected);
    }
}

#[test]
fn errors_and_debug_texts_show_no_secret() {
    for entry in [
        json!({"auth": "c2VjcmV0"}),
        json!({"auth": "s3cret!"}),
        json!({"auth": ["s3cret"]}),
        json!("s3cret"),
    ] {
        let error = login_in(&json!({"auths": {"r.io": entry}}), "r.io/x").unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("/f/auth.json") && text.contains("r.io"), "{text}");
        assert!(!text.contains("s3cret") && !text.contains("c2VjcmV0") && !text.contains("secret"), "{text}");
    }
    let shown = format!("{:?}", password("me", "hush"));
    assert!(shown.contains("me") && !shown.contains("hush"), "{shown}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    fs::write(&file, "{\"auths\": {\"r.io\": {\"auth\": hush}}}").unwrap();
    let credentials = Credentials::Files(vec![file]);
    let error = credentials.login(&reference("r.io/x"), &Abandoned::never()).unwrap_err();
    assert!(error.to_string().contains("line 1") && !error.to_string().contains("hush"), "{error}");
}

#[test]
fn files_are_asked_in_podmans_order() {
    let variables = |names: &'static [(&'static str, &'static str)]| {
        move |name: &str| names.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    };
    let paths = |files: Vec<PathBuf>| files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
    assert_eq!(
        paths(files_of(variables(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r")]))),
        ["/r/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]
    );
    assert_eq!(
        paths(files_of(variables(&[("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")]))),
        ["/c/containers/auth.json", "/d/config.json"]
    );
    assert_eq!(paths(files_of(variables(&[("REGISTRY_AUTH_FILE", "/a"), ("HOME", "/h")]))), ["/a"]);
}

#[test]
fn a_file_that_does_not_know_leaves_it_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let files = vec![
        dir.path().join("missing"),
        write("empty", "\n"),
        write("other", &json!({"auths": {"other.io": auth("a:b")}}).to_string()),
        write("right", &json!({"auths": {"r.io": auth("u:p")}}).to_string()),
    ];
    let login =
        |name: &str| Credentials::Files(files.clone()).login(&reference(name), &Abandoned::never()).unwrap();
    assert_eq!(Some(login("r.io/x")), password("u", "p"));
    assert_eq!(login("none.io/x"), Login::Anonymous);
}

/// Helpers on a PATH of their own need a process of their own: PATH is the whole process's.
#[test]
fn helpers_are_asked_by_their_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let helper = |name: &str, script: &str| {
        let path = dir.path().join(format!("docker-credential-{name}"));
        fs::write(&path, format!("#!/bin/sh\n[ \"$1\" = get ] || exit 9\nread -r server\n{script}\n"))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    helper("echo", r#"printf '{"ServerURL":"x","Username":"u","Secret":"%s"}' "$server""#);
    helper("token", r#"echo '{"Username":"<token>","Secret":"hush"}'"#);
    helper("unknown", "echo 'credentials not found in native keychain'; exit 1");
    helper("broken", "echo 'the key ring is locked'; exit 1");
    helper("wordy", "yes hush");
    helper("mad", "echo hush");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::credentials::tests::asks_helpers_when_this_is_a_child", "--nocapture"])
        .env("PATH", format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap()))
        .env("SMARTVM_TEST_HELPERS", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("<asked>"));
}

#[test]
fn asks_helpers_when_this_is_a_child() {
    if std::env::var_os("SMARTVM_TEST_HELPERS").is_none() {
        return;
    }
    let for_registry = |name: &str| json!({"credHelpers": {"r.io": name}, "credsStore": "broken"});
    let ask = |content: &Value| login_in(content, "r.io/x");
    assert_eq!(ask(&for_registry("echo")).unwrap(), password("u", "r.io"));
    assert_eq!(ask(&for_registry("token")).unwrap(), Some(Login::IdentityToken(Secret::new("hush"))));
    assert_eq!(ask(&for_registry("unknown")).unwrap(), None);
    let store = json!({"credsStore": "echo", "auths": {"https://index.docker.io/v1/": {}}});
    assert_eq!(login_in(&store, "alpine").unwrap(), password("u", DOCKER_HUB));
    for (name, words) in [
        ("broken", "the key ring is locked"),
        ("wordy", "longer than 65536 bytes"),
        ("mad", "not JSON"),
        ("missing", "cannot be started"),
        ("../echo", "not one"),
    ] {
        let error = ask(&for_registry(name)).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("hush"), "{name}: {error}");
    }
    println!("<asked>");
}
