//! The pure core of smartvm: what a machine is, which specs can work, which state follows which.
//! No async, no I/O, no clock: data in, data out.
//!
//! * [`explain`]: stable error codes, hints, retry safety

pub mod explain;
