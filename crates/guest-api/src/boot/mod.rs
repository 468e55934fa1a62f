//! Booting: what the host orders guest init to do, and what guest init reports back.
//!
//! [`Orders`] travel on the kernel command line as words that start with `smartvm.`; the kernel takes them for
//! parameters of a module that is not there, and passes them to nobody. Orders too long for a command line lie
//! in the initramfs instead ([`layout::ORDERS`]), in the same words. A [`Report`] travels back as one line on the
//! console. Everything here is pure, and bounded: the command line may be anybody's, the console is the guest's.

mod orders;
mod report;
mod user;
mod uuid;
mod words;

pub mod layout;

pub use orders::{Disk, FileSystem, MAX_ORDERS, Orders, OrdersError, Overlay, Problem, Process, Root};
pub use report::{Ended, MARK as REPORT_MARK, MAX_REPORT, Report, Step};
pub use user::{Principal, User};
pub use uuid::{InvalidUuid, Uuid};
