//! Which place is asked when: in order, in rounds, with pauses between the rounds.
//!
//! A round asks each place that may still help. What will not pass (404, a bad certificate) takes its place out; a fault on
//! our side (a full disk) ends it all. A round that brought not one byte more than ever before counts against
//! [`Options::tries`](super::Options::tries): a link that breaks every minute gets there in the end, and a server that never goes
//! on does not keep us for ever.

use std::time::Duration;

use url::Url;

use super::error::{DownloadError, Verdict};
use super::{Downloader, Request, retry};

/// The state of the rounds for one request.
pub(super) struct Rounds<'a> {
    downloader: &'a Downloader,
    request: &'a Request,
    places: Vec<Place<'a>>,
    fruitless: u32,
    asked_pause: Option<Duration>,
}

/// What is known of one place.
struct Place<'a> {
    url: &'a Url,
    failure: Option<DownloadError>,
    out: bool,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(downloader: &'a Downloader, request: &'a Request) -> Self {
        let place = |url| Place { url, failure: None, out: false };
        let places = request.urls.iter().map(place).collect();
        Self { downloader, request, places, fruitless: 0, asked_pause: None }
    }

    /// The places to ask in this round.
    pub(super) fn open(&self) -> Vec<(usize, &'a Url)> {
        let open = self.places.iter().enumerate().filter(|(_, place)| !place.out);
        open.map(|(index, place)| (index, place.url)).collect()
    }

    /// A place failed. An error ends everything.
    pub(super) fn failed(&mut self, index: usize, error: DownloadError) -> Result<(), DownloadError> {
        let place = &mut self.places[index];
        match error.verdict() {
            Verdict::Stop => return Err(error),
            Verdict::NotHere => place.out = true,
            Verdict::Again(Some(pause)) if pause > self.downloader.shared.options.longest_pause => {
                place.out = true;
            }
            Verdict::Again(pause) => self.asked_pause = self.asked_pause.max(pause),
        }
        if self.places.iter().skip(index + 1).any(|next| !next.out) {
            let what = &self.request.what;
            self.downloader.progress().note(format!("{error}; trying the next place that has {what}"));
        }
        self.places[index].failure = Some(error);
        Ok(())
    }

    /// The round is over: waits for the next one, or ends it all. `fruitful` tells whether it brought new bytes.
    pub(super) async fn pause(&mut self, fruitful: bool) -> Result<(), DownloadError> {
        let options = &self.downloader.shared.options;
        self.fruitless = if fruitful { 0 } else { self.fruitless + 1 };
        if self.fruitless >= options.tries || self.places.iter().all(|place| place.out) {
            return Err(self.end());
        }
        let round = self.fruitless.max(1);
        let pause = retry::pause(options.first_pause, options.longest_pause, round);
        let pause = pause.max(self.asked_pause.take().unwrap_or_default());
        // The last failure of those that are asked again.
        if let Some(failure) =
            self.places.iter().rfind(|place| !place.out).and_then(|place| place.failure.as_ref())
        {
            let seconds = pause.as_secs_f32();
            self.downloader.progress().note(format!("{failure}; trying again in {seconds:.1} s"));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn end(&mut self) -> DownloadError {
        let mut failures: Vec<_> = self.places.iter_mut().filter_map(|place| place.failure.take()).collect();
        if failures.len() == 1
            && let Some(only) = failures.pop()
        {
            return only;
        }
        DownloadError::Everywhere { what: self.request.what.clone(), failures }
    }
}
