//! Everything but `run`.

use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};

use smartvm_core::bare_metal::Guest;

use crate::scene::Scene;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn doctor_boots_a_guest_for_real() {
    let scene = Scene::new();
    let output = scene.output(&["doctor", "--json"]);
    let diagnosis = json(&output);
    assert_eq!(output.status.code(), Some(0), "{diagnosis:#}");
    assert_eq!(diagnosis["bare_metal"], true);
    assert!(diagnosis["trial_ms"].as_f64().unwrap() > 0.0);
    assert!(["yes", "no", "unknown"].contains(&diagnosis["linux_guests"].as_str().unwrap()));
    assert!(diagnosis["firecracker"].as_str().unwrap().starts_with("1."));
    assert!(text(&scene.output(&["doctor"]).stdout).contains("a tiny guest ran"));
    scene.assert_clean();
}

#[test]
fn doctor_names_the_fix_and_fails_when_something_is_missing() {
    let scene = Scene::new();
    let output =
        scene.smartvm().arg("doctor").env("SMARTVM_FIRECRACKER", "/no/firecracker").output().unwrap();
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("FAIL  firecracker"), "{said}");
    assert!(said.contains("fix: "), "{said}");
    assert!(said.contains("skip  trial"), "{said}");

    std::fs::set_permissions(scene.path("run"), PermissionsExt::from_mode(0o777)).unwrap();
    let output = scene.output(&["doctor"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains(&format!("fix: chmod 700 {}", scene.path("run").display())), "{said}");
}

#[test]
fn version_names_ours_and_firecrackers() {
    let scene = Scene::new();
    let version = json(&scene.output(&["version", "--json"]));
    assert_eq!(version["smartvm"], env!("CARGO_PKG_VERSION"));
    assert!(version["firecracker"]["version"].as_str().unwrap().starts_with("1."));
    assert!(text(&scene.output(&["version"]).stdout).starts_with("smartvm "));
    let mut command = scene.smartvm();
    let output = command.args(["version", "--json"]).env("SMARTVM_JAILER", smartvm_lab::jailer()).output();
    let jailer = &json(&output.unwrap())["jailer"];
    assert!(jailer["version"].as_str().unwrap().starts_with("1."), "{jailer}");
}

#[test]
fn a_good_config_is_said_to_be_good() {
    let scene = Scene::new();
    let config = scene.config(Guest::Echo);
    let config = config.to_str().unwrap();
    let output = scene.output(&["check", "--config-file", config]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).starts_with("ok: "), "{output:?}");
    let answer = json(&scene.output(&["check", "--config-file", config, "--json"]));
    assert_eq!(answer["ok"], true);
    assert_eq!(answer["problems"][0]["code"], "NO_ROOT_DEVICE");
}

#[test]
fn problems_come_as_json_too() {
    let scene = Scene::new();
    let config = scene.write("vm.json", "{\n\"drives\": 1}");
    let output = scene.output(&["check", "--config-file", config.to_str().unwrap(), "--json"]);
    let answer = json(&output);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!((&answer["ok"], &answer["problems"][0]["line"]), (&false.into(), &2.into()), "{answer}");
}

#[test]
fn a_missing_firecracker_is_the_hosts_fault() {
    let scene = Scene::new();
    let output = scene.run(Guest::Echo).args(["--firecracker", "/no/firecracker"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(text(&output.stderr).starts_with("error[FIRECRACKER_NOT_FOUND]: "), "{output:?}");
}

#[test]
fn a_program_that_is_not_firecracker_is_refused() {
    let scene = Scene::new();
    let output = scene.run(Guest::Echo).args(["--firecracker", "/bin/true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(text(&output.stderr).contains("is not Firecracker"), "{output:?}");
}

#[test]
fn wrong_usage_is_status_2_and_a_bad_name_says_which_are_good() {
    let scene = Scene::new();
    assert_eq!(scene.output(&["run"]).status.code(), Some(2));
    let output = scene.output(&["stop", "../etc"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("cannot name a machine"), "{output:?}");
}

#[test]
fn a_machine_that_is_not_there_cannot_be_stopped() {
    let scene = Scene::new();
    let output = scene.output(&["stop", "nobody"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let expected = "error[NOT_FOUND]: there is no machine `nobody`\n   hint: ";
    assert!(text(&output.stderr).starts_with(expected), "{output:?}");
}

#[test]
fn errors_come_as_json_when_asked_for() {
    let scene = Scene::new();
    let output = scene.output(&["--json", "stop", "nobody"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((&error["code"], &error["exit_status"]), (&"NOT_FOUND".into(), &7.into()));
    assert_eq!(error["happened"], "never-started");
}

#[test]
fn help_has_examples_and_the_exit_statuses() {
    let scene = Scene::new();
    assert!(text(&scene.output(&["--help"]).stdout).contains("Exit status:"));
    for command in ["run", "check", "stop", "gc", "ps", "completions"] {
        let help = text(&scene.output(&[command, "--help"]).stdout);
        assert!(help.contains("Example"), "{command}: {help}");
    }
}

#[test]
fn completions_know_the_commands() {
    let scene = Scene::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&scene.output(&["completions", shell]).stdout);
        assert!(script.contains("doctor") && script.contains("config-file"), "{shell}");
    }
}

#[test]
fn wrong_usage_is_json_too_when_that_is_asked_for() {
    let scene = Scene::new();
    for arguments in [&["bogus", "--json"][..], &["--json", "run"], &["stop", "BAD_id", "--json"]] {
        let output = scene.output(arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!((&report["code"], &report["exit_status"]), (&"USAGE".into(), &2.into()), "{report}");
    }
}

#[test]
fn a_name_in_a_config_has_no_hold_on_the_terminal() {
    let scene = Scene::new();
    scene.config(Guest::Echo);
    let json =
        r#"{"boot-source": {"kernel_image_path": "guest\u001b[2J"}, "drives": [], "\u001b]0;x\u0007": 1}"#;
    let config = scene.write("vm.json", json);
    let output = scene.output(&["check", "--config-file", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(!output.stderr.iter().any(|&byte| byte < b' ' && byte != b'\n'), "{}", text(&output.stderr));
}

#[test]
fn what_a_dead_owner_left_and_cannot_be_released_is_told_at_once() {
    let scene = Scene::new();
    scene.output(&["ps"]);
    // A lock that is a directory: nobody can take it.
    std::fs::create_dir_all(scene.path("run/machines/stuck/lock")).unwrap();
    let owner = serde_json::json!({"pid": 1, "start_time": 0, "boot_id": "of another boot"});
    let record = serde_json::json!({"id": "stuck", "owner": owner, "created": 1, "firecracker": "1.12.1"});
    scene.write("run/machines/stuck/machine.json", record.to_string());
    let output = scene.output(&["stop", "stuck", "--timeout", "3600"]);
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("dead owner") && said.contains("run/machines/stuck"), "{said}");
}

#[test]
fn warnings_are_part_of_the_one_document_that_a_run_ends_with() {
    let scene = Scene::new();
    let output = scene.run(Guest::ByteThenReset).arg("--json").stdin(Stdio::null()).output().unwrap();
    let end: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(end["warnings"][0]["code"], "NO_ROOT_DEVICE", "{end}");
}
