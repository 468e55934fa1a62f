//! The kernel's command line as a plan: which parameters, and why each of them.
//!
//! [`plan`] chooses for speed where that is sound on Firecracker. What the user says wins: a parameter of the user's
//! replaces ours of the same name. What the host orders guest init to do travels on the same line, or, when it does not
//! fit, in the initramfs.
//!
//! What is deliberately not here, though it is often seen: `nomodule` (distributions have the drivers as modules),
//! `mitigations=off`, `nokaslr`, `lsm=` and `audit=0` (they change how safe the guest is), `tsc=reliable` (it takes the
//! word of hosts that may be wrong), `no_timer_check` (Linux sets it itself under KVM), `rcupdate.rcu_expedited`
//! (Linux expedites while it boots, and it would cost afterwards), `swiotlb` (guests of less than 4 GiB have none).

use std::fmt;

use smartvm_guest_api::boot::{Orders, OrdersError};

use crate::spec::MachineSpec;
use crate::target::{Arch, Target};
use crate::validate::{MAX_CMDLINE, added_to_boot_args};

/// Before every word with orders for guest init.
const ORDERS: &str = "smartvm.";

/// What the command line is to do.
#[derive(Debug, Clone, Copy)]
pub struct Boot<'a> {
    /// The guest's architecture.
    pub arch: Arch,
    /// Whether the guest has a console: Firecracker's only serial port. Guest init reports on it.
    pub console: bool,
    /// Whether Firecracker runs with `--enable-pci`, so that the guest must look for PCI devices.
    pub pci: bool,
    /// What guest init is to do, if the guest boots ours.
    pub orders: Option<&'a Orders>,
    /// The user's own parameters, as on any kernel command line: words, of which those after `--` are for init.
    pub extra: &'a str,
    /// How many bytes Firecracker will append: see [`appended`].
    pub appended: usize,
}

/// How many bytes Firecracker appends to the command line of this machine.
pub fn appended(spec: &MachineSpec, target: &Target) -> usize {
    added_to_boot_args(spec, target)
}

/// Who asked for a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Smartvm.
    Ours,
    /// The host's orders for guest init.
    Orders,
    /// The user.
    User,
}

/// One word of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The word itself.
    pub text: String,
    /// What it is good for, in one sentence without a full stop.
    pub why: &'static str,
    /// Who asked for it.
    pub origin: Origin,
}

/// A kernel command line, word by word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// In their order.
    pub parameters: Vec<Parameter>,
    /// Orders that found no room on the line: they belong into the initramfs, as the file that
    /// [`layout::ORDERS`](smartvm_guest_api::boot::layout::ORDERS) names.
    pub orders_in_initramfs: Option<String>,
}

impl BootPlan {
    /// The line as Firecracker gets it.
    pub fn command_line(&self) -> String {
        let words: Vec<&str> = self.parameters.iter().map(|parameter| parameter.text.as_str()).collect();
        words.join(" ")
    }
}

impl fmt::Display for BootPlan {
    /// One parameter a line, with its reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.parameters.iter().map(|parameter| parameter.text.len().min(40)).max().unwrap_or(0);
        for Parameter { text, why, .. } in &self.parameters {
            writeln!(f, "{text:width$}  {why}")?;
        }
        Ok(())
    }
}

/// A command line that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BootPlanError {
    /// The user's parameters have a NUL byte.
    #[error("the extra kernel parameters have a NUL byte")]
    Nul,
    /// A quote that does not end.
    #[error("a quote in the extra kernel parameters does not end: {0}")]
    OpenQuote(String),
    /// The user's parameters contain one of ours.
    #[error("`{0}` cannot be given: the parameters that begin with `smartvm.` are for guest init")]
    Reserved(String),
    /// Too long, even with the orders in the initramfs.
    #[error(
        "the kernel's command line would have {length} bytes, with {appended} that Firecracker adds; the limit is {MAX_CMDLINE}"
    )]
    TooLong {
        /// Its length with what Firecracker adds.
        length: usize,
        /// What Firecracker adds.
        appended: usize,
    },
    /// The orders themselves cannot be written.
    #[error("guest init cannot be ordered so")]
    Orders(#[from] OrdersError),
}

impl crate::explain::Explain for BootPlanError {
    fn code(&self) -> crate::explain::Code {
        crate::explain::Code::InvalidConfig
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Nul => "Remove it: the line would end there.".into(),
            Self::OpenQuote(_) => "Close it with another \".".into(),
            Self::Reserved(_) => "Use smartvm's own options for it.".into(),
            Self::TooLong { length, .. } => {
                format!("Shorten the extra parameters by {} bytes.", length.saturating_sub(MAX_CMDLINE))
            }
            Self::Orders(error) => return Some(format!("Change it: {error}.")),
        })
    }

    fn happened(&self) -> crate::explain::Happened {
        crate::explain::Happened::NeverStarted
    }
}

