//! Debian's kernels for virtual machines become bundles, straight from their packages.

#![expect(clippy::unwrap_used, reason = "what cannot be set up, or is not as claimed, fails the test")]

use std::fs;
use std::process::{Command, Stdio};

use smartvm_images::kernel::{self, Import, Kernel, Presence};
use smartvm_images::{Progress, Store};
use smartvm_lab::cache::Cache;
use smartvm_lab::debian::{KernelSeries, kernel_package};

struct Bundle {
    _dir: tempfile::TempDir,
    store: Store,
    kernel: Kernel,
}

async fn import(series: KernelSeries) -> Bundle {
    let package = kernel_package(&Cache::open(), series).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let kernel = kernel::import(&store, Import::paths([package]), &Progress::none()).await.unwrap();
    Bundle { _dir: dir, store, kernel }
}

impl Bundle {
    /// What another reader of such archives finds in the initramfs.
    fn listing(&self) -> Vec<String> {
        let archive = fs::File::open(self.store.blob(&self.kernel.initramfs).unwrap()).unwrap();
        let cpio =
            Command::new("cpio").args(["-t", "--quiet"]).stdin(archive).stderr(Stdio::inherit()).output();
        let output = cpio.expect("cpio is installed by `cargo xtask test`");
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    fn is_an_elf_file_of_its_size(&self) {
        let path = self.store.blob(&self.kernel.vmlinux).unwrap();
        let vmlinux = fs::read(path).unwrap();
        assert!(vmlinux.starts_with(b"\x7fELF"));
        assert_eq!(vmlinux.len() as u64, self.kernel.vmlinux_size);
        assert_eq!(smartvm_core::kernel_image::cut_off(&vmlinux[..4096], vmlinux.len() as u64), None);
    }
}

#[tokio::test]
async fn the_stable_kernel_is_lz4_and_nearly_all_modules() {
    let bundle = import(KernelSeries::Stable).await;
    let kernel = &bundle.kernel;
    assert!(
        kernel.release.starts_with("6.1.") && kernel.release.ends_with("-cloud-amd64"),
        "{}",
        kernel.release
    );
    assert!(
        kernel.version.starts_with(&kernel.release) && kernel.version.contains("Debian"),
        "{}",
        kernel.version
    );
    assert_eq!(kernel.compressed_by.as_deref(), Some("lz4"));
    bundle.is_an_elf_file_of_its_size();
    assert_eq!(
        kernel.modules,
        [
            "virtio_ring",
            "virtio",
            "virtio_mmio",
            "virtio_pci_modern_dev",
            "virtio_pci_legacy_dev",
            "virtio_pci",
            "virtio_blk",
            "overlay",
            "squashfs",
            "failover",
            "net_failover",
            "virtio_net",
            "vsock",
            "vmw_vsock_virtio_transport_common",
            "vmw_vsock_virtio_transport",
            "virtio_rng",
            "virtio_balloon",
        ]
    );
    let facts = &kernel.facts;
    for name in ["acpi", "ext4", "devtmpfs", "kvm-clock", "pci", "af-packet", "console"] {
        assert_eq!(facts[name], Presence::BuiltIn, "{name}");
    }
    for name in ["overlayfs", "vsock", "squashfs", "virtio-mmio", "virtio-blk"] {
        assert_eq!(facts[name], Presence::Module, "{name}");
    }
    assert_eq!((facts["vmgenid"], facts["ptp-kvm"]), (Presence::Absent, Presence::LeftOut));
    let consequences = kernel.consequences();
    assert!(consequences.iter().any(|text| text.starts_with("Clones of a snapshot are not told")));
    assert_eq!(consequences.len(), 2, "{consequences:?}");
    let listing = bundle.listing();
    for path in ["init", "dev/console", "dev/null", "etc/smartvm/modules", "lib/modules/virtio_blk.ko"] {
        assert!(listing.iter().any(|found| found == path), "{path} in {listing:?}");
    }
}

#[tokio::test]
async fn the_backported_kernel_is_zstd_with_compressed_modules() {
    let bundle = import(KernelSeries::Backports).await;
    let kernel = &bundle.kernel;
    assert!(kernel.release.starts_with("6.12."), "{}", kernel.release);
    assert_eq!(kernel.compressed_by.as_deref(), Some("zstd"));
    bundle.is_an_elf_file_of_its_size();
    assert_eq!(kernel.facts["vmgenid"], Presence::BuiltIn);
    assert_eq!(kernel.facts["virtio-pci"], Presence::BuiltIn);
    assert_eq!(kernel.facts["virtio-mmio"], Presence::Module);
    assert!(kernel.modules.iter().any(|name| name == "vmw_vsock_virtio_transport"));
    assert!(bundle.listing().iter().any(|path| path == "lib/modules/overlay.ko"));
}

#[tokio::test]
async fn the_same_package_gives_the_same_bytes() {
    let first = import(KernelSeries::Stable).await;
    let second = import(KernelSeries::Stable).await;
    assert_eq!(first.kernel, second.kernel);
}
