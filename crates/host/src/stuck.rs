//! Telling a Firecracker that hung on its way out.
//!
//! Seen with 1.12.1: when an API request arrives in the moment in which the guest ends, the thread that serves the API
//! waits for an answer from the main thread, and the main thread waits for that thread to end. Neither ever does;
//! the vCPU threads are gone. The guest has ended in order, only its VMM is still there, for ever.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use smartvm_firecracker::client::SLOW;

use crate::watcher::Child;

/// Looks after one VMM whose answer is outstanding.
///
/// Each half of the picture of a hang shows in healthy VMMs: in every orderly exit, and before its boot a VMM's main
/// thread waits for requests the same way. So it takes two looks, [`SLOW`] apart, between which both threads slept on.
#[derive(Debug, Default)]
pub(crate) struct HangWatch {
    asleep: Mutex<Option<Asleep>>,
}

/// Both threads sleep, having been switched out this many times together.
#[derive(Debug, Clone, Copy)]
struct Asleep {
    switches: u64,
    since: Instant,
}

impl HangWatch {
    /// Looks, and ends a VMM that has hung since an earlier look. Whether it did.
    pub(crate) fn look(&self, child: &Child) -> bool {
        let pid = child.pid.as_raw_pid();
        let asleep = look(Path::new(&format!("/proc/{pid}/task")), pid);
        // An error: it has just ended, or the kernel does not let us look.
        let hung = self.judge(asleep.unwrap_or(None), Instant::now());
        if hung {
            child.end_hung();
        }
        hung
    }

    fn judge(&self, switches: Option<u64>, now: Instant) -> bool {
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        match (switches, *asleep) {
            (Some(switches), Some(before)) if switches == before.switches => {
                now.saturating_duration_since(before.since) >= SLOW
            }
            (switches, _) => {
                *asleep = switches.map(|switches| Asleep { switches, since: now });
                false
            }
        }
    }
}

/// The context switches of the main and the API thread when both wait in a futex and no vCPU can wake them.
fn look(tasks: &Path, pid: i32) -> io::Result<Option<u64>> {
    let main = pid.to_string();
    let main_name = fs::read_to_string(tasks.join(&main).join("comm"))?;
    let (mut asleep, mut switches) = (0, 0);
    for task in fs::read_dir(tasks)? {
        let task = task?;
        let is_main = task.file_name() == *main;
        let name = fs::read_to_string(task.path().join("comm"))?;
        // A thread that has not run yet has its maker's name: a vCPU that the main thread waits for while it builds the
        // VM, for long on a busy host.
        if name.starts_with("fc_vcpu") || (name == main_name && !is_main) {
            return Ok(None);
        }
        if is_main || name.trim_end() == "fc_api" {
            if !fs::read_to_string(task.path().join("wchan"))?.contains("futex") {
                return Ok(None);
            }
            asleep += 1;
            switches += context_switches(&fs::read_to_string(task.path().join("status"))?);
        }
    }
    Ok((asleep == 2).then_some(switches))
}

/// Whether the VM of this VMM was built: the vCPUs' threads are made last.
pub(crate) fn has_vcpu(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.into_iter().any(|name| name.starts_with("fc_vcpu"))
}

/// The sum of both kinds in proc_pid_status(5).
fn context_switches(status: &str) -> u64 {
    let of = |line: &str| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok();
    status.lines().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The /proc/PID/task of a process 7, its threads given as id, name, where it waits, switches.
    fn tasks(threads: &[(&str, &str, &str, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (tid, name, wchan, switches) in threads {
            let task = dir.path().join(tid);
            fs::create_dir(&task).unwrap();
            fs::write(task.join("comm"), format!("{name}\n")).unwrap();
            fs::write(task.join("wchan"), wchan).unwrap();
            let status = format!("voluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t1\n");
            fs::write(task.join("status"), status).unwrap();
        }
        dir
    }

    const MAIN: (&str, &str, &str, u64) = ("7", "firecracker", "futex_wait_queue", 40);
    const API: (&str, &str, &str, u64) = ("8", "fc_api", "futex_wait_queue", 2);

    fn seen(threads: &[(&str, &str, &str, u64)]) -> Option<u64> {
        look(tasks(threads).path(), 7).unwrap()
    }

    #[test]
    fn only_two_sleeping_threads_and_no_vcpu_look_hung() {
        assert_eq!(seen(&[MAIN, API]), Some(44));
        assert_eq!(seen(&[MAIN, API, ("9", "kvm-nx-lpage-re", "kvm_nx", 0)]), Some(44), "the kernel's own");
        assert_eq!(seen(&[MAIN, ("8", "fc_api", "ep_poll", 2)]), None);
        assert_eq!(seen(&[("7", "firecracker", "0", 40), API]), None);
        assert_eq!(seen(&[MAIN]), None);
        assert_eq!(seen(&[MAIN, API, ("9", "fc_vcpu 0", "kvm_vcpu_block", 1)]), None);
    }

    #[test]
    fn a_vcpu_thread_that_has_not_run_yet_is_waited_for() {
        assert_eq!(seen(&[MAIN, API, ("9", "firecracker", "0", 0)]), None);
    }

    #[test]
    fn only_a_sleep_that_lasts_is_a_hang() {
        let (begun, watch) = (Instant::now(), HangWatch::default());
        let at = |millis| begun + Duration::from_millis(millis);
        assert!(!watch.judge(Some(44), at(0)));
        assert!(!watch.judge(Some(44), at(1)), "another request's look, a moment later");
        assert!(watch.judge(Some(44), at(100)));

        assert!(!watch.judge(Some(45), at(200)), "something ran meanwhile");
        assert!(!watch.judge(None, at(300)));
        assert!(!watch.judge(Some(45), at(400)), "it was awake in between");
        assert!(watch.judge(Some(45), at(500)));
    }
}
