//! What a file given as kernel is, told from its first bytes, and whether Firecracker boots it.
//!
//! Firecracker itself reports any unfit kernel as "Unable to read elf header" and the like; people most
//! often give it the `vmlinuz` of their distribution, which is a bzImage.

use std::fmt;

use crate::target::{Arch, FirecrackerVersion};

/// How many first bytes [`identify`] looks at; more do no harm, fewer tell less.
pub const HEAD_LEN: usize = 4096;

/// Firecracker refuses ELF kernels that begin below 1 MiB.
const LOWEST_ENTRY: u64 = 0x10_0000;

/// The first release that boots a bzImage.
const BZIMAGE_SINCE: FirecrackerVersion = FirecrackerVersion(1, 17, 0);

/// What a file given as kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelImage {
    /// A 64-bit ELF executable that can be a kernel (`vmlinux`).
    Elf64(Arch),
    /// An ELF file that cannot be a kernel of Firecracker, and why.
    ElfOther(ElfFault),
    /// Linux for x86 as distributions ship it (`vmlinuz`), with its boot protocol: major, minor.
    BzImage(u8, u8),
    /// Linux for aarch64 (`Image`): a PE file, uncompressed.
    Arm64Image,
    /// A compressed file, and by what.
    Compressed(&'static str),
    /// Something else that is well known.
    Other(&'static str),
    /// Readable text.
    Text,
    /// No bytes.
    Empty,
    /// None of these.
    Unknown,
}

/// Why an ELF file cannot be a kernel of Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElfFault {
    /// It ends within its header.
    Truncated,
    /// It is a 32-bit one.
    Class32,
    /// Its byte order is big-endian.
    BigEndian,
    /// It is for another kind of CPU, by the ELF number.
    Machine(u16),
    /// It begins at this address, below 1 MiB: a program or a library.
    Entry(u64),
}

/// What the file is whose first bytes these are. Pass [`HEAD_LEN`] bytes, or the whole of a smaller file.
pub fn identify(head: &[u8]) -> KernelImage {
    const MAGICS: [(usize, &[u8], KernelImage); 16] = [
        (0x38, b"ARM\x64", KernelImage::Arm64Image),
        (4, b"zimg", KernelImage::Compressed("EFI zboot")),
        (0, b"\x1f\x8b", KernelImage::Compressed("gzip")),
        (0, b"\xfd7zXZ\0", KernelImage::Compressed("xz")),
        (0, b"\x28\xb5\x2f\xfd", KernelImage::Compressed("zstd")),
        (0, b"\x04\x22\x4d\x18", KernelImage::Compressed("lz4")),
        (0, b"\x02\x21\x4c\x18", KernelImage::Compressed("lz4")),
        (0, b"BZh", KernelImage::Compressed("bzip2")),
        (0, b"\x5d\0\0", KernelImage::Compressed("lzma")),
        (0, b"070701", KernelImage::Other("an initramfs (cpio archive)")),
        (0, b"QFI\xfb", KernelImage::Other("a qcow2 disk image")),
        (0, b"hsqs", KernelImage::Other("a squashfs file system")),
        (0, b"\x27\x05\x19\x56", KernelImage::Other("a U-Boot image")),
        (0x438, b"\x53\xef", KernelImage::Other("an ext4 file system")),
        (0, b"MZ", KernelImage::Other("a PE (EFI or Windows) program")),
        (0x1fe, b"\x55\xaa", KernelImage::Other("a disk image with a boot sector")),
    ];
    if head.is_empty() {
        return KernelImage::Empty;
    }
    if head.starts_with(b"\x7fELF") {
        return identify_elf(head);
    }
    // Before "MZ": with the EFI stub, a bzImage is a PE file as well.
    if let (Some(b"HdrS"), Some(&[minor, major])) = (head.get(0x202..0x206), head.get(0x206..0x208)) {
        return KernelImage::BzImage(major, minor);
    }
    let matches = |(offset, magic, _): &&(usize, &[u8], KernelImage)| {
        head.get(*offset..).is_some_and(|rest| rest.starts_with(magic))
    };
    if let Some((_, _, image)) = MAGICS.iter().find(matches) {
        return *image;
    }
    if is_text(head) { KernelImage::Text } else { KernelImage::Unknown }
}

