//! `smartvm setup`, on hosts that have nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::goods::{archive_name, checksum, fill_bucket, kernel, publish, release, squashfs};
use crate::scene::Scene;
use crate::server::Server;
use crate::terminal::Console;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

const BUNDLE: &str = "ci-20260717-5ac3f5ffdcd7-0-x86_64-6.1.176-ubuntu-24.04.squashfs";

/// The command on a fresh host: its own data directory, no Firecracker, and everything it may ask is `server`.
fn setup(scene: &Scene, server: Option<&Server>, arguments: &[&str]) -> Command {
    let mut command = scene.smartvm();
    // Nothing listens on this port of the loopback.
    let nowhere = || "http://127.0.0.1:9".to_owned();
    command
        .env_remove("SMARTVM_FIRECRACKER")
        .env("PATH", "/nowhere")
        .env("SMARTVM_FIRECRACKER_URL", server.map_or_else(nowhere, |server| server.url("/releases")))
        .env("SMARTVM_BASE_URL", server.map_or_else(nowhere, |server| server.url("/bucket")))
        .arg("setup")
        .args(arguments);
    command
}

fn fresh() -> (Scene, Server) {
    let (scene, server) = (Scene::new(), Server::new());
    publish(&server, "v1.12.1", &release("v1.12.1"));
    fill_bucket(&server);
    (scene, server)
}

#[test]
fn a_fresh_host_is_told_what_comes_and_how_large_it_is_and_ends_with_doctor() {
    let (scene, server) = fresh();
    let archive = release("v1.12.1").len();
    let bundle = kernel("6.1.176").len() + squashfs().len();

    let dry =
        json(&setup(&scene, Some(&server), &["--dry-run", "--json", "--kernel", "latest"]).output().unwrap());
    assert_eq!((&dry["size"], &dry["size_is_complete"]), (&(archive + bundle).into(), &true.into()), "{dry}");
    let step = |index: usize| {
        (&dry["steps"][index]["what"], &dry["steps"][index]["action"], &dry["steps"][index]["size"])
    };
    assert_eq!(step(0), (&"Firecracker v1.12.1".into(), &"fetch".into(), &archive.into()));
    assert!(step(1).0.as_str().unwrap().contains(BUNDLE), "{dry}");
    assert_eq!((step(1).1, step(1).2), (&"fetch".into(), &bundle.into()));
    let fetched =
        |asked: &String| asked.starts_with("GET") && (asked.contains(".tgz") || asked.contains("/vmlinux"));
    assert!(!server.asked().iter().any(fetched), "a dry run fetches nothing: {:?}", server.asked());

    let done = setup(&scene, Some(&server), &["--yes", "--kernel", "latest"]).output().unwrap();
    let (said, steps) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(0), "{said}{steps}");
    let store = scene.path("data/store");
    assert!(said.starts_with(&format!("To be put into {}:\n  fetch ", store.display())), "{said}");
    assert!(said.contains("Firecracker v1.12.1\n") && said.contains(" to fetch, "), "{said}");
    assert!(said.contains(&format!("base image {BUNDLE} is here, with kernel ")), "{said}");
    // Doctor comes last, and has booted a guest under what was installed.
    let doctor = said.split("\n\n").last().unwrap();
    assert!(doctor.starts_with("ok    kvm-device"), "{said}");
    assert!(
        doctor.contains("the default of `smartvm firecracker`") && doctor.contains("a tiny guest ran"),
        "{doctor}"
    );
    assert!(
        doctor.contains("ok    kernel ") && doctor.contains("ok    store ") && doctor.contains("disk-space"),
        "{doctor}"
    );
    assert!(
        steps.lines().any(|line| line.starts_with("smartvm: download firecracker-v1.12.1-x86_64.tgz (")),
        "{steps}"
    );
    assert!(steps.lines().all(|line| line.starts_with("smartvm: ")) && !steps.contains('\r'), "{steps}");

    // The second time nothing is fetched, and offline is fine.
    let asked = server.asked().len();
    let again = json(&setup(&scene, None, &["--json"]).output().unwrap());
    assert_eq!(again["size"], 0, "{again}");
    assert!(again["steps"].as_array().unwrap().iter().all(|step| step["action"] == "none"), "{again}");
    assert_eq!(again["doctor"]["bare_metal"], true, "{again}");
    assert_eq!(server.asked().len(), asked);
    assert_eq!(scene.output(&["store", "verify"]).status.code(), Some(0));
    scene.assert_clean();
}

