//! `smartvm kernel`: what machines boot.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use smartvm::images::base::{self, BaseImage, BaseImages, Preset};
use smartvm::images::download::place;
use smartvm::images::kernel::{self, Import, Kernel, Source};
use smartvm::images::release::{self, Releases};
use smartvm::images::{Digest, Store};

use crate::commands::{print, stdout_colour};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, until_signal};
use crate::firecracker::downloader;
use crate::progress::Drawing;
use crate::report::{Printer, json_line, on_one_line};
use crate::store;
use crate::table::{Table, count, short, size};

/// Import kernels, or fetch ones that are known to work, and choose which one machines boot.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  smartvm kernel import --host
  smartvm kernel import linux-image-6.1.0-37-cloud-amd64_6.1.140-1_amd64.deb --default
  smartvm kernel inspect 6.1.0-37-cloud-amd64")]
pub(crate) struct KernelArguments {
    #[command(subcommand)]
    command: KernelCommand,
}

#[derive(Debug, Subcommand)]
enum KernelCommand {
    /// Import a kernel, with an initramfs of our guest init and the modules that it needs. The first becomes the default.
    #[command(after_help = "\
Examples:
  smartvm kernel import --host
  smartvm kernel import vmlinuz-6.1.0-37-cloud-amd64 --name debian-12
  smartvm kernel import linux-image-6.1.0-37-cloud-amd64_6.1.140-1_amd64.deb --default
  smartvm kernel import vmlinuz /mnt/lib/modules/6.8.0-60-generic

JSON: {name, release, version, compressed_by, vmlinux, vmlinux_size, initramfs, initramfs_size, guest, modules,
       config_known, facts: {name: built-in|module|left-out|absent|unknown}, consequences, default}")]
    Import {
        /// A vmlinuz (bzImage), a vmlinux, Debian packages, a folder of modules, or one with boot and lib/modules; several that make
        /// one kernel together.
        #[arg(required_unless_present = "host", conflicts_with = "host")]
        source: Vec<PathBuf>,
        /// This host's own kernel, from /boot and /lib/modules.
        #[arg(long)]
        host: bool,
        /// Which kernel, as `uname -r` prints it, where there are several.
        #[arg(long)]
        release: Option<String>,
        /// What to call it; else its release.
        #[arg(long)]
        name: Option<String>,
        /// Make it the kernel that machines boot when nothing else is said.
        #[arg(long)]
        default: bool,
    },
    /// Fetch a base-image bundle: a kernel and a root file system that are known to work together.
    #[command(after_help = "\
Examples:
  smartvm kernel pull latest
  smartvm kernel pull hosted --manifest https://images.example/base.json
  smartvm kernel pull lts --force

`latest` and `lts` come from the bucket of Firecracker's CI (SMARTVM_BASE_URL names others), without a published digest.
JSON: {bundle_id, name, preset, arch, ci_version, firecracker_version, kernel, kernel_sha256, kernel_source, rootfs,
       rootfs_source, rootfs_size, rootfs_type, rootfs_is_read_only, boot_args, origin, default}")]
    Pull {
        /// `latest`, `lts`, or `hosted` (what a manifest describes).
        #[arg(value_parser = preset)]
        preset: Preset,
        /// The manifest of `hosted`: a URL or a path. Else SMARTVM_BASE_MANIFEST.
        #[arg(long, value_name = "URL|PATH")]
        manifest: Option<String>,
        /// Fetch it again although it is there.
        #[arg(long)]
        force: bool,
        /// Make its kernel the one that machines boot when nothing else is said.
        #[arg(long)]
        default: bool,
    },
    /// List the kernels.
    #[command(
        after_help = "Examples:\n  smartvm kernel ls\n  smartvm kernel ls --json | jq -r .[].name\n\nJSON: [as of `import`]"
    )]
    Ls,
    /// Tell what a kernel can do, and what will therefore not work.
    #[command(
        after_help = "Examples:\n  smartvm kernel inspect 6.1.0-37-cloud-amd64\n  smartvm kernel inspect --json debian-12 | jq .facts\n\nJSON: as of `import`"
    )]
    Inspect {
        /// The kernel; the default when none is named.
        name: Option<String>,
    },
    /// Show the kernel that machines boot when nothing else is said, or choose it.
    #[command(
        after_help = "Examples:\n  smartvm kernel default\n  smartvm kernel default debian-12\n\nJSON: {default: name}"
    )]
    Default {
        /// The kernel to choose.
        name: Option<String>,
    },
    /// Remove a kernel; what it took of the disk goes with the next `smartvm store gc`.
    #[command(
        after_help = "Example:\n  smartvm kernel rm debian-12\n\nJSON: {removed: name, default: name or null}"
    )]
    Rm {
        /// The kernel.
        name: String,
    },
}

fn preset(text: &str) -> Result<Preset, String> {
    text.parse().map_err(|_| "the presets are latest, lts and hosted".into())
}

