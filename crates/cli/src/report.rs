//! How errors are told: what failed, why, what to do, and the peer's last words.

use std::error::Error;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use smartvm::config::{Finding, InvalidConfig};
use smartvm::explain::Explain;

use crate::exit::Exit;

/// An error in full, as data: it may come from another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The stable code.
    pub(crate) code: String,
    /// What failed.
    pub(crate) error: String,
    /// Why, the nearest cause first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) causes: Vec<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// Whether the work may have happened: `never-started`, `failed`, `unknown`.
    pub(crate) happened: String,
    /// All problems of a config.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) problems: Vec<Problem>,
    /// The last lines of the peer's log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) log: Vec<String>,
    /// What could not be removed afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) left_behind: Vec<String>,
    /// The exit status it leads to.
    pub(crate) exit_status: u8,
}

/// One problem of a config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) code: String,
    pub(crate) severity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) column: Option<usize>,
    pub(crate) what: String,
    pub(crate) hint: String,
}

impl From<&Finding> for Problem {
    fn from(finding: &Finding) -> Self {
        Self {
            code: finding.code.to_owned(),
            severity: finding.severity.to_string(),
            path: finding.path.clone(),
            line: finding.at.map(|at| at.0),
            column: finding.at.map(|at| at.1),
            what: finding.what.clone(),
            hint: finding.hint.clone(),
        }
    }
}

impl Report {
    /// An error with its chain of causes.
    pub(crate) fn of(error: &dyn Explain) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self {
            code: error.code().to_string(),
            error: error.to_string(),
            causes,
            hint: error.hint(),
            happened: error.happened().as_str().to_owned(),
            problems: Vec::new(),
            log: error.last_words().to_vec(),
            left_behind: Vec::new(),
            exit_status: Exit::of(error.code()).status(),
        }
    }

    /// A config with problems.
    pub(crate) fn invalid_config(error: &InvalidConfig) -> Self {
        let problems = error.findings.iter().map(Problem::from).collect();
        // Each problem has its own.
        Self { problems, hint: None, ..Self::of(error) }
    }

    /// Something that has no type of its own.
    pub(crate) fn plain(code: &str, error: impl Into<String>, exit: Exit) -> Self {
        Self {
            code: code.to_owned(),
            error: error.into(),
            causes: Vec::new(),
            hint: None,
            happened: "failed".to_owned(),
            problems: Vec::new(),
            log: Vec::new(),
            left_behind: Vec::new(),
            exit_status: exit.status(),
        }
    }

    /// A command line that cannot be meant.
    pub(crate) fn usage(what: &str) -> Self {
        let happened = "never-started".to_owned();
        Self { exit_status: 2, happened, ..Self::plain("USAGE", what, Exit::Internal) }
    }

    /// With the cause added.
    pub(crate) fn because(mut self, cause: &dyn Error) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// With the exit status of another kind.
    pub(crate) fn with_exit(mut self, exit: Exit) -> Self {
        self.exit_status = exit.status();
        self
    }
}

/// Prints to standard error, as text or as JSON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    /// One JSON object a line.
    pub(crate) json: bool,
    /// With colours, in text.
    pub(crate) colour: bool,
}

/// How many problems of a config are told as text: more than a person reads at once.
const MOST_PROBLEMS: usize = 100;

