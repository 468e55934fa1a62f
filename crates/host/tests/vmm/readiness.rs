//! Starting a VMM with the real Firecracker: ready, or a clear error and nothing left behind.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::fixture::{Scene, eventually, kill_now, living_under, patience, run};
use smartvm_core::bare_metal::Guest;
use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_host::process::Exit;
use smartvm_host::{Ladder, Launch, Lifetime, Readiness, SpawnError, Vmm};

/// A start that must fail with this code and leave neither process nor socket.
async fn fails(scene: &Scene, launch: Launch, code: Code) -> SpawnError {
    let socket = launch.api_sock.clone();
    let error = Vmm::spawn(launch).await.expect_err("this cannot start");
    assert_eq!(error.code(), code, "{error}: {:?}", error.last_words());
    assert_eq!(living_under(&scene.path("")), Vec::<i32>::new());
    assert!(fs::symlink_metadata(socket).is_err(), "the socket is gone");
    error
}

#[test]
fn a_configured_vm_is_ready_and_runs() {
    run(async {
        let scene = Scene::new();
        let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
        assert!(vmm.is_running());
        let info = vmm.api().describe_instance().await.unwrap();
        assert_eq!(info.state, smartvm_firecracker::api::InstanceState::Running);
        let mut console = vmm.console().reader();
        assert!(!console.next().await.unwrap().bytes.is_empty());
        let timeline = vmm.timeline();
        assert!(Some(timeline.process) < timeline.socket && timeline.socket < timeline.api, "{timeline:?}");
        assert!(timeline.first_byte.is_some());
        vmm.stop(&Ladder::default()).await.unwrap();
        assert!(!vmm.api_sock().exists());
    });
}

#[test]
fn a_silent_guest_without_a_log_is_seen_to_run() {
    run(async {
        let scene = Scene::new();
        // Idle from its first instruction but for one byte, which nobody is shown.
        let mut launch = scene.launch(Guest::ByteThenIdle);
        launch.lifetime = smartvm_host::Lifetime::Detached { console: None, diagnostics: None };
        let vmm = Vmm::spawn(launch).await.unwrap();
        assert!(vmm.timeline().api.is_some());
        vmm.stop(&Ladder::default()).await.unwrap();
    });
}

