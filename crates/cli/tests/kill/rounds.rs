//! Owners die by SIGKILL, one to four at once, and a clean-up follows: `gc`, or the next start.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::arena::{
    Arena, Innocent, Kind, Listing, bounded, differences, orphans, orphans_gone_within, vmm_outlives,
};
use crate::victim::{Killed, Moment, Victim};
use smartvm_lab::random::Random;

/// What cleans up after the kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum CleanUp {
    /// `gc`, once the VMMs are gone.
    Gc,
    /// `gc` while they may still be dying.
    GcAtOnce,
    /// `gc` that is killed itself, then another one.
    GcKilled,
    /// Two at the same time.
    GcTwice,
    /// The next start, of the same name as one of the dead.
    RunSame,
    /// The next start, of another name.
    RunOther,
}

impl CleanUp {
    const ALL: [Self; 6] =
        [Self::GcAtOnce, Self::RunSame, Self::GcKilled, Self::RunOther, Self::Gc, Self::GcTwice];
}

/// At least this many rounds, and this many owners that the kill found alive.
fn wanted() -> (usize, usize) {
    if std::env::var_os("SMARTVM_TEST_FULL").is_some() { (60, 200) } else { (12, 12) }
}

#[derive(Debug, Default)]
struct Tally {
    rounds: usize,
    owners: usize,
    killed: usize,
    by_moment: BTreeMap<String, usize>,
    by_kind: BTreeMap<Kind, usize>,
    by_clean_up: BTreeMap<CleanUp, usize>,
    left_directories: usize,
    left_vsocks: usize,
    vmms_alive: usize,
    longest_life: Duration,
}

impl Tally {
    fn add(&mut self, killed: &Killed) {
        self.owners += 1;
        self.left_directories += usize::from(killed.left_directory);
        self.left_vsocks += usize::from(killed.left_vsock);
        if killed.killed {
            self.killed += 1;
            *self.by_moment.entry(killed.moment.name()).or_default() += 1;
            *self.by_kind.entry(killed.kind).or_default() += 1;
        }
    }
}

