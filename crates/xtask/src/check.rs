//! `cargo xtask check`: everything that is judged without running the product.
//!
//! The quick judgements come first. All of them run, also after one has failed, so that one run shows
//! everything there is to mend.

mod edges;
mod licences;
mod spdx;
mod tidy;

use std::process::ExitCode;

use serde_json::Value;

use crate::command;
use crate::failure::{Failure, Result};
use crate::workspace;

/// What is wrong, one complete sentence each. Empty: nothing is.
type Findings = Vec<String>;

/// Judges the workspace; the exit code is 1 when anything is wrong.
pub(crate) fn run() -> Result<ExitCode> {
    let metadata = workspace::metadata()?;
    let mut failed = Vec::new();
    let mut judge = |name: &'static str, findings: Findings| {
        println!("check {name}: {}", if findings.is_empty() { "ok" } else { "FAILED" });
        findings.iter().for_each(|finding| println!("  {finding}"));
        if !findings.is_empty() {
            failed.push(name);
        }
    };
    judge("format", cargo(&["fmt", "--all", "--check"], None)?);
    judge("tidy", tidy::check(&workspace::root())?);
    judge("dependency direction", edges::check(&metadata, &architecture()?));
    judge("licences", licences::check(&metadata));
    judge("clippy", clippy()?);
    judge("docs", cargo(&["doc", "--workspace", "--no-deps", "--locked"], Some("-D warnings"))?);
    if failed.is_empty() {
        println!("check: all is well");
        return Ok(ExitCode::SUCCESS);
    }
    println!("check: {} failed", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn clippy() -> Result<Findings> {
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], None)
}

/// Runs cargo, which prints its own findings.
fn cargo(arguments: &[&str], rustdoc_flags: Option<&str>) -> Result<Findings> {
    let mut cargo = workspace::cargo();
    cargo.args(arguments);
    if let Some(flags) = rustdoc_flags {
        cargo.env("RUSTDOCFLAGS", flags);
    }
    let status = command::status(&mut cargo)?;
    Ok(if status.success() { Vec::new() } else { vec![format!("`cargo {}`: {status}", arguments.join(" "))] })
}

fn architecture() -> Result<String> {
    let path = workspace::root().join("ARCHITECTURE.md");
    std::fs::read_to_string(&path)
        .map_err(|error| Failure::new(format!("cannot read {}", path.display())).cause(error))
}

/// A text field of a package in the output of `cargo metadata`; empty when it is absent.
fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}