/// `smartvm kernel`
pub(crate) async fn run(arguments: KernelArguments, printer: &Printer) -> Outcome {
    let store = store::open()?;
    match arguments.command {
        KernelCommand::Import { source, host, release, name, default } => {
            let source = if host { Source::Host } else { Source::Paths(source) };
            import(&store, Import { source, release, name }, default, printer).await
        }
        KernelCommand::Pull { preset, manifest, force, default } => {
            let manifest = manifest.map(|text| place(&text)).transpose()?;
            let wanted = base::Wanted { preset, manifest, force, ..base::Wanted::default() };
            pull(&store, &wanted, default, printer).await
        }
        KernelCommand::Ls => {
            let default = default_name(&store)?;
            let kernels = kernel::list(&store)?;
            let shown = |kernel| Shown::new(kernel, default.as_deref());
            let text = match printer.json {
                true => json_line(&kernels.iter().map(shown).collect::<Vec<_>>()),
                false => table(&kernels, default.as_deref()),
            };
            Ok(print(printer, &text, Exit::Success))
        }
        KernelCommand::Inspect { name } => {
            let kernel = match name {
                Some(name) => kernel::inspect(&store, &name)?,
                None => kernel::default(&store)?,
            };
            let default = default_name(&store)?;
            let text = match printer.json {
                true => json_line(&Shown::new(&kernel, default.as_deref())),
                false => inspected(&kernel, default.as_deref() == Some(&kernel.name)),
            };
            Ok(print(printer, &text, Exit::Success))
        }
        KernelCommand::Default { name } => {
            let name = match name {
                Some(name) => kernel::set_default(&store, &name).map(|()| name)?,
                None => kernel::default(&store)?.name,
            };
            let text = match printer.json {
                true => json_line(&serde_json::json!({"default": name})),
                false => format!("{name}\n"),
            };
            Ok(print(printer, &text, Exit::Success))
        }
        KernelCommand::Rm { name } => {
            let before = default_name(&store)?;
            kernel::remove(&store, &name)?;
            let default = default_name(&store)?;
            let text = match (&default, printer.json) {
                (_, true) => json_line(&serde_json::json!({"removed": name, "default": default})),
                (Some(default), false) if before.as_ref() != Some(default) => {
                    format!("removed kernel {name}; the default is {default} now\n")
                }
                _ => format!("removed kernel {name}\n"),
            };
            Ok(print(printer, &text, Exit::Success))
        }
    }
}

async fn import(store: &Store, import: Import, default: bool, printer: &Printer) -> Outcome {
    let drawing = Drawing::new(printer);
    let progress = drawing.progress();
    let kernel = until_signal(async { Ok(kernel::import(store, import, &progress).await?) }).await?;
    drop(drawing);
    if default {
        kernel::set_default(store, &kernel.name)?;
    }
    let default = default_name(store)?;
    let text = match printer.json {
        true => json_line(&Shown::new(&kernel, default.as_deref())),
        false => imported(&kernel, default.as_deref()),
    };
    Ok(print(printer, &text, Exit::Success))
}

/// What an import has brought, as text.
fn imported(kernel: &Kernel, default: Option<&str>) -> String {
    let mut text = format!(
        "imported kernel {}: {}, initramfs {} with {}\n",
        kernel.name,
        size(kernel.vmlinux_size),
        size(kernel.initramfs_size),
        count(kernel.modules.len() as u64, "module")
    );
    for consequence in kernel.consequences() {
        text += &format!("  {consequence}\n");
    }
    match default {
        Some(default) if default == kernel.name => text += "machines boot it when nothing else is said\n",
        Some(default) => {
            text += &format!(
                "the default is still {default}; change it by: smartvm kernel default {}\n",
                kernel.name
            );
        }
        None => {}
    }
    text
}

async fn pull(store: &Store, wanted: &base::Wanted, default: bool, printer: &Printer) -> Outcome {
    let drawing = Drawing::new(printer);
    let bases = bases(store, &drawing)?;
    let image = until_signal(async { Ok(bases.ensure(wanted).await?) }).await?;
    drop(drawing);
    if default {
        kernel::set_default(store, &image.kernel)?;
    }
    let is_default = default_name(store)?.as_ref() == Some(&image.kernel);
    let text = match printer.json {
        true => json_line(&ShownBase::new(&image, is_default)),
        false => pulled(&image, is_default),
    };
    Ok(print(printer, &text, Exit::Success))
}

/// The base images of this host's store, from where the environment says.
fn bases(store: &Store, drawing: &Drawing) -> Result<BaseImages, Failure> {
    let downloader = downloader(drawing);
    let releases = Releases::new(store.clone(), downloader.clone(), release::Options::from_environment()?);
    Ok(BaseImages::new(store.clone(), downloader, releases, base::Options::from_environment()?))
}

