//! Runs a command in an image of the store from your own program, prints what its console says, and tells how it ended.
//!
//!     smartvm setup && smartvm image pull busybox
//!     cargo run -p smartvm --example run_image -- busybox /bin/echo hello

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use smartvm::image_machine::{ReportFilter, guest::Report};
use smartvm::{Directories, Host, ImageMachine, ImageMachineSpec, StartOptions, find_firecracker};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let image = arguments.next().ok_or("usage: run_image IMAGE [COMMAND...]")?;
    let directories = Directories::find();
    let firecracker = find_firecracker(None, &directories).await?;
    let store = directories.open_store()?;
    // Releases what owners left behind that were killed.
    let host = Host::open_clean(&directories).await?;

    let mut spec = ImageMachineSpec::new(image);
    spec.wanted.command = arguments.collect();
    let machine = ImageMachine::start(&host, &store, &firecracker, &spec, StartOptions::default()).await?;

    // The console ends when the guest does. Guest init's last line is for us.
    let mut console = machine.machine().console().reader();
    let mut filter = ReportFilter::default();
    while let Some(chunk) = console.next().await {
        std::io::stdout().write_all(&filter.push(&chunk.bytes))?;
    }
    std::io::stdout().write_all(&filter.finish())?;
    let end = machine.wait().await;
    Ok(match end.report {
        Some(Report::Exit(ended)) => ended.shell_status().into(),
        Some(Report::Failed { step, what, .. }) => {
            return Err(format!("the guest failed at {step}: {what}").into());
        }
        None => return Err(format!("the guest did not say how it ended: {}", end.released.vmm.exit).into()),
    })
}
