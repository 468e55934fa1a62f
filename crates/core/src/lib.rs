//! The pure core of smartvm: what a machine is, which specs can work, which state follows which.
//! No async, no I/O, no clock: data in, data out.
//!
//! * [`id`]: the name of a machine
//! * [`spec`]: what a machine is, in Firecracker's field names
//! * [`target`]: the Firecracker and the host that a spec is meant for
//! * [`problem`]: what is wrong with a spec
//! * [`validate`]: finds it, all at once
//! * [`initramfs`]: writes what a kernel unpacks before it runs anything
//! * [`kernel_image`]: what a kernel file is, and where it boots
//! * [`boot`]: the kernel's command line as a plan
//! * [`image_machine`]: a machine that boots an image, as a plan
//! * [`machine`]: the life of a machine as a pure decision
//! * [`bare_metal`]: tiny guests without an operating system, as bytes
//! * [`explain`]: stable error codes, hints, retry safety

pub mod bare_metal;
pub mod boot;
pub mod explain;
pub mod id;
pub mod image_machine;
pub mod initramfs;
pub mod kernel_image;
pub mod machine;
pub mod problem;
pub mod spec;
pub mod target;
pub mod validate;
