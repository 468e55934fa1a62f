//! `smartvm run IMAGE`: what was asked, as a machine for the library; and what of it is fetched first.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use smartvm::image_machine::spec::{Wanted, Writes};
use smartvm::image_machine::{BASE_PREFIX, ImageMachineError, RootImage};
use smartvm::images::image::{self, ImageError, PullOptions, Reference};
use smartvm::images::{Store, kernel};
use smartvm::{Directories, Host, ImageMachineSpec, MachineId, Planned, find_firecracker};

use super::RunArguments;
use crate::commands::print;
use crate::exit::Exit;
use crate::failure::{Failure, until_signal};
use crate::progress::Drawing;
use crate::report::{Printer, Report, json_line};
use crate::store;

// No doc comment: clap would take it for the text of the command that flattens this.
#[derive(Debug, Args)]
pub(crate) struct RunImageArguments {
    /// The image to boot: a name such as `debian:12`, an id, or `base:` and a preset (`base:latest`).
    #[arg(value_name = "IMAGE", required_unless_present = "config_file", conflicts_with = "config_file")]
    pub(crate) image: Option<String>,
    /// What to run in it, in place of the image's own command. Options of `run` come before the image.
    #[arg(
        value_name = "COMMAND",
        conflicts_with = "config_file",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
    /// The kernel to boot (`smartvm kernel ls`); else the one that a base image came with, else the default.
    #[arg(long, value_name = "NAME", conflicts_with = "config_file", help_heading = IMAGE)]
    kernel: Option<String>,
    /// Virtual CPUs, 1 to 32. Default: 1.
    #[arg(long, value_name = "NUMBER", conflicts_with = "config_file", help_heading = IMAGE)]
    cpus: Option<u64>,
    /// Memory: `512M`, `2G`. Default: 512M.
    #[arg(long, short, value_name = "SIZE", conflicts_with = "config_file", value_parser = size, help_heading = IMAGE)]
    memory: Option<u64>,
    /// A variable for the command: NAME=value, or NAME to take this environment's (repeatable).
    #[arg(long, short, value_name = "NAME[=VALUE]", conflicts_with = "config_file", value_parser = variable, help_heading = IMAGE)]
    env: Vec<(String, String)>,
    /// The directory to start in.
    #[arg(long, short, value_name = "DIR", conflicts_with = "config_file", help_heading = IMAGE)]
    workdir: Option<String>,
    /// As whom to run: `user` or `user:group`, names of the image or ids.
    #[arg(long, short, value_name = "USER", conflicts_with = "config_file", help_heading = IMAGE)]
    user: Option<String>,
    /// The program to run in place of the image's entrypoint and command; "" for the command alone.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "config_file", help_heading = IMAGE)]
    entrypoint: Option<String>,
    /// The guest's host name. Default: the machine's name.
    #[arg(long, value_name = "NAME", conflicts_with = "config_file", help_heading = IMAGE)]
    hostname: Option<String>,
    /// How large the machine's own disk may grow; it takes no more room than is written. Default: 8G.
    #[arg(long, value_name = "SIZE", conflicts_with = "config_file", value_parser = size, help_heading = IMAGE)]
    disk_size: Option<u64>,
    /// Keep what the machine writes in its memory, not on a disk.
    #[arg(long, conflicts_with = "config_file", conflicts_with = "disk_size", help_heading = IMAGE)]
    tmpfs_root: bool,
    /// Let the machine write nowhere but to /run and /tmp, which are memory.
    #[arg(long, conflicts_with = "config_file", conflicts_with_all = ["disk_size", "tmpfs_root"], help_heading = IMAGE)]
    read_only: bool,
    /// More parameters for the kernel's command line.
    #[arg(long, value_name = "PARAMETERS", conflicts_with = "config_file", allow_hyphen_values = true, help_heading = IMAGE)]
    kernel_args: Option<String>,
    /// When to pull the image from its registry.
    #[arg(long, value_name = "WHEN", conflicts_with = "config_file", default_value = "missing", help_heading = IMAGE)]
    pull: Pull,
    /// Start nothing: print the Firecracker config, and the kernel's command line with a reason for each parameter.
    #[arg(long, conflicts_with = "config_file", help_heading = IMAGE)]
    pub(crate) dry_run: bool,
}

const IMAGE: &str = "Options of run IMAGE";

/// When to pull an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    /// When it is not in the store.
    Missing,
    /// Always: it may be another one by now.
    Always,
    /// Never.
    Never,
}

