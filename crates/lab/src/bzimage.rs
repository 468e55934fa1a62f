//! Takes the ELF kernel that Firecracker boots out of a distribution's `vmlinuz`.
//!
//! A bzImage carries the kernel as a compressed payload. The set-up header says where it is: sectors of
//! set-up code at 0x1f1, offset of the payload behind them at 0x248, its length at 0x24c. The payload's
//! last four bytes are the size of the kernel when unpacked.

use std::fmt;

/// Why no kernel came out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BzImageError {
    /// The file is not a bzImage, or too old to say where its payload is.
    #[error("not a bzImage of boot protocol 2.08 or newer")]
    NotBzImage,
    /// The header points outside of the file.
    #[error("the payload ({offset}+{length}) lies outside of the file of {file} bytes")]
    OutOfBounds {
        /// Where the payload should start.
        offset: usize,
        /// How long it should be.
        length: usize,
        /// The file's size.
        file: usize,
    },
    /// Compressed in a way that is not read here.
    #[error("the kernel is compressed with {0}, only lz4 and none are read")]
    Format(Format),
    /// The compressed data is damaged.
    #[error("the lz4 payload is damaged: {0}")]
    Damaged(String),
    /// What came out is not an ELF file.
    #[error("the unpacked kernel is not an ELF file")]
    NotElf,
}

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// LZ4 in its legacy frame, as the kernel's build makes it.
    Lz4Legacy,
    /// Not compressed.
    Elf,
    /// gzip
    Gzip,
    /// XZ
    Xz,
    /// Zstandard
    Zstd,
    /// bzip2
    Bzip2,
    /// LZMA
    Lzma,
    /// LZO
    Lzo,
    /// None of these.
    Unknown,
}

impl Format {
    fn of(payload: &[u8]) -> Self {
        let starts = |magic: &[u8]| payload.starts_with(magic);
        match () {
            () if starts(&LZ4_LEGACY) => Self::Lz4Legacy,
            () if starts(b"\x7fELF") => Self::Elf,
            () if starts(b"\x1f\x8b") => Self::Gzip,
            () if starts(b"\xfd7zXZ\0") => Self::Xz,
            () if starts(b"\x28\xb5\x2f\xfd") => Self::Zstd,
            () if starts(b"BZh") => Self::Bzip2,
            () if starts(b"\x5d\0\0") => Self::Lzma,
            () if starts(b"\x89LZO") => Self::Lzo,
            () => Self::Unknown,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lz4Legacy => "lz4",
            Self::Elf => "nothing",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
            Self::Unknown => "an unknown format",
        })
    }
}

const LZ4_LEGACY: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
/// A legacy frame holds blocks of this size, the last one may be shorter.
const LZ4_BLOCK: usize = 8 << 20;
/// No kernel is larger; a damaged size must not take all memory.
const MAX_KERNEL: usize = 1 << 30;

/// The ELF kernel (`vmlinux`) inside a bzImage (`vmlinuz`).
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let payload = payload(image)?;
    let kernel = match Format::of(payload) {
        Format::Elf => payload.to_vec(),
        Format::Lz4Legacy => {
            // The size behind the data is not part of the lz4 stream.
            let (packed, size) = payload
                .split_last_chunk::<4>()
                .ok_or_else(|| BzImageError::Damaged("it has no size trailer".into()))?;
            unpack_lz4(&packed[LZ4_LEGACY.len()..], u32::from_le_bytes(*size) as usize)?
        }
        other => return Err(BzImageError::Format(other)),
    };
    if kernel.starts_with(b"\x7fELF") { Ok(kernel) } else { Err(BzImageError::NotElf) }
}

fn payload(image: &[u8]) -> Result<&[u8], BzImageError> {
    let word = |at: usize| image.get(at..at + 4)?.first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize);
    let magic = image.get(0x202..0x206).ok_or(BzImageError::NotBzImage)?;
    let version = image.get(0x206..0x208).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    if magic != b"HdrS" || version < 0x0208 {
        return Err(BzImageError::NotBzImage);
    }
    // Zero means four, for loaders of the last century.
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let (offset, length) = word(0x248).zip(word(0x24c)).ok_or(BzImageError::NotBzImage)?;
    let offset = (setup_sectors + 1) * 512 + offset;
    image.get(offset..offset.saturating_add(length)).ok_or(BzImageError::OutOfBounds {
        offset,
        length,
        file: image.len(),
    })
}

fn unpack_lz4(mut packed: &[u8], size: usize) -> Result<Vec<u8>, BzImageError> {
    if size > MAX_KERNEL {
        return Err(BzImageError::Damaged(format!("it claims to unpack to {size} bytes")));
    }
    let mut kernel = Vec::with_capacity(size);
    while let Some((length, rest)) = packed.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = rest.get(..length).ok_or_else(|| BzImageError::Damaged("a block is cut off".into()))?;
        let room = LZ4_BLOCK.min(size - kernel.len());
        let plain = lz4_flex::block::decompress(block, room)
            .map_err(|error| BzImageError::Damaged(error.to_string()))?;
        kernel.extend_from_slice(&plain);
        packed = &rest[length..];
    }
    if kernel.len() != size {
        return Err(BzImageError::Damaged(format!("{} bytes came out, {size} were promised", kernel.len())));
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bzImage of one set-up sector with this payload behind 16 bytes of other code.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"signature behind the payload");
        image
    }

    fn packed(kernel: &[u8]) -> Vec<u8> {
        let mut payload = LZ4_LEGACY.to_vec();
        for block in kernel.chunks(LZ4_BLOCK) {
            let block = lz4_flex::block::compress(block);
            payload.extend_from_slice(&(block.len() as u32).to_le_bytes());
            payload.extend_from_slice(&block);
        }
        payload.extend_from_slice(&(kernel.len() as u32).to_le_bytes());
        payload
    }

    #[test]
    fn unpacks_several_lz4_blocks() {
        let mut kernel = b"\x7fELF".to_vec();
        kernel.extend((0..LZ4_BLOCK + 5000).map(|at| (at % 251) as u8));
        assert_eq!(vmlinux(&image(&packed(&kernel))).unwrap(), kernel);
    }

    #[test]
    fn names_the_format_that_it_cannot_read() {
        let error = vmlinux(&image(b"\x28\xb5\x2f\xfd....")).unwrap_err();
        assert_eq!(error.to_string(), "the kernel is compressed with zstd, only lz4 and none are read");
    }

    #[test]
    fn a_wrong_size_trailer_is_noticed() {
        let mut payload = packed(b"\x7fELF kernel");
        let end = payload.len();
        payload[end - 4..].copy_from_slice(&300_u32.to_le_bytes());
        assert!(matches!(vmlinux(&image(&payload)), Err(BzImageError::Damaged(_))));
        payload[end - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(vmlinux(&image(&payload)), Err(BzImageError::Damaged(_))));
    }

    #[test]
    fn a_cut_file_is_out_of_bounds() {
        let image = image(&packed(b"\x7fELF kernel"));
        assert!(matches!(vmlinux(&image[..1050]), Err(BzImageError::OutOfBounds { .. })));
        assert_eq!(vmlinux(&image[..0x100]), Err(BzImageError::NotBzImage));
    }

    proptest! {
        #[test]
        fn no_input_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..3000), header in any::<bool>()) {
            if header && bytes.len() > 0x210 {
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
                bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
            }
            let _ = vmlinux(&bytes);
            let _ = vmlinux(&image(&bytes));
        }
    }
}
