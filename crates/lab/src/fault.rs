//! The one error of the lab: what was being done, why it failed, what to do.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use smartvm_core::explain::{Code, Explain};

/// What this crate answers.
pub type Result<T> = std::result::Result<T, Fault>;

/// Something of the lab that failed.
///
/// Its text says what was attempted; the cause is its source.
#[derive(Debug)]
pub struct Fault {
    doing: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    hint: Option<String>,
    log: Option<PathBuf>,
    last_words: Vec<String>,
}

impl Fault {
    /// A failure without a deeper cause.
    pub fn new(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), source: None, hint: None, log: None, last_words: Vec::new() }
    }

    /// A failure with the error below it.
    pub fn because(doing: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..Self::new(doing) }
    }

    /// The same, with what the user can do.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, with the log file that tells the whole story.
    pub fn with_log(mut self, log: &Path) -> Self {
        self.log.get_or_insert_with(|| log.to_owned());
        self
    }

    /// The same, with the last lines of a program's output.
    pub fn with_last_words(mut self, text: &str) -> Self {
        let lines: Vec<_> = text.lines().collect();
        self.last_words =
            lines[lines.len().saturating_sub(20)..].iter().map(|line| (*line).to_owned()).collect();
        self
    }

    /// The log file of the run that failed.
    pub fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// The whole story as text of several lines: the failure, its causes, last words, log and hint.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        for line in &self.last_words {
            text.push_str(&format!("\n  | {line}"));
        }
        if let Some(log) = &self.log {
            text.push_str(&format!("\nlog: {}", log.display()));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\nhint: {hint}"));
        }
        text
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl Explain for Fault {
    fn code(&self) -> Code {
        Code::Host
    }

    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }

    fn last_words(&self) -> &[String] {
        &self.last_words
    }
}

/// Names the file that an I/O error was about.
pub(crate) trait AtPath<T> {
    /// `doing` is a verb phrase (`cannot read`), the path follows it.
    fn at(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> AtPath<T> for std::result::Result<T, E> {
    fn at(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Fault::because(format!("{doing} {}", path.display()), error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_tells_cause_last_words_and_hint_in_this_order() {
        let fault = Fault::because("cannot boot", io::Error::other("no disk"))
            .with_last_words("one\ntwo")
            .with_log(Path::new("/l"))
            .with_hint("plug it in");
        assert_eq!(fault.report(), "cannot boot: no disk\n  | one\n  | two\nlog: /l\nhint: plug it in");
    }
}
