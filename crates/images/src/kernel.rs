//! Kernel bundles: a kernel as Firecracker boots it, and the initramfs that fits it.
//!
//! [`import`] makes one from what people have: a `vmlinuz` or `vmlinux`, a Debian package, a directory, this host's
//! own kernel. The kernel is unpacked to the ELF file that Firecracker wants. The initramfs holds the guest's first
//! process and, where the kernel's drivers are modules, exactly those modules that Firecracker's devices and our root
//! file systems need, in the order of loading (`order`). Equal input gives equal bytes.
//!
//! ```text
//! bzImage ──────────── bzimage ── compression ─┐
//! .deb ──── deb ─┬──── (vmlinuz)               ├── bundle ── store
//! directory ─────┴──── tree ── modinfo, lists ── order ── initramfs
//!                      config ── facts
//! ```
//!
//! Everything that is read may be hostile: it ends in [`KernelError`] within bounded memory, never in a panic.
//! What a kernel can do, and what will not work with it, [`Kernel::facts`] and [`Kernel::consequences`] tell.

mod bundle;
pub mod bzimage;
mod compression;
mod deb;
mod elf;
mod error;
mod facts;
mod import;
pub mod initramfs;
pub mod lists;
pub mod modinfo;
mod order;
#[cfg(test)]
pub(crate) mod pack;
mod refresh;
#[cfg(test)]
mod tests;
mod tree;

use std::path::PathBuf;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

pub use error::KernelError;
pub use facts::{Facts, Presence, consequences, names as fact_names};

use crate::Digest;
use crate::blocking::blocking;
use crate::progress::Progress;
use crate::store::{Kind, Record, RecordId, Store, StoreError};

/// Largest kernel file that is read, compressed or not, in bytes.
const MAX_FILE: u64 = 512 << 20;
/// The name of the record that says which kernel is the default.
const DEFAULT: &str = "kernel";

/// Said of a kernel that came alone.
const NOTHING_KNOWN: &str = "Whether it boots an image is unknown: neither its modules nor its build configuration were \
                             given. If its drivers are modules, it finds no disk.";

/// A kernel bundle, as its record in the store has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// What users call it; usually its release.
    pub name: String,
    /// As `uname -r` prints it. Empty when the kernel does not say.
    pub release: String,
    /// Its greeting without "Linux version": release, who built it with what, when.
    pub version: String,
    /// How it was compressed, when it was.
    pub compressed_by: Option<String>,
    /// The kernel, an ELF file.
    pub vmlinux: Digest,
    /// In bytes.
    pub vmlinux_size: u64,
    /// The initramfs, an uncompressed cpio archive.
    pub initramfs: Digest,
    /// In bytes.
    pub initramfs_size: u64,
    /// The guest's first process in it.
    pub guest: Digest,
    /// The modules in it, in the order of loading.
    pub modules: Vec<String>,
    /// Whether the kernel's build configuration was there, so that `facts` is complete.
    pub config_known: bool,
    /// What the kernel can do.
    pub facts: Facts,
}

impl Kernel {
    /// What does not work with this kernel, one sentence each.
    pub fn consequences(&self) -> Vec<&'static str> {
        let mut said = consequences(&self.facts);
        let is_unknown = |name: &str| self.facts.get(name).is_none_or(|found| *found == Presence::Unknown);
        if ["virtio-blk", "ext4", "overlayfs"].into_iter().any(is_unknown) && self.modules.is_empty() {
            said.push(NOTHING_KNOWN);
        }
        said
    }

    /// Whether both are one kernel with one set of modules, whatever their first processes are.
    fn is_but_for_init(&self, other: &Self) -> bool {
        self.vmlinux == other.vmlinux && self.modules == other.modules
    }

    fn blobs(&self) -> [Digest; 2] {
        [self.vmlinux, self.initramfs]
    }
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Files and directories that make one kernel together: a `vmlinuz` (bzImage), a `vmlinux`, Debian packages, a
    /// directory of modules (`lib/modules/R`), one with `boot` and `lib/modules`, or one like `/boot`.
    /// Beside a `vmlinuz-R`, its `config-R` and `../lib/modules/R` are found.
    Paths(Vec<PathBuf>),
    /// This host's `/boot` and `/lib/modules`: the running kernel when no release is named.
    Host,
}

