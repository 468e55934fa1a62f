//! `smartvm run IMAGE` with tiny guests in the kernel's place: what is made, told and released. That images boot:
//! `../linux_image`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use smartvm::images::image::{ImageConfig, ImportOptions, ImportSource, import};
use smartvm::images::{Progress, Store};
use smartvm_core::bare_metal::Guest;

use crate::goods::{publish, release};
use crate::scene::{Running, Scene, is_alive, wait_until};
use crate::server::Server;

/// A scene with an image `tiny:1` and a kernel that is this guest.
fn scene(guest: Guest<'_>) -> Scene {
    let scene = Scene::new();
    let kernel = scene.write("guest", guest.elf());
    let imported = scene.output(&["kernel", "import", "--name", "tiny", &kernel.display().to_string()]);
    assert!(imported.status.success(), "{imported:?}");
    let root = scene.path("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/sh"), "#!").unwrap();
    let config = ImageConfig { cmd: vec!["/bin/sh".to_owned()], ..ImageConfig::default() };
    let options = ImportOptions { config, name: Some("tiny:1".parse().unwrap()), ..ImportOptions::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(import(&store(&scene), ImportSource::Path(root), &options, &Progress::none())).unwrap();
    scene
}

fn store(scene: &Scene) -> Store {
    Store::open(&scene.path("data/store")).unwrap()
}

/// Nothing of any machine is left, on disk or in use.
fn assert_released(scene: &Scene) {
    scene.assert_clean();
    let data = fs::read_dir(scene.path("data/machines")).into_iter().flatten();
    assert_eq!(data.map(|entry| entry.unwrap().path()).collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new());
    assert_eq!(store(scene).live_uses().unwrap(), []);
}

fn run(scene: &Scene, arguments: &[&str]) -> (Output, String) {
    let output = scene.smartvm().arg("run").args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn the_commands_status_is_ours_and_the_report_is_not_shown() {
    let scene = scene(Guest::Message("hello\r\nsmartvm-guest: exit code=7\r\n"));
    let (output, said) = run(&scene, &["tiny:1"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), &b"hello\r\n"[..]), "{said}");
    assert_eq!(said, "", "it prints nothing of its own");
    let (_, told) = run(&scene, &["--json", "tiny:1"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["how"], "the command ended with status 7");
    assert_eq!(told["error"], serde_json::Value::Null);
    assert_released(&scene);
}

#[test]
fn a_guest_that_fails_says_at_which_step() {
    let text = "smartvm-guest: failed step=exec: no program x in /bin; hint: give its path\r\n";
    let scene = scene(Guest::Message(text));
    let (output, said) = run(&scene, &["--id", "web", "tiny:1"]);
    assert_eq!(output.status.code(), Some(11), "{said}");
    assert!(said.contains("machine `web`: the guest failed at `exec`: no program x in /bin"), "{said}");
    assert!(said.contains("give its path"), "{said}");
    assert_released(&scene);
}

#[test]
fn a_guest_that_says_nothing_is_no_success() {
    let scene = scene(Guest::Message("Kernel panic\r\n"));
    let (output, said) = run(&scene, &["--json", "tiny:1"]);
    assert_eq!(output.status.code(), Some(11), "{said}");
    assert_eq!(output.stdout, b"Kernel panic\r\n");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["error"]["code"], "GUEST_FAILED");
    assert_eq!(told["error"]["log"], serde_json::json!(["Kernel panic"]));
    assert_released(&scene);
}

#[test]
fn a_killed_owner_leaves_its_disk_and_gc_removes_it() {
    let scene = scene(Guest::ByteThenIdle);
    let mut run = Running::start(scene.smartvm().args(["run", "--id", "orphan", "tiny:1"]));
    run.await_output("S");
    let disk = scene.path("data/machines/orphan/overlay.ext4");
    let metadata = fs::metadata(&disk).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (8 << 30, 0o600));
    assert!(metadata.blocks() * 512 < 8 << 20, "it is sparse: {} blocks", metadata.blocks());
    assert_eq!(store(&scene).live_uses().unwrap().len(), 1);
    // In use: neither the image nor the kernel may go.
    assert_ne!(scene.output(&["kernel", "rm", "tiny"]).status.code(), Some(0));
    let vmm = scene.vmms()[0];
    run.signal(Signal::KILL);
    run.child.wait().unwrap();
    wait_until("its VMM is dead", smartvm_lab::patience(Duration::from_secs(1)), || !is_alive(vmm));
    assert!(disk.exists(), "nobody was left to remove it");

    let looked = scene.output(&["gc", "--dry-run"]);
    assert_eq!(String::from_utf8_lossy(&looked.stdout), "would release orphan\n");
    assert!(disk.exists());
    let gc = scene.output(&["gc"]);
    assert_eq!(String::from_utf8_lossy(&gc.stdout), "released orphan\n", "{gc:?}");
    assert_released(&scene);
    assert!(scene.output(&["store", "verify"]).status.success());
}

