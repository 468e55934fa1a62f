//! What the tests share: `smartvm` with directories of its own, and a run of it whose console is spoken to.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use smartvm_lab::guest::Assets;

/// Under emulation a boot takes five seconds, and pulling an image a minute; on a busy machine several times as long.
const PATIENCE: Duration = Duration::from_secs(300);

/// Directories of its own for smartvm, with a store and a runtime directory.
pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) assets: Assets,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let assets = Assets::from_env().expect("a Linux guest");
        Self { dir: tempfile::tempdir().expect("a directory"), assets }
    }

    pub(crate) fn smartvm(&self) -> Command {
        let program = std::env::var_os("SMARTVM_BIN")
            .map_or_else(|| env!("CARGO_BIN_EXE_smartvm").into(), PathBuf::from);
        let mut command = Command::new(program);
        command
            .env("SMARTVM_FIRECRACKER", smartvm_lab::firecracker())
            .env("SMARTVM_RUNTIME_DIR", self.dir.path().join("run"))
            .env("SMARTVM_DATA_DIR", self.dir.path().join("data"));
        command
    }

    /// Runs it to its end, which must be a good one.
    pub(crate) fn done(&self, arguments: &[&str]) -> Output {
        let output = self.smartvm().args(arguments).output().expect("smartvm starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        let mut command = self.smartvm();
        command
            .arg("run")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("smartvm starts");
        let (sender, output) = channel();
        let mut stdout = child.stdout.take().expect("its output");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                let _ = sender.send(String::from_utf8_lossy(&buffer[..count]).into_owned());
            }
        });
        let input = child.stdin.take();
        Run { child, input, output, seen: String::new(), passed: 0 }
    }

    /// What machines left: nothing, once they have ended.
    pub(crate) fn assert_nothing_is_left(&self) {
        for dir in ["run/machines", "data/machines", "data/store/uses"] {
            let left: Vec<_> = match fs::read_dir(self.dir.path().join(dir)) {
                Ok(entries) => entries.map(|entry| entry.expect("an entry").path()).collect(),
                Err(_) => continue,
            };
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

/// `smartvm run` and its console.
pub(crate) struct Run {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<String>,
    seen: String,
    /// How much of it was looked at.
    passed: usize,
}

impl Run {
    pub(crate) fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input");
        input.write_all(format!("{line}\n").as_bytes()).expect("the guest takes input");
    }

    /// Reads the console until this text comes, behind what was awaited before.
    pub(crate) fn await_text(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen[self.passed..].find(text) {
                self.passed += at + text.len();
                return;
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(more) => self.seen += &more,
                Err(error) => {
                    let _ = self.child.kill();
                    let said = self.errors();
                    panic!("no {text:?} on the console ({error}):\n{}\n{said}", self.seen);
                }
            }
        }
    }

    fn errors(&mut self) -> String {
        let mut said = Vec::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_end(&mut said);
        }
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits for the end. The status, the console and standard error.
    pub(crate) fn end(mut self) -> (Option<i32>, String, String) {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(more) = self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen += &more;
        }
        let said = self.errors();
        let status = self.child.wait().expect("its status").code();
        (status, std::mem::take(&mut self.seen), said)
    }

    /// The shell that the image boots to answers, and how it exits is how smartvm exits.
    pub(crate) fn answers_as_a_shell_of(mut self, scene: &Scene, release: &str) {
        // Its prompt: what is typed earlier may be lost, as on any serial line.
        self.await_text("# ");
        self.say("echo answer:$((6*7)):$(cat /proc/sys/kernel/osrelease)");
        self.await_text(&format!("answer:42:{release}"));
        self.say("echo written >/var-test && cat /var-test");
        self.await_text("written\r");
        self.say("exit 7");
        let (status, console, said) = self.end();
        assert_eq!(status, Some(7), "{console}\n{said}");
        assert!(!console.contains("smartvm-guest:"), "the report is no part of the console:\n{console}");
        scene.assert_nothing_is_left();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
