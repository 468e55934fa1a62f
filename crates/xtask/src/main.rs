//! The developers' commands: `cargo xtask demo`, `test`, `check`, `lab`, `bench`, `fuzz`, `leaks`, `setup`.
//!
//! Each command is one module; what they share is `failure` (how a command ends badly) and `command`
//! (how programs are started). No product code is here and no async runtime, so that the first
//! `cargo xtask` of a fresh clone compiles quickly.

mod bench;
mod check;
mod command;
mod demo;
mod failure;
mod fuzz;
mod kvm;
mod lab;
mod leaks;
mod setup;
mod test;
mod workspace;

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
    /// Boot Debian's stock kernel under real Firecracker, show when what happened, stop it.
    Demo,
    /// Find or install what the other commands need; they do this themselves.
    Setup,
    /// Run every test where it can run: on this machine's KVM or in the lab.
    Test(test::Arguments),
    /// Judge the sources: format, lints, docs, dependency direction, licences, habits.
    Check,
    /// Show what smartvm or its tests left behind on this machine.
    Leaks(leaks::Arguments),
    /// Measure against a floor that is measured in the same run.
    Bench(bench::Arguments),
    /// Feed what reads bytes of strangers with bytes of nobody.
    Fuzz(fuzz::Arguments),
    /// Run a command inside the emulated KVM host.
    Lab(lab::Arguments),
}

fn main() -> ExitCode {
    let ended = command::watch_for_interrupts().and_then(|()| match Arguments::parse().command {
        Task::Demo => demo::run(),
        Task::Setup => setup::command(),
        Task::Test(arguments) => test::run(arguments),
        Task::Leaks(arguments) => leaks::run(&arguments),
        Task::Check => check::run(),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Lab(arguments) => lab::run(arguments),
    });
    ended.unwrap_or_else(|failure: Failure| failure.report())
}
