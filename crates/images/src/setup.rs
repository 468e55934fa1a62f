//! Getting a fresh host ready: what would be fetched and how large it is, fetching it, or taking it from a folder.
//!
//! [`Setup::plan`] asks, [`Setup::run`] does. On a host without a network, [`Setup::import_dir`] takes what somebody has
//! brought along, by recognising files; a plan there fails in one message that names the ways out, unless
//! everything wanted is in the store.

mod error;
mod recognise;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::{self, BaseError, BaseImage, BaseImages, Resolved};
use crate::download::{self, Downloader};
use crate::image::{self, ImageError, ImportOptions, ImportSource, Reference};
use crate::kernel;
use crate::release::{self, Installed, ReleaseError, Releases};
use crate::store::Store;
pub use error::SetupError;
pub use recognise::{Contents, Kind, Recognised, recognise};

/// What a host is to have.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The Firecracker release, if one.
    pub firecracker: Option<release::Wanted>,
    /// The base image, if one.
    pub base: Option<base::Wanted>,
}

impl Default for Wanted {
    /// The newest release and the newest base image.
    fn default() -> Self {
        Self { firecracker: Some(release::Wanted::Latest), base: Some(base::Wanted::default()) }
    }
}

/// One thing that a host is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What it is, for people.
    pub what: String,
    /// Whether the store has it already.
    pub present: bool,
    /// Bytes to fetch, where somebody says how many.
    pub size: Option<u64>,
}

/// What would be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In the order in which it is done.
    pub steps: Vec<Step>,
    /// Bytes that are free for the store.
    pub free_bytes: u64,
    firecracker: Option<release::Wanted>,
    base: Option<(Resolved, bool)>,
}

impl Plan {
    /// Whether nothing is to be fetched.
    pub fn is_done(&self) -> bool {
        self.steps.iter().all(|step| step.present)
    }

    /// Bytes to fetch in all, as far as they are known, and whether that is all of them.
    pub fn size(&self) -> (u64, bool) {
        let missing = || self.steps.iter().filter(|step| !step.present);
        let known = missing().filter_map(|step| step.size).fold(0, u64::saturating_add);
        (known, missing().all(|step| step.size.is_some()))
    }
}

/// What a run has brought or found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    /// The Firecracker release.
    pub firecracker: Option<Installed>,
    /// The base image.
    pub base: Option<BaseImage>,
}

/// What became of a folder's files.
#[derive(Debug, Default)]
pub struct Report {
    /// What was taken, and what it is now.
    pub imported: Vec<(PathBuf, String)>,
    /// What could not be taken although it was recognised.
    pub failed: Vec<(PathBuf, SetupError)>,
    /// What was left alone, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Gets hosts ready.
#[derive(Debug, Clone)]
pub struct Setup {
    store: Store,
    downloader: Downloader,
    releases: Releases,
    bases: BaseImages,
}

impl Setup {
    /// Everything goes into `store`, fetched by `downloader` from where the options say.
    pub fn new(
        store: Store,
        downloader: Downloader,
        releases: release::Options,
        bases: base::Options,
    ) -> Self {
        let releases = Releases::new(store.clone(), downloader.clone(), releases);
        let bases = BaseImages::new(store.clone(), downloader.clone(), releases.clone(), bases);
        Self { store, downloader, releases, bases }
    }

    /// The releases that this installs.
    pub fn releases(&self) -> &Releases {
        &self.releases
    }

    /// The base images that this imports.
    pub fn bases(&self) -> &BaseImages {
        &self.bases
    }

