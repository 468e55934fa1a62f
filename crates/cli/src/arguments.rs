//! What can be asked on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::{Deserialize, Serialize};
use smartvm::MachineId;

use crate::exit;
use crate::firecracker::FirecrackerArguments;
use crate::image::ImageArguments;
use crate::kernel::KernelArguments;
use crate::run::RunImageArguments;
use crate::setup::SetupArguments;
use crate::store::StoreArguments;

/// Runs Firecracker microVMs.
#[derive(Debug, Parser)]
#[command(name = "smartvm", version, after_help = exit::TABLE, max_term_width = 110)]
pub(crate) struct Arguments {
    /// Say more on standard error (-vv: even more).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print data, and errors, as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<RunArguments>),
    Check(CheckArguments),
    /// Find out what this host can run, by booting a tiny guest; each failed check comes with its fix.
    #[command(after_help = "Examples:\n  smartvm doctor\n  smartvm doctor --json | jq .linux_guests")]
    Doctor(FirecrackerArgument),
    /// List the machines of this host.
    #[command(after_help = "Examples:\n  smartvm ps\n  smartvm ps --json")]
    Ps,
    Stop(StopArguments),
    Gc(GcArguments),
    Setup(SetupArguments),
    Store(StoreArguments),
    Firecracker(FirecrackerArguments),
    Kernel(KernelArguments),
    Image(ImageArguments),
    /// Tell the versions of smartvm, and of the Firecracker and jailer that it would use.
    #[command(after_help = "Examples:\n  smartvm version\n  smartvm version --json")]
    Version(FirecrackerArgument),
    /// Print a completion script.
    #[command(after_help = "Example:\n  smartvm completions bash > /etc/bash_completion.d/smartvm")]
    Completions {
        /// For this shell.
        shell: Shell,
    },
    /// The owner of a machine that `run` put on a terminal.
    #[command(hide = true)]
    Owner {
        /// The machine, for those who read the process list.
        id: Option<String>,
    },
}

/// Boot a machine from an image, or from an ordinary Firecracker config file, with its console on this terminal.
///
/// From an image: the kernel is one of smartvm's (`smartvm kernel`), the image is shared and never written to, and
/// the exit status is the command's own: 128 and more when a signal ended it.
///
/// From a config file: relative paths in the file start from its own folder (from the current one when it is /dev/stdin). The guest's serial console is connected to standard input and
/// output: byte for byte, through pipes too. smartvm's own words go to standard error.
///
/// On a terminal, Ctrl-C stops the machine (Ctrl+Alt+Del for the guest, then SIGTERM and SIGKILL for Firecracker), and a
/// second one kills it. Ctrl-] begins an escape sequence: q stops, k kills, d detaches (the machine runs on in the
/// background), ? helps, and Ctrl-] again types Ctrl-].
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) image: RunImageArguments,
    /// The machine as a JSON file, as for `firecracker --config-file`.
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// The machine's name: 1 to 64 of a-z, 0-9 and hyphens. Drawn at random when absent.
    #[arg(long)]
    pub(crate) id: Option<MachineId>,
    #[command(flatten)]
    pub(crate) firecracker: FirecrackerArgument,
    /// Put the machine into the background as soon as it runs.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Tell at the end when the start reached what. Nobody is there to be told with `--detach`.
    #[arg(long, conflicts_with = "detach")]
    pub(crate) timeline: bool,
    /// Tell in the timeline when this text first appeared on the console (repeatable).
    #[arg(long, value_name = "TEXT", requires = "timeline")]
    pub(crate) mark: Vec<String>,
    /// Seconds that the guest gets to shut down after Ctrl+Alt+Del, before its VMM is ended; 0 skips this.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    pub(crate) stop_timeout: f64,
    /// The key that begins an escape sequence on a terminal: `ctrl-a` to `ctrl-z`, `ctrl-]`, `ctrl-^`, `ctrl-_`, or `none`.
    #[arg(long, value_name = "KEY", default_value = "ctrl-]")]
    pub(crate) escape: EscapeKey,
    /// On a terminal, type Ctrl-C into the guest instead of stopping it.
    #[arg(long)]
    pub(crate) pass_ctrl_c: bool,
    /// How much Firecracker logs (shown when it fails, and with -v).
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevelArgument>,
    /// Write Firecracker's log to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// Add the device with which a guest reports how long its boot took.
    #[arg(long)]
    pub(crate) boot_timer: bool,
    /// First contents of the metadata service, a JSON file.
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata: Option<PathBuf>,
    /// Devices on a PCI bus instead of MMIO (Firecracker 1.13 or later).
    #[arg(long)]
    pub(crate) enable_pci: bool,
    /// A compiled seccomp filter in place of Firecracker's own.
    #[arg(long, value_name = "FILE", conflicts_with = "dangerously_disable_seccomp")]
    pub(crate) seccomp_filter: Option<PathBuf>,
    /// Run Firecracker without any seccomp filter. A guest that breaks out meets the whole kernel: never in production.
    #[arg(long)]
    pub(crate) dangerously_disable_seccomp: bool,
}

