//! Root file systems: layers or a directory become one ext4 file, and nothing is unpacked on the host.
//!
//! The sources are read twice. The first time only names and attributes are kept, and layers are merged by the rules
//! of OCI (`tree`, `merge`); then the file system is laid out, all its metadata are written, and the second reading
//! streams the contents of those files that are left into their places (`write`). Equal input gives equal bytes.
//!
//! ```text
//! layers ─── source ─── tar, pax ─── merge ─┐
//!                                           ├── tree ─── size, write ─── sink (sparse file, hashed)
//! directory ────────────────────────────────┘
//! ```
//!
//! [`blank`] makes an empty one, for what a machine writes. [`export_now`] makes a tar archive of one.
//!
//! What is kept: modes, owners (32 bits), times to the nanosecond (1901 to 2446; others are moved there), hardlinks,
//! symlinks, device nodes, fifos, sockets, holes, access control lists, file capabilities and other extended
//! attributes that Linux has. What is not: access and change times (those are the time of modification, or images
//! would differ each time they are made), and names that are not UTF-8, which are an error.
//!
//! What is read may be hostile: it ends in [`RootfsError`] within the bounds of [`Limits`], never outside of the
//! image. Leading slashes of paths are left out (tar writers disagree on them); `..` in a path is refused. An entry
//! below a symlink goes where the link leads, within the root, as container runtimes do it. A hardlink to what is
//! missing, to a directory or to itself is refused.

mod blank;
mod directory;
mod error;
mod export;
mod merge;
mod pax;
mod reader;
mod sink;
mod size;
mod source;
mod sparse;
mod tar;
#[cfg(test)]
mod tests;
mod tree;
mod unpacked;
mod watch;
mod write;
mod xattr;

use std::fs::File;

pub use blank::blank;
pub use directory::Directory;
pub use error::RootfsError;
pub use export::{Exported, Meaning, export_now};
pub use source::Layer;
pub(crate) use unpacked::{MemberKind, Total};

use crate::Digest;
use crate::blocking::{Abandoned, blocking};
use crate::progress::Progress;
use sparse::Blocks;
use watch::Watch;
use write::{Fill, FillError, Filler};

/// The largest file on ext4 with blocks of 4 KiB, in bytes.
const LARGEST_FILE: u64 = (1 << 44) - 4096;

/// What a root file system is made of.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Contents {
    /// The layers of an OCI image, lowest first; whiteouts in them hide what is below.
    Layers(Vec<Layer>),
    /// A tar archive of a whole root file system; all names in it mean themselves.
    Archive(Layer),
    /// A directory of this host.
    Directory(Directory),
}

/// What no source may exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Entries of all layers together. Each takes about 1 KiB of memory. Default: one million.
    pub entries: u64,
    /// Bytes of names, link targets and extended attributes of all layers together. Default: 512 MiB.
    pub metadata_bytes: u64,
    /// Bytes of all unpacked layers together. Default: 256 GiB.
    pub unpacked_bytes: u64,
    /// How many times its size a layer may unpack to, once that is more than 4 GiB. Default: 200.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 1_000_000, metadata_bytes: 512 << 20, unpacked_bytes: 256 << 30, ratio: 200 }
    }
}

/// What is left free in an image, for machines that write to a copy of it. The file is sparse: free space costs
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Room {
    /// At least so many bytes. Default: 4 MiB.
    pub bytes: u64,
    /// At least so many inodes, and at least a sixteenth of those in use. Default: 1024.
    pub inodes: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self { bytes: 4 << 20, inodes: 1024 }
    }
}

/// How a root file system is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Options {
    /// What no source may exceed.
    pub limits: Limits,
    /// What is left free.
    pub room: Room,
}

/// A root file system that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// The file system's UUID, by which guests find the disk. It follows from names, attributes and sizes, and from
    /// [`Layer::identified`].
    pub uuid: [u8; 16],
    /// SHA-256 of the file.
    pub digest: Digest,
    /// The file's length.
    pub size_bytes: u64,
    /// How much of it was written: blocks of zeros are not, so this is what it takes on disk.
    pub used_bytes: u64,
    /// Files of all kinds, the root directory included.
    pub inodes: u64,
    /// Entries that were read, those that a later layer replaced included.
    pub entries: u64,
}

