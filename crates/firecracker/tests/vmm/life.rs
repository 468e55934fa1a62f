//! Every request that 1.12.1 knows, through the typed methods, over the life of a bare-metal guest.

use serde_json::json;
use smartvm_core::bare_metal::Guest;
use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_firecracker::api::*;
use smartvm_firecracker::log::LogLine;
use smartvm_firecracker::metrics::MetricsLine;
use smartvm_firecracker::{ApiError, Client, Version};

use crate::support::{Firecracker, eventually, patience, tap, version};

fn bucket(size: u64) -> Option<TokenBucket> {
    Some(TokenBucket { size, one_time_burst: Some(1), refill_time: 100, ..TokenBucket::default() })
}

fn drive() -> Drive {
    Drive {
        drive_id: "disk1".to_owned(),
        path_on_host: Some("disk".to_owned()),
        is_read_only: Some(true),
        cache_type: Some(CacheType::Writeback),
        io_engine: Some(IoEngine::Sync),
        rate_limiter: Some(RateLimiter { bandwidth: bucket(1000), ops: bucket(10) }),
        ..Drive::default()
    }
}

/// A Firecracker with an idle guest of 4 MiB, not yet started.
async fn prepared() -> (Firecracker, Client) {
    let vmm = Firecracker::start(&["--id", "life-1"]);
    vmm.file("kernel", &Guest::ByteThenIdle.elf());
    vmm.file("disk", &[0; 4096]);
    let client = vmm.client();
    let boot = BootSource {
        kernel_image_path: "kernel".to_owned(),
        boot_args: Some("x".to_owned()),
        ..BootSource::default()
    };
    client.put_boot_source(&boot).await.unwrap();
    let machine = MachineConfiguration { vcpu_count: 1, mem_size_mib: 4, ..MachineConfiguration::default() };
    client.put_machine_config(&machine).await.unwrap();
    (vmm, client)
}

#[tokio::test]
async fn everything_is_configured_and_read_back() {
    let (vmm, client) = prepared().await;
    vmm.file("log", b"");
    vmm.file("metrics", b"");
    let logger = Logger {
        log_path: Some("log".to_owned()),
        level: Some(LogLevel::Debug),
        show_level: Some(true),
        show_log_origin: Some(true),
        module: None,
    };
    client.put_logger(&logger).await.unwrap();
    client.put_metrics(&Metrics { metrics_path: "metrics".to_owned(), ..Metrics::default() }).await.unwrap();
    let update = MachineConfigurationUpdate { track_dirty_pages: Some(true), ..Default::default() };
    client.patch_machine_config(&update).await.unwrap();
    let template = CpuConfig { kvm_capabilities: Some(vec!["!56".to_owned()]), ..CpuConfig::default() };
    client.put_cpu_config(&template).await.unwrap();
    client.put_drive(&drive()).await.unwrap();
    let interface = NetworkInterface {
        iface_id: "eth0".to_owned(),
        host_dev_name: tap("life"),
        guest_mac: Some("06:00:00:00:00:01".to_owned()),
        rx_rate_limiter: Some(RateLimiter { bandwidth: bucket(5), ops: None }),
        ..NetworkInterface::default()
    };
    client.put_network_interface(&interface).await.unwrap();
    let mmds = MmdsConfig {
        version: Some(MmdsVersion::V2),
        network_interfaces: vec!["eth0".to_owned()],
        ipv4_address: Some("169.254.1.1".to_owned()),
        imds_compat: None,
    };
    client.put_mmds_config(&mmds).await.unwrap();
    let vsock = Vsock { guest_cid: 3, uds_path: "v.sock".to_owned(), vsock_id: None };
    client.put_vsock(&vsock).await.unwrap();
    let balloon = Balloon {
        amount_mib: 1,
        deflate_on_oom: true,
        stats_polling_interval_s: Some(1),
        ..Balloon::default()
    };
    client.put_balloon(&balloon).await.unwrap();
    client.put_entropy(&EntropyDevice::default()).await.unwrap();

    assert_eq!(client.balloon().await.unwrap(), balloon);
    let machine = client.machine_config().await.unwrap();
    assert_eq!((machine.mem_size_mib, machine.track_dirty_pages), (4, Some(true)));
    let config = client.vm_config().await.unwrap();
    assert_eq!(config.drives, [drive()]);
    assert_eq!(config.network_interfaces[0].iface_id, "eth0");
    assert_eq!(config.mmds_config, Some(mmds));
    assert_eq!(config.vsock.unwrap().uds_path, "v.sock");
    assert_eq!(config.boot_source.unwrap().boot_args.as_deref(), Some("x"));

    let log = std::fs::read_to_string(vmm.path("log")).unwrap();
    let lines: Vec<_> = log.lines().filter_map(LogLine::parse).collect();
    assert_eq!(lines.len(), log.lines().count(), "{log}");
    assert!(
        lines
            .iter()
            .all(|line| line.instance_id == "life-1" && line.level.is_some() && line.origin.is_some())
    );

    let error = client.flush_metrics().await.unwrap_err();
    assert!(error.fault_message().unwrap().as_str().contains("not supported before starting"), "{error}");
    assert_eq!((error.code(), error.happened()), (Code::ApiFault, Happened::Failed));
}

