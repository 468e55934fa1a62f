//! `cargo xtask test`: every test of the workspace, each where it can run, none skipped in silence.
//!
//! Tests are built once, linked statically like the product, and each test program is started here or in
//! the lab. What could not run is printed and makes the command fail. Programs run with a temporary
//! folder of their own and with this process as the reaper of whatever they leave behind, so that the
//! leaks of this run are told apart from what others do on the machine.

mod build;
mod libtest;
mod place;
mod run;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Result};
use crate::fuzz;
use crate::kvm;
use crate::setup::{self, Need};
use build::Suite;
use place::{Place, Places};

/// What `cargo xtask test` was asked.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run the long proofs in full size instead of bounded samples.
    #[arg(long)]
    full: bool,
    /// The seed of everything that tests draw at random; printed, so that a failing run can be repeated.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Only packages of these names.
    #[arg(short, long, value_name = "NAME")]
    package: Vec<String>,
    /// Only tests with one of these in their names.
    filter: Vec<String>,
}

/// Runs the tests; the exit code is 1 when one failed, one could not run, or something was left behind.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    let binaries = setup::run(Need::Lab)?;
    let seed = arguments.seed.unwrap_or_else(random_seed);
    println!("test: seed {seed}{}", if arguments.full { ", in full size" } else { "" });
    let places = Places::find(kvm::try_guests(&binaries)?);
    places.explain();
    let suites = build::suites(&arguments.package)?;
    let mut session = run::Session::open(binaries, seed, arguments.full, arguments.filter.clone())?;
    let mut report = Report::default();
    for suite in &suites {
        report.add(suite, places.of(suite), session.run(suite, places.of(suite))?);
    }
    if arguments.filter.is_empty() && arguments.package.is_empty() {
        report.add(&Suite::doctests(), Place::Here, session.run_doctests()?);
        report.fuzz(arguments.full, seed)?;
    }
    if report.passed + report.failed == 0 {
        return Err(Failure::new("no test matches").hint("leave the filter out to run all"));
    }
    let (failures, left) = session.close();
    report.failures.extend(failures);
    report.left = left;
    report.print(started.elapsed());
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What became of one test program.
pub(crate) enum Outcome {
    /// It ran to its end.
    Ran { passed: usize, failed: usize, ignored: usize, time: Duration },
    /// It could not run, or did not end as a test program does; why.
    Broken(String),
}

#[derive(Default)]
struct Report {
    passed: usize,
    failed: usize,
    here: usize,
    in_lab: usize,
    failures: Vec<String>,
    not_run: Vec<String>,
    left: Vec<String>,
}

impl Report {
    fn add(&mut self, suite: &Suite, place: Place, outcome: Outcome) {
        match outcome {
            Outcome::Ran { passed, failed, ignored, .. } => {
                self.passed += passed;
                self.failed += failed;
                *(if place == Place::Here { &mut self.here } else { &mut self.in_lab }) += passed + failed;
                if ignored > 0 {
                    self.not_run.push(format!("{}: {ignored} tests are marked as ignored", suite.name));
                }
            }
            Outcome::Broken(why) => self.not_run.push(format!("{}: {why}", suite.name)),
        }
    }

    /// Fuzzes what reads bytes of strangers: each target counts as one test.
    fn fuzz(&mut self, full: bool, seed: u64) -> Result<()> {
        let time = if full { fuzz::IN_FULL } else { fuzz::SAMPLE };
        println!(
            "test: fuzzing, {} s each and two at a time (building takes minutes the first time)",
            time.as_secs()
        );
        for (target, outcome) in fuzz::all(time, seed)? {
            self.here += 1;
            match outcome {
                Ok(summary) => {
                    self.passed += 1;
                    println!("test: fuzz {target} … {summary}");
                }
                Err(crash) => {
                    self.failed += 1;
                    println!("test: fuzz {target} … {crash}");
                    self.failures.push(format!("fuzz {target}"));
                }
            }
        }
        Ok(())
    }

    fn is_good(&self) -> bool {
        self.failed == 0 && self.not_run.is_empty() && self.left.is_empty()
    }

    fn print(&self, time: Duration) {
        self.failures.iter().for_each(|test| println!("test: FAILED: {test}"));
        self.not_run.iter().for_each(|suite| println!("test: NOT RUN: {suite}"));
        println!("leaks: {}", if self.left.is_empty() { "none" } else { "LEFT BEHIND by this run:" });
        self.left.iter().for_each(|thing| println!("  {thing}"));
        println!(
            "test: {} tests ran on this machine, {} in the lab, in {:.0} s",
            self.here,
            self.in_lab,
            time.as_secs_f64()
        );
        println!("{} passed, {} failed", self.passed, self.failed);
    }
}

/// Nothing secret hangs on it: the randomness that std gives its hash maps is enough.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