fn identify_elf(head: &[u8]) -> KernelImage {
    let Some(header) = head.first_chunk::<64>() else { return KernelImage::ElfOther(ElfFault::Truncated) };
    if header[5] != 1 {
        return KernelImage::ElfOther(ElfFault::BigEndian);
    }
    if header[4] != 2 {
        return KernelImage::ElfOther(ElfFault::Class32);
    }
    let arch = match u16::from_le_bytes([header[18], header[19]]) {
        62 => Arch::X86_64,
        183 => Arch::Aarch64,
        machine => return KernelImage::ElfOther(ElfFault::Machine(machine)),
    };
    let entry = u64::from_le_bytes(std::array::from_fn(|index| header[24 + index]));
    if entry < LOWEST_ENTRY {
        KernelImage::ElfOther(ElfFault::Entry(entry))
    } else {
        KernelImage::Elf64(arch)
    }
}

/// How many bytes an ELF kernel must have at least, when that is more than the `length` of its file: a copy or a download
/// that ended early. `None` for what is whole, and for other files. `head` is as for [`identify`].
///
/// Firecracker starts what is there, and the guest crashes before it says a word.
pub fn cut_off(head: &[u8], length: u64) -> Option<u64> {
    const HEADER: usize = 56;
    const LOAD: u32 = 1;
    let KernelImage::Elf64(_) = identify(head) else { return None };
    let begin = read_u64(head, 32)?;
    let count = u16::from_le_bytes([*head.get(56)?, *head.get(57)?]);
    let mut needs = begin.saturating_add(u64::from(count) * HEADER as u64);
    let headers = head.get(usize::try_from(begin).unwrap_or(usize::MAX)..).unwrap_or_default();
    for header in headers.chunks_exact(HEADER).take(count.into()) {
        if header.starts_with(&LOAD.to_le_bytes()) {
            let (offset, size) = (read_u64(header, 8)?, read_u64(header, 32)?);
            needs = needs.max(offset.saturating_add(size));
        }
    }
    (needs > length).then_some(needs)
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// UTF-8 without control characters but for white space. The head may end within a character.
fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty()
        && !text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c' | '\x1b'))
}

/// Whether a Firecracker of this version boots the image on this architecture.
///
/// # Errors
/// [`NotBootable`], with what the image is and what to do.
pub fn boots_on(image: KernelImage, arch: Arch, version: FirecrackerVersion) -> Result<(), NotBootable> {
    match (image, arch) {
        (KernelImage::Elf64(Arch::X86_64), Arch::X86_64) | (KernelImage::Arm64Image, Arch::Aarch64) => Ok(()),
        (KernelImage::BzImage(..), Arch::X86_64) if version >= BZIMAGE_SINCE => Ok(()),
        _ => Err(NotBootable { image, arch, version }),
    }
}

/// An image that this Firecracker does not boot on this architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotBootable {
    /// What it is.
    pub image: KernelImage,
    /// Where it was to boot.
    pub arch: Arch,
    /// Under which Firecracker.
    pub version: FirecrackerVersion,
}

impl std::error::Error for NotBootable {}

impl fmt::Display for NotBootable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is {}, which Firecracker {} does not boot on {}", self.image, self.version, self.arch)
    }
}

impl NotBootable {
    /// What to give instead, or how to make it from this.
    pub fn hint(&self) -> String {
        let wanted = match self.arch {
            Arch::X86_64 => "an uncompressed ELF kernel (vmlinux)",
            Arch::Aarch64 => "an uncompressed kernel in the PE format (Image)",
        };
        match (self.image, self.arch) {
            (KernelImage::BzImage(..), Arch::X86_64) => format!(
                "Unpack it with the kernel's scripts/extract-vmlinux, or use Firecracker {BZIMAGE_SINCE} or later, \
                 which boots bzImages."
            ),
            (KernelImage::Compressed("EFI zboot"), Arch::Aarch64) => {
                format!("Use {wanted}: it lies compressed within this one.")
            }
            (KernelImage::Compressed(by), _) => format!("Decompress it ({by}) and give {wanted}."),
            (KernelImage::Elf64(Arch::Aarch64), Arch::Aarch64) => {
                "Give arch/arm64/boot/Image of the same kernel build: Firecracker boots no ELF on aarch64."
                    .to_owned()
            }
            (KernelImage::Elf64(other), _) => {
                format!("This kernel is for {other}: give {wanted} for {}.", self.arch)
            }
            (KernelImage::BzImage(..) | KernelImage::Arm64Image, _) => {
                format!("This kernel is for another architecture: give {wanted} for {}.", self.arch)
            }
            _ => format!("Give {wanted}."),
        }
    }
}

