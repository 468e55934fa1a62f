//! `cargo xtask demo`: the main job of smartvm on real input, from an empty cache to a clean machine.
//!
//! Debian's stock kernel boots under the real Firecracker through `smartvm run`, on this machine's KVM when
//! that runs Linux, else in the lab. The demo fails when the guest's init is not reached, when the stop did
//! not work, or when anything is left behind.

mod console;
mod machine;

use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use smartvm_lab::cache::Cache;
use smartvm_lab::guest;

use crate::failure::{Failure, Result};
use crate::kvm::{self, Kvm};
use crate::setup::{self, Need};
use crate::{lab, workspace};
use console::Console;
use machine::Machine;

/// The demo's machine in smartvm.
const ID: &str = "demo";

/// How long the guest may take to its init: some eight seconds under emulation, more on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Shows it; the exit code is 1 when it did not go as described.
pub(crate) fn run() -> Result<ExitCode> {
    let started = Instant::now();
    println!(
        "demo: boots Debian's stock Linux kernel in a real Firecracker microVM, started by `smartvm run`,\n\
         demo: shows its console until our init is reached, stops it, and looks for leftovers.\n\
         demo: The first time takes a few minutes (packages, building); later about ten seconds."
    );
    let binaries = setup::run(Need::Lab)?;
    let kvm = kvm::try_guests(&binaries)?;
    println!("demo: building smartvm, linked statically");
    let smartvm = workspace::build_static("smartvm-cli", "smartvm", false)?;
    let machine = match kvm {
        Kvm::Full => {
            println!("demo: this machine's KVM runs Linux: the guest runs right here");
            let assets = guest::assets(&Cache::open()).map_err(lab::failure)?;
            Machine::here(binaries, smartvm, assets)
        }
        Kvm::BareMetal(why) | Kvm::Unusable(why) => {
            println!("demo: this machine's KVM does not run Linux ({why})");
            println!("demo: so the guest runs in the lab: a Debian with an emulated KVM, in QEMU");
            let xtask = workspace::build_static("xtask", "xtask", false)?;
            let lab = lab::up(false)?;
            println!("demo: the lab is up after {:.1} s", started.elapsed().as_secs_f64());
            Machine::lab(lab, &smartvm, &xtask)?
        }
    };
    let config = machine.keep_config(&config(machine.assets()))?;
    let mut reached = boot_and_stop(&machine, &config)?;
    if !reached && machine.is_emulated() {
        println!("demo: the emulated processor is known to lose a guest now and then: once more");
        reached = boot_and_stop(&machine, &config)?;
    }
    machine.forget_config(&config)?;
    let clean = machine.leaks()?;
    if machine.is_emulated() {
        println!(
            "demo: the lab stays up for ten minutes, for the next command; `cargo xtask lab --down` ends it now"
        );
    }
    println!("demo: took {:.0} s in all", started.elapsed().as_secs_f64());
    Ok(if reached && clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The guest's own config, but with the kernel's first and more important words on the console. With all of
/// them, some three hundred lines, about one in ten guests is lost under emulation.
fn config(assets: &guest::Assets) -> String {
    let boot_args = assets.boot_args.replace(" quiet ", " loglevel=6 ");
    guest::Assets { boot_args, ..assets.clone() }.config("idle").to_string()
}

/// Runs the guest until its init was reached, then stops it by its name. Answers whether all went well.
fn boot_and_stop(machine: &Machine, config: &str) -> Result<bool> {
    let run = ["run", "--config-file", config, "--id", ID, "--timeline", "--mark", guest::REACHED];
    println!("demo: {} smartvm {}", machine.prompt(), run.map(quoted).join(" "));
    let (reached, stop) = mpsc::channel();
    let mut console = Console::new(guest::REACHED, reached);
    let (ended, stopped) = thread::scope(|scope| {
        let stopper = scope.spawn(move || {
            // The sender also goes when the guest ended before: then there is nothing to stop.
            let reached = stop.recv_timeout(PATIENCE);
            if matches!(reached, Err(mpsc::RecvTimeoutError::Disconnected)) {
                return Ok(None);
            }
            println!("demo: {} smartvm stop {ID}", machine.prompt());
            let status =
                machine.smartvm(&["stop", ID], &mut |text| print!("{}", String::from_utf8_lossy(text)));
            status.map(|status| Some((reached.is_ok(), status)))
        });
        let ended = machine.smartvm(&run, &mut |text| console.show(text));
        console.close();
        let stopped =
            stopper.join().unwrap_or_else(|_| Err(Failure::new("the thread that stops the guest died")));
        (ended, stopped)
    });
    let (ended, stopped) = (ended?, stopped?);
    match stopped {
        None => println!("demo: FAILED: the guest ended (exit code {ended}) before its init was reached"),
        Some((false, _)) => println!("demo: FAILED: init was not reached within {} s", PATIENCE.as_secs()),
        Some((true, 0)) => println!("demo: stopped; `smartvm run` ended with exit code {ended}"),
        Some((true, status)) => println!("demo: FAILED: `smartvm stop` ended with exit code {status}"),
    }
    Ok(stopped == Some((true, 0)))
}

/// A word as a shell needs it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}
