//! What a module says of itself in its section `.modinfo`.

use std::collections::BTreeSet;

use super::lists::module_name;

/// Most wishes of one module that are heeded. Debian's have four at most.
pub(super) const MOST_SOFT: usize = 64;

/// The parts of `.modinfo` that matter for loading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleInfo {
    /// The modules whose symbols it uses, in the kernel's spelling (`_`, not `-`).
    pub depends: Vec<String>,
    /// What should be loaded before it, though it loads without: modules or aliases, as written.
    pub softdeps: Vec<String>,
    /// The kernel that it was built for: the first word of `vermagic`.
    pub release: Option<String>,
}

/// Reads `key=value` texts that end with NUL. What is not such a text, or not UTF-8, is skipped.
pub fn parse(section: &[u8]) -> ModuleInfo {
    let mut info = ModuleInfo::default();
    let mut known = BTreeSet::new();
    let texts = section.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    for (key, value) in texts.filter_map(|text| text.split_once('=')) {
        match key {
            "depends" => {
                let names = value.split(',').filter(|name| !name.is_empty() && known.insert(*name));
                info.depends.extend(names.map(module_name));
            }
            "softdep" => {
                let room = MOST_SOFT - info.softdeps.len();
                info.softdeps.extend(before(value).take(room));
            }
            "vermagic" => info.release = value.split_whitespace().next().map(str::to_owned),
            _ => {}
        }
    }
    info
}

/// The words of a soft dependency that come before: `pre: a b post: c` gives `a` and `b`.
pub(super) fn before(softdep: &str) -> impl Iterator<Item = String> {
    let mut is_before = false;
    softdep.split_whitespace().filter_map(move |word| {
        match word {
            "pre:" => is_before = true,
            "post:" => is_before = false,
            name if is_before => return Some(name.to_owned()),
            _ => {}
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wishes_are_bounded() {
        let text = format!("softdep=pre: {}\0", "a ".repeat(1000)).repeat(3);
        assert_eq!(parse(text.as_bytes()).softdeps.len(), MOST_SOFT);
    }

    #[test]
    fn reads_what_a_module_needs() {
        let info = parse(
            b"license=GPL\0depends=virtio,net-failover\0softdep=pre: crc32c a post: b\0alias=crc32\0\
              vermagic=6.1.0-9-amd64 SMP preempt\0junk\0\xff=\xff\0",
        );
        assert_eq!(info.depends, ["virtio", "net_failover"]);
        assert_eq!(info.softdeps, ["crc32c", "a"]);
        assert_eq!(info.release.as_deref(), Some("6.1.0-9-amd64"));
        assert_eq!(parse(b"depends=\0"), ModuleInfo::default());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            parse(&bytes);
        }

        #[test]
        fn every_dependency_is_read(names in prop::collection::btree_set("[a-z][a-z0-9_]{0,20}", 0..20)) {
            let names: Vec<String> = names.into_iter().collect();
            let text = format!("a=b\0depends={0},{0}\0", names.join(","));
            prop_assert_eq!(parse(text.as_bytes()).depends, names);
        }
    }
}
