//! Where the modules of a kernel come from: a directory, or packages that are read as a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::compression::Compression;
use super::deb::{self, Take};
use super::elf;
use super::error::KernelError;
use super::lists::{Lists, MAX_LIST, module_name};
use super::modinfo::{self, ModuleInfo};
use crate::blocking::Abandoned;
use crate::progress::Progress;

/// Largest module, unpacked. With debugging symbols, some have 100 MB.
const MAX_MODULE: u64 = 256 << 20;
/// Longest text in which a module tells of itself, in bytes. Drivers that bundles carry have a few KB.
const MAX_MODINFO: usize = 64 << 10;
/// All modules of one bundle together, unpacked.
pub(super) const MAX_MODULES: u64 = 512 << 20;
/// Most entries of a directory tree that are looked at.
const MAX_FILES: usize = 200_000;

/// A module that was read.
#[derive(Debug, Clone)]
pub(super) struct Module {
    /// Where it was, relative to the kernel's module directory.
    pub(super) path: String,
    /// The ELF file.
    pub(super) content: Vec<u8>,
    pub(super) info: ModuleInfo,
}

impl Module {
    fn read(path: &str, packed: Vec<u8>, stop: &Abandoned) -> Result<Self, KernelError> {
        let damaged = |problem: &dyn std::fmt::Display| KernelError::malformed(path, problem);
        let limit = usize::try_from(MAX_MODULE).unwrap_or(usize::MAX);
        let content = match Compression::of(&packed) {
            Some(compression) => {
                compression.unpack(&packed, limit, stop).map_err(|damage| damaged(&damage))?
            }
            None => packed,
        };
        if !elf::is_module(&content) {
            return Err(damaged(&"it is no kernel module for x86_64"));
        }
        let info = elf::section(&content, ".modinfo")
            .ok_or_else(|| damaged(&"it says nothing of itself (no .modinfo)"))?;
        if info.len() > MAX_MODINFO {
            return Err(damaged(&"it says too much of itself (.modinfo)"));
        }
        let info = modinfo::parse(info);
        Ok(Self { path: path.to_owned(), content, info })
    }
}

/// Modules by name.
pub(super) type Modules = BTreeMap<String, Module>;

/// The modules of one kernel.
#[derive(Debug)]
pub(super) enum Tree {
    /// `lib/modules/<release>`
    Directory { dir: PathBuf, files: BTreeMap<String, PathBuf> },
    /// Packages, and the release whose modules count.
    Packages { paths: Vec<PathBuf>, release: String },
}

