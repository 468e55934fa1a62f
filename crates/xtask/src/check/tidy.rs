//! The rules of this repository that no compiler knows.
//!
//! Needles are put together from parts, so that this file does not contain what it looks for.

use std::path::Path;
use std::process::Command;

use super::Findings;
use crate::command;
use crate::failure::Result;

/// The longest file of Rust that we accept, in lines. A file near it holds a second idea to take out.
const MOST_LINES: usize = 700;

/// Module names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "manager", "common", "misc"];

/// Programs that the product must not start: it speaks to the kernel itself.
const HOST_PROGRAMS: &[&str] = &[
    "ip",
    "iptables",
    "nft",
    "tc",
    "sysctl",
    "sh",
    "bash",
    "mount",
    "umount",
    "losetup",
    "mkfs.ext4",
    "tar",
    "cp",
    "rm",
    "curl",
    "wget",
];

/// Folders whose code serves developers; all other code is the product.
const DEVELOPERS: &[&str] = &["crates/lab/", "crates/bench/", "crates/xtask/"];

/// Every place in the files that git knows (or would take) which breaks a rule.
pub(super) fn check(root: &Path) -> Result<Findings> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = command::read(&mut git)?;
    let mut findings = Findings::new();
    for path in listed.split_terminator('\0') {
        // A file that git lists may be deleted in the working tree; one that is not text has no rules.
        if let Ok(content) = std::fs::read_to_string(root.join(path)) {
            findings.extend(judge(path, &content));
        }
    }
    Ok(findings)
}

fn judge(path: &str, content: &str) -> Findings {
    let mut findings = Findings::new();
    if path != "Cargo.lock" {
        findings.extend(lines_with(path, content, &registry_hosts(), "names a package registry's host"));
    }
    if !path.ends_with(".rs") {
        return findings;
    }
    let lines = content.lines().count();
    if lines > MOST_LINES {
        findings.push(format!("{path}: {lines} lines, more than {MOST_LINES}"));
    }
    let empty_name = |part: &str| EMPTY_NAMES.contains(&part.trim_end_matches(".rs"));
    if let Some(name) = path.split('/').find(|part| empty_name(part)) {
        findings.push(format!("{path}: `{name}` says nothing of what is inside"));
    }
    let unfinished = [["todo", "!"].concat(), ["dbg", "!"].concat(), ["unimplemented", "!"].concat()];
    findings.extend(lines_with(path, content, &unfinished, "is unfinished"));
    if path.contains("/src/") && !DEVELOPERS.iter().any(|folder| path.starts_with(folder)) {
        findings.extend(lines_with(path, content, &starts_of_programs(), "starts a host program"));
    }
    findings
}

fn lines_with(path: &str, content: &str, needles: &[String], problem: &str) -> Findings {
    let hit = |line: &str| needles.iter().find(|needle| line.contains(needle.as_str())).cloned();
    let hits = content.lines().zip(1..).filter_map(|(line, number)| Some((number, hit(line)?)));
    hits.map(|(number, needle)| format!("{path}:{number}: `{needle}` {problem}")).collect()
}

/// Hosts that packages come from. Which mirror is used is the machine's setting, never ours.
fn registry_hosts() -> Vec<String> {
    let names: [(&str, &str); 10] = [
        ("crates", "io"),
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb.debian", "org"),
        ("ftp.debian", "org"),
        ("security.debian", "org"),
        ("archive.ubuntu", "com"),
        ("proxy.golang", "org"),
    ];
    names.iter().map(|(name, domain)| format!("{name}.{domain}")).collect()
}

fn starts_of_programs() -> Vec<String> {
    HOST_PROGRAMS.iter().map(|program| format!("Command::new(\"{program}\"")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_host_is_found_with_its_line_in_any_text_file() {
        let host = &registry_hosts()[0];
        let found = judge("README.md", &format!("fine\nsee https://{host}/x\n"));
        assert_eq!(found, [format!("README.md:2: `{host}` names a package registry's host")]);
        assert!(judge("Cargo.lock", host).is_empty());
    }

    #[test]
    fn unfinished_code_is_refused() {
        let code = ["fn f() { to", "do!() }\n"].concat();
        assert_eq!(judge("crates/lab/src/a.rs", &code).len(), 1);
        assert!(judge("notes.md", &code).is_empty());
    }

    #[test]
    fn only_the_product_may_not_start_host_programs() {
        let code = "Command::new(\"mount\")";
        assert_eq!(judge("crates/host/src/a.rs", code).len(), 1);
        assert!(judge("crates/lab/src/a.rs", code).is_empty());
        assert!(judge("crates/host/tests/a.rs", code).is_empty());
    }

    #[test]
    fn long_files_and_empty_names_are_refused() {
        assert_eq!(judge("crates/host/src/a.rs", &"\n".repeat(MOST_LINES + 1)).len(), 1);
        assert!(judge("crates/host/src/a.rs", &"\n".repeat(MOST_LINES)).is_empty());
        assert_eq!(judge("crates/host/src/utils.rs", "").len(), 1);
        assert_eq!(judge("crates/host/src/manager/mod.rs", "").len(), 1);
        assert!(judge("crates/host/src/commons.rs", "").is_empty());
    }
}
