//! Everything but `run`.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::Shell;
use serde::Serialize;
use smartvm::explain::Explain;
use smartvm::host::Known;
use smartvm::{Config, Directories, FirecrackerBinary, GcMode, Host, MachineId, Version, check_config};

use crate::arguments::{Arguments, CheckArguments, FirecrackerArgument, GcArguments, StopArguments};
use crate::exit::Exit;
use crate::report::{Printer, Problem, Report, json_line, on_one_line};

/// Tells an error and answers its exit.
fn fail(printer: &Printer, report: &Report, exit: Exit) -> Exit {
    printer.error(report);
    exit
}

/// Prints data; a reader that has gone is no error of ours.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
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
    let firecracker = match FirecrackerBinary::find(arguments.firecracker.firecracker.as_deref()).await {
        Ok(firecracker) => firecracker,
        Err(error) => return fail(printer, &Report::of(&error), Exit::HostNotReady),
    };
    let checked = check_config(&config, &firecracker.version, arguments.enable_pci);
    let findings = match &checked {
        Ok(checked) => &checked.warnings,
        Err(invalid) => &invalid.findings,
    };
    if printer.json {
        let problems: Vec<Problem> = findings.iter().map(Problem::from).collect();
        let answer = CheckAnswer {
            ok: checked.is_ok(),
            config_file: &arguments.config_file,
            firecracker: &firecracker.version,
            problems,
        };
        print(&json_line(&answer));
    }
    match checked {
        Ok(checked) => {
            let warnings: Vec<Problem> = checked.warnings.iter().map(Problem::from).collect();
            printer.warnings(&warnings, false);
            if !printer.json {
                print(&format!("ok: this config can be started with Firecracker {}\n", firecracker.version));
            }
            Exit::Success
        }
        Err(invalid) => {
            let exit = Exit::of(invalid.code());
            if printer.json { exit } else { fail(printer, &Report::invalid_config(&invalid), exit) }
        }
    }
}

#[derive(Serialize)]
struct CheckAnswer<'a> {
    ok: bool,
    config_file: &'a std::path::Path,
    firecracker: &'a Version,
    problems: Vec<Problem>,
}

/// `smartvm doctor`
pub(crate) async fn doctor(arguments: FirecrackerArgument, printer: &Printer) -> Exit {
    let diagnosis = smartvm::doctor::examine(arguments.firecracker.as_deref(), &Directories::find()).await;
    if printer.json {
        print(&json_line(&diagnosis));
    } else {
        print(&diagnosis.to_text(crate::colour(io::stdout().is_terminal())));
    }
    if diagnosis.is_ready() { Exit::Success } else { Exit::HostNotReady }
}

/// `smartvm version`
pub(crate) async fn version(arguments: FirecrackerArgument, printer: &Printer) -> Exit {
    let firecracker = FirecrackerBinary::find(arguments.firecracker.as_deref()).await;
    let own = env!("CARGO_PKG_VERSION");
    let (found, why) = match &firecracker {
        Ok(firecracker) => (Some(firecracker), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let jailer = smartvm::doctor::jailer(found.map(|found| found.path.as_path())).await;
    if printer.json {
        let jailer = jailer.and_then(|(path, version)| Some((path, version.ok()?)));
        let answer = serde_json::json!({
            "smartvm": own,
            "jailer": jailer.map(|(path, version)| serde_json::json!({"version": version, "path": path})),
            "firecracker": found.map(|found| serde_json::json!({"version": found.version, "path": found.path})),
        });
        print(&json_line(&answer));
    } else {
        print(&format!("smartvm      {own}\n"));
        print(&match (found, why) {
            (Some(found), _) => format!("firecracker  {} ({})\n", found.version, found.path.display()),
            (None, why) => format!("firecracker  none: {}\n", why.unwrap_or_default()),
        });
        print(&match jailer {
            Some((path, Ok(version))) => format!("jailer       {version} ({})\n", path.display()),
            Some((_, Err(why))) => format!("jailer       none: {why}\n"),
            None => "jailer       none\n".to_owned(),
        });
    }
    Exit::Success
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
        print(&json_line(&rows));
        return Exit::Success;
    }
    let width = machines.iter().map(|known| known.record.id.as_str().len()).max().unwrap_or(2).max(2);
    print(&format!(
        "{:width$}  {:8}  {:>8}  {:>8}  {:11}  CONFIG\n",
        "ID", "STATE", "OWNER", "VMM", "FIRECRACKER"
    ));
    for known in &machines {
        let row = Row::of(known);
        let pid = |pid: Option<i32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let config = known.record.config_file.as_ref().map_or("-".into(), |file| file.display().to_string());
        print(&format!(
            "{:width$}  {:8}  {:>8}  {:>8}  {:11}  {config}\n",
            row.id.as_str(),
            row.state,
            row.owner_pid,
            pid(row.vmm_pid),
            row.firecracker
        ));
    }
    Exit::Success
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
    dir: &'a std::path::Path,
    config_file: Option<&'a std::path::Path>,
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
            dir: &known.dir,
            config_file: record.config_file.as_deref(),
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
            if printer.json {
                print(&json_line(&serde_json::json!({"id": arguments.id, "stopped": true})));
            }
            Exit::Success
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
    if printer.json {
        print(&json_line(&report));
    } else {
        let did = if arguments.dry_run { "would release" } else { "released" };
        for released in &report.released {
            let vmms: String = released.vmms.iter().map(|pid| format!(", killing its VMM {pid}")).collect();
            print(&format!("{did} {}{vmms}\n", released.id));
        }
        for left in &report.foreign {
            let path = on_one_line(&left.path.display().to_string());
            print(&format!("not smartvm's, left alone: {path}: {}\n", left.why));
        }
        for left in &report.failed {
            let path = on_one_line(&left.path.display().to_string());
            print(&format!("FAILED to release {path}: {}\n", left.why));
        }
        if report.released.is_empty() && report.failed.is_empty() {
            print("nothing to release\n");
        }
    }
    if report.failed.is_empty() { Exit::Success } else { Exit::NotReleased }
}

/// `smartvm completions`
pub(crate) fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "smartvm", &mut script);
    let _ = io::stdout().write_all(&script);
    Exit::Success
}
