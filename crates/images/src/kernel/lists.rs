//! The lists beside a kernel's modules: `modules.dep`, `modules.softdep`, `modules.builtin`,
//! `modules.builtin.modinfo`, `modules.alias`. Source: modules.dep(5), depmod(8), modprobe.d(5).

use std::collections::{BTreeMap, BTreeSet};

use super::modinfo::{self, MOST_SOFT};

/// Longest list that is read, and all lists of one import together, in bytes. Those of Debian's generic kernel have
/// about 3 MB, its `modules.alias` 1.3 MB of them.
pub(super) const MAX_LIST: u64 = 8 << 20;
/// Most modules that one alias can mean here.
const MOST_MEANT: usize = 32;

/// The kernel's name of the module in this file: `kernel/a/virtio-rng.ko.xz` is `virtio_rng`.
pub fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// A module's file, and the files that it needs, in the paths of `modules.dep`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Where it is, relative to the kernel's module directory.
    pub path: String,
    /// What it needs, directly and indirectly: names of modules.
    pub needs: Vec<String>,
}

/// Reads `modules.dep`: by name, each module's file and what it needs. Lines that are none are skipped; of two lines
/// for one module the first counts, as for modprobe.
pub fn parse_dep(text: &str) -> BTreeMap<String, Dependency> {
    let mut modules = BTreeMap::new();
    for (path, needs) in text.lines().filter_map(|line| line.split_once(':')) {
        if path.is_empty() || path.starts_with(['#', ' ']) {
            continue;
        }
        modules.entry(module_name(path)).or_insert_with(|| {
            let mut known = BTreeSet::new();
            // modules.dep lists the one that is to be loaded first last.
            let needs = needs.split_whitespace().rev().filter(|needed| known.insert(*needed));
            Dependency { path: path.to_owned(), needs: needs.map(module_name).collect() }
        });
    }
    modules
}

/// What is known of a kernel's modules without reading them.
#[derive(Debug, Clone, Default)]
pub(super) struct Lists {
    /// From `modules.dep`; `None` where depmod has not run.
    pub(super) dep: Option<BTreeMap<String, Dependency>>,
    /// From `modules.softdep`: what comes before a module.
    softdep: BTreeMap<String, Vec<String>>,
    /// The modules that are part of the kernel; `None` where no list says.
    builtin: Option<BTreeSet<String>>,
    /// Which module an alias means, from `modules.alias`. Those without wildcards only.
    alias: BTreeMap<String, BTreeSet<String>>,
    /// How much has been read, in bytes.
    length: u64,
}

impl Lists {
    /// The names of the lists that [`Lists::add`] takes.
    pub(super) const NAMES: [&str; 5] =
        ["modules.dep", "modules.softdep", "modules.builtin", "modules.builtin.modinfo", "modules.alias"];

