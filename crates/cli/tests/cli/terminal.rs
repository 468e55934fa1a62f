//! `smartvm run` on a terminal: raw and restored, keys, detach.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use smartvm_core::bare_metal::Guest;

use crate::scene::{Running, Scene, contains, is_alive, is_waiting_to_write, patience, state, wait_until};

/// A pseudo-terminal with a command on it.
pub(crate) struct Console {
    pub(crate) run: Running,
    keys: File,
    tty: OwnedFd,
    settings_before: String,
}

impl Console {
    pub(crate) fn open(command: &mut Command) -> Self {
        Self::with_stderr(command, None)
    }

    /// With standard error elsewhere than on the terminal.
    fn with_stderr(command: &mut Command, stderr: Option<File>) -> Self {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keys).unwrap();
        unlockpt(&keys).unwrap();
        let tty = ioctl_tiocgptpeer(&keys, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        // A new one has no columns at all.
        let size = rustix::termios::Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&tty, size).unwrap();
        let settings_before = settings(&tty);
        let stream = || Stdio::from(tty.try_clone().unwrap());
        let stderr = stderr.map_or_else(stream, Stdio::from);
        let child = command.stdin(stream()).stdout(stream()).stderr(stderr).spawn().unwrap();
        let keys = File::from(keys);
        let run = Running::with_output(child, keys.try_clone().unwrap());
        Self { run, keys, tty, settings_before }
    }

    pub(crate) fn type_in(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    /// Waits for the end of the command, though the terminal stays open: its status and all that was on the screen.
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        let mut status = None;
        wait_until("it ends", patience(), || {
            status = self.run.child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(settings(&self.tty), self.settings_before, "the terminal is as it was");
        // What was printed is in the terminal; this comes behind it.
        rustix::io::write(&self.tty, b"<the end>").unwrap();
        self.run.await_output("<the end>");
        let screen = String::from_utf8_lossy(&self.run.seen).replace("<the end>", "");
        (status.unwrap().code(), screen)
    }
}

fn settings(tty: &OwnedFd) -> String {
    format!("{:?}", tcgetattr(tty).unwrap())
}

#[test]
fn the_terminal_is_raw_while_the_guest_runs_and_as_before_afterwards() {
    let scene = Scene::new();
    let mut console = Console::open(&mut scene.run(Guest::Echo));
    console.run.await_output("S");
    assert_ne!(settings(&console.tty), console.settings_before, "raw");
    console.type_in(b"a\rb\x1a\x04");
    let (status, screen) = console.end();
    assert_eq!(status, Some(0));
    assert!(screen.contains("Sa\rb\x1a"), "typed once, echoed by the guest alone, byte for byte: {screen:?}");
    scene.assert_clean();
}

#[test]
fn ctrl_c_stops_and_a_second_one_kills() {
    let scene = Scene::new();
    let mut console = Console::open(&mut scene.run(Guest::ResetOnCtrlAltDel));
    console.run.await_output("S");
    console.type_in(b"\x03");
    let (status, screen) = console.end();
    assert_eq!(status, Some(130), "{screen}");
    assert!(screen.contains("stopped by Ctrl+Alt+Del"), "{screen:?}");
    scene.assert_clean();

    let mut console = Console::open(scene.run(Guest::IgnoreCtrlAltDel).args(["--stop-timeout", "3600"]));
    console.run.await_output("S");
    console.type_in(b"\x03\x03");
    let (status, screen) = console.end();
    assert_eq!(status, Some(137), "{screen}");
    scene.assert_clean();
}

#[test]
fn ctrl_c_goes_to_the_guest_when_asked_for() {
    let scene = Scene::new();
    let mut console = Console::open(scene.run(Guest::Echo).arg("--pass-ctrl-c"));
    console.run.await_output("S");
    console.type_in(b"\x03x");
    console.run.await_output("S\x03x");
    console.type_in(b"\x04");
    assert_eq!(console.end().0, Some(0));
}

#[test]
fn the_escape_sequence_stops_kills_helps_and_types_itself() {
    let scene = Scene::new();
    for (keys, status) in [(b"\x1dq", 0), (b"\x1dk", 137)] {
        let mut console = Console::open(scene.run(Guest::ByteThenIdle).args(["--stop-timeout", "0"]));
        console.run.await_output("S");
        console.type_in(keys);
        assert_eq!(console.end().0, Some(status), "{keys:?}");
        scene.assert_clean();
    }
    let mut console = Console::open(scene.run(Guest::Echo).args(["--escape", "ctrl-a"]));
    console.run.await_output("S");
    console.type_in(b"\x01\x01\x1d\x01?");
    console.run.await_output("\x01\x1d");
    console.run.await_output("Ctrl-A then: q stop, k kill, d detach");
    console.type_in(b"\x04");
    assert_eq!(console.end().0, Some(0));
}

#[test]
fn a_signal_restores_the_terminal_too() {
    let scene = Scene::new();
    for (signal, status) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
        let mut console = Console::open(scene.run(Guest::ByteThenIdle).args(["--stop-timeout", "0"]));
        console.run.await_output("S");
        console.run.signal(signal);
        assert_eq!(console.end().0, Some(status), "{signal:?}");
        scene.assert_clean();
    }
}

