//! Any valid spec has no problems, and each single corruption of any valid spec has exactly its own.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::spec::*;
use crate::target::{Arch, FirecrackerVersion};

const TARGET: Target = Target { arch: Arch::X86_64, version: FirecrackerVersion(1, 12, 1), pci: false };

/// What [`validate_for`] finds, as `CODE path`.
fn found(spec: &MachineSpec) -> Vec<String> {
    found_for(spec, &TARGET)
}

fn found_for(spec: &MachineSpec, target: &Target) -> Vec<String> {
    validate_for(spec, target).iter().map(|problem| format!("{} {}", problem.code, problem.path)).collect()
}

fn minimal() -> MachineSpec {
    serde_json::from_str(r#"{"boot-source": {"kernel_image_path": "vmlinux", "initrd_path": "initrd"}}"#)
        .unwrap()
}

prop_compose! {
    fn bucket()(size in 1u64.., one_time_burst: Option<u64>, refill_time in 1u64..=1_000_000) -> TokenBucket {
        TokenBucket { size, one_time_burst, refill_time }
    }
}

prop_compose! {
    fn limiter()(bandwidth in prop::option::of(bucket()), ops in prop::option::of(bucket())) -> RateLimiter {
        RateLimiter { bandwidth, ops }
    }
}

prop_compose! {
    fn drive(index: usize)(
        name in "[a-zA-Z0-9_]{0,8}",
        cache_type in prop::option::of(prop_oneof![Just(CacheType::Unsafe), Just(CacheType::Writeback)]),
        is_read_only: Option<bool>,
        io_engine in prop::option::of(prop_oneof![Just(IoEngine::Sync), Just(IoEngine::Async)]),
        rate_limiter in prop::option::of(limiter()),
        partuuid in prop::option::of("[0-9a-f]{8}-[0-9a-f]{2}"),
    ) -> Drive {
        Drive {
            drive_id: format!("{name}{index}"),
            is_root_device: index == 0,
            partuuid: partuuid.filter(|_| index == 0),
            cache_type,
            is_read_only,
            path_on_host: Some(format!("disks/{index}.ext4").into()),
            socket: None,
            io_engine,
            rate_limiter,
        }
    }
}

prop_compose! {
    fn interface(index: usize)(
        mac: [u8; 5],
        with_mac: bool,
        mtu in prop::option::of(68u64..=65_535),
        rx_rate_limiter in prop::option::of(limiter()),
        tx_rate_limiter in prop::option::of(limiter()),
    ) -> NetworkInterface {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        NetworkInterface {
            iface_id: format!("eth{index}"),
            host_dev_name: format!("tap-{index}"),
            guest_mac: with_mac.then(|| format!("{:02x}:{mac}", 4 * index + 2)),
            mtu,
            rx_rate_limiter,
            tx_rate_limiter,
        }
    }
}

prop_compose! {
    fn machine_config()(
        half in 1u64..=16,
        smt: bool,
        mem_half in 1u64..=32_768,
        track_dirty_pages: bool,
        cpu_template in prop::option::of(prop_oneof![Just("T2".to_owned()), Just("None".to_owned())]),
    ) -> MachineConfig {
        MachineConfig {
            vcpu_count: 2 * half,
            mem_size_mib: 2 * mem_half,
            smt,
            track_dirty_pages,
            cpu_template,
            huge_pages: HugePages::None,
        }
    }
}

prop_compose! {
    /// A spec with every section filled in, of random but sound values. It has 2 drives and 2 interfaces at least, so that
    /// each corruption below has its place.
    fn valid()(
        machine_config in machine_config(),
        boot_args in prop::option::of("[ -~]{0,200}"),
        initrd in prop::option::of(Just("initrd".into())),
        drives in (2usize..6).prop_flat_map(|count| (0..count).map(drive).collect::<Vec<_>>()),
        network_interfaces in (2usize..5).prop_flat_map(|count| (0..count).map(interface).collect::<Vec<_>>()),
        guest_cid in 3..u64::from(u32::MAX),
        balloon_part in 0u64..=100,
        interval in 0u64..=65_535,
        (block, slots, total) in (1u32..6, 64u64..256, 1u64..100),
        entropy in prop::option::of(limiter()),
    ) -> MachineSpec {
        let block = 1u64 << block;
        MachineSpec {
            boot_source: BootSource { kernel_image_path: "vmlinux".into(), initrd_path: initrd, boot_args },
            balloon: Some(Balloon {
                amount_mib: machine_config.mem_size_mib * balloon_part / 100,
                deflate_on_oom: true,
                stats_polling_interval_s: interval,
            }),
            machine_config,
            cpu_config: Some("template.json".into()),
            drives,
            pmem: vec![Pmem { id: "pm0".into(), path_on_host: "pm0.img".into(), ..Pmem::default() },
                       Pmem { id: "pm1".into(), path_on_host: "pm1.img".into(), ..Pmem::default() }],
            network_interfaces,
            vsock: Some(Vsock { guest_cid, uds_path: "vsock.sock".into() }),
            memory_hotplug: Some(MemoryHotplug {
                total_size_mib: block * slots * 2 * total,
                slot_size_mib: Some(block * slots * 2),
                block_size_mib: Some(block),
            }),
            entropy: Some(Entropy { rate_limiter: entropy }),
            serial: Some(Serial { serial_out_path: Some("console".into()), rate_limiter: None }),
            mmds_config: Some(MmdsConfig {
                network_interfaces: vec!["eth1".into()],
                ipv4_address: Some("169.254.1.2".into()),
            }),
            logger: Some(Logger { log_path: Some("log".into()) }),
            metrics: Some(Metrics { metrics_path: "metrics".into() }),
        }
    }
}

/// One corruption: what it does to a valid spec, and the one problem it makes.
type Corruption = (fn(&mut MachineSpec), &'static str);

const DEAD_BUCKET: TokenBucket = TokenBucket { size: 0, one_time_burst: None, refill_time: 1 };

const CORRUPTIONS: &[Corruption] = &[
    (|s| s.boot_source.kernel_image_path = "".into(), "EMPTY_PATH boot-source.kernel_image_path"),
    (|s| s.boot_source.initrd_path = Some("".into()), "EMPTY_PATH boot-source.initrd_path"),
    (|s| s.boot_source.boot_args = Some("quiet\0".into()), "BOOT_ARGS_NUL boot-source.boot_args"),
    (|s| s.boot_source.boot_args = Some("a".repeat(2048)), "BOOT_ARGS_TOO_LONG boot-source.boot_args"),
    (|s| s.machine_config.vcpu_count = 0, "VCPU_COUNT_OUT_OF_RANGE machine-config.vcpu_count"),
    (|s| s.machine_config.vcpu_count = 33, "VCPU_COUNT_OUT_OF_RANGE machine-config.vcpu_count"),
    (|s| s.machine_config.vcpu_count = u64::MAX, "VCPU_COUNT_OUT_OF_RANGE machine-config.vcpu_count"),
    (
        |s| (s.machine_config.vcpu_count, s.machine_config.smt) = (31, true),
        "VCPU_COUNT_ODD_WITH_SMT machine-config.vcpu_count",
    ),
    (
        |s| {
            s.machine_config.mem_size_mib = 1;
            s.balloon = None;
        },
        "MEM_SIZE_OUT_OF_RANGE machine-config.mem_size_mib",
    ),
    (
        |s| {
            s.machine_config.mem_size_mib = 0;
            s.balloon = None;
        },
        "MEM_SIZE_OUT_OF_RANGE machine-config.mem_size_mib",
    ),
    (|s| s.machine_config.mem_size_mib = 1 << 33, "MEM_SIZE_OUT_OF_RANGE machine-config.mem_size_mib"),
    (
        |s| {
            s.machine_config.huge_pages = HugePages::Hugetlbfs2M;
            s.machine_config.track_dirty_pages = false;
        },
        "HUGE_PAGES_WITH_BALLOON machine-config.huge_pages",
    ),
    (
        |s| {
            s.machine_config.huge_pages = HugePages::Hugetlbfs2M;
            s.machine_config.track_dirty_pages = true;
            s.balloon = None;
        },
        "HUGE_PAGES_WITH_DIRTY_TRACKING machine-config.huge_pages",
    ),
    (
        |s| {
            s.machine_config.huge_pages = HugePages::Hugetlbfs2M;
            s.machine_config.track_dirty_pages = false;
            s.machine_config.mem_size_mib += 1;
            s.balloon = None;
        },
        "MEM_SIZE_NOT_HUGE_PAGES machine-config.mem_size_mib",
    ),
    (
        |s| s.machine_config.cpu_template = Some("V1N1".into()),
        "UNKNOWN_CPU_TEMPLATE machine-config.cpu_template",
    ),
    (|s| s.cpu_config = Some("".into()), "EMPTY_PATH cpu-config"),
    (|s| s.drives[1].drive_id = s.drives[0].drive_id.clone(), "DUPLICATE_DRIVE_ID drives[1].drive_id"),
    (|s| s.drives[1].drive_id = "root-fs".into(), "ID_NOT_IN_API drives[1].drive_id"),
    (|s| s.drives[1].drive_id = "".into(), "ID_NOT_IN_API drives[1].drive_id"),
    (|s| s.drives[1].is_root_device = true, "TWO_ROOT_DEVICES drives[1].is_root_device"),
    (|s| s.pmem[1].root_device = true, "TWO_ROOT_DEVICES pmem[1].root_device"),
    (
        |s| {
            s.drives[0].is_root_device = false;
            s.drives[0].partuuid = None;
            s.boot_source.initrd_path = None;
            s.boot_source.boot_args = None;
        },
        "NO_ROOT_DEVICE drives",
    ),
    (|s| s.drives[1].partuuid = Some("0eaa91a0-01".into()), "PARTUUID_WITHOUT_ROOT drives[1].partuuid"),
    (|s| s.drives[1].path_on_host = None, "DRIVE_WITHOUT_BACKING drives[1].path_on_host"),
    (|s| s.drives[1].path_on_host = Some("".into()), "EMPTY_PATH drives[1].path_on_host"),
    (|s| s.drives[1].socket = Some("vhost.sock".into()), "DRIVE_WITH_TWO_BACKINGS drives[1].socket"),
    (
        |s| {
            let drive_id = s.drives[1].drive_id.clone();
            s.drives[1] =
                Drive { drive_id, socket: Some("b".into()), is_read_only: Some(false), ..Drive::default() };
        },
        "SOCKET_DRIVE_OPTION drives[1].is_read_only",
    ),
    (
        |s| {
            let drive_id = s.drives[1].drive_id.clone();
            s.drives[1] = Drive {
                drive_id,
                socket: Some("b".into()),
                io_engine: Some(IoEngine::Sync),
                ..Drive::default()
            };
        },
        "SOCKET_DRIVE_OPTION drives[1].io_engine",
    ),
    (
        |s| {
            s.drives[0].is_read_only = Some(true);
            s.drives[1].is_read_only = Some(false);
            s.drives[1].path_on_host = s.drives[0].path_on_host.clone();
        },
        "SHARED_WRITABLE_FILE drives[1].path_on_host",
    ),
    (
        |s| s.drives[1].rate_limiter = Some(RateLimiter { bandwidth: Some(DEAD_BUCKET), ops: None }),
        "RATE_LIMITER_WITHOUT_EFFECT drives[1].rate_limiter.bandwidth.size",
    ),
    (
        |s| {
            let bucket = TokenBucket { size: 5, one_time_burst: None, refill_time: 0 };
            s.network_interfaces[0].tx_rate_limiter =
                Some(RateLimiter { bandwidth: None, ops: Some(bucket) });
        },
        "RATE_LIMITER_WITHOUT_EFFECT network-interfaces[0].tx_rate_limiter.ops.refill_time",
    ),
    (
        |s| {
            let bucket = TokenBucket { size: 5, one_time_burst: None, refill_time: 18_446_744_073_710 };
            s.entropy =
                Some(Entropy { rate_limiter: Some(RateLimiter { bandwidth: Some(bucket), ops: None }) });
        },
        "RATE_LIMITER_WITHOUT_EFFECT entropy.rate_limiter.bandwidth.refill_time",
    ),
    (
        |s| s.serial = Some(Serial { serial_out_path: None, rate_limiter: Some(DEAD_BUCKET) }),
        "RATE_LIMITER_WITHOUT_EFFECT serial.rate_limiter.size",
    ),
    (|s| s.pmem[1].id = "pm0".into(), "DUPLICATE_PMEM_ID pmem[1].id"),
    (|s| s.pmem[1].path_on_host = "".into(), "EMPTY_PATH pmem[1].path_on_host"),
    (
        |s| {
            s.network_interfaces[0].iface_id = "eth1".into();
            s.network_interfaces[0].guest_mac = s.network_interfaces[1].guest_mac.clone();
        },
        "DUPLICATE_IFACE_ID network-interfaces[1].iface_id",
    ),
    (
        |s| s.network_interfaces[0].guest_mac = Some("06:00:00:00:01".into()),
        "BAD_MAC network-interfaces[0].guest_mac",
    ),
    (
        |s| s.network_interfaces[0].guest_mac = Some("6:0:0:0:0:1".into()),
        "BAD_MAC network-interfaces[0].guest_mac",
    ),
    (
        |s| s.network_interfaces[0].guest_mac = Some("06:00:00:00:00:0g".into()),
        "BAD_MAC network-interfaces[0].guest_mac",
    ),
    (
        |s| s.network_interfaces[0].guest_mac = Some("06:00:00:00:00:01:02".into()),
        "BAD_MAC network-interfaces[0].guest_mac",
    ),
    (
        |s| s.network_interfaces[0].guest_mac = Some("ff:ff:ff:ff:ff:ff".into()),
        "MAC_NOT_UNICAST network-interfaces[0].guest_mac",
    ),
    (
        |s| s.network_interfaces[0].guest_mac = Some("00:00:00:00:00:00".into()),
        "MAC_NOT_UNICAST network-interfaces[0].guest_mac",
    ),
    (
        |s| {
            s.network_interfaces[0].guest_mac = Some("0A:00:00:00:00:0B".into());
            s.network_interfaces[1].guest_mac = Some("0a:00:00:00:00:0b".into());
        },
        "DUPLICATE_MAC network-interfaces[1].guest_mac",
    ),
    (
        |s| s.network_interfaces[1].host_dev_name = "tap-0".into(),
        "DUPLICATE_HOST_DEV_NAME network-interfaces[1].host_dev_name",
    ),
    (
        |s| s.network_interfaces[1].host_dev_name = "sixteen-bytes-01".into(),
        "BAD_HOST_DEV_NAME network-interfaces[1].host_dev_name",
    ),
    (
        |s| s.network_interfaces[1].host_dev_name = "a/b".into(),
        "BAD_HOST_DEV_NAME network-interfaces[1].host_dev_name",
    ),
    (
        |s| s.network_interfaces[1].host_dev_name = "à".into(),
        "BAD_HOST_DEV_NAME network-interfaces[1].host_dev_name",
    ),
    (
        |s| s.network_interfaces[1].host_dev_name = "tap%d".into(),
        "HOST_DEV_NAME_NOT_FIXED network-interfaces[1].host_dev_name",
    ),
    (|s| s.network_interfaces[1].mtu = Some(67), "MTU_OUT_OF_RANGE network-interfaces[1].mtu"),
    (|s| s.vsock.as_mut().unwrap().guest_cid = 2, "GUEST_CID_OUT_OF_RANGE vsock.guest_cid"),
    (|s| s.vsock.as_mut().unwrap().guest_cid = u32::MAX.into(), "GUEST_CID_OUT_OF_RANGE vsock.guest_cid"),
    (|s| s.vsock.as_mut().unwrap().uds_path = "".into(), "EMPTY_PATH vsock.uds_path"),
    (|s| s.vsock.as_mut().unwrap().uds_path = "s".repeat(108).into(), "UDS_PATH_TOO_LONG vsock.uds_path"),
    (
        |s| s.balloon.as_mut().unwrap().amount_mib = s.machine_config.mem_size_mib + 1,
        "BALLOON_TOO_LARGE balloon.amount_mib",
    ),
    (
        |s| s.balloon.as_mut().unwrap().stats_polling_interval_s = 65_536,
        "BALLOON_INTERVAL_OUT_OF_RANGE balloon.stats_polling_interval_s",
    ),
    (
        |s| s.memory_hotplug.as_mut().unwrap().block_size_mib = Some(3),
        "BAD_MEMORY_HOTPLUG_SIZE memory-hotplug.block_size_mib",
    ),
    (
        |s| s.memory_hotplug.as_mut().unwrap().slot_size_mib = Some(127),
        "BAD_MEMORY_HOTPLUG_SIZE memory-hotplug.slot_size_mib",
    ),
    (
        |s| s.memory_hotplug.as_mut().unwrap().total_size_mib += 1,
        "BAD_MEMORY_HOTPLUG_SIZE memory-hotplug.total_size_mib",
    ),
    (
        |s| s.mmds_config.as_mut().unwrap().network_interfaces.clear(),
        "MMDS_WITHOUT_INTERFACE mmds-config.network_interfaces",
    ),
    (
        |s| s.mmds_config.as_mut().unwrap().network_interfaces.push("eth9".into()),
        "MMDS_UNKNOWN_INTERFACE mmds-config.network_interfaces[1]",
    ),
    (
        |s| s.mmds_config.as_mut().unwrap().ipv4_address = Some("169.254.0.1".into()),
        "BAD_MMDS_ADDRESS mmds-config.ipv4_address",
    ),
    (
        |s| s.mmds_config.as_mut().unwrap().ipv4_address = Some("x".into()),
        "BAD_MMDS_ADDRESS mmds-config.ipv4_address",
    ),
    (|s| s.logger.as_mut().unwrap().log_path = Some("".into()), "EMPTY_PATH logger.log_path"),
    (|s| s.metrics.as_mut().unwrap().metrics_path = "".into(), "EMPTY_PATH metrics.metrics_path"),
    (
        |s| {
            let extra = |index| Drive {
                drive_id: format!("extra{index}"),
                path_on_host: Some(format!("extra{index}").into()),
                ..Drive::default()
            };
            s.drives.extend((0..20).map(extra));
        },
        "TOO_MANY_DEVICES drives",
    ),
];

proptest! {
    #[test]
    fn a_valid_spec_has_no_problems(spec in valid()) {
        prop_assert_eq!(validate_for(&spec, &TARGET), []);
    }

    #[test]
    fn a_single_corruption_has_exactly_its_problem(spec in valid()) {
        for (corrupt, expected) in CORRUPTIONS {
            let mut spec = spec.clone();
            corrupt(&mut spec);
            prop_assert_eq!(found(&spec), [*expected]);
        }
    }

    #[test]
    fn all_corruptions_that_do_not_meet_are_found_at_once(spec in valid(), chosen: [prop::sample::Index; 4]) {
        let mut spec = spec;
        let mut expected = HashSet::new();
        let mut sections = HashSet::new();
        for index in chosen {
            let (corrupt, problem) = CORRUPTIONS[index.index(CORRUPTIONS.len())];
            // One per section: the second of one section may undo the first, or be about the same field.
            let path = problem.split(' ').nth(1).unwrap();
            let section = path.split(['.', '[']).next().unwrap();
            let alone = ["boot-source", "vsock", "logger", "metrics", "cpu-config", "serial", "entropy"];
            if alone.contains(&section) && sections.insert(section) {
                corrupt(&mut spec);
                expected.insert(problem.to_owned());
            }
        }
        prop_assert_eq!(HashSet::from_iter(found(&spec)), expected);
    }

    #[test]
    fn whatever_the_numbers_are_nothing_panics(
        numbers: [u64; 8],
        text in "\\PC{0,20}",
        version: (u32, u32, u32),
        (pci, arm) in any::<(bool, bool)>(),
    ) {
        let mut spec = minimal();
        spec.machine_config.vcpu_count = numbers[0];
        spec.machine_config.mem_size_mib = numbers[1];
        spec.machine_config.smt = numbers[2] % 2 == 0;
        spec.vsock = Some(Vsock { guest_cid: numbers[2], uds_path: text.clone().into() });
        spec.balloon = Some(Balloon { amount_mib: numbers[3], deflate_on_oom: false, stats_polling_interval_s: numbers[4] });
        spec.memory_hotplug = Some(MemoryHotplug {
            total_size_mib: numbers[5],
            slot_size_mib: Some(numbers[6]).filter(|size| size % 2 == 0),
            block_size_mib: Some(numbers[7] % 2),
        });
        spec.network_interfaces = vec![NetworkInterface {
            iface_id: text.clone(),
            host_dev_name: text.clone(),
            guest_mac: Some(text),
            ..NetworkInterface::default()
        }];
        let arch = if arm { Arch::Aarch64 } else { Arch::X86_64 };
        validate_for(&spec, &Target { arch, version: FirecrackerVersion(version.0, version.1, version.2), pci });
    }
}

#[test]
fn every_problem_of_the_spec_has_a_corruption() {
    let tried: HashSet<&str> =
        CORRUPTIONS.iter().filter_map(|(_, problem)| problem.split(' ').next()).collect();
    // The codes behind this one are of the host, this one needs another target: see below.
    let elsewhere = ["SMT_UNSUPPORTED"];
    let of_the_spec = ProblemCode::ALL.iter().take_while(|code| **code != ProblemCode::FileNotFound);
    let missing: Vec<_> = of_the_spec
        .map(|code| code.as_str())
        .filter(|code| !tried.contains(code) && !elsewhere.contains(code))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn smt_is_refused_on_arm_and_templates_differ() {
    let arm = Target { arch: Arch::Aarch64, ..TARGET };
    let mut spec = minimal();
    spec.machine_config.smt = true;
    spec.machine_config.cpu_template = Some("V1N1".into());
    assert_eq!(found_for(&spec, &arm), ["SMT_UNSUPPORTED machine-config.smt"]);
    assert_eq!(found(&spec), ["UNKNOWN_CPU_TEMPLATE machine-config.cpu_template"]);
}

#[test]
fn a_kernel_alone_only_warns_about_the_root() {
    let mut spec = minimal();
    spec.boot_source.initrd_path = None;
    let problems = validate(&spec);
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].code, problems[0].is_error()), (ProblemCode::NoRootDevice, false));
    spec.boot_source.boot_args = Some("console=ttyS0 root=/dev/nfs".into());
    assert_eq!(validate(&spec), []);
}

