//! Licence expressions as crates write them, judged against the licences we accept.
//!
//! `A OR B` (or the old `A/B`) needs one accepted side, `A AND B` needs both, `A WITH exception` is one
//! licence of its own name, brackets group. Whatever else is found is not accepted.

/// The licences that a dependency may have.
const ACCEPTED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "NCSA",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];

/// Whether the licence expression lets us use the work.
///
/// # Errors
/// When the text is not an expression of the form above.
pub(super) fn accepted(expression: &str) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = Words { left: spaced.split_whitespace().collect(), at: 0 };
    let verdict = words.any_of()?;
    match words.peek() {
        None => Ok(verdict),
        Some(word) => Err(format!("`{word}` was not expected")),
    }
}

struct Words<'a> {
    left: Vec<&'a str>,
    at: usize,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.left.get(self.at).copied()
    }

    /// Steps over the word if it is the next one.
    fn take(&mut self, word: &str) -> bool {
        let next = self.peek() == Some(word);
        self.at += usize::from(next);
        next
    }

    fn any_of(&mut self) -> Result<bool, String> {
        let mut verdict = self.all_of()?;
        while self.take("OR") {
            // Not `||`: the right side has to be read in any case.
            verdict |= self.all_of()?;
        }
        Ok(verdict)
    }

    fn all_of(&mut self) -> Result<bool, String> {
        let mut verdict = self.one()?;
        while self.take("AND") {
            verdict &= self.one()?;
        }
        Ok(verdict)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.take("(") {
            let verdict = self.any_of()?;
            return if self.take(")") { Ok(verdict) } else { Err("a `)` is missing".to_owned()) };
        }
        let licence = self.name()?;
        if self.take("WITH") {
            let exception = self.name()?;
            return Ok(ACCEPTED.contains(&format!("{licence} WITH {exception}").as_str()));
        }
        Ok(ACCEPTED.contains(&licence))
    }

    fn name(&mut self) -> Result<&'a str, String> {
        match self.peek() {
            None => Err("a licence is missing at the end".to_owned()),
            Some(word @ ("OR" | "AND" | "WITH" | "(" | ")")) => {
                Err(format!("a licence is missing before `{word}`"))
            }
            Some(word) => {
                self.at += 1;
                Ok(word)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::accepted;

    #[test]
    fn one_accepted_side_of_an_or_is_enough() {
        assert_eq!(accepted("GPL-3.0-only OR MIT"), Ok(true));
        assert_eq!(accepted("MIT/Apache-2.0"), Ok(true));
        assert_eq!(accepted("GPL-3.0-only OR LGPL-2.1-only"), Ok(false));
    }

    #[test]
    fn an_and_needs_both_sides_and_binds_tighter_than_or() {
        assert_eq!(accepted("MIT AND GPL-3.0-only"), Ok(false));
        assert_eq!(accepted("(MIT OR Apache-2.0) AND Unicode-3.0"), Ok(true));
        assert_eq!(accepted("GPL-3.0-only AND MIT OR ISC"), Ok(true));
        assert_eq!(accepted("ISC OR GPL-3.0-only AND MIT"), Ok(true));
        assert_eq!(accepted("(ISC OR GPL-3.0-only) AND GPL-2.0-only"), Ok(false));
    }

    #[test]
    fn an_exception_makes_a_licence_of_its_own() {
        assert_eq!(accepted("Apache-2.0 WITH LLVM-exception OR GPL-3.0-only"), Ok(true));
        assert_eq!(accepted("Apache-2.0 WITH Unheard-of-exception"), Ok(false));
    }

    #[test]
    fn what_is_not_an_expression_is_an_error() {
        for broken in ["", "MIT OR", "OR MIT", "(MIT", "MIT)", "MIT Apache-2.0", "MIT WITH"] {
            assert!(accepted(broken).is_err(), "{broken}");
        }
    }
}