#[tokio::test]
async fn a_running_guest_is_changed_paused_saved_and_loaded() {
    let (vmm, client) = prepared().await;
    vmm.file("metrics", b"");
    client.put_metrics(&Metrics { metrics_path: "metrics".to_owned(), ..Metrics::default() }).await.unwrap();
    let update = MachineConfigurationUpdate { track_dirty_pages: Some(true), ..Default::default() };
    client.patch_machine_config(&update).await.unwrap();
    client.put_drive(&drive()).await.unwrap();
    let balloon = Balloon {
        amount_mib: 1,
        deflate_on_oom: true,
        stats_polling_interval_s: Some(1),
        ..Default::default()
    };
    client.put_balloon(&balloon).await.unwrap();
    client.put_vsock(&Vsock { guest_cid: 3, uds_path: "v.sock".to_owned(), vsock_id: None }).await.unwrap();
    let begun = std::time::Instant::now();
    client.instance_start().await.unwrap();
    assert_eq!(client.describe_instance().await.unwrap().state, InstanceState::Running);

    let patch = PartialDrive {
        drive_id: "disk1".to_owned(),
        path_on_host: Some("disk".to_owned()),
        rate_limiter: None,
    };
    client.patch_drive(&patch).await.unwrap();
    let patch = PartialDrive {
        drive_id: "disk1".to_owned(),
        path_on_host: None,
        rate_limiter: Some(RateLimiter { bandwidth: None, ops: bucket(0) }),
    };
    client.patch_drive(&patch).await.unwrap();
    assert_eq!(client.balloon_statistics().await.unwrap().target_mib, 1);
    client.patch_balloon_statistics(&BalloonStatsUpdate { stats_polling_interval_s: 2 }).await.unwrap();
    // This guest has no balloon driver, nor has the machine such an interface: refused for that, not for form.
    let error = client.patch_balloon(&BalloonUpdate { amount_mib: 2 }).await.unwrap_err();
    assert!(error.to_string().contains("not activated"), "{error}");
    let patch = PartialNetworkInterface { iface_id: "e".to_owned(), ..Default::default() };
    let error = client.patch_network_interface(&patch).await.unwrap_err();
    assert!(error.to_string().contains("Failed to find the device"), "{error}");
    client.send_ctrl_alt_del().await.unwrap();
    let line = loop {
        client.flush_metrics().await.unwrap();
        let metrics = std::fs::read_to_string(vmm.path("metrics")).unwrap();
        let lines = metrics.lines().map(|line| MetricsLine::parse(line).unwrap());
        // A line counts since the line before: the guest's byte is in one of them.
        if let Some(line) = lines.into_iter().find(|line| line.totals.vcpu.exit_io_out == 1) {
            break line;
        }
        assert!(begun.elapsed() < patience(), "the guest never wrote its byte: {metrics}");
    };
    assert!(line.get("get_api_requests.instance_info_count").is_some());

    let snapshot = |kind, name: &str| SnapshotCreateParams {
        snapshot_type: kind,
        snapshot_path: format!("{name}.state"),
        mem_file_path: format!("{name}.mem"),
    };
    let error = client.create_snapshot(&snapshot(None, "early")).await.unwrap_err();
    assert_eq!(error.code(), Code::ApiFault, "not while it runs: {error}");
    client.pause().await.unwrap();
    assert_eq!(client.describe_instance().await.unwrap().state, InstanceState::Paused);
    client.create_snapshot(&snapshot(Some(SnapshotType::Full), "full")).await.unwrap();
    client.create_snapshot(&snapshot(Some(SnapshotType::Diff), "diff")).await.unwrap();
    client.resume().await.unwrap();
    assert_eq!(client.describe_instance().await.unwrap().state, InstanceState::Running);

    let other = Firecracker::start(&[]);
    for name in ["full.state", "full.mem", "disk"] {
        std::fs::copy(vmm.path(name), other.path(name)).unwrap();
    }
    let load = SnapshotLoadParams {
        snapshot_path: "full.state".to_owned(),
        mem_backend: Some(MemoryBackend {
            backend_path: "full.mem".to_owned(),
            backend_type: BackendType::File,
        }),
        enable_diff_snapshots: Some(true),
        network_overrides: Some(Vec::new()),
        ..SnapshotLoadParams::default()
    };
    let loaded = other.client();
    loaded.load_snapshot(&load).await.unwrap();
    assert_eq!(loaded.describe_instance().await.unwrap().state, InstanceState::Paused);
    loaded.resume().await.unwrap();
    assert_eq!(loaded.vm_config().await.unwrap().drives[0].drive_id, "disk1");
}

