//! What tests, benches and developer commands share: where Firecracker and the developers' cache are.
//!
//! Only for developers: no product crate depends on this one.

pub mod agent;
pub mod bzimage;
pub mod cache;
pub mod debian;
pub mod emulated;
pub mod fault;
pub mod guest;
pub mod kernel;
pub mod modules;
pub mod random;
pub mod registry;
pub mod transfer;
pub mod wire;
pub mod workspace;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Packages of Debian and Ubuntu that the lab needs on this machine, and what for.
///
/// QEMU and the kernel are not among them: they come with the image and stay in the cache.
pub const PACKAGES: &[(&str, &str)] = &[
    ("mmdebstrap", "installs the emulated host's Debian"),
    ("debian-archive-keyring", "proves that Debian's packages are Debian's"),
    ("e2fsprogs", "makes the emulated host's file system (mke2fs)"),
    ("cpio", "checks our initramfs writer (a unit test)"),
    ("docker-registry", "the registry that pull tests pull from"),
    ("skopeo", "puts images into that registry"),
    ("squashfs-tools", "makes a squashfs root for tests (mksquashfs)"),
    ("apache2-utils", "makes the registry's password file (htpasswd)"),
    ("g++", "builds libFuzzer"),
];

/// The Firecracker version that tests run against when none is given.
pub const FIRECRACKER_VERSION: &str = "1.12.1";

/// The developers' cache: `SMARTVM_DEV_CACHE`, else `$XDG_CACHE_HOME/smartvm-dev`, else `~/.cache/smartvm-dev`.
///
/// It lies outside of the git tree, so that `git clean` costs no download.
pub fn dev_cache() -> PathBuf {
    if let Some(dir) = env::var_os("SMARTVM_DEV_CACHE") {
        return dir.into();
    }
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| "/root".into());
        home.join(".cache")
    });
    base.join("smartvm-dev")
}

/// The Firecracker binary for tests: `SMARTVM_FIRECRACKER`, else `firecracker` on PATH, else the one in
/// the developers' cache.
///
/// # Panics
/// When there is none: a test that needs Firecracker must never pass without it.
pub fn firecracker() -> PathBuf {
    find("SMARTVM_FIRECRACKER", "firecracker")
}

/// The jailer for tests, found like [`firecracker`] (`SMARTVM_JAILER`).
///
/// # Panics
/// When there is none.
pub fn jailer() -> PathBuf {
    find("SMARTVM_JAILER", "jailer")
}

/// The variable that the emulated host sets for the tests in it.
pub(crate) const EMULATED: &str = "SMARTVM_EMULATED";

/// How long a test may wait: `here` on a machine's own processor, ten times as long on the emulated host, where a
/// start takes about that much longer.
///
/// For bounds that end a test which would hang, and for those that the product promises to keep on real machines.
pub fn patience(here: Duration) -> Duration {
    if env::var_os(EMULATED).is_some() { here * 10 } else { here }
}

fn find(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        return path.into();
    }
    let on_path = env::var_os("PATH")
        .and_then(|dirs| env::split_paths(&dirs).map(|dir| dir.join(name)).find(|path| path.is_file()));
    let cached = dev_cache().join("firecracker").join(format!("v{FIRECRACKER_VERSION}")).join(name);
    on_path.or_else(|| Path::new(&cached).is_file().then(|| cached.clone())).unwrap_or_else(|| {
        panic!(
            "no {name}: run `cargo xtask test`, which fetches it to {}, or set {variable}",
            cached.display()
        )
    })
}
