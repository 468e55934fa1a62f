//! The rules of `validate` against the real Firecracker: each spec below is told to both. Firecracker is to
//! refuse what `validate` calls an error, and to run what it does not, but for the exceptions that the
//! module's documentation lists.
//!
//! Network interfaces are only tried where Firecracker looks at the spec before it touches the host's
//! devices.

#![expect(clippy::unwrap_used, reason = "a failed step of the harness is a failed test")]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the core is pure; this compares it with the peer"
)]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use smartvm_core::bare_metal::Guest;
use smartvm_core::kernel_image::{boots_on, identify};
use smartvm_core::spec::MachineSpec;
use smartvm_core::target::{Arch, FirecrackerVersion, Target};
use smartvm_core::validate::validate_for;
use tempfile::TempDir;

const TARGET: Target = Target { arch: Arch::X86_64, version: FirecrackerVersion(1, 12, 1), pci: false };

/// A folder with a kernel that resets at once, two disks and an initrd.
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("kernel"), Guest::ByteThenReset.elf()).unwrap();
    for file in ["disk1", "disk2", "initrd"] {
        fs::write(dir.path().join(file), [0; 4096]).unwrap();
    }
    dir
}

fn drive(id: &str) -> Value {
    json!({"drive_id": id, "path_on_host": "disk1", "is_root_device": false})
}

/// A config that works, with these sections replaced or, where both are objects, extended.
fn config(changes: Value) -> Value {
    let mut config = json!({
        "boot-source": {"kernel_image_path": "kernel", "boot_args": "quiet"},
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 64},
    });
    let changes = changes.as_object().unwrap().clone();
    for (section, change) in changes {
        match (config.get_mut(&section), change) {
            (Some(Value::Object(present)), Value::Object(change)) => present.extend(change),
            (_, change) => config[section] = change,
        }
    }
    config
}

/// Whether Firecracker runs it to its good end, and what it said.
fn runs(dir: &Path, config: &Value) -> (bool, String) {
    let file = format!("{}.json", std::process::id());
    fs::write(dir.join(&file), config.to_string()).unwrap();
    let mut child = Command::new(smartvm_lab::firecracker())
        .args(["--no-api", "--config-file", &file])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (send, receive) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        send.send(text).unwrap();
    });
    let said = receive.recv_timeout(Duration::from_secs(60));
    if said.is_err() {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    reader.join().unwrap();
    // Firecracker leaves its vsock's socket behind, and refuses one that is there.
    let _ = fs::remove_file(dir.join("v.sock"));
    (status.success(), said.expect("Firecracker ends in time, as the guest resets at once"))
}

/// The problems that are errors, as `CODE path`.
fn errors(config: &Value) -> Vec<String> {
    let spec: MachineSpec = serde_json::from_value(config.clone()).unwrap();
    let problems = validate_for(&spec, &TARGET);
    problems.iter().filter(|p| p.is_error()).map(|p| format!("{} {}", p.code, p.path)).collect()
}

