//! Leftovers that were made to mislead the clean-up: it follows nothing, hangs on nothing, kills nobody else, and says
//! what it left alone.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};

use crate::arena::{Arena, Innocent, bounded, differences};
use crate::scene::is_alive;

/// A process that has nothing to do with smartvm. Killed when dropped.
struct Stranger(Child);

impl Stranger {
    /// Waits for input that never comes, in this directory.
    fn start(dir: &Path) -> Self {
        let mut command = Command::new("cat");
        Self(command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn id(&self) -> Value {
        identity(self.0.id())
    }

    fn assert_alive(&self) {
        assert!(is_alive(self.0.id().cast_signed()));
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory as an owner would have made it, of an owner that is dead.
fn machine(arena: &Arena, id: impl AsRef<Path>) -> PathBuf {
    let dir = arena.machines().join(id);
    fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
    dir
}

/// A process as a record names it.
fn identity(pid: u32) -> Value {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start_time: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    json!({"pid": pid, "start_time": start_time, "boot_id": boot_id.trim()})
}

/// The same, but for one thing.
fn but(mut identity: Value, name: &str, value: Value) -> Value {
    identity[name] = value;
    identity
}

/// The same pid, of a process that started earlier.
fn earlier(identity: Value) -> Value {
    let start_time = identity["start_time"].as_u64().unwrap() - 1;
    but(identity, "start_time", start_time.into())
}

fn record(id: &str, owner: &Value, more: Value) -> String {
    let mut record =
        json!({"id": id, "owner": owner, "created": 1, "firecracker": "1.12.1", "config_file": null});
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record.to_string()
}

fn dead() -> Value {
    earlier(identity(std::process::id()))
}

fn fifo(path: &Path) {
    mkfifoat(CWD, path, Mode::RWXU).unwrap();
}

/// What a report says of a path: whether it was left alone, and why.
fn reason<'a>(report: &'a Value, kind: &str, path: &Path) -> Option<&'a str> {
    let wanted = path.to_string_lossy();
    let lefts = report[kind].as_array()?;
    lefts.iter().find(|left| left["path"] == *wanted)?["why"].as_str()
}

#[test]
fn what_is_in_a_machines_place_is_not_followed_waited_for_or_removed() {
    let arena = Arena::new();
    let mut innocent = Innocent::start(&arena, "innocent");
    let precious = arena.path("precious");
    fs::create_dir(&precious).unwrap();
    for file in ["file", "lock", "machine.json"] {
        fs::write(precious.join(file), "kept").unwrap();
    }
    let machines = arena.machines();
    let mut foreign = vec![
        machines.join("UPPER"),
        machines.join("a b"),
        machines.join(".hidden"),
        machines.join("-x y"),
        machines.join("line\nbreak\x1b[31m"),
        machines.join("x".repeat(65)),
        machines.join(OsStr::from_bytes(b"not-\xff-utf8")),
    ];
    for dir in &foreign {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("file"), "kept").unwrap();
    }
    for (name, make) in [
        ("a-link", (|path: &Path| symlink("../../precious", path).unwrap()) as fn(&Path)),
        ("a-broken-link", |path| symlink("nowhere", path).unwrap()),
        ("a-loop", |path| symlink("a-loop", path).unwrap()),
        ("a-file", |path| fs::write(path, "kept").unwrap()),
        ("a-fifo", fifo),
        ("a-socket", |path| drop(UnixListener::bind(path).unwrap())),
        ("a-lock-link", |path| {
            fs::create_dir(path).unwrap();
            symlink("../../../precious/lock", path.join("lock")).unwrap();
        }),
        ("a-broken-lock-link", |path| {
            fs::create_dir(path).unwrap();
            symlink("../../../precious/made", path.join("lock")).unwrap();
        }),
        ("a-lock-fifo", |path| {
            fs::create_dir(path).unwrap();
            fifo(&path.join("lock"));
        }),
        ("a-lock-directory", |path| fs::create_dir_all(path.join("lock")).unwrap()),
    ] {
        make(&machines.join(name));
        foreign.push(machines.join(name));
    }
    if rustix::process::geteuid().is_root() {
        let dir = machine(&arena, "somebody-elses");
        chown(&dir, Some(65534), Some(65534)).unwrap();
        foreign.push(dir);
    }
    let before = arena.listing();

    let begun = Instant::now();
    let dry = bounded(arena.smartvm().args(["gc", "--dry-run"]));
    let (report, output) = arena.gc();
    let text = bounded(arena.smartvm().arg("gc"));
    assert!(begun.elapsed() < Duration::from_secs(20), "it hung for {:?}", begun.elapsed());
    assert!(output.status.success() && dry.status.success() && text.status.success(), "{output:?} {dry:?}");
    for path in &foreign {
        assert!(reason(&report, "foreign", path).is_some(), "nothing is said of {path:?}: {report}");
    }
    assert_eq!(report["foreign"].as_array().unwrap().len(), foreign.len(), "{report}");
    assert_eq!(report["released"], json!([]));
    assert_eq!(report["failed"], json!([]));
    assert_eq!(report["alive"], json!(["innocent"]));
    assert_eq!(differences(&before, &arena.listing()), [""; 0]);
    for said in [dry.stdout, text.stdout] {
        let said = String::from_utf8(said).unwrap();
        assert_eq!(
            said.lines().filter(|line| line.starts_with("not smartvm's")).count(),
            foreign.len(),
            "{said}"
        );
        assert!(!said.contains('\x1b'), "a name has no hold on the terminal: {said:?}");
    }
    // Nor does any of it stand in a start's way, except under its own name.
    let start = |id: &str| {
        let config = arena.config(crate::arena::Kind::Resets, 0);
        bounded(&mut arena.run(&config, id))
    };
    assert!(start("another").status.success());
    for id in ["a-link", "a-lock-fifo", "a-lock-link", "a-file"] {
        let refused = start(id);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("cannot be released"), "{id}: {refused:?}");
    }
    for file in ["file", "lock", "machine.json"] {
        assert_eq!(fs::read(precious.join(file)).unwrap(), b"kept");
    }
    assert_eq!(fs::read_dir(&precious).unwrap().count(), 3);
    innocent.assert_unharmed(&arena);
    innocent.end();
}

