//! Debian's packages as files: the emulated host's root, and QEMU and a kernel beside it.
//!
//! QEMU comes from the same release as the image and stays in the cache, so that every developer's machine
//! has the same one, whatever is installed there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bzimage;
use crate::cache::{Cache, Key, as_root, progress, remove, run_to_end};
use crate::fault::{AtPath, Fault, Result};

/// The release that everything is taken from.
const SUITE: &str = "bookworm";

/// Unpacked, not installed: QEMU with its libraries, the kernel of lab and guests, its tools.
///
/// QEMU 10 from the backports: under the release's own 7.2, guests with Linux 6.12 crash in their first second.
const PARTS: &str = "qemu-system-x86/bookworm-backports,qemu-system-common/bookworm-backports,\
                     qemu-system-data/bookworm-backports,seabios/bookworm-backports,\
                     linux-image-cloud-amd64,busybox-static,kmod";

/// Makes mmdebstrap see the backports of [`SUITE`] as well, whatever its sources are named and written like.
const WITH_BACKPORTS: &str = r#"--setup-hook=cd "$1/etc/apt" && for file in sources.list sources.list.d/*; do case $file in
        *.sources) awk 'BEGIN { RS = ""; ORS = "\n\n" } sub(/Suites: bookworm(\n|$)/, "Suites: bookworm-backports\n")' "$file" \
            > sources.list.d/backports.sources ;;
        *) test ! -f "$file" || sed -n 's/ bookworm main/ bookworm-backports main/p' "$file" > sources.list.d/backports.list ;;
        esac; done"#;

/// Installed in the emulated host.
const ROOT: &str = "iproute2,nftables,e2fsprogs,kmod,procps,iputils-ping,socat,mount,python3,busybox-static,\
                    strace,xfsprogs,ca-certificates";

/// Bump when the code below makes something else of the same packages.
const RECIPE: &str = "1";

/// How large the root's file system is; only what is used takes place.
const ROOT_SIZE: &str = "2G";

/// A kernel of Debian's for virtual machines, as its package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelSeries {
    /// The release's own: 6.1, compressed with lz4, modules as they are.
    Stable,
    /// That of its backports: 6.12, compressed with zstd, modules with xz.
    Backports,
}

impl KernelSeries {
    const fn package(self) -> &'static str {
        match self {
            Self::Stable => "linux-image-cloud-amd64",
            Self::Backports => "linux-image-cloud-amd64/bookworm-backports",
        }
    }
}

/// The package with a kernel and its modules, from the cache or from the mirror that this machine's apt uses.
///
/// # Errors
/// When it cannot be had.
pub fn kernel_package(cache: &Cache, series: KernelSeries) -> Result<PathBuf> {
    let key = Key::of([SUITE, series.package(), RECIPE].map(str::as_bytes));
    let dir = cache.entry("kernel-package", &key, 2, |dir| fetch_kernel_package(dir, series))?;
    let mut items = fs::read_dir(&dir).at("cannot read", &dir)?.filter_map(|item| Some(item.ok()?.path()));
    items
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| Fault::new(format!("no package in {}", dir.display())))
}

fn fetch_kernel_package(dir: &Path, series: KernelSeries) -> Result<()> {
    progress("fetching a kernel from Debian's packages (about 10 s and 50 MB of download, once)");
    let tree = dir.join("tree");
    let mut mmdebstrap = mmdebstrap("extract", series.package(), dir)?;
    if series == KernelSeries::Backports {
        mmdebstrap.arg(WITH_BACKPORTS);
    }
    let keep =
        format!("--extract-hook=cp \"$1\"/var/cache/apt/archives/linux-image-[0-9]*.deb '{}'", dir.display());
    run_to_end(mmdebstrap.arg(keep).arg(SUITE).arg(&tree).args(sources(dir)?))?;
    remove(&tree)?;
    let _ = fs::remove_file(dir.join("mirror.sources"));
    give_to_us(dir)
}

/// Unpacked packages.
#[derive(Debug, Clone)]
pub struct Parts {
    dir: PathBuf,
    kernel: String,
}

impl Parts {
    /// From the cache, or from the mirror that this machine's apt uses.
    ///
    /// # Errors
    /// When the packages cannot be had or unpacked.
    pub fn fetch(cache: &Cache) -> Result<Self> {
        let key = Key::of([SUITE, PARTS, RECIPE].map(str::as_bytes));
        let dir = cache.entry("parts", &key, 2, build_parts)?;
        let kernel = kernel_version(&dir)?;
        Ok(Self { dir, kernel })
    }

    /// The kernel's release, as `uname -r` in the lab.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// The kernel as the distribution ships it.
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("boot").join(format!("vmlinuz-{}", self.kernel))
    }

    /// The kernel as Firecracker boots it.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The kernel's modules, with `modules.dep`.
    pub fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.kernel)
    }

    /// A static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.dir.join("bin/busybox")
    }

    /// QEMU, to be given arguments. It runs with the libraries that it was made for.
    pub fn qemu(&self) -> Vec<String> {
        let mut words = loader(&self.dir, "qemu-system-x86_64", "usr/bin/qemu-system-x86_64");
        for dir in ["usr/share/qemu", "usr/share/seabios"] {
            words.extend(["-L".into(), self.dir.join(dir).display().to_string()]);
        }
        words
    }

    /// Where QEMU finds its plug-ins: the value of `QEMU_MODULE_DIR`.
    pub fn qemu_modules(&self) -> PathBuf {
        self.dir.join("usr/lib/x86_64-linux-gnu/qemu")
    }
}

