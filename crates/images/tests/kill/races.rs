//! Processes that get in each other's way.

use std::fs;
use std::io::Read as _;
use std::sync::mpsc;
use std::time::Duration;

use smartvm_core::explain::Explain as _;
use smartvm_images::progress::Event;
use smartvm_images::store::{BlobMode, Kind};
use smartvm_images::{Digest, Progress, Store};

use crate::child::{Child, say};
use crate::scene::Scene;

/// What a child does.
pub(crate) type Work = fn(&Scene);

/// What children do here, beside the operations.
pub(crate) const ROLES: &[(&str, Work)] = &[
    ("fetch once", fetch_once),
    ("write the same", write_the_same),
    ("write", write),
    ("collect", collect),
    ("use", use_until_the_end),
    ("hold a lock", hold_a_lock),
];

/// Both processes of a race begin when the parent says so.
fn wait_for_the_start() {
    let mut byte = [0];
    let _ = std::io::stdin().read(&mut byte);
}

fn race(scene: &Scene, roles: &[&str]) -> Vec<Vec<String>> {
    let mut children: Vec<Child> = roles.iter().map(|role| Child::start(scene, role)).collect();
    children.iter_mut().for_each(Child::release);
    children.into_iter().map(|child| child.finish().0).collect()
}

fn fetch_once(scene: &Scene) {
    wait_for_the_start();
    let store = scene.store();
    let _lock = scene.run(store.lock("fetch", "a/b:1", &Progress::none())).unwrap();
    if store.get::<u8>(Kind::Image, "a/b:1").unwrap().is_some() {
        return say("<found>");
    }
    let blob = store.put_bytes(&vec![1; 1 << 20], BlobMode::Data).unwrap();
    store.put(Kind::Image, "a/b:1", &1, &[blob]).unwrap();
    say("<did>");
}

#[test]
fn processes_that_want_the_same_do_it_once() {
    let scene = Scene::new();
    let said = race(&scene, &["fetch once"; 3]).concat();
    let count = |word: &str| said.iter().filter(|line| line.ends_with(word)).count();
    assert_eq!((count("<did>"), count("<found>")), (1, 2), "{said:#?}");
}

fn write_the_same(scene: &Scene) {
    wait_for_the_start();
    let store = scene.store();
    for index in 0..100_u64 {
        let bytes = index.to_le_bytes().repeat(500);
        assert_eq!(store.put_bytes(&bytes, BlobMode::Data).unwrap(), Digest::of(&bytes));
    }
}

#[test]
fn processes_that_write_the_same_blobs_end_with_one_of_each() {
    let scene = Scene::new();
    race(&scene, &["write the same"; 3]);
    assert_eq!(scene.names("blobs").len(), 100);
    scene.assert_clean("after the race");
    assert_eq!(scene.gc(), 100);
    scene.empty();
}

/// Blobs of its own and blobs of all, then the record that needs them, then away with it: over and over.
fn write(scene: &Scene) {
    wait_for_the_start();
    let own = std::process::id();
    for round in 0..60_u32 {
        // A handle for each piece of work, so that what was written before is nobody's.
        let store: Store = scene.store();
        let mut contents = vec![format!("{own} {round}"), format!("everyone's {}", round % 3)];
        contents.push(format!("{own}'s {}", round % 2));
        let blobs: Vec<Digest> = contents
            .iter()
            .map(|content| match store.blob(&Digest::of(content.as_bytes())) {
                Some(path) => {
                    let bytes = std::fs::read(path).expect("what is held stays");
                    assert_eq!(bytes, content.as_bytes());
                    Digest::of(&bytes)
                }
                None => store.put_bytes(content.as_bytes(), BlobMode::Data).unwrap(),
            })
            .collect();
        let name = format!("{own}/{}", round % 5);
        store.put(Kind::Image, &name, &round, &blobs).expect("what was written or found is still there");
        if round % 4 == 0 {
            store.remove(Kind::Image, &name).unwrap();
        }
    }
    fs::write(scene.inputs().join(own.to_string()), "done").unwrap();
}

