//! Mounts in our folders.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::folders::bears_our_name;
use super::{Leak, Remedy};

/// Every mount point in a folder of ours, innermost first, so that they can be unmounted in order.
pub(super) fn leaks() -> Vec<Leak> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> = points(&mounts).filter(|point| bears_our_name(point)).collect();
    points.sort();
    let leak =
        |point: PathBuf| Leak { what: format!("mount {}", point.display()), remedy: Remedy::Unmount(point) };
    points.into_iter().rev().map(leak).collect()
}

/// The mount points in the text of `/proc/self/mountinfo`.
fn points(mounts: &str) -> impl Iterator<Item = PathBuf> {
    let escaped = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    escaped.map(|point| point.replace("\\040", " ").replace("\\134", "\\").into())
}

pub(super) fn unmount(point: &Path) -> io::Result<()> {
    let status = std::process::Command::new("umount").arg(point).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("umount: {status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let mounts =
            "22 28 0:21 / /sys rw,nosuid - sysfs sysfs rw\n30 28 0:30 / /tmp/a\\040b rw - tmpfs t rw\n";
        assert_eq!(points(mounts).collect::<Vec<_>>(), [PathBuf::from("/sys"), PathBuf::from("/tmp/a b")]);
    }
}
