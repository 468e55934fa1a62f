//! Running one test program here or in the lab, and seeing what it leaves behind.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::build::Suite;
use super::place::Place;
use super::{Outcome, libtest};
use crate::command;
use crate::failure::{Failure, Result};
use crate::leaks::process;
use crate::setup::Binaries;
use crate::workspace;

/// How long one test program may take, in bounded samples and in full size.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
const PATIENCE_IN_FULL: Duration = Duration::from_secs(2 * 60 * 60);

/// How long after the end of a test program what it started may still be ending. A VMM whose owner was
/// killed has a second.
const GRACE: Duration = Duration::from_secs(2);

/// What all programs of one run share.
pub(super) struct Session {
    binaries: Binaries,
    seed: u64,
    full: bool,
    filter: Vec<String>,
    /// Temporary folder of the tests; what is in it at the end was left behind.
    scratch: TempDir,
    /// Output of the running program.
    output: File,
    left: Vec<String>,
    failures: Vec<String>,
}

impl Session {
    pub(super) fn open(binaries: Binaries, seed: u64, full: bool, filter: Vec<String>) -> Result<Self> {
        // Orphans of the tests come to this process instead of to pid 1, so that they are seen.
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own))
            .map_err(|error| Failure::new("cannot become the reaper of orphans").cause(error))?;
        let told = |error| Failure::new("cannot create a temporary folder").cause(error);
        let scratch = tempfile::Builder::new().prefix("smartvm-test-").tempdir().map_err(told)?;
        let output = tempfile::tempfile().map_err(told)?;
        Ok(Self { binaries, seed, full, filter, scratch, output, left: Vec::new(), failures: Vec::new() })
    }

    /// Runs one test program. Its output is shown when a test in it failed.
    pub(super) fn run(&mut self, suite: &Suite, place: Place) -> Result<Outcome> {
        match place {
            Place::Here => {
                let mut program = Command::new(&suite.program);
                program.args(&self.filter).current_dir(&suite.folder);
                program.env("CARGO_MANIFEST_DIR", &suite.folder);
                let outcome = self.run_here(&suite.name, &mut program)?;
                self.look_for_orphans(&suite.name);
                Ok(outcome)
            }
            Place::Lab => {
                Ok(self.told(&suite.name, Outcome::Broken("the lab cannot run tests yet".to_owned())))
            }
        }
    }

    /// Lets cargo build and run the examples in the documentation.
    pub(super) fn run_doctests(&mut self) -> Result<Outcome> {
        let mut cargo = workspace::static_cargo();
        cargo.args(["test", "--quiet", "--doc", "--workspace", "--locked", "--target", workspace::TARGET]);
        self.run_here(&Suite::doctests().name, &mut cargo)
    }

    fn run_here(&mut self, name: &str, program: &mut Command) -> Result<Outcome> {
        print!("test: {name} … ");
        let _ = std::io::stdout().flush();
        let started = Instant::now();
        let status = self.spawn(program).and_then(|child| self.wait(child))?;
        let time = started.elapsed();
        let output = self.take_output()?;
        let outcome = match (libtest::counts(&output), status) {
            (_, None) => Outcome::Broken(format!("no end after {:.0} s", time.as_secs_f64())),
            (None, Some(status)) => Outcome::Broken(format!("it ended without a result ({status})")),
            (Some(counts), Some(status)) if counts.failed == 0 && !status.success() => {
                Outcome::Broken(format!("no test failed, and yet {status}"))
            }
            (Some(libtest::Counts { passed, failed, ignored }), _) => {
                self.failures.extend(libtest::failed(&output).iter().map(|test| format!("{name}: {test}")));
                Outcome::Ran { passed, failed, ignored, time }
            }
        };
        if !matches!(outcome, Outcome::Ran { failed: 0, .. }) {
            println!("\n{}", output.trim_end());
            print!("test: {name} … ");
        }
        Ok(self.told(name, outcome))
    }

    fn told(&self, name: &str, outcome: Outcome) -> Outcome {
        match &outcome {
            Outcome::Ran { passed, failed: 0, time, .. } => {
                println!("{passed} passed ({:.1} s)", time.as_secs_f64());
            }
            Outcome::Ran { passed, failed, .. } => println!("{passed} passed, {failed} FAILED"),
            Outcome::Broken(why) => println!("{name}: NOT RUN: {why}"),
        }
        outcome
    }

    fn spawn(&self, program: &mut Command) -> Result<Child> {
        let told = |error| Failure::new("cannot set up the output of a test program").cause(error);
        let (stdout, stderr) =
            (self.output.try_clone().map_err(told)?, self.output.try_clone().map_err(told)?);
        program.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        program.env("TMPDIR", self.scratch.path());
        program.env("SMARTVM_FIRECRACKER", &self.binaries.firecracker);
        program.env("SMARTVM_JAILER", &self.binaries.jailer);
        program.env("SMARTVM_TEST_SEED", self.seed.to_string());
        if self.full {
            program.env("SMARTVM_TEST_FULL", "1");
        }
        program
            .spawn()
            .map_err(|error| Failure::new(format!("cannot start `{}`", command::line(program))).cause(error))
    }

    /// The exit status, or none when the program had to be killed.
    fn wait(&self, mut child: Child) -> Result<Option<ExitStatus>> {
        let told = |error| Failure::new("cannot wait for a test program").cause(error);
        let patience = if self.full { PATIENCE_IN_FULL } else { PATIENCE };
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = child.try_wait().map_err(told)? {
                return if command::interrupted() { Err(Failure::interrupted()) } else { Ok(Some(status)) };
            }
            if Instant::now() > deadline {
                child.kill().and_then(|()| child.wait()).map_err(told)?;
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Reads what the program wrote and empties the file for the next one.
    fn take_output(&mut self) -> Result<String> {
        use std::io::{Read, Seek, SeekFrom};
        let mut output = Vec::new();
        let read = self.output.seek(SeekFrom::Start(0)).and_then(|_| self.output.read_to_end(&mut output));
        let emptied = read.and_then(|_| self.output.set_len(0)).and_then(|()| self.output.rewind());
        emptied.map_err(|error| Failure::new("cannot read the output of a test program").cause(error))?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Notes and ends processes that outlived the program which started them.
    fn look_for_orphans(&mut self, of: &str) {
        let deadline = Instant::now() + GRACE;
        let mut orphans = process::adopted();
        while !orphans.is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
            orphans = process::adopted();
        }
        for orphan in orphans {
            self.left.push(format!("process {} ({}) of {of}", orphan.pid, orphan.name));
            orphan.kill();
        }
        process::adopted();
    }

    /// Ends the session: which tests failed, and what the run left behind.
    pub(super) fn close(mut self) -> (Vec<String>, Vec<String>) {
        self.left.extend(entries(self.scratch.path()));
        (self.failures, self.left)
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let binaries = Binaries { firecracker: "/nowhere".into(), jailer: "/nowhere".into() };
        Session::open(binaries, 1, false, Vec::new()).expect("a session")
    }

    fn run(session: &mut Session, script: &str) -> Outcome {
        session.run_here("script", Command::new("sh").args(["-c", script])).expect("an outcome")
    }

    #[test]
    fn what_a_program_leaves_in_its_temporary_folder_is_told() {
        let mut session = session();
        let outcome = run(&mut session, "echo 'test result: ok. 1 passed; 0 failed'; touch $TMPDIR/left");
        assert!(matches!(outcome, Outcome::Ran { passed: 1, failed: 0, .. }));
        let (failures, left) = session.close();
        assert!(failures.is_empty(), "{failures:?}");
        assert!(left.len() == 1 && left[0].ends_with("/left"), "{left:?}");
    }

    #[test]
    fn a_program_that_dies_or_lies_did_not_run() {
        let mut session = session();
        assert!(matches!(run(&mut session, "kill -9 $$"), Outcome::Broken(_)));
        assert!(matches!(
            run(&mut session, "echo 'test result: ok. 1 passed; 0 failed'; exit 3"),
            Outcome::Broken(_)
        ));
        let (failures, left) = session.close();
        assert!(failures.is_empty() && left.is_empty(), "{failures:?} {left:?}");
    }
}
