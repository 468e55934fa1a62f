//! What ends guest init before the image's process runs.

use std::fmt::Display;

use smartvm_guest_api::boot::{Report, Step};

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    /// What failed and why.
    pub(crate) what: String,
    /// What to do; may be empty.
    pub(crate) hint: String,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(step: Step, what: impl Into<String>) -> Self {
        Self { step, what: what.into(), hint: String::new() }
    }

    pub(crate) fn because(step: Step, what: impl Display, why: impl Display) -> Self {
        Self::new(step, format!("{what}: {why}"))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    pub(crate) fn report(self) -> Report {
        Report::Failed { step: self.step, what: self.what, hint: self.hint }
    }
}

/// Says what was being done when an error came.
pub(crate) trait While<T> {
    fn during(self, step: Step, what: impl Display) -> Result<T>;
}

impl<T, E: Display> While<T> for std::result::Result<T, E> {
    fn during(self, step: Step, what: impl Display) -> Result<T> {
        self.map_err(|why| Failure::because(step, what, why))
    }
}
