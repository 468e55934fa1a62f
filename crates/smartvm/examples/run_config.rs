//! Boots a Firecracker config file from your own program, prints what the guest's console says, and stops it.
//!
//!     cargo run -p smartvm --example run_config -- vm.json

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use smartvm::{Config, Directories, Host, Ladder, Machine, StartOptions, check_config, find_firecracker};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: run_config CONFIG_FILE")?;
    let firecracker = find_firecracker(None, &Directories::find()).await?;
    let config = Config::load(Path::new(&path))?;
    let checked = check_config(&config, &firecracker.version, false)?;
    // Releases what owners left behind that were killed.
    let host = Host::open_clean(&Directories::find()).await?;

    let machine = Machine::start(&host, &firecracker, &checked, StartOptions::default()).await?;
    println!("{} runs: {:?}", machine.id(), machine.timeline());

    // The console ends when the guest does; after five seconds we stop it ourselves.
    let mut console = machine.console().reader();
    let print = async {
        while let Some(chunk) = console.next().await {
            let _ = std::io::stdout().write_all(&chunk.bytes);
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), print).await;
    let released = machine.stop(&Ladder::guest_first(Duration::from_secs(2))).await?;
    println!("ended: {}", released.vmm.exit);
    Ok(())
}