#[test]
fn what_is_wrong_with_a_config_is_not_hidden_by_our_asking() {
    run(async {
        let scene = Scene::new();
        let config = scene.path("vm.json");
        fs::write(&config, r#"{"boot-source":{"kernel_image_path":"/no/such/kernel"},"drives":[]}"#).unwrap();
        for _ in 0..40 {
            let mut launch = scene.bare_launch();
            launch.config_file = Some(config.clone());
            let error = fails(&scene, launch, Code::ProcessExited).await;
            let SpawnError::ProcessExited { exit: Exit::Status(1), .. } = &error else { panic!("{error:?}") };
            assert!(
                error.last_words().iter().any(|line| line.contains("kernel")),
                "{:?}",
                error.last_words()
            );
        }
    });
}

#[test]
fn a_vmm_without_a_config_waits_for_api_calls() {
    run(async {
        let scene = Scene::new();
        let vmm = Vmm::spawn(scene.bare_launch()).await.unwrap();
        assert_eq!(vmm.console().written(), 0);
        let info = vmm.at_start().unwrap();
        assert_eq!(vmm.api().describe_instance().await.unwrap(), *info);
        assert_eq!(info.vmm_version.to_string(), smartvm_lab::FIRECRACKER_VERSION);
        vmm.stop(&Ladder::default()).await.unwrap();
    });
}

#[test]
fn a_relative_binary_and_socket_are_ours_and_not_the_vmms() {
    run(async {
        let scene = Scene::new();
        let here = std::env::current_dir().unwrap();
        let to_root: PathBuf = here.components().skip(1).map(|_| "..").collect();
        let relative = |path: &Path| to_root.join(path.strip_prefix("/").unwrap());
        let mut launch = scene.bare_launch();
        launch.exec_file = relative(&launch.exec_file);
        launch.api_sock = relative(&launch.api_sock);
        // Deeper than ours, so that the same steps up do not lead to the root.
        let elsewhere = scene.path(&"d/".repeat(here.components().count()));
        fs::create_dir_all(&elsewhere).unwrap();
        launch.current_dir = Some(elsewhere);
        let vmm = Vmm::spawn(launch).await.unwrap();
        assert!(scene.path("api.sock").exists());
        vmm.stop(&Ladder::default()).await.unwrap();
    });
}

#[test]
fn a_stale_socket_is_removed() {
    run(async {
        let scene = Scene::new();
        drop(UnixListener::bind(scene.path("api.sock")).unwrap());
        // A child that another test is just making may hold a copy for a moment.
        eventually("nobody listens", patience(), || UnixStream::connect(scene.path("api.sock")).is_err());
        let vmm = Vmm::spawn(scene.bare_launch()).await.unwrap();
        vmm.stop(&Ladder::default()).await.unwrap();
    });
}

#[test]
fn a_live_vmms_socket_is_never_touched_and_its_owner_is_named() {
    run(async {
        let scene = Scene::new();
        let first = Vmm::spawn(scene.bare_launch()).await.unwrap();
        let error = Vmm::spawn(scene.bare_launch()).await.unwrap_err();
        assert_eq!(error.code(), Code::SocketInUse);
        assert_eq!(error.happened(), Happened::NeverStarted);
        assert!(error.to_string().ends_with(&format!("in use by process {}", first.pid())), "{error}");
        first.api().describe_instance().await.unwrap();
        UnixStream::connect(first.api_sock()).unwrap();
        first.stop(&Ladder::default()).await.unwrap();
    });
}

#[test]
fn of_many_starts_on_one_path_one_wins_and_keeps_it() {
    run(async {
        let scene = Scene::new();
        for round in 0..20 {
            if round % 2 == 0 {
                // All find the same stale socket.
                drop(UnixListener::bind(scene.path("api.sock")).unwrap());
            }
            let starts: Vec<_> = (0..6).map(|_| tokio::spawn(Vmm::spawn(scene.bare_launch()))).collect();
            let mut winners = Vec::new();
            for start in starts {
                match start.await.unwrap() {
                    Ok(vmm) => winners.push(vmm),
                    Err(error) => assert!(
                        matches!(error, SpawnError::SocketInUse { .. } | SpawnError::ProcessExited { .. }),
                        "{error}: {:?}",
                        std::error::Error::source(&error)
                    ),
                }
            }
            let [winner] = &winners[..] else { panic!("{winners:?}") };
            let stream = UnixStream::connect(winner.api_sock()).unwrap();
            let listener = rustix::net::sockopt::socket_peercred(&stream).unwrap();
            assert_eq!(listener.pid.as_raw_pid(), winner.pid());
            winner.stop(&kill_now()).await.unwrap();
            assert!(!winner.api_sock().exists());
        }
    });
}

#[test]
fn a_directory_that_takes_no_socket_is_hinted_at() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.bare_launch();
        // Root may write anywhere but here.
        launch.api_sock = "/proc/smartvm.sock".into();
        let error = fails(&scene, launch, Code::ProcessExited).await;
        assert!(error.hint().unwrap().contains("socket path"), "{:?}", error.hint());
    });
}

#[test]
fn a_file_at_the_sockets_path_is_refused_and_kept() {
    run(async {
        let scene = Scene::new();
        fs::write(scene.path("api.sock"), "precious").unwrap();
        let error = Vmm::spawn(scene.bare_launch()).await.unwrap_err();
        assert_eq!(error.code(), Code::SocketPath);
        assert_eq!(fs::read(scene.path("api.sock")).unwrap(), b"precious");
    });
}

#[test]
fn a_socket_path_of_any_length_works() {
    run(async {
        let scene = Scene::new();
        let deep = scene.path(&"d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&deep).unwrap();
        let mut launch = scene.launch(Guest::ByteThenIdle);
        launch.api_sock = deep.join("api.sock");
        let vmm = Vmm::spawn(launch).await.unwrap();
        assert!(deep.join("api.sock").exists());
        vmm.api().describe_instance().await.unwrap();
        vmm.stop(&Ladder::default()).await.unwrap();
        assert!(!deep.join("api.sock").exists());

        let mut launch = scene.bare_launch();
        launch.api_sock = deep.join("n".repeat(100));
        assert_eq!(Vmm::spawn(launch).await.unwrap_err().code(), Code::SocketPath);
    });
}

#[test]
fn a_vmm_that_never_listens_is_a_socket_timeout() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.bare_launch();
        // Firecracker reads its config before it listens; nobody writes into this FIFO.
        launch.config_file = Some(scene.fifo("config.fifo"));
        launch.readiness.socket = Duration::from_millis(300);
        let begun = Instant::now();
        let error = fails(&scene, launch, Code::SocketTimeout).await;
        assert!(begun.elapsed() >= Duration::from_millis(300));
        assert_eq!(error.happened(), Happened::Failed);
    });
}

