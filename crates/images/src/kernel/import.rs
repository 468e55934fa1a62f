//! Making a bundle from what the user has: files, packages, directories, this host.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread::{Scope, ScopedJoinHandle};

use super::bundle::{self, StoredKernel};
use super::deb;
use super::error::KernelError;
use super::facts;
use super::lists::Lists;
use super::order::{self, FOR_ROOT, LATER, OFTEN_NEEDED};
use super::tree::{self, Modules, Pass, Tree, read_file};
use super::{Import, Kernel, MAX_FILE, Source, check_name};
use crate::Digest;
use crate::blocking::Abandoned;
use crate::progress::Progress;
use crate::store::Store;

/// Longest list of names in an error.
const SHOWN: usize = 10;

/// Everything that an import does, on a thread that may block. The record is made by the caller.
pub(super) fn build(
    store: &Store,
    import: &Import,
    guest: &[u8],
    progress: &Progress,
    stop: &Abandoned,
) -> Result<Kernel, KernelError> {
    std::thread::scope(|scope| {
        let mut work = Work {
            store,
            scope,
            progress,
            stop,
            kernel: None,
            packages: Vec::new(),
            tree: None,
            lists: Lists::default(),
            modules: Modules::new(),
            config: None,
            release: import.release.clone(),
        };
        match &import.source {
            Source::Host => work.host(Path::new("/"))?,
            Source::Paths(paths) => {
                for path in paths {
                    work.path(path)?;
                }
            }
        }
        work.finish(import, guest)
    })
}

struct Work<'scope, 'env> {
    store: &'scope Store,
    scope: &'scope Scope<'scope, 'env>,
    progress: &'scope Progress,
    stop: &'scope Abandoned,
    /// The kernel is unpacked and stored while the modules are read.
    kernel: Option<(String, ScopedJoinHandle<'scope, Result<StoredKernel, KernelError>>)>,
    packages: Vec<PathBuf>,
    tree: Option<(PathBuf, Tree)>,
    lists: Lists,
    modules: Modules,
    config: Option<Vec<u8>>,
    /// The release that was asked for, or that modules or file names tell.
    release: Option<String>,
}

impl<'scope> Work<'scope, '_> {
    fn path(&mut self, path: &Path) -> Result<(), KernelError> {
        let metadata = fs::metadata(path).map_err(|error| KernelError::read(path, error))?;
        if metadata.is_dir() {
            return self.directory(path);
        }
        let mut head = Vec::new();
        let (file, _) = tree::open(path).map_err(|error| KernelError::read(path, error))?;
        file.take(16).read_to_end(&mut head).map_err(|error| KernelError::read(path, error))?;
        if deb::is_package(&head) {
            return self.package(path);
        }
        self.kernel_file(path)?;
        self.beside(path)
    }

    /// What belongs to a kernel file and lies where distributions put it: `config-R` beside `vmlinuz-R`, and
    /// `lib/modules/R` beside the folder of both.
    fn beside(&mut self, kernel: &Path) -> Result<(), KernelError> {
        let name = kernel.file_name().and_then(|name| name.to_str());
        let Some(release) = name.and_then(release_of) else { return Ok(()) };
        let folder =
            kernel.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.config_in(folder, release)?;
        let above = folder.join("..");
        if self.tree.is_none() {
            self.tree_in(&above, release)?;
        }
        Ok(())
    }

    fn directory(&mut self, dir: &Path) -> Result<(), KernelError> {
        let is_tree = Lists::NAMES.iter().chain(&["modules.order"]).any(|name| dir.join(name).is_file());
        if is_tree {
            if dir.join("vmlinuz").is_file() && self.kernel.is_none() {
                self.kernel_file(&dir.join("vmlinuz"))?;
                self.optional_config(&dir.join("config"))?;
            }
            return self.add_tree(dir);
        }
        if ["boot", "lib/modules", "usr/lib/modules"].iter().any(|name| dir.join(name).is_dir()) {
            return self.root(dir);
        }
        // A folder such as /boot.
        let kernels = kernels_in(dir)?;
        let release = self.pick(dir, &kernels)?;
        if let Some((path, release)) = release {
            self.kernel_file(&path)?;
            self.config_in(dir, &release)?;
        }
        Ok(())
    }

    fn host(&mut self, root: &Path) -> Result<(), KernelError> {
        let running = || rustix::system::uname().release().to_string_lossy().into_owned();
        self.release.get_or_insert_with(running);
        self.root(root)
    }

