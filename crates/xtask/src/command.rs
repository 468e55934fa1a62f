//! Starting programs, and ending well when the developer presses Ctrl-C.

use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::{Failure, Result};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on Ctrl-C is noted instead of ending this process at once.
///
/// The terminal sends SIGINT to the running child as well. The child ends by it, its status is read
/// here, and the command unwinds: temporary directories go away and the exit code is 130.
pub(crate) fn watch_for_interrupts() -> Result<()> {
    let flag = Arc::clone(INTERRUPTED.get_or_init(Arc::default));
    signal_hook::flag::register(signal_hook::consts::SIGINT, flag)
        .map(drop)
        .map_err(|error| Failure::new("cannot watch for Ctrl-C").cause(error))
}

/// Whether the developer pressed Ctrl-C.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Runs a program with this process's own terminal and waits for it.
///
/// # Errors
/// When it cannot be started, or when the developer pressed Ctrl-C meanwhile.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    let status = command.status().map_err(|error| not_started(command, &error))?;
    if interrupted() { Err(Failure::interrupted()) } else { Ok(status) }
}

/// Runs a program that must succeed and answers its stdout. Its stderr is shown only if it fails.
///
/// It has no stdin unless the command was given one.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| not_started(command, &error))?;
    if interrupted() {
        return Err(Failure::interrupted());
    }
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("`{}` failed", line(command))).cause(format!("{}\n{said}", output.status)))
}

/// The command line, as a developer would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Whether a program of this name is on PATH.
pub(crate) fn on_path(program: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join(program).is_file())
}

fn not_started(command: &Command, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot start `{}`", line(command))).cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_shows_its_command_line_and_its_words() {
        let failure = read(Command::new("ls").args(["--", "/nowhere-at-all"])).unwrap_err().to_string();
        assert!(failure.contains("`ls -- /nowhere-at-all` failed"), "{failure}");
        assert!(failure.contains("No such file"), "{failure}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let failure = status(&mut Command::new("no-such-program-here")).unwrap_err().to_string();
        assert!(failure.contains("cannot start `no-such-program-here`"), "{failure}");
        assert!(!on_path("no-such-program-here"));
    }
}
