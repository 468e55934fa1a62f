//! Debian's kernels for virtual machines, imported from their packages, boot an image by the command line that smartvm
//! plans.

#[path = "linux_boot/guest.rs"]
#[expect(dead_code, reason = "the other tests use more of it")]
mod guest;

use std::path::PathBuf;

use guest::{Boot, Bundle, exit, fsck};
use smartvm_guest_api::boot::Step;
use smartvm_images::kernel::{self, Import};
use smartvm_images::{Progress, Store};
use smartvm_lab::guest::Assets;

/// Imports the package and boots: the image's own shell with a disk for its writes, then a failure.
async fn boots(package: PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("store")).expect("a store");
    let kernel = kernel::import(&store, Import::paths([package]), &Progress::none()).await.expect("a bundle");
    let file = |digest| store.blob(digest).expect("a file of the bundle");
    let bundle = Bundle { vmlinux: file(&kernel.vmlinux), initramfs: file(&kernel.initramfs) };

    let mut boot = Boot::image(
        "echo kernel:$(cat /proc/sys/kernel/osrelease); cat /proc/modules; echo x >/etc/x; exit 7",
    );
    boot = boot.with_own_disk();
    boot.bundle = Some(bundle);
    let (console, report) = boot.to_its_end();
    assert_eq!(report, exit(7), "{console}");
    assert!(console.contains(&format!("kernel:{}", kernel.release)), "{console}");
    for module in &kernel.modules {
        assert!(console.contains(&format!("{module} ")), "module {module} is not loaded:\n{console}");
    }
    fsck(boot.drive(1)).expect("a clean disk");

    boot.orders.process.argv = vec!["nosuch".into()];
    boot.fails(Step::Exec);
}

#[tokio::test]
async fn the_stable_kernel_boots_from_its_package() {
    boots(Assets::from_env().expect("a Linux guest").stable).await;
}

#[tokio::test]
async fn the_backported_kernel_boots_from_its_package() {
    boots(Assets::from_env().expect("a Linux guest").backports).await;
}