/// The command line that runs a program of an unpacked tree with the tree's own libraries.
fn loader(dir: &Path, name: &str, program: &str) -> Vec<String> {
    let inside = |path: &str| dir.join(path).display().to_string();
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(inside).join(":");
    vec![
        inside("lib64/ld-linux-x86-64.so.2"),
        "--library-path".into(),
        libraries,
        "--argv0".into(),
        name.into(),
        inside(program),
    ]
}

fn build_parts(dir: &Path) -> Result<()> {
    progress("unpacking QEMU and a kernel from Debian's packages (about 10 s and 80 MB of download, once)");
    let tree = dir.join("tree");
    let mut mmdebstrap = mmdebstrap("extract", PARTS, dir)?;
    run_to_end(mmdebstrap.arg(WITH_BACKPORTS).arg(SUITE).arg(&tree).args(sources(dir)?))?;
    give_to_us(&tree)?;
    for needless in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var", "dev"] {
        let path = tree.join(needless);
        if path.exists() {
            fs::remove_dir_all(&path).at("cannot remove", &path)?;
        }
    }
    let _ = fs::remove_file(dir.join("mirror.sources"));
    for item in fs::read_dir(&tree).at("cannot read", &tree)? {
        let item = item.at("cannot read", &tree)?;
        let to = dir.join(item.file_name());
        fs::rename(item.path(), &to).at("cannot rename to", &to)?;
    }
    fs::remove_dir(&tree).at("cannot remove", &tree)?;

    let kernel = kernel_version(dir)?;
    let words = loader(dir, "depmod", "bin/kmod");
    run_to_end(Command::new(&words[0]).args(&words[1..]).arg("-b").arg(dir).arg(&kernel))?;
    let vmlinuz = dir.join("boot").join(format!("vmlinuz-{kernel}"));
    let image = fs::read(&vmlinuz).at("cannot read", &vmlinuz)?;
    let vmlinux = bzimage::vmlinux(&image)
        .map_err(|error| Fault::because(format!("cannot unpack {}", vmlinuz.display()), error))?;
    let path = dir.join("vmlinux");
    fs::write(&path, vmlinux).at("cannot write", &path)
}

/// The read-only root file system of the emulated host.
///
/// # Errors
/// When the packages cannot be had or installed.
pub fn root_image(cache: &Cache, parts: &Parts) -> Result<PathBuf> {
    let key = Key::of([SUITE, ROOT, ROOT_SIZE, RECIPE, parts.kernel()].map(str::as_bytes));
    let dir = cache.entry("root", &key, 2, |dir| build_root(dir, parts))?;
    Ok(dir.join("root.ext4"))
}

fn build_root(dir: &Path, parts: &Parts) -> Result<()> {
    progress("installing Debian for the emulated host (about 30 s and 60 MB of download, once)");
    let tree = dir.join("tree");
    let modules = parts.dir.join("lib/modules");
    let mut mmdebstrap = mmdebstrap("minbase", ROOT, dir)?;
    mmdebstrap
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"])
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg(format!("--customize-hook=cp -a '{}' \"$1/usr/lib/\"", modules.display()))
        .args(["--customize-hook=mkdir -p \"$1/opt/smartvm\""]);
    run_to_end(mmdebstrap.arg(SUITE).arg(&tree).args(sources(dir)?))?;
    let image = dir.join("root.ext4");
    progress("making the file system of the emulated host");
    run_to_end(
        as_root("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"])
            .arg(&tree)
            .arg(&image)
            .arg(ROOT_SIZE),
    )?;
    remove(&tree)?;
    let _ = fs::remove_file(dir.join("mirror.sources"));
    give_to_us(&image)
}

/// A smallest Debian as a tar file, `dir` being an empty directory for what lies beside it meanwhile.
///
/// # Errors
/// When the packages cannot be had or installed.
pub(crate) fn minbase_tar(dir: &Path, tar: &Path) -> Result<()> {
    let mut mmdebstrap = mmdebstrap("minbase", "base-files", dir)?;
    mmdebstrap
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"])
        .args(["--dpkgopt=path-exclude=/usr/share/locale/*", "--format=tar"]);
    run_to_end(mmdebstrap.arg(SUITE).arg(tar).args(sources(dir)?))?;
    let _ = fs::remove_file(dir.join("mirror.sources"));
    give_to_us(tar)
}

