//! Which modules a bundle carries, and in which order they load: each after those that it needs.

use std::collections::BTreeSet;

use super::error::KernelError;
use super::lists::{Lists, module_name};
use super::tree::{MAX_MODULES, Module, Modules};

/// What must be loaded before the root disk is looked for: the transports, the disk, the file systems.
pub(super) const FOR_ROOT: [&str; 6] =
    ["virtio_mmio", "virtio_pci", "virtio_blk", "ext4", "overlay", "squashfs"];
/// What may be loaded while the root is mounted.
pub(super) const LATER: [&str; 5] =
    ["virtio_net", "vmw_vsock_virtio_transport", "virtio_rng", "virtio_balloon", "af_packet"];

/// What those above have needed in some kernel so far. Not a promise, only a guess that spares reading a package a
/// second time: what is not needed is not carried, what is missing is fetched.
pub(super) const OFTEN_NEEDED: [&str; 22] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "failover",
    "net_failover",
    "dimlib",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "rng_core",
    "jbd2",
    "mbcache",
    "crc16",
    "crc32c_generic",
    "crc32c_cryptoapi",
    "libcrc32c",
    "fscrypto",
    "exportfs",
    "lz4_decompress",
    "zstd_decompress",
    "xxhash",
    "zlib_inflate",
];

/// Most modules of a bundle. Debian's needs 17.
const MAX_COUNT: usize = 400;

/// Most wishes that are tried. Kernels have a few dozen; but wishes can be nested so that each of them doubles the work.
const MOST_WISHES: usize = 1000;
/// How often more modules are asked for. Each time, whole packages are read again.
const MOST_ROUNDS: usize = 20;

/// Whether a bundle carries this module when the kernel has it as one.
pub(super) fn is_wanted(module: Option<&str>) -> bool {
    FOR_ROOT.iter().chain(&LATER).any(|wanted| Some(*wanted) == module)
}

/// The modules in the order of loading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// Up to the root file system.
    pub(super) for_root: Vec<String>,
    /// After it.
    pub(super) later: Vec<String>,
}

/// Completes `modules` by what they need, asking `fetch` for it, and orders them. A wanted module that is not there is
/// left out; what a module needs must be there, or be part of the kernel.
///
/// # Errors
/// When a needed module is missing, modules need each other in a circle, or there are too many; and those of `fetch`.
pub(super) fn resolve(
    modules: &mut Modules,
    lists: &Lists,
    mut fetch: impl FnMut(&BTreeSet<String>) -> Result<Modules, KernelError>,
) -> Result<Order, KernelError> {
    let mut asked: BTreeSet<String> = BTreeSet::new();
    for round in 0.. {
        let reached = reach(modules, lists);
        let missing: BTreeSet<String> = reached
            .into_iter()
            .filter(|name| !modules.contains_key(name) && lists.is_builtin(name) != Some(true))
            .filter(|name| asked.insert(name.clone()))
            .collect();
        if missing.is_empty() {
            break;
        }
        if round == MOST_ROUNDS {
            let problem =
                format!("they need each other more than {MOST_ROUNDS} deep, and no modules.dep lists them");
            return Err(KernelError::malformed("the kernel's modules", problem));
        }
        modules.extend(fetch(&missing)?);
        let bytes: usize = modules.values().map(|module| module.content.len()).sum();
        if modules.len() > MAX_COUNT || bytes as u64 > MAX_MODULES {
            let problem = format!("more than {MAX_COUNT} modules or {} MiB are needed", MAX_MODULES >> 20);
            return Err(KernelError::malformed("the kernel's modules", problem));
        }
    }
    let mut walk =
        Walk { modules, lists, done: BTreeSet::new(), path: Vec::new(), order: Vec::new(), wishes: 0 };
    let for_root = walk.all(&FOR_ROOT)?;
    let later = walk.all(&LATER)?;
    let needed = walk.done;
    modules.retain(|name, _| needed.contains(name));
    Ok(Order { for_root, later })
}

