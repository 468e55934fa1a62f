//! `smartvm image`.

use std::fs;
use std::process::{Output, Stdio};

use crate::goods::hex;
use crate::scene::Scene;
use crate::server::Server;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A root file system with one file, as a tar archive.
fn root(content: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, "etc/motd", content.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

/// An image `app:1` of one layer, in a registry.
fn registry(server: &Server) -> String {
    let layer = root("from a registry");
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
    });
    let config = config.to_string().into_bytes();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = format!("sha256:{}", hex(bytes));
        server.file(&format!("/v2/app/blobs/{digest}"), bytes);
        serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len()})
    };
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": kind, "config": blob("config.v1+json", &config), "layers": [blob("layer.v1.tar", &layer)],
    });
    server.file("/v2/", "{}");
    server.typed("/v2/app/manifests/1", kind, manifest.to_string());
    format!("{}/app:1", server.url("").trim_start_matches("http://"))
}

#[test]
fn an_image_is_pulled_once_named_and_removed() {
    let (scene, server) = (Scene::new(), Server::new());
    let name = registry(&server);
    let pulled = scene.output(&["image", "pull", &name]);
    assert_eq!(pulled.status.code(), Some(0), "{pulled:?}");
    let said = text(&pulled.stdout);
    assert!(said.contains(&format!(" ({name}): ")) && !said.contains("was here"), "{said}");
    let id = said.split(' ').next().unwrap().to_owned();
    assert_eq!(id.len(), 12, "{said}");
    assert!(!text(&pulled.stderr).contains(['\r', '\x1b']), "{pulled:?}");
    let again = json(&scene.output(&["image", "pull", &name, "--json"]));
    assert_eq!((&again["was_here"], &again["names"][0]), (&true.into(), &name.as_str().into()), "{again}");
    assert_eq!(again["config"]["cmd"][0], "/bin/sh", "{again}");

    let tagged = scene.output(&["image", "tag", &id[..5], "mine:2"]);
    assert_eq!(text(&tagged.stdout), format!("{id} is mine:2 now\n"), "{tagged:?}");
    let table = text(&scene.output(&["image", "ls"]).stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("ID            PLATFORM"), "{table}");
    assert!(lines[1].starts_with(&format!("{id}  linux/amd64")) && lines[1].contains("mine:2"), "{table}");
    let inspected = text(&scene.output(&["image", "inspect", "mine:2"]).stdout);
    for part in [
        "  platform   linux/amd64\n",
        "  command    /bin/sh\n",
        "  env        A=b\n",
        "  layers     1 layer\n",
    ] {
        assert!(inspected.contains(part), "{part}: {inspected}");
    }

    let refused = scene.output(&["image", "rm", &id]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    assert!(text(&refused.stderr).starts_with("error[IN_USE]: "), "{refused:?}");
    assert_eq!(text(&scene.output(&["image", "rm", "mine:2"]).stdout), "removed the name mine:2\n");
    let removed = json(&scene.output(&["image", "rm", &name, "--json"]));
    assert!(removed["deleted"].as_str().unwrap().starts_with(&format!("sha256:{id}")), "{removed}");
    assert_eq!(text(&scene.output(&["image", "ls", "--json"]).stdout), "[]\n");
    assert!(text(&scene.output(&["store", "gc"]).stdout).contains("removed sha256:"));
}

#[test]
fn archives_folders_and_streams_are_imported() {
    let scene = Scene::new();
    let tar = scene.write("root.tar", root("hello"));
    let imported = scene.output(&["image", "import", tar.to_str().unwrap(), "--name", "one:1"]);
    assert!(text(&imported.stdout).contains(" (one:1): "), "{imported:?}");
    let mut command = scene.smartvm();
    command.args(["image", "import", "-", "--json"]).stdin(Stdio::from(fs::File::open(&tar).unwrap()));
    let streamed = json(&command.output().unwrap());
    // The same content by another way is the same image.
    assert_eq!((&streamed["names"][0], &streamed["was_here"]), (&"one:1".into(), &true.into()), "{streamed}");
    fs::create_dir_all(scene.path("tree/etc")).unwrap();
    scene.write("tree/etc/motd", "from a folder");
    let tree = scene.path("tree");
    let imported =
        scene.output(&["image", "import", tree.to_str().unwrap(), "--format", "root", "--name", "two"]);
    assert!(text(&imported.stdout).contains(" (two): "), "{imported:?}");
    assert_eq!(json(&scene.output(&["image", "ls", "--json"])).as_array().unwrap().len(), 2);
    assert_eq!(scene.output(&["store", "verify"]).status.code(), Some(0));
}

#[test]
fn what_cannot_be_had_is_told_by_code_status_and_hint() {
    let (scene, server) = (Scene::new(), Server::new());
    registry(&server);
    let junk = scene.write("junk", "no archive").display().to_string();
    let absent = format!("{}/app:none", server.url("").trim_start_matches("http://"));
    for (arguments, code, status) in [
        (&["image", "inspect", "nobody"][..], "NOT_FOUND", 7),
        (&["image", "rm", "nobody"], "NOT_FOUND", 7),
        (&["image", "tag", "nobody", "x"], "NOT_FOUND", 7),
        (&["image", "pull", &absent], "NOT_FOUND", 7),
        // Nothing listens there.
        (&["image", "pull", "127.0.0.1:9/app"], "DOWNLOAD_FAILED", 9),
        (&["image", "import", &junk, "--format", "image"], "INVALID_IMAGE", 3),
        (&["image", "import", "/no/such/file"], "NOT_FOUND", 7),
        (&["image", "pull", "Not A Name"], "USAGE", 2),
    ] {
        let output = scene.smartvm().args(arguments).arg("--json").output().unwrap();
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(
            (&error["code"], output.status.code()),
            (&code.into(), Some(status)),
            "{arguments:?} {error}"
        );
        assert!(error["hint"].is_string(), "{arguments:?} {error}");
    }
}

#[test]
fn an_image_is_exported_to_files_folders_and_pipes() {
    let scene = Scene::new();
    let tar = scene.write("root.tar", root("hello"));
    scene.output(&["image", "import", tar.to_str().unwrap(), "--name", "one:1"]);
    let [file, folder] = ["one.tar", "layout"].map(|name| scene.path(name).to_str().unwrap().to_owned());
    let exported = scene.output(&["image", "export", "one:1", "-o", &file]);
    let said = text(&exported.stdout);
    // The root, etc and etc/motd.
    assert!(said.starts_with(&format!("wrote one:1 to {file}: 3 files, ")), "{exported:?}");
    let exported =
        json(&scene.output(&["image", "export", "one:1", "-o", &folder, "--format", "oci-dir", "--json"]));
    assert!(exported["manifest"].as_str().unwrap().starts_with("sha256:"), "{exported}");
    assert_eq!(exported["sockets"], 0);

    let piped = scene.output(&["image", "export", "one:1"]);
    assert_eq!((piped.status.code(), piped.stdout == fs::read(&file).unwrap()), (Some(0), true));
    let root = scene.output(&["image", "export", "one:1", "--format", "rootfs-tar", "-o", "-"]);
    let mut archive = tar::Archive::new(root.stdout.as_slice());
    let paths = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
    assert_eq!(paths.map(|path| path.display().to_string()).collect::<Vec<_>>(), ["./", "etc/", "etc/motd"]);

    // Gone, and back by what was written: with its name.
    assert_eq!(scene.output(&["image", "rm", "one:1"]).status.code(), Some(0));
    for from in [&file, &folder] {
        let imported = scene.output(&["image", "import", from]);
        assert!(text(&imported.stdout).contains(" (one:1): "), "{imported:?}");
    }

    for (arguments, status, words) in [
        (&["one:1", "--format", "oci-dir"][..], 2, "name it with -o DIR"),
        (&["none:1"], 7, "there is no image `none:1`"),
        (&["one:1", "-o", "/nowhere/x.tar"], 7, "cannot write to the folder of `/nowhere/x.tar`"),
    ] {
        let refused = scene.output(&[&["image", "export"], arguments].concat());
        assert_eq!(refused.status.code(), Some(status), "{refused:?}");
        assert!(text(&refused.stderr).contains(words) && refused.stdout.is_empty(), "{refused:?}");
    }
}

#[test]
fn nothing_is_no_image() {
    let scene = Scene::new();
    let empty = scene.path("empty");
    fs::create_dir(&empty).unwrap();
    let folder = scene.output(&["image", "import", &empty.display().to_string()]);
    let stream = scene.smartvm().args(["image", "import", "-"]).stdin(Stdio::null()).output().unwrap();
    for (refused, hint) in [(folder, "no files"), (stream, "did the command before the pipe fail?")] {
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(3), "{said}");
        assert!(said.contains("error[INVALID_IMAGE]") && said.contains(hint), "{said}");
    }
}

#[test]
fn a_variable_that_cannot_be_followed_is_named() {
    let scene = Scene::new();
    for (variable, value) in [("HTTPS_PROXY", "junk://x"), ("SSL_CERT_FILE", "/nowhere/ca.pem")] {
        let mut pull = scene.smartvm();
        let refused =
            pull.env(variable, value).args(["image", "pull", "registry.invalid/a:1"]).output().unwrap();
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(9), "{said}");
        assert!(said.contains(variable), "{said}");
    }
}
