//! Builds the guest program, so that a plain `cargo build` of smartvm is complete.
//!
//! Why a build script that calls cargo: the guest is linked statically, for size, with a panic that aborts, so it
//! shares no compiled crate with the rest and needs its own profile and flags. Stable cargo has no other way to make
//! one package's program the input of another, and a second command, or a program downloaded from somewhere, is
//! what smartvm promises not to need. The nested cargo has a target directory of its own, inherits the outer one's
//! job slots, and needs nothing from the network that the outer one did not.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const PACKAGE: &str = "smartvm-guest";
const PROFILE: &str = "guest";

/// What the program is made from, relative to the workspace's folder.
const SOURCES: [&str; 6] = [
    "Cargo.lock",
    "Cargo.toml",
    "crates/guest/Cargo.toml",
    "crates/guest/src",
    "crates/guest-api/Cargo.toml",
    "crates/guest-api/src",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("cargo::error=cannot build the guest program: {why}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target = variable("TARGET")?.into_string().map_err(|_| "TARGET is no text")?;
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return Err(format!("guests run Linux, and {target} is not Linux"));
    }
    let root = manifest.ancestors().nth(2).ok_or("the package is not in its workspace")?;
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let target_dir = out.join("target");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--package", PACKAGE, "--bin", PACKAGE])
        .args(["--profile", PROFILE, "--target", &target, "--target-dir"])
        .arg(&target_dir);
    without_the_outer_build(&mut cargo);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(root));
    let status = cargo.status().map_err(|error| format!("cargo does not start: {error}"))?;
    if !status.success() {
        return Err(format!("cargo ended with {status}"));
    }
    let built = target_dir.join(&target).join(PROFILE).join(PACKAGE);
    let to = out.join(PACKAGE);
    fs::copy(&built, &to).map(drop).map_err(|error| format!("{}: {error}", built.display()))
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set"))
}

/// Takes away what cargo, clippy, or a wrapper said to the outer build about how to compile: the guest is the same
/// program whatever asks for it.
fn without_the_outer_build(cargo: &mut Command) {
    const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR"];
    const DROPPED: [&str; 5] =
        ["RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS"];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let is_cargos = name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept));
        if is_cargos || DROPPED.contains(&name) {
            cargo.env_remove(name);
        }
    }
}

/// Static, at a fixed address, and without this machine's folders in it: equal sources give equal bytes.
fn flags(root: &Path) -> OsString {
    let mut flags = OsString::from("-Ctarget-feature=+crt-static\x1f-Crelocation-model=static");
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    for (folder, name) in [(Some(root.to_owned()), "/smartvm"), (home, "/cargo")] {
        if let Some(folder) = folder {
            flags.push("\x1f--remap-path-prefix=");
            flags.push(folder);
            flags.push("=");
            flags.push(name);
        }
    }
    flags
}
