//! A VMM's life after its start, with the real Firecracker: output, stop ladder, exit, drop.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fixture::{Scene, eventually, kill_now, lives, patience, run};
use smartvm_core::bare_metal::Guest;
use smartvm_core::explain::{Code, Explain};
use smartvm_firecracker::ApiError;
use smartvm_host::process::{Exit, ProcessId};
use smartvm_host::{ConsoleInput, Ended, FirecrackerBinary, Ladder, Rung, Vmm};

/// What a VMM keeps of its output where a test is about that: little, since a guest may be as slow as 1,000 bytes a
/// second where KVM is emulated.
const KEEP: usize = 1024;

async fn first_byte(vmm: &Vmm) {
    vmm.console().reader().next().await.expect("the guest writes before it ends");
}

fn signal(vmm: &Vmm, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(vmm.pid()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn a_guest_that_resets_ends_its_vmm_in_order() {
    run(async {
        let scene = Scene::new();
        let vmm = Vmm::spawn(scene.launch(Guest::Message("bye\n"))).await.unwrap();
        assert_eq!(vmm.wait().await, Ended { exit: Exit::Status(0), by: None });
        assert_eq!(vmm.console().tail(), b"bye\n");
        assert!(!vmm.is_running());
        assert!(!vmm.api_sock().exists(), "Firecracker leaves its socket, we do not");
        assert_eq!(vmm.process_id().unwrap(), None);
    });
}

#[test]
fn console_and_log_are_kept_apart() {
    run(async {
        let scene = Scene::new();
        let vmm = Vmm::spawn(scene.launch(Guest::Message("only the guest\n"))).await.unwrap();
        vmm.wait().await;
        assert_eq!(vmm.console().tail(), b"only the guest\n");
        let log = String::from_utf8(vmm.diagnostics().tail()).unwrap();
        assert!(log.contains("Running Firecracker"), "{log}");
        assert!(!log.contains("only the guest"), "{log}");
    });
}

#[test]
fn the_guest_reads_what_is_written() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.launch(Guest::Echo);
        launch.console_input = ConsoleInput::Pipe;
        let mut vmm = Vmm::spawn(launch).await.unwrap();
        let input: OwnedFd = vmm.take_console_input().unwrap();
        assert!(vmm.take_console_input().is_none());
        assert!(rustix::fs::fcntl_getfl(&input).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
        let mut console = vmm.console().reader();
        let mut seen = console.next().await.unwrap().bytes;
        rustix::io::write(&input, b"hello").unwrap();
        while !seen.ends_with(b"hello") {
            seen.extend(console.next().await.unwrap().bytes);
        }
        drop(input);
        assert!(vmm.is_running(), "the end of input is not the end of the guest");
        vmm.stop(&Ladder::default()).await.unwrap();
    });
}

#[test]
fn nobody_but_the_vmm_holds_its_end_of_the_console_input() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.launch(Guest::Echo);
        launch.console_input = ConsoleInput::Pipe;
        let mut vmm = Vmm::spawn(launch).await.unwrap();
        let input = vmm.take_console_input().unwrap();
        vmm.stop(&kill_now()).await.unwrap();
        // A program that another test starts may have a copy until it runs.
        let refused = || rustix::io::write(&input, b"x") == Err(rustix::io::Errno::PIPE);
        eventually("what is written is refused", Duration::from_secs(5), refused);
    });
}

#[test]
fn a_reader_that_stalls_never_blocks_the_vmm() {
    run(async {
        let scene = Scene::new();
        let mut launch = scene.launch(Guest::Flood);
        launch.keep_output = KEEP;
        let vmm = Vmm::spawn(launch).await.unwrap();
        let mut stalled = vmm.console().reader();
        let mut fast = vmm.console().reader();
        // Far more than the ring holds. Nothing counts as written that is still in the pipe.
        const FAR: u64 = 10 * KEEP as u64;
        while vmm.console().written() < FAR {
            fast.next().await.unwrap();
        }
        vmm.api().describe_instance().await.unwrap();
        assert_eq!(vmm.console().tail().len(), KEEP);
        let late = stalled.next().await.unwrap();
        assert!(late.lost >= FAR - KEEP as u64 && late.bytes.len() == KEEP);
        vmm.stop(&Ladder::default()).await.unwrap();
        assert!(stalled.next().await.is_none_or(|chunk| chunk.lost > 0 || !chunk.bytes.is_empty()));
    });
}