impl Tree {
    /// The tree in a directory, and its lists.
    ///
    /// # Errors
    /// When it cannot be read, or a list is too long.
    pub(super) fn directory(dir: &Path) -> Result<(Self, Lists), KernelError> {
        let mut lists = Lists::default();
        for name in Lists::NAMES {
            let path = dir.join(name);
            match read_file(&path, MAX_LIST) {
                Ok(content) => lists
                    .add(name, &content)
                    .map_err(|problem| KernelError::malformed(path.display().to_string(), problem))?,
                Err(KernelError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let files = match &lists.dep {
            Some(dep) => {
                let inside =
                    |path: &str| !Path::new(path).is_absolute() && !path.split('/').any(|part| part == "..");
                dep.iter()
                    .filter(|(_, module)| inside(&module.path))
                    .map(|(name, module)| (name.clone(), module.path.clone().into()))
                    .collect()
            }
            None => walk(dir)?,
        };
        Ok((Self::Directory { dir: dir.to_owned(), files }, lists))
    }

    /// Those of these modules that are there.
    ///
    /// # Errors
    /// When one cannot be read or is damaged.
    pub(super) fn fetch(
        &self,
        names: &BTreeSet<String>,
        progress: &Progress,
        stop: &Abandoned,
    ) -> Result<Modules, KernelError> {
        match self {
            Self::Directory { dir, files } => {
                let there = names.iter().filter_map(|name| Some((name, files.get(name)?)));
                let read = |(name, path): (&String, &PathBuf)| {
                    let whole = dir.join(path);
                    let content = read_file(&whole, MAX_MODULE)?;
                    Ok((name.clone(), Module::read(&path.display().to_string(), content, stop)?))
                };
                there.map(read).collect()
            }
            Self::Packages { paths, release } => {
                let mut modules = Modules::new();
                for package in paths {
                    let mut pass = Pass::new(names, Some(release.clone()), Lists::default());
                    pass.read(package, (progress, stop), &mut |_, _| Ok(()))?;
                    for (name, module) in pass.modules {
                        modules.entry(name).or_insert(module);
                    }
                }
                Ok(modules)
            }
        }
    }
}

/// Gets a kernel image with its path.
pub(super) type GiveKernel<'a> = dyn FnMut(&str, Vec<u8>) -> Result<(), KernelError> + 'a;

/// One way through a package.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    wanted: &'a BTreeSet<String>,
    /// Of which kernel modules and lists are; the first one that is seen, when nobody said.
    pub(super) release: Option<String>,
    pub(super) modules: Modules,
    pub(super) lists: Lists,
    /// The kernel's build configuration.
    pub(super) config: Option<Vec<u8>>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(wanted: &'a BTreeSet<String>, release: Option<String>, lists: Lists) -> Self {
        Self { wanted, release, modules: Modules::new(), lists, config: None }
    }

    /// Reads the wanted modules, the lists, the config; `kernel` gets each kernel image with its path, as soon as it is
    /// there.
    pub(super) fn read(
        &mut self,
        package: &Path,
        (progress, stop): (&Progress, &Abandoned),
        kernel: &mut GiveKernel<'_>,
    ) -> Result<(), KernelError> {
        let wanted = self.wanted;
        let mut total = 0;
        let take = |path: &str| match Place::of(path) {
            Some(Place::Kernel) => Take::UpTo(super::MAX_FILE),
            Some(Place::Config) => Take::UpTo(MAX_LIST),
            Some(Place::InTree(_, inner)) if Lists::NAMES.contains(&inner) => Take::UpTo(MAX_LIST),
            Some(Place::InTree(_, inner))
                if inner.contains(".ko") && wanted.contains(&module_name(inner)) =>
            {
                Take::UpTo(MAX_MODULE)
            }
            _ => Take::Skip,
        };
        deb::read(package, (progress, stop), take, |path, content| {
            match Place::of(path) {
                Some(Place::Kernel) => kernel(path, content)?,
                Some(Place::Config) => self.config = Some(content),
                Some(Place::InTree(release, inner)) => {
                    if self.release.get_or_insert_with(|| release.to_owned()) != release {
                        return Ok(());
                    }
                    if Lists::NAMES.contains(&inner) {
                        let wrong = |problem| {
                            KernelError::malformed(format!("{path} in {}", package.display()), problem)
                        };
                        return self.lists.add(inner, &content).map_err(wrong);
                    }
                    let module = Module::read(inner, content, stop)?;
                    total += module.content.len() as u64;
                    if total > MAX_MODULES {
                        return Err(too_many_bytes(package));
                    }
                    self.modules.entry(module_name(inner)).or_insert(module);
                }
                None => {}
            }
            Ok(())
        })
    }
}

pub(super) fn too_many_bytes(what: &Path) -> KernelError {
    let problem = format!("its modules have more than {} MiB", MAX_MODULES >> 20);
    KernelError::malformed(what.display().to_string(), problem)
}

/// What lies at a path of a package or root file system.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Kernel,
    Config,
    /// In the module directory of a release.
    InTree(&'a str, &'a str),
}

impl<'a> Place<'a> {
    fn of(path: &'a str) -> Option<Self> {
        if let Some(name) = path.strip_prefix("boot/") {
            return match name {
                name if name.contains('/') => None,
                name if name.starts_with("vmlinuz-") || name.starts_with("vmlinux-") => Some(Self::Kernel),
                name if name.starts_with("config-") => Some(Self::Config),
                _ => None,
            };
        }
        let tree = path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")?;
        match tree.split_once('/')? {
            (_, "vmlinuz") => Some(Self::Kernel),
            (_, "config") => Some(Self::Config),
            (release, inner) => Some(Self::InTree(release, inner)),
        }
    }
}

/// Opens a regular file and tells its length. Anything else is refused without waiting for it: a fifo that nobody
/// writes to would hang the import for ever.
pub(super) fn open(path: &Path) -> io::Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }
}

