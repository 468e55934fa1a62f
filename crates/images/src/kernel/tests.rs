use std::fs;
use std::path::Path;

use cpio::newc;
use smartvm_core::explain::{Code, Explain as _};

use super::compression::Compression;
use super::pack::{bzimage, compress, deb, kernel, module, payload, tar};
use super::*;

const RELEASE: &str = "6.1.0-t";
const GUEST: &[u8] = b"#!/init of the guest";

struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    fn write(&self, path: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn import(&self, import: Import) -> Result<Kernel, KernelError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(import_with(&self.store, import, GUEST, &Progress::none()))
    }

    fn paths<const N: usize>(&self, paths: [&Path; N]) -> Result<Kernel, KernelError> {
        self.import(Import::paths(paths.map(Path::to_owned)))
    }

    fn blob(&self, digest: &Digest) -> Vec<u8> {
        fs::read(self.store.blob(digest).unwrap()).unwrap()
    }

    /// Paths and contents of an initramfs.
    fn unpacked(&self, kernel: &Kernel) -> Vec<(String, u32, Vec<u8>)> {
        let archive = self.blob(&kernel.initramfs);
        let mut rest = archive.as_slice();
        let mut files = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return files;
            }
            let (path, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            std::io::copy(&mut reader, &mut content).unwrap();
            rest = reader.finish().unwrap();
            files.push((path, mode, content));
        }
    }
}

const TREE: &str = "lib/modules/6.1.0-t";

/// A kernel package as Debian makes it: depmod has not run.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let xz = |name, depends| compress(Compression::Xz, &module(name, depends, RELEASE));
    vec![
        ("boot/System.map-6.1.0-t", b"0 A a".to_vec()),
        (
            "boot/config-6.1.0-t",
            b"CONFIG_ACPI=y\nCONFIG_VIRTIO_BLK=m\nCONFIG_PTP_1588_CLOCK_KVM=m\n".to_vec(),
        ),
        ("boot/vmlinuz-6.1.0-t", bzimage(&payload(Compression::Lz4, &kernel(RELEASE)))),
        ("lib/modules/6.1.0-t/kernel/a/unusual.ko", module("unusual", "", RELEASE)),
        ("lib/modules/6.1.0-t/kernel/b/virtio_blk.ko.xz", xz("virtio_blk", "virtio,unusual")),
        ("lib/modules/6.1.0-t/kernel/b/virtio-rng.ko.xz", xz("virtio_rng", "virtio")),
        (
            "lib/modules/6.1.0-t/kernel/b/virtio.ko.zst",
            compress(Compression::Zstd, &module("virtio", "virtio_ring", RELEASE)),
        ),
        (
            "lib/modules/6.1.0-t/kernel/b/virtio_ring.ko.gz",
            compress(Compression::Gzip, &module("virtio_ring", "", RELEASE)),
        ),
        ("lib/modules/6.1.0-t/kernel/c/needless.ko", module("needless", "", RELEASE)),
        ("lib/modules/6.1.0-t/modules.builtin", b"kernel/fs/ext4/ext4.ko\n".to_vec()),
        (
            "usr/share/doc/a-very-long-name-a-very-long-name-a-very-long-name-a-very-long-name-a-very-long-name-a",
            vec![],
        ),
    ]
}

const MODULES: [&str; 5] = ["unusual", "virtio_ring", "virtio", "virtio_blk", "virtio_rng"];

fn package(member: &str, compression: Option<Compression>, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let data = tar(files);
    deb(member, &compression.map_or(data.clone(), |compression| compress(compression, &data)))
}