#[test]
fn a_stopped_machine_leaves_nothing() {
    let scene = scene(Guest::ResetOnCtrlAltDel);
    let mut run = Running::start(scene.smartvm().args(["run", "--id", "web", "tiny:1"]));
    run.await_output("S");
    assert!(scene.output(&["stop", "web"]).status.success());
    let (status, _, said) = run.end();
    assert_eq!(status.code(), Some(143), "{said}");
    assert_released(&scene);
}

#[test]
fn a_dry_run_tells_all_and_makes_nothing() {
    let scene = scene(Guest::ByteThenReset);
    let arguments = ["--dry-run", "--id", "web", "--memory", "1G", "-e", "A=b", "tiny:1", "echo", "hi"];
    let (output, said) = run(&scene, &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for part in [
        "\"mem_size_mib\": 1024",
        "smartvm.env=A=b",
        "tells guest init what to do",
        "reboot=k  ",
        "overlay.ext4",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let (output, _) = run(&scene, &[&["--json"], &arguments[..]].concat());
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["firecracker_config"]["drives"][0]["is_read_only"], true);
    assert_eq!(plan["command_line"][0]["parameter"], "console=ttyS0");
    assert_eq!(plan["disk"]["size_bytes"], 8_u64 << 30);
    assert_released(&scene);
}

#[test]
fn what_is_missing_is_told_with_the_ways_out() {
    let scene = Scene::new();
    let (output, said) = run(&scene, &["tiny:1"]);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("smartvm kernel import") && said.contains("smartvm setup"), "{said}");
    let scene = self::scene(Guest::ByteThenReset);
    let (output, said) = run(&scene, &["--pull", "never", "other:1"]);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("other:1") && said.contains("smartvm image pull"), "{said}");
    let (output, said) = run(&scene, &["--disk-size", "1M", "tiny:1"]);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert_released(&scene);
}

#[test]
fn the_release_that_a_machine_runs_is_not_removed() {
    let (scene, server) = (scene(Guest::ResetOnCtrlAltDel), Server::new());
    for version in ["v1.12.1", "v1.13.0"] {
        publish(&server, version, &release(version));
        let mut install = scene.smartvm();
        install.env("SMARTVM_FIRECRACKER_URL", server.url("/releases"));
        assert!(install.args(["firecracker", "install", version]).output().unwrap().status.success());
    }
    let mut run = Running::start(
        scene.smartvm().env_remove("SMARTVM_FIRECRACKER").args(["run", "--id", "web", "tiny:1"]),
    );
    run.await_output("S");
    assert!(scene.output(&["firecracker", "use", "v1.13.0"]).status.success());
    let refused = scene.output(&["firecracker", "rm", "v1.12.1"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(7), "{said}");
    assert!(said.contains("error[IN_USE]") && said.contains("web"), "{said}");
    assert!(scene.output(&["stop", "web"]).status.success());
    run.end();
    assert!(scene.output(&["firecracker", "rm", "v1.12.1"]).status.success());
    assert_released(&scene);
}

#[test]
fn a_linux_that_came_without_its_drivers_is_refused_before_it_runs() {
    let scene = scene(Guest::ByteThenReset);
    // Linux by its own word, and no more is known of it.
    let mut kernel = Guest::ByteThenReset.elf();
    kernel.extend_from_slice(b"Linux version 6.1.0-test (nobody) #1\0");
    let kernel = scene.write("vmlinux", kernel);
    let imported = scene.output(&["kernel", "import", "--name", "bare", &kernel.display().to_string()]);
    assert!(imported.status.success(), "{imported:?}");
    for more in [&["--read-only"][..], &[]] {
        let (output, said) = run(&scene, &[&["--dry-run", "--kernel", "bare"], more, &["tiny:1"]].concat());
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("error[INVALID_KERNEL]") && said.contains("lib/modules"), "{said}");
    }
}
