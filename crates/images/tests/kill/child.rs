//! This program once more, as another process that does one thing.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child as Process, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::operation::OPERATIONS;
use crate::races::ROLES;
use crate::scene::Scene;

const ROLE: &str = "SMARTVM_TEST_CHILD_ROLE";
const SCENE: &str = "SMARTVM_TEST_CHILD_SCENE";
const ENTRY: &str = "child::does_its_work_when_this_is_a_child";

/// What a child says first, before its work.
const BEGIN: &str = "<begin>";

/// The other side: in the test's own process it does nothing.
#[test]
fn does_its_work_when_this_is_a_child() {
    let (Ok(role), Some(dir)) = (std::env::var(ROLE), std::env::var_os(SCENE)) else { return };
    let scene = Scene::of_parent(PathBuf::from(dir));
    let operation = OPERATIONS.iter().find(|operation| operation.name == role);
    let work = operation.map(|operation| operation.work);
    let work = work.or_else(|| ROLES.iter().find(|(name, _)| *name == role).map(|(_, work)| *work)).unwrap();
    say(BEGIN);
    work(&scene);
}

/// In a child: one line to the parent, at once.
pub(crate) fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").unwrap();
    stdout.flush().unwrap();
}

/// A child process, killed when dropped.
pub(crate) struct Child {
    process: Process,
    stdout: BufReader<ChildStdout>,
    begun: Instant,
}

impl Child {
    /// Starts one, and waits until it is about to work.
    pub(crate) fn start(scene: &Scene, role: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", ENTRY, "--nocapture", "--test-threads=1"])
            .envs([(ROLE, role.as_ref()), (SCENE, scene.dir().as_os_str())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let mut child = Self { process, stdout, begun: Instant::now() };
        child.until(BEGIN);
        child.begun = Instant::now();
        child
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends the wait of one that reads its input.
    pub(crate) fn release(&mut self) {
        drop(self.process.stdin.take());
    }

    /// Waits for a line that it says.
    pub(crate) fn until(&mut self, wanted: &str) {
        let mut line = String::new();
        // Libtest's own words may stand before ours.
        while !line.trim_end().ends_with(wanted) {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "it ended without saying {wanted}");
        }
    }

    /// Kills it so long after its work began, if it is still alive then: answers whether it was.
    pub(crate) fn kill_after(mut self, moment: Duration) -> bool {
        std::thread::sleep(moment.saturating_sub(self.begun.elapsed()));
        self.process.kill().unwrap();
        let status = self.process.wait().unwrap();
        // Killed while libtest says goodbye counts as killed as well: the work's last words may be unwritten.
        assert!(status.success() || status.signal() == Some(9), "it failed by itself: {status}");
        status.signal() == Some(9)
    }

    /// Lets it work to its end: what it said, and how long the work took.
    pub(crate) fn finish(mut self) -> (Vec<String>, Duration) {
        let lines: Vec<String> = std::io::BufRead::lines(&mut self.stdout).map(Result::unwrap).collect();
        let status: ExitStatus = self.process.wait().unwrap();
        assert!(status.success(), "{status}: {lines:#?}");
        (lines, self.begun.elapsed())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Its descriptor tells a child that waits for its parent's end, too.
        drop(self.process.stdin.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
