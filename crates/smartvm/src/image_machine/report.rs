//! Guest init's last word, found in what the console says.
//!
//! The console is the guest's: any program in it can print such a line. The last one counts, and it is believed no more
//! than the guest itself.

use smartvm_guest_api::boot::{MAX_REPORT, REPORT_MARK, Report};
use smartvm_host::OutputReader;

/// What is kept of a line that does not end, in bytes: a report at its end fits.
const LINE: usize = 2 * MAX_REPORT;

/// What may follow a report: the kernel's own words when it restarts, in bytes.
const EPILOGUE: usize = 512;

/// Looks for the report in a console.
#[derive(Debug, Default)]
pub struct ReportFinder {
    line: Vec<u8>,
    found: Option<Report>,
}

impl ReportFinder {
    /// Takes the next bytes of the console.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..end]);
            self.end_line();
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes);
    }

    /// The console has ended. The last report in it.
    pub fn finish(mut self) -> Option<Report> {
        self.end_line();
        self.found
    }

    /// Follows a console to its end.
    pub async fn follow(mut console: OutputReader) -> Option<Report> {
        let mut finder = Self::default();
        while let Some(chunk) = console.next().await {
            finder.push(&chunk.bytes);
        }
        finder.finish()
    }

    fn extend(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(LINE)..];
        let over = (self.line.len() + bytes.len()).saturating_sub(LINE);
        self.line.drain(..over.min(self.line.len()));
        self.line.extend_from_slice(bytes);
    }

    fn end_line(&mut self) {
        if let Some(report) = Report::parse(&self.line) {
            self.found = Some(report);
        }
        self.line.clear();
    }
}

/// Keeps the last report out of a console that people or programs read. All other bytes pass through, in order; what
/// looks like a report waits for what follows.
#[derive(Debug, Default)]
pub struct ReportFilter {
    held: Vec<u8>,
}

impl ReportFilter {
    /// Takes the next bytes of the console, and gives those that are to be shown now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let mut shown = Vec::new();
        loop {
            let mark = REPORT_MARK.as_bytes();
            let Some(at) = self.held.windows(mark.len()).position(|window| window == mark) else {
                // The mark may be complete with the next bytes.
                let most = self.held.len().min(mark.len() - 1);
                let kept = (0..=most).rev().find(|&kept| self.held.ends_with(&mark[..kept])).unwrap_or(0);
                shown.extend(self.held.drain(..self.held.len() - kept));
                return shown;
            };
            shown.extend(self.held.drain(..at));
            match judge(&self.held) {
                Verdict::Wait => return shown,
                Verdict::Show(count) => shown.extend(self.held.drain(..count)),
            }
        }
    }

    /// The console has ended: what is still to be shown.
    pub fn finish(self) -> Vec<u8> {
        let end = self.held.iter().position(|byte| *byte == b'\n').unwrap_or(self.held.len());
        if Report::parse(&self.held[..end]).is_some() { Vec::new() } else { self.held }
    }
}

enum Verdict {
    /// It may be the last report.
    Wait,
    /// It is none: so many bytes of it can go.
    Show(usize),
}

/// `held` begins with the mark.
fn judge(held: &[u8]) -> Verdict {
    let Some(end) = held.iter().position(|byte| *byte == b'\n') else {
        return if held.len() <= MAX_REPORT { Verdict::Wait } else { Verdict::Show(REPORT_MARK.len()) };
    };
    let rest = &held[end + 1..];
    let is_last = Report::parse(&held[..end]).is_some()
        && rest.len() <= EPILOGUE
        && rest.split(|byte| *byte == b'\n').all(is_kernels);
    if is_last { Verdict::Wait } else { Verdict::Show(end + 1) }
}

/// Whether a line, or the beginning of one, can be of the kernel's: `[    1.234567] reboot: Restarting system`.
fn is_kernels(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    line.is_empty() || line.starts_with(b"[")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smartvm_guest_api::boot::Ended;

    use super::*;

    const SEVEN: &str = "smartvm-guest: exit code=7\r\n";

    fn found(pieces: &[&str]) -> Option<Report> {
        let mut finder = ReportFinder::default();
        pieces.iter().for_each(|piece| finder.push(piece.as_bytes()));
        finder.finish()
    }

    fn shown(pieces: &[&str]) -> String {
        let mut filter = ReportFilter::default();
        let mut shown: Vec<u8> = pieces.iter().flat_map(|piece| filter.push(piece.as_bytes())).collect();
        shown.extend(filter.finish());
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn the_last_report_counts() {
        let seven = Some(Report::Exit(Ended::Code(7)));
        assert_eq!(found(&["hello\r\n", "smartvm-gue", "st: exit code=7\r\n[ 1.0] reboot: x\r\n"]), seven);
        assert_eq!(found(&["smartvm-guest: exit code=1\n", "unfinishedsmartvm-guest: exit code=7"]), seven);
        assert_eq!(found(&[&"x".repeat(10 * LINE), SEVEN]), seven);
        assert_eq!(found(&["smartvm-guest: exit code=\n7\n"]), None);
    }

    #[test]
    fn the_last_report_is_not_shown_and_all_else_is() {
        assert_eq!(
            shown(&["hello\r\nunfinished", SEVEN, "[    1.0] reboot: Restarting system\r\n"]),
            "hello\r\nunfinished"
        );
        assert_eq!(shown(&["smartvm-", "guest: ", "exit code=7"]), "");
        let forged = [SEVEN, "more\n", SEVEN];
        assert_eq!(shown(&forged), format!("{SEVEN}more\n"));
        for text in ["smartvm-guest: hello\n", "smartvm-gue", "smartvm-guest: ", "[smartvm-guest: x", ""] {
            assert_eq!(shown(&[text]), text);
        }
    }

    #[test]
    fn what_is_no_report_is_shown_at_once() {
        let mut filter = ReportFilter::default();
        assert_eq!(filter.push(b"$ "), b"$ ");
        assert_eq!(filter.push(b"smartvm-g"), b"");
        assert_eq!(filter.push(b"x"), b"smartvm-gx");
        assert_eq!(filter.push(&[SEVEN.as_bytes(), b"$ "].concat()), [SEVEN.as_bytes(), b"$ "].concat());
        let endless = [REPORT_MARK, &"x".repeat(MAX_REPORT)].concat();
        assert_eq!(filter.push(endless.as_bytes()), endless.as_bytes());
    }

    proptest! {
        #[test]
        fn only_the_last_report_is_ever_missing(text in "(smartvm-guest: (exit code=[0-9]\r?\n|x)?|[a-z\n\\[ -]{0,9}){0,8}", cuts: Vec<u8>) {
            let mut filter = ReportFilter::default();
            let mut shown = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, later) = rest.split_at(usize::from(cut).min(rest.len()));
                shown.extend(filter.push(piece));
                rest = later;
            }
            shown.extend(filter.push(rest));
            let held = filter.held.clone();
            shown.extend(filter.finish());
            prop_assert!(text.as_bytes().starts_with(&shown));
            let missing = &text.as_bytes()[shown.len()..];
            prop_assert!(missing.is_empty() || missing == held && missing.starts_with(REPORT_MARK.as_bytes()));
        }
    }
}