    /// A root file system, or the part of one with `boot` and `lib/modules`.
    fn root(&mut self, root: &Path) -> Result<(), KernelError> {
        let mut kernels = kernels_in(&root.join("boot"))?;
        for modules in ["lib/modules", "usr/lib/modules"] {
            for tree in names_in(&root.join(modules))? {
                let kernel = root.join(modules).join(&tree).join("vmlinuz");
                if kernel.is_file() && !kernels.iter().any(|(_, release)| *release == tree) {
                    kernels.push((kernel, tree));
                }
            }
        }
        let Some((path, release)) = self.pick(root, &kernels)? else { return Ok(()) };
        self.kernel_file(&path)?;
        self.config_in(&root.join("boot"), &release)?;
        self.tree_in(root, &release)
    }

    /// The kernel that is meant among those of a directory. `None` when there is none, and one was given already.
    fn pick(
        &self,
        dir: &Path,
        kernels: &[(PathBuf, String)],
    ) -> Result<Option<(PathBuf, String)>, KernelError> {
        let mut names: Vec<&str> = kernels.iter().map(|(_, release)| release.as_str()).collect();
        names.sort_unstable();
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        names.truncate(SHOWN);
        let names = names.join(", ") + more;
        let dir = dir.display();
        let wrong = |problem: String, hint: String| Err(KernelError::Ambiguous { problem, hint });
        match (&self.release, kernels) {
            (Some(release), _) => match kernels.iter().find(|(_, found)| found == release) {
                Some(found) => Ok(Some(found.clone())),
                None if kernels.is_empty() => wrong(format!("there is no kernel in {dir}"), NO_KERNEL.into()),
                None => {
                    wrong(format!("there is no kernel {release} in {dir}"), format!("There are: {names}."))
                }
            },
            (None, [one]) => Ok(Some(one.clone())),
            (None, []) if self.kernel.is_some() => Ok(None),
            (None, []) => wrong(format!("there is no kernel in {dir}"), NO_KERNEL.into()),
            (None, _) => wrong(
                format!("there is more than one kernel in {dir}"),
                format!("Say which release: {names}."),
            ),
        }
    }

    fn kernel_file(&mut self, path: &Path) -> Result<(), KernelError> {
        let image = read_file(path, MAX_FILE)?;
        start(&mut self.kernel, self.scope, (self.store, self.stop), path.display().to_string(), image)
    }

    fn config_in(&mut self, folder: &Path, release: &str) -> Result<(), KernelError> {
        self.optional_config(&folder.join(format!("config-{release}")))
    }