    /// What would be fetched, and how large it is. Only lists, manifests and sizes are asked for.
    ///
    /// Where the network cannot be reached, an installed release is `latest`, and a base image that came by the same
    /// preset is that preset.
    ///
    /// # Errors
    /// [`SetupError::Offline`] when something is missing and nothing can be reached; others when a place
    /// answers and has not what is wanted.
    pub async fn plan(&self, wanted: &Wanted) -> Result<Plan, SetupError> {
        let free_bytes = self.store.free_bytes()?;
        let mut plan = Plan { steps: Vec::new(), free_bytes, firecracker: None, base: None };
        let mut missing = Vec::new();
        let mut unreachable = None;
        if let Some(firecracker) = wanted.firecracker {
            match self.plan_firecracker(firecracker).await {
                Ok((exactly, step)) => {
                    plan.firecracker = Some(release::Wanted::Exactly(exactly));
                    plan.steps.push(step);
                }
                Err(SetupError::Release(ReleaseError::Download(source))) if source.is_offline() => {
                    missing.push("Firecracker");
                    unreachable.get_or_insert(source);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(base) = &wanted.base {
            match self.plan_base(base, &mut plan).await {
                Err(error) if error.is_offline() => match error {
                    SetupError::Base(
                        BaseError::Download(source) | BaseError::Release(ReleaseError::Download(source)),
                    ) => {
                        missing.push("base image");
                        unreachable.get_or_insert(source);
                    }
                    error => return Err(error),
                },
                planned => planned?,
            }
        }
        match unreachable {
            Some(source) => Err(SetupError::Offline { missing: missing.join(" and no "), source }),
            None => Ok(plan),
        }
    }

    /// Does what a plan says.
    ///
    /// # Errors
    /// Something cannot be fetched, or is not what it should be. What was done before stays done.
    pub async fn run(&self, plan: &Plan) -> Result<Done, SetupError> {
        let (known, _) = plan.size();
        if known > plan.free_bytes {
            return Err(SetupError::NoRoom {
                needed: known,
                free: plan.free_bytes,
                dir: self.store.dir().to_owned(),
            });
        }
        let firecracker = match plan.firecracker {
            Some(wanted) => Some(self.releases.install(wanted, false).await?),
            None => None,
        };
        let base = match &plan.base {
            Some((resolved, force)) => Some(self.bases.import(resolved, *force).await?),
            None => None,
        };
        Ok(Done { firecracker, base })
    }

    /// Takes what is in a folder: Firecracker releases with their `.sha256.txt`, manifests of base images with their files,
    /// kernels, and images: OCI layouts and archives, `docker save` archives, root file systems as tar. An image that does not
    /// bring its name is called like its file, where no other image is. One file that is bad does not keep the others out.
    ///
    /// # Errors
    /// The folder cannot be read, or holds nothing that is recognised.
    pub async fn import_dir(&self, dir: &Path) -> Result<Report, SetupError> {
        // Manifests name their files by absolute paths.
        let dir =
            &std::path::absolute(dir).map_err(|source| SetupError::Read { path: dir.to_owned(), source })?;
        let Contents { found, skipped } = recognise(dir)?;
        if found.is_empty() {
            return Err(SetupError::NothingFound { dir: dir.to_owned() });
        }
        let mut report = Report { skipped, ..Report::default() };
        // What belongs to a base image is not a kernel of its own.
        let mut claimed = Vec::new();
        for Recognised { path, kind } in &found {
            let taken = match kind {
                Kind::Release { checksum } => self.take_release(path, checksum.as_deref()).await,
                Kind::Manifest => self.take_manifest(path, &mut claimed).await,
                Kind::Kernel if claimed.contains(path) => continue,
                Kind::Kernel => self.take_kernel(path).await,
                Kind::Rootfs => {
                    if !claimed.contains(path) {
                        let why =
                            "a root file system needs a manifest beside it that says how it boots".to_owned();
                        report.skipped.push((path.clone(), why));
                    }
                    continue;
                }
                Kind::Image => self.take_image(path).await,
            };
            match taken {
                Ok(what) => {
                    self.downloader.progress().note(format!("{} is {what}", path.display()));
                    report.imported.push((path.clone(), what));
                }
                Err(error) => report.failed.push((path.clone(), error)),
            }
        }
        Ok(report)
    }

    async fn plan_firecracker(
        &self,
        wanted: release::Wanted,
    ) -> Result<(release::Version, Step), SetupError> {
        match self.releases.plan(wanted).await {
            Ok(plan) => {
                let what = format!("Firecracker {}", plan.version);
                Ok((plan.version, Step { what, present: plan.installed, size: plan.size }))
            }
            Err(ReleaseError::Download(source))
                if source.is_offline() && wanted == release::Wanted::Latest =>
            {
                let Some(installed) = release::default(&self.store)? else {
                    return Err(ReleaseError::Download(source).into());
                };
                self.releases.programs(&installed)?;
                let what = format!("Firecracker {}", installed.version);
                Ok((installed.version, Step { what, present: true, size: None }))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn plan_base(&self, wanted: &base::Wanted, plan: &mut Plan) -> Result<(), SetupError> {
        let (resolved, present) = match self.bases.resolve(wanted).await {
            Ok(resolved) => {
                let present = !wanted.force && self.bases.look_for(&resolved.bundle_id).await?.is_some();
                (resolved, present)
            }
            Err(error) if error.is_offline() && !wanted.force => match self.bases.kept_for(wanted).await? {
                Some(kept) => {
                    let what = format!("the base image {}", kept.bundle_id);
                    plan.steps.push(Step { what, present: true, size: None });
                    return Ok(());
                }
                None => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        };
        let size = if present { None } else { self.bases.size(&resolved).await? };
        let what = format!("the base image {} ({})", resolved.bundle_id, resolved.name);
        plan.steps.push(Step { what, present, size });
        plan.base = Some((resolved, wanted.force));
        Ok(())
    }

    async fn take_release(&self, path: &Path, checksum: Option<&Path>) -> Result<String, SetupError> {
        let Some(checksum) = checksum else {
            return Err(SetupError::NoChecksum { path: path.to_owned() });
        };
        let request = download::Request::new("the published digest", local(checksum)?, 4096);
        let text = self.downloader.bytes(&request).await?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let digest = release::read_checksum(&text, &name)
            .ok_or_else(|| SetupError::BadChecksum { path: checksum.to_owned() })?;
        let installed = self.releases.import(path, digest).await?;
        Ok(format!("Firecracker {}", installed.version))
    }

    async fn take_manifest(&self, path: &Path, claimed: &mut Vec<PathBuf>) -> Result<String, SetupError> {
        let mut resolved = self.bases.read_manifest(&local(path)?).await?;
        let dir = path.parent().unwrap_or(Path::new("."));
        for artifact in [&mut resolved.kernel, &mut resolved.rootfs] {
            artifact.find_in(dir);
            if let base::Place::Path(path) = &artifact.place {
                claimed.push(path.clone());
            }
        }
        let image = self.bases.import(&resolved, false).await?;
        Ok(format!("the base image {}", image.bundle_id))
    }

    async fn take_kernel(&self, path: &Path) -> Result<String, SetupError> {
        let import = kernel::Import::paths([path.to_owned()]);
        let kernel = kernel::import(&self.store, import, self.downloader.progress()).await?;
        Ok(format!("the kernel {}", kernel.name))
    }

    async fn take_image(&self, path: &Path) -> Result<String, SetupError> {
        let source = ImportSource::Path(path.to_owned());
        let options = ImportOptions::default();
        let imported = image::import(&self.store, source, &options, self.downloader.progress()).await?;
        let id = imported.image.id.to_string();
        let named = image::resolve(&self.store, &id)?;
        let named = match name_of_file(path).filter(|_| named.names.is_empty()) {
            Some(name)
                if matches!(
                    image::resolve(&self.store, &name.to_string()),
                    Err(ImageError::NotFound { .. })
                ) =>
            {
                image::tag(&self.store, &id, &name)?
            }
            _ => named,
        };
        let called = named.names.first().map_or(id, Reference::familiar);
        Ok(format!("the image {called}"))
    }
}

/// What an image is called that does not say it: `busybox-1.36` for `Busybox-1.36.tar.gz`.
fn name_of_file(path: &Path) -> Option<Reference> {
    let name = path.file_name()?.to_str()?.to_lowercase();
    let ends = [".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2"];
    let stem = ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    stem.parse().ok()
}

fn local(path: &Path) -> Result<url::Url, SetupError> {
    Ok(download::place_of(path)?)
}
