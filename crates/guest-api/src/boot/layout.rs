//! Where an initramfs keeps what guest init looks for. Who writes the initramfs and who reads it agree here.
//!
//! Beside these files it holds the nodes `/dev/console` (5:1) and `/dev/null` (1:3): guest init has its standard
//! streams from the one, or, where the kernel has no console, from the other. Guest init makes every other
//! directory that it needs.

/// Guest init itself, an executable.
pub const INIT: &str = "/init";

/// A text file with the absolute path of one kernel module a line, in the order in which they are loaded before
/// the root disk is looked for. Empty lines are skipped. No file is an empty file.
pub const MODULES: &str = "/etc/smartvm/modules";

/// Like [`MODULES`], for those that no root disk needs: they are loaded after those, while the root is mounted.
pub const LATER_MODULES: &str = "/etc/smartvm/modules-later";

/// More [orders](super::Orders), for what does not fit on the command line. No file is an empty file.
pub const ORDERS: &str = "/etc/smartvm/orders";
