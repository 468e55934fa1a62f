//! Which crate of the workspace may depend on which: the map in ARCHITECTURE.md as a table.
//!
//! The table names every allowed edge. That it only points down the map, and that both name the same
//! crates, is checked too, so that neither can grow without the other.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Findings, text};

/// Who builds the product, and on what of the workspace it may stand.
const PRODUCT: &[(&str, &[&str])] = &[
    ("smartvm-cli", &["smartvm", "smartvm-core"]),
    (
        "smartvm",
        &["smartvm-images", "smartvm-host", "smartvm-firecracker", "smartvm-guest-api", "smartvm-core"],
    ),
    ("smartvm-images", &["smartvm-guest-binary", "smartvm-guest-api", "smartvm-core"]),
    ("smartvm-host", &["smartvm-firecracker", "smartvm-core"]),
    ("smartvm-firecracker", &["smartvm-core"]),
    ("smartvm-guest-binary", &[]),
    ("smartvm-guest", &["smartvm-guest-api"]),
    ("smartvm-guest-api", &[]),
    ("smartvm-core", &["smartvm-guest-api"]),
];

/// Who serves developers. No product crate depends on these, except to test itself with the lab.
const DEVELOPERS: &[(&str, &[&str])] = &[
    ("smartvm-lab", &["smartvm-images", "smartvm-core"]),
    (
        "smartvm-bench",
        &["smartvm", "smartvm-images", "smartvm-host", "smartvm-firecracker", "smartvm-core", "smartvm-lab"],
    ),
    ("smartvm-fuzz", &["smartvm-images"]),
    ("xtask", &["smartvm-lab", "smartvm-images", "smartvm-core"]),
];

/// What the pure core may never depend on: runtimes and the ways to the system.
const NEVER_IN_CORE: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "futures",
    "hyper",
    "reqwest",
    "mio",
    "rustix",
    "nix",
    "libc",
    "tempfile",
];

/// Every dependency that points where it may not.
pub(super) fn check(metadata: &Value, architecture: &str) -> Findings {
    let members = members(metadata);
    let allowed: BTreeMap<&str, &[&str]> = PRODUCT.iter().chain(DEVELOPERS).copied().collect();
    let mut findings = against_map(&members, &allowed, &map_of_crates(architecture));
    for (name, dependencies) in &members {
        for dependency in dependencies {
            if !dependency.allowed_in(name, &members, &allowed) {
                let kind = if dependency.is_dev { "dev-dependency" } else { "dependency" };
                findings.push(format!("{name} may not have the {kind} {}", dependency.name));
            }
        }
    }
    findings
}

struct Dependency<'a> {
    name: &'a str,
    is_dev: bool,
}

type Members<'a> = BTreeMap<&'a str, Vec<Dependency<'a>>>;

impl Dependency<'_> {
    fn allowed_in(&self, of: &str, members: &Members<'_>, allowed: &BTreeMap<&str, &[&str]>) -> bool {
        if !members.contains_key(self.name) {
            return self.is_dev || of != "smartvm-core" || !NEVER_IN_CORE.contains(&self.name);
        }
        // Tests may use the lab everywhere: cargo builds it apart from what the product links.
        let by_table = allowed.get(of).is_some_and(|on| on.contains(&self.name));
        by_table || (self.is_dev && self.name == "smartvm-lab")
    }
}

fn members(metadata: &Value) -> Members<'_> {
    let ids: BTreeSet<&str> = list(&metadata["workspace_members"]).filter_map(Value::as_str).collect();
    let ours = list(&metadata["packages"]).filter(|package| ids.contains(text(package, "id")));
    ours.map(|package| {
        let dependencies = list(&package["dependencies"]).map(|dependency| Dependency {
            name: text(dependency, "name"),
            is_dev: text(dependency, "kind") == "dev",
        });
        (text(package, "name"), dependencies.collect())
    })
    .collect()
}

/// The crates in the order of their rows: a cell with the name, and one with the folder.
fn map_of_crates(architecture: &str) -> Vec<&str> {
    let rows = architecture.lines().filter_map(|row| row.strip_prefix("| `")?.split_once("` | `crates/"));
    rows.map(|(name, _)| name).collect()
}

