//! `cargo xtask lab`: a command inside the emulated KVM host.

use std::process::ExitCode;

use crate::failure::{Failure, Result};

/// What `cargo xtask lab` was asked.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Runs it and answers the exit code of the command inside.
pub(crate) fn run(_: Arguments) -> Result<ExitCode> {
    Err(Failure::new("the emulated KVM host is not built yet"))
}
