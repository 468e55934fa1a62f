//! Static builds of this workspace's programs, to run in the lab.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::fault::{Fault, Result};

/// One triple for host, lab and guests, named so that build scripts and macros are built apart.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The workspace's folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Cargo's output directory of the workspace, where the lab's own files are as well.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).unwrap_or_else(|| root().join("target"))
}

/// Builds programs small: for the inside of emulated machines.
pub(crate) fn build_small(package: &str, bins: &[&str]) -> Result<Vec<PathBuf>> {
    let mut arguments = vec!["build", "--profile", "lab", "--package", package];
    arguments.extend(bins.iter().flat_map(|bin| ["--bin", bin]));
    let artifacts = cargo(&arguments)?;
    pick(&artifacts, bins)
}

/// Builds programs of the workspace like `cargo build`, statically linked. Answers their files in order.
///
/// # Errors
/// When the build fails or makes no such program.
pub fn build(package: &str, bins: &[&str]) -> Result<Vec<PathBuf>> {
    let mut arguments = vec!["build", "--package", package];
    arguments.extend(bins.iter().flat_map(|bin| ["--bin", bin]));
    let artifacts = cargo(&arguments)?;
    pick(&artifacts, bins)
}

/// A program that cargo built.
#[derive(Debug, PartialEq, Eq)]
struct Artifact {
    name: String,
    path: PathBuf,
}

fn pick(artifacts: &[Artifact], bins: &[&str]) -> Result<Vec<PathBuf>> {
    bins.iter()
        .map(|bin| {
            artifacts
                .iter()
                .find(|artifact| artifact.name == *bin)
                .map(|artifact| artifact.path.clone())
                .ok_or_else(|| Fault::new(format!("cargo built no program {bin}")))
        })
        .collect()
}

fn cargo(arguments: &[&str]) -> Result<Vec<Artifact>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let (command, rest) = arguments.split_first().unwrap_or((&"build", &[]));
    let output = Command::new(cargo)
        .arg(command)
        .args(rest)
        .args(["--quiet", "--target", TARGET, "--message-format", "json-render-diagnostics"])
        // As `cargo xtask test` builds, so that nothing is compiled twice.
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Fault::because("cannot start cargo", error))?;
    if !output.status.success() {
        return Err(Fault::new(format!("cargo {} failed ({})", arguments.join(" "), output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(artifact).collect())
}

/// One line of cargo's messages, when it tells of a program.
fn artifact(line: &str) -> Option<Artifact> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message.get("executable")?.as_str()?.into();
    let name = message.get("target")?.get("name")?.as_str()?.to_owned();
    Some(Artifact { name, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"smartvm"},"executable":"/t/smartvm"}"#;
        let expected = Artifact { name: "smartvm".into(), path: "/t/smartvm".into() };
        assert_eq!(artifact(line), Some(expected));
        assert_eq!(artifact(r#"{"reason":"compiler-artifact","executable":null}"#), None);
        assert_eq!(artifact("not json"), None);
    }
}
