//! Many starts and clean-ups at once in one runtime directory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::arena::{Arena, Innocent, Kind, bounded, differences, orphans_gone_within, vmm_outlives};
use crate::scene::patience;
use crate::victim::{Moment, Victim};
use smartvm_lab::random::Random;

/// How many threads clean up, and as many start machines.
const THREADS: usize = 4;

fn how_long() -> Duration {
    Duration::from_secs(if std::env::var_os("SMARTVM_TEST_FULL").is_some() { 20 } else { 3 })
}

#[derive(Debug, Default)]
struct Count {
    clean_ups: AtomicUsize,
    whole_lives: AtomicUsize,
    refused: AtomicUsize,
    killed: AtomicUsize,
}

fn more(count: &AtomicUsize) {
    count.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn starts_and_clean_ups_at_once_harm_no_machine_and_leave_nothing() {
    let mut random = Random::from_environment("races");
    let arena = Arena::new();
    for kind in Kind::ALL {
        for slot in 0..THREADS {
            arena.config(kind, slot);
        }
    }
    let mut innocent = Innocent::start(&arena, "innocent");
    let before = arena.listing();
    let count = Count::default();
    let begun = Instant::now();
    // Where everything is slow, so long that what is to race has happened.
    let goes_on = || {
        let time = begun.elapsed();
        time < how_long() || (!enough(&count) && time < patience())
    };
    thread::scope(|scope| {
        for slot in 0..THREADS {
            let (arena, count, goes_on, mut random) = (&arena, &count, &goes_on, random.split());
            scope.spawn(move || {
                while goes_on() {
                    clean_up(arena, count);
                }
            });
            scope.spawn(move || {
                for turn in 0.. {
                    if !goes_on() {
                        return;
                    }
                    match random.below(3) {
                        0 => lives_its_life(arena, slot, &format!("mine-{slot}"), count),
                        1 => shares_its_name(arena, slot, "shared", count),
                        _ => dies(arena, slot, &format!("dies-{slot}-{turn}"), &mut random, count),
                    }
                }
            });
        }
    });
    innocent.assert_unharmed(&arena);
    orphans_gone_within(vmm_outlives(), &[innocent.pid()]).unwrap();
    let (report, output) = arena.gc();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["alive"], serde_json::json!(["innocent"]), "{report}");
    assert_eq!(differences(&before, &arena.listing()), [""; 0]);
    innocent.end();
    arena.scene.assert_clean();
    println!("races: {count:?}");
    assert!(enough(&count), "too little happened: {count:?}");
}

/// Whether each of the things that race has happened some times.
fn enough(count: &Count) -> bool {
    [&count.clean_ups, &count.whole_lives, &count.killed]
        .iter()
        .all(|count| count.load(Ordering::Relaxed) >= 3)
}

fn clean_up(arena: &Arena, count: &Count) {
    let (report, output) = arena.gc();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["failed"], serde_json::json!([]), "{report}");
    assert_eq!(report["foreign"], serde_json::json!([]), "{report}");
    let alive = report["alive"].as_array().unwrap();
    assert!(alive.contains(&"innocent".into()), "{report}");
    // A machine that nobody but its own thread ends is never taken for dead.
    let released = report["released"].as_array().unwrap();
    let wrong = |id: &str| id == "innocent" || id.starts_with("mine-") || id == "shared";
    assert!(!released.iter().any(|machine| wrong(machine["id"].as_str().unwrap())), "{report}");
    more(&count.clean_ups);
}

/// From its start to its own end, undisturbed.
fn lives_its_life(arena: &Arena, slot: usize, id: &str, count: &Count) {
    let config = arena.path(&format!("vm/Resets-{slot}.json"));
    let output = bounded(&mut arena.run(&config, id));
    assert!(output.status.success() && output.stdout == b"S", "{output:?}");
    more(&count.whole_lives);
}

/// Several want this name: one gets it, the others are told.
fn shares_its_name(arena: &Arena, slot: usize, id: &str, count: &Count) {
    let config = arena.path(&format!("vm/Resets-{slot}.json"));
    let output = bounded(&mut arena.run(&config, id));
    match output.status.code() {
        Some(0) => more(&count.whole_lives),
        Some(7) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("is already running"), "{said}");
            more(&count.refused);
        }
        _ => panic!("{output:?}"),
    }
}

/// Killed, for the others to clean up after.
fn dies(arena: &Arena, slot: usize, id: &str, random: &mut Random, count: &Count) {
    let kind = random.pick(&Kind::ALL);
    let moment = Moment::draw(random, Duration::from_millis(60));
    if Victim::start(arena, kind, slot, id, moment).kill().killed {
        more(&count.killed);
    }
}
