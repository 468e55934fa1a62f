//! `cargo xtask bench NAME`: builds the benches as the product is built and runs one of them.
//!
//! Each bench measures its floor in the same run and writes its figures to `target/bench/NAME.json`.

use std::process::{Command, ExitCode};

use crate::command;
use crate::failure::{Failure, Result};
use crate::setup::{self, Need};
use crate::workspace;

/// What `cargo xtask bench` was asked.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The bench: `start`, `kernel`, `image`.
    name: String,
    /// Handed to the bench, as `--runs N`; `--help` tells what it takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the bench; the exit code is the bench's own.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binaries = setup::run(Need::Firecracker)?;
    let program = format!("bench-{}", arguments.name);
    println!("bench: building {program} in release (a minute or two the first time)");
    let built = workspace::build_static("smartvm-bench", &program, true).map_err(|failure| {
        failure.hint(format!("benches are `crates/bench/src/bin/*.rs`: is there a {program}?"))
    })?;
    let mut bench = Command::new(&built);
    bench.args(&arguments.arguments).current_dir(workspace::root());
    bench.env("SMARTVM_FIRECRACKER", &binaries.firecracker).env("SMARTVM_JAILER", &binaries.jailer);
    let status = command::status(&mut bench)?;
    match status.code().map(u8::try_from) {
        Some(Ok(code)) => Ok(ExitCode::from(code)),
        _ => Err(Failure::new(format!("`{program}` did not end by itself")).cause(status)),
    }
}
