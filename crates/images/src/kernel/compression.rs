//! How kernels, modules and packages are compressed, and unpacking them within bounds.

use std::fmt;
use std::io::{self, BufReader, Read};

use crate::blocking::Abandoned;

/// No decoder may take more memory than this: the windows of the largest presets fit many times.
const DECODER_MEMORY: u64 = 256 << 20;
/// A legacy lz4 frame holds blocks that unpack to this size, the last one may be shorter. Source: the kernel's
/// `lib/decompress_unlz4.c`, `LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE`.
const LZ4_BLOCK: usize = 8 << 20;
/// A byte of lz4 adds at most 255 to a length. Source: lz4's description of its block format.
const LZ4_MOST_PER_BYTE: usize = 256;
const LZ4_LEGACY: [u8; 4] = 0x184c_2102_u32.to_le_bytes();

/// A way in which the kernel's build, or a package, compresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Compression {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    /// The legacy frame; the newer one is not used by kernels.
    Lz4,
    Zstd,
    /// Recognised, not read: no distribution uses it any more.
    Lzo,
}

impl Compression {
    /// Told from the first bytes.
    pub(super) fn of(packed: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 7] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (b"\x5d\0\0", Compression::Lzma),
            (b"\xfd7zXZ\0", Compression::Xz),
            (&LZ4_LEGACY, Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x89LZO", Compression::Lzo),
        ];
        MAGICS.iter().find(|(magic, _)| packed.starts_with(magic)).map(|(_, compression)| *compression)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Lzo => "lzo",
        }
    }

    /// The plain bytes of one whole stream, of which there are at most `limit`.
    ///
    /// `expected` is only a promise: no memory is taken for it before that many bytes are there.
    pub(super) fn unpack(self, packed: &[u8], limit: usize, stop: &Abandoned) -> Result<Vec<u8>, Damage> {
        let mut rest = packed;
        let plain = match self {
            Self::Lz4 => return unpack_lz4(packed, limit, stop),
            Self::Lzo => return Err(Damage("it is compressed with lzo, which is not read here".into())),
            Self::Gzip => drain(flate2::bufread::GzDecoder::new(&mut rest), limit, stop)?,
            Self::Bzip2 => drain(bzip2::bufread::BzDecoder::new(&mut rest), limit, stop)?,
            Self::Lzma | Self::Xz => {
                let stream = if self == Self::Xz {
                    liblzma::stream::Stream::new_stream_decoder(DECODER_MEMORY, 0)
                } else {
                    liblzma::stream::Stream::new_lzma_decoder(DECODER_MEMORY)
                };
                let decoder = liblzma::bufread::XzDecoder::new_stream(&mut rest, stream.map_err(Damage::of)?);
                drain(decoder, limit, stop)?
            }
            Self::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(&mut rest).map_err(Damage::of)?;
                drain(decoder, limit, stop)?
            }
        };
        if rest.is_empty() {
            Ok(plain)
        } else {
            Err(Damage(format!("{} bytes are behind its end", rest.len())))
        }
    }

    /// The plain bytes of a long stream as they come. Several blocks of xz are unpacked at once.
    pub(super) fn reader<'a>(self, packed: impl Read + 'a) -> Result<Box<dyn Read + 'a>, Damage> {
        let packed = BufReader::with_capacity(256 << 10, packed);
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
            Self::Xz => Box::new(liblzma::bufread::XzDecoder::new_stream(packed, parallel_xz()?)),
            Self::Lzma => {
                let stream = liblzma::stream::Stream::new_lzma_decoder(DECODER_MEMORY).map_err(Damage::of)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(packed, stream))
            }
            Self::Zstd => Box::new(ruzstd::decoding::StreamingDecoder::new(packed).map_err(Damage::of)?),
            Self::Lz4 | Self::Lzo => return Err(Damage(format!("{} is not read here", self.name()))),
        })
    }
}

/// A damaged, hostile or unsupported stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage(pub(super) String);

