//! `smartvm firecracker`.

use std::process::{Command, Output};

use crate::goods::{hex, programs, publish, real, release};
use crate::scene::{Running, Scene};
use crate::server::Server;
use crate::terminal::Console;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The command in an environment where the release page is `server`.
fn firecracker(scene: &Scene, server: &Server, arguments: &[&str]) -> Command {
    let mut command = scene.smartvm();
    command.env("SMARTVM_FIRECRACKER_URL", server.url("/releases"));
    command.env_remove("SMARTVM_FIRECRACKER").arg("firecracker").args(arguments);
    command
}

fn output(scene: &Scene, server: &Server, arguments: &[&str]) -> Output {
    firecracker(scene, server, arguments).output().unwrap()
}

#[test]
fn a_release_is_installed_asked_for_its_version_and_used() {
    let (scene, server) = (Scene::new(), Server::new());
    publish(&server, "v1.12.1", &release("v1.12.1"));
    let installed = output(&scene, &server, &["install"]);
    let path = scene.path("data/store/bin/v1.12.1/firecracker");
    let expected = format!("installed Firecracker v1.12.1 ({}; it says: version 1.12.1)\n", path.display());
    assert_eq!((installed.status.code(), text(&installed.stdout)), (Some(0), expected), "{installed:?}");
    // One line a step, and no bar: this is a pipe.
    let said = text(&installed.stderr);
    assert!(
        said.lines().any(|line| line.starts_with("smartvm: download firecracker-v1.12.1-x86_64.tgz (")),
        "{said}"
    );
    assert!(!said.contains(['\r', '\x1b']), "{said:?}");

    let mut version = scene.smartvm();
    version.env_remove("SMARTVM_FIRECRACKER").env("PATH", "/nowhere").args(["version", "--json"]);
    let version = json(&version.output().unwrap());
    assert_eq!(version["firecracker"]["path"], path.display().to_string());
}

#[test]
fn a_program_of_another_version_than_its_release_is_an_error() {
    let (scene, server) = (Scene::new(), Server::new());
    let [firecracker, jailer] = real();
    publish(&server, "v1.13.0", &programs("v1.13.0", &firecracker, &jailer));
    let installed = output(&scene, &server, &["install", "v1.13.0"]);
    let said = text(&installed.stderr);
    assert_eq!(installed.status.code(), Some(9), "{said}");
    assert!(said.contains("gives as Firecracker v1.13.0 says that it is 1.12.1"), "{said}");
    assert!(said.contains("smartvm firecracker rm v1.13.0"), "{said}");
    assert_eq!(output(&scene, &server, &["rm", "v1.13.0"]).status.code(), Some(0));
}

