//! The command `smartvm`: arguments in, text or JSON out.
//!
//! * [`arguments`]: what can be asked
//! * [`exit`]: how it ends, as a status
//! * [`report`]: how errors are told
//! * [`run`]: a machine with its console on this terminal
//! * [`setup`]: from a fresh host to one that runs machines
//! * [`store`], [`firecracker`], [`kernel`], [`image`]: what machines boot from, and what runs them
//! * [`progress`], [`table`]: how work and data are drawn
//! * [`failure`]: what a command comes to
//! * [`commands`]: everything else

mod arguments;
mod commands;
mod exit;
mod failure;
mod firecracker;
mod image;
mod kernel;
mod progress;
mod report;
mod run;
mod setup;
mod store;
mod table;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

use arguments::{Arguments, Command};
use exit::Exit;
use report::{Printer, Report};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return wrong_usage(&error),
    };
    log_to_stderr(arguments.verbose);
    if let Err(error) = smartvm::raise_open_files() {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
    let printer = Printer { json: arguments.json, colour: colour(std::io::stderr().is_terminal()) };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let report = Report::plain("HOST", "cannot start the async runtime", Exit::Internal);
            printer.error(&report.because(&error));
            return Exit::Internal.into();
        }
    };
    smartvm::prompt_thread();
    let exit = runtime.block_on(dispatch(arguments.command, arguments.verbose, &printer));
    // A thread that waits for a key or for a slow reader must not keep us.
    runtime.shutdown_background();
    exit
}

/// Help and version too come this way.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
    if error.use_stderr() && json {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let (what, how) = text.split_once("\n\n").unwrap_or((text, ""));
        let mut report = Report::usage(what.trim_end());
        report.hint = Some(how.trim()).filter(|how| !how.is_empty()).map(str::to_owned);
        Printer { json, colour: false }.error(&report);
    } else if let Err(error) = error.print()
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Exit::Internal.into();
    }
    u8::try_from(error.exit_code()).unwrap_or(2).into()
}

async fn dispatch(command: Command, verbose: u8, printer: &Printer) -> ExitCode {
    match command {
        Command::Run(arguments) => run::run(*arguments, verbose, printer).await,
        Command::Owner { .. } => run::own().await,
        Command::Check(arguments) => commands::check(arguments, printer).await.into(),
        Command::Doctor(arguments) => commands::doctor(arguments, printer).await.into(),
        Command::Version(arguments) => commands::version(arguments, printer).await.into(),
        Command::Ps => commands::ps(printer).into(),
        Command::Stop(arguments) => commands::stop(arguments, printer).await.into(),
        Command::Gc(arguments) => commands::gc(arguments, printer).await.into(),
        Command::Setup(arguments) => failure::end(setup::run(arguments, printer).await, printer),
        Command::Store(arguments) => failure::end(store::run(arguments, printer).await, printer),
        Command::Firecracker(arguments) => failure::end(firecracker::run(arguments, printer).await, printer),
        Command::Kernel(arguments) => failure::end(kernel::run(arguments, printer).await, printer),
        Command::Image(arguments) => failure::end(image::run(arguments, printer).await, printer),
        Command::Completions { shell } => commands::completions(shell, printer).into(),
    }
}

/// Whether to colour what goes to a stream.
fn colour(is_terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::ERROR,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(colour(std::io::stderr().is_terminal()))
        .with_writer(|| Stderr { terminal: std::io::stderr().is_terminal() })
        .init();
}

/// Standard error. A terminal may be raw just now, with the guest's console on it: then a line end needs its return.
struct Stderr {
    terminal: bool,
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A log that cannot be written is nobody's error: told of it, `tracing` would panic where it wants to say so.
        let _ = match self.terminal {
            true => io::stderr().write_all(String::from_utf8_lossy(bytes).replace('\n', "\r\n").as_bytes()),
            false => io::stderr().write_all(bytes),
        };
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
