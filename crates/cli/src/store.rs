//! `smartvm store`: how large it is, whether it is whole, and what can go.

use clap::{Args, Subcommand};
use serde::Serialize;
use smartvm::Directories;
use smartvm::images::Store;
use smartvm::images::store::{BASES_KEPT, DfReport, GcOptions, GcReport, Usage, VerifyOptions, VerifyReport};

use crate::commands::{print, stdout_colour};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, until_signal};
use crate::progress::Drawing;
use crate::report::{Printer, Report, json_line, on_one_line};
use crate::table::{Table, count, size};

/// See how large the store of kernels, images and Firecracker releases is, check it, and clear it up.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smartvm store df\n  smartvm store verify --repair\n  smartvm store gc --dry-run"
)]
pub(crate) struct StoreArguments {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Show how large the store is, and how much of it nothing needs.
    #[command(after_help = "\
Examples:
  smartvm store df
  smartvm store df --json | jq .reclaimable_bytes

JSON: {dir, kinds: [{kind, records, blobs: {count, bytes, disk_bytes}}], blobs, downloads, damaged,
       reclaimable_bytes, free_bytes}")]
    Df,
    /// Read everything in the store and tell what is not as it should be.
    #[command(after_help = "\
Examples:
  smartvm store verify
  smartvm store verify --repair --json

JSON: {blobs, bytes, records, findings: [{finding: bad-blob|missing-blob|bad-record|foreign, ...}]}
Exit status 10 when there are findings, whether they were repaired or not.")]
    Verify {
        /// Move what is bad to the store's folder `damaged`, so that it is fetched again when wanted.
        #[arg(long)]
        repair: bool,
    },
    /// Remove what no machine, kernel, image or release needs, and what killed processes left behind.
    #[command(after_help = "\
Examples:
  smartvm store gc --dry-run
  smartvm store gc --keep-bases 1

JSON: {dry_run, evicted: [{kind, name}], blobs: [{digest, disk_bytes}], leftovers: {count, bytes, disk_bytes},
       disk_bytes, refused: [why]}")]
    Gc {
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
        /// How many base-image bundles stay: the most recently used ones, and those in use.
        #[arg(long, value_name = "N", default_value_t = BASES_KEPT)]
        keep_bases: usize,
    },
}

/// The store of this host.
pub(crate) fn open() -> Result<Store, Failure> {
    Directories::find().open_store().map_err(|error| match error {
        smartvm::directories::OpenStoreError::Directory(_) => {
            Report::of(&error).with_exit(Exit::HostNotReady).into()
        }
        error => error.into(),
    })
}

/// `smartvm store`
pub(crate) async fn run(arguments: StoreArguments, printer: &Printer) -> Outcome {
    let store = open()?;
    match arguments.command {
        StoreCommand::Df => df(&store, printer).await,
        StoreCommand::Verify { repair } => verify(&store, VerifyOptions { repair }, printer).await,
        StoreCommand::Gc { dry_run, keep_bases } => {
            let options = GcOptions { dry_run, keep_bases, ..GcOptions::default() };
            gc(&store, &options, printer).await
        }
    }
}

async fn df(store: &Store, printer: &Printer) -> Outcome {
    let report = until_signal(async { Ok(store.df().await?) }).await?;
    let dir = store.dir().display().to_string();
    let text = match printer.json {
        true => json_line(&DfAnswer { dir, report }),
        false => df_text(&dir, &report),
    };
    Ok(print(printer, &text, Exit::Success))
}

#[derive(Serialize)]
struct DfAnswer {
    dir: String,
    #[serde(flatten)]
    report: DfReport,
}

