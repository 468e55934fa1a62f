//! Firecracker's log lines.
//!
//! Four forms, by `show_level` and `show_log_origin`:
//! ```text
//! 2026-11-24T06:45:50.818986773 [vm-1:main] Running Firecracker v1.12.1
//! 2026-11-24T06:45:50.864010350 [vm-1:main:INFO] Running Firecracker v1.12.1
//! 2026-11-24T06:45:50.895102931 [vm-1:main:src/firecracker/src/main.rs:315] Running Firecracker v1.12.1
//! 2026-11-24T06:45:50.936277176 [vm-1:main:INFO:src/firecracker/src/main.rs:315] Running Firecracker v1.12.1
//! ```
//! A message may go on over further lines, which have none of it.

use crate::api::LogLevel;

/// One line of the log, borrowed from its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// Local time as written, with nanoseconds and without a zone.
    pub timestamp: &'a str,
    /// The VMM's `--id`.
    pub instance_id: &'a str,
    /// The name of the thread: `main`, `fc_api`, `fc_vcpu 0`.
    pub thread: &'a str,
    /// The level, with `show_level`.
    pub level: Option<LogLevel>,
    /// Source file and line, with `show_log_origin`.
    pub origin: Option<Origin<'a>>,
    /// The message.
    pub message: &'a str,
}

/// A source file of Firecracker and a line in it.
pub type Origin<'a> = (&'a str, u32);

impl<'a> LogLine<'a> {
    /// Reads one line, without its line feed. `None`: it is not the first line of a message, but a further
    /// line of it, or no log at all.
    pub fn parse(line: &'a str) -> Option<Self> {
        let (timestamp, rest) = line.trim_end_matches(['\r', '\n']).split_once(" [")?;
        if !is_timestamp(timestamp) {
            return None;
        }
        let (head, message) = rest.split_once(']')?;
        let mut parts = head.splitn(3, ':');
        let (instance_id, thread, more) = (parts.next()?, parts.next()?, parts.next());
        let (level, origin) = match more {
            None => (None, None),
            Some(more) => level_and_origin(more)?,
        };
        let message = message.strip_prefix(' ').unwrap_or(message);
        Some(Self { timestamp, instance_id, thread, level, origin, message })
    }
}

/// `2026-11-24T06:45:50.818986773`, digits and separators in their places.
fn is_timestamp(text: &str) -> bool {
    let form = b"dddd-dd-ddTdd:dd:dd.";
    let bytes = text.as_bytes();
    bytes.len() > form.len()
        && bytes.iter().enumerate().all(|(index, byte)| match form.get(index) {
            Some(b'd') | None => byte.is_ascii_digit(),
            Some(separator) => byte == separator,
        })
}

/// What follows the thread's name: a level, an origin, or both.
fn level_and_origin(text: &str) -> Option<(Option<LogLevel>, Option<Origin<'_>>)> {
    if let Some(level) = LogLevel::parse(text) {
        return Some((Some(level), None));
    }
    let (level, origin) = match text.split_once(':') {
        Some((first, rest)) if LogLevel::parse(first).is_some() => (LogLevel::parse(first), rest),
        _ => (None, text),
    };
    let (file, line) = origin.rsplit_once(':')?;
    Some((level, Some((file, line.parse().ok()?))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As written by Firecracker 1.12.1.
    #[test]
    fn every_form_is_read() {
        let origin = Some(("src/firecracker/src/main.rs", 315));
        for (head, level, origin) in [
            ("vm-1:main", None, None),
            ("vm-1:main:INFO", Some(LogLevel::Info), None),
            ("vm-1:main:src/firecracker/src/main.rs:315", None, origin),
            ("vm-1:main:INFO:src/firecracker/src/main.rs:315", Some(LogLevel::Info), origin),
        ] {
            let line = format!("2026-11-24T06:45:50.818986773 [{head}] Running [x] a:b\n");
            let expected = LogLine {
                timestamp: "2026-11-24T06:45:50.818986773",
                instance_id: "vm-1",
                thread: "main",
                level,
                origin,
                message: "Running [x] a:b",
            };
            assert_eq!(LogLine::parse(&line), Some(expected), "{line}");
        }
    }

    #[test]
    fn threads_with_a_blank_and_empty_messages_are_read() {
        let line = LogLine::parse("2026-11-24T06:45:50.1 [a:fc_vcpu 0:WARN]").unwrap();
        assert_eq!((line.thread, line.level, line.message), ("fc_vcpu 0", Some(LogLevel::Warning), ""));
    }

    #[test]
    fn what_is_no_log_line_is_none() {
        for line in [
            "",
            "Error: ParseArguments(UnexpectedArgument(\"bogus\"))",
            "[    0.000000] Linux version 6.1",
            "2026-11-24 [a:b] x",
            "2026-11-24T06:45:50.1 [a] x",
            "2026-11-24T06:45:50.1 [a:b:c] x",
            "2026-11-24T06:45:50.1 [a:b:c:d] x",
            "2026-11-24T06:45:50.1 [a:b",
        ] {
            assert_eq!(LogLine::parse(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "\\PC{0,60}", tail in "[\\[\\]:a-zA-Z0-9 ]{0,40}") {
            let _ = LogLine::parse(&line);
            let _ = LogLine::parse(&format!("2026-11-24T06:45:50.1 [{tail}"));
        }
    }
}
