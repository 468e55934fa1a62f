//! `cargo xtask setup`: what developers need on a fresh Debian or Ubuntu, found or installed.
//!
//! Every other command that needs it calls this first. When all is there it does nothing, says nothing
//! and touches no network. When something is missing it says what and why before it installs.

mod firecracker;
mod packages;

pub(crate) use firecracker::Binaries;

use std::process::ExitCode;

use crate::failure::Result;

/// Which part of the machine a command needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Firecracker and the jailer.
    Firecracker,
    /// Those, and what building guests and the emulated KVM host takes.
    Lab,
}

/// Makes sure that what is needed is here; answers where Firecracker and the jailer are.
pub(crate) fn run(need: Need) -> Result<Binaries> {
    if need == Need::Lab {
        packages::install_missing(&packages::for_the_lab())?;
    }
    firecracker::find_or_fetch()
}

/// `cargo xtask setup`: everything, and then a word on where things are.
pub(crate) fn command() -> Result<ExitCode> {
    let binaries = run(Need::Lab)?;
    println!("setup: all is here: {}, {}", binaries.firecracker.display(), binaries.jailer.display());
    Ok(ExitCode::SUCCESS)
}
