//! A process that starts and stops machines for long does not grow. A test program of its own: it counts the whole
//! process.

use std::fs;

use smartvm::{Config, Directories, FirecrackerBinary, Host, Machine, StartOptions, check_config};
use smartvm_core::bare_metal::Guest;

/// Open descriptors, threads, and resident memory in KiB.
fn counts() -> (usize, usize, u64) {
    let fds = fs::read_dir("/proc/self/fd").expect("/proc").count();
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a field");
        line.split_whitespace().nth(1).expect("a value").parse::<u64>().expect("a number")
    };
    (fds, number("Threads:") as usize, number("VmRSS:"))
}

#[tokio::test]
async fn starting_and_stopping_leaves_descriptors_threads_and_memory_flat() {
    // 1,000 in full size.
    let cycles = if std::env::var_os("SMARTVM_TEST_FULL").is_some() { 1000 } else { 60 };
    let dir = tempfile::tempdir().expect("a directory");
    let directories = Directories { runtime: dir.path().join("run"), data: dir.path().join("data") };
    let host = Host::open(&directories).expect("a host");
    let firecracker = FirecrackerBinary::at(&smartvm_lab::firecracker()).await.expect("Firecracker");
    fs::write(dir.path().join("guest"), Guest::ByteThenIdle.elf()).expect("a guest");
    let text = r#"{"boot-source": {"kernel_image_path": "guest"}, "drives": []}"#;
    let config =
        check_config(&Config::from_json(text, dir.path()), &firecracker.version, false).expect("fine");
    let mut warm = None;
    for cycle in 0..cycles {
        let machine =
            Machine::start(&host, &firecracker, &config, StartOptions::default()).await.expect("a start");
        machine.kill().await.expect("a stop");
        drop(machine);
        if cycle == 20 {
            warm = Some(counts());
        }
    }
    let (fds, threads, rss) = warm.expect("more than 20 cycles");
    let (fds_now, threads_now, rss_now) = counts();
    assert!(fds_now <= fds, "{fds_now} descriptors, {fds} before");
    assert!(threads_now <= threads, "{threads_now} threads, {threads} before");
    assert!(rss_now <= rss + 1024, "{rss_now} KiB, {rss} before");
    assert_eq!(fs::read_dir(host.runtime_dir().join("machines")).expect("there").count(), 0);
}
