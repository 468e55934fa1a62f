//! `cargo xtask leaks`: what smartvm or its tests left on this machine without a living owner.
//!
//! Only what bears our marks is looked at: Firecrackers from our cache, folders and mounts under our
//! names. What somebody still uses is no leak: other tests may run on this machine at the same time.

mod folders;
pub(crate) mod machines;
mod mounts;
pub(crate) mod process;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::failure::Result;

/// What `cargo xtask leaks` was asked.
#[derive(Default, clap::Args)]
pub(crate) struct Arguments {
    /// Remove what was found.
    #[arg(long)]
    fix: bool,
}

/// One thing left behind.
#[derive(Debug)]
struct Leak {
    what: String,
    remedy: Remedy,
}

#[derive(Debug)]
enum Remedy {
    Kill(process::Process),
    Remove(PathBuf),
    Unmount(PathBuf),
}

/// Each looks for one kind of thing. Processes come first and mounts before folders: removing goes in
/// the same order.
const PROBES: &[fn() -> Vec<Leak>] = &[process::leaks, mounts::leaks, machines::leaks, folders::leaks];

/// Prints `leaks: none` or each thing that was left; the exit code is 1 when one remains.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut remaining = 0;
    let mut found = 0;
    for leak in PROBES.iter().flat_map(|probe| probe()) {
        found += 1;
        let fate = if arguments.fix { leak.fix() } else { Err("left".to_owned()) };
        remaining += usize::from(fate.is_err());
        println!("leaks: {} ({})", leak.what, fate.map_or_else(|why| why, |()| "removed".to_owned()));
    }
    if found == 0 {
        println!("leaks: none");
    }
    Ok(if remaining == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Leak {
    fn fix(&self) -> std::result::Result<(), String> {
        let told = |error: std::io::Error| format!("cannot be removed: {error}");
        match &self.remedy {
            Remedy::Kill(process) => {
                if process.kill() {
                    Ok(())
                } else {
                    Err("cannot be killed".to_owned())
                }
            }
            Remedy::Unmount(point) => mounts::unmount(point).map_err(told),
            Remedy::Remove(path) if path.is_dir() => std::fs::remove_dir_all(path).map_err(told),
            Remedy::Remove(path) => std::fs::remove_file(path).map_err(told),
        }
    }
}