#[tokio::test]
async fn what_this_firecracker_is_too_old_for_is_refused_before_it_is_sent() {
    // Nobody listens here: whoever sends would fail otherwise.
    let client = Client::new("/nonexistent/api.sock".into()).with_version(Version::new(1, 12, 1));
    let load = SnapshotLoadParams { track_dirty_pages: Some(true), ..SnapshotLoadParams::default() };
    let hinting = BalloonStartCmd::default();
    let errors = [
        client.put_serial(&SerialDevice::default()).await.unwrap_err(),
        client.put_pmem(&Pmem::default()).await.unwrap_err(),
        client.patch_pmem(&PartialPmem::default()).await.unwrap_err(),
        client.load_snapshot(&load).await.unwrap_err(),
        client.start_balloon_hinting(&hinting).await.unwrap_err(),
        client.stop_balloon_hinting().await.unwrap_err(),
        client.balloon_hinting_status().await.unwrap_err(),
        client.put_memory_hotplug(&MemoryHotplugConfig::default()).await.unwrap_err(),
        client.patch_memory_hotplug(&MemoryHotplugSizeUpdate::default()).await.unwrap_err(),
        client.memory_hotplug().await.unwrap_err(),
        client.delete_drive("a").await.unwrap_err(),
        client.delete_network_interface("a").await.unwrap_err(),
        client.delete_pmem("a").await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, ApiError::Unsupported { .. }), "{error:?}");
        assert_eq!((error.code(), error.happened()), (Code::UnsupportedVersion, Happened::NeverStarted));
        assert!(error.to_string().ends_with("this is 1.12.1"), "{error}");
    }
}

#[tokio::test]
async fn the_version_is_asked_for_when_it_matters() {
    if version() >= Version::new(1, 14, 0) {
        return;
    }
    let vmm = Firecracker::start(&[]);
    let client = vmm.client();
    client.machine_config().await.unwrap();
    assert_eq!(client.known_version(), None, "nothing needed it so far");
    let error = client.put_serial(&SerialDevice::default()).await.unwrap_err();
    assert!(
        matches!(&error, ApiError::Unsupported { version: found, .. } if *found == version()),
        "{error:?}"
    );
    assert_eq!(client.known_version(), Some(version()));
}

#[tokio::test]
async fn mmds_contents_go_in_and_come_out() {
    let vmm = Firecracker::start(&[]);
    let client = vmm.client();
    assert_eq!(client.mmds().await.unwrap().0, json!({}));
    client.put_mmds(&MmdsContents(json!({"a": {"b": 1}, "c": "d"}))).await.unwrap();
    client.patch_mmds(&MmdsContents(json!({"a": {"e": 2}, "c": null}))).await.unwrap();
    assert_eq!(client.mmds().await.unwrap().0, json!({"a": {"b": 1, "e": 2}}));
}

#[test]
fn every_form_of_its_log_is_read() {
    for flags in [&[][..], &["--show-level"], &["--show-log-origin"], &["--show-level", "--show-log-origin"]]
    {
        let vmm = Firecracker::start(&[&["--id", "log-1", "--level", "Trace"], flags].concat());
        let text = eventually("its first line", || Some(vmm.output()).filter(|text| text.contains('\n')));
        let line = LogLine::parse(text.lines().next().unwrap()).unwrap();
        assert_eq!((line.instance_id, line.thread), ("log-1", "main"));
        assert_eq!(line.level.is_some(), flags.contains(&"--show-level"));
        assert_eq!(line.origin.is_some(), flags.contains(&"--show-log-origin"));
        assert_eq!(line.message, format!("Running Firecracker v{}", version()));
    }
}