fn df_text(dir: &str, report: &DfReport) -> String {
    let mut table = Table::new(&["KIND", ">RECORDS", ">BLOBS", ">SIZE", ">ON DISK"]);
    let mut row = |kind: &str, records: String, usage: &Usage| {
        let sizes = [size(usage.bytes), size(usage.disk_bytes)];
        let [bytes, disk_bytes] = sizes;
        table.row([kind.to_owned(), records, usage.count.to_string(), bytes, disk_bytes]);
    };
    // What a choice or a tag names belongs to another kind.
    for kind in report.kinds.iter().filter(|kind| kind.blobs.count > 0) {
        row(kind.kind.as_str(), kind.records.to_string(), &kind.blobs);
    }
    row("all blobs", String::new(), &report.blobs);
    for (kind, usage) in [("downloads", &report.downloads), ("damaged", &report.damaged)] {
        if usage.count > 0 {
            row(kind, String::new(), usage);
        }
    }
    let mut text = table.text(stdout_colour());
    text += &format!(
        "\n{}: {} can be removed by `smartvm store gc`, {} are free on its disk\n",
        on_one_line(dir),
        size(report.reclaimable_bytes),
        size(report.free_bytes)
    );
    if report.damaged.count > 0 {
        text += &format!(
            "{} in {}/damaged is what `smartvm store verify --repair` moved away; gc leaves it, and you may delete it\n",
            size(report.damaged.disk_bytes),
            on_one_line(dir)
        );
    }
    text
}

async fn verify(store: &Store, options: VerifyOptions, printer: &Printer) -> Outcome {
    let drawing = Drawing::new(printer);
    let report = until_signal(async { Ok(store.verify(options, &drawing.progress()).await?) }).await?;
    drop(drawing);
    let exit = if report.is_clean() { Exit::Success } else { Exit::StoreDamaged };
    let text = if printer.json { json_line(&report) } else { verify_text(&report, options.repair) };
    Ok(print(printer, &text, exit))
}

fn verify_text(report: &VerifyReport, repaired: bool) -> String {
    let read = format!(
        "{} ({}) and {} were read",
        count(report.blobs, "blob"),
        size(report.bytes),
        count(report.records, "record")
    );
    if report.is_clean() {
        return format!("ok: {read}, and all is as it should be\n");
    }
    let mut text = String::new();
    for finding in &report.findings {
        text += &format!("{}\n", on_one_line(&finding.to_string()));
    }
    text += &format!("{read}: {}", count(report.findings.len() as u64, "finding"));
    text += match repaired {
        true => "\n",
        false => "; `smartvm store verify --repair` moves what is bad away\n",
    };
    text
}

async fn gc(store: &Store, options: &GcOptions, printer: &Printer) -> Outcome {
    let drawing = Drawing::new(printer);
    let report = until_signal(async { Ok(store.gc(options, &drawing.progress()).await?) }).await?;
    drop(drawing);
    let exit = if report.refused.is_empty() { Exit::Success } else { Exit::StoreDamaged };
    let text = if printer.json { json_line(&report) } else { gc_text(&report) };
    Ok(print(printer, &text, exit))
}

fn gc_text(report: &GcReport) -> String {
    let (removed, freed) = match report.dry_run {
        true => ("would remove", "would be freed"),
        false => ("removed", "freed"),
    };
    let mut text = String::new();
    for id in &report.evicted {
        text += &format!("{removed} {}\n", on_one_line(&id.to_string()));
    }
    for blob in &report.blobs {
        text += &format!("{removed} {} ({})\n", blob.digest, size(blob.disk_bytes));
    }
    if report.leftovers.count > 0 {
        let leftovers = count(report.leftovers.count, "file");
        text += &format!("{removed} {leftovers} that killed or interrupted work left behind\n");
    }
    for why in &report.refused {
        text += &format!("no blob goes, since it might be needed: {}\n", on_one_line(why));
    }
    if !report.refused.is_empty() {
        text += "`smartvm store verify --repair` moves what cannot be understood away\n";
    } else if text.is_empty() {
        text += "nothing to remove\n";
    } else {
        text += &format!("{} {freed}\n", size(report.disk_bytes));
    }
    text
}
