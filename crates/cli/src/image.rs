//! `smartvm image`: the root file systems of machines, from registries and archives.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use smartvm::images::Store;
use smartvm::images::image::{
    self, ExportFormat, ExportTarget, Exported, Format, Image, ImportOptions, ImportSource, Insecure, Named,
    Platform, PullOptions, Reference, RootKind,
};

use crate::commands::{print, stdout_colour};
use crate::exit::Exit;
use crate::failure::{Outcome, until_signal};
use crate::progress::Drawing;
use crate::report::{Printer, Report, json_line, on_one_line};
use crate::store;
use crate::table::{Table, count, short, size};

/// Pull images from registries, import them from archives and folders, name and remove them.
///
/// An image is kept as one file system that all its machines share. Where IMAGE is asked for, a name, an id or the beginning of
/// an id (4 digits or more) will do.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  smartvm image pull debian:12
  smartvm image import rootfs/ --name mine:1
  docker save app:1 | smartvm image import -")]
pub(crate) struct ImageArguments {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Pull an image from its registry.
    ///
    /// Credentials are those of docker and podman: their config files, logins and credential helpers.
    #[command(after_help = "\
Examples:
  smartvm image pull debian:12
  smartvm image pull ghcr.io/org/app@sha256:0f... --platform linux/arm64
  smartvm image pull localhost:5000/app

JSON: {id, root: {kind, digest, uuid, size_bytes, used_bytes}, platform, config, layers, history, source, created,
       pulled, converter, names, was_here}")]
    Pull {
        /// Its name, as docker writes it.
        #[arg(value_name = "REF", value_parser = reference)]
        reference: Reference,
        /// For which machines, such as linux/amd64; else for this host.
        #[arg(long, value_parser = platform)]
        platform: Option<Platform>,
        /// Take plain HTTP and certificates that nobody vouches for, from this registry too. Whoever sits in between can then read
        /// credentials and give another image. From this host itself they are always taken.
        #[arg(long)]
        insecure: bool,
    },
    /// Import an image from an OCI layout, a `docker save` archive, a root file system's tar, or a folder.
    #[command(after_help = "\
Examples:
  smartvm image import rootfs.tar.gz --name mine:1
  smartvm image import layout/ --select app:2
  docker save app:1 | smartvm image import -
  smartvm image import rootfs/ --name busybox:own --format root

JSON: as of `pull`")]
    Import {
        /// A folder or an archive; `-` is standard input.
        source: PathBuf,
        /// The name to give it; else the names that `docker save` wrote.
        #[arg(long, value_name = "REF", value_parser = reference)]
        name: Option<Reference>,
        /// What the source is.
        #[arg(long, value_enum, default_value_t = FormatArgument::Auto)]
        format: FormatArgument,
        /// Which image, by its name or tag in the source, where that holds several.
        #[arg(long)]
        select: Option<String>,
        /// For which machines, such as linux/amd64; else for this host.
        #[arg(long, value_parser = platform)]
        platform: Option<Platform>,
    },
    /// List the images.
    #[command(after_help = "\
Examples:
  smartvm image ls
  smartvm image ls --json | jq -r '.[].names[]'

JSON: [as of `pull`, without was_here]")]
    Ls,
    /// Tell everything about an image.
    #[command(after_help = "\
Examples:
  smartvm image inspect debian:12
  smartvm image inspect 3f9a --json | jq .config

JSON: as of `pull`, without was_here")]
    Inspect {
        /// The image.
        image: String,
    },
    /// Give an image one more name.
    #[command(
        after_help = "Example:\n  smartvm image tag 3f9a app:stable\n\nJSON: as of `pull`, without was_here"
    )]
    Tag {
        /// The image.
        image: String,
        /// The name. An image that has it loses it.
        #[arg(value_name = "REF", value_parser = reference)]
        name: Reference,
    },
    /// Write an image to an archive or a folder: for other tools, and for hosts without its registry.
    ///
    /// It leaves as one layer with everything in it. `smartvm image import`, `skopeo copy oci-archive:FILE`, `podman load` and `docker load`
    /// take it. Sockets are left out: archives have none.
    #[command(after_help = "\
Examples:
  smartvm image export debian:12 -o debian.tar
  smartvm image export app:1 | ssh other smartvm image import -
  smartvm image export app:1 --format rootfs-tar | tar -tv
  smartvm image export app:1 --format oci-dir -o layout/

JSON, with `-o FILE`: {image, manifest, name, entries, sockets, size_bytes}; manifest and name are null for rootfs-tar")]
    Export {
        /// The image.
        image: String,
        /// A file, over one that is there, or for oci-dir a new or empty folder; `-` is standard output.
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
        /// What to write.
        #[arg(long, value_enum, default_value_t = ExportArgument::OciTar)]
        format: ExportArgument,
    },
    /// Remove a name, and the image with its last name; what it took of the disk goes with the next `smartvm store gc`.
    #[command(after_help = "\