#[test]
fn the_ladder_says_which_rung_worked() {
    run(async {
        let scene = Scene::new();
        let stop = async |guest, ladder: Ladder| {
            let vmm = Vmm::spawn(scene.launch(guest)).await.unwrap();
            first_byte(&vmm).await;
            let ended = vmm.stop(&ladder).await.unwrap();
            assert!(!lives(vmm.pid()) && !vmm.api_sock().exists());
            ended
        };
        let second = Duration::from_secs(1);
        assert_eq!(
            stop(Guest::ByteThenIdle, Ladder::default()).await,
            Ended { exit: Exit::Signal(15), by: Some(Rung::Terminate) }
        );
        assert_eq!(
            stop(Guest::ByteThenIdle, Ladder::kill_now()).await,
            Ended { exit: Exit::Signal(9), by: Some(Rung::Kill) }
        );
        assert_eq!(
            stop(Guest::ResetOnCtrlAltDel, Ladder::guest_first(5 * second)).await,
            Ended { exit: Exit::Status(0), by: Some(Rung::CtrlAltDel) }
        );
        assert_eq!(
            stop(Guest::IgnoreCtrlAltDel, Ladder::guest_first(second / 10)).await,
            Ended { exit: Exit::Signal(15), by: Some(Rung::Terminate) }
        );
    });
}

#[test]
fn a_vmm_that_does_not_take_sigterm_gets_sigkill() {
    run(async {
        let scene = Scene::new();
        let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
        // A stopped process keeps SIGTERM pending; nor does it answer its API.
        signal(&vmm, rustix::process::Signal::STOP);
        let tenth = Some(Duration::from_millis(100));
        let gentle = Ladder { ctrl_alt_del: tenth, terminate: tenth, kill: None };
        let error = vmm.stop(&gentle).await.unwrap_err();
        assert_eq!(error.code(), Code::StopTimeout);
        assert!(error.to_string().contains("Ctrl+Alt+Del, SIGTERM"), "{error}");
        assert!(vmm.is_running());
        let for_ever = Some(Duration::MAX);
        let ended = vmm.stop(&Ladder { terminate: tenth, kill: for_ever, ..gentle }).await.unwrap();
        assert_eq!(ended, Ended { exit: Exit::Signal(9), by: Some(Rung::Kill) });
    });
}

#[test]
fn stopping_again_and_at_once_from_many_places_agrees() {
    run(async {
        let scene = Scene::new();
        for _ in 0..10 {
            let vmm = Arc::new(Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap());
            let calls: Vec<_> = (0..8)
                .map(|_| {
                    let vmm = Arc::clone(&vmm);
                    tokio::spawn(async move { vmm.stop(&Ladder::default()).await.unwrap() })
                })
                .collect();
            let first = vmm.wait().await;
            for call in calls {
                assert_eq!(call.await.unwrap(), first);
            }
            assert_eq!(vmm.stop(&Ladder::default()).await.unwrap(), first);
            assert_eq!(vmm.ended(), Some(first));
        }
    });
}

#[test]
fn stopping_a_vmm_that_just_ends_by_itself_is_no_error() {
    run(async {
        let scene = Scene::new();
        for pause in 0..10 {
            let vmm = Vmm::spawn(scene.launch(Guest::ByteThenReset)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(pause * 2)).await;
            vmm.stop(&Ladder::default()).await.unwrap();
            assert!(!vmm.api_sock().exists());
        }
    });
}

#[test]
fn an_api_client_that_goes_away_unanswered_does_not_hurt_the_vmm() {
    run(async {
        let scene = Scene::new();
        let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
        // Over the payload limit: Firecracker answers that many times.
        let body = "x".repeat(150_000);
        let request = format!("PUT /mmds HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        for _ in 0..20 {
            let mut rude = std::os::unix::net::UnixStream::connect(vmm.api_sock()).unwrap();
            let _ = std::io::Write::write_all(&mut rude, request.as_bytes());
        }
        vmm.api().describe_instance().await.unwrap();
        vmm.stop(&Ladder::default()).await.unwrap();
    });
}

#[test]
fn a_vmm_that_hangs_because_a_request_met_its_guests_end_is_ended() {
    run(async {
        let scene = Scene::new();
        let mut hung = 0;
        // Each round ends the guest between requests that follow each other without a pause.
        for _ in 0..12 {
            let vmm = Arc::new(Vmm::spawn(scene.launch(Guest::ResetOnCtrlAltDel)).await.unwrap());
            first_byte(&vmm).await;
            let asking = Arc::clone(&vmm);
            let asking = tokio::spawn(async move { while asking.api().describe_instance().await.is_ok() {} });
            vmm.api().send_ctrl_alt_del().await.unwrap();
            let ended = vmm.wait().await;
            assert!(ended.exit.is_guests_end(), "{ended:?}");
            hung += u32::from(ended.exit == Exit::HungAtExit);
            asking.await.unwrap();
            assert!(!vmm.api_sock().exists());
        }
        println!("{hung} of 12 hung");
    });
}

#[test]
fn an_exit_is_heard_from_another_thread_and_runtime() {
    let scene = Scene::new();
    let vmm = run(async { Arc::new(Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap()) });
    // The runtime that started it is gone by now.
    let waiting = Arc::clone(&vmm);
    let elsewhere = std::thread::spawn(move || run(async move { waiting.wait().await }));
    signal(&vmm, rustix::process::Signal::KILL);
    assert_eq!(elsewhere.join().unwrap(), Ended { exit: Exit::Signal(9), by: None });
    assert!(!vmm.api_sock().exists());
}

