//! Telling a Firecracker that hung on its way out.
//!
//! Seen with 1.12.1: when an API request arrives in the moment in which the guest ends, the thread that serves the API
//! waits for an answer from the main thread, and the main thread waits for that thread to end. Neither ever does;
//! the vCPU threads are gone. The guest has ended in order, only its VMM is still there, for ever.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::watcher::Child;

/// Looks after one VMM whose answer is outstanding.
///
/// The picture of a hang shows for an instant in every orderly exit as well, so it takes two looks, some time apart.
#[derive(Debug, Default)]
pub(crate) struct HangWatch {
    hung_before: AtomicBool,
}

impl HangWatch {
    /// Looks, and ends a VMM that hung at the last look too. Whether it did.
    pub(crate) fn look(&self, child: &Child) -> bool {
        let hangs = hangs_at_exit(child.pid.as_raw_pid());
        let hung_before = self.hung_before.swap(hangs, Ordering::Relaxed);
        let hung = hangs && hung_before;
        if hung {
            child.end_hung();
        }
        hung
    }
}

/// Whether this VMM hangs on its way out at this moment. `false` when the kernel does not let us look.
fn hangs_at_exit(pid: i32) -> bool {
    look(Path::new(&format!("/proc/{pid}/task")), pid).unwrap_or(false)
}

fn look(tasks: &Path, pid: i32) -> io::Result<bool> {
    let (mut main_waits, mut api_waits) = (false, false);
    for task in fs::read_dir(tasks)? {
        let task = task?;
        let name = fs::read_to_string(task.path().join("comm"))?;
        let waits = || fs::read_to_string(task.path().join("wchan")).map(|at| at.contains("futex"));
        if name.starts_with("fc_vcpu") {
            return Ok(false);
        } else if name.trim_end() == "fc_api" {
            api_waits = waits()?;
        } else if task.file_name().to_str() == Some(&pid.to_string()) {
            main_waits = waits()?;
        }
    }
    Ok(main_waits && api_waits)
}
