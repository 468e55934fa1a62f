//! A machine that boots an image, as a plan: which disks, which orders for guest init, which command line, and the
//! Firecracker config that follows.
//!
//! ```text
//! what the user wants ─┐
//! what the image says ─┼─> orders ─> command line ─> Firecracker config
//! files on this host  ─┘     └ too long for a command line: a file appended to the initramfs
//! ```
//! Everything here is pure. Whoever carries the plan out makes the files that it names.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use smartvm_guest_api::boot::{Disk, FileSystem, MAX_ORDERS, Orders, Overlay, Process, Root, User, Uuid};

use crate::boot::{self, Boot, BootPlan, BootPlanError};
use crate::explain::{Code, Explain, Happened};
use crate::spec::{BootSource, Drive, MachineConfig, MachineSpec};
use crate::target::Target;

/// The id of the drive with the image, which all machines of the image share.
pub const IMAGE_DRIVE: &str = "image";
/// The id of the drive with what the machine writes.
pub const OVERLAY_DRIVE: &str = "overlay";
/// The smallest disk for what a machine writes, in bytes: the file system itself needs room.
pub const MIN_DISK: u64 = 16 << 20;
/// The largest, in bytes.
pub const MAX_DISK: u64 = 16 << 40;

/// What the user wants of the machine. What is not said comes from the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Virtual CPUs, 1 to 32.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Where what the machine writes goes.
    pub writes: Writes,
    /// In place of the image's entrypoint, and its command with it. `Some` of nothing clears both.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's command, unless empty.
    pub command: Vec<String>,
    /// More variables; one that the image has too is replaced.
    pub env: Vec<(String, String)>,
    /// The directory to start in.
    pub workdir: Option<String>,
    /// As whom to run: `user` or `user:group`, names or ids.
    pub user: Option<String>,
    /// The guest's host name.
    pub hostname: Option<String>,
    /// More parameters for the kernel, as on any command line.
    pub kernel_args: String,
}

impl Default for Wanted {
    /// One vCPU, 512 MiB, a sparse disk of 8 GiB, and what the image says.
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory_mib: 512,
            writes: Writes::Disk { size: 8 << 30 },
            entrypoint: None,
            command: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
            hostname: None,
            kernel_args: String::new(),
        }
    }
}

/// Where what a machine writes goes. The image itself is never written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writes {
    /// To a sparse file of the machine's own, removed at its end.
    Disk {
        /// How large it may grow, in bytes; rounded up to whole MiB.
        size: u64,
    },
    /// To the guest's memory.
    Memory {
        /// At most so many bytes; half of the memory otherwise.
        size: Option<u64>,
    },
    /// Nowhere: the root is read-only, but for `/run` and `/tmp`.
    Nowhere,
}

/// What an image says about the process that is to run in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageProcess {
    /// Words before the command.
    pub entrypoint: Vec<String>,
    /// The words that a user replaces by a command.
    pub cmd: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// The directory to start in.
    pub workdir: Option<String>,
    /// As whom to run.
    pub user: Option<String>,
}

/// What the machine is made of, on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The image's root file system.
    pub root: PathBuf,
    /// Its kind.
    pub file_system: FileSystem,
    /// Its id. Without one it is found as the first disk.
    pub root_id: Option<Uuid>,
    /// What the image says.
    pub process: ImageProcess,
    /// The kernel.
    pub vmlinux: PathBuf,
    /// The initramfs of the kernel.
    pub initramfs: PathBuf,
    /// Where files of the machine's own may be made.
    pub own_dir: PathBuf,
    /// The id for its own disk.
    pub overlay_id: Uuid,
}

/// A machine from an image, ready to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The Firecracker config.
    pub config: MachineSpec,
    /// The kernel's command line and its reasons.
    pub boot: BootPlan,
    /// What guest init is told.
    pub orders: Orders,
    /// The disk to make.
    pub overlay: Option<OverlayDisk>,
    /// The initramfs to make: the kernel's, with these orders appended.
    pub initramfs: Option<OwnInitramfs>,
}

/// An empty ext4 file system to be made for the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayDisk {
    /// Where.
    pub path: PathBuf,
    /// Its id.
    pub id: Uuid,
    /// Its size in bytes, a whole number of MiB.
    pub size: u64,
}

