//! Kernel modules.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::thread::JoinHandle;

use rustix::io::Errno;
use rustix::system::finit_module;
use smartvm_guest_api::boot::Step;

use crate::failure::{Failure, Result, While};

/// Loads the modules that a list names, in its order.
pub(crate) fn load(list: &str) -> Result<()> {
    let text = match fs::read_to_string(list) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::because(Step::Modules, format_args!("cannot read {list}"), error)),
    };
    text.lines().map(str::trim).filter(|path| !path.is_empty()).try_for_each(load_one)
}

fn load_one(path: &str) -> Result<()> {
    let file = File::open(path).during(Step::Modules, format_args!("cannot open {path}"))?;
    match finit_module(&file, c"", 0) {
        // It is there already, or built in.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        // A driver that finds nothing to drive: smartvm puts more into an initramfs than a machine may have.
        Err(Errno::NODEV | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => {
            let failure = Failure::because(Step::Modules, format_args!("cannot load {path}"), error);
            Err(match error {
                Errno::NOEXEC | Errno::NOENT | Errno::INVAL => {
                    failure.hint("it is not of this kernel, or comes before a module that it needs")
                }
                _ => failure,
            })
        }
    }
}

/// Modules that are loaded while something else goes on.
pub(crate) enum Later {
    Begun(JoinHandle<Result<()>>),
    /// There was no thread to be had, or nothing to load.
    AtTheEnd(&'static str),
}

impl Later {
    /// Begins to load the modules of a list.
    pub(crate) fn begin(list: &'static str) -> Self {
        if !fs::exists(list).unwrap_or(true) {
            return Self::AtTheEnd(list);
        }
        let loader = std::thread::Builder::new().stack_size(64 << 10).spawn(move || load(list));
        loader.map_or(Self::AtTheEnd(list), Self::Begun)
    }

    /// Waits for the last one.
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Self::AtTheEnd(list) => load(list),
            Self::Begun(loader) => loader
                .join()
                .unwrap_or_else(|_| Err(Failure::new(Step::Modules, "the loading thread panicked"))),
        }
    }
}
