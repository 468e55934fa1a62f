//! What the demo shows of a guest's console: the first lines, a count, and all from the guest's init on.

use std::sync::mpsc::Sender;

/// So many lines are shown before the kernel's findings about the machine are left out.
const FIRST: usize = 4;

/// The kernel's words before it starts the first program.
const INIT: &str = "Run /init";

/// Shows lines as they become complete, and tells when a text was seen.
pub(super) struct Console {
    awaited: &'static str,
    /// Goes when the text was seen, or with the console.
    seen: Option<Sender<()>>,
    line: Vec<u8>,
    lines: usize,
    left_out: usize,
    in_init: bool,
}

impl Console {
    pub(super) fn new(awaited: &'static str, seen: Sender<()>) -> Self {
        Self { awaited, seen: Some(seen), line: Vec::new(), lines: 0, left_out: 0, in_init: false }
    }

    pub(super) fn show(&mut self, text: &[u8]) {
        for &byte in text {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line);
                self.line(line.trim_end()).iter().for_each(|shown| println!("  | {shown}"));
                self.tell(&line);
            } else {
                self.line.push(byte);
            }
        }
    }

    /// What to show for a line of the console.
    fn line(&mut self, line: &str) -> Vec<String> {
        self.lines += 1;
        self.in_init |= line.contains(INIT) || line.contains(self.awaited);
        if self.lines > FIRST && !self.in_init {
            self.left_out += 1;
            return Vec::new();
        }
        let gap = std::mem::take(&mut self.left_out);
        let gap = (gap > 0).then(|| format!("… {gap} lines …"));
        gap.into_iter().chain([line.to_owned()]).collect()
    }

    /// Tells who waits for the text that it was seen, once it has been shown.
    fn tell(&mut self, line: &str) {
        if line.contains(self.awaited)
            && let Some(seen) = self.seen.take()
        {
            // Who waited for it may have run out of patience.
            let _ = seen.send(());
        }
    }

    /// The console has ended.
    pub(super) fn close(mut self) {
        if !self.line.is_empty() {
            self.show(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_middle_is_counted_and_the_awaited_text_told_once() {
        let (sender, seen) = mpsc::channel();
        let mut console = Console::new("reached", sender);
        let lines = ["one", "two", "three", "four", "five", "six", "Run /init as init process"];
        let shown: Vec<String> = lines.iter().flat_map(|line| console.line(line)).collect();
        assert_eq!(shown, ["one", "two", "three", "four", "… 2 lines …", "Run /init as init process"]);
        assert_eq!(seen.try_recv(), Err(mpsc::TryRecvError::Empty));
        console.show(b"init: reached");
        assert_eq!(seen.try_recv(), Err(mpsc::TryRecvError::Empty), "the line is not complete");
        console.show(b" after 1 s\r\n");
        assert_eq!(seen.try_recv(), Ok(()));
        assert_eq!(seen.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }

    #[test]
    fn waiting_ends_with_the_console() {
        let (sender, seen) = mpsc::channel();
        Console::new("reached", sender).close();
        assert_eq!(seen.recv(), Err(mpsc::RecvError));
    }
}