#[test]
fn a_front_that_is_killed_leaves_a_restored_terminal_and_no_machine() {
    let scene = Scene::new();
    for stderr in [None, Some(File::create(scene.path("stderr")).unwrap())] {
        let mut run = scene.run(Guest::ByteThenIdle);
        let mut console = Console::with_stderr(run.args(["--stop-timeout", "0"]), stderr);
        console.run.await_output("S");
        console.run.signal(Signal::KILL);
        console.run.child.wait().unwrap();
        wait_until("the owner gives the terminal back", patience(), || {
            settings(&console.tty) == console.settings_before
        });
        wait_until("the owner stops the machine", patience(), || {
            scene.machines().is_empty() && scene.vmms().is_empty()
        });
        scene.assert_clean();
    }
}

#[test]
fn an_error_before_the_guest_runs_is_told_on_a_restored_terminal() {
    let scene = Scene::new();
    let mut command = scene.run(Guest::Echo);
    scene.write("vm.json", "{}");
    let mut console = Console::open(&mut command);
    let (status, screen) = console.end();
    assert_eq!(status, Some(3));
    assert!(screen.contains("[INVALID_CONFIG]"), "{screen:?}");
    assert!(!screen.replace("\r\n", "").contains('\n'), "lines end as on a terminal: {screen:?}");
}

#[test]
fn a_suspended_front_has_the_terminal_as_before_and_raw_again_when_it_goes_on() {
    let scene = Scene::new();
    let mut console = Console::open(&mut scene.run(Guest::Echo));
    console.run.await_output("S");
    let raw = settings(&console.tty);
    console.run.signal(Signal::TSTP);
    let pid = console.run.pid();
    wait_until("it is stopped", patience(), || {
        state(&std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap()) == Some('T')
    });
    assert_eq!(settings(&console.tty), console.settings_before);
    console.run.signal(Signal::CONT);
    wait_until("it is raw again", patience(), || settings(&console.tty) == raw);
    console.type_in(b"on\x04");
    let (status, screen) = console.end();
    assert_eq!(status, Some(0));
    assert!(screen.contains("Son"), "{screen:?}");
}

#[test]
fn a_front_that_was_stopped_without_being_asked_is_raw_again_when_it_goes_on() {
    let scene = Scene::new();
    let mut console = Console::open(&mut scene.run(Guest::Echo));
    let before = tcgetattr(&console.tty).unwrap();
    console.run.await_output("S");
    let raw = settings(&console.tty);
    console.run.signal(Signal::STOP);
    let pid = console.run.pid();
    wait_until("it is stopped", patience(), || {
        state(&std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap()) == Some('T')
    });
    // As the shell does for its prompt.
    tcsetattr(&console.tty, OptionalActions::Now, &before).unwrap();
    console.run.signal(Signal::CONT);
    wait_until("it is raw again", patience(), || settings(&console.tty) == raw);
    console.type_in(b"\x04");
    assert_eq!(console.end().0, Some(0));
}