#[test]
fn a_vmm_that_listens_but_never_answers_is_an_api_timeout() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.bare_launch();
        // Opening the drive blocks the thread that would answer, while another one listens.
        let drive = scene.fifo("drive.fifo");
        let drives = format!(
            r#","drives":[{{"drive_id":"d","path_on_host":"{}","is_root_device":false,"is_read_only":true}}]"#,
            drive.display()
        );
        launch.config_file = Some(scene.config_with(Guest::ByteThenIdle, &drives));
        launch.readiness.api = Duration::from_millis(300);
        fails(&scene, launch, Code::ApiTimeout).await;
    });
}

#[test]
fn a_vmm_that_dies_first_is_reported_at_once_with_its_last_words() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.bare_launch();
        let config = scene.path("vm.json");
        fs::write(&config, r#"{"boot-source":{"kernel_image_path":"/no/such/kernel"},"drives":[]}"#).unwrap();
        launch.config_file = Some(config);
        let begun = Instant::now();
        let error = fails(&scene, launch, Code::ProcessExited).await;
        assert!(begun.elapsed() < smartvm_lab::patience(Duration::from_secs(2)), "no timeout was waited for");
        assert!(error.last_words().iter().any(|line| line.contains("kernel")), "{:?}", error.last_words());
        let SpawnError::ProcessExited { exit: Exit::Status(1), .. } = error else { panic!("{error:?}") };
    });
}

#[test]
fn a_wrong_argument_is_reported_with_firecrackers_own_meaning_of_its_status() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.bare_launch();
        // Unknown before 1.13.
        launch.enable_pci = true;
        let error = fails(&scene, launch, Code::ProcessExited).await;
        assert!(error.to_string().contains("exit status 153 ("), "{error}");
        assert!(
            error.last_words().iter().any(|line| line.contains("enable-pci")),
            "{:?}",
            error.last_words()
        );
    });
}

#[test]
fn a_vmm_that_panics_is_reported_with_its_panic() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.bare_launch();
        launch.id = Some("not/an/id".into());
        let error = fails(&scene, launch, Code::ProcessExited).await;
        assert!(error.to_string().ends_with("killed by SIGABRT"), "{error}");
        assert!(
            error.last_words().iter().any(|line| line.contains("Invalid instance ID")),
            "{:?}",
            error.last_words()
        );
    });
}

#[test]
fn a_vmm_killed_before_it_is_ready_is_reported_with_the_signal() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.bare_launch();
        launch.config_file = Some(scene.fifo("config.fifo"));
        launch.readiness = Readiness { socket: Duration::MAX, api: Duration::MAX };
        let dir = scene.path("");
        let begun = Instant::now();
        let killer = std::thread::spawn(move || {
            eventually("the VMM runs", patience(), || !living_under(&dir).is_empty());
            let for_long = Duration::from_millis(150);
            eventually("it has not listened for long", patience(), || begun.elapsed() > for_long);
            let victim = smartvm_host::process::ProcessId::of(living_under(&dir)[0]).unwrap().unwrap();
            assert!(victim.kill().unwrap());
        });
        let error = fails(&scene, launch, Code::ProcessExited).await;
        assert!(error.to_string().ends_with("killed by SIGKILL"), "{error}");
        killer.join().unwrap();
    });
}

#[test]
fn a_missing_or_foreign_binary_is_said_before_anything_runs() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.bare_launch();
        launch.exec_file = scene.path("no-firecracker");
        fails(&scene, launch, Code::FirecrackerNotFound).await;

        let text = scene.path("text");
        fs::write(&text, "no program").unwrap();
        let mut launch = scene.bare_launch();
        launch.exec_file.clone_from(&text);
        let error = fails(&scene, launch, Code::SpawnFailed).await;
        assert!(error.hint().unwrap().contains("executable"), "{:?}", error.hint());

        let mut launch = scene.bare_launch();
        launch.current_dir = Some(scene.path("nowhere"));
        let error = fails(&scene, launch, Code::SpawnFailed).await;
        assert!(error.to_string().contains("chdir"), "{error}");
        assert!(error.hint().unwrap().contains("working directory"), "{:?}", error.hint());
    });
}

#[test]
fn a_start_that_is_given_up_leaves_nothing() {
    run(async {
        let scene = Scene::new();
        for micros in (0..4000).step_by(250) {
            let mut launch = scene.launch(Guest::ByteThenIdle);
            if micros % 500 == 0 {
                launch.lifetime = Lifetime::Detached { console: None, diagnostics: None };
            }
            let socket = launch.api_sock.clone();
            let given_up = tokio::time::timeout(Duration::from_micros(micros), Vmm::spawn(launch)).await;
            if let Ok(Ok(vmm)) = given_up {
                vmm.stop(&kill_now()).await.unwrap();
            }
            let dir = scene.path("");
            eventually("nothing is left", patience(), || {
                living_under(&dir).is_empty() && !Path::new(&socket).exists()
            });
        }
    });
}
