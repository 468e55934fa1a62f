//! What Rust's test programs print at their end.

/// Tests counted by result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) ignored: usize,
}

/// What the last result line says. One before it is of a test that ran its own program once more. None when
/// there is no such line, as when the program died.
pub(super) fn counts(output: &str) -> Option<Counts> {
    results(output).next_back()
}

/// The sum of all result lines: doc tests print one for each crate.
pub(super) fn sum_of_counts(output: &str) -> Option<Counts> {
    results(output).reduce(|sum, one| Counts {
        passed: sum.passed + one.passed,
        failed: sum.failed + one.failed,
        ignored: sum.ignored + one.ignored,
    })
}

fn results(output: &str) -> impl DoubleEndedIterator<Item = Counts> {
    output.lines().filter_map(|line| line.strip_prefix("test result: ")).map(of_line)
}

/// The names of the tests that failed: `test NAME ... FAILED`.
pub(super) fn failed(output: &str) -> Vec<String> {
    let names = output.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    names.map(str::to_owned).collect()
}

/// Reads `ok. 3 passed; 1 failed; 0 ignored; …`.
fn of_line(line: &str) -> Counts {
    let words: Vec<&str> = line.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
    let number = |name| {
        let at = words.iter().position(|word| *word == name);
        at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok()).unwrap_or(0)
    };
    Counts { passed: number("passed"), failed: number("failed"), ignored: number("ignored") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_result_counts_and_those_of_doc_tests_are_summed() {
        let output = "running 2 tests\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\n";
        assert_eq!(counts(output), Some(Counts { passed: 12, failed: 3, ignored: 0 }));
        assert_eq!(sum_of_counts(output), Some(Counts { passed: 14, failed: 3, ignored: 1 }));
    }

    #[test]
    fn failed_tests_are_named() {
        let output = "test a::works ... ok\ntest b::breaks ... FAILED\n\nfailures:\n    b::breaks\n";
        assert_eq!(failed(output), ["b::breaks"]);
    }

    #[test]
    fn a_program_that_died_has_no_result() {
        assert_eq!(counts("running 2 tests\ntest a ... ok\n"), None);
    }
}
