//! Getting a fresh host ready: what it has, what it lacks, and where that comes from.
//!
//! What is fetched is the work of [`smartvm_images::setup`]; here it is chosen for this host: a Firecracker that is there
//! already will do, and this host's own kernel is taken before one is fetched.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde::Serialize;
use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_host::FirecrackerBinary;
use smartvm_host::binary::BinaryError;
use smartvm_images::base::{self, BaseImage, Preset};
use smartvm_images::download::{DownloadError, Downloader};
use smartvm_images::kernel::{self, Import, Kernel, KernelError, Source};
use smartvm_images::release::{self, Installed};
use smartvm_images::setup::{Plan, Report, Setup, SetupError, Wanted};
use smartvm_images::store::Store;

use crate::directories::{Directories, OpenStoreError};
use crate::firecracker::{FindError, find_firecracker};

/// Where the kernel is to come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KernelWish {
    /// What is there already, else this host's own where it can be read, else the newest base image.
    #[default]
    Auto,
    /// This host's own.
    Host,
    /// The one of a base image.
    Base(Preset),
}

/// How a host gets something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is there.
    None,
    /// From the network.
    Fetch,
    /// From this host.
    Import,
}

/// One thing that a host is to have. The names of the fields are stable in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What it is, for people.
    pub what: String,
    /// How it comes.
    pub action: Action,
    /// Bytes to fetch, where somebody says how many.
    pub size: Option<u64>,
}

/// What would be done.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// In the order in which it is done.
    pub steps: Vec<Step>,
    /// Bytes to fetch, as far as they are known.
    pub size: u64,
    /// Whether `size` is all of it.
    pub size_is_complete: bool,
    /// Bytes that are free for the store.
    pub free_bytes: u64,
    fetch: Plan,
    import: Option<Import>,
}

impl HostPlan {
    /// Whether nothing is to be done.
    pub fn is_done(&self) -> bool {
        self.steps.iter().all(|step| step.action == Action::None)
    }

    /// Whether something is to be fetched.
    pub fn fetches(&self) -> bool {
        self.steps.iter().any(|step| step.action == Action::Fetch)
    }
}

/// What a run has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDone {
    /// The Firecracker release, where one was wanted.
    pub firecracker: Option<Installed>,
    /// The base image, where one was wanted.
    pub base: Option<BaseImage>,
    /// This host's own kernel, where it was imported.
    pub kernel: Option<Kernel>,
}

/// Gets this host ready.
#[derive(Debug, Clone)]
pub struct HostSetup {
    directories: Directories,
    store: Store,
    downloader: Downloader,
    setup: Setup,
}

impl HostSetup {
    /// Into the store of these directories, by `downloader`, from where the environment says.
    ///
    /// # Errors
    /// The store cannot be opened, or a variable holds something else than URLs and paths.
    pub fn new(directories: &Directories, downloader: Downloader) -> Result<Self, HostSetupError> {
        let store = directories.open_store()?;
        let (releases, bases) = (release::Options::from_environment()?, base::Options::from_environment()?);
        let setup = Setup::new(store.clone(), downloader.clone(), releases, bases);
        Ok(Self { directories: directories.clone(), store, downloader, setup })
    }

    /// What this host lacks. Only lists, manifests and sizes are fetched.
    ///
    /// # Errors
    /// [`SetupError::Offline`] when something is missing and nothing can be reached; others when a place answers and
    /// has not what is wanted, or a Firecracker is named that is none.
    pub async fn plan(&self, wish: KernelWish) -> Result<HostPlan, HostSetupError> {
        let found = self.firecracker().await?;
        let kept = match kernel::default(&self.store) {
            _ if wish != KernelWish::Auto => None,
            Ok(kernel) => Some(kernel),
            Err(KernelError::NoDefault) => None,
            Err(error) => return Err(error.into()),
        };
        let host = match (wish, &kept) {
            (KernelWish::Auto, None) => host_kernel(Path::new("/")),
            (KernelWish::Host, _) => Some(host_kernel(Path::new("/")).ok_or(HostSetupError::NoHostKernel)?),
            _ => None,
        };
        let preset = match (wish, &kept, &host) {
            (KernelWish::Base(preset), ..) => Some(preset),
            (KernelWish::Auto, None, None) => Some(Preset::default()),
            _ => None,
        };
        let wanted = Wanted {
            firecracker: found.is_none().then_some(release::Wanted::Latest),
            base: preset.map(|preset| base::Wanted { preset, ..base::Wanted::default() }),
        };
        let fetch = self.setup.plan(&wanted).await?;
        let (size, size_is_complete) = fetch.size();
        let mut steps = Vec::new();
        if let Some(found) = &found {
            let what = format!("Firecracker {} ({})", found.version, found.path.display());
            steps.push(Step { what, action: Action::None, size: None });
        }
        steps.extend(fetch.steps.iter().map(|step| Step {
            what: step.what.clone(),
            action: if step.present { Action::None } else { Action::Fetch },
            size: step.size,
        }));
        if let Some(kernel) = &kept {
            let what = format!("the kernel {}", kernel.name);
            steps.push(Step { what, action: Action::None, size: None });
        }
        let import = host.map(|(path, release)| {
            let what = format!("this host's own kernel {release} ({})", path.display());
            steps.push(Step { what, action: Action::Import, size: None });
            Import { source: Source::Host, release: Some(release), name: None }
        });
        Ok(HostPlan { steps, size, size_is_complete, free_bytes: fetch.free_bytes, fetch, import })
    }

