//! Who dies with whom, and what is inherited: with the real Firecracker and owners that are killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fixture::{Scene, eventually, kill_now, lives, patience, run};
use smartvm_core::bare_metal::Guest;
use smartvm_host::process::ProcessId;
use smartvm_host::{Ladder, Lifetime, Vmm};

/// Set in the owner processes that these tests start from their own executable.
const SCENE: &str = "SMARTVM_TEST_OWNER_SCENE";
const DETACHED: &str = "SMARTVM_TEST_OWNER_DETACHED";
const LESS_CAPABLE: &str = "SMARTVM_TEST_OWNER_LESS_CAPABLE";

/// Not a test of its own: the owner that the tests below start and kill. As a plain test it does nothing.
#[test]
fn owner_process() {
    let Some(dir) = std::env::var_os(SCENE) else { return };
    let dir = Path::new(&dir);
    // As some libraries open their files, and before anything else, so that its number is low.
    let secret = fs::File::create(dir.join("secret")).unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    if std::env::var_os(LESS_CAPABLE).is_some() {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
            set.remove(rustix::thread::CapabilitySet::SYS_TIME);
        }
        // Of this thread, and so of all that it makes.
        rustix::thread::set_capabilities(None, sets).unwrap();
    }
    run(async {
        let mut launch = smartvm_host::Launch::new(smartvm_lab::firecracker(), dir.join("api.sock"));
        launch.config_file = Some(dir.join("vm.json"));
        if std::env::var_os(DETACHED).is_some() {
            launch.lifetime = Lifetime::Detached {
                console: Some(dir.join("console.log")),
                diagnostics: Some(dir.join("diagnostics.log")),
            };
        }
        let vmm = Vmm::spawn(launch).await.unwrap();
        println!("\nVMM {}", vmm.pid());
        std::future::pending::<()>().await;
    });
}

/// An owner process with one VMM, and the VMM's pid.
fn owner(scene: &Scene, kind: Option<&str>) -> (Child, ProcessId) {
    scene.config(Guest::ByteThenIdle);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "ownership::owner_process", "--nocapture"]).env(SCENE, scene.path(""));
    if let Some(kind) = kind {
        command.env(kind, "1");
    }
    let mut owner = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let pid = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("VMM ").and_then(|pid| pid.parse().ok()))
        .expect("the owner says its VMM's pid");
    (owner, ProcessId::of(pid).unwrap().unwrap())
}

#[test]
fn killing_the_owner_leaves_no_vmm() {
    let scene = Scene::new();
    for kind in [None, Some(LESS_CAPABLE)] {
        let (mut owner, vmm) = owner(&scene, kind);
        owner.kill().unwrap();
        owner.wait().unwrap();
        eventually("the VMM is gone", smartvm_lab::patience(Duration::from_secs(1)), || {
            !vmm.is_alive().unwrap()
        });
    }
}

#[test]
fn a_detached_vmm_outlives_its_killed_owner() {
    let scene = Scene::new();
    fs::write(scene.path("console.log"), "earlier").unwrap();
    let (mut owner, vmm) = owner(&scene, Some(DETACHED));
    owner.kill().unwrap();
    owner.wait().unwrap();
    let client = smartvm_firecracker::Client::new(scene.path("api.sock"));
    run(async { client.describe_instance().await.unwrap() });
    eventually("its console goes to the end of its file", patience(), || {
        fs::read_to_string(scene.path("console.log")).unwrap() == "earlierS"
    });
    let log = fs::read_to_string(scene.path("diagnostics.log")).unwrap();
    assert!(log.contains("Running Firecracker"), "{log}");
    assert!(vmm.kill().unwrap());
    eventually("the VMM is gone", patience(), || !vmm.is_alive().unwrap());
}

/// Set in the owner that the test below starts with SIGCHLD ignored.
const NO_SIGCHLD: &str = "SMARTVM_TEST_OWNER_IGNORES_SIGCHLD";

/// Not a test of its own, see below. As a plain test it does nothing.
#[test]
fn ignoring_owner() {
    if std::env::var_os(NO_SIGCHLD).is_none() {
        return;
    }
    run(async {
        let firecracker = smartvm_host::FirecrackerBinary::at(&smartvm_lab::firecracker()).await.unwrap();
        assert_eq!(firecracker.version.to_string(), smartvm_lab::FIRECRACKER_VERSION);
        let scene = Scene::new();
        let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
        let ended = vmm.stop(&Ladder::default()).await.unwrap();
        assert_eq!(ended.exit, smartvm_host::process::Exit::Unknown, "nobody can collect it");
        assert!(!lives(vmm.pid()) && !vmm.api_sock().exists());
    });
}

#[test]
fn an_owner_that_ignores_sigchld_only_misses_how_a_vmm_ended() {
    // An ignored signal stays so in the programs that a process becomes.
    let status = Command::new("/usr/bin/env")
        .arg("--ignore-signal=CHLD")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "ownership::ignoring_owner"])
        .env(NO_SIGCHLD, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn dropping_a_detached_vmm_leaves_it_running_and_stopping_it_still_works() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.launch(Guest::ByteThenIdle);
        launch.lifetime = Lifetime::Detached { console: None, diagnostics: None };
        let vmm = Vmm::spawn(launch).await.unwrap();
        let id = vmm.process_id().unwrap().unwrap();
        drop(vmm);
        let client = smartvm_firecracker::Client::new(scene.path("api.sock"));
        client.describe_instance().await.unwrap();
        assert!(id.kill().unwrap());
        eventually("reaped by the watcher all the same", patience(), || {
            fs::metadata(format!("/proc/{}", id.pid)).is_err()
        });

        let mut launch = scene.launch(Guest::ByteThenIdle);
        launch.lifetime = Lifetime::Detached { console: None, diagnostics: None };
        let vmm = Vmm::spawn(launch).await.unwrap();
        vmm.stop(&Ladder::default()).await.unwrap();
        assert!(!lives(vmm.pid()) && !vmm.api_sock().exists());
    });
}

