//! Owners that die: nothing of their machines survives. Kills at random moments: `../kill`.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use smartvm_core::bare_metal::Guest;

use crate::scene::{Running, Scene, is_alive, patience, wait_until};

#[test]
fn a_killed_owner_takes_its_vmm_along_and_gc_removes_the_rest() {
    let scene = Scene::new();
    let mut run = Running::start(scene.run(Guest::ByteThenIdle).args(["--id", "orphan"]));
    run.await_output("S");
    let vmm = scene.vmms()[0];
    run.signal(Signal::KILL);
    run.child.wait().unwrap();
    wait_until("its VMM is dead", smartvm_lab::patience(Duration::from_secs(1)), || !is_alive(vmm));
    assert_eq!(scene.machines(), ["orphan"], "nobody was left to remove it");

    let looked = scene.output(&["gc", "--dry-run"]);
    assert_eq!(String::from_utf8_lossy(&looked.stdout), "would release orphan\n");
    assert_eq!(scene.machines(), ["orphan"]);
    let ps = scene.output(&["ps", "--json"]);
    assert!(String::from_utf8_lossy(&ps.stdout).contains(r#""state":"dead""#));
    let gc = scene.output(&["gc"]);
    assert_eq!(
        (gc.status.code(), String::from_utf8_lossy(&gc.stdout).as_ref()),
        (Some(0), "released orphan\n")
    );
    assert_eq!(String::from_utf8_lossy(&scene.output(&["gc"]).stdout), "nothing to release\n");
    scene.assert_clean();
}

#[test]
fn a_start_releases_what_a_dead_owner_left_of_the_same_name() {
    let scene = Scene::new();
    let mut run = Running::start(scene.run(Guest::ByteThenIdle).args(["--id", "again"]));
    run.await_output("S");
    run.signal(Signal::KILL);
    run.child.wait().unwrap();
    let output =
        scene.run(Guest::ByteThenReset).args(["--id", "again"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"S"[..]), "{output:?}");
    scene.assert_clean();
}

#[test]
fn gc_leaves_live_machines_and_foreign_things_alone() {
    let scene = Scene::new();
    let mut run = Running::start(scene.run(Guest::ByteThenIdle).args(["--id", "alive"]));
    run.await_output("S");
    let machines = scene.path("run/machines");
    let precious = scene.path("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "kept").unwrap();
    symlink(&precious, machines.join("link")).unwrap();
    fs::write(machines.join("file"), "").unwrap();
    fs::create_dir(machines.join("Not an id")).unwrap();
    // Left by a crash: a directory whose record is no record, with links out of it.
    let crashed = machines.join("crashed");
    fs::create_dir(&crashed).unwrap();
    fs::write(crashed.join("machine.json"), "\0garbage").unwrap();
    symlink(&precious, crashed.join("drives")).unwrap();

    let gc = scene.output(&["gc", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&gc.stdout).unwrap();
    assert_eq!(gc.status.code(), Some(0), "{report}");
    assert_eq!(report["alive"], serde_json::json!(["alive"]));
    assert_eq!(report["released"], serde_json::json!([{"id": "crashed", "vmms": []}]));
    assert_eq!(report["foreign"].as_array().unwrap().len(), 3, "{report}");
    assert_eq!(fs::read(precious.join("file")).unwrap(), b"kept");
    assert_eq!(scene.vmms().len(), 1);
    run.signal(Signal::QUIT);
    assert_eq!(run.end().0.code(), Some(137));
}

#[test]
fn a_vmm_that_nobody_wrote_down_is_found_by_its_directory() {
    let scene = Scene::new();
    let dir = scene.path("run/machines/lost");
    for dir in [scene.path("run"), scene.path("run/machines"), dir.clone()] {
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }
    let mut vmm = std::process::Command::new(smartvm_lab::firecracker())
        .args(["--api-sock", "api.sock"])
        .current_dir(&dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it listens", patience(), || dir.join("api.sock").exists());
    let gc = scene.output(&["gc", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&gc.stdout).unwrap();
    assert_eq!(report["released"], serde_json::json!([{"id": "lost", "vmms": [vmm.id()]}]));
    assert!(!vmm.wait().unwrap().success());
    scene.assert_clean();
}
