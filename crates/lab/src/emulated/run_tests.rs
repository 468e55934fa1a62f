//! Test executables, run in the lab as `cargo test` runs them on the host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{BIN, Command, GUEST, Input, Lab, Outcome, Stream};
use crate::EMULATED;
use crate::fault::Result;

/// A test executable, linked statically.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestProgram {
    /// What it is called in reports.
    pub name: String,
    /// The file, on the host.
    pub program: PathBuf,
}

/// How to run test executables.
#[derive(Debug, Clone)]
pub struct TestOptions {
    /// Tests of one executable that run at once.
    pub threads: usize,
    /// For one executable.
    pub timeout: Duration,
    /// More variables than [`environment`] has.
    pub env: Vec<(String, String)>,
    /// More arguments, such as a filter.
    pub arguments: Vec<String>,
}

impl Default for TestOptions {
    /// Two threads, as many as the lab has processors; ten minutes.
    fn default() -> Self {
        Self { threads: 2, timeout: Duration::from_secs(600), env: Vec::new(), arguments: Vec::new() }
    }
}

/// What became of the executables.
#[derive(Debug, Clone)]
pub struct TestReport {
    /// One for each, in order.
    pub runs: Vec<TestRun>,
}

impl TestReport {
    /// Whether all passed and left no process.
    pub fn passed(&self) -> bool {
        self.runs.iter().all(TestRun::passed)
    }
}

/// What became of one executable.
#[derive(Debug, Clone)]
pub struct TestRun {
    /// Its name.
    pub name: String,
    /// How it ended, at the last try.
    pub outcome: Outcome,
    /// Why it was run a second time: the emulator lost a guest.
    pub retried: Option<String>,
}

impl TestRun {
    /// Whether it exited with 0 and left no process.
    pub fn passed(&self) -> bool {
        self.outcome.success() && self.outcome.exit.survivors.is_empty()
    }
}

/// What tests in the lab find in their environment.
pub fn environment() -> Vec<(String, String)> {
    [
        ("SMARTVM_FIRECRACKER", format!("{BIN}/firecracker")),
        ("SMARTVM_JAILER", format!("{BIN}/jailer")),
        ("SMARTVM_LAB_GUEST_DIR", GUEST.to_owned()),
        (EMULATED, "1".to_owned()),
        ("RUST_BACKTRACE", "1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Firecracker's words when the processor gave up on a guest. Under emulation that may be the emulator's fault.
const LOST_GUEST: &str = "KVM_EXIT_SHUTDOWN";

/// Pushes and runs test executables, one after the other; `sink` gets their output.
///
/// # Errors
/// When the lab fails. Tests that fail are in the report.
pub fn run_tests(
    lab: &Lab,
    programs: &[TestProgram],
    options: &TestOptions,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<TestReport> {
    let runs = programs.iter().map(|program| run_test(lab, program, options, sink)).collect::<Result<_>>()?;
    Ok(TestReport { runs })
}

/// Pushes and runs one test executable. If it failed and a guest was lost to the emulator
/// (`KVM_EXIT_SHUTDOWN` in its output), it is run once more, and the report says so.
///
/// # Errors
/// When the lab fails. Tests that fail are in the report.
pub fn run_test(
    lab: &Lab,
    test: &TestProgram,
    options: &TestOptions,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<TestRun> {
    let file: String = test.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = format!("/opt/smartvm/tests/{file}");
    let mut files = vec![(test.program.clone(), path.clone())];
    // Tests know the product's program by the path that it was built at (`CARGO_BIN_EXE_smartvm`), so it lies
    // at that path in the lab too.
    let product = product_beside(&test.program);
    if let Some((program, at)) = product.as_ref().and_then(|program| Some((program, program.to_str()?))) {
        files.push((program.clone(), at.to_owned()));
    }
    lab.push_changed(&files)?;
    let mut command = Command::new(path)
        .args([format!("--test-threads={}", options.threads)])
        .args(options.arguments.clone())
        .timeout(options.timeout);
    for (name, value) in environment().into_iter().chain(options.env.clone()) {
        command = command.env(name, value);
    }
    if let Some(product) = &product {
        command = command.env("SMARTVM_BIN", product.display().to_string());
    }
    let mut outcome = lab.run_with(&command, Input::None, sink)?;
    let mut retried = None;
    if !outcome.success() && lost_guest(&outcome) {
        let why = format!("{}: a guest ended in {LOST_GUEST}, run once more", test.name);
        lab.log.note(&why);
        sink(Stream::Stderr, format!("lab: {why}\n").as_bytes());
        retried = Some(why);
        outcome = lab.run_with(&command, Input::None, sink)?;
    }
    Ok(TestRun { name: test.name.clone(), outcome, retried })
}

/// The workspace's `smartvm` that cargo built together with this test: `debug/smartvm` for `debug/deps/test-1`.
fn product_beside(test: &Path) -> Option<PathBuf> {
    let program = test.parent()?.parent()?.join("smartvm");
    program.is_file().then_some(program)
}

fn lost_guest(outcome: &Outcome) -> bool {
    [&outcome.stdout, &outcome.stderr].iter().any(|text| String::from_utf8_lossy(text).contains(LOST_GUEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_lies_above_the_tests() {
        let dir = tempfile::tempdir().unwrap();
        let test = dir.path().join("deps/linux_run-0123");
        assert_eq!(product_beside(&test), None);
        std::fs::write(dir.path().join("smartvm"), "").unwrap();
        assert_eq!(product_beside(&test), Some(dir.path().join("smartvm")));
    }

    #[test]
    fn a_lost_guest_shows_in_either_stream() {
        let outcome = |stderr: &str| Outcome {
            exit: crate::wire::Exit::default(),
            stdout: b"test a ... FAILED".to_vec(),
            stderr: stderr.into(),
            took: Duration::ZERO,
        };
        assert!(lost_guest(&outcome("[anonymous-instance:fc_vcpu 0] Received KVM_EXIT_SHUTDOWN signal")));
        assert!(!lost_guest(&outcome("exit 1")));
    }
}