/// The names that are wanted or needed, as far as the modules at hand say.
fn reach(modules: &Modules, lists: &Lists) -> BTreeSet<String> {
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<String> = FOR_ROOT.iter().chain(&LATER).map(|name| (*name).to_owned()).collect();
    while let Some(name) = open.pop() {
        if let Some(module) = modules.get(&name)
            && !reached.contains(&name)
        {
            open.extend(needs(&name, module, lists));
            open.extend(soft(&name, module, lists).flat_map(|word| candidates(word, lists)));
        }
        reached.insert(name);
    }
    reached
}

/// What a module cannot load without, without what is part of the kernel.
fn needs(name: &str, module: &Module, lists: &Lists) -> Vec<String> {
    let listed = lists.dep.as_ref().and_then(|dep| dep.get(name)).map(|found| &found.needs);
    let needs = listed.unwrap_or(&module.info.depends);
    needs.iter().filter(|name| lists.is_builtin(name) != Some(true)).cloned().collect()
}

fn soft<'a>(name: &str, module: &'a Module, lists: &'a Lists) -> impl Iterator<Item = &'a String> {
    module.info.softdeps.iter().chain(lists.softdeps(name))
}

/// The modules that a word of a soft dependency can mean, the best first. None when the kernel itself has it.
fn candidates(word: &str, lists: &Lists) -> Vec<String> {
    let name = module_name(word);
    if lists.is_builtin(&name) == Some(true) {
        return Vec::new();
    }
    // Algorithms of the kernel's crypto are asked for by `crypto-NAME`; the plain implementation is NAME_generic. Only
    // depmod, which has not run on packages, writes that down.
    let algorithm = name.strip_prefix("crypto_").unwrap_or(&name);
    let generic = [algorithm.to_owned(), format!("{algorithm}_generic")];
    let mut names: Vec<String> = lists.meant_by(word).collect();
    names.extend(generic.into_iter().filter(|name| lists.is_builtin(name) != Some(true)));
    names
}

struct Walk<'a> {
    modules: &'a Modules,
    lists: &'a Lists,
    done: BTreeSet<String>,
    /// From a wanted module down to the one at hand.
    path: Vec<String>,
    order: Vec<String>,
    /// How many were tried.
    wishes: usize,
}

