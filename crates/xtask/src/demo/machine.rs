//! Where the demo's guest runs: this machine or the lab.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use smartvm_lab::emulated::{self, Input, Lab, Stream};
use smartvm_lab::guest::Assets;

use crate::command;
use crate::failure::{Failure, Result};
use crate::lab::failure;
use crate::leaks;
use crate::setup::Binaries;

/// This program, in the lab.
const XTASK: &str = "/opt/smartvm/bin/xtask";

/// The config file of the guest, in the lab.
const CONFIG: &str = "/root/demo.json";

/// A machine with smartvm, Firecracker and the guest's files.
pub(super) enum Machine {
    Here { binaries: Binaries, smartvm: PathBuf, assets: Assets },
    Lab { lab: Box<Lab>, assets: Assets },
}

impl Machine {
    pub(super) fn here(binaries: Binaries, smartvm: PathBuf, assets: Assets) -> Self {
        Self::Here { binaries, smartvm, assets }
    }

    pub(super) fn lab(lab: Lab, smartvm: &Path, xtask: &Path) -> Result<Self> {
        let smartvm = (smartvm.to_owned(), format!("{}/smartvm", emulated::BIN));
        lab.push_changed(&[smartvm, (xtask.to_owned(), XTASK.to_owned())]).map_err(failure)?;
        let assets = Assets::within(Path::new(emulated::GUEST));
        Ok(Self::Lab { lab: Box::new(lab), assets })
    }

    pub(super) fn assets(&self) -> &Assets {
        match self {
            Self::Here { assets, .. } | Self::Lab { assets, .. } => assets,
        }
    }

    /// Whether its processor is an emulated one.
    pub(super) fn is_emulated(&self) -> bool {
        matches!(self, Self::Lab { .. })
    }

    /// How a command of this machine is introduced.
    pub(super) fn prompt(&self) -> &'static str {
        match self {
            Self::Here { .. } => "here #",
            Self::Lab { .. } => "lab #",
        }
    }

    /// Keeps the guest's config as a file of the machine and answers its path.
    pub(super) fn keep_config(&self, config: &str) -> Result<String> {
        let mut file = tempfile::Builder::new();
        let file = file.prefix("smartvm-demo-").suffix(".json").tempfile();
        let kept = file.and_then(|mut file| {
            std::io::Write::write_all(&mut file, config.as_bytes())?;
            Ok(file)
        });
        let file = kept.map_err(|error| Failure::new("cannot write the guest's config").cause(error))?;
        match self {
            Self::Here { .. } => {
                let kept = file.keep();
                let (_, path) = kept.map_err(|error| Failure::new("cannot keep the config").cause(error))?;
                Ok(path.display().to_string())
            }
            Self::Lab { lab, .. } => {
                lab.push(file.path(), CONFIG).map_err(failure)?;
                Ok(CONFIG.to_owned())
            }
        }
    }

    pub(super) fn forget_config(&self, path: &str) -> Result<()> {
        match self {
            Self::Here { .. } => std::fs::remove_file(path)
                .map_err(|error| Failure::new(format!("cannot remove {path}")).cause(error)),
            Self::Lab { lab, .. } => {
                lab.run(&emulated::Command::new("rm").args([path])).map(drop).map_err(failure)
            }
        }
    }

    /// Runs smartvm and answers its exit code; `console` gets its stdout. Its stderr is shown.
    pub(super) fn smartvm(&self, arguments: &[&str], console: &mut dyn FnMut(&[u8])) -> Result<u8> {
        match self {
            Self::Here { binaries, smartvm, .. } => {
                let mut command = Command::new(smartvm);
                command.args(arguments).env("SMARTVM_FIRECRACKER", &binaries.firecracker);
                run_here(&mut command, console)
            }
            Self::Lab { lab, .. } => {
                let command = emulated::environment().into_iter().fold(
                    emulated::Command::new("smartvm").args(arguments.iter().copied()),
                    |command, (name, value)| command.env(name, value),
                );
                run_in(lab, &command, console)
            }
        }
    }

    /// Looks for leftovers where the guest ran, and says so. Whether there are none.
    pub(super) fn leaks(&self) -> Result<bool> {
        match self {
            Self::Here { .. } => Ok(leaks::run(&leaks::Arguments::default())? == ExitCode::SUCCESS),
            Self::Lab { lab, .. } => {
                let command = emulated::environment()
                    .into_iter()
                    .fold(emulated::Command::new(XTASK).args(["leaks"]), |command, (name, value)| {
                        command.env(name, value)
                    });
                let status = run_in(lab, &command, &mut |text| print!("{}", String::from_utf8_lossy(text)))?;
                Ok(status == 0)
            }
        }
    }
}

fn run_here(command: &mut Command, console: &mut dyn FnMut(&[u8])) -> Result<u8> {
    let told = |error| Failure::new("cannot run smartvm").cause(error);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(told)?;
    if let Some(mut stdout) = child.stdout.take() {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut piece) {
            console(&piece[..length]);
        }
    }
    let status = child.wait().map_err(told)?;
    if command::interrupted() {
        return Err(Failure::interrupted());
    }
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

fn run_in(lab: &Lab, command: &emulated::Command, console: &mut dyn FnMut(&[u8])) -> Result<u8> {
    let outcome = lab.run_with(command, Input::None, &mut |stream, bytes| match stream {
        Stream::Stdout => console(bytes),
        Stream::Stderr => eprint!("{}", String::from_utf8_lossy(bytes)),
    });
    let outcome = outcome.map_err(failure)?;
    Ok(outcome.shell_status())
}
