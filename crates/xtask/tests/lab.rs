//! The emulated host's life: it comes up by itself, serves, and goes away whatever happens to its users.
//! Each test has a lab of its own; they share the cached images.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use smartvm_lab::emulated::{self, Lab, Options, Origin};

/// Emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn await_true(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `cargo xtask lab` with a lab in this directory, without the workspace's build.
fn xtask(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["lab", "--no-build"]).args(arguments).env("SMARTVM_LAB_DIR", dir);
    command
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("xtask runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// The QEMU that the lab's own record names.
fn qemu(dir: &Path) -> Option<PathBuf> {
    let record = fs::read(dir.join("instance/instance.json")).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
    Some(Path::new("/proc").join(record.get("pid")?.to_string()))
}

/// Dead ones that nobody reaps yet do not live.
fn lives(process: &Path) -> bool {
    fs::read_to_string(process.join("stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

fn options(dir: &Path, keep: Option<Duration>) -> Options {
    Options { keep, dir: dir.to_owned(), ..Options::default() }
}

#[test]
fn a_command_in_the_lab_behaves_like_one_here() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = xtask(dir.path(), &["--", "sh", "-c", "cat; echo err >&2; uname -n; exit 9"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("xtask runs");
    child.stdin.take().expect("its input").write_all(b"in\n").expect("it reads");
    let output = child.wait_with_output().expect("its end");
    assert_eq!(text(&output.stdout), "in\nsmartvm-lab\n");
    assert!(text(&output.stderr).ends_with("err\n"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(9));

    let qemu = qemu(dir.path()).expect("a record");
    assert!(lives(&qemu), "it is kept for the next command");
    let output = run(&mut xtask(dir.path(), &["--timeout", "1", "--", "sleep", "1000"]));
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));

    let output = run(&mut xtask(dir.path(), &["--down"]));
    assert_eq!(text(&output.stdout), "lab: ended\n");
    assert!(!lives(&qemu));
}

#[test]
fn a_killed_runner_takes_its_command_along_and_leaves_a_lab_for_the_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut runner = xtask(dir.path(), &["--", "sh", "-c", "echo started; exec sleep 4711"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("xtask runs");
    let mut line = String::new();
    BufReader::new(runner.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    assert_eq!(line, "started\n");
    runner.kill().and_then(|()| runner.wait()).expect("it dies");

    let qemu = qemu(dir.path()).expect("a record");
    assert!(lives(&qemu));
    await_true("the command in the lab is dead", || {
        let search = "grep -lsz '^4711$' /proc/[0-9]*/cmdline";
        run(&mut xtask(dir.path(), &["--", "sh", "-c", search])).status.code() == Some(1)
    });
    assert!(emulated::down(dir.path()).expect("it can be ended"));
    assert!(!lives(&qemu));
}

#[test]
fn an_unused_lab_powers_off() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(Lab::up(&options(dir.path(), Some(Duration::from_secs(1)))).expect("a lab"));
    let qemu = qemu(dir.path()).expect("a record");
    await_true("QEMU has ended", || !lives(&qemu));
}

#[test]
fn a_lab_that_is_not_to_be_kept_ends_with_its_user() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::up(&options(dir.path(), None)).expect("a lab");
    let qemu = qemu(dir.path()).expect("a record");
    assert!(lives(&qemu));
    drop(lab);
    assert!(!lives(&qemu));

    let path = dir.path().to_owned();
    let user = std::thread::spawn(move || {
        // The thread ends without ending its lab, as if it had been killed.
        let _ = std::mem::ManuallyDrop::new(Lab::up(&options(&path, None)).expect("a lab"));
    });
    user.join().expect("the thread");
    let qemu = self::qemu(dir.path()).expect("a record");
    await_true("QEMU has ended", || !lives(&qemu));
}

/// A cache that has all of the real one but saved labs.
fn cache_without_saved_labs(dir: &Path) {
    let real = smartvm_lab::dev_cache();
    fs::create_dir_all(dir.join("lab")).expect("a directory");
    std::os::unix::fs::symlink(real.join("firecracker"), dir.join("firecracker")).expect("a link");
    for item in fs::read_dir(real.join("lab")).expect("the cache") {
        let item = item.expect("an entry");
        if !item.file_name().to_string_lossy().starts_with("saved") {
            std::os::unix::fs::symlink(item.path(), dir.join("lab").join(item.file_name())).expect("a link");
        }
    }
}

#[test]
fn a_damaged_saved_lab_is_replaced_by_a_booted_one() {
    // Everything that can be cached is, then.
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::up(&options(dir.path(), None)).expect("a lab");
    assert_eq!(lab.origin(), Origin::Resumed);
    drop(lab);

    let cache = dir.path().join("cache");
    cache_without_saved_labs(&cache);
    let up = |arguments: &[&str]| run(xtask(dir.path(), arguments).env("SMARTVM_DEV_CACHE", &cache));
    let output = up(&["--down", "--", "true"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let saved = fs::read_dir(cache.join("lab"))
        .expect("the cache")
        .map(|item| item.expect("an entry").path())
        .find(|path| path.join("state").is_file())
        .expect("a saved lab");
    fs::File::options().write(true).open(saved.join("state")).expect("it").set_len(1 << 20).expect("cut");

    let output = up(&["--down", "--", "true"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("cannot resume a saved lab"), "{}", text(&output.stderr));
    assert!(!saved.exists(), "it is not tried again");
}
