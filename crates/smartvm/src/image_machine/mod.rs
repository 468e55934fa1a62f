//! A machine from an image: planned, made and started.
//!
//! ```text
//! image, kernel (store) ─> plan (smartvm_core::image_machine) ─> own disk, initramfs ─> Machine::start ─> guest init's report
//!                            │ shown by a dry run                   │ <data>/machines/<id>/
//!                                                                   └ released with the machine, by gc after a kill
//! ```
//! The image's and the kernel's blobs are marked as used in the store while the machine lives.

mod error;
mod files;
mod report;
mod root;

use serde::{Deserialize, Serialize};
use smartvm_core::id::MachineId;
use smartvm_core::image_machine::{Parts, Plan, Wanted, plan};
use smartvm_core::target::{Arch, FirecrackerVersion, Target};
use smartvm_core::validate::validate_for;
use smartvm_firecracker::Version;
use smartvm_guest_api::boot::{FileSystem, Report, Uuid};
use smartvm_host::FirecrackerBinary;
use smartvm_images::store::Store;
use smartvm_images::{Digest, kernel};
use tokio::task::JoinHandle;

use crate::config::{Finding, InvalidConfig};
use crate::firecracker::blob_of_store;
use crate::host::Host;
use crate::machine::{Machine, Released, StartError, StartOptions, random_id};
use crate::machine_data::MachineData;
pub use error::ImageMachineError;
pub use report::{ReportFilter, ReportFinder};
pub use root::{BASE_PREFIX, RootImage};
pub use smartvm_core::image_machine as spec;
pub use smartvm_guest_api::boot as guest;

/// A machine from an image, as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMachineSpec {
    /// The image: a name or id in the store, or `base:` with a preset or the id of a base image.
    pub image: String,
    /// The kernel's name; else the one that a base image came with, else the store's default.
    pub kernel: Option<String>,
    /// Everything else.
    pub wanted: Wanted,
}

impl ImageMachineSpec {
    /// A machine of this image, with the default kernel, and as [`Wanted::default`] says.
    pub fn new(image: impl Into<String>) -> Self {
        Self { image: image.into(), kernel: None, wanted: Wanted::default() }
    }
}

/// A planned machine: nothing was made yet.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its name.
    pub id: MachineId,
    /// The image.
    pub image: RootImage,
    /// The kernel's name.
    pub kernel: String,
    /// What is to be done.
    pub plan: Plan,
    /// What it uses of the store.
    blobs: Vec<Digest>,
    store: Store,
}

impl Planned {
    /// Plans a machine called `id`, for this Firecracker. Without a host name of its own it is called by its id.
    ///
    /// # Errors
    /// Something is not in the store, does not fit together, or cannot be: see [`ImageMachineError`].
    pub async fn new(
        host: &Host,
        store: &Store,
        firecracker: &Version,
        spec: &ImageMachineSpec,
        id: MachineId,
        pci: bool,
    ) -> Result<Self, ImageMachineError> {
        let image = RootImage::find(store, &spec.image)?;
        let kernel = match spec.kernel.as_deref().or(image.kernel.as_deref()) {
            Some(name) => kernel::inspect(store, name)?,
            None => kernel::default(store)?,
        };
        let kernel = kernel::current(store, kernel).await?;
        check_kernel(&kernel, &image, &spec.wanted)?;
        let needed_by = format!("image `{}`", image.name);
        let parts = Parts {
            root: store.require(&image.blob, &needed_by)?,
            file_system: image.file_system,
            root_id: image.id,
            process: image.process.clone(),
            vmlinux: store.require(&kernel.vmlinux, &kernel.name)?,
            initramfs: store.require(&kernel.initramfs, &kernel.name)?,
            own_dir: MachineData::path_of(host.data_dir(), &id),
            overlay_id: random_uuid().map_err(|source| StartError::Random { source })?,
        };
        let mut wanted = spec.wanted.clone();
        wanted.hostname.get_or_insert_with(|| id.as_str().to_owned());
        let (major, minor, patch) = firecracker.number();
        let target = Target { arch: Arch::HOST, version: FirecrackerVersion(major, minor, patch), pci };
        let plan = plan(&wanted, &parts, &target)?;
        let findings: Vec<Finding> =
            validate_for(&plan.config, &target).into_iter().map(Finding::from).collect();
        if findings.iter().any(Finding::is_error) {
            return Err(InvalidConfig { file: None, findings }.into());
        }
        let blobs = vec![image.blob, kernel.vmlinux, kernel.initramfs];
        Ok(Self { id, image, kernel: kernel.name, plan, blobs, store: store.clone() })
    }

