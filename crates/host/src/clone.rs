//! Making a child without forking its parent.
//!
//! `fork` copies the page tables of the parent: 83 ms at 2 GiB resident, against 0.7 ms this way. So the child
//! is made like `posix_spawn` makes it: `clone(CLONE_VM | CLONE_VFORK)` on a stack of its own, which only
//! borrows the parent's memory until it has called `execve`; `CLONE_PIDFD` gives a pidfd from birth.
//!
//! Nor is the table of descriptors copied whole, which costs an owner of thousands of VMs a millisecond a child, and
//! another one to close the copies: what the child keeps is put below a low number first, and the child takes a table
//! of its own only up to there (`CLONE_FILES`, then `CLOSE_RANGE_UNSHARE`).
//! Sources: clone(2), prctl(2) PR_SET_PDEATHSIG, close_range(2) (Linux 5.9; Firecracker itself needs 5.10).
#![expect(unsafe_code, reason = "clone(2) with CLONE_VM has no safe wrapper")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::io::DupFlags;
use rustix::process::Pid;

use crate::prompt::usual_slice;

/// Everything the child needs, made ready before it exists: the child itself must not allocate.
#[derive(Debug)]
pub(crate) struct ChildPlan {
    pub(crate) exec_file: CString,
    /// Without the terminating null pointer, with `argv[0]`.
    pub(crate) argv: Vec<CString>,
    pub(crate) current_dir: Option<CString>,
    /// Ask the kernel to kill the child when the *thread* that made it ends.
    pub(crate) die_with_thread: bool,
}

/// The descriptors that a child gets as 0, 1, 2 and perhaps 3.
#[derive(Debug)]
pub(crate) struct Stdio<'fd> {
    pub(crate) stdin: BorrowedFd<'fd>,
    pub(crate) stdout: BorrowedFd<'fd>,
    pub(crate) stderr: BorrowedFd<'fd>,
    /// A directory that an argument names as `/proc/self/fd/3`.
    pub(crate) directory: Option<BorrowedFd<'fd>>,
}

/// What a spawning thread keeps to make children with, one at a time.
#[derive(Debug)]
pub(crate) struct Cradle {
    stack: ChildStack,
    /// Low numbers, held by the null device between children: see the module's text.
    slots: [OwnedFd; 4],
    null: OwnedFd,
}

impl Cradle {
    pub(crate) fn new() -> io::Result<Self> {
        let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        // Above the numbers they are moved to in the child, so that no move overwrites one still to be moved.
        let slot = || rustix::io::fcntl_dupfd_cloexec(&null, 4);
        Ok(Self { stack: ChildStack::new()?, slots: [slot()?, slot()?, slot()?, slot()?], null })
    }

    /// Puts the child's descriptors into the slots; their numbers, in the child's order.
    fn fill(&mut self, stdio: &Stdio<'_>) -> io::Result<[RawFd; 4]> {
        let given = [Some(stdio.stdin), Some(stdio.stdout), Some(stdio.stderr), stdio.directory];
        let mut numbers = [-1; 4];
        for ((slot, number), given) in self.slots.iter_mut().zip(&mut numbers).zip(given) {
            if let Some(given) = given {
                rustix::io::dup3(given, slot, DupFlags::CLOEXEC)?;
                *number = slot.as_raw_fd();
            }
        }
        Ok(numbers)
    }

    /// Lets go of what the last child got.
    fn clear(&mut self) {
        for slot in &mut self.slots {
            // Fails for no descriptor that is open, as both are.
            let _ = rustix::io::dup3(&self.null, slot, DupFlags::CLOEXEC);
        }
    }

    /// The first number above all slots.
    fn ceiling(&self) -> c_uint {
        self.slots.iter().map(|slot| slot.as_raw_fd() + 1).max().unwrap_or(0).cast_unsigned()
    }
}

