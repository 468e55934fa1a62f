//! Who belongs to a command: read from /proc.

use std::collections::HashSet;
use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// A process as /proc tells of it.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) name: String,
    parent: i32,
    group: i32,
    zombie: bool,
}

/// The processes of one command.
#[derive(Debug, Clone)]
pub(super) struct Family {
    /// The first process, which leads a process group of its own.
    pub(super) leader: i32,
    /// `NAME=value` in the environment of all that did not clear it.
    pub(super) mark: String,
    /// Processes that were there before it.
    pub(super) before: HashSet<i32>,
}

impl Family {
    /// All that live: the leader's group, those with the mark, and all their descendants. With `alone`,
    /// also every process that is new since the command began: a child that left its session, cleared its
    /// environment and lost its parent is found by nothing else.
    pub(super) fn living(&self, alone: bool) -> Vec<Process> {
        let own = std::process::id().cast_signed();
        let all: Vec<_> = all().into_iter().filter(|p| !p.zombie && p.pid != own && p.pid != 1).collect();
        let mut members: HashSet<i32> = all
            .iter()
            .filter(|p| {
                p.pid == self.leader
                    || p.group == self.leader
                    || (alone && !self.before.contains(&p.pid) && !p.is_kernel_thread())
                    || is_marked(p.pid, &self.mark)
            })
            .map(|p| p.pid)
            .collect();
        loop {
            let more: Vec<_> = all
                .iter()
                .filter(|p| members.contains(&p.parent) && !members.contains(&p.pid))
                .map(|p| p.pid)
                .collect();
            if more.is_empty() {
                break;
            }
            members.extend(more);
        }
        all.into_iter().filter(|p| members.contains(&p.pid)).collect()
    }

    /// Kills all of them, again until none is found: one may have forked while we looked.
    pub(super) fn kill(&self, alone: bool) {
        for _ in 0..50 {
            let living = self.living(alone);
            if living.is_empty() {
                return;
            }
            for process in living {
                if let Some(pid) = Pid::from_raw(process.pid) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Process {
    fn is_kernel_thread(&self) -> bool {
        self.parent == 2 || self.pid == 2
    }
}

/// Every process.
pub(super) fn all() -> Vec<Process> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    dir.filter_map(|item| item.ok()?.file_name().to_str()?.parse().ok()).filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// A line of /proc/PID/stat. The name may hold spaces and brackets, so what follows the last bracket counts.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some(Process { pid, name, parent, group, zombie: matches!(state, "Z" | "X") })
}

fn is_marked(pid: i32, mark: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_confuse() {
        let process = parse(7, "7 (a) b (c) S 3 7 7 0 -1 4194560").unwrap();
        assert_eq!((process.name.as_str(), process.parent, process.group), ("a) b (c", 3, 7));
        assert!(!process.zombie);
        assert!(parse(7, "7 (x) Z 1 7 7").unwrap().zombie);
        assert!(parse(7, "garbage").is_none());
    }
}
