use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use smartvm_core::bare_metal::Guest;
use smartvm_core::spec::*;
use smartvm_core::target::{Arch, FirecrackerVersion};
use tempfile::TempDir;

use super::*;

const TARGET: Target = Target { arch: Arch::X86_64, version: FirecrackerVersion(1, 12, 1), pci: false };

/// A folder with all that a good spec needs, and a host's own files beside it, so that what the real
/// host has does not matter.
struct Fixture {
    dir: TempDir,
    host: Host,
    spec: MachineSpec,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("vmlinux"), Guest::ByteThenReset.elf()).unwrap();
        for (file, size) in
            [("initrd", 700), ("root.ext4", 4096), ("pmem", 4096), ("log", 0), ("metrics", 0), ("kvm", 0)]
        {
            fs::write(at(file), vec![0; size]).unwrap();
        }
        fs::create_dir_all(at("net/tap0")).unwrap();
        fs::write(at("net/tap0/tun_flags"), "0x5002\n").unwrap();
        fs::create_dir(at("huge")).unwrap();
        fs::write(at("meminfo"), "MemTotal:  9999999 kB\nMemAvailable:    1048576 kB\n").unwrap();
        let host = Host { kvm: at("kvm"), net: at("net"), huge_pages: at("huge"), meminfo: at("meminfo") };
        let spec = MachineSpec {
            boot_source: BootSource {
                kernel_image_path: "vmlinux".into(),
                initrd_path: Some("initrd".into()),
                boot_args: None,
            },
            drives: vec![Drive { path_on_host: Some("root.ext4".into()), ..Drive::default() }],
            pmem: vec![Pmem { path_on_host: "pmem".into(), ..Pmem::default() }],
            network_interfaces: vec![NetworkInterface {
                host_dev_name: "tap0".into(),
                ..NetworkInterface::default()
            }],
            vsock: Some(Vsock { guest_cid: 3, uds_path: "v.sock".into() }),
            logger: Some(Logger { log_path: Some("log".into()) }),
            metrics: Some(Metrics { metrics_path: "metrics".into() }),
            serial: Some(Serial { serial_out_path: Some("console".into()), rate_limiter: None }),
            ..MachineSpec::default()
        };
        Self { dir, host, spec }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn problems(&self) -> Vec<Problem> {
        check_on(&self.host, &self.spec, self.dir.path(), &TARGET)
    }

    /// What is found, as `severity CODE path`.
    fn found(&self) -> Vec<String> {
        self.problems().iter().map(|p| format!("{} {} {}", p.severity, p.code, p.path)).collect()
    }
}

fn check(spoil: impl FnOnce(&mut Fixture), expected: &str) {
    let mut fixture = Fixture::new();
    spoil(&mut fixture);
    assert_eq!(fixture.found(), [expected]);
}

#[test]
fn a_good_spec_has_no_problems_and_nothing_is_touched() {
    let fixture = Fixture::new();
    let list = || {
        let mut files: Vec<_> = fs::read_dir(fixture.dir.path())
            .unwrap()
            .map(|entry| {
                let metadata = entry.as_ref().unwrap().metadata().unwrap();
                (entry.unwrap().file_name(), metadata.len(), metadata.modified().unwrap())
            })
            .collect();
        files.sort();
        files
    };
    let before = list();
    assert_eq!(fixture.problems(), []);
    assert_eq!(list(), before);
}

