//! `cargo xtask fuzz`: reads bytes of nobody, for a minute each, and keeps what crashes.
//!
//! The targets are functions of `smartvm-fuzz`, built with the coverage marks of the stable compiler's LLVM and with
//! libFuzzer; no nightly toolchain is needed. A run starts from the kept corpus (`crates/fuzz/corpus`) and from what
//! earlier runs on this machine found (`target/fuzz/corpus`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::command;
use crate::failure::{Failure, Result};
use crate::workspace;

/// What is fuzzed, longest runs of interest first.
const TARGETS: [&str; 4] = ["tar-merge", "bzimage", "modules-dep", "manifest"];

/// How long each target is fuzzed by a test run: in bounded samples, and in full.
pub(crate) const SAMPLE: Duration = Duration::from_secs(60);
pub(crate) const IN_FULL: Duration = Duration::from_secs(600);

/// What cargo-fuzz passes as well: where code was, what was compared with what.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks --cfg fuzzing \
    -Ctarget-feature=-crt-static";

/// An input may take this long, in seconds, and this much memory, in MiB.
const PATIENCE: u32 = 20;
const MEMORY: u32 = 1024;

/// The longest inputs, in bytes: a few dozen entries of an archive.
const LONGEST: u32 = 64 << 10;

/// What `cargo xtask fuzz` was asked.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these: `tar-merge`, `bzimage`, `modules-dep`, `manifest`.
    target: Vec<String>,
    /// How long each is fuzzed.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// The seed of what is drawn at random; printed.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Keep the smallest set of inputs that reaches all that was reached, in `crates/fuzz/corpus`.
    #[arg(long)]
    keep: bool,
}

