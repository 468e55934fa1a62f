//! Starting and stopping again and again costs nothing that stays. Measured in a process of its own, since other
//! tests run at the same time in this one.

use std::fs;
use std::process::Command;

use crate::fixture::{Scene, kill_now};
use smartvm_core::bare_metal::Guest;
use smartvm_host::Vmm;

#[derive(Debug, Clone, Copy)]
struct Held {
    fds: usize,
    threads: usize,
    rss_kib: usize,
}

/// Once nothing changes any more: the watcher thread closes a VMM's last descriptor a moment after its end is known.
fn settled() -> Held {
    let mut before = held();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let now = held();
        if (now.fds, now.threads) == (before.fds, before.threads) {
            return now;
        }
        before = now;
    }
}

fn held() -> Held {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let number = |name: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    Held {
        fds: fs::read_dir("/proc/self/fd").unwrap().count(),
        threads: number("Threads:"),
        rss_kib: number("VmRSS:"),
    }
}

const ALONE: &str = "SMARTVM_TEST_FLAT_ALONE";

/// 60 cycles; 1,000 with `SMARTVM_TEST_FULL=1`.
#[test]
fn descriptors_threads_and_memory_stay_flat() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "flat::cycles", "--nocapture"])
        .env(ALONE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

/// Not a test of its own: what the test above runs alone. As a plain test it does nothing.
#[test]
fn cycles() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let cycles = if std::env::var_os("SMARTVM_TEST_FULL").is_some() { 1000 } else { 60 };
    let scene = Scene::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cycle = || {
        runtime.block_on(async {
            let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
            vmm.console().reader().next().await.unwrap();
            vmm.stop(&kill_now()).await.unwrap();
        });
    };
    // The first ones start the threads and fill the allocator's pools.
    for _ in 0..20 {
        cycle();
    }
    let before = settled();
    for _ in 0..cycles {
        cycle();
    }
    let after = settled();
    println!("{cycles} cycles: {before:?} -> {after:?}");
    assert_eq!(after.fds, before.fds);
    assert_eq!(after.threads, before.threads);
    assert!(after.rss_kib <= before.rss_kib + 512, "{before:?} -> {after:?}");
}
