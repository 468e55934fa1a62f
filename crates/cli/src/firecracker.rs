//! `smartvm firecracker`: releases in the store.

use clap::{Args, Subcommand};
use serde::Serialize;
use smartvm::FirecrackerBinary;
use smartvm::images::Store;
use smartvm::images::download::{self, Downloader, place};
use smartvm::images::release::{Installed, Listed, Options, Releases, Version, Wanted};

use crate::commands::{print, stdout_colour};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, until_signal};
use crate::progress::Drawing;
use crate::report::{Printer, Report, json_line};
use crate::store;
use crate::table::Table;

/// Get Firecracker releases, several versions side by side, and choose which one runs machines.
///
/// A binary named by --firecracker or SMARTVM_FIRECRACKER goes before the chosen version, `firecracker` on PATH comes after it.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smartvm firecracker install\n  smartvm firecracker ls\n  smartvm firecracker use v1.12.1"
)]
pub(crate) struct FirecrackerArguments {
    #[command(subcommand)]
    command: FirecrackerCommand,
}

#[derive(Debug, Subcommand)]
enum FirecrackerCommand {
    /// Install a release, checked against its published SHA-256. The first one becomes the default.
    #[command(after_help = "\
Examples:
  smartvm firecracker install
  smartvm firecracker install v1.12.1
  smartvm firecracker install --base-url https://mirror.example/firecracker/releases

JSON: {version, arch, firecracker, jailer, archive, source, default, path, jailer_path, reported_version};
      firecracker, jailer and archive are digests")]
    Install {
        /// The version, such as v1.12.1, or `latest`.
        #[arg(default_value = "latest", value_parser = wanted)]
        version: Wanted,
        /// Where releases are, laid out as on GitHub; repeatable, best first. Else SMARTVM_FIRECRACKER_URL, else the official place.
        #[arg(long, value_name = "URL")]
        base_url: Vec<String>,
        /// Fetch it again although it is there.
        #[arg(long)]
        force: bool,
    },
    /// List the installed releases, newest first.
    #[command(after_help = "\
Examples:
  smartvm firecracker ls
  smartvm firecracker ls --json | jq -r '.[] | select(.default) | .version'

JSON: [{version, arch, firecracker, jailer, archive, source, default}]")]
    Ls,
    /// Choose the version that runs machines when nothing else is said.
    #[command(after_help = "Example:\n  smartvm firecracker use v1.12.1\n\nJSON: as of `install`")]
    Use {
        /// The version.
        #[arg(value_parser = version)]
        version: Version,
    },
    /// Remove a release; what it took of the disk goes with the next `smartvm store gc`.
    #[command(after_help = "Example:\n  smartvm firecracker rm v1.7.0\n\nJSON: {removed: version}")]
    Rm {
        /// The version.
        #[arg(value_parser = version)]
        version: Version,
    },
}

fn version(text: &str) -> Result<Version, String> {
    text.parse().map_err(|_| "write a version like v1.12.1".into())
}

fn wanted(text: &str) -> Result<Wanted, String> {
    text.parse().map_err(|_| "write a version like v1.12.1, or `latest`".into())
}

/// The releases of this host's store, fetched from `base_urls`, or from where the environment says.
fn releases(store: &Store, base_urls: &[String], drawing: &Drawing) -> Result<Releases, Failure> {
    let mut options = Options::from_environment()?;
    if !base_urls.is_empty() {
        options.bases = base_urls.iter().map(|url| place(url)).collect::<Result<_, _>>()?;
    }
    Ok(Releases::new(store.clone(), downloader(drawing), options))
}

/// Fetches things, and draws how far it is.
pub(crate) fn downloader(drawing: &Drawing) -> Downloader {
    Downloader::new(download::Options::default(), drawing.progress())
}

