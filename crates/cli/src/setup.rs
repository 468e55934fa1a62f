//! `smartvm setup`: from a fresh host to one that runs machines.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use smartvm::Directories;
use smartvm::doctor::Diagnosis;
use smartvm::images::base::Preset;
use smartvm::images::release::Version;
use smartvm::images::setup::Report as Taken;
use smartvm::setup::{Action, HostDone, HostPlan, HostSetup, KernelWish, Step};

use crate::commands::{print, stdout_colour};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, until_signal};
use crate::firecracker::downloader;
use crate::progress::Drawing;
use crate::report::{Printer, Report, json_line, on_one_line};
use crate::table::{size, size_if_known};

/// Get this host ready: Firecracker and a kernel, with what it fetches told first, and `doctor` at the end.
///
/// What is here already is used. The kernel is this host's own where it can be read, else that of the newest base image. With
/// --from, everything comes from a folder that was brought along, and nothing from the network.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  smartvm setup
  smartvm setup --dry-run
  smartvm setup --yes --kernel latest
  smartvm setup --from /media/usb

Without a network: behind a proxy set HTTPS_PROXY; mirrors are named by SMARTVM_FIRECRACKER_URL and SMARTVM_BASE_URL; a
binary that is here already by SMARTVM_FIRECRACKER. A folder for --from holds what the release pages offer, under its own names:
firecracker-VERSION-x86_64.tgz and its .sha256.txt, linux-image-*.deb or a vmlinux, a base image's manifest with its files.

JSON: {steps: [{what, action: none|fetch|import, size}], size, size_is_complete, free_bytes}, and unless --dry-run
      {..., firecracker, base, kernel: what was brought (version, bundle id, name) or null, doctor: as of `doctor --json`};
      with --from {imported: [{path, what}], failed: [{path, error}], skipped: [{path, why}], doctor}")]
pub(crate) struct SetupArguments {
    /// Take everything from this folder, and nothing from the network.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["dry_run", "kernel"])]
    from: Option<PathBuf>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Only say what would be fetched, and how large it is.
    #[arg(long)]
    dry_run: bool,
    /// Where the kernel comes from: `auto`, `host` (this host's own), or a base image: `latest`, `lts`, `hosted`.
    #[arg(long, value_name = "WHICH", default_value = "auto", value_parser = wish)]
    kernel: KernelWish,
}

fn wish(text: &str) -> Result<KernelWish, String> {
    match text {
        "auto" => Ok(KernelWish::Auto),
        "host" => Ok(KernelWish::Host),
        preset => match preset.parse::<Preset>() {
            Ok(preset) => Ok(KernelWish::Base(preset)),
            Err(_) => Err("give auto, host, latest, lts or hosted".into()),
        },
    }
}

/// `smartvm setup`
pub(crate) async fn run(arguments: SetupArguments, printer: &Printer) -> Outcome {
    let directories = Directories::find();
    let drawing = Drawing::new(printer);
    let setup = HostSetup::new(&directories, downloader(&drawing))?;
    if let Some(dir) = &arguments.from {
        let taken = until_signal(async { Ok(setup.import_dir(dir).await?) }).await?;
        drop(drawing);
        return from_folder(&setup, dir, &taken, &directories, printer).await;
    }
    let plan = until_signal(async { Ok(setup.plan(arguments.kernel).await?) }).await?;
    drop(drawing);
    let told = told(&setup, &plan);
    if arguments.dry_run {
        let text = if printer.json { json_line(&Planned::of(&plan)) } else { told };
        return Ok(print(printer, &text, Exit::Success));
    }
    if !printer.json {
        // Before the question that it belongs to.
        let exit = print(printer, &told, Exit::Success);
        if exit != Exit::Success {
            return Ok(exit);
        }
    }
    if plan.fetches() && !arguments.yes && !agreed(printer)? {
        return Ok(print(printer, "nothing was done\n", Exit::Success));
    }
    let drawing = Drawing::new(printer);
    let working = HostSetup::new(&directories, downloader(&drawing))?;
    let done = until_signal(async { Ok(working.run(&plan).await?) }).await?;
    drop(drawing);
    let diagnosis = smartvm::doctor::examine(None, &directories).await;
    let text = match printer.json {
        true => json_line(&Answer::of(&plan, &done, &diagnosis)),
        false => brought(&done) + &ending(&diagnosis, done.base.is_some()),
    };
    Ok(print(printer, &text, verdict(&diagnosis, true)))
}

/// Asks on the terminal.
fn agreed(printer: &Printer) -> Result<bool, Failure> {
    let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal() && !printer.json;
    if !can_ask {
        let mut report = Report::usage("there is no terminal to ask on whether to fetch this");
        report.hint = Some("agree by --yes; --dry-run only tells what it would be".into());
        return Err(report.into());
    }
    let mut line = String::new();
    let asked = write!(io::stderr(), "Fetch this? [Y/n] ").and_then(|()| io::stderr().flush());
    asked.and_then(|()| io::stdin().lock().read_line(&mut line)).map_err(|error| {
        Report::plain("HOST", "cannot ask on the terminal", Exit::Internal).because(&error)
    })?;
    // The end of the input is no agreement.
    Ok(line.ends_with('\n') && ["", "y", "yes"].contains(&line.trim().to_lowercase().as_str()))
}

