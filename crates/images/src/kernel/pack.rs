//! Kernels and packages made in tests, packed in every way that is read.

use std::io::Write;

use super::compression::Compression;
use super::elf::tests::module as elf_module;

/// A kernel that Firecracker would boot, with the greeting of this release.
pub(crate) fn kernel(release: &str) -> Vec<u8> {
    let mut kernel = smartvm_core::bare_metal::Guest::ByteThenReset.elf();
    kernel.extend_from_slice(format!("\0Linux version {release} (test@here) #1 SMP\n\0").as_bytes());
    // Enough of something that compresses neither to nothing nor not at all.
    kernel.extend((0_u32..300_000).map(|at| (at.wrapping_mul(2_654_435_761) >> 27) as u8));
    kernel
}

pub(super) fn compress(compression: Compression, plain: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(plain).unwrap();
            gzip.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            bzip2.write_all(plain).unwrap();
            bzip2.finish().unwrap()
        }
        Compression::Xz => {
            // As scripts/xz_wrap.sh: a filter for x86 code, and CRC32.
            let mut filters = liblzma::stream::Filters::new();
            filters.x86().lzma2(&liblzma::stream::LzmaOptions::new_preset(1).unwrap());
            let stream =
                liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
            let mut xz = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            xz.write_all(plain).unwrap();
            xz.finish().unwrap()
        }
        Compression::Lzma => {
            let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
            let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
            let mut lzma = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            lzma.write_all(plain).unwrap();
            lzma.finish().unwrap()
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
        }
        Compression::Lz4 => {
            let mut packed = 0x184c_2102_u32.to_le_bytes().to_vec();
            for block in plain.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
                packed.extend_from_slice(&block);
            }
            packed
        }
        Compression::Lzo => unreachable!("nothing here writes lzo"),
    }
}

/// The payload of a bzImage: compressed, with the length behind it.
pub(super) fn payload(compression: Compression, kernel: &[u8]) -> Vec<u8> {
    let mut payload = compress(compression, kernel);
    if compression != Compression::Gzip {
        payload.extend_from_slice(&(kernel.len() as u32).to_le_bytes());
    }
    payload
}

/// A bzImage of one set-up sector with this payload behind 16 bytes of other code.
pub(super) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024 + 16];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x180_u16.to_le_bytes());
    image[0x380..0x38e].copy_from_slice(b"6.1.0-t (a@b)\0");
    image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image.extend_from_slice(b"signature behind the payload");
    image
}

/// A module for a kernel of this release.
pub(super) fn module(name: &str, depends: &str, release: &str) -> Vec<u8> {
    let info = format!("name={name}\0depends={depends}\0vermagic={release} SMP mod_unload \0");
    elf_module(".modinfo", info.as_bytes())
}

/// A tar of these files.
pub(super) fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Debian's paths begin with a dot; long ones get GNU's extension.
        tar.append_data(&mut header, format!("./{path}"), content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A Debian package with this `data.tar.*`.
pub(super) fn deb(member: &str, data: &[u8]) -> Vec<u8> {
    let mut deb = b"!<arch>\n".to_vec();
    let members: [(&str, &[u8]); 3] =
        [("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), (member, data)];
    for (name, content) in members {
        deb.extend_from_slice(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, content.len()).as_bytes(),
        );
        deb.extend_from_slice(content);
        deb.resize(deb.len().next_multiple_of(2), b'\n');
    }
    deb
}
