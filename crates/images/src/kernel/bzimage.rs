//! Takes the ELF kernel that Firecracker boots out of a distribution's `vmlinuz`.
//!
//! A bzImage carries the kernel as a compressed payload. The set-up header says where it is. Source: the kernel's
//! `Documentation/arch/x86/boot.rst`.

use super::compression::{Compression, Damage};
use crate::blocking::Abandoned;

/// Largest kernel that is unpacked, in bytes. Debian's generic one has 66 MB.
pub const MAX_KERNEL: usize = 512 << 20;

/// Where the kernel lies in a bzImage, and what it says of itself. Made by [`parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BzImage<'a> {
    /// The boot protocol: major, minor.
    pub protocol: (u8, u8),
    /// The kernel's release and build, as `6.1.0-9-amd64 (who@where) #1 SMP ...`. Empty when there is none.
    pub version: &'a str,
    /// The compressed kernel, with its length behind it.
    pub payload: &'a [u8],
}

/// A file that is no bzImage, or one that cannot be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BzImageError {
    /// The file is not a bzImage, or too old to say where its payload is.
    #[error("it is no bzImage of boot protocol 2.08 or newer")]
    NotBzImage,
    /// The header points outside of the file.
    #[error("its kernel ({length} bytes at {offset}) lies outside of the file of {file} bytes")]
    OutOfBounds {
        /// Where the payload should start.
        offset: usize,
        /// How long it should be.
        length: usize,
        /// The file's size.
        file: usize,
    },
    /// Compressed in a way that is not known.
    #[error("its kernel is compressed in an unknown way")]
    UnknownCompression,
    /// The compressed data is damaged, or of a kind that is not read.
    #[error("its kernel, compressed with {by}, cannot be unpacked: {problem}")]
    Damaged {
        /// By what it is compressed.
        by: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The length in the file is not the length that came out, or beyond all bounds.
    #[error("its kernel should unpack to {promised} bytes, but {found}")]
    WrongLength {
        /// What the last four bytes of the payload say.
        promised: usize,
        /// What is there instead.
        found: String,
    },
}

/// Reads the set-up header. Nothing is unpacked.
///
/// # Errors
/// When it is no bzImage, or its payload is not within `image`.
pub fn parse(image: &[u8]) -> Result<BzImage<'_>, BzImageError> {
    const SETUP_SECTORS: usize = 0x1f1;
    const PROTOCOL_WITH_PAYLOAD: (u8, u8) = (2, 8);
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?));
    let length = |at: usize| word(at).map(|word| usize::try_from(word).unwrap_or(usize::MAX));
    let (Some(b"HdrS"), Some(&[minor, major])) = (image.get(0x202..0x206), image.get(0x206..0x208)) else {
        return Err(BzImageError::NotBzImage);
    };
    if (major, minor) < PROTOCOL_WITH_PAYLOAD {
        return Err(BzImageError::NotBzImage);
    }
    let (offset, length) = length(0x248).zip(length(0x24c)).ok_or(BzImageError::NotBzImage)?;
    let setup_sectors = match image[SETUP_SECTORS] {
        // For loaders of the last century.
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = offset.saturating_add((setup_sectors + 1) * 512);
    let payload = image.get(offset..offset.saturating_add(length)).ok_or(BzImageError::OutOfBounds {
        offset,
        length,
        file: image.len(),
    })?;
    Ok(BzImage { protocol: (major, minor), version: version(image), payload })
}

/// The text that `kernel_version` points to, 512 bytes before it.
fn version(image: &[u8]) -> &str {
    const LONGEST: usize = 256;
    let at = match image.get(0x20e..0x210) {
        Some(&[0, 0]) | None => return "",
        Some(&[low, high]) => usize::from(u16::from_le_bytes([low, high])) + 0x200,
        Some(_) => return "",
    };
    let rest = image.get(at..).unwrap_or_default();
    let rest = &rest[..rest.len().min(LONGEST)];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    std::str::from_utf8(&rest[..end]).ok().filter(|text| !text.contains(char::is_control)).unwrap_or("")
}

impl BzImage<'_> {
    /// By what the kernel is compressed.
    pub fn compressed_by(&self) -> Option<&'static str> {
        Compression::of(self.payload).map(Compression::name)
    }

    pub(super) fn unpack(&self, stop: &Abandoned) -> Result<Vec<u8>, BzImageError> {
        if self.payload.starts_with(b"\x7fELF") {
            return Ok(self.payload.to_vec());
        }
        let compression = Compression::of(self.payload).ok_or(BzImageError::UnknownCompression)?;
        let damaged =
            |damage: Damage| BzImageError::Damaged { by: compression.name(), problem: damage.to_string() };
        let (packed, promised) =
            self.payload.split_last_chunk::<4>().ok_or_else(|| damaged(Damage("it is cut off".into())))?;
        let promised = usize::try_from(u32::from_le_bytes(*promised)).unwrap_or(usize::MAX);
        if promised > MAX_KERNEL {
            let found = format!("at most {MAX_KERNEL} are unpacked here");
            return Err(BzImageError::WrongLength { promised, found });
        }
        // The length is gzip's own last field; for the others the kernel's build has appended it.
        let packed = if compression == Compression::Gzip { self.payload } else { packed };
        // One byte more than promised tells apart "too long" from a damaged stream.
        let kernel = compression.unpack(packed, promised + 1, stop).map_err(damaged)?;
        if kernel.len() == promised {
            return Ok(kernel);
        }
        let found = match kernel.len() {
            length if length < promised => format!("{length} came out"),
            _ => "more came out".into(),
        };
        Err(BzImageError::WrongLength { promised, found })
    }
}

/// The ELF kernel (`vmlinux`) inside a bzImage (`vmlinuz`), at most [`MAX_KERNEL`] bytes.
///
/// # Errors
/// When it is no bzImage, the kernel in it is damaged or compressed in a way that is not read, or the length field
/// behind it is wrong.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, BzImageError> {
    parse(image)?.unpack(&Abandoned::never())
}

#[cfg(test)]
mod tests;