impl Printer {
    /// Tells an error.
    pub(crate) fn error(&self, report: &Report) {
        let text = if self.json { json_line(report) } else { self.text(report) };
        // Nobody is left to tell when standard error is closed.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Tells problems that keep nothing from being done; in short where they would be in the way of a console.
    pub(crate) fn warnings(&self, problems: &[Problem], in_short: bool) {
        if self.json {
            return;
        }
        let short = |problem: &Problem| Problem { hint: String::new(), ..problem.clone() };
        let told = |problem| self.problem(&if in_short { short(problem) } else { problem.clone() }, "");
        let text: String = problems.iter().map(told).collect();
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Tells something that is no error; not in JSON.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "smartvm: {text}");
        }
    }

    fn text(&self, report: &Report) -> String {
        let mut text = labelled(&format!("{}: ", self.label("error", &report.code)), &report.error);
        for cause in &report.causes {
            text += &labelled("  cause: ", cause);
        }
        for problem in report.problems.iter().take(MOST_PROBLEMS) {
            text += &self.problem(problem, "  ");
        }
        if let more @ 1.. = report.problems.len().saturating_sub(MOST_PROBLEMS) {
            text += &labelled("  and: ", &format!("{more} more problems, all of which --json lists"));
        }
        if let Some(hint) = &report.hint {
            text += &labelled("   hint: ", hint);
        }
        for left in &report.left_behind {
            text += &labelled("   left: ", left);
        }
        for line in &report.log {
            text += &labelled("    log: ", line);
        }
        text
    }

    fn problem(&self, problem: &Problem, indent: &str) -> String {
        let place = match (&problem.path, problem.line, problem.column) {
            (Some(path), None, _) => format!("{path}: "),
            (Some(path), Some(line), column) => {
                format!("{path} (line {line}, column {}): ", column.unwrap_or_default())
            }
            (None, Some(line), column) => format!("line {line}, column {}: ", column.unwrap_or_default()),
            (None, None, _) => String::new(),
        };
        // A name in the config may hold anything.
        let what = on_one_line(&format!("{place}{}", problem.what));
        let mut text = format!("{indent}{}: {what}\n", self.label(&problem.severity, &problem.code));
        if !problem.hint.is_empty() {
            text += &labelled(&format!("{indent}  hint: "), &problem.hint);
        }
        text
    }

    fn label(&self, severity: &str, code: &str) -> String {
        let (on, off) = match (self.colour, severity) {
            (false, _) => ("", ""),
            (true, "warning") => ("\x1b[1;33m", "\x1b[0m"),
            (true, _) => ("\x1b[1;31m", "\x1b[0m"),
        };
        format!("{on}{severity}[{code}]{off}")
    }
}

/// Text that comes from elsewhere, on one line: no name of a file has a hold on the terminal.
pub(crate) fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Text after a label; what comes from elsewhere may hold line ends and control characters.
fn labelled(label: &str, text: &str) -> String {
    let clean: String =
        text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect();
    let indent = format!("\n{}", " ".repeat(label.len()));
    format!("{label}{}\n", clean.trim_end().replace('\n', &indent))
}

/// One line of JSON. What we print has no map with other keys than text, so it cannot fail.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Printer = Printer { json: false, colour: false };

    #[test]
    fn an_error_is_told_with_cause_hint_and_log() {
        let mut report = Report::plain("PROCESS_EXITED", "machine `a` did not start", Exit::StartFailed);
        report.causes = vec!["Firecracker exited".into()];
        report.hint = Some("do\nthis".into());
        report.log = vec!["last \x1b[1mline".into()];
        let expected = "error[PROCESS_EXITED]: machine `a` did not start\n  cause: Firecracker exited\n   \
                        hint: do\n         this\n    log: last \u{fffd}[1mline\n";
        assert_eq!(PLAIN.text(&report), expected);
    }

    #[test]
    fn more_problems_than_a_person_reads_are_counted() {
        let problem = Problem {
            code: "BAD_MAC".into(),
            severity: "error".into(),
            path: None,
            line: None,
            column: None,
            what: "no".into(),
            hint: String::new(),
        };
        let mut report = Report::plain("INVALID_CONFIG", "no", Exit::InvalidConfig);
        report.problems = vec![problem; MOST_PROBLEMS + 3];
        let text = PLAIN.text(&report);
        assert_eq!(text.lines().count(), 1 + MOST_PROBLEMS + 1);
        assert!(text.ends_with("  and: 3 more problems, all of which --json lists\n"), "{text}");
    }

    #[test]
    fn colours_are_only_for_terminals() {
        let report = Report::plain("HOST", "no", Exit::Internal);
        assert!(!PLAIN.text(&report).contains('\x1b'));
        assert!(
            Printer { colour: true, ..PLAIN }.text(&report).starts_with("\x1b[1;31merror[HOST]\x1b[0m: no")
        );
    }
}
