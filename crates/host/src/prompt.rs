//! Threads that are soon done, and that others wait for.

use std::ffi::c_uint;

/// What such a thread asks for at a time. The kernel's own slice is 1.4 ms on two cores and 2.8 on eight or more, and ends with
/// a timer tick, each 4 ms where there are 250 a second.
const SHORT_NS: u64 = 1_000_000;

/// Asks the scheduler to let the calling thread run soon when it wakes: in return it gets short slices.
///
/// On a busy machine each wake-up of a start would else wait for the end of somebody's time slice (figure `ready-busy` of the
/// start bench). Good for the threads of a runtime that starts VMs (`on_thread_start`); bad for threads that compute. Needs
/// no rights. A thread of another policy than SCHED_OTHER is left as it is. Takes effect from Linux 6.12; before, nothing
/// changes. Source: sched_setattr(2), `sched_runtime` of SCHED_OTHER.
pub fn prompt_thread() {
    set_slice(SHORT_NS);
}

/// The kernel's own slice again. Async-signal-safe.
pub(crate) fn usual_slice() {
    set_slice(0);
}

#[expect(unsafe_code, reason = "the C library has no wrapper")]
fn set_slice(nanoseconds: u64) {
    let (own, flags): (libc::pid_t, c_uint) = (0, 0);
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: a plain structure of numbers, of which all zero is valid, about the calling thread; the kernel writes no more
    // than `size` bytes. What is not changed goes back as it came.
    unsafe {
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        let got = libc::syscall(libc::SYS_sched_getattr, own, &raw mut attributes, size, flags);
        if got == 0 && attributes.sched_policy == libc::SCHED_OTHER.cast_unsigned() {
            attributes.sched_runtime = nanoseconds;
            libc::syscall(libc::SYS_sched_setattr, own, &raw const attributes, flags);
        }
    }
}
