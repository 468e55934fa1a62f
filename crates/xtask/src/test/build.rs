//! Building all test programs once, and what each of them is.

use std::path::PathBuf;

use serde_json::Value;

use crate::failure::Result;
use crate::workspace;

/// One test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suite {
    /// Package and target, as printed.
    pub(crate) name: String,
    pub(crate) needs: Needs,
    pub(crate) program: PathBuf,
    /// The folder of the package's manifest: where cargo runs tests.
    pub(crate) folder: PathBuf,
}

/// What a test program needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// A KVM that runs tiny guests.
    BareMetalGuests,
    /// A KVM that runs Linux.
    LinuxGuests,
}

/// Packages whose unit tests start no Firecracker.
const WITHOUT_KVM: &[&str] = &[
    "smartvm-fuzz",
    "smartvm-core",
    "smartvm-firecracker",
    "smartvm-images",
    "smartvm-lab",
    "xtask",
    "smartvm-guest",
    "smartvm-guest-api",
    "smartvm-guest-binary",
];

/// Builds the tests of the given packages (none: of all) and answers the programs, quick ones first.
pub(crate) fn suites(packages: &[String]) -> Result<Vec<Suite>> {
    println!("test: building (a minute or two the first time)");
    let mut cargo = workspace::static_cargo();
    cargo.args(["test", "--no-run", "--locked", "--target", workspace::TARGET]);
    if packages.is_empty() {
        cargo.arg("--workspace");
    }
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    let mut suites: Vec<Suite> = workspace::artifacts(&mut cargo)?.iter().filter_map(suite).collect();
    suites.sort_by_key(|suite| (suite.needs as u8, suite.name.clone()));
    Ok(suites)
}

impl Suite {
    /// The examples in the documentation, which cargo builds and runs by itself.
    pub(crate) fn doctests() -> Self {
        let folder = workspace::root();
        Self { name: "doc tests".to_owned(), needs: Needs::Nothing, program: PathBuf::new(), folder }
    }
}

/// The test program that a message of cargo tells of, if it does.
fn suite(artifact: &Value) -> Option<Suite> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let program = text(&artifact["executable"]);
    if artifact["profile"]["test"] != true || program.is_empty() {
        return None;
    }
    let manifest = PathBuf::from(text(&artifact["manifest_path"]));
    let folder = manifest.parent().unwrap_or(&manifest).to_owned();
    let (target, kind) = (text(&artifact["target"]["name"]), text(&artifact["target"]["kind"][0]));
    let package = package_name(&text(&artifact["package_id"]));
    let needs = needs(&package, &target, &kind);
    let name = if kind == "lib" { package } else { format!("{package} {kind} {target}") };
    Some(Suite { name, needs, program: program.into(), folder })
}

/// What a test program needs follows from where it lies: integration tests of the lab and those named
/// `linux*` boot Linux.
fn needs(package: &str, target: &str, kind: &str) -> Needs {
    match kind {
        "test" if package == "smartvm-lab" || target.starts_with("linux") => Needs::LinuxGuests,
        // Those of the lab itself bring their own emulated host.
        "test" if package == "xtask" => Needs::Nothing,
        // What is fetched, built and stored needs no guest, but the developers' cache.
        "test" if package == "smartvm-images" => Needs::Nothing,
        "lib" | "bin" if WITHOUT_KVM.contains(&package) => Needs::Nothing,
        _ => Needs::BareMetalGuests,
    }
}

/// The name in a package id: `path+file:///…/crates/core#smartvm-core@0.1.0`, or `…/smartvm#0.1.0` when
/// the folder is called like the package.
fn package_name(id: &str) -> String {
    let (path, name) = id.rsplit_once('#').unwrap_or(("", id));
    let name = name.split('@').next().unwrap_or(name);
    let is_version = name.starts_with(|first: char| first.is_ascii_digit());
    if is_version { path.rsplit('/').next().unwrap_or(path).to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_test_program_is_told_from_other_messages() {
        let mut artifact = json!({
            "package_id": "path+file:///w/crates/cli#smartvm-cli@0.1.0",
            "manifest_path": "/w/crates/cli/Cargo.toml",
            "target": {"kind": ["test"], "name": "linux_run"},
            "profile": {"test": true},
            "executable": "/w/target/deps/linux_run-1",
        });
        let found = suite(&artifact).expect("a test program");
        assert_eq!(found.name, "smartvm-cli test linux_run");
        assert_eq!(found.needs, Needs::LinuxGuests);
        assert_eq!(found.folder, PathBuf::from("/w/crates/cli"));
        artifact["profile"]["test"] = json!(false);
        assert_eq!(suite(&artifact), None);
    }

    #[test]
    fn the_package_is_named_by_its_id() {
        assert_eq!(package_name("path+file:///w/crates/smartvm#0.1.0"), "smartvm");
        assert_eq!(package_name("path+file:///w/crates/core#smartvm-core@0.1.0"), "smartvm-core");
    }

    #[test]
    fn what_a_program_needs_follows_from_where_it_lies() {
        assert_eq!(needs("smartvm-lab", "smartvm_lab", "lib"), Needs::Nothing);
        assert_eq!(needs("smartvm-lab", "boot", "test"), Needs::LinuxGuests);
        assert_eq!(needs("smartvm-core", "smartvm_core", "lib"), Needs::Nothing);
        assert_eq!(needs("smartvm-core", "bare_metal", "test"), Needs::BareMetalGuests);
        assert_eq!(needs("smartvm-host", "smartvm_host", "lib"), Needs::BareMetalGuests);
        assert_eq!(needs("xtask", "lab", "test"), Needs::Nothing);
        assert_eq!(needs("smartvm-images", "smartvm_images", "lib"), Needs::Nothing);
        assert_eq!(needs("smartvm-images", "kill", "test"), Needs::Nothing);
        assert_eq!(needs("smartvm-images", "linux_boot", "test"), Needs::LinuxGuests);
    }
}
