use proptest::prelude::*;

use super::*;
use crate::kernel::pack::{bzimage, compress, kernel, payload};

const ALL: [Compression; 6] = [
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Lzma,
    Compression::Xz,
    Compression::Lz4,
    Compression::Zstd,
];

#[test]
fn a_kernel_comes_out_of_every_compression_as_it_went_in() {
    let kernel = kernel("6.1.0-t");
    for compression in ALL {
        let image = bzimage(&payload(compression, &kernel));
        let parsed = parse(&image).unwrap();
        assert_eq!(parsed.compressed_by(), Some(compression.name()));
        assert_eq!((parsed.protocol, parsed.version), ((2, 15), "6.1.0-t (a@b)"));
        assert!(vmlinux(&image).unwrap() == kernel, "{compression:?}");
    }
    assert!(vmlinux(&bzimage(&kernel)).unwrap() == kernel, "not compressed at all");
}

#[test]
fn several_lz4_blocks_are_one_kernel() {
    let mut kernel = b"\x7fELF".to_vec();
    kernel.extend((0..(8 << 20) + 5000).map(|at| (at % 251) as u8));
    assert!(vmlinux(&bzimage(&payload(Compression::Lz4, &kernel))).unwrap() == kernel);
}

#[test]
fn a_wrong_length_field_is_noticed() {
    let kernel = kernel("6.1.0-t");
    for compression in ALL {
        for wrong in [kernel.len() as u32 - 1, kernel.len() as u32 + 1, 0, 100 << 20, u32::MAX] {
            let mut payload = payload(compression, &kernel);
            let at = payload.len() - 4;
            payload[at..].copy_from_slice(&wrong.to_le_bytes());
            let error = vmlinux(&bzimage(&payload)).unwrap_err();
            let told = matches!(error, BzImageError::WrongLength { .. } | BzImageError::Damaged { .. });
            assert!(told, "{compression:?} {wrong}: {error}");
        }
    }
}

#[test]
fn cut_off_and_corrupt_payloads_are_noticed() {
    let kernel = kernel("6.1.0-t");
    for compression in ALL {
        let packed = payload(compression, &kernel);
        for length in [0, 3, 4, 20, packed.len() / 2, packed.len() - 5] {
            assert!(vmlinux(&bzimage(&packed[..length])).is_err(), "{compression:?} cut at {length}");
        }
        let mut corrupt = packed.clone();
        let middle = corrupt.len() / 2;
        corrupt[middle..middle + 100].fill(0x55);
        // lz4 and lzma have no checksum: what comes out then is not what went in, and mostly of another length.
        let unnoticed = vmlinux(&bzimage(&corrupt)).is_ok();
        assert!(
            !unnoticed || matches!(compression, Compression::Lz4 | Compression::Lzma | Compression::Zstd),
            "{compression:?}"
        );
    }
}

#[test]
fn more_data_behind_the_stream_is_noticed() {
    let kernel = kernel("6.1.0-t");
    for compression in [Compression::Xz, Compression::Bzip2, Compression::Zstd] {
        let mut packed = compress(compression, &kernel);
        packed.extend_from_slice(&[0; 8]);
        packed.extend_from_slice(&(kernel.len() as u32).to_le_bytes());
        let error = vmlinux(&bzimage(&packed)).unwrap_err().to_string();
        assert!(error.contains("8 bytes are behind its end"), "{compression:?}: {error}");
    }
}

#[test]
fn a_bomb_takes_no_more_than_it_promised() {
    let bomb = vec![0; 64 << 20];
    for compression in [Compression::Gzip, Compression::Bzip2, Compression::Xz, Compression::Zstd] {
        let mut packed = compress(compression, &bomb);
        if compression == Compression::Gzip {
            packed.truncate(packed.len() - 4);
        }
        packed.extend_from_slice(&1000_u32.to_le_bytes());
        let error = vmlinux(&bzimage(&packed)).unwrap_err().to_string();
        assert!(error.contains("more than 1001 bytes"), "{compression:?}: {error}");
    }
}

#[test]
fn the_header_is_checked() {
    let image = bzimage(&payload(Compression::Lz4, b"\x7fELF kernel"));
    assert!(matches!(parse(&image[..1050]), Err(BzImageError::OutOfBounds { .. })));
    assert_eq!(parse(&image[..0x100]), Err(BzImageError::NotBzImage));
    let changed = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        vmlinux(&image)
    };
    assert_eq!(changed(0x206, &[7, 2]), Err(BzImageError::NotBzImage), "before the payload had a place");
    assert!(matches!(changed(0x248, &[0xff; 4]), Err(BzImageError::OutOfBounds { .. })));
    assert!(matches!(changed(0x24c, &[0xff; 4]), Err(BzImageError::OutOfBounds { .. })));
    assert!(matches!(changed(0x1f1, &[0]), Err(BzImageError::OutOfBounds { .. })), "no sectors mean four");
    assert_eq!(changed(0x20e, &[0xff, 0xff]), changed(0, b"x"), "a version out of bounds is none");
    assert_eq!(vmlinux(&bzimage(b"strange bytes")), Err(BzImageError::UnknownCompression));
    let lzo = vmlinux(&bzimage(b"\x89LZO\0\r\n\x1a\n\x10\0\0\0")).unwrap_err().to_string();
    assert!(lzo.ends_with("it is compressed with lzo, which is not read here"), "{lzo}");
}

proptest! {
    #[test]
    fn no_input_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..3000), header in any::<bool>()) {
        if header && bytes.len() > 0x210 {
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
            bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        }
        let _ = vmlinux(&bytes);
        let _ = vmlinux(&bzimage(&bytes));
    }

    #[test]
    fn no_damage_panics(number in 0usize..6, at in 0.0f64..1.0, byte: u8) {
        let mut packed = payload(ALL[number], b"\x7fELF and some more, and some more, and some more");
        let at = (packed.len() as f64 * at) as usize;
        packed[at] = byte;
        let _ = vmlinux(&bzimage(&packed));
    }
}
