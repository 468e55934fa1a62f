//! Configs that cannot work: each gives its whole error in words, the documented status, and leaves nothing behind.
//!
//! The table is `broken_configs.txt` beside this file. `SMARTVM_UPDATE=1` writes it anew from what is said; read the
//! difference before you keep it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use smartvm_core::bare_metal::Guest;

use crate::scene::{Scene, contains, patience, smartvm, wait_until};

const TABLE: &str = "tests/cli/broken_configs.txt";

/// One row: a name, the config (or `@` and how to make it), and what is said.
#[derive(Clone)]
struct Row {
    name: String,
    config: String,
    status: i32,
    said: String,
}

fn rows(table: &str) -> (String, Vec<Row>) {
    let mut parts = table.split("\n=== ");
    let head = parts.next().unwrap_or_default().to_owned();
    let rows = parts.map(|part| {
        let (name, rest) = part.split_once('\n').unwrap();
        let (config, rest) = rest.split_once("\n--- exit status ").unwrap_or((rest.trim_end(), "0\n"));
        let (status, said) = rest.split_once('\n').unwrap_or((rest, ""));
        Row {
            name: name.to_owned(),
            config: config.to_owned(),
            status: status.trim().parse().unwrap(),
            said: said.trim_end().to_owned(),
        }
    });
    let rows = rows.collect();
    (head, rows)
}

/// The files that the configs name.
fn furnish(scene: &Scene) {
    scene.write("guest", Guest::ByteThenReset.elf());
    scene.write("text", "This is a letter, not a kernel.\n");
    scene.write("empty", "");
    scene.write("disk.img", vec![0; 1 << 20]);
    scene.write("bzimage", bzimage());
    scene.write("cut-off", &Guest::ByteThenIdle.elf()[..100]);
    scene.write("vmlinux-aarch64", for_aarch64(Guest::ByteThenIdle.elf()));
    fs::create_dir(scene.path("dir")).unwrap();
    symlink("loop", scene.path("loop")).unwrap();
}

/// The beginning of a bzImage: boot sector magic, and the header's `HdrS` at 0x202.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image
}

fn for_aarch64(mut elf: Vec<u8>) -> Vec<u8> {
    elf[18..20].copy_from_slice(&183_u16.to_le_bytes());
    elf
}

/// Makes the config file that a row describes.
fn make(scene: &Scene, config: &str) -> PathBuf {
    let path = scene.path("vm.json");
    match config {
        "@missing" => return scene.path("missing.json"),
        "@a directory" => return scene.path("dir"),
        "@a link to itself" => return scene.path("loop"),
        "@empty" => fs::write(&path, "").unwrap(),
        "@not UTF-8" => fs::write(&path, b"{\n  \"drives\": \"\xff\"\n}").unwrap(),
        "@5 MiB of spaces" => fs::write(&path, vec![b' '; 5 << 20]).unwrap(),
        "@deeply nested" => fs::write(&path, "[".repeat(100_000)).unwrap(),
        text => {
            assert!(!text.starts_with('@'), "{text}");
            fs::write(&path, text).unwrap();
        }
    }
    path
}

#[test]
fn each_says_what_is_wrong_and_what_to_do_and_leaves_nothing() {
    // In the program, since it may run where the sources are not.
    let (head, expected) = rows(include_str!("broken_configs.txt"));
    assert!(expected.len() >= 40, "{} rows only", expected.len());
    let scene = Scene::new();
    furnish(&scene);
    let mut wrong = Vec::new();
    let mut actual = Vec::new();
    for row in expected {
        let config = make(&scene, &row.config);
        let said = |command: &str| {
            let mut program = scene.smartvm();
            program.arg(command).arg("--config-file").arg(&config).stdin(Stdio::null());
            let output = program.output().unwrap();
            let stdout = String::from_utf8_lossy(&output.stdout);
            if std::env::var_os("SMARTVM_UPDATE").is_none() {
                assert_eq!(stdout, "", "{}: nothing on standard output", row.name);
            }
            let text = String::from_utf8(output.stderr).unwrap();
            let dir = scene.path("").to_string_lossy().trim_end_matches('/').to_owned();
            (output.status.code().unwrap(), text.replace(&dir, "$DIR").trim_end().to_owned())
        };
        let (status, text) = said("run");
        assert_eq!(said("check"), (status, text.clone()), "{}: `check` says the same", row.name);
        scene.assert_clean();
        if (status, &text) != (row.status, &row.said) {
            wrong.push(format!("=== {}\nexit status {status}, not {}\n{text}\n", row.name, row.status));
        }
        actual.push(Row { status, said: text, ..row });
    }
    if std::env::var_os("SMARTVM_UPDATE").is_some() {
        let mut text = head;
        for Row { name, config, status, said } in actual {
            text += &format!("\n=== {name}\n{config}\n--- exit status {status}\n{said}\n");
        }
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE), text).unwrap();
    } else {
        assert!(wrong.is_empty(), "not as in {TABLE}:\n{}", wrong.join("\n"));
    }
}

/// Root may read everything, so this one runs as nobody.
#[test]
fn a_file_that_this_user_may_not_read_is_named() {
    let scene = Scene::new();
    furnish(&scene);
    fs::set_permissions(scene.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(scene.path("disk.img"), fs::Permissions::from_mode(0o600)).unwrap();
    // Where nobody may go, too.
    let (binary, firecracker) = (scene.path("smartvm"), scene.path("firecracker"));
    fs::copy(smartvm(), &binary).unwrap();
    fs::copy(smartvm_lab::firecracker(), &firecracker).unwrap();
    let config = scene.write(
        "vm.json",
        r#"{"boot-source": {"kernel_image_path": "guest"},
            "drives": [{"drive_id": "root", "is_root_device": true, "path_on_host": "disk.img"}]}"#,
    );
    let mut command = std::process::Command::new(binary);
    scene.equip(&mut command);
    command.env("SMARTVM_FIRECRACKER", firecracker).arg("check").arg("--config-file").arg(config);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    // Another test's child may hold our copies open for writing in the moment between fork and exec.
    let mut output = None;
    wait_until("the copies can be run", patience(), || {
        let ended = command.output().ok().filter(|ended| !contains(&ended.stderr, b"Text file busy"));
        output = ended;
        output.is_some()
    });
    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("error[FILE_NOT_READABLE]: drives[0].path_on_host: "), "{said}");
    assert_eq!(output.status.code(), Some(3), "{said}");
}
