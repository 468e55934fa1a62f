//! Every type survives JSON, and has exactly the fields of Firecracker's interface.

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;

fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    value: &T,
) -> Result<(), TestCaseError> {
    let json = serde_json::to_string(value).unwrap();
    prop_assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value, "{}", &json);
    prop_assert_eq!(&answer::<T>(json.as_bytes()).unwrap(), value, "as an answer: {}", &json);
    Ok(())
}

macro_rules! survive_json {
    ($($name:ident: $Type:ty;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(32))]
            $(#[test]
            fn $name(value: $Type) {
                survives(&value)?;
            })*
        }
    };
}

survive_json! {
    balloon_survives: Balloon;
    balloon_hinting_status_survives: BalloonHintingStatus;
    balloon_start_cmd_survives: BalloonStartCmd;
    balloon_stats_survives: BalloonStats;
    balloon_stats_update_survives: BalloonStatsUpdate;
    balloon_update_survives: BalloonUpdate;
    boot_source_survives: BootSource;
    cpu_config_survives: CpuConfig;
    drive_survives: Drive;
    entropy_survives: EntropyDevice;
    full_vm_configuration_survives: FullVmConfiguration;
    instance_action_survives: InstanceActionInfo;
    logger_survives: Logger;
    machine_configuration_survives: MachineConfiguration;
    machine_configuration_update_survives: MachineConfigurationUpdate;
    memory_hotplug_survives: MemoryHotplugConfig;
    memory_hotplug_size_survives: MemoryHotplugSizeUpdate;
    memory_hotplug_status_survives: MemoryHotplugStatus;
    metrics_survives: Metrics;
    mmds_config_survives: MmdsConfig;
    network_interface_survives: NetworkInterface;
    partial_drive_survives: PartialDrive;
    partial_network_interface_survives: PartialNetworkInterface;
    partial_pmem_survives: PartialPmem;
    pmem_survives: Pmem;
    rate_limiter_survives: RateLimiter;
    serial_survives: SerialDevice;
    snapshot_create_survives: SnapshotCreateParams;
    snapshot_load_survives: SnapshotLoadParams;
    vm_survives: Vm;
    vsock_survives: Vsock;
}

/// The fields that a type writes when every one is set, found by drawing values until no new one comes.
fn fields<T: Serialize + Arbitrary>() -> Vec<String> {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..24 {
        let value = any::<T>().new_tree(&mut runner).unwrap().current();
        if let Value::Object(map) = serde_json::to_value(&value).unwrap() {
            seen.extend(map.into_iter().map(|(key, _)| key).filter(|key| !key.starts_with("x_")));
        }
    }
    seen.into_iter().collect()
}

/// Newer fields than 1.12.1's can only be checked against the published interface (1.17-dev), copied here.
#[test]
fn every_type_has_the_fields_of_the_published_interface() {
    macro_rules! check {
        ($($Type:ty: $fields:literal;)*) => {$(
            let mut expected: Vec<_> = $fields.split_whitespace().map(str::to_owned).collect();
            expected.sort();
            assert_eq!(fields::<$Type>(), expected, stringify!($Type));
        )*};
    }
    check! {
        ArmRegisterModifier: "addr bitmap";
        Balloon: "amount_mib deflate_on_oom stats_polling_interval_s free_page_hinting free_page_reporting";
        BalloonHintingStatus: "host_cmd guest_cmd";
        BalloonStartCmd: "acknowledge_on_stop";
        BalloonStats: "target_pages actual_pages target_mib actual_mib swap_in swap_out major_faults minor_faults
            free_memory total_memory available_memory disk_caches hugetlb_allocations hugetlb_failures oom_kill
            alloc_stall async_scan direct_scan async_reclaim direct_reclaim";
        BalloonStatsUpdate: "stats_polling_interval_s";
        BalloonUpdate: "amount_mib";
        BootSource: "boot_args initrd_path kernel_image_path";
        CpuConfig: "kvm_capabilities cpuid_modifiers msr_modifiers reg_modifiers vcpu_features";
        CpuidLeafModifier: "leaf subleaf flags modifiers";
        CpuidRegisterModifier: "register bitmap";
        Drive: "drive_id partuuid is_root_device cache_type is_read_only path_on_host rate_limiter io_engine socket";
        EntropyDevice: "rate_limiter";
        FullVmConfiguration: "balloon drives boot-source cpu-config logger machine-config metrics memory-hotplug
            mmds-config network-interfaces pmem vsock entropy";
        InstanceActionInfo: "action_type";
        Logger: "level log_path show_level show_log_origin module";
        MachineConfiguration: "cpu_template smt mem_size_mib track_dirty_pages vcpu_count huge_pages";
        MachineConfigurationUpdate: "cpu_template smt mem_size_mib track_dirty_pages vcpu_count huge_pages";
        MemoryBackend: "backend_type backend_path";
        MemoryHotplugConfig: "total_size_mib slot_size_mib block_size_mib";
        MemoryHotplugSizeUpdate: "requested_size_mib";
        MemoryHotplugStatus: "total_size_mib slot_size_mib block_size_mib plugged_size_mib requested_size_mib";
        Metrics: "metrics_path emit_id properties";
        MmdsConfig: "version network_interfaces ipv4_address imds_compat";
        MsrModifier: "addr bitmap";
        NetworkInterface: "guest_mac host_dev_name iface_id mtu rx_rate_limiter tx_rate_limiter";
        NetworkOverride: "iface_id host_dev_name";
        PartialDrive: "drive_id path_on_host rate_limiter";
        PartialNetworkInterface: "iface_id rx_rate_limiter tx_rate_limiter";
        PartialPmem: "id rate_limiter";
        Pmem: "id path_on_host root_device read_only rate_limiter";
        RateLimiter: "bandwidth ops";
        SerialDevice: "serial_out_path rate_limiter";
        SnapshotCreateParams: "mem_file_path snapshot_path snapshot_type";
        SnapshotLoadParams: "enable_diff_snapshots track_dirty_pages mem_file_path mem_backend snapshot_path resume_vm
            network_overrides vsock_override clock_realtime huge_pages";
        TokenBucket: "one_time_burst refill_time size";
        VcpuFeatures: "index bitmap";
        Vm: "state";
        Vsock: "guest_cid uds_path vsock_id";
        VsockOverride: "uds_path";
    }
}

