//! Threads that are soon done, and that others wait for.

use std::ffi::c_int;

/// What such a thread asks for at a time. The kernel's own slice is 1.4 ms on two cores and 2.8 on eight or more, and ends with
/// a timer tick, each 4 ms where there are 250 a second.
const SHORT_NS: u64 = 1_000_000;

/// Asks the scheduler to let the calling thread run soon when it wakes: in return it gets short slices.
///
/// On a busy machine each wake-up of a start would else wait for the end of somebody's time slice: 11.6 ms until a VMM is
/// ready instead of 1.1 (two busy loops on two cores). Good for the threads of a runtime that starts VMs
/// (`on_thread_start`); bad for threads that compute. Needs no rights. Takes effect from Linux 6.12; before, nothing
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
    // SAFETY: a plain structure of numbers, of which all zero is valid, about the calling thread; policy 0 is SCHED_OTHER,
    // which every thread has that was not given another one, and the nice value stays as it is.
    unsafe {
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        attributes.size = size_of::<libc::sched_attr>() as u32;
        attributes.sched_nice = libc::getpriority(libc::PRIO_PROCESS, 0);
        attributes.sched_runtime = nanoseconds;
        let flags: c_int = 0;
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, flags);
    }
}
