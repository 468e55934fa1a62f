//! Images by `smartvm run`, in Linux guests: each boots to its own shell, which is spoken to over the console. Fails
//! where no Linux guest can run: `cargo xtask test` chooses the place.

mod scene;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use scene::Scene;
use sha2::{Digest, Sha256};
use smartvm::images::Progress;
use smartvm::images::image::{ImageConfig, ImportOptions, ImportSource};

fn sha256(path: &Path) -> String {
    let bytes = fs::read(path).expect("a file");
    Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Serves these files on loopback until the test ends.
fn serve(files: Vec<(String, PathBuf)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut request = String::new();
            let mut reader = BufReader::new(&connection);
            // One request a connection; headers are of no interest.
            while reader.read_line(&mut request).is_ok_and(|count| count > 2) {}
            let path = request.split(' ').nth(1).unwrap_or_default();
            let file = files.iter().find(|(name, _)| path == format!("/{name}"));
            let (status, body) = match file.map(|(_, file)| fs::read(file)) {
                Some(Ok(body)) => ("200 OK", body),
                _ => ("404 Not Found", Vec::new()),
            };
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let mut answer = &connection;
            let body = if request.starts_with("HEAD ") { &[][..] } else { &body };
            let _ = answer.write_all(head.as_bytes()).and_then(|()| answer.write_all(body));
        }
    });
    format!("http://{address}")
}

/// A base image from a manifest: kernel and squashfs root come over HTTP, writes go to the machine's own disk.
#[test]
fn a_base_image_boots_from_its_manifest_to_its_shell() {
    let scene = Scene::new();
    let manifest = scene.dir.path().join("manifest.json");
    let at = serve(vec![
        ("manifest.json".to_owned(), manifest.clone()),
        ("kernel.deb".to_owned(), scene.assets.stable.clone()),
        ("root.squashfs".to_owned(), scene.assets.squashfs.clone()),
    ]);
    let artifact = |name: &str, file: &Path| {
        serde_json::json!({
            "url": format!("{at}/{name}"),
            "sha256": sha256(file),
            "sizeBytes": fs::metadata(file).expect("a file").len(),
        })
    };
    let text = serde_json::json!({
        "schemaVersion": 1,
        "bundleId": "lab-1",
        "name": "The lab's",
        "arch": "x86_64",
        "firecrackerVersion": "v1.12.1",
        "rootfsType": "squashfs",
        "rootfsIsReadOnly": true,
        "bootArgs": "console=ttyS0 reboot=k panic=1",
        "kernel": artifact("kernel.deb", &scene.assets.stable),
        "rootfs": artifact("root.squashfs", &scene.assets.squashfs),
    });
    fs::write(&manifest, text.to_string()).expect("a manifest");
    scene.done(&["kernel", "pull", "hosted", "--manifest", &format!("{at}/manifest.json")]);
    scene.run(&["base:lab-1"]).answers_as_a_shell_of(&scene, "6.1.");
    // A command instead of the shell; its failure is told with its step.
    let (status, console, said) = scene.run(&["--read-only", "base:hosted", "/bin/nosuch"]).end();
    assert_eq!(status, Some(11), "{console}\n{said}");
    assert!(said.contains("the guest failed at `exec`") && said.contains("/bin/nosuch"), "{said}");
    scene.assert_nothing_is_left();
}

/// A root file system with busybox, as an ordinary directory.
fn busybox_directory(scene: &Scene) -> PathBuf {
    let root = scene.dir.path().join("busybox");
    for name in ["bin", "etc", "dev", "proc", "sys", "run", "tmp"] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    fs::copy(&scene.assets.busybox, root.join("bin/busybox")).expect("busybox");
    for name in ["sh", "cat", "id", "mount"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n")
        .expect("a file");
    root
}

/// Imports it under this name with a shell as its command.
fn import_busybox(scene: &Scene, name: &str) {
    let store = smartvm::images::Store::open(&scene.dir.path().join("data/store")).expect("the store");
    let options = ImportOptions {
        config: ImageConfig {
            cmd: vec!["/bin/sh".to_owned()],
            env: vec!["PATH=/bin".to_owned(), "OF=image".to_owned()],
            ..ImageConfig::default()
        },
        name: Some(name.parse().expect("a name")),
        ..ImportOptions::default()
    };
    let import = async {
        let source = ImportSource::Path(busybox_directory(scene));
        smartvm::images::image::import(&store, source, &options, &Progress::none()).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(import).expect("an image");
}

/// Debian's kernels from their packages, and a directory as an image: to its shell, with a disk for what it writes.
#[test]
fn a_directory_boots_as_an_image_under_debians_kernels() {
    let scene = Scene::new();
    for (package, name) in [(&scene.assets.stable, "stable"), (&scene.assets.backports, "backports")] {
        scene.done(&["kernel", "import", "--name", name, &package.display().to_string()]);
    }
    import_busybox(&scene, "busybox:lab");
    // The first kernel is the default.
    scene.run(&["busybox:lab"]).answers_as_a_shell_of(&scene, "6.1.");
    scene
        .run(&["--kernel", "backports", "--memory", "256M", "busybox:lab"])
        .answers_as_a_shell_of(&scene, "6.12.");

    // What is asked for arrives, however long it is.
    let long = format!("LONG={}", "x".repeat(3000));
    let arguments =
        ["--tmpfs-root", "-e", "OF=user", "-e", &long, "-w", "/tmp", "-u", "web", "--hostname", "box"];
    let script = "echo $OF:$(pwd):$(id -u):$(cat /proc/sys/kernel/hostname):${#LONG}; kill -9 $$";
    let run = scene.run(&[&arguments[..], &["busybox:lab", "/bin/sh", "-c", script]].concat());
    let (status, console, said) = run.end();
    assert!(console.contains("user:/tmp:33:box:3000"), "{console}\n{said}");
    assert_eq!(status, Some(137), "{console}\n{said}");
    scene.assert_nothing_is_left();
}