/// The values of every enum, as published (1.17-dev).
#[test]
fn every_enum_has_the_values_of_the_published_interface() {
    fn values<T: Serialize + Arbitrary>() -> Vec<String> {
        use proptest::strategy::ValueTree;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let drawn = (0..300).map(|_| any::<T>().new_tree(&mut runner).unwrap().current());
        let seen: std::collections::BTreeSet<_> =
            drawn.map(|v| serde_json::to_value(v).unwrap().as_str().unwrap().to_owned()).collect();
        seen.into_iter().collect()
    }
    assert_eq!(values::<ActionType>(), ["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]);
    assert_eq!(values::<BackendType>(), ["File", "Uffd"]);
    assert_eq!(values::<CacheType>(), ["Unsafe", "Writeback"]);
    assert_eq!(values::<CpuTemplate>(), ["C3", "None", "T2", "T2A", "T2CL", "T2S", "V1N1"]);
    assert_eq!(values::<CpuidRegister>(), ["eax", "ebx", "ecx", "edx"]);
    assert_eq!(values::<HugePages>(), ["2M", "None", "Transparent"]);
    assert_eq!(values::<IoEngine>(), ["Async", "Sync"]);
    assert_eq!(values::<LoadHugePages>(), ["2M", "None", "Snapshot", "Transparent"]);
    assert_eq!(values::<LogLevel>(), ["Debug", "Error", "Info", "Off", "Trace", "Warning"]);
    assert_eq!(values::<MmdsVersion>(), ["V1", "V2"]);
    assert_eq!(values::<SnapshotType>(), ["Diff", "Full"]);
    assert_eq!(values::<VmState>(), ["Paused", "Resumed"]);
}

#[test]
fn unset_fields_are_left_out() {
    let drive = Drive { drive_id: "a".to_owned(), ..Drive::default() };
    assert_eq!(serde_json::to_string(&drive).unwrap(), r#"{"drive_id":"a","is_root_device":false}"#);
    let bucket = TokenBucket { size: 1, refill_time: 2, ..TokenBucket::default() };
    assert_eq!(serde_json::to_string(&bucket).unwrap(), r#"{"size":1,"refill_time":2}"#);
}

#[test]
fn unknown_fields_are_kept_where_firecracker_takes_them() {
    let json = r#"{"size":1,"refill_time":2,"note":{"deep":[1,null]}}"#;
    let bucket: TokenBucket = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_string(&bucket).unwrap(), json);
    assert!(serde_json::from_str::<TokenBucket>(r#"{"size":1,"size":1,"refill_time":2}"#).is_err());
    let missing = serde_json::from_str::<TokenBucket>(r#"{"size":1}"#).unwrap_err();
    assert!(missing.to_string().starts_with("missing field `refill_time`"), "{missing}");
}

#[test]
fn mmds_contents_are_not_printed() {
    let contents = MmdsContents(serde_json::json!({"password": "hunter2"}));
    assert_eq!(format!("{contents:?} {contents:#?}"), "MmdsContents(withheld) MmdsContents(withheld)");
    assert_eq!(serde_json::to_string(&contents).unwrap(), r#"{"password":"hunter2"}"#);
}