fn collect(scene: &Scene) {
    wait_for_the_start();
    let store = scene.store();
    let mut collected = 0;
    // Until both writers are at their end.
    while fs::read_dir(scene.inputs()).unwrap().count() < 2 {
        collected += scene.gc();
        // Whoever reads takes no lock, and yet finds every record whole.
        let damaged = store.records::<u32>(Kind::Image).unwrap().damaged;
        assert!(damaged.is_empty(), "{damaged:?}");
    }
    say(&format!("<collected {collected}>"));
}

#[test]
fn collections_take_nothing_from_those_who_write() {
    let scene = Scene::new();
    let said = race(&scene, &["write", "collect", "write", "collect"]).concat();
    scene.assert_clean("after the race");
    let collected = said.iter().filter_map(|line| line.split_once("<collected ")?.1.strip_suffix('>'));
    let collected: usize = collected.map(|count| count.parse::<usize>().unwrap()).sum();
    assert!(collected > 10, "the race was none: {collected} blobs collected");
    scene.empty();
}

fn use_until_the_end(scene: &Scene) {
    // The handle that found the blob is gone: only the use keeps it.
    let used = scene.store().use_blobs("web-1", &[Digest::of(b"used")]).unwrap();
    say("<uses>");
    wait_for_the_start();
    drop(used);
}

#[test]
fn a_user_keeps_its_blobs_until_it_is_killed() {
    let scene = Scene::new();
    let blob = scene.store().put_bytes(b"used", BlobMode::Data).unwrap();
    let mut user = Child::start(&scene, "use");
    user.until("<uses>");
    let pids: Vec<_> = scene.store().users_of(&[blob]).unwrap().into_iter().map(|user| user.pid).collect();
    assert_eq!(pids, [user.id()]);
    assert_eq!(scene.gc(), 0);
    let error = scene.store().use_blobs("web-1", &[blob]).unwrap_err().to_string();
    assert!(error.contains(&format!("process {} holds", user.id())), "{error}");
    assert!(user.kill_after(Duration::ZERO));
    assert!(scene.store().users_of(&[blob]).unwrap().is_empty());
    assert_eq!(scene.gc(), 1);
    scene.empty();
}

fn hold_a_lock(scene: &Scene) {
    let _lock = scene.store().try_lock("pull image", "debian:12").unwrap();
    say("<holds>");
    wait_for_the_start();
}

#[test]
fn who_waits_for_another_process_says_so_and_goes_on_when_that_is_killed() {
    let scene = Scene::new();
    let mut holder = Child::start(&scene, "hold a lock");
    holder.until("<holds>");
    let pid = holder.id();
    let error = scene.store().try_lock("pull image", "debian:12").unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot pull image debian:12: process {pid} holds `")), "{error}");
    let (tell, told) = mpsc::channel();
    let progress = Progress::new(move |event| tell.send(event).unwrap());
    let store = scene.store();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| scene.run(store.lock("pull image", "debian:12", &progress)));
        let Event::Note { text } = told.recv_timeout(Duration::from_secs(10)).unwrap() else { panic!() };
        assert!(text.contains(&format!("waiting to pull image debian:12: process {pid} does it")), "{text}");
        assert!(holder.kill_after(Duration::ZERO));
        drop(waiting.join().unwrap().unwrap());
    });
    scene.empty();
}

#[test]
fn of_a_process_that_is_stopped_the_hint_says_so() {
    let scene = Scene::new();
    let mut holder = Child::start(&scene, "hold a lock");
    holder.until("<holds>");
    let pid = rustix::process::Pid::from_raw(holder.id().cast_signed()).unwrap();
    let hint = || scene.store().try_lock("pull image", "debian:12").unwrap_err().hint().unwrap();
    assert!(hint().starts_with(&format!("wait for process {} to end", holder.id())), "{}", hint());
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // Answers once it is stopped, and leaves its end to others.
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED).unwrap();
    assert!(
        hint().contains(&format!("is stopped: let it go on (`kill -CONT {}`)", holder.id())),
        "{}",
        hint()
    );
    assert!(holder.kill_after(Duration::ZERO));
    scene.empty();
}