/// What to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Where from.
    pub source: Source,
    /// Which kernel, as `uname -r` prints it, where there may be several.
    pub release: Option<String>,
    /// The name it gets; its release otherwise. A kernel that has it is replaced.
    pub name: Option<String>,
}

impl Import {
    /// The only kernel in these files and directories.
    pub fn paths(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { source: Source::Paths(paths.into_iter().collect()), release: None, name: None }
    }
}

/// Imports a kernel with our guest init. The first one becomes the default.
///
/// # Errors
/// [`KernelError`]; the store is then as it was, but for blobs that the next gc removes.
///
/// # Cancel safety
/// Dropping the future stops the work soon, with nothing to be seen of it.
pub async fn import(store: &Store, import: Import, progress: &Progress) -> Result<Kernel, KernelError> {
    import_with(store, import, smartvm_guest_binary::GUEST, progress).await
}

/// The same with another first process of the guest.
///
/// # Errors
/// As [`import`].
pub async fn import_with(
    store: &Store,
    import: Import,
    guest: &'static [u8],
    progress: &Progress,
) -> Result<Kernel, KernelError> {
    if let Some(name) = &import.name {
        check_name(name)?;
    }
    let (store, progress) = (store.clone(), progress.clone());
    blocking(move |stop| {
        let kernel = import::build(&store, &import, guest, &progress, stop)?;
        if stop.is() {
            return Err(KernelError::Stopped);
        }
        store.put(Kind::Kernel, &kernel.name, &kernel, &kernel.blobs())?;
        if chosen(&store)?.is_none() {
            set_default(&store, &kernel.name)?;
        }
        Ok(kernel)
    })
    .await
}

/// The kernel with the guest init of this smartvm: itself when it has that, else rebuilt under its name. A host and a
/// guest of different versions may not understand each other, so ask before each boot.
///
/// # Errors
/// When the initramfs is not in the store or is damaged, and when the store cannot be written.
///
/// # Cancel safety
/// As for [`import`].
pub async fn current(store: &Store, kernel: Kernel) -> Result<Kernel, KernelError> {
    static OURS: LazyLock<Digest> = LazyLock::new(|| Digest::of(smartvm_guest_binary::GUEST));
    if kernel.guest == *OURS {
        Ok(kernel)
    } else {
        with_guest(store, kernel, smartvm_guest_binary::GUEST).await
    }
}

async fn with_guest(store: &Store, kernel: Kernel, guest: &'static [u8]) -> Result<Kernel, KernelError> {
    // Two machines that boot it at once do the work once.
    let _lock = store.lock("give guest init to kernel", &kernel.name, &Progress::none()).await?;
    let (store, wanted) = (store.clone(), Digest::of(guest));
    blocking(move |stop| {
        let in_store = |name: &str| store.get::<Kernel>(Kind::Kernel, name);
        if let Some(done) = in_store(&kernel.name)?.filter(|found| found.is_but_for_init(&kernel))
            && done.guest == wanted
        {
            return Ok(done);
        }
        let renewed = refresh::with_guest(&store, &kernel, guest, stop)?;
        // Meanwhile it may have been removed, or another may have been imported under its name: that stays so.
        if in_store(&kernel.name)?.as_ref() == Some(&kernel) {
            store.put(Kind::Kernel, &renewed.name, &renewed, &renewed.blobs())?;
        }
        Ok(renewed)
    })
    .await
}

/// All kernels, by name.
///
/// # Errors
/// When the store cannot be read.
pub fn list(store: &Store) -> Result<Vec<Kernel>, KernelError> {
    Ok(store.list(Kind::Kernel)?.into_iter().map(|(_, kernel)| kernel).collect())
}

