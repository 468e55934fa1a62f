//! `cargo xtask lab`: a command inside the emulated KVM host, with the fresh build of the workspace.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use smartvm_lab::emulated::{self, Command, Input, Lab, Options, Stream};
use smartvm_lab::fault::Fault;

use crate::command;
use crate::failure::{Failure, Result};
use crate::setup::{self, Need};

/// What `cargo xtask lab` was asked.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// End the command, with all its processes, after so many seconds (exit code 124).
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Boot the lab anew instead of using the one that is up or saved.
    #[arg(long)]
    fresh: bool,
    /// End the lab afterwards (alone: end the one that is up). It ends by itself ten minutes after its last use.
    #[arg(long)]
    down: bool,
    /// Open a shell in the lab.
    #[arg(long, conflicts_with = "command")]
    shell: bool,
    /// Do not build the workspace and bring it in; use what the lab has.
    #[arg(long)]
    no_build: bool,
    /// Let processes that the command leaves behind live on in the lab.
    #[arg(long)]
    keep_processes: bool,
    /// The command and its arguments. Without one, the lab is only brought up.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it and answers the exit code of the command inside.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    if arguments.down && arguments.command.is_empty() && !arguments.shell {
        let was_up = emulated::down(&emulated::default_dir()).map_err(failure)?;
        println!("lab: {}", if was_up { "ended" } else { "none was up" });
        return Ok(ExitCode::SUCCESS);
    }
    let lab = up(arguments.fresh)?;
    if !arguments.no_build {
        lab.push_workspace_build().map_err(failure)?;
    }
    let code = match command_of(&arguments) {
        Some(command) => execute(&lab, &command, &arguments)?,
        None => {
            eprintln!("lab: up ({:?}), log {}", lab.origin(), lab.log().display());
            0
        }
    };
    if arguments.down {
        lab.down();
    }
    Ok(ExitCode::from(code))
}

/// Brings the lab up for a developer's command, with what it needs on this machine. It stays up for the next.
pub(crate) fn up(fresh: bool) -> Result<Lab> {
    bring_up(Options { fresh, ..Options::default() })
}

/// Brings up a lab that nobody has used, for tests. It ends with this process at the latest.
pub(crate) fn up_unused() -> Result<Lab> {
    bring_up(Options { keep: None, ..Options::default() })
}

fn bring_up(options: Options) -> Result<Lab> {
    setup::run(Need::Lab)?;
    Lab::up(&Options { interrupted: command::interrupted, ..options }).map_err(failure)
}

/// The lab's error as one of ours.
pub(crate) fn failure(fault: Fault) -> Failure {
    if command::interrupted() { Failure::interrupted() } else { Failure::new(fault.report()) }
}

fn command_of(arguments: &Arguments) -> Option<Command> {
    let time = Duration::from_secs(arguments.timeout);
    if arguments.shell {
        // `script` gives the shell a terminal of its own.
        let (rows, columns) =
            tcgetwinsize(std::io::stdin()).map_or((24, 80), |size| (size.ws_row, size.ws_col));
        let line = format!("stty rows {rows} cols {columns}; exec bash -l");
        let shell = Command::new("script").args(["-qec", &line, "/dev/null"]);
        let term = std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
        return Some(shell.env("TERM", term).timeout(Duration::from_secs(12 * 3600)));
    }
    let (program, rest) = arguments.command.split_first()?;
    let command = Command::new(program).args(rest.iter().cloned()).timeout(time);
    Some(if arguments.keep_processes { command.keep_survivors() } else { command })
}

fn execute(lab: &Lab, command: &Command, arguments: &Arguments) -> Result<u8> {
    let stdin = std::io::stdin();
    let _raw = (arguments.shell && stdin.is_terminal()).then(RawTerminal::enter).flatten();
    let outcome = lab.run_with(command, Input::Inherit, &mut |stream, bytes| {
        // A reader that went away is no reason to end the command.
        let _ = match stream {
            Stream::Stdout => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
            Stream::Stderr => std::io::stderr().write_all(bytes),
        };
    });
    let outcome = outcome.map_err(failure)?;
    if !outcome.exit.survivors.is_empty() {
        let now = if arguments.keep_processes { "still there" } else { "now ended" };
        eprintln!("lab: the command left processes behind, {now}: {}", outcome.exit.survivors.join(", "));
    }
    if outcome.exit.timed_out {
        eprintln!("lab: ended after its time; log {}", lab.log().display());
    }
    Ok(outcome.shell_status())
}

/// The terminal passes every key to the lab, until dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
