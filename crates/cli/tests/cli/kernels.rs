//! `smartvm kernel`.

use std::process::Output;

use crate::goods::{fill_bucket, kernel, publish, release};
use crate::scene::Scene;
use crate::server::Server;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A kernel file whose name says nothing.
fn file(scene: &Scene, release: &str) -> String {
    scene.write(&format!("vmlinux.{release}"), kernel(release)).display().to_string()
}

#[test]
fn a_kernel_is_imported_listed_inspected_and_removed() {
    let scene = Scene::new();
    let imported = scene.output(&["kernel", "import", &file(&scene, "6.1.0-a")]);
    assert_eq!(imported.status.code(), Some(0), "{imported:?}");
    let said = text(&imported.stdout);
    assert!(said.starts_with("imported kernel 6.1.0-a: "), "{said}");
    assert!(said.ends_with("machines boot it when nothing else is said\n"), "{said}");
    let second = scene.output(&["kernel", "import", &file(&scene, "6.8.0-b"), "--name", "mine"]);
    assert!(text(&second.stdout).contains("the default is still 6.1.0-a"), "{second:?}");

    let table = text(&scene.output(&["kernel", "ls"]).stdout);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "DEFAULT", "RELEASE", "KERNEL", "INITRAMFS", "MODULES"]);
    assert_eq!(rows[1][..3], ["6.1.0-a", "yes", "6.1.0-a"]);
    assert_eq!(rows[2][..2], ["mine", "6.8.0-b"]);
    let listed = json(&scene.output(&["kernel", "ls", "--json"]));
    assert_eq!((&listed[1]["name"], &listed[1]["default"]), (&"mine".into(), &false.into()));

    let inspected = text(&scene.output(&["kernel", "inspect", "mine"]).stdout);
    assert!(inspected.starts_with("mine\n  version    6.8.0-b (test@here) #1 SMP\n"), "{inspected}");
    assert!(inspected.contains("overlayfs            unknown\n"), "{inspected}");
    assert!(inspected.contains("build configuration was not there"), "{inspected}");
    let inspected = json(&scene.output(&["kernel", "inspect", "--json"]));
    assert_eq!((&inspected["name"], &inspected["facts"]["vsock"]), (&"6.1.0-a".into(), &"unknown".into()));

    assert_eq!(text(&scene.output(&["kernel", "default", "mine"]).stdout), "mine\n");
    assert_eq!(json(&scene.output(&["kernel", "default", "--json"]))["default"], "mine");
    let removed = scene.output(&["kernel", "rm", "mine"]);
    assert_eq!(text(&removed.stdout), "removed kernel mine; the default is 6.1.0-a now\n");
    let removed = json(&scene.output(&["kernel", "rm", "6.1.0-a", "--json"]));
    assert_eq!(removed, serde_json::json!({"removed": "6.1.0-a", "default": null}));
    assert!(text(&scene.output(&["kernel", "ls"]).stdout).starts_with("there is no kernel: "));
}

