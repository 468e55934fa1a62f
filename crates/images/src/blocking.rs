//! Work that blocks its thread, for callers that are async: it stops soon after nobody waits for it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tells blocking work whether anybody still waits for it. Cheap to ask: ask once per buffer or entry.
#[derive(Debug, Clone, Default)]
pub struct Abandoned(Arc<AtomicBool>);

impl Abandoned {
    /// Somebody always waits: for work that is called without [`blocking`].
    pub fn never() -> Self {
        Self::default()
    }

    /// Whether the work should end at once; what it answers is thrown away.
    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Says so when the future is dropped.
struct Leaving(Abandoned);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` on a thread that may block. A panic in it goes on in the caller.
///
/// # Cancel safety
/// Dropping the future tells `work` by its [`Abandoned`]; it goes on until it asks. When the runtime shuts down
/// before the work began, the future never ends.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce(&Abandoned) -> T + Send + 'static) -> T {
    let abandoned = Abandoned::default();
    let _leaving = Leaving(abandoned.clone());
    match tokio::task::spawn_blocking(move || work(&abandoned)).await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Nobody aborts it but a runtime that shuts down, which polls nothing again.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test]
    async fn dropping_the_future_stops_the_work() {
        let (started, has_started) = tokio::sync::oneshot::channel();
        let (ended, has_ended) = mpsc::channel();
        let work = blocking(move |abandoned| {
            let _ = started.send(());
            let deadline = Instant::now() + Duration::from_secs(10);
            while !abandoned.is() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            let _ = ended.send(abandoned.is());
        });
        tokio::select! {
            () = work => panic!("nobody stopped it"),
            _ = has_started => {}
        }
        assert_eq!(has_ended.recv_timeout(Duration::from_secs(20)), Ok(true));
    }

    #[tokio::test]
    async fn its_answer_comes_back() {
        assert_eq!(blocking(|abandoned| if abandoned.is() { 0 } else { 42 }).await, 42);
    }
}
