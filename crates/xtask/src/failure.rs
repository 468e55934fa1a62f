//! How a developer command ends badly: what failed, why, and what to do about it.

use std::fmt;
use std::process::ExitCode;

/// The result of everything here that can fail.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// The exit code of a command that the developer interrupted: 128 + SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

/// One failure, made for being printed and ending the command.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    cause: Option<String>,
    hint: Option<String>,
    exit: u8,
}

impl Failure {
    /// A failure that says what could not be done.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), cause: None, hint: None, exit: 1 }
    }

    /// The developer pressed Ctrl-C.
    pub(crate) fn interrupted() -> Self {
        Self { exit: INTERRUPTED, ..Self::new("interrupted") }
    }

    /// Adds why it failed: the error of the system, or the last output of a program.
    pub(crate) fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// Adds what the developer can do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints the failure to stderr and answers the exit code it stands for.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("{self}");
        ExitCode::from(self.exit)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        for (label, text) in [("cause", &self.cause), ("hint", &self.hint)] {
            if let Some(text) = text {
                write!(f, "\n{label:>5}: {}", text.trim_end().replace('\n', "\n       "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_gets_its_own_line() {
        let failure = Failure::new("cannot link").cause("no cc\nno ld\n").hint("install gcc");
        assert_eq!(failure.to_string(), "error: cannot link\ncause: no cc\n       no ld\n hint: install gcc");
    }
}