#[test]
fn the_kernel_is_looked_into() {
    let field = "boot-source.kernel_image_path";
    check(|f| fs::remove_file(f.path("vmlinux")).unwrap(), &format!("error FILE_NOT_FOUND {field}"));
    check(|f| f.spec.boot_source.kernel_image_path = "net".into(), &format!("error NOT_A_FILE {field}"));
    let mut fixture = Fixture::new();
    for (content, expected) in [
        (&b"console=ttyS0\n"[..], "it is a text file, which Firecracker 1.12.1 does not boot on x86_64"),
        (b"", "it is an empty file, which Firecracker 1.12.1 does not boot on x86_64"),
        (b"\x1f\x8b\x08", "it is compressed with gzip, which Firecracker 1.12.1 does not boot on x86_64"),
    ] {
        fs::write(fixture.path("vmlinux"), content).unwrap();
        let problems = fixture.problems();
        assert_eq!((problems.len(), problems[0].code), (1, ProblemCode::KernelNotBootable));
        assert_eq!(problems[0].what, expected);
    }
    fixture.spec.boot_source.kernel_image_path = "/sys/bus/cpu/drivers_probe".into();
    assert_eq!(
        fixture.found(),
        [format!("error FILE_NOT_READABLE {field}")],
        "a file that may only be written"
    );
}

#[test]
fn the_initrd_has_content_and_room() {
    let field = "boot-source.initrd_path";
    check(|f| fs::remove_file(f.path("initrd")).unwrap(), &format!("error FILE_NOT_FOUND {field}"));
    check(|f| fs::write(f.path("initrd"), "").unwrap(), &format!("error FILE_EMPTY {field}"));
    let large = |f: &mut Fixture| {
        f.spec.machine_config.mem_size_mib = 2;
        fs::File::create(f.path("initrd")).unwrap().set_len((2 << 20) + 1).unwrap();
    };
    check(large, &format!("error INITRD_TOO_LARGE {field}"));
}

#[test]
fn a_disk_is_a_file_of_sectors_that_may_be_read_and_written() {
    let field = "drives[0].path_on_host";
    let disk = |path: &'static str| move |f: &mut Fixture| f.spec.drives[0].path_on_host = Some(path.into());
    check(disk("missing"), &format!("error FILE_NOT_FOUND {field}"));
    check(disk("net"), &format!("error NOT_A_FILE {field}"));
    check(disk("/dev/null"), &format!("warning NOT_A_FILE {field}"));
    check(
        |f| fs::write(f.path("root.ext4"), [0; 513]).unwrap(),
        &format!("warning SIZE_NOT_SECTORS {field}"),
    );
    check(|f| fs::write(f.path("root.ext4"), "").unwrap(), &format!("warning FILE_EMPTY {field}"));
    check(|f| fs::remove_file(f.path("pmem")).unwrap(), "error FILE_NOT_FOUND pmem[0].path_on_host");

    // A file that not even root may write; its size is that of a page.
    let mut fixture = Fixture::new();
    fixture.spec.drives[0].path_on_host = Some("/sys/devices/system/cpu/online".into());
    assert_eq!(fixture.found(), [format!("error FILE_NOT_WRITABLE {field}")]);
    fixture.spec.drives[0].is_read_only = Some(true);
    assert_eq!(fixture.found(), [""; 0]);
}

#[test]
fn a_missing_file_is_told_with_where_it_was_looked_for() {
    let mut fixture = Fixture::new();
    fixture.spec.drives[0].path_on_host = Some("disks/root.ext4".into());
    let problem = fixture.problems().remove(0);
    assert_eq!(problem.what, format!("there is no such file: {}", fixture.path("disks/root.ext4").display()));
    assert!(problem.hint.contains(fixture.dir.path().to_str().unwrap()), "{}", problem.hint);
    symlink("nowhere", fixture.path("link")).unwrap();
    fixture.spec.drives[0].path_on_host = Some("link".into());
    assert!(
        fixture.problems()[0].what.starts_with("the file that the symbolic link leads to does not exist")
    );
}

#[test]
fn a_vhost_user_backend_is_a_socket() {
    let drive = |socket: &str| Drive { socket: Some(socket.into()), ..Drive::default() };
    check(|f| f.spec.drives[0] = drive("missing"), "error FILE_NOT_FOUND drives[0].socket");
    check(|f| f.spec.drives[0] = drive("root.ext4"), "error NOT_A_SOCKET drives[0].socket");
    let mut fixture = Fixture::new();
    let _backend = UnixListener::bind(fixture.path("b.sock")).unwrap();
    fixture.spec.drives[0] = drive("b.sock");
    assert_eq!(fixture.found(), [""; 0]);
}

