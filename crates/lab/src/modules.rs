//! Kernel modules in the order in which they can be loaded one by one.

use std::collections::HashMap;

/// A module that was asked for and that neither `modules.dep` nor `modules.builtin` knows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this kernel has no module {0}")]
pub struct NoSuchModule(pub String);

/// The module files that `wanted` need, each after those that it depends on, none twice.
///
/// `dep` and `builtin` are the texts of a kernel's `modules.dep` and `modules.builtin`. Built-in ones are
/// left out. Names may use `-` or `_`. Answers paths relative to the kernel's module directory.
pub fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>, NoSuchModule> {
    let mut known = HashMap::new();
    for line in dep.lines() {
        if let Some((path, needs)) = line.split_once(':') {
            known.insert(name(path), (path, needs.split_whitespace().collect::<Vec<_>>()));
        }
    }
    let mut order = Vec::new();
    for wanted in wanted {
        let wanted = name(wanted);
        match known.get(&wanted) {
            Some((path, needs)) => {
                // modules.dep lists all of them, transitively; the last one must be loaded first.
                for path in needs.iter().rev().chain([path]) {
                    if !order.iter().any(|seen| seen == path) {
                        order.push((*path).to_owned());
                    }
                }
            }
            None if builtin.lines().any(|path| name(path) == wanted) => {}
            None => return Err(NoSuchModule(wanted)),
        }
    }
    Ok(order)
}

/// The kernel's name of the module in this file: `virtio-rng.ko.xz` is `virtio_rng`.
pub fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/drivers/char/hw_random/virtio-rng.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
";

    #[test]
    fn dependencies_come_first_and_once() {
        let order = load_order(DEP, "", &["virtio_net", "virtio_rng", "virtio"]).unwrap();
        let names: Vec<_> = order.iter().map(|path| name(path)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "failover", "net_failover", "virtio_net", "virtio_rng"]);
    }

    #[test]
    fn built_in_ones_need_no_file_and_unknown_ones_are_named() {
        assert_eq!(load_order(DEP, "kernel/fs/ext4/ext4.ko\n", &["ext4"]).unwrap(), Vec::<String>::new());
        assert_eq!(load_order(DEP, "", &["ext4"]), Err(NoSuchModule("ext4".into())));
    }
}