impl RunImageArguments {
    /// The machine; `None` when it comes from a config file.
    fn spec(&self) -> Option<ImageMachineSpec> {
        let default = Wanted::default();
        let writes = match (self.disk_size, self.tmpfs_root, self.read_only) {
            (_, true, _) => Writes::Memory { size: None },
            (_, _, true) => Writes::Nowhere,
            (Some(size), ..) => Writes::Disk { size },
            _ => default.writes,
        };
        let entrypoint = self.entrypoint.as_ref().map(|program| match program.is_empty() {
            true => Vec::new(),
            false => vec![program.clone()],
        });
        let wanted = Wanted {
            vcpus: self.cpus.unwrap_or(default.vcpus),
            memory_mib: self.memory.map_or(default.memory_mib, |bytes| bytes.div_ceil(1 << 20)),
            writes,
            entrypoint,
            command: self.command.clone(),
            env: self.env.clone(),
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            hostname: self.hostname.clone(),
            kernel_args: self.kernel_args.clone().unwrap_or_default(),
        };
        Some(ImageMachineSpec { image: self.image.clone()?, kernel: self.kernel.clone(), wanted })
    }
}

/// The machine, with all that it needs in the store.
pub(super) async fn spec(
    arguments: &RunImageArguments,
    printer: &Printer,
) -> Result<Option<(ImageMachineSpec, Store)>, Failure> {
    let Some(mut spec) = arguments.spec() else { return Ok(None) };
    let store = store::open()?;
    // Before anything is fetched: without a kernel all of it would be for nothing.
    if !spec.image.starts_with(BASE_PREFIX) || spec.kernel.is_some() {
        match &spec.kernel {
            Some(name) => kernel::inspect(&store, name)?,
            None => kernel::default(&store)?,
        };
    }
    if let Some(id) = bring(&store, &spec.image, arguments.pull, printer).await? {
        spec.image = id;
    }
    Ok(Some((spec, store)))
}

/// Pulls the image, if that is to be done. Answers its id, which stays what it is.
async fn bring(store: &Store, name: &str, pull: Pull, printer: &Printer) -> Result<Option<String>, Failure> {
    if name.starts_with(BASE_PREFIX) {
        RootImage::find(store, name)?;
        return Ok(None);
    }
    if pull != Pull::Always {
        match image::resolve(store, name) {
            Err(ImageError::NotFound { .. }) if pull == Pull::Missing => {}
            found => return Ok(Some(found?.image.id.to_string())),
        }
    }
    let reference = name
        .parse::<Reference>()
        .map_err(|source| ImageError::Reference { text: name.chars().take(300).collect(), source })?;
    let drawing = Drawing::new(printer);
    let (options, progress) = (PullOptions::default(), drawing.progress());
    let pulled = image::pull(store, &reference, &options, &progress);
    let pulled = until_signal(async { Ok(pulled.await?) }).await?;
    Ok(Some(pulled.image.id.to_string()))
}

/// `--dry-run`: the plan as text or JSON.
pub(super) async fn dry_run(
    arguments: &RunArguments,
    spec: &ImageMachineSpec,
    store: &Store,
    printer: &Printer,
) -> Result<ExitCode, Failure> {
    let directories = Directories::find();
    let firecracker = find_firecracker(arguments.firecracker.firecracker.as_deref(), &directories).await?;
    let host = Host::open(&directories).map_err(|error| Report::of(&error).with_exit(Exit::HostNotReady))?;
    let id = match &arguments.id {
        Some(id) => id.clone(),
        None => MachineId::generate([0; 5]),
    };
    let planned = Planned::new(&host, store, &firecracker.version, spec, id, arguments.enable_pci).await;
    let planned = planned.map_err(failure)?;
    let text = match printer.json {
        true => json_line(&Answer::of(&planned)),
        false => text(&planned)?,
    };
    Ok(print(printer, &text, Exit::Success).into())
}

/// With each problem of the config, where that is what is wrong.
pub(super) fn failure(error: ImageMachineError) -> Report {
    match &error {
        ImageMachineError::Invalid(invalid) => Report::invalid_config(invalid),
        ImageMachineError::Start(start) => {
            let mut report = Report::of(&error);
            report.left_behind = start.left_behind().to_vec();
            report
        }
        _ => Report::of(&error),
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a MachineId,
    image: &'a str,
    kernel: &'a str,
    firecracker_config: &'a smartvm::MachineSpec,
    command_line: Vec<Word<'a>>,
    /// The machine's own disk, to be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<Disk>,
    /// Orders for guest init that find no room on the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    orders_in_initramfs: Option<&'a str>,
}

#[derive(Serialize)]
struct Word<'a> {
    parameter: &'a str,
    why: &'a str,
}