/// The kernel of this name.
///
/// # Errors
/// [`KernelError::NotFound`], and when the store cannot be read.
pub fn inspect(store: &Store, name: &str) -> Result<Kernel, KernelError> {
    store.get(Kind::Kernel, name)?.ok_or_else(|| KernelError::NotFound(name.to_owned()))
}

/// The default: the one that was chosen, or was there first.
///
/// # Errors
/// [`KernelError::NoDefault`] when there is none, and when the store cannot be read.
pub fn default(store: &Store) -> Result<Kernel, KernelError> {
    let name = chosen(store)?.ok_or(KernelError::NoDefault)?;
    store.get(Kind::Kernel, &name)?.ok_or(KernelError::NoDefault)
}

/// Makes a kernel the default.
///
/// # Errors
/// [`KernelError::NotFound`], and when the store cannot be written.
pub fn set_default(store: &Store, name: &str) -> Result<(), KernelError> {
    inspect(store, name)?;
    // Kept, so that it does not go with a base-image bundle that it came in.
    let kept = [RecordId::new(Kind::Kernel, name)];
    Ok(store.put_keeping(Kind::Choice, DEFAULT, &name, &[], &kept)?)
}

/// Removes a kernel; its blobs go with the next gc. If it was the default, the most recently used of the others is it
/// now.
///
/// # Errors
/// [`KernelError::NotFound`]; [`KernelError::InUse`] while a machine, a base image or a pinned snapshot needs it.
pub fn remove(store: &Store, name: &str) -> Result<(), KernelError> {
    let kernel = inspect(store, name)?;
    let in_use = |by: String| Err(KernelError::InUse { name: name.to_owned(), by });
    // The blobs of two kernels may be the same: what matters is that somebody keeps them.
    let others = list(store)?.into_iter().filter(|other| other.name != name);
    let kept: Vec<Digest> = others.flat_map(|other| other.blobs()).collect();
    let alone: Vec<Digest> = kernel.blobs().into_iter().filter(|blob| !kept.contains(blob)).collect();
    if let Some(user) = store.users_of(&alone)?.first() {
        return in_use(format!("the machine `{}`", user.id));
    }
    let records =
        |kind| -> Result<Vec<Record<serde_json::Value>>, StoreError> { Ok(store.records(kind)?.records) };
    let keeps = |record: &Record<serde_json::Value>| {
        record.keeps.iter().any(|id| id.kind == Kind::Kernel && id.name == name)
            || record.blobs.iter().any(|blob| alone.contains(blob))
    };
    for kind in [Kind::Base, Kind::Pin] {
        if let Some(record) = records(kind)?.iter().find(|record| keeps(record)) {
            return in_use(format!("the {}", record.id));
        }
    }
    // Asked while it is there: what is gone is nobody's choice.
    let was_default = chosen(store)?.as_deref() == Some(name);
    store.remove(Kind::Kernel, name)?;
    if was_default {
        let next = records(Kind::Kernel)?.into_iter().max_by_key(|record| record.last_used);
        match next {
            Some(next) => set_default(store, &next.id.name)?,
            None => drop(store.remove(Kind::Choice, DEFAULT)?),
        }
    }
    Ok(())
}

/// The name of the default, if it is there.
fn chosen(store: &Store) -> Result<Option<String>, KernelError> {
    let name: Option<String> = store.get(Kind::Choice, DEFAULT)?;
    match name {
        Some(name) if store.record::<serde_json::Value>(Kind::Kernel, &name)?.is_some() => Ok(Some(name)),
        _ => Ok(None),
    }
}

fn check_name(name: &str) -> Result<(), KernelError> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || ".+~_-".contains(char);
    let good = (1..=100).contains(&name.len())
        && name.chars().all(allowed)
        && name.starts_with(|char: char| char.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(KernelError::BadName(name.chars().take(100).collect())) }
}