/// The stack that a child runs on between `clone` and `execve`. One per spawning thread, used again and again.
#[derive(Debug)]
struct ChildStack {
    base: *mut c_void,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for ChildStack {}

/// Generous: the child calls a handful of system calls. The lowest page is left unmapped as a guard.
const STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 4096;

impl ChildStack {
    fn new() -> io::Result<Self> {
        // SAFETY: a new private mapping, placed by the kernel.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                STACK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: the page lies inside of the mapping just made, and nothing uses it.
        if unsafe { libc::mprotect(stack.base, GUARD_BYTES, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping; stacks grow down from there. Page aligned, so 16-byte aligned.
        unsafe { self.base.byte_add(STACK_BYTES) }
    }
}

impl Drop for ChildStack {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once; no child runs on it: clone() returned, so it has called execve or ended.
        unsafe { libc::munmap(self.base, STACK_BYTES) };
    }
}

/// What the child reads (and, for `failure`, writes) in the memory it borrows.
struct Shared {
    exec_file: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    current_dir: *const c_char,
    /// What becomes 0, 1, 2 and 3; -1 for none.
    stdio: [RawFd; 4],
    /// The first number that the child has no use for.
    ceiling: c_uint,
    parent: libc::pid_t,
    die_with_thread: bool,
    failure: Failure,
}

/// The number of signals of the kernel, and so the bits of its signal set (signal(7)).
const SIGNALS: usize = 64;

/// The step that failed in the child, and its errno; 0 when none did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Failure {
    step: &'static CStr,
    errno: c_int,
}

/// A child that could not be made or could not become the program.
#[derive(Debug)]
pub(crate) struct CloneError {
    /// The system call: `clone`, `chdir`, `execve`, …
    pub(crate) step: &'static str,
    pub(crate) source: io::Error,
}

/// Makes the child and waits until it has become the program (or failed to, and was reaped).
///
/// The caller's thread is suspended meanwhile, about 0.2 ms; other threads run on.
pub(crate) fn clone_exec(
    plan: &ChildPlan,
    stdio: &Stdio<'_>,
    cradle: &mut Cradle,
) -> Result<(Pid, OwnedFd), CloneError> {
    let mut argv: Vec<*const c_char> = plan.argv.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(ptr::null());
    let envp: [*const c_char; 1] = [ptr::null()];
    let mut shared = Shared {
        exec_file: plan.exec_file.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        current_dir: plan.current_dir.as_ref().map_or(ptr::null(), |dir| dir.as_ptr()),
        stdio: cradle.fill(stdio).map_err(|source| CloneError { step: "dup3", source })?,
        ceiling: cradle.ceiling(),
        // SAFETY: always succeeds.
        parent: unsafe { libc::getpid() },
        die_with_thread: plan.die_with_thread,
        failure: Failure { step: c"", errno: 0 },
    };

    let blocked = SignalsBlocked::all();
    let mut pidfd: c_int = -1;
    // SAFETY: the child runs `child` on its own stack while this thread is suspended (CLONE_VFORK), so `shared` and
    // what it points to live until the child no longer needs them. All signals are blocked here, hence in the
    // child until it has reset their handlers: no handler of the parent runs twice in shared memory.
    let pid = unsafe {
        libc::clone(
            child,
            cradle.stack.top(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD,
            (&raw mut shared).cast(),
            &raw mut pidfd,
        )
    };
    let clone_errno = io::Error::last_os_error();
    drop(blocked);
    cradle.clear();

    let Some(pid) = Pid::from_raw(pid.max(0)) else {
        return Err(CloneError { step: "clone", source: clone_errno });
    };
    // SAFETY: the kernel stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: a plain read; volatile since the other writer was another process in the same memory.
    let failure = unsafe { ptr::read_volatile(&raw const shared.failure) };
    if failure.errno != 0 {
        reap_failed(&pidfd);
        let step = failure.step.to_str().unwrap_or("exec");
        return Err(CloneError { step, source: io::Error::from_raw_os_error(failure.errno) });
    }
    Ok((pid, pidfd))
}

/// The child has called `_exit` already: collecting it does not wait for anything.
fn reap_failed(pidfd: &OwnedFd) {
    use rustix::fd::AsFd;
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let _ = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED));
}

/// The child between `clone` and `execve`: system calls only, no allocation, no lock, no panic.
extern "C" fn child(shared: *mut c_void) -> c_int {
    let shared: *mut Shared = shared.cast();
    // SAFETY: see `clone_exec`: the parent is suspended and its data outlives this function. All calls are
    // async-signal-safe and get valid pointers.
    unsafe {
        let fail = |step: &'static CStr| -> ! {
            let errno = *libc::__errno_location();
            ptr::write_volatile(&raw mut (*shared).failure, Failure { step, errno });
            libc::_exit(127)
        };

        if (*shared).die_with_thread {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                fail(c"prctl(PR_SET_PDEATHSIG)");
            }
            // The kernel forgets that signal for a program that gets more rights than its maker has: of a root process
            // that gave some up, or by set-user-ID or file capabilities. So it gets none.
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64) != 0 {
                fail(c"prctl(PR_SET_NO_NEW_PRIVS)");
            }
            // The parent may have died before the lines above: then nobody will send the signal.
            if libc::getppid() != (*shared).parent {
                libc::_exit(127);
            }
        }
        // A session of its own: no terminal can signal or stop the VMM, and it opens none.
        if libc::setsid() < 0 {
            fail(c"setsid");
        }
        // A table of our own, before anything in it is changed: until here it is the parent's.
        if libc::syscall(
            libc::SYS_close_range,
            (*shared).ceiling,
            c_uint::MAX,
            libc::CLOSE_RANGE_UNSHARE as c_uint,
        ) != 0
        {
            fail(c"close_range(CLOSE_RANGE_UNSHARE)");
        }
        let mut target = 0;
        for fd in (*shared).stdio {
            if fd < 0 {
                break;
            }
            if libc::dup2(fd, target) < 0 {
                fail(c"dup2");
            }
            target += 1;
        }
        // All others, whether close-on-exec or not.
        libc::syscall(libc::SYS_close_range, target as c_uint, c_uint::MAX, 0 as c_uint);
        if !(*shared).current_dir.is_null() && libc::chdir((*shared).current_dir) != 0 {
            fail(c"chdir");
        }
        // The spawning threads sleep with a fine timer and run in short slices; the VMM gets what is usual back.
        libc::prctl(libc::PR_SET_TIMERSLACK, 50_000);
        usual_slice();

        // The bare system call, since the C library's refuses the two signals it uses itself. All zero is SIG_DFL.
        let default = [0_u64; 4];
        for signal in 1..=SIGNALS {
            // KILL and STOP refuse: nothing to reset there.
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                SIGNALS / 8,
            );
        }
        // All unblocked but SIGPIPE: Firecracker 1.12.1 handles it by logging, hangs in that handler when the log's own
        // reader is gone, and breaks its seccomp filter when an API client is. Blocked, it gets EPIPE and lives on.
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        libc::sigaddset(&raw mut mask, libc::SIGPIPE);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut());

        libc::execve((*shared).exec_file, (*shared).argv, (*shared).envp);
        fail(c"execve")
    }
}

/// All signals blocked in this thread until dropped.
struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    fn all() -> Self {
        // SAFETY: plain data out-parameters; these calls cannot fail with valid arguments.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self { before }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: restores the mask saved by `all` in the same thread.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

/// Lets this thread's short sleeps end on time: the default slack of 50 µs is half of our 100 µs.
pub(crate) fn fine_timer() {
    // SAFETY: sets a number of the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}
