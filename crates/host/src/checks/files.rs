//! Files that the spec names: those that must be there, and those that are to be made.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use smartvm_core::kernel_image::{HEAD_LEN, boots_on, cut_off, identify};
use smartvm_core::problem::ProblemCode;
use smartvm_core::spec::MachineSpec;
use smartvm_core::target::FirecrackerVersion;
use smartvm_firecracker::socket;

use super::Checks;

/// From this release on, Firecracker makes the files of its log and metrics itself.
const MAKES_OUTPUTS_SINCE: FirecrackerVersion = FirecrackerVersion(1, 14, 0);
const SECTOR: u64 = 512;

impl Checks<'_> {
    pub(super) fn kernel(&mut self, spec: &MachineSpec) {
        let field = "boot-source.kernel_image_path";
        let Some((file, metadata)) = self.open(&spec.boot_source.kernel_image_path, field, false) else {
            return;
        };
        let mut head = Vec::with_capacity(HEAD_LEN);
        if let Err(error) = file.take(HEAD_LEN as u64).read_to_end(&mut head) {
            self.error(
                ProblemCode::FileNotReadable,
                field,
                format!("the kernel cannot be read: {error}"),
                "Check the file and the disk it lies on.",
            );
            return;
        }
        if let Err(fault) = boots_on(identify(&head), self.target.arch, self.target.version) {
            self.error(ProblemCode::KernelNotBootable, field, fault.to_string(), fault.hint());
        } else if let Some(needs) = cut_off(&head, metadata.len()).filter(|_| metadata.is_file()) {
            let what = format!("the kernel is cut off: {} bytes of at least {needs}", metadata.len());
            self.error(ProblemCode::KernelNotBootable, field, what, "Copy or download it again.");
        }
    }

    pub(super) fn initrd(&mut self, spec: &MachineSpec) {
        let field = "boot-source.initrd_path";
        let Some(path) = &spec.boot_source.initrd_path else { return };
        let Some((_, metadata)) = self.open(path, field, false) else { return };
        let (size, mem_size_mib) = (metadata.len(), spec.machine_config.mem_size_mib);
        if size == 0 && metadata.is_file() {
            let what = "the initrd is an empty file".to_owned();
            self.error(ProblemCode::FileEmpty, field, what, "Give the initrd, or leave initrd_path out.");
        } else if size > mem_size_mib.saturating_mul(1 << 20) {
            self.error(
                ProblemCode::InitrdTooLarge,
                field,
                format!("the initrd of {} MiB does not fit into {mem_size_mib} MiB of memory", size >> 20),
                "Raise mem_size_mib: the guest needs room for the initrd, packed and unpacked, and for itself.",
            );
        }
    }

    pub(super) fn drives(&mut self, spec: &MachineSpec) {
        for (index, drive) in spec.drives.iter().enumerate() {
            if let Some(path) = &drive.path_on_host {
                let field = format!("drives[{index}].path_on_host");
                self.disk(path, &field, drive.is_read_only != Some(true));
            }
            if let Some(socket) = &drive.socket {
                self.socket(socket, &format!("drives[{index}].socket"));
            }
        }
    }

    pub(super) fn pmem(&mut self, spec: &MachineSpec) {
        for (index, pmem) in spec.pmem.iter().enumerate() {
            self.disk(&pmem.path_on_host, &format!("pmem[{index}].path_on_host"), !pmem.read_only);
        }
    }

    fn disk(&mut self, path: &Path, field: &str, writable: bool) {
        let Some((_, metadata)) = self.open(path, field, writable) else { return };
        // The length of a block device is not in its inode.
        if !metadata.is_file() {
            return;
        }
        let size = metadata.len();
        if size == 0 {
            self.warning(
                ProblemCode::FileEmpty,
                field,
                "the guest would see a disk without a single sector".to_owned(),
                "Give the file the size that the disk shall have (truncate -s 1G FILE).",
            );
        } else if !size.is_multiple_of(SECTOR) {
            self.warning(
                ProblemCode::SizeNotSectors,
                field,
                format!(
                    "the last {} bytes of the file are no whole sector, and not seen by the guest",
                    size % SECTOR
                ),
                format!("Make the size a multiple of {SECTOR} bytes, if the file is a disk image at all."),
            );
        }
    }

    fn socket(&mut self, path: &Path, field: &str) {
        let Some((path, metadata)) = self.look(path, field) else { return };
        if !metadata.file_type().is_socket() {
            self.error(
                ProblemCode::NotASocket,
                field,
                format!("{} is {}", path.display(), kind(metadata.file_type())),
                "Give the socket of a running vhost-user-block backend, or use path_on_host for a file.",
            );
        }
    }

    pub(super) fn vsock(&mut self, spec: &MachineSpec) {
        let field = "vsock.uds_path";
        let Some(vsock) = &spec.vsock else { return };
        let Some(path) = self.place_for(&vsock.uds_path, field) else { return };
        let Ok(metadata) = path.symlink_metadata() else { return };
        let shown = path.display();
        if metadata.file_type().is_socket()
            && socket::connect(&path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        {
            self.warning(
                ProblemCode::UdsPathExists,
                field,
                format!("{shown} is left over from an earlier run: nobody answers on it"),
                "Remove it: Firecracker does not, and cannot make its socket while it is there.",
            );
            return;
        }
        let what = if metadata.file_type().is_socket() {
            format!("{shown} is the socket of a running process")
        } else {
            format!("{shown} is already there: {}", kind(metadata.file_type()))
        };
        self.error(
            ProblemCode::UdsPathExists,
            field,
            what,
            "Give a path where nothing is: Firecracker makes the socket there.",
        );
    }

    pub(super) fn outputs(&mut self, spec: &MachineSpec) {
        if let Some(path) = &spec.cpu_config {
            self.open(path, "cpu-config", false);
        }
        if let Some(path) = spec.serial.as_ref().and_then(|serial| serial.serial_out_path.as_deref()) {
            self.output(path, "serial.serial_out_path", true);
        }
        let made = self.target.version >= MAKES_OUTPUTS_SINCE;
        if let Some(path) = spec.logger.as_ref().and_then(|logger| logger.log_path.as_deref()) {
            self.output(path, "logger.log_path", made);
        }
        if let Some(metrics) = &spec.metrics {
            self.output(&metrics.metrics_path, "metrics.metrics_path", made);
        }
    }

    /// A file or named pipe that Firecracker writes to, and makes if it is missing (`made`).
    fn output(&mut self, path: &Path, field: &str, made: bool) {
        let Some(path) = self.place_for(path, field) else { return };
        let shown = path.display();
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() || metadata.file_type().is_socket() => self.error(
                ProblemCode::NotAFile,
                field,
                format!("{shown} is {}", kind(metadata.file_type())),
                "Give a file or a named pipe.",
            ),
            // Asked and not tried: opening a named pipe would be noticed by its reader.
            Ok(_) => {
                if accessat(CWD, &path, Access::WRITE_OK, AtFlags::EACCESS).is_err() {
                    self.error(
                        ProblemCode::FileNotWritable,
                        field,
                        format!("{shown} may not be written"),
                        "Allow this user to write it.",
                    );
                }
            }
            Err(_) if made => {}
            Err(_) => self.error(
                ProblemCode::FileNotFound,
                field,
                format!("there is no {shown}, and Firecracker {} does not make it", self.target.version),
                format!(
                    "Make an empty file there; Firecracker {MAKES_OUTPUTS_SINCE} and later make it themselves."
                ),
            ),
        }
    }

    /// The absolute path of a file that Firecracker makes, if there is a directory to make it in.
    fn place_for(&mut self, path: &Path, field: &str) -> Option<PathBuf> {
        if path.as_os_str().is_empty() {
            return None; // A problem of the spec, told by `validate`.
        }
        let path = self.base.join(path);
        let parent = path.parent().unwrap_or(Path::new("/"));
        if !parent.is_dir() {
            self.error(
                ProblemCode::DirectoryNotFound,
                field,
                format!("there is no directory {}", parent.display()),
                "Make it, or give another path.",
            );
            return None;
        }
        Some(path)
    }

    /// Opens a file or block device as Firecracker will, and says what is wrong otherwise.
    fn open(&mut self, path: &Path, field: &str, writable: bool) -> Option<(File, Metadata)> {
        let (path, metadata) = self.look(path, field)?;
        let shown = path.display();
        let file_type = metadata.file_type();
        if file_type.is_char_device() && field.contains("path_on_host") {
            self.warning(
                ProblemCode::NotAFile,
                field,
                format!("{shown} is a character device, which has no sectors"),
                "Give a file or a block device.",
            );
            return None;
        }
        if !(file_type.is_file() || file_type.is_block_device()) {
            self.error(
                ProblemCode::NotAFile,
                field,
                format!("{shown} is {}", kind(file_type)),
                "Give the file itself.",
            );
            return None;
        }
        // Not blocking: the path may have become a named pipe since.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        match OpenOptions::new().read(true).write(writable).custom_flags(nonblocking).open(&path) {
            Ok(file) => Some((file, metadata)),
            Err(error) => {
                let readable = writable && File::open(&path).is_ok();
                let (code, verb, hint) = if readable {
                    let hint = match Errno::from_io_error(&error) {
                        Some(Errno::ROFS) => {
                            "Set is_read_only to true: the file system is mounted read-only."
                        }
                        Some(Errno::TXTBSY) => "Stop the program that is being run from this file.",
                        _ => "Allow this user to write it, or set is_read_only to true.",
                    };
                    (ProblemCode::FileNotWritable, "written", hint)
                } else {
                    (ProblemCode::FileNotReadable, "read", "Allow this user to read it.")
                };
                self.error(code, field, format!("{shown} may not be {verb}: {error}"), hint);
                None
            }
        }
    }

    /// What is at the path, symbolic links followed.
    fn look(&mut self, path: &Path, field: &str) -> Option<(PathBuf, Metadata)> {
        if path.as_os_str().is_empty() {
            return None; // A problem of the spec, told by `validate`.
        }
        let path = self.base.join(path);
        match path.metadata() {
            Ok(metadata) => Some((path, metadata)),
            Err(error) => {
                self.not_seen(&path, field, &error);
                None
            }
        }
    }

    fn not_seen(&mut self, path: &Path, field: &str, error: &io::Error) {
        let shown = path.display();
        match error.kind() {
            ErrorKind::NotFound => {
                let dangling = path.symlink_metadata().is_ok();
                let what = if dangling {
                    "the file that the symbolic link leads to does not exist"
                } else {
                    "there is no such file"
                };
                self.error(
                    ProblemCode::FileNotFound,
                    field,
                    format!("{what}: {shown}"),
                    format!("Check the path; a relative one starts at {}.", self.base.display()),
                );
            }
            _ => self.error(
                ProblemCode::FileNotReadable,
                field,
                format!("{shown} cannot be reached: {error}"),
                "Check the path, and that this user may enter its directories.",
            ),
        }
    }
}

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        "a directory"
    } else if file_type.is_socket() {
        "a socket"
    } else if file_type.is_fifo() {
        "a named pipe"
    } else if file_type.is_char_device() {
        "a character device"
    } else if file_type.is_block_device() {
        "a block device"
    } else if file_type.is_symlink() {
        "a symbolic link"
    } else {
        "a file"
    }
}
