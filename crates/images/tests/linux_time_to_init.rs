//! How long the kernel takes to reach guest init, against a bare busybox initramfs: the part of a boot that the
//! content of our initramfs decides. In a program of its own, so that no other test runs beside it.
//!
//! Both guests alternate, and their medians are compared. The time runs from Firecracker's `InstanceStart` to the
//! first line that the initramfs's init writes; ours has mounted `/proc`, `/sys` and `/dev` and read its orders by
//! then. `cargo xtask test --full` takes more rounds and holds the figure that smartvm promises.

#[path = "linux_boot/guest.rs"]
#[expect(dead_code, reason = "the other tests use more of it")]
mod guest;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use smartvm_core::initramfs::Archive;
use smartvm_lab::guest::Assets;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn our_initramfs_is_reached_as_soon_as_a_bare_one() {
    let full = std::env::var_os("SMARTVM_TEST_FULL").is_some();
    let (rounds, most) = if full { (21, 1.15) } else { (3, 1.5) };
    let assets = Assets::from_env().expect("a Linux guest");
    let mut boot = guest::Boot::image("");
    boot.later = vec![
        "failover",
        "net_failover",
        "virtio_net",
        "vsock",
        "vmw_vsock_virtio_transport_common",
        "vmw_vsock_virtio_transport",
        "virtio_balloon",
        "virtio_rng",
    ];
    let ours = boot.initramfs(&assets);
    let bare = bare_busybox(&assets);
    let (mut ours_took, mut bare_took) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare_took.push(time_to_init(&assets, &bare, "bare: reached"));
        ours_took.push(time_to_init(&assets, &ours, "smartvm-guest: failed step=orders"));
    }
    let (bare_median, ours_median) = (median(bare_took), median(ours_took));
    let ratio = ours_median.as_secs_f64() / bare_median.as_secs_f64();
    // Not by println!, which is only shown of tests that fail.
    let _ = writeln!(
        std::io::stderr(),
        "InstanceStart to init, medians of {rounds}: ours ({} KiB) {ours_median:.2?}, bare busybox ({} KiB) \
         {bare_median:.2?}, ratio {ratio:.3}",
        ours.len() >> 10,
        bare.len() >> 10,
    );
    assert!(ratio <= most, "ours takes {ratio:.3} times as long, {most} is allowed");
}

fn bare_busybox(assets: &Assets) -> Vec<u8> {
    let mut archive = Archive::new(Vec::new());
    for dir in ["/dev", "/bin"] {
        archive.directory(dir).expect("a directory");
    }
    archive.character_device("/dev/console", 5, 1).expect("a node");
    let busybox = fs::read(&assets.busybox).expect("busybox");
    archive.file("/bin/busybox", 0o755, &busybox).expect("a file");
    let init = "#!/bin/busybox sh\necho bare: reached\nexec /bin/busybox reboot -f\n";
    archive.file("/init", 0o755, init.as_bytes()).expect("a file");
    archive.finish().expect("an archive")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Boots by Firecracker's API, and waits for the guest's end as well.
fn time_to_init(assets: &Assets, initramfs: &[u8], sign: &str) -> Duration {
    let dir = tempfile::tempdir().expect("a directory");
    let (initrd, api) = (dir.path().join("initrd"), dir.path().join("api.sock"));
    fs::write(&initrd, initramfs).expect("an initramfs");
    let child = Command::new(smartvm_lab::firecracker())
        .arg("--api-sock")
        .arg(&api)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("Firecracker starts");
    let mut vmm = Vmm(child);
    let mut console = BufReader::new(vmm.0.stdout.take().expect("its output"));
    let mut seen = String::new();
    await_line(&mut console, "API server started", &mut seen);
    put(&api, "machine-config", &serde_json::json!({ "vcpu_count": 1, "mem_size_mib": 128 }));
    let source = serde_json::json!({
        "kernel_image_path": assets.vmlinux,
        "initrd_path": initrd,
        "boot_args": assets.boot_args,
    });
    put(&api, "boot-source", &source);
    let begun = Instant::now();
    put(&api, "actions", &serde_json::json!({ "action_type": "InstanceStart" }));
    await_line(&mut console, sign, &mut seen);
    let took = begun.elapsed();
    assert!(took < PATIENCE, "{took:?}");
    let mut rest = String::new();
    console.read_to_string(&mut rest).expect("its output");
    assert_eq!(vmm.0.wait().expect("a status").code(), Some(0), "{seen}{rest}");
    took
}

fn await_line(console: &mut impl BufRead, text: &str, seen: &mut String) {
    loop {
        let mut line = String::new();
        let count = console.read_line(&mut line).expect("a line");
        assert!(count > 0, "no {text:?} in:\n{seen}");
        seen.push_str(&line);
        if line.contains(text) {
            return;
        }
    }
}

fn put(api: &Path, what: &str, body: &serde_json::Value) {
    let body = body.to_string();
    let mut api = UnixStream::connect(api).expect("the API socket");
    api.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    write!(api, "PUT /{what} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .expect("a request");
    let mut answer = [0; 12];
    api.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 204", "{what}");
}

struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