    /// Does what a plan says.
    ///
    /// # Errors
    /// Something cannot be fetched or imported. What was done before stays done.
    ///
    /// # Cancel safety
    /// Dropped, it leaves what was done, and parts of downloads that the next run goes on with.
    pub async fn run(&self, plan: &HostPlan) -> Result<HostDone, HostSetupError> {
        let done = self.setup.run(&plan.fetch).await?;
        let kernel = match &plan.import {
            Some(import) => {
                Some(kernel::import(&self.store, import.clone(), self.downloader.progress()).await?)
            }
            None => None,
        };
        Ok(HostDone { firecracker: done.firecracker, base: done.base, kernel })
    }

    /// Takes what is in a folder, for a host without a network.
    ///
    /// # Errors
    /// The folder cannot be read, or holds nothing that is recognised.
    pub async fn import_dir(&self, dir: &Path) -> Result<Report, HostSetupError> {
        Ok(self.setup.import_dir(dir).await?)
    }

    /// The store that everything goes into.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A Firecracker that will do.
    async fn firecracker(&self) -> Result<Option<FirecrackerBinary>, HostSetupError> {
        let named = std::env::var_os("SMARTVM_FIRECRACKER").is_some_and(|name| !name.is_empty());
        match find_firecracker(None, &self.directories).await {
            // What somebody has named is used, whatever is installed: doctor tells when it is too old.
            Ok(found) if found.version.is_supported() || named => Ok(Some(found)),
            Ok(_) | Err(FindError::Binary(BinaryError::NotFound)) => Ok(None),
            // An installed release goes before PATH, but not before what is named.
            Err(error) if named => Err(HostSetupError::Firecracker(Box::new(error))),
            Err(FindError::Binary(_) | FindError::Release(_)) => Ok(None),
            Err(FindError::Store(error)) => Err(error.into()),
        }
    }
}

/// The running kernel's file and release, where it and its modules can be read.
fn host_kernel(root: &Path) -> Option<(PathBuf, String)> {
    let release = rustix::system::uname().release().to_str().ok()?.to_owned();
    let modules = root.join("lib/modules").join(&release);
    let places = [root.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
    let path = places.into_iter().find(|path| path.is_file() && access(path, Access::READ_OK).is_ok())?;
    modules.join("modules.dep").is_file().then_some((path, release))
}

/// A host that cannot be made ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostSetupError {
    /// What is to be fetched cannot be had.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenStoreError),
    /// A variable does not hold what it should.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The Firecracker that is named cannot be used.
    #[error(transparent)]
    Firecracker(Box<FindError>),
    /// The kernel cannot be imported.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// This host's own kernel is not there.
    #[error("this host's own kernel and its modules cannot be read in /boot and /lib/modules")]
    NoHostKernel,
}

impl HostSetupError {
    fn explained(&self) -> Option<&dyn Explain> {
        match self {
            Self::Setup(error) => Some(error),
            Self::Store(error) => Some(error),
            Self::Download(error) => Some(error),
            Self::Firecracker(error) => Some(&**error),
            Self::Kernel(error) => Some(error),
            Self::NoHostKernel => None,
        }
    }
}

impl Explain for HostSetupError {
    fn code(&self) -> Code {
        self.explained().map_or(Code::NotFound, Explain::code)
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Setup(SetupError::Offline { .. }) => Some(format!(
                "{}; a Firecracker that is here already can be named by SMARTVM_FIRECRACKER, and a kernel be given by `smartvm \
                 kernel import`",
                self.explained().and_then(Explain::hint).unwrap_or_default()
            )),
            Self::NoHostKernel => {
                Some("run as root where /boot is kept for it, or take another kernel: `smartvm setup --kernel latest`".into())
            }
            _ => self.explained().and_then(Explain::hint),
        }
    }

    fn happened(&self) -> Happened {
        self.explained().map_or(Happened::NeverStarted, Explain::happened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_kernel_counts_only_together_with_its_modules() {
        let root = tempfile::tempdir().unwrap();
        let release = rustix::system::uname().release().to_str().unwrap().to_owned();
        assert_eq!(host_kernel(root.path()), None);
        let kernel = root.path().join(format!("boot/vmlinuz-{release}"));
        std::fs::create_dir_all(kernel.parent().unwrap()).unwrap();
        std::fs::write(&kernel, "x").unwrap();
        assert_eq!(host_kernel(root.path()), None);
        let modules = root.path().join("lib/modules").join(&release);
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(modules.join("modules.dep"), "").unwrap();
        assert_eq!(host_kernel(root.path()), Some((kernel, release)));
    }
}
