//! Running one test program here or in the lab, and seeing what it leaves behind.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use smartvm_lab::cache::Cache;
use smartvm_lab::emulated::{self, Lab, TestOptions, TestProgram};
use smartvm_lab::guest;
use tempfile::TempDir;

use super::Outcome;
use super::build::{Needs, Suite};
use super::libtest::{self, Counts};
use super::place::Place;
use crate::command;
use crate::failure::{Failure, Result};
use crate::lab;
use crate::leaks::{machines, process};
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
    /// Where smartvm keeps the machines of this run.
    runtime: TempDir,
    /// Both, held open: whoever looks for leaks meanwhile sees by this that they have an owner.
    _held: [File; 2],
    /// Output of the running program.
    output: File,
    left: Vec<String>,
    failures: Vec<String>,
    lab: Option<Lab>,
}

/// How the results in the output of a program are counted.
type Count = fn(&str) -> Option<Counts>;

/// How a program ended.
enum Ended {
    Well,
    /// With another status than 0, or by a signal.
    Badly(String),
    /// It was killed because its time was over.
    Killed,
}

impl Session {
    pub(super) fn open(binaries: Binaries, seed: u64, full: bool, filter: Vec<String>) -> Result<Self> {
        // Orphans of the tests come to this process instead of to pid 1, so that they are seen.
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own))
            .map_err(|error| Failure::new("cannot become the reaper of orphans").cause(error))?;
        let told = |error| Failure::new("cannot create a temporary folder").cause(error);
        let scratch = tempfile::Builder::new().prefix("smartvm-test-").tempdir().map_err(told)?;
        let runtime = tempfile::Builder::new().prefix("smartvm-test-run-").tempdir().map_err(told)?;
        let output = tempfile::tempfile().map_err(told)?;
        let held = [File::open(scratch.path()).map_err(told)?, File::open(runtime.path()).map_err(told)?];
        Ok(Self {
            _held: held,
            binaries,
            seed,
            full,
            filter,
            scratch,
            runtime,
            output,
            left: Vec::new(),
            failures: Vec::new(),
            lab: None,
        })
    }

    /// Runs one test program. Its output is shown when a test in it failed.
    pub(super) fn run(&mut self, suite: &Suite, place: Place) -> Result<Outcome> {
        match place {
            Place::Here => {
                let mut program = Command::new(&suite.program);
                program.args(&self.filter).current_dir(&suite.folder);
                program.env("CARGO_MANIFEST_DIR", &suite.folder);
                if suite.needs == Needs::LinuxGuests {
                    let assets = guest::assets(&Cache::open()).map_err(lab::failure)?;
                    let folder = assets.vmlinux.parent().unwrap_or(&assets.vmlinux);
                    program.env("SMARTVM_LAB_GUEST_DIR", folder);
                }
                // Cargo puts the programs of the workspace one folder above those of the tests.
                if let Some(built) = suite.program.ancestors().nth(2) {
                    program.env("SMARTVM_BIN", built.join("smartvm"));
                }
                let outcome = self.run_here(&suite.name, &mut program, libtest::counts)?;
                self.look_for_orphans(&suite.name);
                Ok(outcome)
            }
            Place::Lab => self.run_in_lab(suite),
        }
    }

    /// Lets cargo build and run the examples in the documentation.
    pub(super) fn run_doctests(&mut self) -> Result<Outcome> {
        let mut cargo = workspace::static_cargo();
        cargo.args(["test", "--quiet", "--doc", "--workspace", "--locked", "--target", workspace::TARGET]);
        self.run_here(&Suite::doctests().name, &mut cargo, libtest::sum_of_counts)
    }

    fn run_here(&mut self, name: &str, program: &mut Command, count: Count) -> Result<Outcome> {
        announce(name);
        let started = Instant::now();
        let ended = self.spawn(program).and_then(|child| self.wait(child))?;
        let time = started.elapsed();
        let output = self.take_output()?;
        let outcome = self.outcome(name, (&output, count(&output)), &ended, time);
        Ok(self.show(name, &output, outcome))
    }

    /// What the output and the end of a program mean.
    fn outcome(
        &mut self,
        name: &str,
        (output, counts): (&str, Option<Counts>),
        ended: &Ended,
        time: Duration,
    ) -> Outcome {
        match (counts, ended) {
            (_, Ended::Killed) => Outcome::Broken(format!("no end after {:.0} s", time.as_secs_f64())),
            (None, Ended::Well) => Outcome::Broken("it ended without a result".to_owned()),
            (None, Ended::Badly(how)) => Outcome::Broken(format!("it ended without a result: {how}")),
            (Some(counts), Ended::Badly(how)) if counts.failed == 0 => {
                Outcome::Broken(format!("no test failed, and yet: {how}"))
            }
            (Some(Counts { passed, failed, ignored }), _) => {
                self.failures.extend(libtest::failed(output).iter().map(|test| format!("{name}: {test}")));
                Outcome::Ran { passed, failed, ignored, time }
            }
        }
    }

    /// Prints the outcome, and the output of whatever did not end well.
    fn show(&self, name: &str, output: &str, outcome: Outcome) -> Outcome {
        if !matches!(outcome, Outcome::Ran { failed: 0, .. }) {
            println!("\n{}", output.trim_end());
            announce(name);
        }
        match &outcome {
            Outcome::Ran { passed, failed: 0, time, .. } => {
                println!("{passed} passed ({:.1} s)", time.as_secs_f64());
            }
            Outcome::Ran { passed, failed, .. } => println!("{passed} passed, {failed} FAILED"),
            Outcome::Broken(why) => println!("NOT RUN: {why}"),
        }
        outcome
    }

    /// Pushes the program into the lab and runs it there. The lab is brought up by the first one.
    fn run_in_lab(&mut self, suite: &Suite) -> Result<Outcome> {
        let up = match self.lab.take() {
            Some(lab) => lab,
            None => bring_up_lab()?,
        };
        let lab = self.lab.insert(up);
        announce(&suite.name);
        let mut env = vec![("SMARTVM_TEST_SEED".to_owned(), self.seed.to_string())];
        if self.full {
            env.push(("SMARTVM_TEST_FULL".to_owned(), "1".to_owned()));
        }
        let timeout = if self.full { PATIENCE_IN_FULL } else { PATIENCE };
        let options = TestOptions { timeout, env, arguments: self.filter.clone(), ..TestOptions::default() };
        let program = TestProgram { name: suite.name.clone(), program: suite.program.clone() };
        let mut output = Vec::new();
        let run =
            emulated::run_test(lab, &program, &options, &mut |_, bytes| output.extend_from_slice(bytes));
        let run = run.map_err(lab::failure)?;
        let output = String::from_utf8_lossy(&output).into_owned();
        // A retried program printed twice; what it said the last time counts.
        let counted = String::from_utf8_lossy(&run.outcome.stdout);
        let exit = &run.outcome.exit;
        self.left.extend(exit.survivors.iter().map(|process| format!("process {process} of {}", suite.name)));
        let ended = match (exit.timed_out, run.outcome.success()) {
            (true, _) => Ended::Killed,
            (_, true) => Ended::Well,
            (_, false) => Ended::Badly(format!("status {} in the lab", run.outcome.shell_status())),
        };
        let outcome =
            self.outcome(&suite.name, (&counted, libtest::counts(&counted)), &ended, run.outcome.took);
        if let Some(why) = run.retried {
            println!("\ntest: {why}");
            announce(&suite.name);
        }
        Ok(self.show(&suite.name, &output, outcome))
    }

    fn spawn(&self, program: &mut Command) -> Result<Child> {
        let told = |error| Failure::new("cannot set up the output of a test program").cause(error);
        let (stdout, stderr) =
            (self.output.try_clone().map_err(told)?, self.output.try_clone().map_err(told)?);
        program.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        program.env("TMPDIR", self.scratch.path());
        program.env("SMARTVM_RUNTIME_DIR", self.runtime.path());
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

    fn wait(&self, mut child: Child) -> Result<Ended> {
        let told = |error| Failure::new("cannot wait for a test program").cause(error);
        let patience = if self.full { PATIENCE_IN_FULL } else { PATIENCE };
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = child.try_wait().map_err(told)? {
                return match status {
                    _ if command::interrupted() => Err(Failure::interrupted()),
                    status if status.success() => Ok(Ended::Well),
                    status => Ok(Ended::Badly(status.to_string())),
                };
            }
            if Instant::now() > deadline {
                child.kill().and_then(|()| child.wait()).map_err(told)?;
                return Ok(Ended::Killed);
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
        let machines = machines::without_owner(self.runtime.path());
        self.left.extend(machines.iter().map(|path| format!("machine {}", path.display())));
        (self.failures, self.left)
    }
}

/// Begins the line that [`Session::show`] ends.
fn announce(name: &str) {
    print!("test: {name} … ");
    // A terminal that went away is no reason to stop.
    let _ = std::io::stdout().flush();
}

fn bring_up_lab() -> Result<Lab> {
    println!("test: bringing up the lab (seconds; minutes the first time, when it is built)");
    lab::up_unused()
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
        session
            .run_here("script", Command::new("sh").args(["-c", script]), libtest::counts)
            .expect("an outcome")
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
