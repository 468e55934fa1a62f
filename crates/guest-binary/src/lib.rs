//! The built guest program, as bytes to put into an initramfs.
//!
//! Its build script builds it (and says why).

/// The guest program: a static executable for Linux on this program's own kind of processor.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/smartvm-guest"));

#[cfg(test)]
mod tests {
    use super::GUEST;

    fn u16_at(at: usize) -> u16 {
        u16::from_le_bytes(GUEST[at..at + 2].try_into().unwrap())
    }

    fn u32_at(at: usize) -> u32 {
        u32::from_le_bytes(GUEST[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn it_is_a_program_for_this_processor() {
        assert_eq!(&GUEST[..6], b"\x7fELF\x02\x01", "ELF, 64 bits, little-endian");
        assert_eq!(u16_at(16), 2, "an executable at a fixed address");
        let machine = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
        assert_eq!(u16_at(18), machine);
    }

    #[test]
    fn it_needs_no_loader_and_no_libraries() {
        const PT_DYNAMIC: u32 = 2;
        const PT_INTERP: u32 = 3;
        let table = usize::try_from(u64::from_le_bytes(GUEST[32..40].try_into().unwrap())).unwrap();
        let (size, count) = (usize::from(u16_at(54)), usize::from(u16_at(56)));
        let kinds: Vec<u32> = (0..count).map(|number| u32_at(table + number * size)).collect();
        assert!(!kinds.is_empty());
        assert!(!kinds.contains(&PT_INTERP) && !kinds.contains(&PT_DYNAMIC), "{kinds:?}");
    }

    #[test]
    fn it_is_small_and_names_no_folder_of_the_machine_that_built_it() {
        assert!(GUEST.len() <= 2 << 20, "{} bytes", GUEST.len());
        let root = env!("CARGO_MANIFEST_DIR").strip_suffix("/crates/guest-binary").unwrap();
        let text = root.as_bytes();
        assert!(!GUEST.windows(text.len()).any(|window| window == text), "{root} is in it");
    }
}