impl Walk<'_> {
    fn all(&mut self, wanted: &[&str]) -> Result<Vec<String>, KernelError> {
        for name in wanted.iter().filter(|name| self.modules.contains_key(**name)) {
            self.visit(name)?;
        }
        Ok(std::mem::take(&mut self.order))
    }

    /// As deep as there are modules, of which there are at most [`MAX_COUNT`].
    fn visit(&mut self, name: &str) -> Result<(), KernelError> {
        if self.done.contains(name) {
            return Ok(());
        }
        if let Some(at) = self.path.iter().position(|above| above == name) {
            let circle = self.path[at..].join(" needs ");
            return Err(KernelError::malformed(
                "the kernel's modules",
                format!("{circle} needs {name}: a circle"),
            ));
        }
        let Some(module) = self.modules.get(name) else {
            let by = self.path.last().map_or("the kernel", String::as_str);
            return Err(KernelError::malformed(
                "the kernel's modules",
                format!("{by} needs the module {name}, which is not there"),
            ));
        };
        self.path.push(name.to_owned());
        for needed in needs(name, module, self.lists) {
            self.visit(&needed)?;
        }
        for word in soft(name, module, self.lists) {
            let there = candidates(word, self.lists).into_iter().find(|name| self.modules.contains_key(name));
            // A wish that leads back is no reason to refuse.
            if let Some(there) = there.filter(|there| !self.path.contains(there)) {
                self.visit_soft(&there);
            }
        }
        self.path.pop();
        self.done.insert(name.to_owned());
        self.order.push(name.to_owned());
        Ok(())
    }

    /// A module that may as well be missing, with all that it needs or not at all.
    fn visit_soft(&mut self, name: &str) {
        if self.done.contains(name) || self.wishes == MOST_WISHES {
            return;
        }
        self.wishes += 1;
        let (done, path, order) = (self.done.clone(), self.path.clone(), self.order.len());
        if self.visit(name).is_err() {
            (self.done, self.path) = (done, path);
            self.order.truncate(order);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::kernel::modinfo::ModuleInfo;

    fn module(depends: &[&str], softdeps: &[&str]) -> Module {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let info = ModuleInfo { depends: own(depends), softdeps: own(softdeps), ..ModuleInfo::default() };
        Module { path: String::new(), content: vec![0; 10], info }
    }

    /// Resolves against a tree of modules, all of which have to be fetched.
    fn check(tree: &[(&str, &[&str], &[&str])], lists: &Lists) -> Result<(Order, Modules), KernelError> {
        let tree: BTreeMap<String, Module> =
            tree.iter().map(|(name, depends, soft)| ((*name).to_owned(), module(depends, soft))).collect();
        let mut modules = Modules::new();
        let fetch = |names: &BTreeSet<String>| {
            Ok(names.iter().filter_map(|name| Some((name.clone(), tree.get(name)?.clone()))).collect())
        };
        let order = resolve(&mut modules, lists, fetch)?;
        Ok((order, modules))
    }

    const DEBIAN: [(&str, &[&str], &[&str]); 8] = [
        ("virtio_ring", &[], &[]),
        ("virtio", &["virtio_ring"], &[]),
        ("virtio_mmio", &["virtio", "virtio_ring"], &[]),
        ("virtio_blk", &["virtio", "virtio_ring"], &[]),
        ("virtio_net", &["net_failover", "virtio"], &[]),
        ("net_failover", &["failover"], &[]),
        ("failover", &[], &[]),
        ("unrelated", &["virtio"], &[]),
    ];

    #[test]
    fn what_is_needed_comes_first_once_and_alone() {
        let (order, modules) = check(&DEBIAN, &Lists::default()).unwrap();
        assert_eq!(order.for_root, ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk"]);
        assert_eq!(order.later, ["failover", "net_failover", "virtio_net"]);
        assert_eq!(modules.len(), 7);
    }

    #[test]
    fn the_dependency_file_counts_where_there_is_one() {
        let mut lists = Lists::default();
        lists.add("modules.dep", b"a/virtio_mmio.ko: a/second.ko a/first.ko\n").unwrap();
        let tree: [(&str, &[&str], &[&str]); 3] =
            [("virtio_mmio", &["other"], &[]), ("first", &[], &[]), ("second", &[], &[])];
        assert_eq!(check(&tree, &lists).unwrap().0.for_root, ["first", "second", "virtio_mmio"]);
    }

    #[test]
    fn a_missing_module_is_named_unless_it_is_part_of_the_kernel() {
        let tree: [(&str, &[&str], &[&str]); 1] = [("virtio_blk", &["virtio"], &[])];
        let error = check(&tree, &Lists::default()).unwrap_err().to_string();
        assert_eq!(error, "the kernel's modules: virtio_blk needs the module virtio, which is not there");
        let mut lists = Lists::default();
        lists.add("modules.builtin", b"kernel/drivers/virtio/virtio.ko\n").unwrap();
        assert_eq!(check(&tree, &lists).unwrap().0.for_root, ["virtio_blk"]);
    }

    #[test]
    fn a_circle_is_told() {
        let tree: [(&str, &[&str], &[&str]); 3] =
            [("virtio_blk", &["a"], &[]), ("a", &["b"], &[]), ("b", &["a"], &[])];
        let error = check(&tree, &Lists::default()).unwrap_err().to_string();
        assert_eq!(error, "the kernel's modules: a needs b needs a: a circle");
    }

    #[test]
    fn wishes_are_met_where_they_can_be() {
        let tree: [(&str, &[&str], &[&str]); 4] = [
            ("ext4", &["jbd2"], &["crypto-crc32c", "nothing", "broken"]),
            ("jbd2", &[], &["ext4"]),
            ("crc32c_generic", &[], &[]),
            ("broken", &["missing"], &[]),
        ];
        assert_eq!(check(&tree, &Lists::default()).unwrap().0.for_root, ["jbd2", "crc32c_generic", "ext4"]);
        let mut lists = Lists::default();
        lists.add("modules.builtin", b"kernel/crypto/crc32c_generic.ko\n").unwrap();
        lists.add("modules.builtin.modinfo", b"crc32c_generic.alias=crypto-crc32c\0").unwrap();
        assert_eq!(check(&tree, &lists).unwrap().0.for_root, ["jbd2", "ext4"]);
    }

    /// Without a bound, each level would double the work.
    #[test]
    fn nested_wishes_that_cannot_be_met_come_to_an_end() {
        let names: Vec<[String; 3]> =
            (0..40).map(|level| ["y", "a", "b"].map(|kind| format!("{kind}{level}"))).collect();
        let mut modules = Modules::new();
        modules.insert("ext4".into(), module(&["y0"], &[]));
        for (at, [y, a, b]) in names.iter().enumerate() {
            modules.insert(y.clone(), module(&[], &[a, b]));
            let next = names.get(at + 1).map_or("missing", |[y, ..]| y);
            for wish in [a, b] {
                modules.insert(wish.clone(), module(&[next, "missing"], &[]));
            }
        }
        let order = resolve(&mut modules, &Lists::default(), |_| Ok(Modules::new())).unwrap();
        assert_eq!(order.for_root, ["y0", "ext4"]);
    }

    #[test]
    fn a_chain_that_is_met_link_by_link_is_not_followed_for_ever() {
        let mut modules = Modules::new();
        let (mut rounds, mut last) = (0, "ext4".to_owned());
        let error = resolve(&mut modules, &Lists::default(), |_| {
            rounds += 1;
            let next = format!("m{rounds}");
            let link = module(&[&next], &[]);
            Ok([(std::mem::replace(&mut last, next), link)].into())
        });
        assert!(error.unwrap_err().to_string().contains("deep"));
        assert_eq!(rounds, MOST_ROUNDS);
    }

    proptest! {
        #[test]
        fn whatever_the_graph_each_comes_after_its_needs(
            edges in prop::collection::vec((0usize..12, 0usize..12), 0..40),
            wishes in prop::collection::vec((0usize..12, 0usize..12), 0..10),
        ) {
            const NAMES: [&str; 12] =
                ["virtio_blk", "ext4", "overlay", "virtio_net", "a", "b", "c", "d", "e", "f", "g", "h"];
            let tree: BTreeMap<String, Module> = NAMES.iter().enumerate().map(|(number, name)| {
                let of = |pairs: &[(usize, usize)]| -> Vec<&str> {
                    pairs.iter().filter(|(from, _)| *from == number).map(|(_, to)| NAMES[*to]).collect()
                };
                ((*name).to_owned(), module(&of(&edges), &of(&wishes)))
            }).collect();
            let mut modules = Modules::new();
            let fetch = |names: &BTreeSet<String>| {
                Ok(names.iter().filter_map(|name| Some((name.clone(), tree.get(name)?.clone()))).collect())
            };
            if let Ok(order) = resolve(&mut modules, &Lists::default(), fetch) {
                let all = [order.for_root, order.later].concat();
                prop_assert_eq!(all.len(), modules.len());
                for (at, name) in all.iter().enumerate() {
                    for needed in &modules[name].info.depends {
                        let place = all.iter().position(|other| other == needed);
                        prop_assert!(place.is_some_and(|place| place < at), "{} needs {}: {:?}", name, needed, all);
                    }
                }
            }
        }
    }
}
