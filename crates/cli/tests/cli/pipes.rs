//! `smartvm run` between pipes: bytes, ends, signals and exit statuses.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use smartvm_core::bare_metal::Guest;

use crate::scene::{Running, Scene, contains, is_waiting_to_write, patience, wait_until};

#[test]
fn a_guest_that_ends_by_itself_gives_its_bytes_and_status_0() {
    let scene = Scene::new();
    let text = "line one\r\nline two \u{1b}[1mbold\u{1b}[0m, no newline at the end";
    let output = scene.run(Guest::Message(text)).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, text.as_bytes(), "the console's bytes and nothing else");
    scene.assert_clean();
}

#[test]
fn input_reaches_the_guest_byte_for_byte_and_its_end_does_not_end_the_run() {
    let scene = Scene::new();
    let mut run = Running::start(&mut scene.run(Guest::Echo));
    run.await_output("S");
    let mut input = run.child.stdin.take().unwrap();
    // Everything but what ends this guest, keys of ours on a terminal included: between pipes they mean nothing.
    let bytes = b"a\x03b\x1dq\x1dd\x00\x7f\xff\r\n";
    input.write_all(bytes).unwrap();
    run.await_output("\r\n");
    drop(input);
    assert_eq!(run.seen, [b"S", &bytes[..]].concat());
    run.signal(Signal::TERM);
    let (status, _, _) = run.end();
    assert_eq!(status.code(), Some(143), "it ran on until it was stopped");
    scene.assert_clean();
}

#[test]
fn a_guest_ends_by_its_input() {
    let scene = Scene::new();
    let mut run = Running::start(&mut scene.run(Guest::Echo));
    run.await_output("S");
    run.child.stdin.take().unwrap().write_all(b"bye\x04").unwrap();
    let (status, output, _) = run.end();
    assert_eq!((status.code(), output.as_slice()), (Some(0), &b"Sbye"[..]));
    scene.assert_clean();
}

#[test]
fn ctrl_alt_del_comes_first_so_that_the_guest_ends_in_order() {
    let scene = Scene::new();
    let mut run = Running::start(scene.run(Guest::ResetOnCtrlAltDel).arg("--json"));
    run.await_output("S");
    let begun = Instant::now();
    run.signal(Signal::INT);
    let (status, _, said) = run.end();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains(r#""how":"stopped by Ctrl+Alt+Del""#), "{said}");
    assert!(begun.elapsed() < smartvm_lab::patience(Duration::from_secs(5)), "no rung had to time out");
    scene.assert_clean();
}

#[test]
fn a_guest_that_is_deaf_is_stopped_when_its_time_is_over() {
    let scene = Scene::new();
    let mut run =
        Running::start(scene.run(Guest::IgnoreCtrlAltDel).args(["--stop-timeout", "0.3", "--json"]));
    run.await_output("S");
    run.signal(Signal::INT);
    let (status, _, said) = run.end();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains(r#""how":"stopped by ending Firecracker with SIGTERM""#), "{said}");
    scene.assert_clean();
}

#[test]
fn a_second_interrupt_kills() {
    let scene = Scene::new();
    let log = scene.path("log");
    let mut run = scene.run(Guest::IgnoreCtrlAltDel);
    run.args(["--stop-timeout", "3600", "--log-level", "info", "--log-file"]).arg(&log);
    let mut run = Running::start(&mut run);
    run.await_output("S");
    run.signal(Signal::INT);
    // Two at once are one, to the kernel and to who takes them: the first must have had its effect.
    wait_until("the guest is asked", patience(), || {
        std::fs::read(&log).is_ok_and(|log| contains(&log, b"SendCtrlAltDel"))
    });
    run.signal(Signal::INT);
    let (status, _, said) = run.end();
    assert_eq!(status.code(), Some(137), "{said}");
    assert!(said.contains("killed"), "{said}");
    scene.assert_clean();
}

/// Whether a signal waits for the process: SigPnd and ShdPnd in /proc/PID/status.
fn is_pending(pid: i32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().filter(|line| line.contains("Pnd:")).any(|line| {
        let mask = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
        mask & (1 << (signal.as_raw() - 1)) != 0
    })
}

#[test]
fn each_signal_has_its_status() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 137)]
    {
        let scene = Scene::new();
        let mut run = Running::start(scene.run(Guest::ByteThenIdle).args(["--stop-timeout", "0"]));
        run.await_output("S");
        run.signal(signal);
        assert_eq!(run.end().0.code(), Some(status), "{signal:?}");
        scene.assert_clean();
    }
}

