//! Static builds of this workspace's programs and tests, to run in the lab.

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

/// A test executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestExecutable {
    /// The package that it tests.
    pub package: String,
    /// The target's name: that of the library, the binary or the file in `tests/`.
    pub name: String,
    /// `lib`, `bin`, `test`, …
    pub kind: String,
    /// The file.
    pub path: PathBuf,
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

/// Builds the tests that `cargo test ARGUMENTS` would run, statically linked. `arguments` select packages and
/// targets (`["--package", "smartvm-host", "--test", "*"]`).
///
/// # Errors
/// When the build fails.
pub fn tests(arguments: &[&str]) -> Result<Vec<TestExecutable>> {
    let mut all = vec!["test", "--no-run"];
    all.extend(arguments);
    Ok(cargo(&all)?
        .into_iter()
        .filter(|artifact| artifact.test)
        .map(|artifact| artifact.executable)
        .collect())
}

struct Artifact {
    test: bool,
    executable: TestExecutable,
}

fn pick(artifacts: &[Artifact], bins: &[&str]) -> Result<Vec<PathBuf>> {
    bins.iter()
        .map(|bin| {
            artifacts
                .iter()
                .find(|a| !a.test && a.executable.name == *bin)
                .map(|a| a.executable.path.clone())
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
        .arg("--target-dir")
        .arg(target_dir().join("static"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // Line tables are the largest part of a test executable, and all of it goes through the emulator.
        .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
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

/// One line of cargo's messages, when it tells of an executable.
fn artifact(line: &str) -> Option<Artifact> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message.get("executable")?.as_str()?.into();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(Artifact {
        test: message.get("profile")?.get("test")?.as_bool()?,
        executable: TestExecutable {
            package: package_name(message.get("package_id")?.as_str()?),
            name: message.get("target")?.get("name").and_then(text)?,
            kind: message.get("target")?.get("kind")?.get(0).and_then(text)?,
            path,
        },
    })
}

/// `path+file:///w/crates/lab#smartvm-lab@0.1.0`, or without the name when the folder has it.
fn package_name(id: &str) -> String {
    let (url, fragment) = id.split_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => url.rsplit('/').next().unwrap_or(url).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/crates/host#smartvm-host@0.1.0","target":{"kind":["test"],"name":"spawn"},"profile":{"test":true},"executable":"/t/spawn-1"}"#;
        let artifact = artifact(line).unwrap();
        assert!(artifact.test);
        assert_eq!(
            artifact.executable,
            TestExecutable {
                package: "smartvm-host".into(),
                name: "spawn".into(),
                kind: "test".into(),
                path: "/t/spawn-1".into()
            }
        );
        assert!(super::artifact(r#"{"reason":"compiler-artifact","executable":null}"#).is_none());
        assert!(super::artifact("not json").is_none());
    }

    #[test]
    fn package_ids_have_two_forms() {
        assert_eq!(package_name("path+file:///w/crates/lab#smartvm-lab@0.1.0"), "smartvm-lab");
        assert_eq!(package_name("path+file:///w/crates/xtask#0.1.0"), "xtask");
    }
}