#[derive(Serialize)]
struct Disk {
    path: String,
    size_bytes: u64,
    uuid: String,
}

impl<'a> Answer<'a> {
    fn of(planned: &'a Planned) -> Self {
        let plan = &planned.plan;
        let words = plan.boot.parameters.iter();
        Self {
            id: &planned.id,
            image: &planned.image.name,
            kernel: &planned.kernel,
            firecracker_config: &plan.config,
            command_line: words.map(|word| Word { parameter: &word.text, why: word.why }).collect(),
            disk: plan.overlay.as_ref().map(|disk| Disk {
                path: disk.path.display().to_string(),
                size_bytes: disk.size,
                uuid: disk.id.to_string(),
            }),
            orders_in_initramfs: plan.boot.orders_in_initramfs.as_deref(),
        }
    }
}

fn text(planned: &Planned) -> Result<String, Failure> {
    let plan = &planned.plan;
    let config = serde_json::to_string_pretty(&plan.config)
        .map_err(|error| Report::plain("HOST", "cannot print the config", Exit::Internal).because(&error))?;
    let mut text = format!(
        "image   {}\nkernel  {}\n\nFirecracker config:\n{config}\n\nkernel command line:\n{}",
        planned.image.name, planned.kernel, plan.boot
    );
    if let Some(own) = &plan.initramfs {
        text += &format!(
            "\norders for guest init, too long for the command line, are appended to the initramfs:\n{}\n",
            own.orders.replace(' ', "\n")
        );
    }
    if let Some(disk) = &plan.overlay {
        text += &format!(
            "\ndisk to be made: {}, ext4 {}, {}, sparse\n",
            disk.path.display(),
            disk.id,
            crate::table::size(disk.size)
        );
    }
    Ok(text)
}

/// A size in bytes. Units are powers of 1024; a number without one counts MiB, as Firecracker does.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "k" => 10,
        "" | "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("give a number with K, M, G or T, such as 512M".into()),
    };
    let number: u64 =
        number.parse().map_err(|_| "give a whole number with a unit, such as 512M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than can be counted".into())
}

/// NAME=value, or NAME for this environment's value: empty when it has none.
fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (text, std::env::var(text).unwrap_or_default()),
    };
    if name.is_empty() { Err("give NAME=value".into()) } else { Ok((name.to_owned(), value)) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn parse(words: &str) -> Result<RunImageArguments, String> {
        let words = ["smartvm", "run"].into_iter().chain(words.split_whitespace());
        match Arguments::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Run(arguments) => Ok(arguments.image),
            other => panic!("{other:?}"),
        }
    }

    fn spec(words: &str) -> ImageMachineSpec {
        parse(words).unwrap().spec().unwrap()
    }

    #[test]
    fn what_follows_the_image_is_the_command() {
        let spec = spec("-e A=b=c --env D= -m 2G --cpus 2 debian:12 sh -c --json -e x");
        assert_eq!(spec.image, "debian:12");
        assert_eq!(spec.wanted.command, ["sh", "-c", "--json", "-e", "x"]);
        assert_eq!(spec.wanted.env, [("A".into(), "b=c".into()), ("D".into(), String::new())]);
        assert_eq!((spec.wanted.memory_mib, spec.wanted.vcpus), (2048, 2));
        assert_eq!(spec.wanted.entrypoint, None);
    }

    #[test]
    fn writes_go_where_one_option_says() {
        assert_eq!(spec("x").wanted.writes, Writes::Disk { size: 8 << 30 });
        assert_eq!(spec("--disk-size 100M x").wanted.writes, Writes::Disk { size: 100 << 20 });
        assert_eq!(spec("--tmpfs-root x").wanted.writes, Writes::Memory { size: None });
        assert_eq!(spec("--read-only x").wanted.writes, Writes::Nowhere);
        assert!(parse("--read-only --tmpfs-root x").is_err());
    }

    #[test]
    fn an_image_and_a_config_file_exclude_each_other() {
        assert!(parse("--config-file vm.json").unwrap().spec().is_none());
        for wrong in ["", "--config-file vm.json debian", "--config-file vm.json --cpus 2"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("1K", 1 << 10), ("512", 512 << 20), ("512m", 512 << 20), ("2GiB", 2 << 30), ("1 TB", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "G", "-1", "1.5G", "1X", "99999999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
