//! The order of the steps.

use std::fs;
use std::io::Read;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::{RebootCommand, reboot};
use smartvm_guest_api::boot::{MAX_ORDERS, Orders, Report, Step, layout};

use crate::failure::{Failure, Result, While};
use crate::process::Program;
use crate::root::{Root, Writes};
use crate::supervise::Signals;
use crate::{accounts, modules, mounts, network, power, process};

/// Never returns: the guest ends with its init.
pub(crate) fn run() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("a bug");
        let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        power::off(&Failure::new(Step::Panic, format!("{text}{place}")).report());
    }));
    let mut root = None;
    let report = boot(&mut root).unwrap_or_else(Failure::report);
    if let Some(root) = &root {
        power::settle(root);
    }
    power::off(&report)
}

/// From the kernel's hand-over to the end of the image's process. `settled` gets the root as soon as there is one.
fn boot(settled: &mut Option<Root>) -> Result<Report> {
    mounts::first()?;
    // Without this, Ctrl+Alt+Del restarts at once instead of telling us.
    reboot(RebootCommand::CadOff).during(Step::Prepare, "cannot take over Ctrl+Alt+Del")?;
    let signals = Signals::hear().during(Step::Prepare, "cannot hear signals")?;
    let orders = orders()?;
    modules::load(layout::MODULES)?;
    let later = modules::Later::begin(layout::LATER_MODULES);
    let image = crate::root::mount_root(&orders)?;
    later.finish()?;
    let root = settled.insert(image.switch()?);

    let writable = root.writes != Writes::Nowhere;
    mounts::second(writable)?;
    network::set_up(orders.hostname.as_deref(), writable)?;
    allow_many_files();
    let identity = accounts::identity(orders.process.user.as_ref())?;
    let program = Program::find(&orders.process, identity)?;
    let child = process::start(&program)?;
    Ok(Report::Exit(signals.until_the_end_of(child)))
}

fn orders() -> Result<Orders> {
    let mut line = read("/proc/cmdline", false)?;
    line.push(b' ');
    line.extend(read(layout::ORDERS, true)?);
    Orders::parse(&line).map_err(|error| {
        Failure::new(Step::Orders, error.to_string())
            .hint("the kernel command line comes from smartvm; boot arguments of your own must leave smartvm.* alone")
    })
}

/// At most a little more than orders can be long, which is then found too long.
fn read(path: &str, optional: bool) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => {
            let limit = 2 * MAX_ORDERS as u64 + 1;
            file.take(limit)
                .read_to_end(&mut bytes)
                .during(Step::Orders, format_args!("cannot read {path}"))?;
        }
        Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::because(Step::Orders, format_args!("cannot read {path}"), error)),
    }
    Ok(bytes)
}

/// The kernel lets its first process raise its limit to 4096 open files, too few for servers. The limit that holds
/// stays low, as programs that walk through all possible descriptors expect.
fn allow_many_files() {
    const MOST: u64 = 524_288;
    let now = getrlimit(Resource::Nofile);
    // Not being able to is the kernel's choice.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.current, maximum: Some(MOST) });
}