#[test]
fn without_a_terminal_nothing_is_fetched_that_nobody_agreed_to() {
    let (scene, server) = fresh();
    let refused = setup(&scene, Some(&server), &["--kernel", "latest"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(text(&refused.stdout).contains("fetch "), "{refused:?}");
    assert!(text(&refused.stderr).contains("hint: agree by --yes"), "{refused:?}");
    assert_eq!(text(&scene.output(&["firecracker", "ls", "--json"]).stdout), "[]\n");
}

#[test]
fn offline_with_nothing_here_one_message_names_the_ways_out() {
    let scene = Scene::new();
    for arguments in [&["--yes", "--kernel", "latest"][..], &["--dry-run", "--kernel", "latest"]] {
        let output = setup(&scene, None, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(9), "{output:?}");
        let said = text(&output.stderr);
        let errors = said.lines().filter(|line| line.starts_with("error[")).count();
        assert_eq!((errors, output.stdout.len()), (1, 0), "{output:?}");
        let first = "error[DOWNLOAD_FAILED]: this host cannot reach the network, and the store has no Firecracker and no base image";
        assert!(said.contains(first), "{said}");
        for way in [
            "HTTPS_PROXY",
            "SMARTVM_FIRECRACKER_URL",
            "SMARTVM_BASE_URL",
            "smartvm setup --from DIR",
            "SMARTVM_FIRECRACKER",
            "kernel import",
        ] {
            assert!(said.contains(way), "{way}: {said}");
        }
    }
}

#[test]
fn a_folder_makes_a_host_ready_that_has_no_network() {
    let scene = Scene::new();
    let dir = scene.path("usb");
    fs::create_dir(&dir).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).unwrap();
    let archive = release("v1.12.1");
    write(&archive_name("v1.12.1"), &archive);
    write(&format!("{}.sha256.txt", archive_name("v1.12.1")), checksum("v1.12.1", &archive).as_bytes());
    write("vmlinux-6.1.176", &kernel("6.1.176"));
    write("notes.txt", b"remember the milk");
    let from = |dir: &Path, more: &[&str]| {
        setup(&scene, None, &["--from", dir.to_str().unwrap()]).args(more).output().unwrap()
    };
    let done = from(&dir, &[]);
    let said = text(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(said.contains("took     firecracker-v1.12.1-x86_64.tgz: Firecracker v1.12.1\n"), "{said}");
    assert!(said.contains("took     vmlinux-6.1.176: the kernel 6.1.176\n"), "{said}");
    assert!(said.contains("skipped  notes.txt: ") && said.contains("a tiny guest ran"), "{said}");
    assert!(said.contains("an image to boot: smartvm image pull"), "{said}");

    // One bad file keeps no good one out, and is told.
    write(&format!("{}.sha256.txt", archive_name("v1.12.1")), checksum("v1.12.1", b"other").as_bytes());
    let bad = from(&dir, &["--json"]);
    let answer = json(&bad);
    assert_eq!(bad.status.code(), Some(1), "{answer}");
    assert_eq!(answer["failed"][0]["error"]["code"], "DIGEST_MISMATCH", "{answer}");
    assert_eq!(answer["imported"][0]["what"], "the kernel 6.1.176", "{answer}");

    let empty = scene.path("empty");
    fs::create_dir(&empty).unwrap();
    let nothing = from(&empty, &[]);
    assert_eq!(nothing.status.code(), Some(7), "{nothing:?}");
    assert!(text(&nothing.stderr).contains("hint: put there what the release pages offer"), "{nothing:?}");
}

#[test]
fn a_named_firecracker_that_is_none_is_told_before_anything_is_fetched() {
    let (scene, server) = fresh();
    let mut command = setup(&scene, Some(&server), &["--yes", "--kernel", "latest"]);
    let output = command.env("SMARTVM_FIRECRACKER", "/no/firecracker").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(server.asked().is_empty());
}

#[test]
fn a_terminal_is_asked_and_no_means_no() {
    let (scene, server) = fresh();
    let mut console =
        Console::open(setup(&scene, Some(&server), &["--kernel", "latest"]).env("TERM", "xterm"));
    console.run.await_output("Fetch this? [Y/n] ");
    console.type_in(b"n\n");
    let (status, screen) = console.end();
    assert_eq!(status, Some(0), "{screen}");
    assert!(screen.contains(" to fetch, ") && screen.contains("nothing was done"), "{screen}");
    assert!(
        !server.asked().iter().any(|asked| asked.starts_with("GET") && asked.contains(".tgz")),
        "{screen}"
    );
}

#[test]
fn a_terminal_that_agrees_sees_it_through_to_doctor() {
    let (scene, server) = fresh();
    let mut console =
        Console::open(setup(&scene, Some(&server), &["--kernel", "latest"]).env("TERM", "xterm"));
    console.run.await_output("Fetch this? [Y/n] ");
    console.type_in(b"\n");
    let (status, screen) = console.end();
    assert_eq!(status, Some(0), "{screen}");
    assert!(screen.contains("is here, with kernel") && screen.contains("\x1b[32mok"), "{screen}");
}

#[test]
fn a_folder_that_is_not_there_and_files_that_fail_are_told() {
    let scene = Scene::new();
    let missing = setup(&scene, None, &["--from", "/nowhere"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(7), "{missing:?}");
    let brought = scene.path("brought");
    std::fs::create_dir(&brought).unwrap();
    std::fs::write(brought.join("linux-image-6.1.0_amd64.deb"), b"!<arch>\ncut").unwrap();
    let failed = setup(&scene, None, &["--from", &brought.display().to_string()]).output().unwrap();
    assert_ne!(failed.status.code(), Some(0), "{failed:?}");
    assert!(
        text(&failed.stdout).contains("failed   linux-image-6.1.0_amd64.deb: see the error above"),
        "{failed:?}"
    );
    let path = brought.join("linux-image-6.1.0_amd64.deb").display().to_string();
    let first = text(&failed.stderr);
    let first = first.lines().find(|line| line.starts_with("error[")).unwrap_or_default().to_owned();
    assert_eq!(first.matches(&path).count(), 1, "{first}");
}
