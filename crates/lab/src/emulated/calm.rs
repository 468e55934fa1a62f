//! A virtual machine that is always there, so that the emulated host's kernel does not rewrite its own code.
//!
//! Seen with QEMU 7.2: with the host's first virtual machine its kernel turns on code in the scheduler and in KVM (static
//! keys: preempt notifiers, local APICs that are off), and with the last one it turns that off again. For a moment it
//! puts a breakpoint (`int3`) there. When both processors run at that moment, QEMU can go on with its translation of the
//! breakpoint after the breakpoint is gone; the kernel then takes the same trap again and again, with interrupts off, and
//! the whole lab hangs. Tests start and end virtual machines all the time, often one alone.

use std::time::Duration;

use super::{Command, Lab};
use crate::fault::{Fault, Result};

/// A process that keeps a VM with a local APIC and one vCPU, which never runs. In Python, which the host has: no file to
/// push and nothing to build. The numbers are `KVM_CREATE_VM`, `KVM_CREATE_IRQCHIP` and `KVM_CREATE_VCPU`.
const HOLD: &str = "
import fcntl, os, signal, sys
ready, done = os.pipe()
if os.fork():
    os.close(done)
    sys.exit(os.read(ready, 1) != b'y')
os.setsid()
vm = fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), 0xae01, 0)
fcntl.ioctl(vm, 0xae60, 0)
vcpu = fcntl.ioctl(vm, 0xae41, 0)
os.write(done, b'y')
os.closerange(0, 3)
os.close(done)
signal.pause()
";

/// Starts that process. It lives as long as the lab.
pub(super) fn hold_a_vm(lab: &Lab) -> Result<()> {
    let hold = Command::new("python3").args(["-c", HOLD]).timeout(Duration::from_secs(60)).keep_survivors();
    let outcome = lab.run(&hold)?;
    if outcome.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&outcome.stderr);
    Err(Fault::new(format!("the lab's kernel gives no virtual machine: {}", words.trim())))
}