    fn optional_config(&mut self, path: &Path) -> Result<(), KernelError> {
        match read_file(path, super::lists::MAX_LIST) {
            Ok(config) => self.config = Some(config),
            Err(KernelError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn tree_in(&mut self, root: &Path, release: &str) -> Result<(), KernelError> {
        let places = ["lib/modules", "usr/lib/modules"].map(|place| root.join(place).join(release));
        match places.into_iter().find(|place| place.is_dir()) {
            Some(place) => self.add_tree(&place),
            None => Ok(()),
        }
    }

    fn add_tree(&mut self, dir: &Path) -> Result<(), KernelError> {
        let (tree, lists) = Tree::directory(dir)?;
        self.lists = lists;
        self.tree = Some((dir.to_owned(), tree));
        Ok(())
    }

    fn package(&mut self, path: &Path) -> Result<(), KernelError> {
        let wanted: BTreeSet<String> =
            FOR_ROOT.iter().chain(&LATER).chain(&OFTEN_NEEDED).map(|name| (*name).to_owned()).collect();
        let mut pass = Pass::new(&wanted, self.release.clone(), std::mem::take(&mut self.lists));
        let (slot, scope, to) = (&mut self.kernel, self.scope, (self.store, self.stop));
        pass.read(path, (self.progress, self.stop), &mut |inner, image| {
            start(slot, scope, to, format!("{inner} in {}", path.display()), image)
        })?;
        let Pass { release, modules, lists, config, .. } = pass;
        self.lists = lists;
        self.modules.extend(modules);
        self.config = config.or(self.config.take());
        self.release = release;
        self.packages.push(path.to_owned());
        Ok(())
    }

    fn finish(mut self, import: &Import, guest: &[u8]) -> Result<Kernel, KernelError> {
        let Some((what, kernel)) = self.kernel.take() else {
            return Err(KernelError::Ambiguous {
                problem: "there is no kernel in what was given".into(),
                hint: NO_KERNEL.into(),
            });
        };
        let (progress, stop) = (self.progress, self.stop);
        let (order, has_tree) = match (&self.tree, &self.release) {
            (Some((_, tree)), _) => {
                let fetch = |names: &BTreeSet<String>| tree.fetch(names, progress, stop);
                (order::resolve(&mut self.modules, &self.lists, fetch)?, true)
            }
            (None, Some(release)) if !self.packages.is_empty() => {
                let tree = Tree::Packages { paths: self.packages.clone(), release: release.clone() };
                let fetch = |names: &BTreeSet<String>| {
                    // Those that are nowhere are soft, or reported by their names.
                    progress.note(format!("reading the package again for {} more modules", names.len()));
                    tree.fetch(names, progress, stop)
                };
                (order::resolve(&mut self.modules, &self.lists, fetch)?, true)
            }
            _ => (order::Order::default(), false),
        };
        let (initramfs, initramfs_size) = bundle::store_initramfs(self.store, guest, &self.modules, &order)?;
        let kernel = kernel.join().map_err(|_| KernelError::Stopped)??;
        self.check_release(&what, &kernel)?;

        let modules = [order.for_root, order.later].concat();
        let carried = modules.iter().cloned().collect();
        let config = self.config.as_ref().or(kernel.config.as_ref()).map(|text| facts::parse_config(text));
        let facts = facts::find(config.as_ref(), &self.lists, has_tree, &carried);
        let name = match &import.name {
            Some(name) => name.clone(),
            None if kernel.release().is_empty() => format!("kernel-{}", &kernel.digest.hex()[..12]),
            None => kernel.release().to_owned(),
        };
        check_name(&name)?;
        Ok(Kernel {
            name,
            release: kernel.release().to_owned(),
            version: kernel.version,
            compressed_by: kernel.compressed_by.map(str::to_owned),
            vmlinux: kernel.digest,
            vmlinux_size: kernel.size,
            initramfs,
            initramfs_size,
            guest: Digest::of(guest),
            modules,
            config_known: config.is_some(),
            facts,
        })
    }

    /// Modules of one kernel crash another, or are refused by it.
    fn check_release(&self, what: &str, kernel: &StoredKernel) -> Result<(), KernelError> {
        let wrong = self.modules.values().find_map(|module| {
            let built_for = module.info.release.as_deref()?;
            (!kernel.release().is_empty() && built_for != kernel.release())
                .then_some((&module.path, built_for))
        });
        match wrong {
            Some((path, built_for)) => Err(KernelError::malformed(
                what,
                format!("it is kernel {}, but its module {path} is for {built_for}", kernel.release()),
            )),
            None => Ok(()),
        }
    }
}

const NO_KERNEL: &str = "Give a vmlinuz or vmlinux, the package with it (not only the one with its modules or headers), \
                         or a directory that holds boot/vmlinuz-* and lib/modules.";

type Slot<'scope> = Option<(String, ScopedJoinHandle<'scope, Result<StoredKernel, KernelError>>)>;

/// Begins to unpack the kernel, of which there may be one.
fn start<'scope>(
    slot: &mut Slot<'scope>,
    scope: &'scope Scope<'scope, '_>,
    (store, stop): (&'scope Store, &'scope Abandoned),
    what: String,
    image: Vec<u8>,
) -> Result<(), KernelError> {
    if let Some((first, _)) = slot {
        return Err(KernelError::Ambiguous {
            problem: format!("there are two kernels: {first} and {what}"),
            hint: "Import them one by one.".into(),
        });
    }
    let name = what.clone();
    let thread = std::thread::Builder::new().name("kernel-import".into());
    let kernel = thread
        .spawn_scoped(scope, move || bundle::store_kernel(store, &name, image, stop))
        .map_err(|error| KernelError::read(&what, error))?;
    *slot = Some((what, kernel));
    Ok(())
}

/// Kernel images in a folder such as /boot, by the release in their names.
fn kernels_in(folder: &Path) -> Result<Vec<(PathBuf, String)>, KernelError> {
    let names = names_in(folder)?;
    let mut kernels: Vec<(PathBuf, String)> = Vec::new();
    for name in names {
        // vmlinuz comes after vmlinux in the order of names, and is what boots.
        if let Some(release) = release_of(&name) {
            kernels.retain(|(_, other)| other != release);
            kernels.push((folder.join(&name), release.to_owned()));
        }
    }
    Ok(kernels)
}

/// The sorted names in a folder; none when it is not there.
fn names_in(folder: &Path) -> Result<Vec<String>, KernelError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| KernelError::read(folder, error))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| KernelError::read(folder, error))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn release_of(name: &str) -> Option<&str> {
    let release = name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-"))?;
    let is_kernel = !release.is_empty() && !release.ends_with(".old") && !release.starts_with("0-rescue");
    is_kernel.then_some(release)
}
