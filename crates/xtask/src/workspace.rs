//! Where the workspace is, and how cargo is run in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::command;
use crate::failure::{Failure, Result};

/// The only platform that smartvm is made for.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The folder of the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    // This crate lies at `crates/xtask`; where it cannot be resolved, cargo will say so.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The cargo that runs this command, told to work in the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// What `cargo metadata` says of the workspace and everything it is built from on our platform.
pub(crate) fn metadata() -> Result<Value> {
    let mut cargo = cargo();
    cargo.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]);
    let text = command::read(&mut cargo)?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::new("cannot read the output of `cargo metadata`").cause(error))
}

/// The cargo that builds for [`TARGET`] with the C library linked in, as the product is shipped: what it
/// builds runs on any distribution, and so in the lab.
pub(crate) fn static_cargo() -> Command {
    let mut cargo = cargo();
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    cargo
}

/// Builds one program of the workspace statically and answers where it is.
pub(crate) fn build_static(package: &str, program: &str, release: bool) -> Result<PathBuf> {
    let mut cargo = static_cargo();
    cargo.args(["build", "--quiet", "--locked", "--target", TARGET, "--package", package, "--bin", program]);
    if release {
        cargo.arg("--release");
    }
    let built = artifacts(&mut cargo)?.into_iter().find_map(|message| {
        let executable = message["executable"].as_str()?;
        (message["target"]["name"] == program).then(|| PathBuf::from(executable))
    });
    built.ok_or_else(|| Failure::new(format!("cargo built no program `{program}`")))
}

/// Runs a cargo command that builds, and answers its messages about each thing built.
pub(crate) fn artifacts(cargo: &mut Command) -> Result<Vec<Value>> {
    // Errors and progress on stderr are for the developer; the messages on stdout are for us.
    let cargo = cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let messages = command::read(cargo)?;
    let messages = messages.lines().map(serde_json::from_str::<Value>);
    let artifacts = messages
        .filter(|message| message.as_ref().map_or(true, |message| message["reason"] == "compiler-artifact"));
    artifacts
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| Failure::new("cannot read a message of cargo").cause(error))
}
