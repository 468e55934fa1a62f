//! What this machine's KVM can run, found out by trying.
//!
//! A KVM device that opens says little: some hosts offer one on which tiny guests run and every Linux
//! kernel dies. So the trial boots a guest, and what it answers decides where tests run.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smartvm_core::bare_metal::Guest;
use smartvm_lab::cache::Cache;
use smartvm_lab::guest;

use crate::failure::Result;
use crate::lab;
use crate::setup::Binaries;

/// How far guests get on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// Not even the tiny guest runs; why.
    Unusable(String),
    /// The tiny guest runs, Linux does not; the last it said.
    BareMetal(String),
    /// Linux runs.
    Full,
}

/// How long the tiny guest may take: it needs some 10 ms, a busy machine more.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long Linux may take: on real hardware it needs well under a second.
const PATIENCE_FOR_LINUX: Duration = Duration::from_secs(5);

/// What the tiny guest writes to its serial port.
const GREETING: &str = "smartvm-trial: a guest runs";

/// Boots the tiny guest with the real Firecracker, and where it runs, Linux.
///
/// # Errors
/// When the Linux guest cannot be had. That a guest does not run is an answer.
pub(crate) fn try_guests(binaries: &Binaries) -> Result<Kvm> {
    if let Err(why) = try_tiny_guest(binaries) {
        return Ok(Kvm::Unusable(why));
    }
    let verdict = verdict_of_this_boot();
    if let Some(why) = verdict.as_ref().and_then(|path| fs::read_to_string(path).ok()) {
        return Ok(Kvm::BareMetal(why));
    }
    let assets = guest::assets(&Cache::open()).map_err(lab::failure)?;
    let config = assets.config("poweroff");
    let Err(why) = try_guest(binaries, &config, guest::REACHED, PATIENCE_FOR_LINUX) else {
        return Ok(Kvm::Full);
    };
    if let Some(path) = verdict {
        // Without it, the next trial only takes its time again.
        let _ = fs::write(path, &why);
    }
    Ok(Kvm::BareMetal(why))
}

/// Where it is noted that Linux does not run here, since finding out takes the whole patience. Another boot
/// may be another kernel.
fn verdict_of_this_boot() -> Option<PathBuf> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(smartvm_lab::dev_cache().join(format!("no-linux-guests-{}", boot.trim())))
}

fn try_tiny_guest(binaries: &Binaries) -> std::result::Result<(), String> {
    let device = Path::new("/dev/kvm");
    if !device.exists() {
        return Err("there is no KVM device".to_owned());
    }
    let opened = fs::File::options().read(true).write(true).open(device);
    opened.map_err(|error| format!("the KVM device cannot be opened: {error}"))?;
    let kernel = tempfile::Builder::new().prefix("smartvm-trial-").tempfile().and_then(|mut file| {
        file.write_all(&Guest::Message(&format!("{GREETING}\n")).elf())?;
        Ok(file.into_temp_path())
    });
    let kernel = kernel.map_err(|error| format!("the trial guest cannot be written: {error}"))?;
    let config = json!({
        "boot-source": {"kernel_image_path": &*kernel, "boot_args": ""},
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
    });
    try_guest(binaries, &config, GREETING, PATIENCE)
}

/// Boots a guest until its console shows the text.
fn try_guest(
    binaries: &Binaries,
    config: &Value,
    shows: &str,
    patience: Duration,
) -> std::result::Result<(), String> {
    let scratch = tempfile::Builder::new().prefix("smartvm-trial-").tempdir();
    let scratch = scratch.map_err(|error| format!("no temporary folder: {error}"))?;
    // Firecracker's log must not share stdout with the guest: they would be mixed within a line.
    let (file, log) = (scratch.path().join("vm.json"), scratch.path().join("log"));
    fs::write(&file, config.to_string())
        .and_then(|()| fs::write(&log, ""))
        .map_err(|error| format!("the trial's files cannot be written: {error}"))?;
    let mut firecracker = Command::new(&binaries.firecracker);
    firecracker.args(["--no-api", "--config-file"]).arg(&file).arg("--log-path").arg(&log);
    let said = output_until(&mut firecracker, shows, patience)?;
    if said.contains(shows) {
        return Ok(());
    }
    let log = fs::read_to_string(&log).unwrap_or_default();
    let error = log.lines().find(|line| line.to_ascii_lowercase().contains("error"));
    let last = said.trim().lines().last().or(error).map(|line| format!("last words: {line}"));
    Err(last.unwrap_or_else(|| format!("no word from the guest within {} s", patience.as_secs())))
}

/// What the program wrote until the text was in it, it ended or its time was over; then it is killed.
fn output_until(
    command: &mut Command,
    text: &str,
    patience: Duration,
) -> std::result::Result<String, String> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("Firecracker cannot be started: {error}"))?;
    let (pieces, arrived) = mpsc::channel();
    if let Some(mut stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // Nobody listens any more once the text was seen.
            while let Ok(length @ 1..) = stdout.read(&mut piece) {
                if pieces.send(piece[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    let deadline = Instant::now() + patience;
    let mut said = Vec::new();
    while let Ok(piece) = arrived.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        said.extend(piece);
        if String::from_utf8_lossy(&said).contains(text) {
            break;
        }
    }
    // It may have ended by itself. Its end also ends the reading thread.
    let _ = child.kill();
    child.wait().map_err(|error| format!("Firecracker cannot be waited for: {error}"))?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output_of(script: &str, patience: Duration) -> String {
        let mut shell = Command::new("sh");
        output_until(shell.args(["-c", script]), "text", patience).expect("it starts")
    }

    #[test]
    fn waiting_ends_with_the_text_with_the_end_or_with_the_time() {
        let long = Duration::from_secs(60);
        let started = Instant::now();
        assert_eq!(output_of("echo the text; exec sleep 60", long), "the text\n");
        assert_eq!(output_of("echo other", long), "other\n");
        assert_eq!(output_of("exec sleep 60", Duration::from_millis(50)), "");
        assert!(started.elapsed() < long);
    }
}
