//! The built guest program, as bytes to put into an initramfs.