impl fmt::Display for KernelImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf64(arch) => write!(f, "an ELF kernel for {arch}"),
            Self::ElfOther(fault) => write!(f, "an ELF file that is no kernel: {fault}"),
            Self::BzImage(major, minor) => write!(f, "a bzImage (x86 boot protocol {major}.{minor:02})"),
            Self::Arm64Image => write!(f, "an aarch64 Image"),
            Self::Compressed(by) => write!(f, "compressed with {by}"),
            Self::Other(what) => f.write_str(what),
            Self::Text => write!(f, "a text file"),
            Self::Empty => write!(f, "an empty file"),
            Self::Unknown => write!(f, "no known kind of kernel"),
        }
    }
}

impl fmt::Display for ElfFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "it ends within its header"),
            Self::Class32 => write!(f, "it is 32-bit"),
            Self::BigEndian => write!(f, "it is big-endian"),
            Self::Machine(number) => write!(f, "it is for another CPU (ELF machine {number})"),
            Self::Entry(address) => {
                write!(f, "it begins at {address:#x}, below the first MiB, as programs and libraries do")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bare_metal::Guest;

    const V1_12: FirecrackerVersion = FirecrackerVersion(1, 12, 1);
    const V1_17: FirecrackerVersion = FirecrackerVersion(1, 17, 0);

    /// Bytes and their place.
    type Part = (usize, &'static [u8]);

    /// A head of 4 KiB of 0x90 with these bytes at these places.
    fn head(parts: &[Part]) -> Vec<u8> {
        let mut head = vec![0x90; HEAD_LEN];
        for (offset, bytes) in parts {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    fn elf(change: impl FnOnce(&mut Vec<u8>)) -> KernelImage {
        let mut elf = Guest::ByteThenReset.elf();
        change(&mut elf);
        identify(&elf)
    }

    #[test]
    fn an_elf_kernel_that_was_cut_off_is_seen_by_its_own_header() {
        let elf = Guest::ByteThenReset.elf();
        let whole = elf.len() as u64;
        assert_eq!(cut_off(&elf[..HEAD_LEN.min(elf.len())], whole), None);
        let needs = cut_off(&elf[..100], 100).unwrap();
        assert!(100 < needs && needs <= whole, "{needs}");
        assert!(cut_off(&elf[..HEAD_LEN.min(elf.len())], whole - 1).is_some(), "its last byte is code");
        let mut absurd = elf.clone();
        absurd[32..40].fill(0xff);
        assert_eq!(cut_off(&absurd, whole), Some(u64::MAX));
        assert_eq!(cut_off(b"\x7fELF", 4), None);
        assert_eq!(cut_off(b"text", 4), None);
    }

    #[test]
    fn elf_files_are_told_apart() {
        assert_eq!(elf(|_| ()), KernelImage::Elf64(Arch::X86_64));
        assert_eq!(elf(|elf| elf[18] = 183), KernelImage::Elf64(Arch::Aarch64));
        assert_eq!(elf(|elf| elf[18] = 243), KernelImage::ElfOther(ElfFault::Machine(243)));
        assert_eq!(elf(|elf| elf[4] = 1), KernelImage::ElfOther(ElfFault::Class32));
        assert_eq!(elf(|elf| elf[5] = 2), KernelImage::ElfOther(ElfFault::BigEndian));
        assert_eq!(elf(|elf| elf.truncate(63)), KernelImage::ElfOther(ElfFault::Truncated));
        let low = |elf: &mut Vec<u8>| elf[24..32].copy_from_slice(&0xf_ffffu64.to_le_bytes());
        assert_eq!(elf(low), KernelImage::ElfOther(ElfFault::Entry(0xf_ffff)));
    }

    #[test]
    fn a_bzimage_is_one_with_and_without_the_efi_stub() {
        let header: [Part; 3] = [(0x1fe, b"\x55\xaa"), (0x202, b"HdrS"), (0x206, &[0x0f, 0x02])];
        assert_eq!(identify(&head(&header)), KernelImage::BzImage(2, 15));
        let with_stub = [&header[..], &[(0, b"MZ")]].concat();
        assert_eq!(identify(&head(&with_stub)).to_string(), "a bzImage (x86 boot protocol 2.15)");
    }

    #[test]
    fn other_kinds_are_named() {
        let cases: &[(&[Part], KernelImage)] = &[
            (&[(0, b"MZ"), (0x38, b"ARM\x64")], KernelImage::Arm64Image),
            (&[(0, b"MZ\0\0zimg")], KernelImage::Compressed("EFI zboot")),
            (&[(0, b"\x1f\x8b\x08")], KernelImage::Compressed("gzip")),
            (&[(0, b"\x28\xb5\x2f\xfd")], KernelImage::Compressed("zstd")),
            (&[(0x438, b"\x53\xef")], KernelImage::Other("an ext4 file system")),
            (&[(0, b"MZ")], KernelImage::Other("a PE (EFI or Windows) program")),
            (&[], KernelImage::Unknown),
        ];
        for (parts, expected) in cases {
            assert_eq!(identify(&head(parts)), *expected);
        }
        assert_eq!(identify(b""), KernelImage::Empty);
        assert_eq!(identify(b"#!/bin/sh\necho kernel\n"), KernelImage::Text);
        assert_eq!(identify("größer".as_bytes()), KernelImage::Text);
        assert_eq!(identify(&"größer".as_bytes()[..3]), KernelImage::Text, "the head ends within a letter");
        assert_eq!(identify(&[0; 100]), KernelImage::Unknown);
    }

    #[test]
    fn what_boots_depends_on_architecture_and_version() {
        let elf = KernelImage::Elf64(Arch::X86_64);
        assert_eq!(boots_on(elf, Arch::X86_64, V1_12), Ok(()));
        assert!(boots_on(elf, Arch::Aarch64, V1_17).is_err());
        assert_eq!(boots_on(KernelImage::Arm64Image, Arch::Aarch64, V1_12), Ok(()));
        assert!(boots_on(KernelImage::Arm64Image, Arch::X86_64, V1_17).is_err());
        let bzimage = KernelImage::BzImage(2, 15);
        assert_eq!(boots_on(bzimage, Arch::X86_64, V1_17), Ok(()));
        let error = boots_on(bzimage, Arch::X86_64, V1_12).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it is a bzImage (x86 boot protocol 2.15), which Firecracker 1.12.1 does not boot on x86_64"
        );
        assert!(
            error.hint().contains("extract-vmlinux") && error.hint().contains("1.17.0"),
            "{}",
            error.hint()
        );
        assert!(boots_on(KernelImage::Elf64(Arch::Aarch64), Arch::Aarch64, V1_12).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            magic in prop::sample::select(vec![&b""[..], b"\x7fELF\x02\x01", b"MZ", b"\x1f\x8b", b"BZh"]),
            rest: Vec<u8>,
        ) {
            let bytes = [magic, &rest].concat();
            let image = identify(&bytes);
            for (arch, version) in [(Arch::X86_64, V1_12), (Arch::Aarch64, V1_17)] {
                if let Err(error) = boots_on(image, arch, version) {
                    prop_assert!(error.hint().ends_with('.'));
                }
            }
        }

        #[test]
        fn no_prefix_of_a_kernel_makes_it_panic(len in 0usize..200) {
            let elf = Guest::ByteThenIdle.elf();
            identify(&elf[..len.min(elf.len())]);
        }

        #[test]
        fn text_is_text(text in "[ -~\n]{1,100}") {
            // A few texts begin like something else.
            prop_assume!(!text.starts_with("BZh") && !text.starts_with("MZ") && !text.starts_with("07070"));
            prop_assume!(!text.starts_with("hsqs") && text.get(4..8) != Some("zimg"));
            prop_assert_eq!(identify(text.as_bytes()), KernelImage::Text);
        }
    }
}
