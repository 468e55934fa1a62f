//! Effects on Linux: spawn a VMM, watch it, stop it, and know a process for certain.
//!
//! This room holds nearly all `unsafe` of smartvm. It knows nothing of a machine's lifecycle or policy:
//! it does what it is told, releases what it made, and says what happened.
//!
//! * [`binary`]: which Firecracker is this, and of which version
//! * [`kvm`]: the KVM device
//! * [`launch`]: the typed command line of one VMM
//! * [`vmm`]: one running VMM: readiness, output, stop ladder, clean-up
//! * [`output`]: a VMM's output as bounded rings with readers that cannot block it
//! * [`socket_path`]: whose socket is this
//! * [`process`]: identity of a process beyond its pid
//! * [`checks`]: what of a spec cannot work on this host
//! * [`lock`]: advisory file locks with a named purpose
//!
//! Inside: `clone` makes the child without forking a large parent, `spawner` are the long-lived threads
//! that do so (the parent-death signal follows the thread), `watcher` is the one thread that drains all
//! output and reaps all exits, independent of any async runtime.

pub mod binary;
pub mod checks;
mod clone;
pub mod error;
pub mod kvm;
pub mod launch;
pub mod lock;
pub mod output;
pub mod process;
mod prompt;
mod readiness;
pub mod socket_path;
mod spawner;
mod stuck;
pub mod vmm;
mod watcher;

pub use binary::FirecrackerBinary;
pub use error::{SpawnError, StopError};
pub use launch::{ConsoleInput, Launch, Lifetime, LogOptions, Readiness, Seccomp};
pub use output::{Chunk, Output, OutputReader};
pub use prompt::prompt_thread;
pub use smartvm_firecracker::api::LogLevel;
pub use vmm::{Ended, Ladder, Rung, Timeline, Vmm};