#[test]
fn a_package_becomes_a_bundle() {
    let place = Place::new();
    let package = place.write("linux.deb", &package("data.tar.xz", Some(Compression::Xz), &files()));
    let kernel = place.paths([&package]).unwrap();
    assert_eq!((kernel.name.as_str(), kernel.release.as_str()), (RELEASE, RELEASE));
    assert_eq!(kernel.version, "6.1.0-t (test@here) #1 SMP");
    assert_eq!(kernel.compressed_by.as_deref(), Some("lz4"));
    assert!(place.blob(&kernel.vmlinux) == pack::kernel(RELEASE));
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    assert_eq!(sorted(&kernel.modules), sorted(&MODULES.map(str::to_owned)));
    assert_eq!(kernel.facts["virtio-blk"], Presence::Module);
    assert_eq!(kernel.facts["acpi"], Presence::BuiltIn);
    assert_eq!(kernel.facts["ptp-kvm"], Presence::LeftOut);
    assert_eq!(kernel.facts["overlayfs"], Presence::Absent);
    assert!(kernel.consequences().iter().any(|text| text.starts_with("An image cannot be shared")));

    let files = place.unpacked(&kernel);
    let file = |path: &str| {
        let found = files.iter().find(|(name, ..)| name == path);
        found.map(|(_, mode, content)| (*mode, content.as_slice())).unwrap_or_else(|| panic!("no {path}"))
    };
    assert_eq!(file("init"), (0o100_755, GUEST));
    assert_eq!(file("dev/console").0, 0o020_600);
    assert_eq!(file("dev/null").0, 0o020_600);
    let list = |path: &str| String::from_utf8(file(path).1.to_vec()).unwrap();
    assert!(list("etc/smartvm/modules").ends_with("/lib/modules/virtio_blk.ko\n"));
    assert_eq!(list("etc/smartvm/modules-later"), "/lib/modules/virtio_rng.ko\n");
    for name in MODULES {
        assert!(
            file(&format!("lib/modules/{name}.ko")).1.starts_with(b"\x7fELF"),
            "{name} is not compressed"
        );
    }
    assert!(!files.iter().any(|(path, ..)| path.contains("needless")));
    assert_eq!(default(&place.store).unwrap(), kernel, "the first one is the default");
}

#[test]
fn equal_input_gives_equal_bytes_however_it_is_packed() {
    let mut bundles = Vec::new();
    let kinds = [
        ("data.tar", None),
        ("data.tar.gz", Some(Compression::Gzip)),
        ("data.tar.xz", Some(Compression::Xz)),
        ("data.tar.zst", Some(Compression::Zstd)),
        ("data.tar.bz2", Some(Compression::Bzip2)),
    ];
    for (member, compression) in kinds {
        let place = Place::new();
        let package = place.write(member, &package(member, compression, &files()));
        bundles.push(place.paths([&package]).unwrap());
    }
    let place = Place::new();
    for (path, content) in files() {
        place.write(path, &content);
    }
    bundles.push(place.paths([place.dir.path()]).unwrap());
    bundles.push(place.paths([&place.dir.path().join("boot/vmlinuz-6.1.0-t")]).unwrap());
    bundles.push(place.paths([&place.dir.path().join("boot"), &place.dir.path().join(TREE)]).unwrap());
    for bundle in &bundles[1..] {
        assert_eq!(bundle, &bundles[0]);
    }
}

#[test]
fn several_packages_make_one_kernel() {
    let place = Place::new();
    let (boot, tree): (Vec<_>, Vec<_>) = files().into_iter().partition(|(path, _)| path.starts_with("boot"));
    let image = place.write("image.deb", &package("data.tar.gz", Some(Compression::Gzip), &boot));
    let modules = place.write("modules.deb", &package("data.tar.zst", Some(Compression::Zstd), &tree));
    let whole = place.write("whole.deb", &package("data.tar", None, &files()));
    let kernel = place.paths([&image, &modules]).unwrap();
    assert_eq!(kernel, place.paths([&whole]).unwrap());
    assert_eq!(kernel, place.paths([&modules, &image]).unwrap());
    let error = place.paths([&modules]).unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Code::InvalidKernel, "there is no kernel in what was given")
    );
    let error = place.paths([&whole, &image]).unwrap_err();
    assert!(error.to_string().starts_with("there are two kernels"), "{error}");
}