/// What a pull has brought, as text.
pub(crate) fn pulled(image: &BaseImage, is_default: bool) -> String {
    let default = if is_default { ", the default" } else { "" };
    format!(
        "base image {} ({})\n  kernel  {}{default}\n  root    {} of {}, {}\n  tried with Firecracker {}\n",
        on_one_line(&image.bundle_id),
        on_one_line(&image.name),
        image.kernel,
        image.rootfs_type.as_str(),
        size(image.rootfs_size),
        if image.rootfs_is_read_only { "read-only" } else { "writable" },
        image.firecracker_version
    )
}

/// The name of the default kernel, if there is one.
pub(crate) fn default_name(store: &Store) -> Result<Option<String>, Failure> {
    match kernel::default(store) {
        Ok(kernel) => Ok(Some(kernel.name)),
        Err(kernel::KernelError::NoDefault) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn table(kernels: &[Kernel], default: Option<&str>) -> String {
    if kernels.is_empty() {
        return "there is no kernel: `smartvm kernel import` makes one, `smartvm setup` fetches one\n".into();
    }
    let mut table = Table::new(&["NAME", "DEFAULT", "RELEASE", ">KERNEL", ">INITRAMFS", ">MODULES"]);
    for kernel in kernels {
        let is_default = default == Some(&kernel.name);
        table.row([
            kernel.name.clone(),
            if is_default { "yes" } else { "" }.to_owned(),
            kernel.release.clone(),
            size(kernel.vmlinux_size),
            size(kernel.initramfs_size),
            kernel.modules.len().to_string(),
        ]);
    }
    table.text(stdout_colour())
}

fn inspected(kernel: &Kernel, is_default: bool) -> String {
    let default = if is_default { " (the default)" } else { "" };
    let compressed =
        kernel.compressed_by.as_ref().map_or_else(String::new, |by| format!(", came compressed by {by}"));
    let mut text = format!("{}{default}\n", kernel.name);
    let mut line = |label: &str, value: &str| text += &format!("  {label:<11}{}\n", on_one_line(value));
    line("version", &kernel.version);
    let with_size = |digest: &Digest, bytes: u64| format!("{} ({})", short(digest), size(bytes));
    line("kernel", &format!("{}{compressed}", with_size(&kernel.vmlinux, kernel.vmlinux_size)));
    line("initramfs", &with_size(&kernel.initramfs, kernel.initramfs_size));
    let modules = match kernel.modules.as_slice() {
        [] => "none needed".to_owned(),
        modules => modules.join(" "),
    };
    line("modules", &modules);
    text += "\n";
    for (name, presence) in &kernel.facts {
        text += &format!("  {name:<20} {presence}\n");
    }
    let consequences = kernel.consequences();
    if !consequences.is_empty() {
        text += "\nWhat will not work:\n";
        for consequence in consequences {
            text += &format!("  {consequence}\n");
        }
    }
    if !kernel.config_known {
        text += "\nIts build configuration was not there: import it with its config-RELEASE or package to learn what is unknown.\n";
    }
    text
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    kernel: &'a Kernel,
    /// What does not work, one sentence each.
    consequences: Vec<&'static str>,
    default: bool,
}

impl<'a> Shown<'a> {
    fn new(kernel: &'a Kernel, default: Option<&str>) -> Self {
        Self { kernel, consequences: kernel.consequences(), default: default == Some(&kernel.name) }
    }
}

/// A base image in JSON. Its record has keys in camel case, as its manifest has.
#[derive(Serialize)]
pub(crate) struct ShownBase<'a> {
    bundle_id: &'a str,
    name: &'a str,
    preset: Preset,
    arch: &'a str,
    ci_version: Option<&'a str>,
    firecracker_version: release::Version,
    kernel: &'a str,
    kernel_sha256: Digest,
    kernel_source: &'a str,
    rootfs: Digest,
    rootfs_source: &'a str,
    rootfs_size: u64,
    rootfs_type: base::RootfsType,
    rootfs_is_read_only: bool,
    boot_args: &'a str,
    origin: &'a str,
    /// Whether its kernel is the default.
    default: bool,
}

impl<'a> ShownBase<'a> {
    pub(crate) fn new(image: &'a BaseImage, default: bool) -> Self {
        Self {
            bundle_id: &image.bundle_id,
            name: &image.name,
            preset: image.preset,
            arch: &image.arch,
            ci_version: image.ci_version.as_deref(),
            firecracker_version: image.firecracker_version,
            kernel: &image.kernel,
            kernel_sha256: image.kernel_sha256,
            kernel_source: &image.kernel_source,
            rootfs: image.rootfs,
            rootfs_source: &image.rootfs_source,
            rootfs_size: image.rootfs_size,
            rootfs_type: image.rootfs_type,
            rootfs_is_read_only: image.rootfs_is_read_only,
            boot_args: &image.boot_args,
            origin: &image.origin,
            default,
        }
    }
}
