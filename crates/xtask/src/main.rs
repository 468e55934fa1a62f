//! The developers' commands: `cargo xtask demo`, `test`, `check`, `lab`, `bench`, `leaks`, `setup`.
//!
//! Each command is one module; what they share is `failure` (how a command ends badly) and `command`
//! (how programs are started). No product code is here and no async runtime, so that the first
//! `cargo xtask` of a fresh clone compiles quickly.

mod command;
mod failure;
mod lab;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of smartvm", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run a command inside the emulated KVM host.
    Lab(lab::Arguments),
}

fn main() -> ExitCode {
    let ended = command::watch_for_interrupts().and_then(|()| match Arguments::parse().command {
        Task::Lab(arguments) => lab::run(arguments),
    });
    ended.unwrap_or_else(|failure: Failure| failure.report())
}