#[test]
fn a_kernel_without_modules_needs_none() {
    let place = Place::new();
    let plain = kernel(RELEASE);
    let vmlinux = place.write("vmlinux", &plain);
    let kernel = place.paths([&vmlinux]).unwrap();
    assert_eq!((kernel.modules.len(), kernel.config_known), (0, false));
    assert_eq!(kernel.consequences(), [NOTHING_KNOWN]);
    for compression in [Compression::Xz, Compression::Zstd] {
        let packed = place.write("packed", &compress(compression, &plain));
        assert_eq!(place.paths([&packed]).unwrap().vmlinux, kernel.vmlinux);
    }
}

#[test]
fn one_kernel_of_several_has_to_be_named() {
    let place = Place::new();
    for release in ["6.1.0-t", "6.9"] {
        place.write(&format!("boot/vmlinuz-{release}"), &kernel(release));
    }
    let error = place.paths([place.dir.path()]).unwrap_err();
    assert_eq!(error.hint().unwrap(), "Say which release: 6.1.0-t, 6.9.");
    let import = |release: &str| Import {
        release: Some(release.into()),
        ..Import::paths([place.dir.path().to_owned()])
    };
    assert_eq!(place.import(import("6.9")).unwrap().release, "6.9");
    assert_eq!(place.import(import("7")).unwrap_err().hint().unwrap(), "There are: 6.1.0-t, 6.9.");
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let place = Place::new();
    let mut files = files();
    files.push(("lib/modules/6.1.0-t/kernel/virtio_mmio.ko", module("virtio_mmio", "", "5.10")));
    let package = place.write("linux.deb", &package("data.tar", None, &files));
    let error = place.paths([&package]).unwrap_err().to_string();
    assert!(
        error.ends_with("it is kernel 6.1.0-t, but its module kernel/virtio_mmio.ko is for 5.10"),
        "{error}"
    );
}

#[test]
fn a_failed_import_leaves_no_kernel() {
    let place = Place::new();
    let whole = package("data.tar.gz", Some(Compression::Gzip), &files());
    for length in [4, 30, 100, 200, whole.len() / 2, whole.len() - 20] {
        let package = place.write("cut.deb", &whole[..length]);
        let error = place.paths([&package]).unwrap_err();
        assert_eq!(error.code(), Code::InvalidKernel, "cut at {length}: {error}");
    }
    let missing: Vec<_> = files().into_iter().filter(|(path, _)| !path.contains("virtio_ring")).collect();
    let package = place.write("missing.deb", &package("data.tar", None, &missing));
    let error = place.paths([&package]).unwrap_err().to_string();
    assert!(error.contains("virtio needs the module virtio_ring, which is not there"), "{error}");
    for (name, content) in [("text", &b"hello"[..]), ("empty", b""), ("disk", &[0; 5000])] {
        let error = place.paths([&place.write(name, content)]).unwrap_err();
        assert_eq!(error.code(), Code::InvalidKernel, "{name}: {error}");
    }
    let error = place.paths([Path::new("/no/such/file")]).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(list(&place.store).unwrap().is_empty());
    assert!(matches!(default(&place.store), Err(KernelError::NoDefault)));
}

#[test]
fn kernels_are_named_chosen_and_removed() {
    let place = Place::new();
    let import = |name: &str, release: &str| {
        let vmlinux = place.write(release, &kernel(release));
        place.import(Import { name: Some(name.into()), ..Import::paths([vmlinux]) })
    };
    for bad in ["", "../x", "a b", "-a", &"a".repeat(101)] {
        assert!(matches!(import(bad, "1"), Err(KernelError::BadName(_))), "{bad}");
    }
    let first = import("first", "1").unwrap();
    import("second", "2").unwrap();
    assert_eq!(default(&place.store).unwrap().name, "first");
    set_default(&place.store, "second").unwrap();
    assert_eq!(default(&place.store).unwrap().name, "second");
    assert!(matches!(set_default(&place.store, "third"), Err(KernelError::NotFound(_))));

    let machine = place.store.use_blobs("web", &[first.vmlinux]).unwrap();
    let error = remove(&place.store, "first").unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Code::InUse, "kernel \"first\" is in use by the machine `web`")
    );
    drop(machine);
    place.store.pin("snapshot", "a test", &[first.initramfs]).unwrap();
    remove(&place.store, "first").expect("the other kernel has the same initramfs");
    let error = remove(&place.store, "second").unwrap_err();
    assert_eq!(error.code(), Code::InUse);
    place.store.unpin("snapshot").unwrap();
    remove(&place.store, "second").unwrap();
    assert!(matches!(remove(&place.store, "second"), Err(KernelError::NotFound(_))));
    assert!(matches!(default(&place.store), Err(KernelError::NoDefault)));
}