#[test]
fn what_is_accepted_here_runs() {
    let root = json!({"drive_id": "r", "path_on_host": "disk1", "is_root_device": true});
    let ids = ["a_b", "a-b", "", "a b", "é", "a/b", &"a".repeat(300)].map(drive);
    let mut cases = vec![
        json!({}),
        json!({"machine-config": {"vcpu_count": 32}}),
        json!({"machine-config": {"vcpu_count": 31}}),
        json!({"machine-config": {"vcpu_count": 2, "smt": true}}),
        json!({"machine-config": {"mem_size_mib": 2}}),
        json!({"machine-config": {"mem_size_mib": 3, "track_dirty_pages": true}}),
        json!({"machine-config": {"cpu_template": "None"}}),
        json!({"boot-source": {"boot_args": "a\nb\tc \"d e -- f"}}),
        json!({"boot-source": {"boot_args": "a".repeat(2047)}}),
        json!({"boot-source": {"boot_args": "a".repeat(2012)}, "drives": [drive("d")]}),
        json!({"boot-source": {"boot_args": "a".repeat(1995)}, "drives": [root.clone()]}),
        // 5 devices with interrupts of one digit and 3 of two.
        json!({"boot-source": {"boot_args": "a".repeat(2047 - 5 * 35 - 3 * 36)},
               "drives": (0..8).map(|i| drive(&format!("d{i}"))).collect::<Vec<_>>()}),
        json!({"boot-source": {"initrd_path": "initrd"}}),
        json!({"boot-source": {"initrd_path": "initrd"}, "drives": [root.clone()]}),
        json!({"drives": [drive("a"), drive("b")]}),
        json!({"drives": [{"drive_id": "a", "path_on_host": "disk1", "is_root_device": false,
                           "is_read_only": true, "cache_type": "Writeback", "partuuid": "x"}]}),
        json!({"drives": (0..15).map(|i| drive(&format!("d{i}"))).collect::<Vec<_>>(),
               "balloon": {"amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 65535},
               "vsock": {"guest_cid": 3, "uds_path": "v.sock"}, "entropy": {}}),
        json!({"vsock": {"guest_cid": 4294967294u32, "uds_path": "v.sock"}}),
        json!({"drives": ids}),
    ];
    for bucket in [
        json!({"size": 0, "refill_time": 0}),
        json!({"size": 0, "refill_time": 5}),
        json!({"size": 5, "refill_time": 0}),
        json!({"size": u64::MAX, "one_time_burst": u64::MAX, "refill_time": u64::MAX}),
    ] {
        cases.push(json!({"entropy": {"rate_limiter": {"ops": bucket, "bandwidth": bucket}}}));
    }
    let dir = folder();
    for case in cases {
        let config = config(case);
        assert_eq!(errors(&config), [""; 0], "{config}");
        let (ran, said) = runs(dir.path(), &config);
        assert!(ran, "{config}\n{said}");
    }
}

#[test]
fn what_is_an_error_here_is_refused() {
    let root = |id: &str| json!({"drive_id": id, "path_on_host": "disk1", "is_root_device": true});
    let nic = |mac: &str| json!({"iface_id": "e", "host_dev_name": "sv-no-such-tap", "guest_mac": mac});
    let cases = [
        ("EMPTY_PATH boot-source.kernel_image_path", json!({"boot-source": {"kernel_image_path": ""}})),
        ("EMPTY_PATH boot-source.initrd_path", json!({"boot-source": {"initrd_path": ""}})),
        ("BOOT_ARGS_NUL boot-source.boot_args", json!({"boot-source": {"boot_args": "a\0b"}})),
        ("BOOT_ARGS_TOO_LONG boot-source.boot_args", json!({"boot-source": {"boot_args": "a".repeat(2048)}})),
        (
            "BOOT_ARGS_TOO_LONG boot-source.boot_args",
            json!({"boot-source": {"boot_args": "a".repeat(1996)}, "drives": [root("r")]}),
        ),
        (
            "BOOT_ARGS_TOO_LONG boot-source.boot_args",
            json!({"boot-source": {"boot_args": "a".repeat(2047 - 5 * 35 - 3 * 36 + 1)},
                   "drives": (0..8).map(|i| drive(&format!("d{i}"))).collect::<Vec<_>>()}),
        ),
        ("VCPU_COUNT_OUT_OF_RANGE machine-config.vcpu_count", json!({"machine-config": {"vcpu_count": 0}})),
        ("VCPU_COUNT_OUT_OF_RANGE machine-config.vcpu_count", json!({"machine-config": {"vcpu_count": 33}})),
        ("VCPU_COUNT_OUT_OF_RANGE machine-config.vcpu_count", json!({"machine-config": {"vcpu_count": 256}})),
        (
            "VCPU_COUNT_ODD_WITH_SMT machine-config.vcpu_count",
            json!({"machine-config": {"vcpu_count": 3, "smt": true}}),
        ),
        ("MEM_SIZE_OUT_OF_RANGE machine-config.mem_size_mib", json!({"machine-config": {"mem_size_mib": 0}})),
        ("MEM_SIZE_OUT_OF_RANGE machine-config.mem_size_mib", json!({"machine-config": {"mem_size_mib": 1}})),
        (
            "MEM_SIZE_OUT_OF_RANGE machine-config.mem_size_mib",
            json!({"machine-config": {"mem_size_mib": 1u64 << 33}}),
        ),
        (
            "MEM_SIZE_NOT_HUGE_PAGES machine-config.mem_size_mib",
            json!({"machine-config": {"mem_size_mib": 63, "huge_pages": "2M"}}),
        ),
        (
            "HUGE_PAGES_WITH_BALLOON machine-config.huge_pages",
            json!({"machine-config": {"huge_pages": "2M"}, "balloon": {"amount_mib": 0, "deflate_on_oom": true}}),
        ),
        (
            "UNKNOWN_CPU_TEMPLATE machine-config.cpu_template",
            json!({"machine-config": {"cpu_template": "V1N1"}}),
        ),
        ("TWO_ROOT_DEVICES drives[1].is_root_device", json!({"drives": [root("a"), root("b")]})),
        (
            "DRIVE_WITHOUT_BACKING drives[0].path_on_host",
            json!({"drives": [{"drive_id": "a", "is_root_device": false}]}),
        ),
        (
            "DRIVE_WITH_TWO_BACKINGS drives[0].socket",
            json!({"drives": [{"drive_id": "a", "is_root_device": false, "path_on_host": "disk1", "socket": "s"}]}),
        ),
        (
            "EMPTY_PATH drives[0].path_on_host",
            json!({"drives": [{"drive_id": "a", "is_root_device": false, "path_on_host": ""}]}),
        ),
        ("BAD_MAC network-interfaces[0].guest_mac", json!({"network-interfaces": [nic("06:00:00:00:01")]})),
        ("BAD_MAC network-interfaces[0].guest_mac", json!({"network-interfaces": [nic("6:0:0:0:0:1")]})),
        (
            "BAD_HOST_DEV_NAME network-interfaces[0].host_dev_name",
            json!({"network-interfaces": [{"iface_id": "e", "host_dev_name": "sixteen-bytes-01"}]}),
        ),
        (
            "BAD_HOST_DEV_NAME network-interfaces[0].host_dev_name",
            json!({"network-interfaces": [{"iface_id": "e", "host_dev_name": "sv/slash"}]}),
        ),
        (
            "GUEST_CID_OUT_OF_RANGE vsock.guest_cid",
            json!({"vsock": {"guest_cid": 1u64 << 32, "uds_path": "v.sock"}}),
        ),
        ("UDS_PATH_TOO_LONG vsock.uds_path", json!({"vsock": {"guest_cid": 3, "uds_path": "s".repeat(108)}})),
        (
            "BALLOON_TOO_LARGE balloon.amount_mib",
            json!({"balloon": {"amount_mib": 65, "deflate_on_oom": true}}),
        ),
        (
            "BALLOON_INTERVAL_OUT_OF_RANGE balloon.stats_polling_interval_s",
            json!({"balloon": {"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 65536}}),
        ),
        (
            "MMDS_UNKNOWN_INTERFACE mmds-config.network_interfaces[0]",
            json!({"mmds-config": {"network_interfaces": ["e9"]}}),
        ),
        (
            "MMDS_WITHOUT_INTERFACE mmds-config.network_interfaces",
            json!({"mmds-config": {"network_interfaces": []}}),
        ),
        (
            "TOO_MANY_DEVICES drives",
            json!({"drives": (0..19).map(|i| drive(&format!("d{i}"))).collect::<Vec<_>>()}),
        ),
    ];
    let dir = folder();
    for (expected, case) in cases {
        let config = config(case);
        assert_eq!(errors(&config), [expected], "{config}");
        let (ran, said) = runs(dir.path(), &config);
        assert!(!ran, "{config}\n{said}");
    }
}

/// The documented exceptions: if Firecracker begins to refuse one, its rule is none any more.
#[test]
fn what_is_stricter_here_is_still_accepted_by_firecracker() {
    let cases = [
        ("DUPLICATE_DRIVE_ID drives[1].drive_id", json!({"drives": [drive("a"), drive("a")]})),
        ("GUEST_CID_OUT_OF_RANGE vsock.guest_cid", json!({"vsock": {"guest_cid": 2, "uds_path": "v.sock"}})),
        (
            "GUEST_CID_OUT_OF_RANGE vsock.guest_cid",
            json!({"vsock": {"guest_cid": u32::MAX, "uds_path": "v.sock"}}),
        ),
        ("EMPTY_PATH vsock.uds_path", json!({"vsock": {"guest_cid": 3, "uds_path": ""}})),
    ];
    let dir = folder();
    for (expected, case) in cases {
        let config = config(case);
        assert_eq!(errors(&config), [expected], "{config}");
        let (ran, said) = runs(dir.path(), &config);
        assert!(ran, "{config}\n{said}");
    }
}

#[test]
fn a_kernel_boots_where_its_first_bytes_say_so() {
    let elf = Guest::ByteThenReset.elf();
    let changed = |offset: usize, byte: u8| {
        let mut elf = elf.clone();
        elf[offset] = byte;
        elf
    };
    let mut bzimage = vec![0; 4096];
    bzimage[0x1fe..0x208].copy_from_slice(b"\x55\xaa\0\0HdrS\x0f\x02");
    let kernels = [
        elf.clone(),
        elf[..40].to_vec(),
        changed(5, 2),     // big-endian
        changed(26, 0x00), // an entry point below 1 MiB
        bzimage,
        b"console=ttyS0\n".to_vec(),
        b"\x1f\x8b\x08\0\0\0\0\0".repeat(100),
        Vec::new(),
    ];
    let dir = folder();
    for kernel in kernels {
        let image = identify(&kernel);
        fs::write(dir.path().join("kernel"), &kernel).unwrap();
        let (ran, said) = runs(dir.path(), &config(json!({})));
        assert_eq!(ran, boots_on(image, TARGET.arch, TARGET.version).is_ok(), "{image}\n{said}");
    }
}