#[test]
fn the_place_of_the_vsock_socket_is_free() {
    let field = "vsock.uds_path";
    let place = |f: &mut Fixture, path: &str| f.spec.vsock.as_mut().unwrap().uds_path = path.into();
    check(|f| place(f, "no/v.sock"), &format!("error DIRECTORY_NOT_FOUND {field}"));
    check(|f| place(f, "log"), &format!("error UDS_PATH_EXISTS {field}"));

    let fixture = Fixture::new();
    let listener = UnixListener::bind(fixture.path("v.sock")).unwrap();
    assert_eq!(fixture.found(), [format!("error UDS_PATH_EXISTS {field}")]);
    drop(listener);
    assert_eq!(fixture.found(), [format!("warning UDS_PATH_EXISTS {field}")], "left over");
}

#[test]
fn log_and_metrics_must_exist_until_firecracker_makes_them() {
    check(|f| fs::remove_file(f.path("log")).unwrap(), "error FILE_NOT_FOUND logger.log_path");
    check(|f| fs::remove_file(f.path("metrics")).unwrap(), "error FILE_NOT_FOUND metrics.metrics_path");
    check(
        |f| f.spec.logger = Some(Logger { log_path: Some("net".into()) }),
        "error NOT_A_FILE logger.log_path",
    );
    check(
        |f| f.spec.serial = Some(Serial { serial_out_path: Some("no/console".into()), rate_limiter: None }),
        "error DIRECTORY_NOT_FOUND serial.serial_out_path",
    );
    let fixture = Fixture::new();
    fs::remove_file(fixture.path("log")).unwrap();
    let newer = Target { version: FirecrackerVersion(1, 14, 0), ..TARGET };
    assert_eq!(check_on(&fixture.host, &fixture.spec, fixture.dir.path(), &newer), []);
}

#[test]
fn a_tap_device_is_one() {
    let field = "network-interfaces[0].host_dev_name";
    let name = |f: &mut Fixture, name: &str| f.spec.network_interfaces[0].host_dev_name = name.into();
    check(|f| name(f, "tap1"), &format!("warning TAP_NOT_FOUND {field}"));
    check(
        |f| {
            fs::create_dir(f.path("net/eth0")).unwrap();
            name(f, "eth0");
        },
        &format!("error NOT_A_TAP {field}"),
    );
    check(
        |f| fs::write(f.path("net/tap0/tun_flags"), "0x1001").unwrap(),
        &format!("error NOT_A_TAP {field}"),
    );
}

#[test]
fn the_real_loopback_is_no_tap() {
    let mut fixture = Fixture::new();
    fixture.host.net = Host::default().net;
    fixture.spec.network_interfaces[0].host_dev_name = "lo".into();
    assert_eq!(fixture.found(), ["error NOT_A_TAP network-interfaces[0].host_dev_name"]);
}

#[test]
fn huge_pages_are_counted() {
    let field = "machine-config.huge_pages";
    let with = |free: u64, reserved: u64, overcommit: u64| {
        let mut fixture = Fixture::new();
        fixture.spec.machine_config.huge_pages = HugePages::Hugetlbfs2M;
        fixture.spec.machine_config.mem_size_mib = 128;
        let files = [
            ("nr_hugepages", free),
            ("free_hugepages", free),
            ("resv_hugepages", reserved),
            ("nr_overcommit_hugepages", overcommit),
            ("surplus_hugepages", 0),
        ];
        for (file, number) in files {
            fs::write(fixture.path("huge").join(file), format!("{number}\n")).unwrap();
        }
        fixture
    };
    assert_eq!(with(64, 0, 0).found(), [""; 0]);
    assert_eq!(with(60, 0, 4).found(), [""; 0]);
    assert_eq!(with(64, 1, 0).found(), [format!("warning HUGE_PAGES_UNAVAILABLE {field}")]);
    assert_eq!(with(0, 0, 0).found(), [format!("error HUGE_PAGES_UNAVAILABLE {field}")]);
    let problem = with(10, 0, 0).problems().remove(0);
    assert_eq!(problem.what, "the guest needs 64 huge pages of 2 MiB and the host has 10 free");
    assert!(problem.hint.contains("vm.nr_hugepages=64,"), "{}", problem.hint);
}

