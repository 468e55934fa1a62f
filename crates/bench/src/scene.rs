//! A directory with what the bench's VMs boot from.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use smartvm_core::bare_metal::Guest;

/// Memory of a bench VM in MiB.
pub const MEM_SIZE_MIB: u32 = 128;

/// A temporary directory with a tiny kernel and a config file that boots it.
#[derive(Debug)]
pub struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// With this guest.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(guest: Guest<'_>) -> io::Result<Self> {
        let scene = Self { dir: tempfile::Builder::new().prefix("smartvm-bench-").tempdir()? };
        fs::write(scene.kernel(), guest.elf())?;
        let config = serde_json::json!({
            "boot-source": {"kernel_image_path": scene.kernel()},
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEM_SIZE_MIB},
            "drives": [],
        });
        fs::write(scene.config(), config.to_string())?;
        Ok(scene)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.path().join("kernel")
    }

    /// The config file.
    pub fn config(&self) -> PathBuf {
        self.path().join("vm.json")
    }

    /// A socket path of its own for VM number `n`.
    pub fn socket(&self, n: usize) -> PathBuf {
        self.path().join(format!("{n}.sock"))
    }

    /// Sockets that are still there.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn sockets_left(&self) -> io::Result<usize> {
        Ok(fs::read_dir(self.path())?
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "sock"))
            .count())
    }
}
