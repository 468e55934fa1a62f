//! The agent and the host's side of its protocol, against each other on this machine.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::serve;
use crate::emulated::{Client, Input, Stream};
use crate::wire::{Exit, Request, Run};

const GRACE: Duration = Duration::from_secs(20);

fn agent(idle: Duration) -> (Client, JoinHandle<io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || serve(listener, "secret".into(), idle, false));
    (Client { port, token: "secret".into(), interrupted: || false }, server)
}

fn client() -> Client {
    agent(Duration::from_secs(600)).0
}

fn shell(line: &str) -> Run {
    let argv = ["sh", "-c", line].map(str::to_owned).into();
    Run { argv, cwd: Some("/".into()), timeout_ms: 20_000, ..Run::default() }
}

fn run(client: &Client, run: &Run, input: Input) -> (Exit, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = client
        .run(run, input, GRACE, &mut |stream, bytes| match stream {
            Stream::Stdout => out.extend_from_slice(bytes),
            Stream::Stderr => err.extend_from_slice(bytes),
        })
        .unwrap();
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Whether a process lives; one that is dead and not reaped does not.
fn lives(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

fn await_true(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + GRACE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn streams_apart_and_status() {
    let (exit, out, err) = run(&client(), &shell("echo out; echo err >&2; exit 7"), Input::None);
    assert_eq!((exit.code, out.as_str(), err.as_str()), (Some(7), "out\n", "err\n"));
    assert!(exit.survivors.is_empty());
}

#[test]
fn a_signal_is_told_as_one() {
    let (exit, ..) = run(&client(), &shell("kill -TERM $$"), Input::None);
    assert_eq!((exit.code, exit.signal), (None, Some(15)));
}

#[test]
fn input_environment_and_folder_arrive() {
    let mut command = shell("cat; echo $A; pwd");
    command.env = vec![("A".into(), "b c".into())];
    command.cwd = Some("/proc".into());
    let input = vec![b'x'; 1_000_000];
    let (exit, out, _) = run(&client(), &command, Input::Bytes(input));
    assert_eq!(exit.code, Some(0));
    assert_eq!(out.len(), 1_000_000 + "b c\n/proc\n".len());
    assert!(out.ends_with("xb c\n/proc\n"));
}

#[test]
fn a_command_that_does_not_exist_is_refused_with_its_name() {
    let command = Run { argv: vec!["/no/such".into()], ..shell("") };
    let error = client().run(&command, Input::None, GRACE, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("/no/such"), "{error}");
}

#[test]
fn when_its_time_is_over_the_whole_tree_ends() {
    let mut command = shell("setsid sleep 1000 & echo $!; sleep 1000");
    command.timeout_ms = 500;
    let begun = Instant::now();
    let (exit, out, _) = run(&client(), &command, Input::None);
    assert!(exit.timed_out && exit.signal == Some(9), "{exit:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    await_true("the child in a session of its own is dead", || !lives(&out));
}

#[test]
fn what_outlives_a_command_is_told_and_ended() {
    let (exit, out, _) = run(&client(), &shell("setsid sleep 1000 & echo $!"), Input::None);
    assert_eq!(exit.code, Some(0));
    // Its name may still be that of the program which became it.
    assert_eq!(exit.survivors.len(), 1, "{exit:?}");
    assert!(exit.survivors[0].starts_with(&format!("{} ", out.trim())), "{exit:?}");
    await_true("the survivor is dead", || !lives(&out));
}

#[test]
fn a_survivor_may_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("made");
    let mut command = shell(&format!("(sleep 1; echo > {}) >/dev/null 2>&1 &", file.display()));
    command.keep_survivors = true;
    let (exit, ..) = run(&client(), &command, Input::None);
    assert!(!exit.survivors.is_empty());
    await_true("the survivor has done its work", || file.exists());
}

#[test]
fn a_command_ends_when_its_host_goes_away() {
    static GONE: AtomicBool = AtomicBool::new(false);
    let client = Client { interrupted: || GONE.load(Ordering::Relaxed), ..client() };
    let mut pid = String::new();
    let command = Run { timeout_ms: 1_000_000, ..shell("echo $$; exec sleep 1000") };
    let ended = client.run(&command, Input::None, GRACE, &mut |_, bytes| {
        pid.push_str(&String::from_utf8_lossy(bytes));
        GONE.store(true, Ordering::Relaxed);
    });
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::Interrupted);
    assert!(!pid.is_empty());
    await_true("the command is dead", || !lives(&pid));
}

#[test]
fn several_commands_at_once() {
    let client = client();
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    let (reads, writes) = (format!("cat {0}", fifo.display()), format!("echo hello > {0}", fifo.display()));
    run(&client, &shell(&format!("mkfifo {}", fifo.display())), Input::None);
    let other = client.clone();
    let reader = thread::spawn(move || run(&other, &shell(&reads), Input::None));
    let (exit, ..) = run(&client, &shell(&writes), Input::None);
    assert_eq!(exit.code, Some(0));
    assert_eq!(reader.join().unwrap().1, "hello\n");
}

#[test]
fn files_go_there_and_back() {
    let client = client();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("from/sub")).unwrap();
    fs::write(at("from/sub/file"), vec![3; 3_000_000]).unwrap();
    client.push(&at("from"), at("there").to_str().unwrap()).unwrap();
    client.pull(at("there").to_str().unwrap(), &at("back")).unwrap();
    assert_eq!(fs::read(at("back/sub/file")).unwrap(), vec![3; 3_000_000]);
    client.pull(at("there/sub/file").to_str().unwrap(), &at("one")).unwrap();
    assert_eq!(fs::metadata(at("one")).unwrap().len(), 3_000_000);
    let missing = client.pull(at("nothing").to_str().unwrap(), &at("x")).unwrap_err();
    assert!(missing.report().contains("No such file"), "{}", missing.report());
}

#[test]
fn only_the_token_opens_and_a_lease_changes_it() {
    let mut client = client();
    let stranger = Client { token: "guess".into(), ..client.clone() };
    let ping = |client: &Client| client.ask(&Request::Ping, GRACE).map(drop);
    assert_eq!(ping(&stranger).unwrap_err().to_string(), "wrong token");
    let before = client.clone();
    client.lease("new".into(), Duration::from_secs(600)).unwrap();
    ping(&client).unwrap();
    assert_eq!(ping(&before).unwrap_err().to_string(), "wrong token");
}

#[test]
fn ends_when_asked_when_idle_and_with_the_one_who_holds_it() {
    let (client, server) = agent(Duration::from_secs(600));
    client.ask(&Request::PowerOff, GRACE).unwrap();
    server.join().unwrap().unwrap();

    let (_, server) = agent(Duration::ZERO);
    server.join().unwrap().unwrap();

    let (client, server) = agent(Duration::from_secs(600));
    let held = client.ask(&Request::Hold, GRACE).unwrap();
    assert!(!server.is_finished());
    drop(held);
    server.join().unwrap().unwrap();
}
