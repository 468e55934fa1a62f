//! `cargo xtask bench image`: what making root file systems and importing kernels costs.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use smartvm_bench::figure::{Target, keep, table};
use smartvm_bench::{image, kernel};

/// What making root file systems and importing kernels costs.
#[derive(Parser)]
struct Arguments {
    /// Interleaved runs of ours and of the copy; those of `mke2fs` are a fifth of it.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// End with status 1 when a target is missed.
    #[arg(long)]
    enforce: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program runs as a process of its own.
#[derive(Subcommand)]
enum Part {
    /// Makes an image of one archive.
    Make { layer: PathBuf, image: PathBuf },
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    if let Some(Part::Make { layer, image }) = arguments.part {
        println!("{}", serde_json::to_string(&image::make(&layer, &image)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    let runs = arguments.runs.max(1);
    let program = std::env::current_exe()?;
    let mut figures = image::figures(runs, &|| Command::new(&program))?;
    figures.extend(kernel::figures(runs)?);
    let targets: Vec<Target> = image::TARGETS.into_iter().chain(kernel::TARGETS).collect();
    println!("{}", table(&figures, &targets));
    let kept = keep(&smartvm_lab::workspace::target_dir(), "image", &figures)?;
    println!("kept in {}", kept.display());
    let is_missed = figures
        .iter()
        .any(|figure| targets.iter().any(|target| target.figure == figure.figure && !(target.met)(figure)));
    Ok(if arguments.enforce && is_missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
