//! The sections of a 64-bit little-endian ELF file: just enough to read what a module says of itself.

/// Where one section lies. Bounds are checked when its content is asked for.
#[derive(Debug, Clone, Copy)]
struct Section {
    name: usize,
    kind: u32,
    offset: usize,
    size: usize,
}

const HEADER: usize = 64;
const NO_BITS: u32 = 8;

/// The content of the first section with this name. `None` when there is none, or the file is damaged or of another
/// kind.
pub(super) fn section<'a>(elf: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let names = section_at(elf, usize::from(u16_at(elf, 62)?))?;
    let names = content(elf, names)?;
    let sections = (0..usize::from(u16_at(elf, 60)?)).filter_map(|index| section_at(elf, index));
    let named = |section: &Section| {
        let found = names.get(section.name..)?;
        Some(found.starts_with(name.as_bytes()) && found.get(name.len()) == Some(&0))
    };
    let section = sections.into_iter().find(|section| named(section) == Some(true))?;
    content(elf, section)
}

/// Whether this is a relocatable x86-64 file, as modules are.
pub(super) fn is_module(elf: &[u8]) -> bool {
    const RELOCATABLE: u16 = 1;
    const X86_64: u16 = 62;
    elf.starts_with(b"\x7fELF\x02\x01")
        && (u16_at(elf, 16), u16_at(elf, 18)) == (Some(RELOCATABLE), Some(X86_64))
}

fn section_at(elf: &[u8], index: usize) -> Option<Section> {
    if !elf.starts_with(b"\x7fELF\x02\x01") || usize::from(u16_at(elf, 58)?) != HEADER {
        return None;
    }
    let at = usize_at(elf, 40)?.checked_add(index.checked_mul(HEADER)?)?;
    Some(Section {
        name: usize::try_from(u32_at(elf, at)?).ok()?,
        kind: u32_at(elf, at.checked_add(4)?)?,
        offset: usize_at(elf, at.checked_add(24)?)?,
        size: usize_at(elf, at.checked_add(32)?)?,
    })
}

fn content(elf: &[u8], section: Section) -> Option<&[u8]> {
    if section.kind == NO_BITS {
        return None;
    }
    elf.get(section.offset..section.offset.checked_add(section.size)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A module file that has one section of content and the table of names.
    pub(in crate::kernel) fn module(name: &str, content: &[u8]) -> Vec<u8> {
        let names = format!("\0.shstrtab\0{name}\0");
        let mut elf = vec![0; HEADER];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16] = 1;
        elf[18] = 62;
        let names_at = elf.len() as u64;
        elf.extend_from_slice(names.as_bytes());
        let content_at = elf.len() as u64;
        elf.extend_from_slice(content);
        let table = elf.len() as u64;
        let mut header = |name: u32, kind: u32, offset: u64, size: usize| {
            let at = elf.len();
            elf.resize(at + HEADER, 0);
            elf[at..at + 4].copy_from_slice(&name.to_le_bytes());
            elf[at + 4..at + 8].copy_from_slice(&kind.to_le_bytes());
            elf[at + 24..at + 32].copy_from_slice(&offset.to_le_bytes());
            elf[at + 32..at + 40].copy_from_slice(&(size as u64).to_le_bytes());
        };
        header(0, 0, 0, 0);
        header(1, 3, names_at, names.len());
        header(11, 1, content_at, content.len());
        elf[40..48].copy_from_slice(&table.to_le_bytes());
        elf[58] = HEADER as u8;
        elf[60] = 3;
        elf[62] = 1;
        elf
    }

    #[test]
    fn finds_a_section_by_its_whole_name() {
        let elf = module(".modinfo", b"license=GPL\0");
        assert!(is_module(&elf));
        assert_eq!(section(&elf, ".modinfo"), Some(&b"license=GPL\0"[..]));
        assert_eq!(section(&elf, ".mod"), None);
        assert_eq!(section(&elf[..elf.len() - HEADER], ".modinfo"), None, "its header is cut off");
        assert_eq!(section(b"\x7fELF", ".modinfo"), None);
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(at in 0usize..400, byte: u8, length in 0usize..400) {
            let mut elf = module(".modinfo", &[7; 100]);
            let at = at.min(elf.len() - 1);
            elf[at] = byte;
            section(&elf, ".modinfo");
            section(&elf[..length.min(elf.len())], ".modinfo");
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            section(&bytes, "");
            section(&[b"\x7fELF\x02\x01", &bytes[..]].concat(), "");
        }
    }
}
