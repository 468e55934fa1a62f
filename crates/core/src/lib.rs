//! The pure core of smartvm: what a machine is, which specs can work, which state follows which.
//! No async, no I/O, no clock: data in, data out.
//!
//! * [`spec`]: what a machine is, in Firecracker's field names
//! * [`bare_metal`]: tiny guests without an operating system, as bytes
//! * [`explain`]: stable error codes, hints, retry safety

pub mod bare_metal;
pub mod explain;
pub mod spec;
