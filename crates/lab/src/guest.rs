//! A Linux guest for Firecracker: Debian's kernel and an initramfs with our init.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Key, remove, run_to_end};
use crate::debian::{KernelSeries, Parts, kernel_package};
use crate::fault::{AtPath, Fault, Result};
use crate::registry::{Registry, RegistryOptions, minbase_layout};
use crate::{modules, workspace};
use smartvm_core::initramfs::Archive;

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
    /// A folder with the kernel's modules for Firecracker's devices, overlayfs and squashfs as `NN-name.ko`: in the
    /// order of their names they can be loaded.
    pub modules: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
    /// A root file system with that busybox and its `sh`, as squashfs.
    pub squashfs: PathBuf,
    /// Debian's packages of its stable kernel, which is that of `vmlinux`, and of the one in backports.
    pub stable: PathBuf,
    /// See `stable`.
    pub backports: PathBuf,
    /// A folder with Debian's `docker-registry`, and its storage with the image `debian:minbase`: see
    /// [`Assets::serve_images`].
    pub registry: PathBuf,
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
        let assets = Self::within(&dir);
        for file in assets.files() {
            fs::metadata(file).at("cannot find", file)?;
        }
        Ok(assets)
    }

    /// Those in this directory, be they there or not.
    pub fn within(dir: &Path) -> Self {
        Self {
            vmlinux: dir.join("vmlinux"),
            initrd: dir.join("initrd"),
            boot_args: BOOT_ARGS.to_owned(),
            modules: dir.join("modules"),
            busybox: dir.join("busybox"),
            squashfs: dir.join("busybox.squashfs"),
            stable: dir.join("stable.deb"),
            backports: dir.join("backports.deb"),
            registry: dir.join("registry"),
        }
    }

    /// All that is in the directory.
    pub(crate) fn files(&self) -> [&Path; 8] {
        let Self { vmlinux, initrd, boot_args: _, modules, busybox, squashfs, stable, backports, registry } =
            self;
        [vmlinux, initrd, modules, busybox, squashfs, stable, backports, registry].map(PathBuf::as_path)
    }

    /// Starts Debian's registry on loopback, with the image `debian:minbase` in it. `dir` is for its files.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn serve_images(&self, dir: &Path) -> Result<Registry> {
        let storage = dir.join("storage");
        std::os::unix::fs::symlink(self.registry.join("storage"), &storage).at("cannot make", &storage)?;
        let program = Some(self.registry.join("docker-registry"));
        Registry::start(dir, RegistryOptions { program, ..RegistryOptions::default() })
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
    let packages = [KernelSeries::Stable, KernelSeries::Backports]
        .map(|series| kernel_package(cache, series))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let files: Vec<&Path> = packages.iter().chain([init]).map(PathBuf::as_path).collect();
    let layout = minbase_layout(cache)?;
    let image = layout.join("index.json");
    let image = Key::of_files(&[&image])?;
    let key =
        Key::of([Key::of_files(&files)?.as_str(), parts.kernel(), image.as_str(), "4"].map(str::as_bytes));
    let dir = cache.entry("guest", &key, 6, |dir| {
        let assets = Assets::within(dir);
        initramfs(&assets.initrd, init, &parts, &WANTED)?;
        // Hard links where it can be: both are in the cache.
        let from = [parts.vmlinux(), parts.busybox()].into_iter().chain(packages);
        for (from, to) in from.zip([&assets.vmlinux, &assets.busybox, &assets.stable, &assets.backports]) {
            fs::hard_link(&from, to).or_else(|_| fs::copy(&from, to).map(drop)).at("cannot make", to)?;
        }
        copy_modules(&parts, &assets.modules)?;
        copy_registry(&layout, &assets.registry)?;
        squashfs(&parts, &assets.squashfs)
    })?;
    Ok(Assets::within(&dir))
}

/// The registry's program, and a storage that the image was pushed to.
fn copy_registry(layout: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).at("cannot make", to)?;
    let mut registry = Registry::start(to, RegistryOptions::default())?;
    registry.push(layout, "debian:minbase")?;
    registry.kill();
    let copy = to.join("docker-registry");
    fs::copy("/usr/bin/docker-registry", &copy).at("cannot make", &copy).map(drop)
}

/// The modules that a machine with an image needs.
fn copy_modules(parts: &Parts, to: &Path) -> Result<()> {
    fs::create_dir(to).at("cannot make", to)?;
    let wanted = [&WANTED[..], &["overlay", "squashfs"]].concat();
    for (number, path) in load_order(parts, &wanted)?.iter().enumerate() {
        let copy = to.join(format!("{number:02}-{}.ko", modules::name(path)));
        fs::copy(parts.modules().join(path), &copy).at("cannot make", &copy)?;
    }
    Ok(())
}

fn squashfs(parts: &Parts, to: &Path) -> Result<()> {
    let tree = to.with_extension("tree");
    for name in ["bin", "dev", "proc", "sys", "run", "tmp"] {
        let path = tree.join(name);
        fs::create_dir_all(&path).at("cannot make", &path)?;
    }
    let busybox = tree.join("bin/busybox");
    fs::copy(parts.busybox(), &busybox).at("cannot make", &busybox)?;
    let sh = tree.join("bin/sh");
    std::os::unix::fs::symlink("busybox", &sh).at("cannot make", &sh)?;
    let mut mksquashfs = Command::new("mksquashfs");
    run_to_end(mksquashfs.arg(&tree).arg(to).args([
        "-quiet",
        "-no-progress",
        "-all-root",
        "-mkfs-time",
        "0",
    ]))?;
    remove(&tree)
}

/// The module files that `wanted` need, in order, relative to the kernel's module directory.
fn load_order(parts: &Parts, wanted: &[&str]) -> Result<Vec<String>> {
    let text = |name: &str| {
        let path = parts.modules().join(name);
        fs::read_to_string(&path).at("cannot read", &path)
    };
    modules::load_order(&text("modules.dep")?, &text("modules.builtin")?, wanted)
        .map_err(|error| Fault::because("cannot list a kernel's modules", error))
}

/// Writes an initramfs: `/init`, busybox, and these modules with all that they need. Not compressed, so that
/// nothing has to be unpacked under emulation.
pub(crate) fn initramfs(to: &Path, init: &Path, parts: &Parts, wanted: &[&str]) -> Result<()> {
    let read = |path: &Path| fs::read(path).at("cannot read", path);
    let order = load_order(parts, wanted)?;
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