/// An initramfs to be made for the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnInitramfs {
    /// Where.
    pub path: PathBuf,
    /// What it is made from.
    pub base: PathBuf,
    /// What is appended.
    pub orders: String,
}

/// A machine that cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Neither the image nor the user says what to run.
    #[error("the image says nothing of what to run, and no command was given")]
    NothingToRun,
    /// A user that cannot be.
    #[error("`{user}`{} is no user", whose(*of_image))]
    BadUser {
        /// What was asked.
        user: String,
        /// Whether the image said so.
        of_image: bool,
    },
    /// A variable without a name.
    #[error("`{variable}`{} is no variable of the form NAME=value", whose(*of_image))]
    BadVariable {
        /// What was asked, shortened.
        variable: String,
        /// Whether the image said so.
        of_image: bool,
    },
    /// A disk of an impossible size.
    #[error("a disk of {size} bytes cannot be: it must have {MIN_DISK} to {MAX_DISK}")]
    DiskSize {
        /// What was asked.
        size: u64,
    },
    /// Command and environment do not fit.
    #[error(
        "command and environment are too long for guest init: the command has {command} bytes, the environment {env}, of \
         {MAX_ORDERS} in all"
    )]
    TooLong {
        /// Of all words of the command, as they are sent.
        command: usize,
        /// Of all variables, as they are sent.
        env: usize,
    },
    /// The command line cannot be.
    #[error(transparent)]
    Boot(#[from] BootPlanError),
}

fn whose(of_image: bool) -> &'static str {
    if of_image { ", which the image asks for," } else { "" }
}

impl Explain for PlanError {
    fn code(&self) -> Code {
        match self {
            Self::BadUser { of_image: true, .. } | Self::BadVariable { of_image: true, .. } => {
                Code::InvalidImage
            }
            Self::Boot(error) => error.code(),
            _ => Code::InvalidConfig,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NothingToRun => "give a command after the image, such as /bin/sh".into(),
            Self::BadUser { .. } => "give user or user:group, names or ids (--user)".into(),
            Self::BadVariable { of_image: true, .. } => "the image is malformed: ask whoever built it".into(),
            Self::BadVariable { .. } => "give --env NAME=value".into(),
            Self::DiskSize { .. } => "give another --disk-size, such as 8G".into(),
            Self::TooLong { command, env } if env > command => {
                "put large variables into a file of the image, and read it there".into()
            }
            Self::TooLong { .. } => "put a long command into a script of the image".into(),
            Self::Boot(error) => return error.hint(),
        })
    }

    fn happened(&self) -> Happened {
        Happened::NeverStarted
    }
}

/// Plans a machine.
///
/// # Errors
/// See [`PlanError`]. What Firecracker or this host cannot do is not looked at here: that is the matter of
/// [`validate`](crate::validate) and of the host's checks, as for any config.
pub fn plan(wanted: &Wanted, parts: &Parts, target: &Target) -> Result<Plan, PlanError> {
    let overlay = own_disk(wanted, parts)?;
    let orders = Orders {
        root: Root {
            disk: match (parts.root_id, parts.file_system) {
                (Some(id), FileSystem::Ext4) => Disk::Uuid(id),
                // A squashfs has no id. Ours is the first disk, and there is no other root device before it.
                _ => Disk::Device("vda".into()),
            },
            file_system: parts.file_system,
        },
        overlay: match (wanted.writes, &overlay) {
            (_, Some(disk)) => Overlay::Disk(disk.id),
            (Writes::Memory { size }, None) => Overlay::Tmpfs { size },
            _ => Overlay::None,
        },
        hostname: wanted.hostname.clone(),
        process: process(wanted, &parts.process)?,
    };
    check_length(&orders.process)?;
    let mut config = MachineSpec {
        boot_source: BootSource {
            kernel_image_path: parts.vmlinux.clone(),
            initrd_path: Some(parts.initramfs.clone()),
            boot_args: None,
        },
        machine_config: MachineConfig {
            vcpu_count: wanted.vcpus,
            mem_size_mib: wanted.memory_mib,
            ..MachineConfig::default()
        },
        drives: vec![drive(IMAGE_DRIVE, parts.root.clone(), true)],
        ..MachineSpec::default()
    };
    config.drives.extend(overlay.as_ref().map(|disk| drive(OVERLAY_DRIVE, disk.path.clone(), false)));
    let boot = boot::plan(&Boot {
        arch: target.arch,
        console: true,
        pci: target.pci,
        orders: Some(&orders),
        extra: &wanted.kernel_args,
        appended: boot::appended(&config, target),
    })?;
    config.boot_source.boot_args = Some(boot.command_line());
    let initramfs = boot.orders_in_initramfs.as_ref().map(|orders| OwnInitramfs {
        path: parts.own_dir.join("initramfs"),
        base: parts.initramfs.clone(),
        orders: orders.clone(),
    });
    if let Some(own) = &initramfs {
        config.boot_source.initrd_path = Some(own.path.clone());
    }
    Ok(Plan { config, boot, orders, overlay, initramfs })
}

