//! Why a config file was refused, and what was probably meant.

use std::path::Path;

use smartvm_core::explain::{Code, Explain, Happened};

/// Why a config file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{problem}", Place(.line, .column), Field(.field))]
pub struct ConfigError {
    /// The line, from 1; 0 when it is not about the text.
    pub line: usize,
    /// The column in bytes, from 1: where reading stopped, right after the culprit. 0 as with `line`.
    pub column: usize,
    /// The field, as in `drives[0].path_on_host`; empty for the file as a whole.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub hint: Option<String>,
}

struct Place<'a>(&'a usize, &'a usize);

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => Ok(()),
            line => write!(f, "line {line}, column {}: ", self.1),
        }
    }
}

struct Field<'a>(&'a str);

impl std::fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{}: ", self.0) }
    }
}

impl ConfigError {
    pub(super) fn new(error: serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = error.path().to_string();
        // What has no name yet (the text ends there) is `?`, the file as a whole `.`.
        let field = path.trim_end_matches('?').trim_end_matches('.');
        Self::of(field.to_owned(), error.inner())
    }

    pub(super) fn at_top(error: &serde_json::Error) -> Self {
        Self::of(String::new(), error)
    }

    fn of(field: String, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let problem = text.strip_suffix(&place).unwrap_or(&text).to_owned();
        let hint = hint(&field, &problem, error.is_syntax() || error.is_eof());
        // The list of all names is long; the nearest is in the hint.
        let problem = problem.split(", expected one of").next().unwrap_or(&problem).to_owned();
        Self { line: error.line(), column: error.column(), field, problem, hint }
    }

    pub(super) fn folder_is_not_utf8(field: String, base: &Path) -> Self {
        Self {
            line: 0,
            column: 0,
            field,
            problem: format!("the folder {} is not UTF-8, which JSON cannot hold", base.display()),
            hint: Some("move the config file, or write absolute paths".to_owned()),
        }
    }
}

impl Explain for ConfigError {
    fn code(&self) -> Code {
        Code::InvalidConfig
    }

    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

fn hint(field: &str, problem: &str, is_syntax: bool) -> Option<String> {
    if is_syntax {
        return Some("the file must be one JSON object, without comments or trailing commas".to_owned());
    }
    let mut quoted = problem.split('`').skip(1).step_by(2);
    if problem.starts_with("unknown field") || problem.starts_with("unknown variant") {
        let wrong = quoted.next()?;
        let known: Vec<_> = quoted.collect();
        return Some(match nearest(wrong, known.iter().copied()) {
            Some(right) => format!("did you mean `{right}`?"),
            None => format!("known are {}", known.join(", ")),
        });
    }
    if problem == "missing field `drives`" {
        return Some("Firecracker wants the section even when there is none: `\"drives\": []`".to_owned());
    }
    if problem.starts_with("missing field") {
        let section = if field.is_empty() { "the file" } else { field };
        return Some(format!("add `{}` to {section}", quoted.next()?));
    }
    None
}

/// The one of `known` that differs least from `wrong`, if it is close.
pub(super) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.to_ascii_lowercase().replace('_', "-");
    let near = known.map(|name| (distance(&wrong, &name.to_ascii_lowercase().replace('_', "-")), name));
    let (distance, name) = near.min()?;
    (distance <= 2 || distance * 3 <= name.len()).then_some(name)
}

/// Edit distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    // Names are short; what is not cannot be near.
    if a.len().max(b.len()) > 64 {
        return usize::MAX / 4;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in [("", "", 0), ("a", "", 1), ("vcpus", "vcpu_count", 6), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn only_near_names_are_proposed() {
        let known = ["path_on_host", "is_read_only"];
        assert_eq!(nearest("path-on-host", known.into_iter()), Some("path_on_host"));
        assert_eq!(nearest("path_on_hst", known.into_iter()), Some("path_on_host"));
        assert_eq!(nearest("x", known.into_iter()), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), known.into_iter()), None);
    }
}