#[test]
fn whatever_moment_an_owner_is_killed_at_the_next_clean_up_leaves_nothing() {
    let mut random = Random::from_environment("kills");
    let arena = Arena::new();
    let begun = Instant::now();
    for kind in Kind::ALL {
        for slot in 0..4 {
            arena.config(kind, slot);
        }
    }
    let mut innocent = Innocent::start(&arena, "innocent");
    let life = life(&arena).max(Duration::from_millis(40));
    let before = arena.listing();
    let mut tally = Tally::default();
    let (rounds, kills) = wanted();
    while tally.rounds < rounds || tally.killed < kills {
        let context = format!("round {}", tally.rounds);
        let victims = draw(&arena, &mut random, tally.rounds, life);
        let ids: Vec<String> = victims.iter().map(|victim| victim.id.clone()).collect();
        let killed: Vec<Killed> = thread::scope(|scope| {
            let threads: Vec<_> = victims.into_iter().map(|victim| scope.spawn(|| victim.kill())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        killed.iter().for_each(|killed| tally.add(killed));
        let clean_up = CleanUp::ALL[tally.rounds % CleanUp::ALL.len()];
        let context = format!("{context}, {clean_up:?}, {ids:?}: {killed:?}");
        tally.vmms_alive += orphans(&[innocent.pid()]).len();
        let dead = Instant::now();
        if clean_up != CleanUp::GcAtOnce {
            vmms_gone(&innocent, dead, &mut tally, &context);
        }
        clean(&arena, clean_up, &ids, &mut random, &context);
        *tally.by_clean_up.entry(clean_up).or_default() += 1;
        if killed.iter().all(|killed| killed.left_directory) {
            assert_eq!(orphans(&[innocent.pid()]), [], "{context}: VMMs after the clean-up");
        }
        // An owner that was killed just after it had killed its VMM and removed the directory left no trace of one that
        // is dying still.
        vmms_gone(&innocent, dead, &mut tally, &context);
        assert_nothing_left(&before, &arena, &context);
        innocent.assert_unharmed(&arena);
        tally.rounds += 1;
    }
    innocent.end();
    arena.scene.assert_clean();
    println!("kills: life {life:?}, {tally:?}, {:.1} s", begun.elapsed().as_secs_f64());
    // Kills that never find anything would prove nothing.
    assert!(tally.left_directories * 3 > tally.killed, "too few leftovers: {tally:?}");
}

/// How long a machine takes from its owner's exec to nothing, here and now.
fn life(arena: &Arena) -> Duration {
    let config = arena.path("vm/Resets-0.json");
    let lives = [(); 3].map(|()| {
        let begun = Instant::now();
        let output = bounded(&mut arena.run(&config, "first"));
        assert!(output.status.success(), "{output:?}");
        begun.elapsed()
    });
    *lives.iter().min().unwrap()
}

fn draw(arena: &Arena, random: &mut Random, round: usize, life: Duration) -> Vec<Victim> {
    let count = 1 + random.below(4) as usize;
    (0..count)
        .map(|slot| {
            // Some names come again, others are new.
            let id = if random.chance(2) { format!("again-{slot}") } else { format!("once-{round}-{slot}") };
            let (kind, moment) = (random.pick(&Kind::ALL), Moment::draw(random, life));
            Victim::start(arena, kind, slot, &id, moment)
        })
        .collect()
}

fn vmms_gone(innocent: &Innocent, since: Instant, tally: &mut Tally, context: &str) {
    let left = vmm_outlives().saturating_sub(since.elapsed());
    match orphans_gone_within(left, &[innocent.pid()]) {
        Ok(took) => tally.longest_life = tally.longest_life.max(took),
        Err(orphans) => panic!("{context}: alive {:?} after their owners: {orphans:?}", vmm_outlives()),
    }
}

fn clean(arena: &Arena, clean_up: CleanUp, ids: &[String], random: &mut Random, context: &str) {
    match clean_up {
        CleanUp::Gc | CleanUp::GcAtOnce => gc(arena, context),
        CleanUp::GcKilled => {
            for _ in 0..2 {
                let mut first = arena.smartvm().arg("gc").stdout(Stdio::null()).spawn().unwrap();
                thread::sleep(random.duration(Duration::from_millis(15)));
                first.kill().unwrap();
                first.wait().unwrap();
            }
            gc(arena, context);
        }
        CleanUp::GcTwice => {
            let other = arena.smartvm().arg("gc").stdout(Stdio::piped()).spawn().unwrap();
            let mine = bounded(arena.smartvm().arg("gc"));
            let other = other.wait_with_output().unwrap();
            assert!(mine.status.success() && other.status.success(), "{context}: {mine:?} {other:?}");
        }
        CleanUp::RunSame => run(arena, &ids[0], context),
        CleanUp::RunOther => run(arena, "another", context),
    }
}

fn gc(arena: &Arena, context: &str) {
    let (report, output) = arena.gc();
    assert!(output.status.success(), "{context}: {output:?}");
    for kind in ["failed", "foreign"] {
        assert_eq!(report[kind], serde_json::json!([]), "{context}: {report}");
    }
    assert_eq!(report["alive"], serde_json::json!(["innocent"]), "{context}: {report}");
}

fn run(arena: &Arena, id: &str, context: &str) {
    let output = bounded(&mut arena.run(&arena.path("vm/Resets-0.json"), id));
    assert!(output.status.success(), "{context}: {output:?}");
    assert_eq!(output.stdout, b"S", "{context}");
}

fn assert_nothing_left(before: &Listing, arena: &Arena, context: &str) {
    let differences = differences(before, &arena.listing());
    assert!(differences.is_empty(), "{context}:\n{}", differences.join("\n"));
}