Examples:
  smartvm image rm app:1
  smartvm image rm 3f9a --force

JSON: {untagged: [name], deleted: id or null}")]
    Rm {
        /// The image.
        image: String,
        /// Given an id, also when it has several names.
        #[arg(long)]
        force: bool,
    },
}

/// What a source is.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArgument {
    /// What it looks like.
    Auto,
    /// An image: an OCI layout, or what `docker save` wrote.
    Image,
    /// A root file system, whatever lies in it.
    Root,
}

impl From<FormatArgument> for Format {
    fn from(format: FormatArgument) -> Self {
        match format {
            FormatArgument::Auto => Self::Detect,
            FormatArgument::Image => Self::Image,
            FormatArgument::Root => Self::Root,
        }
    }
}

/// What an image becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportArgument {
    /// A tar archive of an OCI layout.
    OciTar,
    /// A folder with an OCI layout.
    OciDir,
    /// A tar archive of the root file system alone, without what is to run in it.
    RootfsTar,
}

impl From<ExportArgument> for ExportFormat {
    fn from(format: ExportArgument) -> Self {
        match format {
            ExportArgument::OciTar => Self::OciTar,
            ExportArgument::OciDir => Self::OciDirectory,
            ExportArgument::RootfsTar => Self::RootfsTar,
        }
    }
}

fn reference(text: &str) -> Result<Reference, String> {
    text.parse().map_err(|error: image::BadReference| error.to_string())
}

fn platform(text: &str) -> Result<Platform, String> {
    text.parse().map_err(|error: image::BadPlatform| error.to_string())
}

/// `smartvm image`
pub(crate) async fn run(arguments: ImageArguments, printer: &Printer) -> Outcome {
    let store = store::open()?;
    match arguments.command {
        ImageCommand::Pull { reference, platform, insecure } => {
            let mut options = PullOptions::default();
            options.platform = platform.unwrap_or(options.platform);
            if insecure {
                options.insecure = Insecure::Always;
            }
            let drawing = Drawing::new(printer);
            let progress = drawing.progress();
            let work = async { Ok(image::pull(&store, &reference, &options, &progress).await?) };
            let pulled = until_signal(work).await?;
            drop(drawing);
            arrived(&store, &pulled.image, pulled.was_here, printer)
        }
        ImageCommand::Import { source, name, format, select, platform } => {
            let mut options =
                ImportOptions { format: format.into(), select, name, ..ImportOptions::default() };
            options.platform = platform.unwrap_or(options.platform);
            let source = match source.as_os_str() == "-" {
                true => ImportSource::Stream("standard input".into(), Box::new(io::stdin())),
                false => ImportSource::Path(source),
            };
            let drawing = Drawing::new(printer);
            let progress = drawing.progress();
            let work = async { Ok(image::import(&store, source, &options, &progress).await?) };
            let imported = until_signal(work).await?;
            drop(drawing);
            arrived(&store, &imported.image, imported.was_here, printer)
        }
        ImageCommand::Ls => {
            let images = image::list(&store)?;
            let text = match printer.json {
                true => json_line(&images.iter().map(|named| Shown::of(named, None)).collect::<Vec<_>>()),
                false => table(&images),
            };
            Ok(print(printer, &text, Exit::Success))
        }
        ImageCommand::Inspect { image } => {
            let named = image::resolve(&store, &image)?;
            let text = if printer.json { json_line(&Shown::of(&named, None)) } else { inspected(&named) };
            Ok(print(printer, &text, Exit::Success))
        }
        ImageCommand::Tag { image, name } => {
            let named = image::tag(&store, &image, &name)?;
            let text = match printer.json {
                true => json_line(&Shown::of(&named, None)),
                false => format!("{} is {} now\n", short(&named.image.id), name.familiar()),
            };
            Ok(print(printer, &text, Exit::Success))
        }
        ImageCommand::Export { image, output, format } => {
            export(&store, &image, &output, format, printer).await
        }
        ImageCommand::Rm { image, force } => {
            let removed = image::remove(&store, &image, force)?;
            let names: Vec<String> = removed.untagged.iter().map(Reference::familiar).collect();
            let text = if printer.json {
                json_line(&serde_json::json!({"untagged": names, "deleted": removed.deleted}))
            } else {
                let names = names.iter().map(|name| format!("removed the name {name}\n"));
                let image = removed.deleted.map(|id| format!("removed the image {}\n", short(&id)));
                names.chain(image).collect()
            };
            Ok(print(printer, &text, Exit::Success))
        }
    }
}