/// `smartvm firecracker`
pub(crate) async fn run(arguments: FirecrackerArguments, printer: &Printer) -> Outcome {
    let store = store::open()?;
    let drawing = Drawing::new(printer);
    match arguments.command {
        FirecrackerCommand::Install { version, base_url, force } => {
            let releases = releases(&store, &base_url, &drawing)?;
            let installed = until_signal(async { Ok(releases.install(version, force).await?) }).await?;
            drop(drawing);
            let text = shown(&releases, &installed, "installed", printer).await?;
            Ok(print(printer, &text, Exit::Success))
        }
        FirecrackerCommand::Ls => {
            let all = releases(&store, &[], &drawing)?.list()?;
            let text = if printer.json { json_line(&all) } else { table(&all) };
            Ok(print(printer, &text, Exit::Success))
        }
        FirecrackerCommand::Use { version } => {
            let releases = releases(&store, &[], &drawing)?;
            let chosen = releases.choose(version).await?;
            let text = shown(&releases, &chosen, "default is", printer).await?;
            Ok(print(printer, &text, Exit::Success))
        }
        FirecrackerCommand::Rm { version } => {
            let releases = releases(&store, &[], &drawing)?;
            until_signal(async { Ok(releases.remove(version).await?) }).await?;
            let text = match printer.json {
                true => json_line(&serde_json::json!({"removed": version})),
                false if releases.list()?.is_empty() => format!(
                    "removed Firecracker {version}; none is installed any more, so there is no default: `smartvm firecracker \
                     install` gets one\n"
                ),
                false => format!("removed Firecracker {version}\n"),
            };
            Ok(print(printer, &text, Exit::Success))
        }
    }
}

fn table(all: &[Listed]) -> String {
    if all.is_empty() {
        return "no Firecracker is installed: `smartvm firecracker install` gets the newest\n".into();
    }
    let mut table = Table::new(&["VERSION", "DEFAULT", "ARCH", "FROM"]);
    for Listed { installed, default } in all {
        let default = if *default { "yes" } else { "" };
        table.row([
            installed.version.to_string(),
            default.to_owned(),
            installed.arch.clone(),
            installed.source.clone(),
        ]);
    }
    table.text(stdout_colour())
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    installed: &'a Installed,
    default: bool,
    path: String,
    jailer_path: String,
    /// What the binary itself says.
    reported_version: String,
}

/// The digest was as published, so whoever published it has put a wrong program into the archive.
fn another_version(installed: &Installed, says: &str) -> Failure {
    let version = installed.version;
    let error = format!("what {} gives as Firecracker {version} says that it is {says}", installed.source);
    let mut report = Report::plain("DOWNLOAD_FAILED", error, Exit::NotFetched);
    report.hint = Some(format!(
        "remove it by `smartvm firecracker rm {version}`, and get it from the official release page: without --base-url and \
         SMARTVM_FIRECRACKER_URL"
    ));
    report.into()
}

/// Asks the binary for its version: a release that does not run here is told at once, not by the first machine.
async fn shown(
    releases: &Releases,
    installed: &Installed,
    did: &str,
    printer: &Printer,
) -> Result<String, Failure> {
    let programs = releases.programs(installed)?;
    let binary = FirecrackerBinary::at(&programs.firecracker).await?;
    if binary.version.to_string() != installed.version.0.to_string() {
        return Err(another_version(installed, &binary.version.to_string()));
    }
    let is_default = |listed: &Listed| listed.default && listed.installed.version == installed.version;
    let default = releases.list()?.iter().any(is_default);
    if printer.json {
        return Ok(json_line(&Shown {
            installed,
            default,
            path: programs.firecracker.display().to_string(),
            jailer_path: programs.jailer.display().to_string(),
            reported_version: binary.version.to_string(),
        }));
    }
    let path = programs.firecracker.display();
    let mut text =
        format!("{did} Firecracker {} ({path}; it says: version {})\n", installed.version, binary.version);
    if !default {
        text += &format!("make it the default by: smartvm firecracker use {}\n", installed.version);
    }
    Ok(text)
}