#[test]
fn a_kernel_of_another_smartvm_gets_our_guest_init() {
    const NEW: &[u8] = b"#!/another init of the guest";
    let place = Place::new();
    let package = place.write("linux.deb", &package("data.tar", None, &files()));
    let old = place.paths([&package]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let new = runtime.block_on(with_guest(&place.store, old.clone(), NEW)).unwrap();
    assert_ne!(new, old);
    assert_eq!(inspect(&place.store, &old.name).unwrap(), new);
    let import = Import::paths([package]);
    let imported = runtime.block_on(import_with(&place.store, import, NEW, &Progress::none())).unwrap();
    assert_eq!(new, imported, "as if it had been imported by the new one");

    let ours = runtime.block_on(current(&place.store, new)).unwrap();
    assert_eq!(ours.guest, Digest::of(smartvm_guest_binary::GUEST));
    assert_eq!(runtime.block_on(current(&place.store, ours.clone())).unwrap(), ours);
    let path = place.store.blob(&ours.initramfs).unwrap();
    fs::remove_file(&path).unwrap();
    let error = runtime.block_on(with_guest(&place.store, ours.clone(), NEW)).unwrap_err();
    assert_eq!(error.code(), Code::Store);
    fs::write(&path, &NEW[..20]).unwrap();
    let error = runtime.block_on(with_guest(&place.store, ours, NEW)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidKernel);
}

/// Who asked with what it had read before must not bring back what was removed or replaced meanwhile.
#[test]
fn a_new_guest_init_undoes_no_import_and_no_removal() {
    const NEW: &[u8] = b"the guest init of a newer smartvm";
    let place = Place::new();
    let package = place.write("linux.deb", &package("data.tar", None, &files()));
    let old = place.paths([&package]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let renew = |kernel: &Kernel| runtime.block_on(with_guest(&place.store, kernel.clone(), NEW)).unwrap();

    let first = renew(&old);
    assert_eq!(renew(&old), first, "done already");
    let other = Kernel { version: "another".into(), modules: Vec::new(), ..old.clone() };
    place.store.put(Kind::Kernel, &other.name, &other, &other.blobs()).unwrap();
    assert_eq!(renew(&old), first);
    assert_eq!(inspect(&place.store, &old.name).unwrap(), other);
    remove(&place.store, &old.name).unwrap();
    assert_eq!(renew(&old), first);
    assert!(list(&place.store).unwrap().is_empty());
}

#[test]
fn the_default_stays_when_the_base_that_it_came_in_is_evicted() {
    let place = Place::new();
    let import = |name: &str| {
        let vmlinux = place.write("vmlinux", &smartvm_core::bare_metal::Guest::ByteThenReset.elf());
        place.import(Import { name: Some(name.into()), ..Import::paths([vmlinux]) }).unwrap();
        let keeps = [RecordId::new(Kind::Kernel, name)];
        place.store.put_keeping(Kind::Base, name, &0, &[], &keeps).unwrap();
    };
    import("first");
    import("second");
    let options = crate::store::GcOptions { keep_bases: 0, ..Default::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let report = runtime.block_on(place.store.anew().gc(&options, &Progress::none())).unwrap();
    let gone = [RecordId::new(Kind::Kernel, "second"), RecordId::new(Kind::Base, "first")];
    assert_eq!(report.evicted, [&gone[..], &[RecordId::new(Kind::Base, "second")]].concat());
    assert_eq!(default(&place.store).unwrap().name, "first");
}
