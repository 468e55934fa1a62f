//! `smartvm run`: a machine with its console on this terminal or these pipes.
//!
//! ```text
//! front (this process)                       owner
//! terminal, keys, signals  ── control ──>   machine: start, stop ladder, release
//! standard input/output    <── data ──>     guest's serial console
//! ```
//! Through pipes the owner is a task of this process. On a terminal it is a second process, so that it can go on when
//! the shell gets its prompt back (detach); a front that dies without detaching is the owner's sign to stop.

mod front;
mod image;
mod keys;
mod marks;
mod owner;
mod relay;
mod streams;
mod wire;

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use smartvm::Config;
use smartvm::background::{Second, take_connections};
use smartvm::terminal::Terminal;

use crate::arguments::RunArguments;
use crate::exit::Exit;
use crate::failure;
use crate::report::{Printer, Report};
use front::Front;
pub(crate) use image::RunImageArguments;
use wire::{HostPath, RunRequest, What};

/// Runs a machine until it ends or is detached.
pub(crate) async fn run(arguments: RunArguments, verbose: u8, printer: &Printer) -> ExitCode {
    // Here, while every signal still ends us as usual: a FIFO or a terminal may take for ever, and the owner has another
    // standard input.
    let (what, _store) = match &arguments.config_file {
        Some(file) => match Config::load(file) {
            Ok(config) => (What::Config((&config).into()), None),
            Err(error) => return front::not_started(printer, arguments.id, Report::of(&error)).into(),
        },
        None => match image::spec(&arguments.image, printer).await {
            Ok(Some((spec, store))) if arguments.image.dry_run => {
                return match image::dry_run(&arguments, &spec, &store, printer).await {
                    Ok(exit) => exit,
                    Err(failure) => failure::end(Err(failure), printer),
                };
            }
            // The store's handle holds what was found until the owner uses it.
            Ok(Some((spec, store))) => (What::Image(Box::new(spec)), Some(store)),
            // One of both is there, by the rules of the command line.
            Ok(None) => {
                return front::not_started(printer, arguments.id, Report::usage("no image was given")).into();
            }
            Err(failure) => return front::not_started(printer, arguments.id, failure.into_report()).into(),
        },
    };
    let request = request(&arguments, what);
    // Looked at before the owner starts, so that both know the same settings to go back to.
    let terminal = Terminal::on_stdin();
    let connected = if terminal.is_some() || arguments.detach {
        let id = arguments.id.as_ref().map_or("", |id| id.as_str());
        let verbose = ["-v"].repeat(verbose.into());
        let words: Vec<&OsStr> = ["owner", id].into_iter().chain(verbose).map(OsStr::new).collect();
        Second::start(&words).map(|second| (second.control, second.data, Some(second.child)))
    } else {
        in_this_process()
    };
    let (control, data, child) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            let report = Report::plain("HOST", "cannot start the machine's owner", Exit::Internal);
            printer.error(&report.because(&error));
            return Exit::Internal.into();
        }
    };
    let front = Front::new(arguments, request, terminal, *printer, child);
    front.run(control, data).await.into()
}

/// The second process.
pub(crate) async fn own() -> ExitCode {
    // Standard error may be a file.
    let terminal = Terminal::of_parent();
    let Ok((control, data)) = take_connections() else {
        eprintln!("`smartvm owner` is started by `smartvm run` only");
        return ExitCode::from(2);
    };
    owner::own(control, data, owner::Place::OwnProcess(terminal)).await;
    ExitCode::SUCCESS
}

type Connected = (UnixStream, UnixStream, Option<std::process::Child>);

fn in_this_process() -> std::io::Result<Connected> {
    let (control, its_control) = UnixStream::pair()?;
    let (data, its_data) = UnixStream::pair()?;
    tokio::spawn(owner::own(its_control, its_data, owner::Place::FrontsProcess));
    Ok((control, data, None))
}

fn request(arguments: &RunArguments, what: What) -> RunRequest {
    // The VMM works in the machine's directory: what the user named must not move with it.
    let absolute =
        |path: &PathBuf| HostPath::from(&*std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    RunRequest {
        what,
        id: arguments.id.clone(),
        firecracker: arguments.firecracker.firecracker.as_ref().map(absolute),
        marks: arguments.mark.clone(),
        stop_timeout_s: arguments.stop_timeout,
        log_level: arguments.log_level,
        log_file: arguments.log_file.as_ref().map(absolute),
        boot_timer: arguments.boot_timer,
        metadata: arguments.metadata.as_ref().map(absolute),
        enable_pci: arguments.enable_pci,
        seccomp_filter: arguments.seccomp_filter.as_ref().map(absolute),
        no_seccomp: arguments.dangerously_disable_seccomp,
    }
}
