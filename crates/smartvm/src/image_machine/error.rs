//! How a machine from an image can fail before its guest runs.

use std::io;
use std::path::PathBuf;

use smartvm_core::explain::{Code, Explain, Happened};
use smartvm_core::id::MachineId;
use smartvm_core::image_machine::PlanError;
use smartvm_images::image::ImageError;
use smartvm_images::kernel::KernelError;
use smartvm_images::store::StoreError;

use crate::config::InvalidConfig;
use crate::machine::StartError;

/// A machine from an image that did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageMachineError {
    /// The image is not in the store, or cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No base image of this name is in the store.
    #[error("there is no base image `{name}` in the store")]
    NoBase {
        /// The preset or the id.
        name: String,
    },
    /// No such kernel, or none at all.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel cannot boot this image.
    #[error("kernel `{kernel}` has no {feature}, which {what} needs")]
    KernelLacks {
        /// The kernel.
        kernel: String,
        /// What it lacks.
        feature: &'static str,
        /// What needs it.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Nothing tells that the kernel can boot any image.
    #[error(
        "kernel `{kernel}` came without modules and says nothing of its drivers: it may have none for disks"
    )]
    KernelUnknown {
        /// The kernel.
        kernel: String,
    },
    /// The machine cannot be as it is wanted.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Firecracker or this host cannot do it.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// The store cannot be used, or lacks something.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host refused a file operation.
    #[error("machine `{id}`: cannot {what} {}", path.display())]
    Host {
        /// The machine.
        id: MachineId,
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Explain for ImageMachineError {
    fn code(&self) -> Code {
        match self {
            Self::Image(error) => error.code(),
            Self::NoBase { .. } => Code::NotFound,
            Self::Kernel(error) => error.code(),
            Self::KernelLacks { .. } | Self::KernelUnknown { .. } => Code::InvalidKernel,
            Self::Plan(error) => error.code(),
            Self::Invalid(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Host { .. } => Code::Host,
            Self::Start(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Image(error) => error.hint(),
            Self::NoBase { .. } => {
                Some("`smartvm kernel pull` fetches one; `smartvm kernel ls` shows what is there".into())
            }
            Self::Kernel(error) => error.hint(),
            Self::KernelLacks { remedy, .. } => Some((*remedy).into()),
            Self::KernelUnknown { .. } => Some(
                "import it with its modules: `smartvm kernel import VMLINUZ .../lib/modules/RELEASE`, or with its build \
                 configuration"
                    .into(),
            ),
            Self::Plan(error) => error.hint(),
            Self::Invalid(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Host { source, .. } if source.kind() == io::ErrorKind::StorageFull => Some(
                "the file system of the data directory is full: see `smartvm store df`, `smartvm store gc`"
                    .into(),
            ),
            Self::Host { .. } => None,
            Self::Start(error) => error.hint(),
        }
    }

    fn happened(&self) -> Happened {
        match self {
            Self::Start(error) => error.happened(),
            _ => Happened::NeverStarted,
        }
    }

    fn last_words(&self) -> &[String] {
        match self {
            Self::Start(error) => error.last_words(),
            _ => &[],
        }
    }
}