/// No drive is a root device to Firecracker: it would add a `root=` that guest init has no use for.
fn drive(id: &str, path: PathBuf, read_only: bool) -> Drive {
    Drive {
        drive_id: id.to_owned(),
        path_on_host: Some(path),
        is_read_only: Some(read_only),
        ..Drive::default()
    }
}

fn own_disk(wanted: &Wanted, parts: &Parts) -> Result<Option<OverlayDisk>, PlanError> {
    const MIB: u64 = 1 << 20;
    let Writes::Disk { size } = wanted.writes else { return Ok(None) };
    if !(MIN_DISK..=MAX_DISK).contains(&size) {
        return Err(PlanError::DiskSize { size });
    }
    let path = parts.own_dir.join("overlay.ext4");
    Ok(Some(OverlayDisk { path, id: parts.overlay_id, size: size.div_ceil(MIB) * MIB }))
}

/// What is to run, by OCI's rules: a command replaces the image's, an entrypoint replaces both.
fn process(wanted: &Wanted, image: &ImageProcess) -> Result<Process, PlanError> {
    let (entrypoint, cmd) = match &wanted.entrypoint {
        Some(entrypoint) => (entrypoint, &[][..]),
        None => (&image.entrypoint, &image.cmd[..]),
    };
    let command = if wanted.command.is_empty() { cmd } else { &wanted.command[..] };
    let argv: Vec<_> = entrypoint.iter().chain(command).map(Into::into).collect();
    if argv.is_empty() {
        return Err(PlanError::NothingToRun);
    }
    let workdir = wanted.workdir.as_ref().or(image.workdir.as_ref()).filter(|dir| !dir.is_empty());
    let of_image = wanted.user.is_none();
    let user = wanted.user.as_ref().or(image.user.as_ref()).filter(|user| !user.is_empty());
    let user = user.map(|user| {
        user.parse::<User>()
            .map_err(|_| PlanError::BadUser { user: user.chars().take(100).collect(), of_image })
    });
    Ok(Process {
        argv,
        env: env(wanted, image)?,
        // As Docker does with a relative one.
        workdir: workdir.map(|dir| if dir.starts_with('/') { dir.into() } else { format!("/{dir}").into() }),
        user: user.transpose()?,
    })
}

type Variables = Vec<(std::ffi::OsString, std::ffi::OsString)>;

fn env(wanted: &Wanted, image: &ImageProcess) -> Result<Variables, PlanError> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str, of_image| {
        if name.is_empty() || name.contains('=') {
            let variable = format!("{name}={value}").chars().take(100).collect();
            return Err(PlanError::BadVariable { variable, of_image });
        }
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(variable) => value.clone_into(&mut variable.1),
            None => env.push((name.to_owned(), value.to_owned())),
        }
        Ok(())
    };
    for variable in &image.env {
        // Docker sets a variable without a value to nothing.
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(name, value, true)?;
    }
    for (name, value) in &wanted.env {
        set(name, value, false)?;
    }
    Ok(env.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
}

/// Says which of the two is too long; the encoding itself only knows that all together is.
fn check_length(process: &Process) -> Result<(), PlanError> {
    // Each word with its name and a space. Bytes that are escaped take three, which only the encoding knows.
    let command = process.argv.iter().map(|word| word.len() + "smartvm.argv= ".len()).sum();
    let env = process.env.iter().map(|(name, value)| name.len() + value.len() + "smartvm.env== ".len()).sum();
    if command + env > MAX_ORDERS { Err(PlanError::TooLong { command, env }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