    /// Adds one of [`Lists::NAMES`]; others are ignored.
    ///
    /// # Errors
    /// When all together are longer than [`MAX_LIST`]: a package may have a list any number of times.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> Result<(), &'static str> {
        self.length += content.len() as u64;
        if self.length > MAX_LIST {
            return Err("the lists of modules are too long together");
        }
        let text = String::from_utf8_lossy(content);
        match name {
            "modules.dep" => self.dep = Some(parse_dep(&text)),
            "modules.softdep" => {
                for line in text.lines().filter_map(|line| line.strip_prefix("softdep ")) {
                    let (name, rest) = line.trim_start().split_once(char::is_whitespace).unwrap_or_default();
                    let known = self.softdep.entry(module_name(name)).or_default();
                    let room = MOST_SOFT - known.len();
                    known.extend(modinfo::before(rest).take(room));
                }
            }
            "modules.builtin" => {
                let names = text.lines().filter(|line| !line.is_empty()).map(module_name);
                self.builtin.get_or_insert_default().extend(names);
            }
            "modules.builtin.modinfo" => {
                let builtin = self.builtin.get_or_insert_default();
                for (module, value) in text.split('\0').filter_map(|text| text.split_once('.')) {
                    let name = module_name(module);
                    if let Some(alias) = value.strip_prefix("alias=") {
                        builtin.insert(module_name(alias));
                    }
                    builtin.insert(name);
                }
            }
            "modules.alias" => {
                let aliases = text.lines().filter_map(|line| line.strip_prefix("alias ")?.split_once(' '));
                for (alias, name) in aliases.filter(|(alias, _)| !alias.contains(['*', '?', '['])) {
                    let meant = self.alias.entry(module_name(alias)).or_default();
                    if meant.len() < MOST_MEANT {
                        meant.insert(module_name(name.trim()));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a module, or what an alias means, is part of the kernel. `None`: nobody says.
    pub(super) fn is_builtin(&self, name: &str) -> Option<bool> {
        self.builtin.as_ref().map(|builtin| builtin.contains(name))
    }

    /// The modules that should come before this one, as far as the lists say: names or aliases.
    pub(super) fn softdeps(&self, name: &str) -> &[String] {
        self.softdep.get(name).map_or(&[], Vec::as_slice)
    }

    /// The modules that a word of a soft dependency can mean, in a fixed order: itself, then those with the alias.
    pub(super) fn meant_by<'a>(&'a self, word: &str) -> impl Iterator<Item = String> + use<'a> {
        let name = module_name(word);
        let aliased = self.alias.get(&name).into_iter().flatten().cloned();
        std::iter::once(name).chain(aliased)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_dependency_file_is_read_in_the_order_of_loading() {
        let modules = parse_dep(
            "# none\nkernel/a/virtio-net.ko.xz: kernel/b.ko kernel/c-d.ko\n\nkernel/b.ko:\nbroken\n",
        );
        let net = &modules["virtio_net"];
        assert_eq!(net.path, "kernel/a/virtio-net.ko.xz");
        assert_eq!(net.needs, ["c_d", "b"]);
        assert_eq!(modules["b"].needs, [""; 0]);
        assert_eq!(modules.len(), 2);
    }

    #[test]
    fn built_in_modules_are_known_by_name_and_alias() {
        let mut lists = Lists::default();
        assert_eq!(lists.is_builtin("ext4"), None);
        lists.add("modules.builtin", b"kernel/fs/ext4/ext4.ko\n").unwrap();
        lists
            .add(
                "modules.builtin.modinfo",
                b"crc32c_generic.alias=crypto-crc32c\0crc32c_generic.license=GPL\0",
            )
            .unwrap();
        assert_eq!(
            ["ext4", "crypto_crc32c", "crc32c_generic"].map(|name| lists.is_builtin(name)),
            [Some(true); 3]
        );
        assert_eq!(lists.is_builtin("overlay"), Some(false));
    }

    #[test]
    fn soft_dependencies_and_aliases_are_read() {
        let mut lists = Lists::default();
        lists
            .add("modules.softdep", b"# comment\nsoftdep lib-crc pre: crc32c post: other\nsoftdep x y\n")
            .unwrap();
        lists
            .add(
                "modules.alias",
                b"alias pci:v*d* b\nalias crc32c crc32c_intel\nalias crc32c crc32c-generic\n",
            )
            .unwrap();
        assert_eq!(lists.softdeps("lib_crc"), ["crc32c"]);
        assert_eq!(lists.softdeps("x"), [""; 0]);
        assert_eq!(
            lists.meant_by("crc32c").collect::<Vec<_>>(),
            ["crc32c", "crc32c_generic", "crc32c_intel"]
        );
    }

    #[test]
    fn a_list_that_comes_again_and_again_is_refused() {
        let mut lists = Lists::default();
        let text = "softdep a pre: b b b b\n".repeat(100_000);
        let times = (0..).take_while(|_| lists.add("modules.softdep", text.as_bytes()).is_ok()).count();
        assert!((2..10).contains(&times), "{times}");
        assert_eq!(lists.softdeps("a").len(), MOST_SOFT);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z./: \n#-]{0,200}", any in ".{0,100}") {
            parse_dep(&text);
            parse_dep(&any);
            let mut lists = Lists::default();
            for name in Lists::NAMES {
                lists.add(name, text.as_bytes()).unwrap();
                lists.add(name, any.as_bytes()).unwrap();
            }
        }

        #[test]
        fn every_line_is_a_module(names in prop::collection::btree_set("[a-z][a-z0-9]{0,9}", 1..20)) {
            let text: String = names.iter().map(|name| format!("kernel/{name}.ko: kernel/z.ko\n")).collect();
            let modules = parse_dep(&text);
            prop_assert!(modules.keys().eq(names.iter()));
            prop_assert!(modules.values().all(|module| module.needs == ["z"]));
        }
    }
}
