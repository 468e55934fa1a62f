//! The KVM device itself: is it there, may we open it, is it the one that every VMM speaks to.
#![expect(unsafe_code, reason = "KVM has no system calls of its own, only ioctls")]

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// The device.
pub const DEVICE: &str = "/dev/kvm";

/// The version of KVM's interface since Linux 2.6.22, and the only one that Firecracker takes.
pub const API_VERSION: i32 = 12;

/// Opens the device as a VMM does, for reading and writing.
///
/// # Errors
/// There is none, or this user may not.
pub fn open() -> io::Result<File> {
    File::options().read(true).write(true).open(Path::new(DEVICE))
}

/// Asks an open device for the version of its interface.
///
/// # Errors
/// It is not a KVM device.
pub fn api_version(device: &File) -> io::Result<i32> {
    // SAFETY: KVM_GET_API_VERSION takes no argument and touches no memory of ours; on a file that is no KVM device the
    // kernel answers ENOTTY.
    Ok(unsafe { ioctl(device, GetApiVersion) }?)
}

/// KVM_GET_API_VERSION, `_IO(KVMIO, 0x00)` in linux/kvm.h: the answer is what the call returns.
struct GetApiVersion;

// SAFETY: the opcode is KVM's, the argument is zero as KVM asks for, nothing is written through it.
unsafe impl Ioctl for GetApiVersion {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xAE, 0x00)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kvm_device_has_a_version() {
        assert!(api_version(&File::open("/dev/null").unwrap()).is_err());
        if let Ok(device) = open() {
            assert_eq!(api_version(&device).unwrap(), API_VERSION);
        }
    }
}
