//! `cargo xtask bench kernel`: what importing a kernel costs. `bench image` has the same figures among others.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use smartvm_bench::figure::{keep, table};
use smartvm_bench::kernel::{TARGETS, figures};

/// What importing a kernel costs.
#[derive(Parser)]
struct Arguments {
    /// Imports of each kernel.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// End with status 1 when a target is missed.
    #[arg(long)]
    enforce: bool,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let figures = figures(arguments.runs.max(1))?;
    println!("{}", table(&figures, &TARGETS));
    let kept = keep(&smartvm_lab::workspace::target_dir(), "kernel", &figures)?;
    println!("kept in {}", kept.display());
    let is_missed = figures
        .iter()
        .any(|figure| TARGETS.iter().any(|target| target.figure == figure.figure && !(target.met)(figure)));
    Ok(if arguments.enforce && is_missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
