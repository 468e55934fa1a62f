//! What this machine's KVM can run, found out by trying.
//!
//! A KVM device that opens says little: some hosts offer one on which tiny guests run and every Linux
//! kernel dies. So the trial boots a guest, and what it answers decides where tests run.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::json;
use smartvm_core::bare_metal::Guest;

use crate::setup::Binaries;

/// How far guests get on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// Not even the tiny guest runs; why.
    Unusable(String),
    /// The tiny guest runs, Linux does not.
    BareMetal,
    /// Linux runs.
    #[cfg_attr(not(test), expect(dead_code, reason = "found out once the lab brings a Linux guest to try"))]
    Full,
}

/// How long the tiny guest may take: it needs some 10 ms, a busy machine more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the tiny guest writes to its serial port.
const GREETING: &str = "smartvm-trial: a guest runs";

/// Boots the tiny guest with the real Firecracker.
pub(crate) fn try_bare_metal(binaries: &Binaries) -> Kvm {
    match boot(binaries) {
        Ok(()) => Kvm::BareMetal,
        Err(why) => Kvm::Unusable(why),
    }
}

fn boot(binaries: &Binaries) -> Result<(), String> {
    let device = Path::new("/dev/kvm");
    if !device.exists() {
        return Err("there is no KVM device".to_owned());
    }
    fs::File::options()
        .read(true)
        .write(true)
        .open(device)
        .map_err(|error| format!("the KVM device cannot be opened: {error}"))?;
    let scratch = tempfile::Builder::new().prefix("smartvm-trial-").tempdir();
    let scratch = scratch.map_err(|error| format!("no temporary folder: {error}"))?;
    let (kernel, config) = (scratch.path().join("guest"), scratch.path().join("vm.json"));
    let spec = json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": ""},
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
    });
    fs::write(&kernel, Guest::Message(&format!("{GREETING}\n")).elf())
        .and_then(|()| fs::write(&config, spec.to_string()))
        .map_err(|error| format!("the trial guest cannot be written: {error}"))?;
    // Its log must not share stdout with the guest: they would be mixed within a line.
    let log = scratch.path().join("log");
    fs::write(&log, "").map_err(|error| format!("the trial's log cannot be written: {error}"))?;
    let mut firecracker = Command::new(&binaries.firecracker);
    firecracker.args(["--no-api", "--config-file"]).arg(&config).arg("--log-path").arg(&log);
    let said = output_within(&mut firecracker, PATIENCE)?;
    if said.contains(GREETING) {
        return Ok(());
    }
    let log = fs::read_to_string(&log).unwrap_or_default();
    let last = [said.as_str(), log.as_str()].iter().filter_map(|text| text.trim().lines().last()).next_back();
    Err(format!("the trial guest did not answer: {}", last.unwrap_or("Firecracker said nothing")))
}

fn output_within(command: &mut Command, patience: Duration) -> Result<String, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("Firecracker cannot be started: {error}"))?;
    let (answer, answered) = mpsc::channel();
    if let Some(mut stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut said = Vec::new();
            let read = stdout.read_to_end(&mut said);
            let _ = answer.send(read.map(|_| String::from_utf8_lossy(&said).into_owned()));
        });
    }
    let said = answered.recv_timeout(patience);
    // It has ended, or its time is over; then killing it also ends the reading thread.
    let _ = child.kill();
    child.wait().map_err(|error| format!("Firecracker cannot be waited for: {error}"))?;
    match said {
        Ok(Ok(said)) => Ok(said),
        Ok(Err(error)) => Err(format!("the guest's console cannot be read: {error}")),
        Err(_) => Err(format!("the trial guest neither answered nor ended within {} s", patience.as_secs())),
    }
}