#[test]
fn the_command_line_counts_what_firecracker_adds() {
    let mut spec = minimal();
    spec.drives = vec![Drive {
        drive_id: "rootfs".into(),
        is_root_device: true,
        path_on_host: Some("r".into()),
        ..Drive::default()
    }];
    let fits = 2047 - " root=/dev/vda rw".len() - " virtio_mmio.device=4K@0xd0000000:5".len();
    spec.boot_source.boot_args = Some("a".repeat(fits));
    assert_eq!(found(&spec), [""; 0]);
    spec.boot_source.boot_args = Some("a".repeat(fits + 1));
    let problems = validate_for(&spec, &TARGET);
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].what,
        "the kernel's command line would have 2048 bytes, with 52 that Firecracker adds"
    );
}

#[test]
fn the_number_of_devices_depends_on_the_version() {
    let limits = [((1, 7, 0), 19), ((1, 12, 1), 18), ((1, 14, 4), 18), ((1, 15, 0), 17), ((1, 16, 1), 17)];
    for ((major, minor, patch), limit) in limits {
        let target = Target { version: FirecrackerVersion(major, minor, patch), ..TARGET };
        let mut spec = minimal();
        let drive = |index| Drive {
            drive_id: format!("d{index}"),
            path_on_host: Some(format!("d{index}").into()),
            ..Drive::default()
        };
        spec.drives = (0..limit - 1).map(drive).collect();
        spec.entropy = Some(Entropy::default());
        assert_eq!(found_for(&spec, &target), [""; 0], "{target:?}");
        spec.balloon = Some(Balloon::default());
        assert_eq!(found_for(&spec, &target), ["TOO_MANY_DEVICES drives"], "{target:?}");
        assert_eq!(found_for(&spec, &Target { pci: true, ..target }), [""; 0]);
    }
}

#[test]
fn a_balloon_with_huge_pages_is_only_doubtful_in_newer_versions() {
    let mut spec = minimal();
    spec.machine_config.huge_pages = HugePages::Hugetlbfs2M;
    spec.balloon = Some(Balloon::default());
    let severe = |version| validate_for(&spec, &Target { version, ..TARGET })[0].is_error();
    assert!(severe(FirecrackerVersion(1, 13, 2)));
    assert!(!severe(FirecrackerVersion(1, 14, 0)));
}