#[test]
fn the_end_of_the_thread_that_started_it_does_not_kill_the_vmm() {
    let scene = Scene::new();
    let launch = scene.launch(Guest::ByteThenIdle);
    let vmm = std::thread::spawn(move || {
        // A runtime of one thread: all of the start runs, and ends, here.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Vmm::spawn(launch)).unwrap()
    })
    .join()
    .unwrap();
    run(async {
        vmm.api().describe_instance().await.unwrap();
        // Long enough for a signal on its way; the parent-death signal comes with the thread's end.
        assert!(tokio::time::timeout(Duration::from_millis(200), vmm.wait()).await.is_err());
        vmm.stop(&Ladder::default()).await.unwrap();
    });
}

/// What an ordinary program finds open beside its standard streams.
fn inherited() -> Vec<PathBuf> {
    let mut program = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let fds = fs::read_dir(format!("/proc/{}/fd", program.id())).unwrap();
    let found = fds
        .flatten()
        .filter(|fd| !matches!(fd.file_name().to_str(), Some("0" | "1" | "2")))
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        // All that a VMM has with us is of these kinds; files are what the program opened itself.
        .filter(|target| {
            ["pipe:", "socket:", "anon_inode:"]
                .iter()
                .any(|kind| target.as_os_str().as_encoded_bytes().starts_with(kind.as_bytes()))
        })
        .collect();
    program.kill().unwrap();
    program.wait().unwrap();
    found
}

#[test]
fn programs_started_meanwhile_inherit_nothing_of_a_vmm() {
    run(async {
        let done = std::sync::Arc::new(AtomicBool::new(false));
        let stop = std::sync::Arc::clone(&done);
        // What this test's own parent left open for everybody.
        let from_before = inherited();
        // Programs started the ordinary way, as fast as possible, while VMMs start and stop.
        let spawning = std::thread::spawn(move || {
            let mut seen = 0;
            while !stop.load(Ordering::SeqCst) || seen < 20 {
                let strange: Vec<_> =
                    inherited().into_iter().filter(|fd| !from_before.contains(fd)).collect();
                assert_eq!(strange, Vec::<PathBuf>::new());
                seen += 1;
            }
        });
        let scene = Scene::new();
        for _ in 0..20 {
            let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
            vmm.stop(&kill_now()).await.unwrap();
        }
        done.store(true, Ordering::SeqCst);
        spawning.join().unwrap();
    });
}

fn opened(pid: i32) -> Vec<PathBuf> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).collect()
}

#[test]
fn a_vmm_inherits_no_file_of_its_owner() {
    let scene = Scene::new();
    let (mut owner, vmm) = owner(&scene, None);
    let secret = scene.path("secret");
    assert!(opened(owner.id().cast_signed()).contains(&secret));
    assert!(!opened(vmm.pid).contains(&secret), "{:?}", opened(vmm.pid));
    owner.kill().unwrap();
    owner.wait().unwrap();
}

#[test]
fn a_vmm_inherits_nothing_of_its_owner() {
    run(async {
        let scene = Scene::new();
        // Younger than the spawning threads, perhaps, hence with a high number.
        let secret = fs::File::create(scene.path("secret")).unwrap();
        rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
        let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
        assert!(!opened(vmm.pid()).contains(&scene.path("secret")), "{:?}", opened(vmm.pid()));
        let environment = fs::read(format!("/proc/{}/environ", vmm.pid())).unwrap();
        assert_eq!(environment, b"", "secrets in our environment are none of the VMM's business");
        let status = fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
        // SIGPIPE is number 13.
        for (set, signals) in [("SigBlk", 1_u64 << 12), ("SigIgn", 0)] {
            let line = status.lines().find(|line| line.starts_with(set)).unwrap();
            assert!(line.ends_with(&format!("{signals:016x}")), "{line}");
        }
        // Another process's is for root to see.
        if let Ok(slack) = fs::read_to_string(format!("/proc/{}/timerslack_ns", vmm.pid())) {
            assert_eq!(slack, "50000\n", "the kernel's default, not the spawning thread's");
        }
        // Ours is the usual one as well: nobody made this thread prompt. Not every kernel shows it.
        let slice = |pid: i32| {
            let sched = fs::read_to_string(format!("/proc/{pid}/sched")).unwrap_or_default();
            sched.lines().find(|line| line.starts_with("se.slice")).map(str::to_owned)
        };
        assert_eq!(slice(vmm.pid()), slice(rustix::process::getpid().as_raw_pid()));
        let session = rustix::process::getsid(rustix::process::Pid::from_raw(vmm.pid())).unwrap();
        assert_eq!(session.as_raw_pid(), vmm.pid(), "a session of its own: no terminal signals it");
        vmm.stop(&Ladder::default()).await.unwrap();
    });
}