/// Where workspace, table and map disagree on which crates there are or which way is down.
fn against_map(members: &Members<'_>, allowed: &BTreeMap<&str, &[&str]>, map: &[&str]) -> Findings {
    let mut findings = Findings::new();
    let place = |name: &str| map.iter().position(|row| *row == name);
    for name in members.keys().filter(|name| place(name).is_none()) {
        findings.push(format!("{name} is missing in ARCHITECTURE.md's map of crates"));
    }
    for name in map.iter().filter(|name| !members.contains_key(*name)) {
        findings.push(format!("ARCHITECTURE.md's map of crates lists {name}, which is not in the workspace"));
    }
    for name in members.keys().filter(|name| !allowed.contains_key(*name)) {
        findings.push(format!("{name} is missing in the table of allowed edges ({})", file!()));
    }
    for (of, on) in allowed.iter().filter(|(of, _)| !DEVELOPERS.iter().any(|(name, _)| name == *of)) {
        for target in on.iter().filter(|target| place(target) <= place(of)) {
            findings.push(format!("{of} → {target} does not point down ARCHITECTURE.md's map of crates"));
        }
    }
    findings
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    const MAP: &str = "# Rooms\n| crate | folder |\n| --- | --- |\n| `other` | not a crate |\n\
        | `smartvm-cli` | `crates/a` |\n| `smartvm` | `crates/b` |\n| `smartvm-host` | `crates/c` |\n| `smartvm-firecracker` | `crates/d` |\n\
        | `smartvm-images` | `crates/i` |\n| `smartvm-guest-binary` | `crates/j` |\n| `smartvm-guest` | `crates/k` |\n\
        | `smartvm-core` | `crates/e` |\n| `smartvm-guest-api` | `crates/l` |\n| `smartvm-lab` | `crates/f` |\n| `smartvm-bench` | `crates/g` |\n| `smartvm-fuzz` | `crates/m` |\n| `xtask` | `crates/h` |\n";

    /// A workspace of all our crates, with the given extra dependencies: (of, on, kind).
    fn workspace(extra: &[(&str, &str, Option<&str>)]) -> Value {
        let names = super::PRODUCT.iter().chain(super::DEVELOPERS).map(|(name, _)| *name);
        let packages = names.map(|name| {
            let of_this = extra.iter().filter(|(of, ..)| *of == name);
            let dependencies: Vec<Value> =
                of_this.map(|(_, on, kind)| json!({"name": on, "kind": kind})).collect();
            json!({"id": name, "name": name, "dependencies": dependencies})
        });
        let packages: Vec<Value> = packages.collect();
        let members: Vec<&Value> = packages.iter().map(|package| &package["id"]).collect();
        json!({"workspace_members": members, "packages": packages})
    }

    fn check(extra: &[(&str, &str, Option<&str>)]) -> Vec<String> {
        super::check(&workspace(extra), MAP)
    }

    #[test]
    fn edges_down_the_map_are_fine() {
        let none: Vec<String> = Vec::new();
        assert_eq!(check(&[("smartvm-host", "smartvm-core", None), ("smartvm-host", "tokio", None)]), none);
        assert_eq!(check(&[("smartvm-host", "smartvm-lab", Some("dev"))]), none);
    }

    #[test]
    fn an_edge_up_the_map_is_refused() {
        assert_eq!(
            check(&[("smartvm-core", "smartvm-host", None)]),
            ["smartvm-core may not have the dependency smartvm-host"]
        );
    }

    #[test]
    fn the_product_never_links_the_lab() {
        for kind in [None, Some("build")] {
            assert_eq!(
                check(&[("smartvm-host", "smartvm-lab", kind)]),
                ["smartvm-host may not have the dependency smartvm-lab"]
            );
        }
    }

    #[test]
    fn the_core_takes_no_runtime() {
        assert_eq!(
            check(&[("smartvm-core", "tokio", None)]),
            ["smartvm-core may not have the dependency tokio"]
        );
    }

    #[test]
    fn map_table_and_workspace_name_the_same_crates() {
        let map = MAP.replace("`smartvm-bench`", "`smartvm-daemon`");
        assert_eq!(
            super::check(&workspace(&[]), &map),
            [
                "smartvm-bench is missing in ARCHITECTURE.md's map of crates",
                "ARCHITECTURE.md's map of crates lists smartvm-daemon, which is not in the workspace",
            ]
        );
    }
}
