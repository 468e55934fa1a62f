//! Everything but `run`.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::Shell;
use serde::Serialize;
use smartvm::explain::Explain;
use smartvm::host::Known;
use smartvm::{
    Config, Directories, GcMode, GcReport, Host, MachineId, Version, check_config, find_firecracker,
};

use crate::arguments::{Arguments, CheckArguments, FirecrackerArgument, GcArguments, StopArguments};
use crate::exit::Exit;
use crate::report::{Printer, Problem, Report, json_line, on_one_line};

/// Tells an error and answers its exit.
fn fail(printer: &Printer, report: &Report, exit: Exit) -> Exit {
    printer.error(report);
    exit
}

/// Prints data and answers `exit`, unless it could not be printed. A reader that has gone is no error of ours.
pub(crate) fn print(printer: &Printer, text: &str, exit: Exit) -> Exit {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let report = Report::plain("HOST", "cannot write to standard output", Exit::Internal);
            fail(printer, &report.because(&error), Exit::Internal)
        }
        _ => exit,
    }
}

/// Whether to colour what goes to standard output.
pub(crate) fn stdout_colour() -> bool {
    crate::colour(io::stdout().is_terminal())
}

fn open_host(printer: &Printer) -> Result<Host, Exit> {
    Host::open(&Directories::find()).map_err(|error| {
        let report = Report::of(&error).with_exit(Exit::HostNotReady);
        fail(printer, &report, Exit::HostNotReady)
    })
}

/// `smartvm check`
pub(crate) async fn check(arguments: CheckArguments, printer: &Printer) -> Exit {
    let config = match Config::load(&arguments.config_file) {
        Ok(config) => config,
        Err(error) => return fail(printer, &Report::of(&error), Exit::InvalidConfig),
    };
    let firecracker =
        match find_firecracker(arguments.firecracker.firecracker.as_deref(), &Directories::find()).await {
            Ok(firecracker) => firecracker,
            Err(error) => return fail(printer, &Report::of(&error), Exit::HostNotReady),
        };
    let checked = check_config(&config, &firecracker.version, arguments.enable_pci);
    let findings = match &checked {
        Ok(checked) => &checked.warnings,
        Err(invalid) => &invalid.findings,
    };
    let problems: Vec<Problem> = findings.iter().map(Problem::from).collect();
    let exit = checked.as_ref().map_or_else(|invalid| Exit::of(invalid.code()), |_| Exit::Success);
    if printer.json {
        let answer = CheckAnswer {
            ok: checked.is_ok(),
            config_file: arguments.config_file.display().to_string(),
            firecracker: &firecracker.version,
            problems,
        };
        return print(printer, &json_line(&answer), exit);
    }
    match checked {
        Ok(_) => {
            printer.warnings(&problems, false);
            let text = format!("ok: this config can be started with Firecracker {}\n", firecracker.version);
            print(printer, &text, exit)
        }
        Err(invalid) => fail(printer, &Report::invalid_config(&invalid), exit),
    }
}

#[derive(Serialize)]
struct CheckAnswer<'a> {
    ok: bool,
    /// In JSON a path is text: what is not UTF-8 in it is replaced.
    config_file: String,
    firecracker: &'a Version,
    problems: Vec<Problem>,
}

/// `smartvm doctor`
pub(crate) async fn doctor(arguments: FirecrackerArgument, printer: &Printer) -> Exit {
    let diagnosis = smartvm::doctor::examine(arguments.firecracker.as_deref(), &Directories::find()).await;
    let exit = if diagnosis.is_ready() { Exit::Success } else { Exit::HostNotReady };
    let text = match printer.json {
        true => json_line(&diagnosis),
        false => diagnosis.to_text(stdout_colour()),
    };
    print(printer, &text, exit)
}