#[test]
fn a_dead_owners_directory_goes_whatever_is_in_it_and_nothing_else_does() {
    let arena = Arena::new();
    let mut innocent = Innocent::start(&arena, "innocent");
    let precious = arena.path("precious");
    fs::create_dir(&precious).unwrap();
    for file in ["file", "record"] {
        fs::write(precious.join(file), "kept").unwrap();
    }
    let stale = precious.join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let live = precious.join("live.sock");
    let _listener = UnixListener::bind(&live).unwrap();
    symlink("stale.sock", precious.join("link.sock")).unwrap();
    let before = arena.listing();
    let home = arena.path("precious");
    let stranger = Stranger::start(&home);
    let named = |id: &str, more: Value| {
        let dir = machine(&arena, id);
        fs::write(dir.join("lock"), "").unwrap();
        fs::write(dir.join("machine.json"), record(id, &dead(), more)).unwrap();
        dir
    };

    // Records that are none.
    for (id, text) in
        [("empty", ""), ("corrupt", "\0{{"), ("deep", &"[".repeat(500_000)), ("half", r#"{"id":"half","#)]
    {
        fs::write(machine(&arena, id).join("machine.json"), text).unwrap();
    }
    let huge = fs::File::create(machine(&arena, "huge").join("machine.json")).unwrap();
    huge.set_len(1 << 40).unwrap();
    fifo(&machine(&arena, "fifo").join("machine.json"));
    fs::create_dir_all(machine(&arena, "directory").join("machine.json/and/more")).unwrap();
    // A record elsewhere that would have the stranger killed.
    let alive =
        record("linked", &dead(), json!({"vmm": stranger.id(), "vsock": precious.join("stale.sock")}));
    fs::write(precious.join("record"), &alive).unwrap();
    symlink(precious.join("record"), machine(&arena, "linked").join("machine.json")).unwrap();
    // Pids that were given to somebody else.
    named("pid-again", json!({"vmm": earlier(stranger.id())}));
    named("pid-of-another-boot", json!({"vmm": but(stranger.id(), "boot_id", "another".into())}));
    named("pid-of-all", json!({"vmm": {"pid": -1, "start_time": 0, "boot_id": "x"}}));
    named("pid-of-init", json!({"vmm": {"pid": 1, "start_time": 0, "boot_id": "x"}}));
    named("pid-zero", json!({"vmm": {"pid": 0, "start_time": 0, "boot_id": "x"}}));
    // And one that is exactly the recorded VMM: else the ones above would prove nothing.
    let mut vmm = Stranger::start(&home);
    named("exact", json!({"vmm": vmm.id()}));
    // Sockets that are not the machine's.
    named("vsock-file", json!({"vsock": precious.join("file")}));
    named("vsock-live", json!({"vsock": live}));
    named("vsock-link", json!({"vsock": precious.join("link.sock")}));
    named("vsock-directory", json!({"vsock": precious}));
    named("vsock-nowhere", json!({"vsock": precious.join("no/such/dir.sock")}));
    // Links out of the directory, a stranger in it, and what VMMs leave.
    let dir = named("links", json!({}));
    symlink(&precious, dir.join("api.sock")).unwrap();
    symlink(&precious, dir.join("drives")).unwrap();
    symlink(precious.join("file"), dir.join("console.log")).unwrap();
    fifo(&dir.join("metrics"));
    fs::create_dir_all(dir.join("a/b/c")).unwrap();
    symlink(&precious, dir.join("a/b/c/up")).unwrap();
    drop(UnixListener::bind(dir.join("a/vsock.sock")).unwrap());
    fs::hard_link(precious.join("file"), dir.join("hard")).unwrap();
    let visited = named("visited", json!({}));
    let visitor = Stranger::start(&visited);
    let expected = fs::read_dir(arena.machines()).unwrap().count() - 1;

    let begun = Instant::now();
    let (report, output) = arena.gc();
    assert!(begun.elapsed() < Duration::from_secs(20), "it hung for {:?}", begun.elapsed());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["failed"], json!([]));
    assert_eq!(report["foreign"], json!([]));
    assert_eq!(report["alive"], json!(["innocent"]));
    let released = report["released"].as_array().unwrap();
    assert_eq!(released.len(), expected, "{report}");
    for machine in released {
        let killed = if machine["id"] == "exact" { json!([vmm.0.id()]) } else { json!([]) };
        assert_eq!(machine["vmms"], killed, "{report}");
    }
    assert!(!vmm.0.wait().unwrap().success());
    stranger.assert_alive();
    visitor.assert_alive();
    assert_eq!(differences(&before, &arena.listing()), [""; 0]);
    assert_eq!(fs::read(precious.join("file")).unwrap(), b"kept");
    assert_eq!(fs::read_to_string(precious.join("record")).unwrap(), alive);
    innocent.assert_unharmed(&arena);
    innocent.end();
}

#[test]
fn a_common_lock_that_is_none_is_an_error_and_no_wait() {
    let arena = Arena::new();
    assert!(bounded(arena.smartvm().arg("gc")).status.success());
    let lock = arena.path("run/machines.lock");
    for make in [(|path: &Path| symlink("elsewhere", path).unwrap()) as fn(&Path), fifo] {
        fs::remove_file(&lock).unwrap();
        make(&lock);
        let begun = Instant::now();
        let (report, output) = arena.gc();
        assert!(begun.elapsed() < Duration::from_secs(20), "it hung for {:?}", begun.elapsed());
        assert_eq!(output.status.code(), Some(8), "{output:?}");
        assert_eq!(report["failed"].as_array().unwrap().len(), 1, "{report}");
        assert!(!arena.path("run/elsewhere").exists());
        assert!(fs::symlink_metadata(&lock).is_ok(), "not ours to remove");
    }
}
