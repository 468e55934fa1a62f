//! smartvm as a library: own Firecracker microVMs in your process.
//!
//! * [`directories`]: where things lie on this host
//! * [`host`]: this host, opened: its machines and their clean-up
//! * [`firecracker`]: which Firecracker runs them
//! * [`images`]: what they boot from: store, kernels, images, Firecracker releases
//! * [`config`]: a user's Firecracker config
//! * [`check`]: everything that is wrong with it
//! * [`machine`]: one machine, from start to release
//! * [`image_machine`]: one that boots an image
//! * [`record`]: what is on disk about a machine
//! * [`gc`]: releasing what dead owners left behind
//! * [`setup`]: what a fresh host lacks, and getting it
//! * [`doctor`]: what this host can run, by trial
//! * [`terminal`], [`background`]: for commands that put a guest's console on a terminal, or live on after it
//!
//! ```text
//! Config::load ─> check_config ─> Machine::start ─> running ─> stop, kill, or the guest's own end ─> released
//!                                   │ directory, lock, record, config.json, VMM       (drop and panic too)
//!                                   └ any failure releases what was made, newest first
//! ```

pub mod background;
pub mod check;
pub mod config;
pub mod directories;
pub mod doctor;
pub mod firecracker;
pub mod gc;
pub mod host;
pub mod image_machine;
pub mod machine;
mod machine_data;
mod machine_dir;
mod open_files;
pub mod record;
pub mod setup;
pub mod terminal;

pub use check::{Checked, check_config};
pub use config::Config;
pub use directories::Directories;
pub use firecracker::find_firecracker;
pub use gc::{GcMode, GcReport};
pub use host::Host;
pub use image_machine::{ImageMachine, ImageMachineError, ImageMachineSpec, Planned};
pub use machine::{Machine, Released, StartError, StartOptions};
pub use open_files::raise_open_files;
pub use smartvm_core::explain;
pub use smartvm_core::id::MachineId;
pub use smartvm_core::machine::State;
pub use smartvm_core::spec::MachineSpec;
pub use smartvm_firecracker::Version;
pub use smartvm_host::prompt_thread;
pub use smartvm_host::{
    ConsoleInput, Ended, FirecrackerBinary, Ladder, LogLevel, LogOptions, Output, OutputReader, Readiness,
    Rung, Seccomp, StopError, Timeline,
};
pub use smartvm_images as images;