/// Fuzzes; the exit code is 1 when something crashed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(unknown) = arguments.target.iter().find(|name| !TARGETS.contains(&name.as_str())) {
        let known = TARGETS.join(", ");
        return Err(
            Failure::new(format!("there is no fuzz target `{unknown}`")).hint(format!("there are: {known}"))
        );
    }
    let wanted =
        |name: &&str| arguments.target.is_empty() || arguments.target.iter().any(|target| target == name);
    let targets: Vec<&str> = TARGETS.into_iter().filter(wanted).collect();
    let seed = arguments.seed.unwrap_or_else(super::test::random_seed);
    println!("fuzz: building (minutes the first time)");
    let fuzzer = Fuzzer::build()?;
    println!("fuzz: seed {seed}, {} s each", arguments.seconds);
    let ended = fuzzer.run(&targets, Duration::from_secs(arguments.seconds), seed)?;
    for (target, outcome) in &ended {
        match outcome {
            Ok(summary) => println!("fuzz: {target}: {summary}"),
            Err(failure) => println!("fuzz: {target}: {failure}"),
        }
    }
    if arguments.keep {
        targets.iter().try_for_each(|target| fuzzer.keep(target))?;
    }
    Ok(if ended.iter().all(|(_, outcome)| outcome.is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fuzzes all targets for a test run, and answers how each ended.
pub(crate) fn all(time: Duration, seed: u64) -> Result<Vec<Ended>> {
    Fuzzer::build()?.run(&TARGETS, time, seed)
}

/// A target, and what came of it: a summary, or the crash with what to do about it.
pub(crate) type Ended = (&'static str, std::result::Result<String, String>);

/// The built programs and their folders.
struct Fuzzer {
    programs: PathBuf,
    /// What earlier runs found.
    grown: PathBuf,
    crashes: PathBuf,
}

impl Fuzzer {
    fn build() -> Result<Self> {
        let target_dir = smartvm_lab::workspace::target_dir().join("fuzz");
        let mut cargo = workspace::cargo();
        cargo.args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "smartvm-fuzz",
            "--features",
            "libfuzzer",
            "--bins",
        ]);
        cargo.args(["--profile", "fuzz", "--target", workspace::TARGET, "--target-dir"]).arg(&target_dir);
        cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", FLAGS).env_remove("RUSTFLAGS");
        if !command::status(&mut cargo)?.success() {
            return Err(Failure::new("the fuzz targets do not build")
                .hint("libFuzzer is C++: a C++ compiler is needed (`apt-get install g++`)"));
        }
        Ok(Self {
            programs: target_dir.join(workspace::TARGET).join("fuzz"),
            grown: target_dir.join("corpus"),
            crashes: target_dir.join("crashes"),
        })
    }

    /// Runs the targets, two at a time.
    fn run(&self, targets: &[&'static str], time: Duration, seed: u64) -> Result<Vec<Ended>> {
        let ahead = Mutex::new(targets.iter().copied());
        let next = || ahead.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let work = || {
            let mut ended = Vec::new();
            while let Some(target) = next() {
                ended.push((target, self.run_one(target, time, seed)?));
            }
            Ok(ended)
        };
        let mut ended: Vec<Ended> = Vec::new();
        let halves: Vec<Result<Vec<Ended>>> = std::thread::scope(|scope| {
            let workers = [scope.spawn(work), scope.spawn(work)];
            workers
                .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .into()
        });
        for half in halves {
            ended.extend(half?);
        }
        Ok(ended)
    }

    fn run_one(
        &self,
        target: &str,
        time: Duration,
        seed: u64,
    ) -> Result<std::result::Result<String, String>> {
        let told = |error| Failure::new("cannot set up the folders of the fuzzer").cause(error);
        let grown = self.grown.join(target);
        fs::create_dir_all(&grown).and_then(|()| fs::create_dir_all(&self.crashes)).map_err(told)?;
        let log = self.crashes.join(format!("{target}.log"));
        let output = File::create(&log).map_err(told)?;
        let mut program = Command::new(self.programs.join(target));
        program.arg(&grown).arg(kept(target));
        program.arg(format!("-max_total_time={}", time.as_secs()));
        program.arg(format!("-seed={}", seed as u32)).arg(format!("-max_len={LONGEST}"));
        program.arg(format!("-timeout={PATIENCE}")).arg(format!("-rss_limit_mb={MEMORY}"));
        program.arg(format!("-artifact_prefix={}/{target}-", self.crashes.display()));
        program.args(["-print_final_stats=1", "-close_fd_mask=1"]);
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let status = command::status(&mut program)?;
        let said = fs::read(&log).map_err(told)?;
        let said = String::from_utf8_lossy(&said);
        if status.success() {
            let stat = |name: &str| {
                let line = said.lines().find_map(|line| line.strip_prefix(name));
                line.map_or("?", str::trim).to_owned()
            };
            let runs = stat("stat::number_of_executed_units:");
            let speed = stat("stat::average_exec_per_sec:");
            return Ok(Ok(format!("no crash in {runs} runs ({speed} per second)")));
        }
        let written = said.lines().rev().find_map(|line| line.split_once("Test unit written to "));
        let reproducer =
            written.map_or_else(|| "none was written".to_owned(), |(_, path)| path.trim().to_owned());
        let last: Vec<&str> = said.lines().rev().take(30).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Ok(Err(format!(
            "CRASHED ({status})\n{}\nreproducer: {reproducer}\nrun it with: {} {reproducer}",
            last.join("\n"),
            program.get_program().to_string_lossy(),
        )))
    }

    /// Replaces the kept corpus by a small one that reaches as much of the code as all that is known. What was put there
    /// by hand, under a name that says what it is, stays.
    fn keep(&self, target: &str) -> Result<()> {
        let told = |error| Failure::new("cannot replace the kept corpus").cause(error);
        let smallest = self.grown.join(format!("{target}-smallest"));
        let _ = fs::remove_dir_all(&smallest);
        fs::create_dir_all(&smallest).map_err(told)?;
        let mut merge = Command::new(self.programs.join(target));
        // Only by which code was reached: by how often as well, thousands of inputs would be worth keeping.
        merge.args(["-set_cover_merge=1", "-use_counters=0", "-use_cmp=0", "-max_len=12288"]);
        merge.arg(&smallest).arg(kept(target));
        merge.arg(self.grown.join(target)).stdout(Stdio::null()).stderr(Stdio::null());
        if !command::status(&mut merge)?.success() {
            return Err(Failure::new(format!("the corpus of {target} could not be made smaller")));
        }
        let to = kept(target);
        for file in fs::read_dir(&to).map_err(told)? {
            let file = file.map_err(told)?;
            // libFuzzer names inputs by their SHA-1.
            if file.file_name().len() == 40 {
                fs::remove_file(file.path()).map_err(told)?;
            }
        }
        for file in fs::read_dir(&smallest).map_err(told)? {
            let file = file.map_err(told)?;
            fs::copy(file.path(), to.join(file.file_name())).map_err(told)?;
        }
        println!("fuzz: {target}: kept {}", to.display());
        fs::remove_dir_all(&smallest).map_err(told)
    }
}

fn kept(target: &str) -> PathBuf {
    workspace::root().join(Path::new("crates/fuzz/corpus")).join(target)
}