fn mmdebstrap(variant: &str, include: &str, dir: &Path) -> Result<Command> {
    let mut command = as_root("mmdebstrap");
    command
        .env("TMPDIR", dir)
        .arg("--format=directory")
        .arg("--architectures=amd64")
        .arg(format!("--variant={variant}"))
        .arg(format!("--include={include}"));
    for option in apt_options() {
        command.arg(format!("--aptopt={option}"));
    }
    Ok(command)
}

fn give_to_us(path: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    run_to_end(as_root("chown").args(["-R", "-h"]).arg(owner).arg(path))
}

/// What this machine's apt was told about its mirror and the way there.
fn apt_options() -> Vec<String> {
    let Ok(output) = Command::new("apt-config").arg("dump").output() else { return Vec::new() };
    let wanted = [
        "Acquire::Check-Valid-Until ",
        "Acquire::Check-Date ",
        "Acquire::http::Proxy ",
        "Acquire::https::Proxy ",
    ];
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

/// The last argument of mmdebstrap: a file with the Debian mirror of this machine's apt. Nothing, which
/// means mmdebstrap's own default, where apt has none (another distribution).
fn sources(dir: &Path) -> Result<Option<PathBuf>> {
    let mut texts = Vec::new();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(items) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(items.filter_map(|item| Some(item.ok()?.path())));
    }
    for file in files {
        let kind = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if matches!(kind, "list" | "sources")
            && let Ok(text) = fs::read_to_string(&file)
        {
            texts.push((kind == "sources", text));
        }
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let Some(text) = mirror(&release, &texts) else { return Ok(None) };
    let file = dir.join("mirror.sources");
    fs::write(&file, text).at("cannot write", &file)?;
    Ok(Some(file))
}

/// The sources file for [`SUITE`], from a machine's `os-release` and apt sources (`true`: deb822 format).
fn mirror(os_release: &str, sources: &[(bool, String)]) -> Option<String> {
    let value = |name: &str| {
        os_release.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_matches('"').to_owned()))
    };
    if value("ID=")? != "debian" {
        return None;
    }
    let codename = value("VERSION_CODENAME=")?;
    let mut entries: Vec<(String, String)> = Vec::new();
    for (deb822, text) in sources {
        let found = if *deb822 { deb822_entries(text) } else { list_entries(text) };
        for (uri, suite) in found {
            let suffix = match suite.strip_prefix(&codename) {
                Some(suffix @ ("" | "-updates" | "-security")) => suffix,
                _ => continue,
            };
            let entry = (uri, format!("{SUITE}{suffix}"));
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
    }
    entries.iter().any(|(_, suite)| suite == SUITE).then(|| {
        let stanza = |(uri, suite): &(String, String)| {
            format!(
                "Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n\
                 Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
            )
        };
        entries.iter().map(stanza).collect::<Vec<_>>().join("\n")
    })
}

/// (URI, suite) pairs of a deb822 file that have the component `main`.
fn deb822_entries(text: &str) -> Vec<(String, String)> {
    let mut entries = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().split_whitespace()
        };
        if field("Types:").any(|kind| kind == "deb")
            && field("Components:").any(|component| component == "main")
            && !field("Enabled:").any(|enabled| enabled == "no")
        {
            for uri in field("URIs:") {
                entries.extend(field("Suites:").map(|suite| (uri.to_owned(), suite.to_owned())));
            }
        }
    }
    entries
}

/// The same of a one-line-style file.
fn list_entries(text: &str) -> Vec<(String, String)> {
    let entry = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        words.any(|component| component == "main").then(|| (uri.to_owned(), suite.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

fn kernel_version(dir: &Path) -> Result<String> {
    let modules = dir.join("lib/modules");
    let mut names = fs::read_dir(&modules)
        .at("cannot read", &modules)?
        .filter_map(|item| item.ok()?.file_name().into_string().ok());
    names.next().ok_or_else(|| Fault::new(format!("no kernel in {}", modules.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "ID=debian\nVERSION_CODENAME=trixie\n";

    #[test]
    fn this_machines_debian_mirror_is_used_and_other_sources_are_not() {
        let deb822 = "Types: deb deb-src\n# comment\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates trixie-backports\nComponents: main contrib\n\nTypes: deb\nURIs: http://tools.example/apt\nSuites: stable\nComponents: main\n";
        let list = "# deb http://old.example/debian trixie main\ndeb [arch=amd64 signed-by=/k] http://sec.example/debian-security trixie-security main\n";
        let text = mirror(DEBIAN, &[(true, deb822.into()), (false, list.into())]).unwrap();
        let pairs: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("URIs: ").or(line.strip_prefix("Suites: ")))
            .collect();
        assert_eq!(
            pairs,
            [
                "http://mirror.example/debian",
                "bookworm",
                "http://mirror.example/debian",
                "bookworm-updates",
                "http://sec.example/debian-security",
                "bookworm-security"
            ]
        );
    }

    #[test]
    fn elsewhere_mmdebstrap_decides() {
        let list = "deb http://mirror.example/ubuntu noble main\n".to_owned();
        assert_eq!(mirror("ID=ubuntu\nVERSION_CODENAME=noble\n", &[(false, list)]), None);
        assert_eq!(mirror(DEBIAN, &[]), None);
    }
}