impl Damage {
    fn of(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A decoder on all cores, as far as the file has blocks and memory allows; otherwise on one.
fn parallel_xz() -> Result<liblzma::stream::Stream, Damage> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8));
    liblzma::stream::MtStreamBuilder::new()
        .threads(u32::try_from(threads).unwrap_or(1))
        .memlimit_threading(DECODER_MEMORY)
        .memlimit_stop(DECODER_MEMORY)
        .decoder()
        .map_err(Damage::of)
}

/// All bytes of a reader, of which there are at most `limit`.
pub(super) fn drain(mut reader: impl Read, limit: usize, stop: &Abandoned) -> Result<Vec<u8>, Damage> {
    const STEP: usize = 1 << 20;
    let mut plain = Vec::new();
    loop {
        if stop.is() {
            return Err(Damage("it was given up".into()));
        }
        let room = (limit - plain.len()).saturating_add(1).min(STEP);
        let from = plain.len();
        plain.resize(from + room, 0);
        let mut filled = from;
        while filled < plain.len() {
            match reader.read(&mut plain[filled..]) {
                Ok(0) => {
                    plain.truncate(filled);
                    return if filled > limit { Err(too_much(limit)) } else { Ok(plain) };
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Damage::of(error)),
            }
        }
        if plain.len() > limit {
            return Err(too_much(limit));
        }
    }
}

fn too_much(limit: usize) -> Damage {
    Damage(format!("it unpacks to more than {limit} bytes"))
}

fn unpack_lz4(packed: &[u8], limit: usize, stop: &Abandoned) -> Result<Vec<u8>, Damage> {
    let mut packed = packed.strip_prefix(&LZ4_LEGACY).ok_or_else(|| Damage("it is not lz4".into()))?;
    let mut plain = Vec::new();
    while !packed.is_empty() {
        if stop.is() {
            return Err(Damage("it was given up".into()));
        }
        let cut = || Damage("an lz4 block is cut off".into());
        let (length, rest) = packed.split_first_chunk::<4>().ok_or_else(cut)?;
        if *length == LZ4_LEGACY {
            packed = rest;
            continue;
        }
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let block = rest.get(..length).ok_or_else(cut)?;
        // No block unpacks to more than this many times itself, and memory is cleared only for what can come: else
        // millions of tiny blocks would clear terabytes.
        let most = length.saturating_mul(LZ4_MOST_PER_BYTE).min(LZ4_BLOCK);
        let room = most.min(limit - plain.len());
        let from = plain.len();
        plain.resize(from + room, 0);
        let count =
            lz4_flex::block::decompress_into(block, &mut plain[from..]).map_err(|error| match error {
                lz4_flex::block::DecompressError::OutputTooSmall { .. } if room < most => too_much(limit),
                error => Damage::of(error),
            })?;
        plain.truncate(from + count);
        packed = &rest[length..];
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(plain: &[u8], count: usize) -> Vec<u8> {
        let block = lz4_flex::block::compress(plain);
        let length = u32::try_from(block.len()).unwrap().to_le_bytes();
        let mut packed = LZ4_LEGACY.to_vec();
        (0..count).for_each(|_| packed.extend([&length[..], &block[..]].concat()));
        packed
    }

    /// Each of them could unpack to 8 MiB; clearing that much for each would take hours.
    #[test]
    fn many_tiny_blocks_cost_what_they_hold() {
        let packed = blocks(b"", 200_000);
        let plain = Compression::Lz4.unpack(&packed, 512 << 20, &Abandoned::never());
        assert_eq!(plain, Ok(Vec::new()));
    }

    #[test]
    fn a_block_may_hold_as_much_as_the_format_allows() {
        let zeros = vec![0; LZ4_BLOCK];
        let plain = Compression::Lz4.unpack(&blocks(&zeros, 2), LZ4_BLOCK * 2, &Abandoned::never()).unwrap();
        assert!(plain == zeros.repeat(2));
        let error = Compression::Lz4.unpack(&blocks(&zeros, 2), LZ4_BLOCK * 2 - 1, &Abandoned::never());
        assert_eq!(error, Err(too_much(LZ4_BLOCK * 2 - 1)));
    }
}
