//! Writes a tiny bare-metal guest and the config file that boots it: a first machine without looking for a kernel.
//!
//!     cargo run -p smartvm-core --example tiny_guest -- /tmp/tiny
//!     smartvm run --config-file /tmp/tiny/vm.json

use std::error::Error;
use std::path::PathBuf;

use smartvm_core::bare_metal::Guest;

#[expect(clippy::disallowed_methods, reason = "only the crate itself does no I/O")]
fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: tiny_guest FOLDER")?);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("kernel"), Guest::Message("hello from the guest\n").elf())?;
    let config = r#"{
  "boot-source": { "kernel_image_path": "kernel", "boot_args": "" },
  "drives": [],
  "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 }
}
"#;
    let path = folder.join("vm.json");
    std::fs::write(&path, config)?;
    println!("{}", path.display());
    Ok(())
}