/// Writes an image to where it is wanted, and tells about it where that is not the output itself.
async fn export(
    store: &Store,
    image: &str,
    output: &Path,
    format: ExportArgument,
    printer: &Printer,
) -> Outcome {
    let is_stream = output.as_os_str() == "-";
    if is_stream && format == ExportArgument::OciDir {
        return Err(Report::usage("an OCI layout is a folder: name it with -o DIR").into());
    }
    if is_stream && io::stdout().is_terminal() {
        return Err(
            Report::usage("an image is nothing for a terminal: name a file with -o, or pipe it on").into()
        );
    }
    let target = match is_stream {
        true => ExportTarget::Stream("standard output".into(), Box::new(io::stdout())),
        false => ExportTarget::Path(output.to_owned()),
    };
    let drawing = Drawing::new(printer);
    let progress = drawing.progress();
    let work = async { Ok(image::export(store, image, format.into(), target, &progress).await?) };
    let exported = until_signal(work).await?;
    drop(drawing);
    let text = match (is_stream, printer.json) {
        (true, _) => String::new(),
        (false, true) => json_line(&exported),
        (false, false) => told(&exported, output),
    };
    Ok(print(printer, &text, Exit::Success))
}

fn told(exported: &Exported, output: &Path) -> String {
    let name = exported.name.as_ref().map_or_else(|| short(&exported.image), Reference::familiar);
    let output = on_one_line(&output.display().to_string());
    let entries = count(exported.entries, "file");
    format!("wrote {name} to {output}: {entries}, {}\n", size(exported.size_bytes))
}

/// Tells what has come.
fn arrived(store: &Store, image: &Image, was_here: bool, printer: &Printer) -> Outcome {
    let named = image::resolve(store, &image.id.to_string())?;
    let text = match printer.json {
        true => json_line(&Shown::of(&named, Some(was_here))),
        false => {
            let here = if was_here { ", was here already" } else { "" };
            let names = names(&named);
            let names = if names.is_empty() { "no name".to_owned() } else { names };
            format!("{} ({names}): {}{here}\n", short(&image.id), size(image.root.used_bytes))
        }
    };
    Ok(print(printer, &text, Exit::Success))
}

fn names(named: &Named) -> String {
    named.names.iter().map(Reference::familiar).collect::<Vec<_>>().join(" ")
}

fn table(images: &[Named]) -> String {
    if images.is_empty() {
        return "there is no image: `smartvm image pull` fetches one, `smartvm image import` makes one\n"
            .into();
    }
    let mut table = Table::new(&["ID", "PLATFORM", ">SIZE", ">ON DISK", "NAMES"]);
    for named in images {
        let root = &named.image.root;
        table.row([
            short(&named.image.id),
            named.image.platform.to_string(),
            size(root.size_bytes),
            size(root.used_bytes),
            names(named),
        ]);
    }
    table.text(stdout_colour())
}

fn inspected(named: &Named) -> String {
    let image = &named.image;
    let mut text = format!("{}\n", image.id);
    let mut line = |label: &str, value: &str| {
        if !value.is_empty() {
            text += &format!("  {label:<11}{}\n", on_one_line(value));
        }
    };
    line("names", &names(named));
    line("platform", &image.platform.to_string());
    let kind = match image.root.kind {
        RootKind::Ext4 => "ext4",
        RootKind::Squashfs => "squashfs",
    };
    let (whole, used) = (size(image.root.size_bytes), size(image.root.used_bytes));
    line("root", &format!("{kind} {} of {whole}, {used} on disk", short(&image.root.digest)));
    line("from", &image.source);
    line("built", image.created.as_deref().unwrap_or_default());
    line("layers", &count(image.layers.len() as u64, "layer"));
    let config = &image.config;
    line("entrypoint", &config.entrypoint.join(" "));
    line("command", &config.cmd.join(" "));
    line("workdir", config.workdir.as_deref().unwrap_or_default());
    line("user", config.user.as_deref().unwrap_or_default());
    for variable in &config.env {
        line("env", variable);
    }
    line("ports", &config.exposed_ports.join(" "));
    line("volumes", &config.volumes.join(" "));
    line("stop with", config.stop_signal.as_deref().unwrap_or_default());
    for (name, value) in &config.labels {
        line("label", &format!("{name}={value}"));
    }
    text
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    image: &'a Image,
    /// In their short form.
    names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    was_here: Option<bool>,
}

impl<'a> Shown<'a> {
    fn of(named: &'a Named, was_here: Option<bool>) -> Self {
        Self { image: &named.image, names: named.names.iter().map(Reference::familiar).collect(), was_here }
    }
}