/// The plan for people.
fn told(setup: &HostSetup, plan: &HostPlan) -> String {
    if plan.is_done() {
        let mut text = "Everything is here already:\n".to_owned();
        for step in &plan.steps {
            text += &format!("  {}\n", on_one_line(&step.what));
        }
        return text;
    }
    let mut text = format!("To be put into {}:\n", on_one_line(&setup.store().dir().display().to_string()));
    for step in &plan.steps {
        let how = match step.action {
            Action::None => "is here".to_owned(),
            Action::Import => "import".to_owned(),
            Action::Fetch => format!("fetch {}", size_if_known(step.size)),
        };
        text += &format!("  {how:<16} {}\n", on_one_line(&step.what));
    }
    let more = if plan.size_is_complete { "" } else { ", and what has an unknown size" };
    text += &format!("{}{more} to fetch, {} free on the disk\n", size(plan.size), size(plan.free_bytes));
    text
}

fn brought(done: &HostDone) -> String {
    let mut text = String::new();
    if let Some(installed) = &done.firecracker {
        text += &format!("Firecracker {} is installed\n", installed.version);
    }
    if let Some(image) = &done.base {
        let id = on_one_line(&image.bundle_id);
        text += &format!("base image {id} is here, with kernel {}\n", image.kernel);
    }
    if let Some(kernel) = &done.kernel {
        text += &format!("kernel {} is imported\n", kernel.name);
    }
    text
}

/// What doctor says, and what else is needed.
fn ending(diagnosis: &Diagnosis, has_base: bool) -> String {
    let mut text = format!("\n{}", diagnosis.to_text(stdout_colour()));
    if !has_base && diagnosis.is_ready() {
        text += "Next, an image to boot: smartvm image pull debian:12, or smartvm image import DIR\n";
    }
    text
}

fn verdict(diagnosis: &Diagnosis, all_taken: bool) -> Exit {
    match (diagnosis.is_ready(), all_taken) {
        (false, _) => Exit::HostNotReady,
        (true, false) => Exit::Internal,
        (true, true) => Exit::Success,
    }
}

async fn from_folder(
    setup: &HostSetup,
    dir: &Path,
    taken: &Taken,
    directories: &Directories,
    printer: &Printer,
) -> Outcome {
    for (path, error) in &taken.failed {
        let mut report = Report::of(error);
        if !report.error.contains(&*path.to_string_lossy()) {
            report.error = format!("{}: {}", path.display(), report.error);
        }
        if !printer.json {
            printer.error(&report);
        }
    }
    let diagnosis = smartvm::doctor::examine(None, directories).await;
    let exit = verdict(&diagnosis, taken.failed.is_empty());
    if printer.json {
        return Ok(print(printer, &json_line(&FromFolder::of(taken, &diagnosis)), exit));
    }
    let shown = |path: &Path| on_one_line(&path.strip_prefix(dir).unwrap_or(path).display().to_string());
    let mut text = String::new();
    for (path, what) in &taken.imported {
        text += &format!("took     {}: {}\n", shown(path), on_one_line(what));
    }
    for (path, _) in &taken.failed {
        text += &format!("failed   {}: see the error above\n", shown(path));
    }
    for (path, why) in &taken.skipped {
        text += &format!("skipped  {}: {}\n", shown(path), on_one_line(why));
    }
    let has_base = setup.store().list::<serde_json::Value>(smartvm::images::store::Kind::Base)?.is_empty();
    text += &ending(&diagnosis, !has_base);
    Ok(print(printer, &text, exit))
}

#[derive(Serialize)]
struct Planned<'a> {
    steps: &'a [Step],
    size: u64,
    size_is_complete: bool,
    free_bytes: u64,
}

impl<'a> Planned<'a> {
    fn of(plan: &'a HostPlan) -> Self {
        let HostPlan { steps, size, size_is_complete, free_bytes, .. } = plan;
        Self { steps, size: *size, size_is_complete: *size_is_complete, free_bytes: *free_bytes }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    planned: Planned<'a>,
    firecracker: Option<Version>,
    base: Option<&'a str>,
    kernel: Option<&'a str>,
    doctor: &'a Diagnosis,
}

impl<'a> Answer<'a> {
    fn of(plan: &'a HostPlan, done: &'a HostDone, doctor: &'a Diagnosis) -> Self {
        let of_base = done.base.as_ref().map(|image| image.kernel.as_str());
        Self {
            planned: Planned::of(plan),
            firecracker: done.firecracker.as_ref().map(|installed| installed.version),
            base: done.base.as_ref().map(|image| image.bundle_id.as_str()),
            kernel: done.kernel.as_ref().map(|kernel| kernel.name.as_str()).or(of_base),
            doctor,
        }
    }
}

#[derive(Serialize)]
struct FromFolder<'a> {
    imported: Vec<serde_json::Value>,
    failed: Vec<serde_json::Value>,
    skipped: Vec<serde_json::Value>,
    doctor: &'a Diagnosis,
}

impl<'a> FromFolder<'a> {
    fn of(taken: &Taken, doctor: &'a Diagnosis) -> Self {
        let path = |path: &PathBuf| path.display().to_string();
        Self {
            imported: taken
                .imported
                .iter()
                .map(|(file, what)| serde_json::json!({"path": path(file), "what": what}))
                .collect(),
            failed: taken
                .failed
                .iter()
                .map(|(file, error)| serde_json::json!({"path": path(file), "error": Report::of(error)}))
                .collect(),
            skipped: taken
                .skipped
                .iter()
                .map(|(file, why)| serde_json::json!({"path": path(file), "why": why}))
                .collect(),
            doctor,
        }
    }
}