#[test]
fn a_vmm_that_dies_by_itself_is_an_error_of_its_own() {
    let scene = Scene::new();
    let mut run = Running::start(scene.run(Guest::ByteThenIdle).args(["--id", "victim"]));
    run.await_output("S");
    let vmm = rustix::process::Pid::from_raw(scene.vmms()[0]).unwrap();
    rustix::process::kill_process(vmm, Signal::SEGV).unwrap();
    let (status, _, said) = run.end();
    assert_eq!(status.code(), Some(6), "{said}");
    assert!(said.contains("error[PROCESS_EXITED]: machine `victim`: Firecracker ended: "), "{said}");
    scene.assert_clean();
}

#[test]
fn a_closed_standard_output_stops_the_machine_in_order() {
    let scene = Scene::new();
    let mut run = scene.run(Guest::Flood);
    let mut child = run
        .args(["--stop-timeout", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // `| head -c 100`: the reader takes a little and goes.
    let mut taken = [0; 100];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut taken).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    scene.assert_clean();
}

#[test]
fn a_reader_that_stalls_keeps_no_stop_from_getting_through() {
    let scene = Scene::new();
    let mut child = scene
        .run(Guest::Flood)
        .args(["--id", "stalled", "--stop-timeout", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    wait_until("it runs", patience(), || contains(&scene.output(&["ps"]).stdout, b"running"));
    let stopped = scene.output(&["stop", "stalled", "--timeout", "20"]);
    assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
    scene.assert_clean();
    drop(stdout);
    child.wait().unwrap();
}

#[test]
fn two_machines_run_at_once_and_one_name_only_once() {
    let scene = Scene::new();
    let mut first = Running::start(scene.run(Guest::ByteThenIdle).args(["--id", "one"]));
    first.await_output("S");
    let mut second = Running::start(scene.run(Guest::ByteThenIdle).args(["--id", "two"]));
    second.await_output("S");
    assert_eq!(scene.machines(), ["one", "two"]);
    assert_eq!(scene.vmms().len(), 2);

    let third = scene.run(Guest::ByteThenIdle).args(["--id", "one"]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(third.stderr).unwrap();
    assert_eq!(third.status.code(), Some(7), "{said}");
    let expected =
        format!("error[MACHINE_BUSY]: machine `one` is already running, owned by process {}", first.pid());
    assert!(said.contains(&expected), "{said}");
    assert_eq!(scene.vmms().len(), 2, "the first was not touched");
    for run in [&mut first, &mut second] {
        run.signal(Signal::QUIT);
        run.end();
    }
    scene.assert_clean();
}

#[test]
fn a_vsock_socket_that_a_dead_vmm_left_is_no_obstacle_and_ours_is_removed() {
    let scene = Scene::new();
    scene.write("guest", Guest::ByteThenReset.elf());
    let config = scene.write(
        "vm.json",
        r#"{"boot-source": {"kernel_image_path": "guest"}, "drives": [],
            "vsock": {"guest_cid": 3, "uds_path": "v.sock"}}"#,
    );
    drop(std::os::unix::net::UnixListener::bind(scene.path("v.sock")).unwrap());
    let mut command: Command = scene.smartvm();
    let output = command.arg("run").arg("--config-file").arg(config).stdin(Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"S"[..]), "{output:?}");
    scene.assert_clean();
}

#[test]
fn the_timeline_says_when_what_was_reached() {
    let scene = Scene::new();
    let output = scene
        .run(Guest::Message("hello init\n"))
        .args(["--json", "--timeline", "--mark", "init", "--mark", "never said"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"hello init\n");
    let end: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    let timeline = &end["timeline"];
    let first_byte = timeline["first_byte_ms"].as_f64().unwrap();
    let mark = timeline["marks"][0]["ms"].as_f64().unwrap();
    assert!(0.0 < first_byte && first_byte <= mark + 0.1, "{timeline}");
    assert_eq!(timeline["marks"][1]["ms"], serde_json::Value::Null);
    assert!(timeline["end_ms"].as_f64().unwrap() >= mark, "{timeline}");
    assert_eq!((&end["exit_status"], &end["how"]), (&0.into(), &"the guest ended".into()));
}

#[test]
fn a_guest_that_reads_nothing_holds_up_its_input_and_not_a_stop() {
    let scene = Scene::new();
    let mut run = Running::start(scene.run(Guest::ByteThenIdle).args(["--stop-timeout", "0"]));
    run.await_output("S");
    let mut input = run.child.stdin.take().unwrap();
    // Far more than all pipes and sockets on the way hold: this write ends only with the run.
    let writer = std::thread::spawn(move || input.write_all(&vec![b'x'; 16 << 20]).is_err());
    wait_until("the way is full", patience(), || is_waiting_to_write(run.pid()));
    run.signal(Signal::TERM);
    assert_eq!(run.end().0.code(), Some(143));
    assert!(writer.join().unwrap(), "the rest was never taken");
    scene.assert_clean();
}

#[test]
fn firecrackers_log_goes_where_it_is_wanted() {
    let scene = Scene::new();
    let mut run = scene.run(Guest::ByteThenReset);
    // A relative path starts where the user is, not where the VMM works.
    let run = run.current_dir(scene.path("")).args(["--log-file", "fc.log", "--log-level", "info"]);
    let output = run.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let log = std::fs::read_to_string(scene.path("fc.log")).unwrap();
    assert!(log.contains("Running Firecracker"), "{log}");

    let output = scene.run(Guest::ByteThenReset).arg("-v").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.stdout, b"S");
    assert!(contains(&output.stderr, b"Running Firecracker"), "{output:?}");
}

#[test]
fn an_error_has_the_last_lines_of_a_log_that_the_config_names() {
    let scene = Scene::new();
    scene.write("guest", Guest::ByteThenIdle.elf());
    scene.write("fc.log", "of an earlier run\n");
    let config = scene.write(
        "vm.json",
        r#"{"boot-source": {"kernel_image_path": "guest"}, "drives": [], "logger": {"log_path": "fc.log"}}"#,
    );
    let mut run = Running::start(scene.smartvm().arg("run").arg("--config-file").arg(config));
    run.await_output("S");
    let vmm = rustix::process::Pid::from_raw(scene.vmms()[0]).unwrap();
    rustix::process::kill_process(vmm, Signal::SEGV).unwrap();
    let (status, _, said) = run.end();
    assert_eq!(status.code(), Some(6), "{said}");
    assert!(said.contains("log: ") && said.contains("signal 11"), "{said}");
    assert!(!said.contains("an earlier run"), "{said}");
}

#[test]
fn a_config_that_does_not_come_holds_up_no_signal() {
    let scene = Scene::new();
    for (name, detach) in [("first.json", &[][..]), ("second.json", &["--detach"])] {
        // One each: a program that another test is just starting may hold a copy of the writer for a moment.
        let fifo = scene.fifo(name);
        let mut run = Running::start(scene.smartvm().arg("run").args(detach).arg("--config-file").arg(&fifo));
        // Opening for writing succeeds once somebody reads.
        let mut writer = None;
        wait_until("it opens the FIFO", patience(), || {
            writer =
                rustix::fs::open(&fifo, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
                    .ok();
            writer.is_some()
        });
        run.signal(Signal::TERM);
        let (status, _, said) = run.end();
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{said}");
        scene.assert_clean();
    }
}

#[test]
fn a_config_may_come_on_standard_input_also_for_the_background() {
    let scene = Scene::new();
    scene.config(Guest::ByteThenIdle);
    let kernel = scene.path("guest");
    let config = scene
        .write("in.json", format!(r#"{{"boot-source": {{"kernel_image_path": {kernel:?}}}, "drives": []}}"#));
    let mut run = scene.smartvm();
    run.args(["run", "--config-file", "/dev/stdin", "--detach", "--id", "piped"]);
    let output = run.stdin(std::fs::File::open(config).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(scene.output(&["stop", "piped", "--kill"]).status.code(), Some(0));
    scene.assert_clean();
}

#[test]
fn a_config_in_a_folder_whose_name_is_not_utf_8_runs() {
    let scene = Scene::new();
    scene.config(Guest::ByteThenReset);
    let (kernel, folder) = (scene.path("guest"), scene.path("").join(OsStr::from_bytes(b"x\xff")));
    std::fs::create_dir(&folder).unwrap();
    let config = folder.join("vm.json");
    let json = format!(r#"{{"boot-source": {{"kernel_image_path": {kernel:?}}}, "drives": []}}"#);
    std::fs::write(&config, json).unwrap();
    let mut run = Running::start(scene.smartvm().arg("run").arg("--config-file").arg(&config));
    let (status, output, said) = run.end();
    assert_eq!((status.code(), output.as_slice()), (Some(0), &b"S"[..]), "{said}");
    let checked = scene.smartvm().args(["check", "--json", "--config-file"]).arg(&config).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(answer["ok"], true, "{answer}");
    scene.assert_clean();
}

#[test]
fn a_log_may_be_a_fifo_that_nobody_reads() {
    let scene = Scene::new();
    let fifo = scene.fifo("log");
    let mut run = Running::start(scene.run(Guest::ByteThenReset).arg("--log-file").arg(fifo));
    let (status, _, said) = run.end();
    assert_eq!(status.code(), Some(0), "{said}");
}

#[test]
fn a_second_sigterm_asks_for_the_same_once_more() {
    let scene = Scene::new();
    let mut run = Running::start(scene.run(Guest::IgnoreCtrlAltDel).args(["--stop-timeout", "1", "--json"]));
    run.await_output("S");
    for signal in [Signal::TERM, Signal::TERM, Signal::HUP] {
        run.signal(signal);
        wait_until("the signal is taken", patience(), || !is_pending(run.pid(), signal));
    }
    let (status, _, said) = run.end();
    assert_eq!(status.code(), Some(143), "{said}");
    assert!(said.contains(r#""how":"stopped by ending Firecracker with SIGTERM""#), "{said}");
    scene.assert_clean();
}

#[test]
fn a_full_disk_behind_standard_output_is_told() {
    let scene = Scene::new();
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let mut run = scene.run(Guest::Flood);
    let output = run.args(["--stop-timeout", "0"]).stdin(Stdio::null()).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert!(contains(&output.stderr, b"No space left on device"), "{output:?}");
    for command in ["ps", "version", "doctor", "gc"] {
        let output = scene.smartvm().arg(command).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}: {output:?}");
        assert!(contains(&output.stderr, b"No space left on device"), "{command}: {output:?}");
    }
    // Our own words are worth less than the guest.
    let mut run = scene.run(Guest::ByteThenReset);
    let output = run.arg("-vv").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(full()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"S"[..]));
    scene.assert_clean();
}

#[test]
fn a_slow_reader_gets_every_byte_of_a_guest_that_has_ended() {
    let scene = Scene::new();
    // More than the pipe, the channel and the socket on the way hold, less than what is kept.
    let text = "x".repeat(300_000);
    let mut run = scene.run(Guest::Message(&text));
    let mut child = run.args(["--id", "slow"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    wait_until("it runs", patience(), || !scene.vmms().is_empty());
    wait_until("it has ended", patience(), || scene.vmms().is_empty() && scene.machines().is_empty());
    let mut came = Vec::new();
    std::io::Read::read_to_end(&mut child.stdout.take().unwrap(), &mut came).unwrap();
    assert_eq!((child.wait().unwrap().code(), came.len()), (Some(0), text.len()));
}

#[test]
fn files_that_options_name_are_looked_at_before_firecracker_starts() {
    let scene = Scene::new();
    let (missing, text) = (scene.path("missing"), scene.write("text", "no JSON"));
    let cases = [
        ("--metadata", &missing, 3),
        ("--metadata", &text, 3),
        ("--seccomp-filter", &missing, 3),
        ("--firecracker", &text, 4),
    ];
    for (option, file, status) in cases {
        let mut run = scene.run(Guest::ByteThenReset);
        let output = run.arg(option).arg(file).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{option}: {output:?}");
        assert!(contains(&output.stderr, file.as_os_str().as_encoded_bytes()), "{option}: {output:?}");
        assert!(contains(&output.stderr, b"hint: "), "{option}: {output:?}");
        scene.assert_clean();
    }
}
