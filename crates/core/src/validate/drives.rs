//! The sections `drives` and `pmem`, and the guest's root among them.

use std::collections::HashMap;
use std::path::Path;

use super::Findings;
use super::devices::check_rate_limiter;
use crate::problem::ProblemCode;
use crate::spec::{Drive, MachineSpec};

pub(super) fn check_drives(spec: &MachineSpec, findings: &mut Findings) {
    let ids = spec.drives.iter().map(|drive| drive.drive_id.as_str());
    findings.ids(ids, "drives", "drive_id", ProblemCode::DuplicateDriveId);
    for (index, drive) in spec.drives.iter().enumerate() {
        let path = format!("drives[{index}]");
        check_backing(drive, &path, findings);
        if drive.partuuid.is_some() && !drive.is_root_device {
            findings.warning(
                ProblemCode::PartuuidWithoutRoot,
                format!("{path}.partuuid"),
                "the partition id is ignored on a drive that is not the root device",
                "Set is_root_device to true, or leave partuuid out.",
            );
        }
        check_rate_limiter(drive.rate_limiter.as_ref(), &format!("{path}.rate_limiter"), findings);
    }
    check_shared_files(spec, findings);
}

fn check_backing(drive: &Drive, path: &str, findings: &mut Findings) {
    match (&drive.path_on_host, &drive.socket) {
        (Some(file), None) => findings.path_given(file, &format!("{path}.path_on_host")),
        (None, Some(socket)) => {
            findings.path_given(socket, &format!("{path}.socket"));
            let given = [
                ("is_read_only", drive.is_read_only.is_some()),
                ("io_engine", drive.io_engine.is_some()),
                ("rate_limiter", drive.rate_limiter.is_some()),
            ];
            for (field, _given) in given.into_iter().filter(|(_, given)| *given) {
                findings.error(
                    ProblemCode::SocketDriveOption,
                    format!("{path}.{field}"),
                    format!("a vhost-user drive takes no {field}"),
                    "Leave it out: the backend behind the socket decides it.",
                );
            }
        }
        (Some(_), Some(_)) => findings.error(
            ProblemCode::DriveWithTwoBackings,
            format!("{path}.socket"),
            "the drive has both a path_on_host and a socket",
            "Keep path_on_host for a file or block device, or socket for a vhost-user backend.",
        ),
        (None, None) => findings.error(
            ProblemCode::DriveWithoutBacking,
            format!("{path}.path_on_host"),
            "the drive has neither a path_on_host nor a socket",
            "Give the file or block device in path_on_host.",
        ),
    }
}

/// One file under two writable devices: the guest's file systems would overwrite each other.
fn check_shared_files(spec: &MachineSpec, findings: &mut Findings) {
    let drives = spec.drives.iter().enumerate().filter_map(|(index, drive)| {
        let file = drive.path_on_host.as_deref()?;
        Some((format!("drives[{index}].path_on_host"), file, drive.is_read_only == Some(true)))
    });
    let pmem = spec.pmem.iter().enumerate().map(|(index, pmem)| {
        (format!("pmem[{index}].path_on_host"), pmem.path_on_host.as_path(), pmem.read_only)
    });
    let mut first_at: HashMap<&Path, (String, bool)> = HashMap::new();
    for (path, file, read_only) in drives.chain(pmem).filter(|(_, file, _)| !file.as_os_str().is_empty()) {
        if let Some((first, first_read_only)) = first_at.get(file) {
            if !(read_only && *first_read_only) {
                findings.warning(
                    ProblemCode::SharedWritableFile,
                    path,
                    format!("the guest may write to the same file through {first}"),
                    "Give each device its own copy, or make both read-only: two mounts of one file destroy it.",
                );
            }
        } else {
            first_at.insert(file, (path, read_only));
        }
    }
}

pub(super) fn check_pmem(spec: &MachineSpec, findings: &mut Findings) {
    let ids = spec.pmem.iter().map(|pmem| pmem.id.as_str());
    findings.ids(ids, "pmem", "id", ProblemCode::DuplicatePmemId);
    for (index, pmem) in spec.pmem.iter().enumerate() {
        findings.path_given(&pmem.path_on_host, &format!("pmem[{index}].path_on_host"));
        check_rate_limiter(pmem.rate_limiter.as_ref(), &format!("pmem[{index}].rate_limiter"), findings);
    }
}

pub(super) fn check_root(spec: &MachineSpec, findings: &mut Findings) {
    // Of two drives with one id the later replaces the earlier: that is told as a duplicate id.
    let drives = spec.drives.iter().enumerate().filter(|(_, drive)| drive.is_root_device);
    let drives =
        drives.map(|(index, drive)| (format!("drives[{index}].is_root_device"), ("drive", &drive.drive_id)));
    let pmem = spec.pmem.iter().enumerate().filter(|(_, pmem)| pmem.root_device);
    let pmem = pmem.map(|(index, pmem)| (format!("pmem[{index}].root_device"), ("pmem", &pmem.id)));
    let mut roots = drives.chain(pmem);
    if let Some((first_path, first)) = roots.next() {
        for (path, _) in roots.filter(|(_, device)| *device != first) {
            findings.error(
                ProblemCode::TwoRootDevices,
                path,
                format!(
                    "there is a second root device beside {}",
                    first_path.trim_end_matches(".is_root_device")
                ),
                "Keep one root device and set the others to false.",
            );
        }
        return;
    }
    let boot = &spec.boot_source;
    let own_root = boot.boot_args.as_ref().is_some_and(|args| {
        args.split_ascii_whitespace().any(|arg| arg.starts_with("root=") || arg.starts_with("rdinit="))
    });
    if boot.initrd_path.is_none() && !own_root {
        findings.warning(
            ProblemCode::NoRootDevice,
            "drives",
            "there is neither a root device nor an initrd",
            "Set is_root_device to true on the drive with the root file system, or give an initrd_path. An ordinary \
             Linux kernel panics without either; a bare-metal kernel needs none.",
        );
    }
}