#[test]
fn versions_stand_side_by_side_and_one_is_the_default() {
    let (scene, server) = (Scene::new(), Server::new());
    for version in ["v1.12.1", "v1.13.0"] {
        publish(&server, version, &release(version));
        assert!(output(&scene, &server, &["install", version]).status.success());
    }
    let listed = json(&output(&scene, &server, &["ls", "--json"]));
    let row = |index: usize| (&listed[index]["version"], &listed[index]["default"]);
    assert_eq!(row(0), (&"v1.13.0".into(), &false.into()));
    assert_eq!(row(1), (&"v1.12.1".into(), &true.into()));
    let table = text(&output(&scene, &server, &["ls"]).stdout);
    let from = server.url("/releases/download");
    let expected = format!(
        "VERSION  DEFAULT  ARCH    FROM\nv1.13.0           x86_64  {from}/v1.13.0/firecracker-v1.13.0-x86_64.tgz\n\
         v1.12.1  yes      x86_64  {from}/v1.12.1/firecracker-v1.12.1-x86_64.tgz\n"
    );
    assert_eq!(table, expected);

    let refused = output(&scene, &server, &["rm", "v1.12.1"]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    assert!(
        text(&refused.stderr).starts_with("error[IN_USE]: Firecracker v1.12.1 is the default"),
        "{refused:?}"
    );
    let used = output(&scene, &server, &["use", "1.13.0"]);
    assert!(text(&used.stdout).starts_with("default is Firecracker v1.13.0 ("), "{used:?}");
    let removed = output(&scene, &server, &["rm", "v1.12.1"]);
    assert_eq!(text(&removed.stdout), "removed Firecracker v1.12.1\n", "{removed:?}");
    let unknown = output(&scene, &server, &["use", "v1.12.1"]);
    assert_eq!(unknown.status.code(), Some(7), "{unknown:?}");
    assert!(text(&unknown.stderr).contains("hint: see `smartvm firecracker ls`"), "{unknown:?}");
}

#[test]
fn what_was_not_published_or_is_another_file_is_refused_with_both_digests() {
    let (scene, server) = (Scene::new(), Server::new());
    let (good, bad) = (release("v1.12.1"), b"something else".to_vec());
    publish(&server, "v1.12.1", &good);
    server.file("/releases/download/v1.12.1/firecracker-v1.12.1-x86_64.tgz", bad.clone());
    let refused = output(&scene, &server, &["install", "v1.12.1"]);
    assert_eq!(refused.status.code(), Some(9), "{refused:?}");
    let said = text(&refused.stderr);
    assert!(
        said.contains("error[DIGEST_MISMATCH]") && said.contains(&hex(&good)) && said.contains(&hex(&bad)),
        "{said}"
    );
    let unpublished = output(&scene, &server, &["install", "v1.99.0", "--json"]);
    let error: serde_json::Value = serde_json::from_slice(&unpublished.stderr).unwrap();
    assert_eq!((&error["code"], &error["exit_status"]), (&"NOT_FOUND".into(), &7.into()), "{error}");
    assert_eq!(text(&output(&scene, &server, &["ls", "--json"]).stdout), "[]\n");
}

#[test]
fn a_release_that_does_not_run_is_told_at_once() {
    let (scene, server) = (Scene::new(), Server::new());
    let other = std::fs::read("/bin/true").unwrap();
    publish(&server, "v1.12.1", &programs("v1.12.1", &other, &other));
    let told = output(&scene, &server, &["install"]);
    assert_eq!(told.status.code(), Some(4), "{told:?}");
    assert!(text(&told.stderr).contains("is not Firecracker"), "{told:?}");
}

#[test]
fn without_a_network_the_ways_out_are_named() {
    let (scene, server) = (Scene::new(), Server::new());
    let mut command = firecracker(&scene, &server, &["install", "v1.12.1"]);
    // Nothing listens on this port of the loopback.
    let offline = command.env("SMARTVM_FIRECRACKER_URL", "http://127.0.0.1:9/releases").output().unwrap();
    assert_eq!(offline.status.code(), Some(9), "{offline:?}");
    let said = text(&offline.stderr);
    for way in ["HTTPS_PROXY", "SMARTVM_FIRECRACKER_URL", "smartvm setup --from DIR"] {
        assert!(said.contains(way), "{way}: {said}");
    }
}

#[test]
fn an_interrupted_install_ends_with_130_and_goes_on_where_it_was() {
    let (scene, server) = (Scene::new(), Server::new());
    let archive = release("v1.12.1");
    publish(&server, "v1.12.1", &archive);
    let path = "/releases/download/v1.12.1/firecracker-v1.12.1-x86_64.tgz";
    server.slow(path, true);
    let mut running = Running::start(&mut firecracker(&scene, &server, &["install"]));
    server.await_stall();
    let partial = || {
        let parts = std::fs::read_dir(scene.path("data/store/partial")).into_iter().flatten();
        parts.map(|part| part.unwrap().metadata().unwrap().len()).max().unwrap_or(0)
    };
    crate::scene::wait_until("half of it is here", crate::scene::patience(), || partial() >= 512 << 10);
    running.signal(rustix::process::Signal::INT);
    let (status, stdout, stderr) = running.end();
    assert_eq!((status.code(), text(&stdout)), (Some(130), String::new()), "{stderr}");
    assert!(stderr.contains("error[INTERRUPTED]: stopped on request"), "{stderr}");
    let verified = scene.output(&["store", "verify"]);
    assert!(verified.status.success(), "{verified:?}");

    server.slow(path, false);
    let installed = output(&scene, &server, &["install"]);
    assert!(installed.status.success(), "{installed:?}");
    let last = server.asked().into_iter().rfind(|asked| asked.starts_with(&format!("GET {path}"))).unwrap();
    assert!(last.starts_with(&format!("GET {path} from ")), "{last}");
}

#[test]
fn a_terminal_shows_a_bar_with_total_speed_and_time_and_ctrl_c_ends_it() {
    let (scene, server) = (Scene::new(), Server::new());
    publish(&server, "v1.12.1", &release("v1.12.1"));
    server.slow("/releases/download/v1.12.1/firecracker-v1.12.1-x86_64.tgz", true);
    let mut command = firecracker(&scene, &server, &["install"]);
    let mut console = Console::open(command.env("TERM", "xterm").env("NO_COLOR", "1"));
    server.await_stall();
    for part in ["download firecracker-v1.12.1-x86_64.tgz", " [", "B of ", "/s"] {
        console.run.await_output(part);
    }
    // No job control of a shell is there to make a signal of the key.
    console.run.signal(rustix::process::Signal::INT);
    let (status, screen) = console.end();
    assert_eq!(status, Some(130), "{screen}");
    assert!(screen.contains("error[INTERRUPTED]: stopped on request"), "{screen}");
}