const RUN_EXAMPLES: &str = "\
Examples:
  smartvm run debian:12
  smartvm run --memory 2G --cpus 2 -e MODE=test debian:12 sh -c 'echo $MODE'
  smartvm run --dry-run debian:12
  smartvm run --config-file vm.json
  smartvm run --config-file vm.json --id web-1 --timeline --mark 'login:'
  echo 'uname -a' | smartvm run --config-file vm.json > console.txt
  smartvm run --config-file vm.json --id web-1 --detach && smartvm stop web-1";

/// Tell everything that is wrong with a Firecracker config file, without starting anything.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smartvm check --config-file vm.json\n  smartvm check --config-file vm.json --json"
)]
pub(crate) struct CheckArguments {
    /// The machine as a JSON file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: PathBuf,
    #[command(flatten)]
    pub(crate) firecracker: FirecrackerArgument,
    /// As it will be given to `run`.
    #[arg(long)]
    pub(crate) enable_pci: bool,
}

// No doc comment: clap would take it for the text of every command that flattens this.
#[derive(Debug, Args)]
pub(crate) struct FirecrackerArgument {
    /// The Firecracker binary; else SMARTVM_FIRECRACKER, else the default of `smartvm firecracker`, else `firecracker` on PATH.
    #[arg(long, value_name = "PATH")]
    pub(crate) firecracker: Option<PathBuf>,
}

/// Stop a machine: its owner ends it as on Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smartvm stop web-1\n  smartvm stop web-1 --kill")]
pub(crate) struct StopArguments {
    /// The machine.
    pub(crate) id: MachineId,
    /// Kill it at once.
    #[arg(long)]
    pub(crate) kill: bool,
    /// Seconds to wait for its end.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    pub(crate) timeout: f64,
}

/// Release what machines with a dead owner left behind.
///
/// The kernel ends a VMM with its owner, so most often only a directory is left. Every start does this too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smartvm gc --dry-run\n  smartvm gc")]
pub(crate) struct GcArguments {
    /// Only say what would be released.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds, 0 to 86400".into()),
    }
}

/// How much Firecracker logs.
#[derive(Debug, Clone, Copy, ValueEnum, Serialize, Deserialize)]
pub(crate) enum LogLevelArgument {
    Off,
    Error,
    Warning,
    Info,
    Debug,
    Trace,
}

impl From<LogLevelArgument> for smartvm::LogLevel {
    fn from(level: LogLevelArgument) -> Self {
        match level {
            LogLevelArgument::Off => Self::Off,
            LogLevelArgument::Error => Self::Error,
            LogLevelArgument::Warning => Self::Warning,
            LogLevelArgument::Info => Self::Info,
            LogLevelArgument::Debug => Self::Debug,
            LogLevelArgument::Trace => Self::Trace,
        }
    }
}

/// The key that begins an escape sequence, as the byte that a terminal sends for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EscapeKey(pub(crate) Option<u8>);

impl FromStr for EscapeKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self(None));
        }
        let lower = text.to_ascii_lowercase();
        let key = lower.strip_prefix("ctrl-").or_else(|| lower.strip_prefix('^'));
        match key.map(str::as_bytes) {
            Some([b'c']) => Err("Ctrl-C stops the machine, so it cannot begin an escape sequence".into()),
            Some(&[letter @ (b'a'..=b'z' | b']' | b'^' | b'_' | b'\\')]) => Ok(Self(Some(letter & 0x1f))),
            _ => Err("give ctrl- and a letter (or ], ^, _, \\), or none".into()),
        }
    }
}

impl EscapeKey {
    /// As a user names it.
    pub(crate) fn name(self) -> String {
        match self.0 {
            Some(byte) => format!("Ctrl-{}", char::from(byte | 0x40)),
            None => "none".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_fits_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_has_an_example_and_describes_each_argument() {
        fn look(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(after.contains("Example") && after.contains(&path), "{path}: {after}");
                for argument in sub.get_arguments().filter(|argument| !argument.is_hide_set()) {
                    assert!(argument.get_help().is_some(), "{path} {}", argument.get_id());
                }
                look(sub, &path);
            }
        }
        look(&Arguments::command(), "smartvm");
    }

    #[test]
    fn each_command_says_something_of_its_own() {
        let command = Arguments::command();
        let mut said: Vec<_> =
            command.get_subcommands().map(|sub| sub.get_about().unwrap().to_string()).collect();
        let all = said.len();
        said.sort();
        said.dedup();
        assert_eq!(said.len(), all, "{said:#?}");
    }

    #[test]
    fn escape_keys_are_read_in_every_usual_spelling() {
        for (text, byte) in [("ctrl-]", 0x1d), ("Ctrl-A", 1), ("^z", 26), ("ctrl-^", 0x1e), ("ctrl-_", 0x1f)]
        {
            assert_eq!(text.parse(), Ok(EscapeKey(Some(byte))), "{text}");
        }
        assert_eq!("none".parse(), Ok(EscapeKey(None)));
        assert_eq!(EscapeKey(Some(0x1d)).name(), "Ctrl-]");
        for bad in ["", "]", "ctrl-", "ctrl-c", "ctrl-ab", "ctrl-1"] {
            assert!(bad.parse::<EscapeKey>().is_err(), "{bad}");
        }
    }
}
