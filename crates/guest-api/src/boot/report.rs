//! What guest init tells the host at its end.
//!
//! One line on the console, in a fixed form. The image's process writes to the same console, so it can forge such a
//! line: a host may show a report and end by it, but must not trust it with more than the guest's own word.

use std::fmt;

/// Longest report in bytes, without the end of its line.
pub const MAX_REPORT: usize = 1024;

/// Before every report. A host that shows the console may want to hold back what begins with it.
pub const MARK: &str = "smartvm-guest: ";
const HINT: &str = "; hint: ";
/// Longest text of a failure and longest hint, in bytes.
const MAX_TEXT: usize = 480;

/// How a guest ended, by the word of its init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The image's process ran, and ended so.
    Exit(Ended),
    /// It could not be run.
    Failed {
        /// Where init was.
        step: Step,
        /// What failed and why.
        what: String,
        /// What to do about it; may be empty.
        hint: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Ended {
    /// The status as a shell has it: 128 and more for a signal.
    pub const fn shell_status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 | signal,
        }
    }
}

/// The steps of guest init, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Mounting `/proc`, `/sys` and `/dev`.
    Prepare,
    /// Reading the orders.
    Orders,
    /// Loading kernel modules.
    Modules,
    /// Waiting for the image's disk.
    FindRoot,
    /// Mounting the image.
    MountRoot,
    /// Waiting for the machine's own disk.
    FindOverlay,
    /// Mounting the machine's own disk, or memory in its place.
    MountOverlay,
    /// Laying it over the image.
    LayOverlay,
    /// Making the image the root.
    SwitchRoot,
    /// Mounting what a process expects: `/dev/pts`, `/dev/shm` and the like.
    Mounts,
    /// Host name and loopback.
    Network,
    /// Looking up the user.
    User,
    /// Entering the working directory.
    Workdir,
    /// Opening the console for the process.
    Console,
    /// Starting the program.
    Exec,
    /// A bug in guest init.
    Panic,
}

const STEPS: [(Step, &str); 16] = [
    (Step::Prepare, "prepare"),
    (Step::Orders, "orders"),
    (Step::Modules, "modules"),
    (Step::FindRoot, "find-root"),
    (Step::MountRoot, "mount-root"),
    (Step::FindOverlay, "find-overlay"),
    (Step::MountOverlay, "mount-overlay"),
    (Step::LayOverlay, "lay-overlay"),
    (Step::SwitchRoot, "switch-root"),
    (Step::Mounts, "mounts"),
    (Step::Network, "network"),
    (Step::User, "user"),
    (Step::Workdir, "workdir"),
    (Step::Console, "console"),
    (Step::Exec, "exec"),
    (Step::Panic, "panic"),
];

impl Step {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        STEPS.iter().find(|(step, _)| *step == self).map_or("panic", |(_, name)| name)
    }

    /// The step of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        STEPS.iter().find(|(_, known)| *known == name).map(|(step, _)| *step)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Report {
    /// The line, without its end: printable, at most [`MAX_REPORT`] bytes. Texts that are longer are cut.
    pub fn encode(&self) -> String {
        match self {
            Self::Exit(Ended::Code(code)) => format!("{MARK}exit code={code}"),
            Self::Exit(Ended::Signal(signal)) => format!("{MARK}exit signal={signal}"),
            Self::Failed { step, what, hint } => {
                let (what, hint) = (one_line(what), one_line(hint));
                let hint = if hint.is_empty() { hint } else { [HINT, &hint].concat() };
                format!("{MARK}failed step={step}: {what}{hint}")
            }
        }
    }

    /// The report in a line of the console, which may begin with something else: what a program printed last
    /// without an end of line. `None` when there is none.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let from = line.windows(MARK.len()).rposition(|window| window == MARK.as_bytes())?;
        let report = line[from..].trim_ascii_end();
        if report.len() > MAX_REPORT {
            return None;
        }
        let report = std::str::from_utf8(report).ok()?.strip_prefix(MARK)?;
        if report.chars().any(char::is_control) {
            return None;
        }
        if let Some(code) = report.strip_prefix("exit code=") {
            return Some(Self::Exit(Ended::Code(code.parse().ok()?)));
        }
        if let Some(signal) = report.strip_prefix("exit signal=") {
            let signal = signal.parse().ok().filter(|signal| (1..=64).contains(signal))?;
            return Some(Self::Exit(Ended::Signal(signal)));
        }
        let (step, text) = report.strip_prefix("failed step=")?.split_once(": ")?;
        let (what, hint) = text.split_once(HINT).unwrap_or((text, ""));
        Some(Self::Failed { step: Step::of_name(step)?, what: what.to_owned(), hint: hint.to_owned() })
    }
}

/// The text without what would end the line, move a cursor, or look like [`HINT`]; cut to [`MAX_TEXT`] bytes.
fn one_line(text: &str) -> String {
    let printable: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    let text = printable.replace(HINT, ", hint: ").replace(MARK, "smartvm-guest, ");
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failed(what: &str, hint: &str) -> Report {
        Report::Failed { step: Step::MountRoot, what: what.into(), hint: hint.into() }
    }

    #[test]
    fn the_lines_are_these() {
        assert_eq!(Report::Exit(Ended::Code(7)).encode(), "smartvm-guest: exit code=7");
        assert_eq!(Report::Exit(Ended::Signal(9)).encode(), "smartvm-guest: exit signal=9");
        assert_eq!(failed("no: such", "").encode(), "smartvm-guest: failed step=mount-root: no: such");
        assert_eq!(
            failed("a\nb", "try c").encode(),
            "smartvm-guest: failed step=mount-root: a b; hint: try c"
        );
    }

    #[test]
    fn every_step_has_one_name() {
        for (step, name) in STEPS {
            assert_eq!((step.name(), Step::of_name(name)), (name, Some(step)));
        }
    }

    #[test]
    fn a_report_is_found_after_other_output() {
        let line = b"\xff$ smartvm-guest: exit code=1 smartvm-guest: exit code=3\r\n";
        assert_eq!(Report::parse(line), Some(Report::Exit(Ended::Code(3))));
    }

    #[test]
    fn other_lines_are_no_reports() {
        let long = format!("smartvm-guest: failed step=exec: {}", "x".repeat(MAX_REPORT));
        for line in [
            "",
            "smartvm-guest: ",
            "smartvm-guest: exit code=256",
            "smartvm-guest: exit signal=0",
            "smartvm-guest: failed step=nosuch: x",
            "smartvm-guest: failed step=exec: \u{1b}[2J",
            &long,
        ] {
            assert_eq!(Report::parse(line.as_bytes()), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn an_encoded_report_is_one_bounded_line_and_reads_the_same(what in "\\PC{0,600}|[\\x00-\\x7f]{0,40}", hint in "\\PC{0,600}") {
            let line = failed(&what, &hint).encode();
            prop_assert!(line.len() <= MAX_REPORT && !line.chars().any(char::is_control), "{line:?}");
            let read = Report::parse(line.as_bytes()).expect("a report");
            prop_assert_eq!(read.encode(), line);
        }

        #[test]
        fn any_bytes_are_read(line: Vec<u8>) {
            let _ = Report::parse(&line);
        }
    }
}