#[test]
fn without_any_runtime_output_is_still_drained_and_the_end_reaped() {
    let scene = Scene::new();
    let mut launch = scene.launch(Guest::Flood);
    launch.keep_output = KEEP;
    let vmm = run(async { Vmm::spawn(launch).await.unwrap() });
    let before = vmm.console().written();
    // More than the ring holds: it does not fill up either.
    eventually("the console flows on", patience(), || vmm.console().written() > before + 4 * KEEP as u64);
    signal(&vmm, rustix::process::Signal::TERM);
    eventually("the end is seen", patience(), || !vmm.is_running());
    assert!(!std::path::Path::new(&format!("/proc/{}", vmm.pid())).exists(), "reaped, not a zombie");
}

#[test]
fn a_program_that_leaves_its_output_to_another_process_holds_nobody_up() {
    run(async {
        let scene = Scene::new();
        let (fifo, script) = (scene.fifo("fifo"), scene.path("script"));
        let text = format!("#!/bin/sh\ncat {} &\necho 'Firecracker v1.2.3'\n", fifo.display());
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
        let found = FirecrackerBinary::at(&script).await.unwrap();
        assert_eq!(found.version.to_string(), "1.2.3");
        // Whoever drains and reaps goes on.
        let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
        vmm.stop(&kill_now()).await.unwrap();
        // The other process ends with its input.
        drop(fs::File::options().write(true).open(fifo).unwrap());
    });
}

#[test]
fn dropping_kills_reaps_and_cleans() {
    run(async {
        let scene = Scene::new();
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
            let (pid, socket) = (vmm.pid(), vmm.api_sock().to_owned());
            let begun = Instant::now();
            drop(vmm);
            fastest = fastest.min(begun.elapsed());
            let process = format!("/proc/{pid}");
            eventually("killed and reaped", patience(), || fs::metadata(&process).is_err());
            eventually("the socket is removed", patience(), || !socket.exists());
        }
        assert!(fastest < Duration::from_millis(5), "dropping does not wait: {fastest:?}");
    });
}

#[test]
fn a_client_never_speaks_to_the_next_vmm_on_its_path() {
    run(async {
        let scene = Scene::new();
        let first = Vmm::spawn(scene.bare_launch()).await.unwrap();
        let client = first.api().clone();
        first.stop(&kill_now()).await.unwrap();
        let next = Vmm::spawn(scene.bare_launch()).await.unwrap();
        let error = client.describe_instance().await.unwrap_err();
        assert!(matches!(error, ApiError::Connect { .. }), "{error:?}");
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains(&format!("process {}", next.pid())), "{why}");
        next.api().describe_instance().await.unwrap();
        next.stop(&kill_now()).await.unwrap();
    });
}

#[test]
fn cleaning_removes_only_what_is_ours() {
    run(async {
        let scene = Scene::new();
        let vmm = Vmm::spawn(scene.launch(Guest::ByteThenIdle)).await.unwrap();
        fs::remove_file(vmm.api_sock()).unwrap();
        fs::write(vmm.api_sock(), "somebody else's").unwrap();
        vmm.stop(&Ladder::default()).await.unwrap();
        assert_eq!(fs::read(vmm.api_sock()).unwrap(), b"somebody else's");
    });
}

#[test]
fn an_identity_outlives_its_process_and_never_fits_another() {
    run(async {
        let scene = Scene::new();
        let vmm = Vmm::spawn(scene.bare_launch()).await.unwrap();
        let id: ProcessId = vmm.process_id().unwrap().unwrap();
        assert!(id.is_alive().unwrap());
        assert!(id.kill().unwrap());
        vmm.wait().await;
        assert!(!id.is_alive().unwrap());
        assert!(!id.kill().unwrap());
    });
}

#[test]
fn fifty_at_once_all_start_and_none_is_left() {
    run(async {
        let scenes: Vec<Scene> = (0..50).map(|_| Scene::new()).collect();
        let starts: Vec<_> =
            scenes.iter().map(|scene| tokio::spawn(Vmm::spawn(scene.launch(Guest::ByteThenIdle)))).collect();
        let mut vmms = Vec::new();
        for start in starts {
            vmms.push(start.await.unwrap().unwrap());
        }
        let stops: Vec<_> = vmms
            .into_iter()
            .map(|vmm| {
                tokio::spawn(async move {
                    vmm.stop(&kill_now()).await.unwrap();
                    (vmm.pid(), vmm.api_sock().exists())
                })
            })
            .collect();
        for stop in stops {
            let (pid, socket_left) = stop.await.unwrap();
            assert!(!lives(pid) && !socket_left);
        }
    });
}