/// Plans the command line.
///
/// # Errors
/// When the user's parameters are malformed or reserved, the orders cannot be written, or the line is longer than the
/// kernel takes (2047 bytes with what Firecracker appends), even without the orders.
pub fn plan(boot: &Boot<'_>) -> Result<BootPlan, BootPlanError> {
    let (extra, for_init) = words(boot.extra)?;
    // What is behind `--` is another init's business, but ours reads orders there as well.
    let for_ours = if boot.orders.is_some() { &for_init[..] } else { &[] };
    if let Some(word) =
        extra.iter().chain(for_ours).find(|word| word.trim_start_matches('"').starts_with(ORDERS))
    {
        return Err(BootPlanError::Reserved(word.chars().take(60).collect()));
    }
    let mut parameters: Vec<Parameter> = ours(boot)
        .into_iter()
        .filter(|(ours, _)| !extra.iter().any(|word| replaces(word, ours)))
        .map(|(text, why)| Parameter { text: text.to_owned(), why, origin: Origin::Ours })
        .collect();
    let at = parameters.len();
    let users = |text: String| Parameter { text, why: "asked for by the user", origin: Origin::User };
    parameters.extend(extra.into_iter().map(users));
    if !for_init.is_empty() {
        parameters.push(users("--".into()));
        parameters.extend(for_init.into_iter().map(users));
    }
    let length_of = |plan: &BootPlan| plan.command_line().len() + boot.appended;
    let mut plan = BootPlan { parameters, orders_in_initramfs: None };
    if let Some(orders) = boot.orders {
        let orders = orders.encode()?;
        let words = orders.split(' ').filter(|word| !word.is_empty());
        let words = words.map(|word| Parameter {
            text: word.to_owned(),
            why: "tells guest init what to do",
            origin: Origin::Orders,
        });
        let without = plan.clone();
        plan.parameters.splice(at..at, words);
        if length_of(&plan) > MAX_CMDLINE {
            plan = BootPlan { orders_in_initramfs: Some(orders), ..without };
        }
    }
    match length_of(&plan) {
        length if length > MAX_CMDLINE => Err(BootPlanError::TooLong { length, appended: boot.appended }),
        _ => Ok(plan),
    }
}

/// Our own parameters and their reasons.
///
/// Source of what is said of Firecracker: `docs/getting-started.md` (console, reboot, panic, pci), the command line that
/// 1.12.1 uses when none is given (`reboot=k panic=1 pci=off nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux
/// i8042.dumbkbd`), `docs/kernel-policy.md` (`random.trust_cpu`, the i8042 for Ctrl+Alt+Del).
fn ours(boot: &Boot<'_>) -> Vec<(&'static str, &'static str)> {
    let x86 = boot.arch == Arch::X86_64;
    let mut ours = Vec::new();
    let mut add = |applies: bool, text, why| {
        if applies {
            ours.push((text, why));
        }
    };
    add(boot.console, "console=ttyS0", "the console is Firecracker's serial port, the only one that it has");
    add(
        x86,
        "reboot=k",
        "a reboot resets by the keyboard controller, the one way that Firecracker understands as the guest's end",
    );
    add(true, "panic=-1", "a kernel panic ends the machine at once, instead of leaving it hanging");
    add(
        true,
        "quiet",
        "each byte on the serial console costs an exit to Firecracker; warnings and errors are still printed",
    );
    add(
        x86 && boot.console,
        "8250.nr_uarts=1",
        "there is one serial port: the kernel need not look for more",
    );
    add(x86 && !boot.console, "8250.nr_uarts=0", "without a console no serial port is looked for");
    add(x86, "i8042.noaux", "there is no mouse to look for; the keyboard stays, for Ctrl+Alt+Del");
    add(x86, "i8042.nomux", "the keyboard controller has no multiplexer to look for");
    add(x86, "i8042.dumbkbd", "nothing is asked of the keyboard, which Firecracker does not answer");
    add(
        !boot.pci,
        "pci=off",
        "Firecracker's devices are on virtio-mmio: the kernel need not look for a PCI bus",
    );
    add(
        true,
        "random.trust_cpu=on",
        "the processor's random numbers count, so that nothing waits for entropy",
    );
    add(
        true,
        "cryptomgr.notests",
        "the kernel does not test its own cryptography at each boot; with fips=1 it still does",
    );
    ours
}

/// Whether a word of the user's takes the place of one of ours.
fn replaces(users: &str, ours: &str) -> bool {
    let same = name(users) == name(ours);
    // All of these say how much is printed.
    let verbosity =
        ours == "quiet" && matches!(name(users).as_str(), "loglevel" | "debug" | "ignore_loglevel");
    same || verbosity
}

/// A parameter's name as the kernel compares them: `-` and `_` are the same.
fn name(word: &str) -> String {
    let word = word.trim_start_matches('"');
    word.split('=').next().unwrap_or(word).replace('-', "_")
}

/// The user's words, and those behind `--`. A word may have white space within quotes, as for the kernel.
fn words(text: &str) -> Result<(Vec<String>, Vec<String>), BootPlanError> {
    if text.contains('\0') {
        return Err(BootPlanError::Nul);
    }
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for char in text.chars() {
        quoted ^= char == '"';
        if quoted || !char.is_ascii_whitespace() {
            word.push(char);
        } else if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
    }
    if quoted {
        return Err(BootPlanError::OpenQuote(word.chars().take(60).collect()));
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let for_init = words.split_off(end).into_iter().skip(1).collect();
    Ok((words, for_init))
}

#[cfg(test)]
mod tests;