    /// Makes what the plan says and starts it. `options.id` is the plan's.
    ///
    /// # Errors
    /// See [`ImageMachineError`]. Nothing of the machine is left then.
    ///
    /// # Cancel safety
    /// When the future is dropped, everything is released.
    pub async fn start(
        mut self,
        host: &Host,
        firecracker: &FirecrackerBinary,
        options: StartOptions,
    ) -> Result<ImageMachine, ImageMachineError> {
        let (id, pci) = (self.id.clone(), options.enable_pci);
        let used = blob_of_store(host, &firecracker.path).await;
        self.blobs.extend(used.map_err(files::failed(&id, "mark as used", &firecracker.path))?);
        let (data_dir, version) = (host.data_dir().to_owned(), firecracker.version.clone());
        let made = tokio::task::spawn_blocking(move || files::make(&self, &data_dir, &version, pci));
        let (checked, belongings) = match made.await {
            Ok(made) => made?,
            Err(error) => return Err(files::failed(&id, "make the files in", host.data_dir())(error.into())),
        };
        let options = StartOptions { id: Some(id), ..options };
        let machine = Machine::start_with(host, firecracker, &checked, options, Some(belongings)).await?;
        let report = tokio::spawn(ReportFinder::follow(machine.console().reader()));
        Ok(ImageMachine { machine, report })
    }
}

/// A running machine from an image. Dropping it kills the VMM and has everything released.
#[derive(Debug)]
pub struct ImageMachine {
    machine: Machine,
    report: JoinHandle<Option<Report>>,
}

/// How a machine from an image ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMachineEnd {
    /// How the VMM ended, and what of it is left.
    pub released: Released,
    /// What guest init said at its end: how the process ended, or which step failed. `None` when it said nothing: it
    /// was killed, or the kernel failed. It is the guest's word, and no more.
    pub report: Option<Report>,
}

impl ImageMachine {
    /// Plans and starts a machine. Its name is `options.id`, or drawn.
    ///
    /// # Errors
    /// See [`ImageMachineError`]. Nothing of the machine is left then.
    ///
    /// # Cancel safety
    /// When the future is dropped, everything is released.
    pub async fn start(
        host: &Host,
        store: &Store,
        firecracker: &FirecrackerBinary,
        spec: &ImageMachineSpec,
        options: StartOptions,
    ) -> Result<Self, ImageMachineError> {
        let mut tries = 8;
        loop {
            let id = match &options.id {
                Some(id) => id.clone(),
                None => random_id()?,
            };
            let pci = options.enable_pci;
            let planned = Planned::new(host, store, &firecracker.version, spec, id, pci).await?;
            match planned.start(host, firecracker, options.clone()).await {
                // Two machines may draw the same name.
                Err(ImageMachineError::Start(StartError::Busy { .. }))
                    if options.id.is_none() && tries > 1 =>
                {
                    tries -= 1;
                }
                started => return started,
            }
        }
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The same, to take its console's input.
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Waits for its end.
    pub async fn wait(self) -> ImageMachineEnd {
        let released = self.machine.wait().await;
        // The console has ended with the VMM.
        ImageMachineEnd { released, report: self.report.await.ok().flatten() }
    }

    /// The machine and what will be its guest's last word, apart.
    pub fn into_parts(self) -> (Machine, JoinHandle<Option<Report>>) {
        (self.machine, self.report)
    }
}

/// What a kernel lacks is said before it boots, where it is known.
fn check_kernel(
    kernel: &kernel::Kernel,
    image: &RootImage,
    wanted: &Wanted,
) -> Result<(), ImageMachineError> {
    let lacks = |name| kernel.facts.get(name).is_some_and(|presence| presence.works() == Some(false));
    let lack = |feature, what, remedy| {
        Err(ImageMachineError::KernelLacks { kernel: kernel.name.clone(), feature, what, remedy })
    };
    if lacks("virtio-blk") {
        let remedy = "import it with its modules: `smartvm kernel import VMLINUZ .../lib/modules/RELEASE`, or use another kernel";
        return lack("virtio-blk", "every disk", remedy);
    }
    // What is no Linux has no release; what it can do is its own matter.
    let known = kernel.config_known || kernel.facts.get("virtio-blk").is_some_and(|it| it.works().is_some());
    if !known && kernel.modules.is_empty() && !kernel.release.is_empty() {
        return Err(ImageMachineError::KernelUnknown { kernel: kernel.name.clone() });
    }
    if wanted.writes != smartvm_core::image_machine::Writes::Nowhere && lacks("overlayfs") {
        return lack("overlayfs", "a root that can be written", "use another kernel, or --read-only");
    }
    match image.file_system {
        FileSystem::Squashfs if lacks("squashfs") => {
            lack("squashfs", "this image", "use the kernel that the image came with, or another one")
        }
        FileSystem::Ext4 if lacks("ext4") => lack("ext4", "this image", "use another kernel"),
        _ => Ok(()),
    }
}

/// Version 4: random but for the six bits that say so.
fn random_uuid() -> std::io::Result<Uuid> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Uuid(bytes))
}
