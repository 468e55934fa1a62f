//! When texts first appear on the console.

use std::time::{Duration, Instant};

use smartvm::OutputReader;

use super::wire::Mark;

/// Follows a console until every text was seen or the console ends.
pub(crate) async fn watch(mut console: OutputReader, texts: Vec<String>, asked: Instant) -> Vec<Mark> {
    let mut marks: Vec<Mark> = texts.into_iter().map(|text| Mark { text, ms: None }).collect();
    let mut finder = Finder::default();
    while marks.iter().any(|mark| mark.ms.is_none()) {
        let Some(chunk) = console.next().await else { break };
        let now = asked.elapsed();
        finder.look(&chunk.bytes, &mut marks, now);
    }
    marks
}

/// Keeps what may be the beginning of a text that goes on in the next chunk.
#[derive(Default)]
struct Finder {
    tail: Vec<u8>,
}

impl Finder {
    fn look(&mut self, bytes: &[u8], marks: &mut [Mark], now: Duration) {
        self.tail.extend_from_slice(bytes);
        let mut longest = 0;
        for mark in marks.iter_mut().filter(|mark| mark.ms.is_none()) {
            let text = mark.text.as_bytes();
            longest = longest.max(text.len());
            if text.is_empty() || self.tail.windows(text.len()).any(|window| window == text) {
                mark.ms = Some(now.as_secs_f64() * 1e3);
            }
        }
        let keep = longest.saturating_sub(1).min(self.tail.len());
        self.tail.drain(..self.tail.len() - keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_once_also_across_chunks() {
        let mut marks = ["login:", "init", "never"].map(|text| Mark { text: text.into(), ms: None });
        let mut finder = Finder::default();
        for (chunk, ms) in [("boot... in", 1), ("it\r\nlog", 2), ("in: login:", 3)] {
            finder.look(chunk.as_bytes(), &mut marks, Duration::from_millis(ms));
        }
        assert_eq!(marks.map(|mark| mark.ms), [Some(3.0), Some(2.0), None]);
    }
}