/// Makes an ext4 file system. `file`, open for reading and writing, is emptied first; it is not synced.
///
/// # Errors
/// See [`RootfsError`]. The file is then of no use.
///
/// # Cancel safety
/// Dropping the future stops the work within a moment; the file is then of no use.
pub async fn build(
    contents: Contents,
    file: File,
    options: Options,
    progress: Progress,
) -> Result<Built, RootfsError> {
    blocking(move |abandoned| build_now(&contents, &file, &options, &progress, abandoned)).await
}

/// [`build`], on this thread.
///
/// # Errors
/// As [`build`].
pub fn build_now(
    contents: &Contents,
    file: &File,
    options: &Options,
    progress: &Progress,
    abandoned: &Abandoned,
) -> Result<Built, RootfsError> {
    let (layers, whiteouts) = match contents {
        Contents::Layers(layers) => (layers.as_slice(), true),
        Contents::Archive(layer) => (std::slice::from_ref(layer), false),
        Contents::Directory(directory) => {
            let watch = Watch::new(abandoned, progress, "build root file system", None);
            let (tree, scanned) = directory::scan(directory, file, &options.limits, &watch)?;
            let entries = scanned.entries;
            return write::image(tree, entries, &[], file, options, &watch, |filler, fills| {
                directory::fill(&scanned, &watch, filler, fills)
            });
        }
    };
    let bytes = layers.iter().map(Layer::len).sum::<u64>().saturating_mul(2);
    let watch = Watch::new(abandoned, progress, "build root file system", Some(bytes));
    let (tree, entries) = merge::layers(layers, whiteouts, &options.limits, &watch)?;
    let identities: Vec<_> = layers.iter().map(|layer| layer.identity().copied()).collect();
    write::image(tree, entries, &identities, file, options, &watch, |filler, fills| {
        fill_from_layers(layers, options, &watch, filler, fills)
    })
}

/// Does all that [`build_now`] does with the layers of an image, but writes nothing: for fuzzing.
///
/// # Errors
/// As [`build`].
#[doc(hidden)]
pub fn rehearse(layers: &[Layer], options: &Options) -> Result<(), RootfsError> {
    let watch = Watch::new(&Abandoned::never(), &Progress::none(), "rehearse", None);
    let (tree, _) = merge::layers(layers, true, &options.limits, &watch)?;
    write::rehearsal(tree, options, &watch, |filler, fills| {
        fill_from_layers(layers, options, &watch, filler, fills)
    })
}

/// Reads the layers again, and gives each file that is left its contents.
fn fill_from_layers(
    layers: &[Layer],
    options: &Options,
    watch: &Watch,
    filler: &mut Filler<'_, '_>,
    fills: &[Fill],
) -> Result<(), RootfsError> {
    let mut fills = fills.iter().peekable();
    for (number, layer) in layers.iter().enumerate() {
        let is_here = |fill: &&Fill| fill.source.0 as usize == number;
        if fills.peek().is_none_or(|fill| !is_here(fill)) {
            watch.advance(layer.len()).map_err(|_| RootfsError::Stopped)?;
            continue;
        }
        let changed = || RootfsError::Changed { path: layer.name().into() };
        let mut entries = merge::entries(layer, &options.limits, watch)?;
        let mut ordinal = 0;
        while fills.peek().is_some_and(is_here) {
            let next =
                entries.next().map_err(|error| merge::failure(layer, watch, entries.position(), error))?;
            let entry = next.ok_or_else(changed)?;
            if let Some(fill) = fills.next_if(|fill| is_here(fill) && fill.source.1 == ordinal) {
                let filled = match entry.map {
                    Some(map) => filler.fill(*fill, Blocks::new(entries.contents(), map, entry.size)),
                    None => filler.fill(*fill, entries.contents()),
                };
                match filled {
                    Ok(()) => {}
                    Err(FillError::Write(error)) => return Err(error),
                    Err(FillError::Short) => return Err(changed()),
                    Err(FillError::Read(error)) => {
                        return Err(merge::failure(layer, watch, entries.position(), error.into()));
                    }
                }
            }
            ordinal += 1;
        }
    }
    Ok(())
}