#[test]
fn a_detached_machine_lives_on_and_can_be_stopped() {
    let scene = Scene::new();
    let mut console = Console::open(scene.run(Guest::Echo).args(["--id", "alone", "--stop-timeout", "0"]));
    console.run.await_output("S");
    console.type_in(b"before\x1dd");
    let (status, screen) = console.end();
    assert_eq!(status, Some(0), "{screen}");
    assert!(screen.contains("smartvm stop alone"), "{screen:?}");

    let [vmm] = scene.vmms()[..] else { panic!("one VMM") };
    let machines: serde_json::Value =
        serde_json::from_slice(&scene.output(&["ps", "--json"]).stdout).unwrap();
    assert_eq!((&machines[0]["id"], &machines[0]["state"]), (&"alone".into(), &"running".into()));
    assert_eq!(machines[0]["vmm_pid"], vmm);
    let owner = i32::try_from(machines[0]["owner_pid"].as_i64().unwrap()).unwrap();
    assert!(is_alive(owner) && owner != console.run.pid());

    let stopped = scene.output(&["stop", "alone"]);
    assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
    scene.assert_clean();
}

#[test]
fn a_machine_is_put_into_the_background_from_a_script() {
    let scene = Scene::new();
    let output = scene
        .run(Guest::Message("written to the log\n"))
        .args(["--id", "bg", "--detach"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    // This guest ends at once, perhaps before it can be let go.
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    wait_until("it is released", patience(), || scene.machines().is_empty());

    let output =
        scene.run(Guest::Echo).args(["--id", "bg", "--detach"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(contains(&output.stderr, b"runs on in the background"), "{output:?}");
    let log = scene.path("run/machines/bg/console.log");
    wait_until("the console is logged or was printed", patience(), || {
        contains(&output.stdout, b"S") || std::fs::read(&log).is_ok_and(|text| contains(&text, b"S"))
    });
    assert_eq!(scene.output(&["stop", "bg", "--kill"]).status.code(), Some(0));
    scene.assert_clean();
}

#[test]
fn an_owner_that_does_not_answer_is_no_trap() {
    let scene = Scene::new();
    let mut console = Console::open(scene.run(Guest::ByteThenIdle).args(["--id", "mute"]));
    console.run.await_output("S");
    let machines: serde_json::Value =
        serde_json::from_slice(&scene.output(&["ps", "--json"]).stdout).unwrap();
    let owner = i32::try_from(machines[0]["owner_pid"].as_i64().unwrap()).unwrap();
    let owner = rustix::process::Pid::from_raw(owner).unwrap();
    rustix::process::kill_process(owner, Signal::STOP).unwrap();
    console.type_in(b"\x03\x03");
    let (status, screen) = console.end();
    assert_eq!(status, Some(1), "{screen}");
    assert!(screen.contains("owner ended unexpectedly"), "{screen:?}");
    wait_until("its VMM ends with it", patience(), || scene.vmms().is_empty());
    assert_eq!(scene.output(&["gc"]).status.code(), Some(0));
    scene.assert_clean();
}

#[test]
fn a_terminal_that_takes_nothing_is_no_trap() {
    let scene = Scene::new();
    let mut console = Console::open(scene.run(Guest::Flood).args(["--stop-timeout", "0", "--id", "mute"]));
    console.run.stop_reading();
    wait_until("it runs", patience(), || contains(&scene.output(&["ps"]).stdout, b"running"));
    wait_until("nothing moves", patience(), || is_waiting_to_write(console.run.pid()));
    let mut status = None;
    wait_until("Ctrl-C until it ends", patience(), || {
        console.type_in(b"\x03");
        std::thread::sleep(std::time::Duration::from_millis(200));
        status = console.run.child.try_wait().unwrap();
        status.is_some()
    });
    assert!(matches!(status.unwrap().code(), Some(130 | 137)), "{status:?}");
    assert_eq!(settings(&console.tty), console.settings_before, "the terminal is as it was");
    wait_until("the owner ends too", patience(), || scene.machines().is_empty() && scene.vmms().is_empty());
    scene.assert_clean();
}
