//! A Linux guest for Firecracker: Debian's kernel and an initramfs with our init.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, Key};
use crate::cpio::Archive;
use crate::debian::Parts;
use crate::fault::{AtPath, Fault, Result};
use crate::{modules, workspace};

/// Where an initramfs of ours keeps its modules, in the order of their names.
pub const MODULES: &str = "/lab-modules";

/// Fastest to the init of Debian's cloud kernel under emulation; also right on real hardware. No `nomodule`:
/// the virtio drivers are modules.
pub const BOOT_ARGS: &str = "console=ttyS0 reboot=k panic=1 quiet i8042.noaux i8042.nomux i8042.dumbkbd \
    8250.nr_uarts=1 pci=off tsc=reliable no_timer_check random.trust_cpu=on mitigations=off nokaslr \
    rcupdate.rcu_expedited=1 lpj=10000000 cryptomgr.notests audit=0 apparmor=0 lsm=";

/// The text that the guest's init prints first, followed by its uptime.
pub const REACHED: &str = "smartvm-lab-init: reached";

/// The drivers of Firecracker's devices.
const WANTED: [&str; 6] =
    ["virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "virtio_balloon", "virtio_rng"];

/// What a machine config of a Linux guest names. Add `lab.then=` to the boot arguments: `poweroff` (the
/// default), `idle`, `echo` or `shell`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// The kernel, an ELF file.
    pub vmlinux: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// Boot arguments.
    pub boot_args: String,
}

impl Assets {
    /// Those in the directory that `SMARTVM_LAB_GUEST_DIR` names: how tests find them.
    ///
    /// # Errors
    /// When the variable is not set or the files are not there.
    pub fn from_env() -> Result<Self> {
        let dir = std::env::var_os("SMARTVM_LAB_GUEST_DIR").map(PathBuf::from).ok_or_else(|| {
            Fault::new("SMARTVM_LAB_GUEST_DIR is not set")
                .with_hint("run this test by `cargo xtask test`, which knows where a KVM can run it")
        })?;
        let assets = Self {
            vmlinux: dir.join("vmlinux"),
            initrd: dir.join("initrd"),
            boot_args: BOOT_ARGS.to_owned(),
        };
        for file in [&assets.vmlinux, &assets.initrd] {
            fs::metadata(file).at("cannot find", file)?;
        }
        Ok(assets)
    }

    /// A Firecracker config file that boots this guest on one vCPU with 128 MiB.
    pub fn config(&self, then: &str) -> serde_json::Value {
        serde_json::json!({
            "boot-source": {
                "kernel_image_path": self.vmlinux,
                "initrd_path": self.initrd,
                "boot_args": format!("{} lab.then={then}", self.boot_args),
            },
            "drives": [],
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
        })
    }
}

/// The guest's files, from the cache or built.
///
/// # Errors
/// When Debian's packages cannot be had, or the init cannot be built.
pub fn assets(cache: &Cache) -> Result<Assets> {
    let parts = Parts::fetch(cache)?;
    let programs = workspace::build_small("smartvm-lab", &["lab-init"])?;
    let init = &programs[0];
    let key = Key::of([Key::of_files(&[init])?.as_str(), parts.kernel(), "1"].map(str::as_bytes));
    let dir = cache.entry("guest", &key, 6, |dir| {
        initramfs(&dir.join("initrd"), init, &parts, &WANTED)?;
        // A hard link where it can be: both are in the cache.
        let vmlinux = dir.join("vmlinux");
        fs::hard_link(parts.vmlinux(), &vmlinux)
            .or_else(|_| fs::copy(parts.vmlinux(), &vmlinux).map(drop))
            .at("cannot make", &vmlinux)
    })?;
    Ok(Assets { vmlinux: dir.join("vmlinux"), initrd: dir.join("initrd"), boot_args: BOOT_ARGS.to_owned() })
}

/// Writes an initramfs: `/init`, busybox, and these modules with all that they need. Not compressed, so that
/// nothing has to be unpacked under emulation.
pub(crate) fn initramfs(to: &Path, init: &Path, parts: &Parts, wanted: &[&str]) -> Result<()> {
    let read = |path: &Path| fs::read(path).at("cannot read", path);
    let text = |name: &str| {
        let path = parts.modules().join(name);
        fs::read_to_string(&path).at("cannot read", &path)
    };
    let order = modules::load_order(&text("modules.dep")?, &text("modules.builtin")?, wanted)
        .map_err(|error| Fault::because("cannot make an initramfs", error))?;
    let write = || -> Result<()> {
        let file = File::create(to).at("cannot create", to)?;
        let mut archive = Archive::new(BufWriter::new(file));
        for dir in ["/dev", "/proc", "/sys", "/bin", MODULES] {
            archive.directory(dir).at("cannot write", to)?;
        }
        archive.character_device("/dev/console", 5, 1).at("cannot write", to)?;
        archive.file("/init", 0o755, &read(init)?).at("cannot write", to)?;
        archive.file("/bin/busybox", 0o755, &read(&parts.busybox())?).at("cannot write", to)?;
        for (number, path) in order.iter().enumerate() {
            if !path.ends_with(".ko") {
                return Err(Fault::new(format!("module {path} is compressed, which is not read here")));
            }
            let name = format!("{MODULES}/{number:02}-{}.ko", modules::name(path));
            archive.file(&name, 0o644, &read(&parts.modules().join(path))?).at("cannot write", to)?;
        }
        archive.finish().at("cannot write", to)?;
        Ok(())
    };
    write()
}