#[test]
fn memory_beyond_what_is_available_is_a_warning() {
    let field = "machine-config.mem_size_mib";
    check(|f| f.spec.machine_config.mem_size_mib = 1025, &format!("warning MEMORY_SHORT {field}"));
    let mut fixture = Fixture::new();
    fixture.spec.machine_config.mem_size_mib = 1024;
    assert_eq!(fixture.found(), [""; 0]);
}

#[test]
fn kvm_is_opened() {
    let mut fixture = Fixture::new();
    fixture.host.kvm = fixture.path("none");
    let problems = fixture.problems();
    assert_eq!((problems.len(), problems[0].code), (1, ProblemCode::KvmUnavailable));
    assert_eq!(problems[0].path, fixture.path("none").to_str().unwrap());
    assert!(problems[0].hint.contains("kvm_intel"), "{}", problems[0].hint);
}

#[test]
fn all_problems_are_found_at_once() {
    let mut fixture = Fixture::new();
    for file in ["vmlinux", "root.ext4", "log"] {
        fs::remove_file(fixture.path(file)).unwrap();
    }
    fixture.spec.network_interfaces[0].host_dev_name = "tap1".into();
    let codes: Vec<_> = fixture.problems().iter().map(|problem| problem.code).collect();
    use ProblemCode::*;
    assert_eq!(codes, [FileNotFound, FileNotFound, TapNotFound, FileNotFound]);
}

/// What the full types of the config file hold is what the checks look at.
#[test]
fn a_config_file_becomes_a_spec() {
    let text = r#"{
        "boot-source": {"kernel_image_path": "vmlinux", "initrd_path": null, "boot_args": "quiet"},
        "machine-config": {"vcpu_count": 33, "mem_size_mib": 63, "huge_pages": "2M", "cpu_template": "T2"},
        "drives": [{"drive_id": "r", "is_root_device": true, "path_on_host": "r.ext4", "io_engine": "Async",
                    "rate_limiter": {"ops": {"size": 1, "refill_time": 0}}}],
        "network-interfaces": [{"iface_id": "e", "host_dev_name": "tap0", "guest_mac": "06:00:00:00:00:01"}],
        "vsock": {"guest_cid": 2, "uds_path": "v"},
        "balloon": {"amount_mib": 64, "deflate_on_oom": true},
        "mmds-config": {"network_interfaces": ["f"], "version": "V2"},
        "logger": {"log_path": "log", "level": "Debug"}, "metrics": {"metrics_path": "metrics"}, "entropy": {}
    }"#;
    let config = smartvm_firecracker::config_file::VmConfig::parse(text).unwrap();
    let spec: MachineSpec = serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
    assert_eq!(spec, serde_json::from_str(text).unwrap());
    let found: Vec<_> = smartvm_core::validate::validate_for(&spec, &TARGET).iter().map(|p| p.code).collect();
    use ProblemCode::*;
    let expected = [
        VcpuCountOutOfRange,
        MemSizeNotHugePages,
        HugePagesWithBalloon,
        RateLimiterWithoutEffect,
        MmdsUnknownInterface,
        GuestCidOutOfRange,
        BalloonTooLarge,
    ];
    assert_eq!(found, expected);
}