/// `smartvm version`
pub(crate) async fn version(arguments: FirecrackerArgument, printer: &Printer) -> Exit {
    let firecracker = find_firecracker(arguments.firecracker.as_deref(), &Directories::find()).await;
    let own = env!("CARGO_PKG_VERSION");
    let (found, why) = match &firecracker {
        Ok(firecracker) => (Some(firecracker), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let jailer = smartvm::doctor::jailer(found.map(|found| found.path.as_path())).await;
    let text = if printer.json {
        let tool = |path: &Path, version: &Version| serde_json::json!({"version": version, "path": path.display().to_string()});
        let jailer = jailer.and_then(|(path, version)| Some(tool(&path, &version.ok()?)));
        let firecracker = found.map(|found| tool(&found.path, &found.version));
        json_line(&serde_json::json!({"smartvm": own, "jailer": jailer, "firecracker": firecracker}))
    } else {
        let firecracker = match (found, why) {
            (Some(found), _) => format!("{} ({})", found.version, found.path.display()),
            (None, why) => format!("none: {}", why.unwrap_or_default()),
        };
        let jailer = match jailer {
            Some((path, Ok(version))) => format!("{version} ({})", path.display()),
            Some((_, Err(why))) => format!("none: {why}"),
            None => "none".to_owned(),
        };
        format!("smartvm      {own}\nfirecracker  {firecracker}\njailer       {jailer}\n")
    };
    print(printer, &text, Exit::Success)
}

/// `smartvm ps`
pub(crate) fn ps(printer: &Printer) -> Exit {
    let host = match open_host(printer) {
        Ok(host) => host,
        Err(exit) => return exit,
    };
    let machines = host.machines();
    if printer.json {
        let rows: Vec<Row<'_>> = machines.iter().map(Row::of).collect();
        return print(printer, &json_line(&rows), Exit::Success);
    }
    print(printer, &table(&machines), Exit::Success)
}

fn table(machines: &[Known]) -> String {
    let width = machines.iter().map(|known| known.record.id.as_str().len()).max().unwrap_or(2).max(2);
    let mut table = format!(
        "{:width$}  {:8}  {:>8}  {:>8}  {:11}  CONFIG\n",
        "ID", "STATE", "OWNER", "VMM", "FIRECRACKER"
    );
    for row in machines.iter().map(Row::of) {
        let vmm = row.vmm_pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let config = row.config_file.map_or_else(|| "-".to_owned(), |file| on_one_line(&file));
        table += &format!(
            "{:width$}  {:8}  {:>8}  {vmm:>8}  {:11}  {config}\n",
            row.id.as_str(),
            row.state,
            row.owner_pid,
            row.firecracker
        );
    }
    table
}

#[derive(Serialize)]
struct Row<'a> {
    id: &'a MachineId,
    /// `starting`, `running`, or `dead` when the owner is gone and `gc` has not been here yet.
    state: &'static str,
    owner_pid: i32,
    vmm_pid: Option<i32>,
    firecracker: &'a str,
    /// Seconds since 1970.
    created: u64,
    dir: String,
    config_file: Option<String>,
}

impl<'a> Row<'a> {
    fn of(known: &'a Known) -> Self {
        let record = &known.record;
        Self {
            id: &record.id,
            state: match (known.alive, &record.vmm) {
                (false, _) => "dead",
                (true, None) => "starting",
                (true, Some(_)) => "running",
            },
            owner_pid: record.owner.pid,
            vmm_pid: record.vmm.as_ref().map(|vmm| vmm.pid),
            firecracker: &record.firecracker,
            created: record.created,
            dir: known.dir.display().to_string(),
            config_file: record.config_file.as_ref().map(|file| file.display().to_string()),
        }
    }
}

/// `smartvm stop`
pub(crate) async fn stop(arguments: StopArguments, printer: &Printer) -> Exit {
    let host = match open_host(printer) {
        Ok(host) => host,
        Err(exit) => return exit,
    };
    let known = match host.machine(&arguments.id) {
        Ok(known) => known,
        Err(error) => return fail(printer, &Report::of(&error), Exit::MachineUnavailable),
    };
    match host.stop(&known, arguments.kill, Duration::from_secs_f64(arguments.timeout)).await {
        Ok(()) => {
            let answer = serde_json::json!({"id": arguments.id, "stopped": true});
            let text = if printer.json { json_line(&answer) } else { String::new() };
            print(printer, &text, Exit::Success)
        }
        Err(error) => {
            let report = Report::of(&error);
            printer.error(&report);
            Exit::NotReleased
        }
    }
}

/// `smartvm gc`
pub(crate) async fn gc(arguments: GcArguments, printer: &Printer) -> Exit {
    let host = match open_host(printer) {
        Ok(host) => host,
        Err(exit) => return exit,
    };
    let mode = if arguments.dry_run { GcMode::DryRun } else { GcMode::Release };
    let report = host.gc(mode).await;
    let exit = if report.failed.is_empty() { Exit::Success } else { Exit::NotReleased };
    let text = if printer.json { json_line(&report) } else { gc_text(&report) };
    print(printer, &text, exit)
}

fn gc_text(report: &GcReport) -> String {
    let mut text = String::new();
    let did = if report.dry_run { "would release" } else { "released" };
    for released in &report.released {
        let vmms: String = released.vmms.iter().map(|pid| format!(", killing its VMM {pid}")).collect();
        text += &format!("{did} {}{vmms}\n", released.id);
    }
    for left in &report.foreign {
        let path = on_one_line(&left.path.display().to_string());
        text += &format!("not smartvm's, left alone: {path}: {}\n", left.why);
    }
    for left in &report.failed {
        let path = on_one_line(&left.path.display().to_string());
        text += &format!("FAILED to release {path}: {}\n", left.why);
    }
    if report.released.is_empty() && report.failed.is_empty() {
        text += "nothing to release\n";
    }
    text
}

/// `smartvm completions`
pub(crate) fn completions(shell: Shell, printer: &Printer) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "smartvm", &mut script);
    print(printer, &String::from_utf8_lossy(&script), Exit::Success)
}
