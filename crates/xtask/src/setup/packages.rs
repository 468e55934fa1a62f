//! Debian packages: which are missing, and installing them with apt.

use std::io::IsTerminal;
use std::process::{Command, Stdio};

use crate::command;
use crate::failure::{Failure, Result};

/// A package of Debian and Ubuntu, and what it is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
}

/// What guests and the emulated KVM host are built and run with.
pub(crate) fn for_the_lab() -> Vec<Package> {
    let mut packages: Vec<Package> =
        smartvm_lab::PACKAGES.iter().map(|&(name, why)| Package { name, why }).collect();
    if !command::on_path("cc") {
        packages.push(Package { name: "gcc", why: "links everything that is built" });
    }
    if !static_libc() {
        packages
            .push(Package { name: "libc6-dev", why: "links tests statically, so that they run in the lab" });
    }
    packages
}

/// Installs those that dpkg does not list as installed, after saying which and why.
///
/// # Errors
/// When something is missing and this is no system with apt, when there is neither root nor sudo (the
/// hint is the whole command to run), or when apt fails.
pub(crate) fn install_missing(wanted: &[Package]) -> Result<()> {
    let missing = missing(wanted, &installed(wanted)?);
    if missing.is_empty() {
        return Ok(());
    }
    let width = missing.iter().map(|package| package.name.len()).max().unwrap_or_default();
    println!("setup: {} Debian packages are missing and will be installed:", missing.len());
    missing.iter().for_each(|package| println!("  {:width$}  {}", package.name, package.why));
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let root = Root::acquire(&names)?;
    if no_package_lists() {
        root.apt(&["update", "-q"])?;
    }
    let install = [&["install", "-q", "-y", "--no-install-recommends"], names.as_slice()].concat();
    match root.apt(&install) {
        Err(_) if !command::interrupted() => {
            // Lists older than the mirror name versions that it no longer has.
            root.apt(&["update", "-q"])?;
            root.apt(&install)
        }
        ended => ended,
    }
}

/// The words that put the command to run before apt's own: none for root, else some form of sudo.
struct Root(&'static [&'static str]);

impl Root {
    fn acquire(names: &[&str]) -> Result<Self> {
        if rustix::process::geteuid().is_root() {
            return Ok(Self(&[]));
        }
        let has_sudo = command::on_path("sudo");
        let mut probe = Command::new("sudo");
        probe.args(["-n", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if has_sudo && probe.status().is_ok_and(|status| status.success()) {
            return Ok(Self(&["sudo", "-n"]));
        }
        if has_sudo && std::io::stdin().is_terminal() {
            println!("setup: sudo may ask for your password");
            return Ok(Self(&["sudo"]));
        }
        Err(Failure::new("packages are missing, and installing them needs root").hint(by_hand(names)))
    }

    fn apt(&self, arguments: &[&str]) -> Result<()> {
        let fixed = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
        // Another apt may be at work, as on a machine that was just started.
        let fixed = [fixed.as_slice(), &["-o", "DPkg::Lock::Timeout=120"]].concat();
        let words: Vec<&str> = [self.0, &fixed, arguments].concat();
        println!("setup: {}", words.join(" "));
        let mut apt = Command::new(words[0]);
        // apt's long report is of no interest while it succeeds.
        apt.args(&words[1..]).stdin(Stdio::inherit());
        command::read(&mut apt).map(drop)
    }
}

fn by_hand(names: &[&str]) -> String {
    format!("run as root: apt-get update && apt-get install -y --no-install-recommends {}", names.join(" "))
}

/// What `dpkg-query` says of the wanted packages.
fn installed(wanted: &[Package]) -> Result<String> {
    let names: Vec<&str> = wanted.iter().map(|package| package.name).collect();
    if !command::on_path("dpkg-query") || !command::on_path("apt-get") {
        return Err(Failure::new("this is not Debian or Ubuntu, so nothing can be installed by itself")
            .hint(format!("use a Debian or Ubuntu machine or container; needed are: {}", names.join(" "))));
    }
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${Architecture} ${db:Status-Status}\n"]).args(names);
    // It exits with 1 when it does not know one of them; the known ones are printed all the same.
    let output = query.stderr(Stdio::null()).output();
    let output = output.map_err(|error| Failure::new("cannot start dpkg-query").cause(error))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The wanted packages that the output of `dpkg-query` does not show as wholly installed.
fn missing(wanted: &[Package], installed: &str) -> Vec<Package> {
    let is_installed = |name: &str| {
        installed.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(name) && words.next_back() == Some("installed")
        })
    };
    wanted.iter().filter(|package| !is_installed(package.name)).copied().collect()
}

/// Whether apt has never been told what there is, as in fresh containers.
fn no_package_lists() -> bool {
    let lists = std::fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    !lists.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// Whether the C compiler that links our programs finds a static C library.
fn static_libc() -> bool {
    let mut compiler = Command::new("cc");
    compiler.arg("-print-file-name=libc.a");
    // Without the library it answers the bare name.
    command::read(&mut compiler).is_ok_and(|path| path.trim_end().contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wholly_installed_counts() {
        let package = |name| Package { name, why: "" };
        let wanted = ["cpio", "qemu-system-x86", "busybox-static", "e2fsprogs"].map(package);
        let installed = "cpio amd64 installed\nqemu-system-x86 amd64 config-files\ne2fsprogs amd64 unpacked\n\
                         e2fsprogs amd64 installed\n";
        assert_eq!(missing(&wanted, installed), ["qemu-system-x86", "busybox-static"].map(package));
    }

    #[test]
    fn the_way_by_hand_is_a_whole_command() {
        assert!(by_hand(&["cpio", "gcc"]).ends_with("apt-get install -y --no-install-recommends cpio gcc"));
    }
}
