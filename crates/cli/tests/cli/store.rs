//! `smartvm store`.

use std::fs;
use std::process::Output;

use crate::goods::kernel;
use crate::scene::Scene;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A scene with a kernel in its store.
fn with_kernel() -> Scene {
    let scene = Scene::new();
    let path = scene.write("vmlinux", kernel("6.1.0-a"));
    let imported = scene.output(&["kernel", "import", path.to_str().unwrap()]);
    assert!(imported.status.success(), "{imported:?}");
    scene
}

/// The blob of the kernel's vmlinux.
fn vmlinux(scene: &Scene) -> std::path::PathBuf {
    scene.path("data/store/blobs").join(crate::goods::hex(&kernel("6.1.0-a")))
}

#[test]
fn an_empty_store_is_whole_and_has_nothing_to_remove() {
    let scene = Scene::new();
    let said = text(&scene.output(&["store", "verify"]).stdout);
    assert_eq!(said, "ok: 0 blobs (0 B) and 0 records were read, and all is as it should be\n");
    assert_eq!(text(&scene.output(&["store", "gc"]).stdout), "nothing to remove\n");
    let df = text(&scene.output(&["store", "df"]).stdout);
    assert!(
        df.starts_with(
            "KIND       RECORDS  BLOBS  SIZE  ON DISK\nall blobs               0   0 B      0 B\n"
        ),
        "{df}"
    );
    assert!(df.contains("0 B can be removed by `smartvm store gc`"), "{df}");
}

#[test]
fn df_tells_what_lies_there_and_what_gc_would_free() {
    let scene = with_kernel();
    let df = json(&scene.output(&["store", "df", "--json"]));
    assert_eq!(df["dir"], scene.path("data/store").display().to_string());
    assert_eq!(df["blobs"]["count"], 2);
    assert_eq!(df["reclaimable_bytes"], 0);
    assert!(df["free_bytes"].as_u64().unwrap() > 0);
    let kinds = df["kinds"].as_array().unwrap();
    let kernels = kinds.iter().find(|kind| kind["kind"] == "kernel").unwrap();
    assert_eq!((&kernels["records"], &kernels["blobs"]["count"]), (&1.into(), &2.into()));
    let table = text(&scene.output(&["store", "df"]).stdout);
    assert!(table.lines().any(|line| line.starts_with("kernel ")), "{table}");
    assert!(scene.output(&["kernel", "rm", "6.1.0-a"]).status.success());
    let df = json(&scene.output(&["store", "df", "--json"]));
    assert!(df["reclaimable_bytes"].as_u64().unwrap() > 0, "{df}");
}

#[test]
fn gc_says_what_would_go_and_then_removes_it_and_nothing_that_is_needed() {
    let scene = with_kernel();
    assert_eq!(text(&scene.output(&["store", "gc"]).stdout), "nothing to remove\n");
    assert!(scene.output(&["kernel", "rm", "6.1.0-a"]).status.success());
    let blob = format!("sha256:{} (", crate::goods::hex(&kernel("6.1.0-a")));
    let dry = text(&scene.output(&["store", "gc", "--dry-run"]).stdout);
    assert!(dry.contains(&format!("would remove {blob}")) && dry.ends_with(" would be freed\n"), "{dry}");
    assert!(vmlinux(&scene).exists());
    let real = json(&scene.output(&["store", "gc", "--json"]));
    assert_eq!((&real["dry_run"], real["blobs"].as_array().unwrap().len()), (&false.into(), 2), "{real}");
    assert!(!vmlinux(&scene).exists());
}

#[test]
fn damage_is_found_told_and_moved_away() {
    let scene = with_kernel();
    let blob = vmlinux(&scene);
    let digest = crate::goods::hex(&kernel("6.1.0-a"));
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, "damaged").unwrap();
    let found = scene.output(&["store", "verify"]);
    assert_eq!(found.status.code(), Some(10), "{found:?}");
    let said = text(&found.stdout);
    assert!(said.contains(&format!("blob sha256:{digest}: ")), "{said}");
    assert!(said.contains("kernel `6.1.0-a` lacks sha256:"), "{said}");
    assert!(said.ends_with("2 findings; `smartvm store verify --repair` moves what is bad away\n"), "{said}");
    let repaired = json(&scene.output(&["store", "verify", "--repair", "--json"]));
    assert_eq!(repaired["findings"][0]["finding"], "bad-blob", "{repaired}");
    assert!(!blob.exists());
    // What is missing comes back by importing it again.
    let path = scene.path("vmlinux");
    assert!(scene.output(&["kernel", "import", path.to_str().unwrap()]).status.success());
    assert_eq!(scene.output(&["store", "verify"]).status.code(), Some(0));
}

#[test]
fn gc_removes_no_blob_while_a_record_cannot_be_understood() {
    let scene = with_kernel();
    fs::write(scene.path("data/store/records/kernel/6.1.0-a.json"), "{").unwrap();
    let refused = scene.output(&["store", "gc"]);
    assert_eq!(refused.status.code(), Some(10), "{refused:?}");
    assert!(
        text(&refused.stdout).contains("no blob goes, since it might be needed: the record `"),
        "{refused:?}"
    );
    assert!(vmlinux(&scene).exists());
}

#[test]
fn a_folder_that_is_no_store_or_a_newer_one_is_refused_with_the_way_out() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("data/store")).unwrap();
    fs::set_permissions(scene.path("data"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    scene.write("data/store/holiday.jpg", "x");
    let foreign = scene.output(&["store", "df"]);
    assert_eq!(foreign.status.code(), Some(10), "{foreign:?}");
    let said = text(&foreign.stderr);
    assert!(
        said.starts_with("error[STORE]: ")
            && said.contains("holiday.jpg")
            && said.contains("SMARTVM_DATA_DIR"),
        "{said}"
    );
    fs::remove_file(scene.path("data/store/holiday.jpg")).unwrap();
    scene.write("data/store/version", "99\n");
    let newer = scene.output(&["kernel", "ls", "--json"]);
    assert_eq!(newer.status.code(), Some(10), "{newer:?}");
    let error: serde_json::Value = serde_json::from_slice(&newer.stderr).unwrap();
    assert_eq!(error["code"], "STORE");
}

#[test]
fn a_data_directory_that_is_none_is_refused_with_the_variable_that_names_it() {
    let scene = Scene::new();
    let file = scene.write("file", b"");
    let refused = scene.smartvm().env("SMARTVM_DATA_DIR", &file).args(["store", "df"]).output().unwrap();
    let said = text(&refused.stderr);
    assert_ne!(refused.status.code(), Some(0), "{said}");
    assert!(said.contains("it is not a directory") && said.contains("SMARTVM_DATA_DIR"), "{said}");
    assert!(!said.contains("SMARTVM_RUNTIME_DIR"), "{said}");
}