/// The whole of a file that may have `limit` bytes.
pub(super) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, KernelError> {
    let wrong = |error| KernelError::read(path, error);
    let (file, length) = open(path).map_err(wrong)?;
    let mut content = Vec::with_capacity(usize::try_from(length.min(limit)).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut content).map_err(wrong)?;
    if content.len() as u64 > limit {
        return Err(KernelError::malformed(
            path.display().to_string(),
            format!("it has more than {limit} bytes"),
        ));
    }
    Ok(content)
}

/// All module files below, by name. Where there are several of one name, the one that modprobe would take: those in
/// `updates` come first, then the order of paths.
fn walk(top: &Path) -> Result<BTreeMap<String, PathBuf>, KernelError> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    let mut seen = 0;
    while let Some(dir) = dirs.pop() {
        let whole = top.join(&dir);
        let wrong = |error| KernelError::read(&whole, error);
        for entry in fs::read_dir(&whole).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            seen += 1;
            if seen > MAX_FILES {
                let problem = format!("it has more than {MAX_FILES} files");
                return Err(KernelError::malformed(top.display().to_string(), problem));
            }
            let path = dir.join(entry.file_name());
            // A link (`build`, `source`) is not followed: it leads out of the tree.
            let kind = entry.file_type().map_err(wrong)?;
            if kind.is_dir() {
                dirs.push(path);
            } else if let Some(name) =
                entry.file_name().to_str().filter(|name| kind.is_file() && name.contains(".ko"))
            {
                let rank = |path: &Path| (!path.starts_with("updates"), path.to_owned());
                let known = files.entry(module_name(name)).or_insert_with(|| path.clone());
                if rank(&path) < rank(known) {
                    *known = path;
                }
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("modules.dep");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(read_file(&fifo, 10).unwrap_err().to_string().contains("modules.dep"));
        assert!(Tree::directory(dir.path()).is_err());
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("zero")).unwrap();
        assert!(read_file(&dir.path().join("zero"), 10).is_err());
    }

    #[test]
    fn a_module_tells_of_itself_within_bounds() {
        let depends = ["depends=", &"a,".repeat(MAX_MODINFO / 2)].concat();
        let module = elf::tests::module(".modinfo", depends.as_bytes());
        let error = Module::read("a.ko", module, &Abandoned::never()).unwrap_err().to_string();
        assert_eq!(error, "a.ko: it says too much of itself (.modinfo)");
    }

    #[test]
    fn places_in_packages_are_told_apart() {
        assert_eq!(Place::of("boot/vmlinuz-6.1"), Some(Place::Kernel));
        assert_eq!(Place::of("usr/lib/modules/6.1/vmlinuz"), Some(Place::Kernel));
        assert_eq!(Place::of("boot/config-6.1"), Some(Place::Config));
        assert_eq!(Place::of("boot/grub/vmlinuz-6.1"), None);
        assert_eq!(Place::of("lib/modules/6.1/kernel/a.ko"), Some(Place::InTree("6.1", "kernel/a.ko")));
        assert_eq!(Place::of("usr/lib/modules/6.1/modules.dep"), Some(Place::InTree("6.1", "modules.dep")));
        assert_eq!(Place::of("usr/share/doc/x"), None);
    }
}