#[test]
fn what_is_not_there_or_no_kernel_is_told_with_a_hint() {
    let scene = Scene::new();
    for arguments in
        [&["kernel", "inspect", "none"][..], &["kernel", "rm", "none"], &["kernel", "default", "none"]]
    {
        let output = scene.output(arguments);
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert!(
            text(&output.stderr).starts_with("error[NOT_FOUND]: there is no kernel \"none\"\n   hint: "),
            "{output:?}"
        );
    }
    let none = scene.output(&["kernel", "default"]);
    assert!(text(&none.stderr).contains("`smartvm setup` fetches one"), "{none:?}");
    let missing = scene.output(&["kernel", "import", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(7), "{missing:?}");
    let junk = scene.write("junk", "this is no kernel at all");
    let junk = scene.output(&["kernel", "import", junk.to_str().unwrap()]);
    assert_eq!(junk.status.code(), Some(3), "{junk:?}");
    assert!(text(&junk.stderr).starts_with("error[INVALID_KERNEL]: "), "{junk:?}");
    let name = scene.output(&["kernel", "import", &file(&scene, "6.1.0-a"), "--name", "../x"]);
    assert_eq!(name.status.code(), Some(3), "{name:?}");
    assert_eq!(scene.output(&["kernel", "import"]).status.code(), Some(2));
    assert_eq!(scene.output(&["kernel", "import", "--host", "x"]).status.code(), Some(2));
    assert_eq!(scene.output(&["kernel", "pull", "newest"]).status.code(), Some(2));
}

#[test]
fn a_base_image_is_pulled_used_again_offline_and_keeps_its_kernel() {
    let (scene, server) = (Scene::new(), Server::new());
    publish(&server, "v1.15.1", &release("v1.15.1"));
    fill_bucket(&server);
    let pull = |bucket: &str, arguments: &[&str]| {
        let mut command = scene.smartvm();
        command.env("SMARTVM_FIRECRACKER_URL", server.url("/releases")).env("SMARTVM_BASE_URL", bucket);
        command.args(["kernel", "pull", "latest"]).args(arguments).output().unwrap()
    };
    let pulled = pull(&server.url("/bucket"), &[]);
    assert_eq!(pulled.status.code(), Some(0), "{pulled:?}");
    let said = text(&pulled.stdout);
    let id = "ci-20260717-5ac3f5ffdcd7-0-x86_64-6.1.176-ubuntu-24.04.squashfs";
    assert!(said.starts_with(&format!("base image {id} (")), "{said}");
    assert!(
        said.contains(
            ", the default\n  root    squashfs of 64.0 KiB, read-only\n  tried with Firecracker v1.15.1\n"
        ),
        "{said}"
    );

    // Nothing listens there.
    let again = pull("http://127.0.0.1:9/bucket", &["--json"]);
    let image = json(&again);
    assert_eq!((&image["bundle_id"], &image["default"]), (&id.into(), &true.into()), "{again:?}");
    let forced = pull("http://127.0.0.1:9/bucket", &["--force"]);
    assert_eq!(forced.status.code(), Some(9), "{forced:?}");
    let in_use = scene.output(&["kernel", "rm", image["kernel"].as_str().unwrap()]);
    assert_eq!(in_use.status.code(), Some(7), "{in_use:?}");
    assert!(text(&in_use.stderr).starts_with("error[IN_USE]: "), "{in_use:?}");
}

#[test]
fn hosted_needs_a_manifest_and_says_what_is_wrong_with_it() {
    let scene = Scene::new();
    let mut command = scene.smartvm();
    let none =
        command.env_remove("SMARTVM_BASE_MANIFEST").args(["kernel", "pull", "hosted"]).output().unwrap();
    assert_eq!(none.status.code(), Some(3), "{none:?}");
    assert!(text(&none.stderr).contains("--manifest"), "{none:?}");
    scene.write("vmlinux", kernel("6.6.1-own"));
    scene.write("root", crate::goods::squashfs());
    let mut manifest = serde_json::json!({
        "schemaVersion": 1, "bundleId": "own-1", "name": "Our own", "arch": "x86_64", "firecrackerVersion": "v1.15.1",
        "rootfsType": "squashfs", "rootfsIsReadOnly": true, "bootArgs": "console=ttyS0",
        "kernel": { "path": "vmlinux" }, "rootfs": { "path": "root" },
    });
    let path = scene.write("manifest.json", manifest.to_string()).display().to_string();
    let pulled = scene.output(&["kernel", "pull", "hosted", "--manifest", &path]);
    assert!(text(&pulled.stdout).starts_with("base image own-1 (Our own)\n"), "{pulled:?}");
    manifest["rootfs"] = serde_json::json!({"url": "http://127.0.0.1:9/root"});
    scene.write("manifest.json", manifest.to_string());
    let refused = scene.output(&["kernel", "pull", "hosted", "--manifest", &path, "--force"]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(text(&refused.stderr).contains("rootfs.sha256"), "{refused:?}");
}
