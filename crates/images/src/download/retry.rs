//! When to ask again.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The pause before round `round` (1 is the first retry): `first`, doubled each time up to `longest`, and of that a
/// random half to whole, so that many hosts that lost the same server do not come back in the same moment.
pub(super) fn pause(first: Duration, longest: Duration, round: u32) -> Duration {
    let whole = first.saturating_mul(1u32 << round.saturating_sub(1).min(16)).min(longest);
    // A fresh hasher has random keys; this needs no better randomness.
    let random = RandomState::new().hash_one(round) >> 32;
    let part = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX) / 2;
    whole / 2 + Duration::from_nanos(((u128::from(part) * u128::from(random)) >> 32) as u64)
}

/// Reads a `Retry-After` header: seconds, or a date (which is compared with the answer's own `Date`, else with our clock).
///
/// Source: RFC 9110, sections 10.2.3 and 5.6.7 (only the fixed form of dates; the obsolete forms are ignored).
pub(super) fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = http_date(value)?;
    let now = date
        .and_then(http_date)
        .or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs()))?;
    Some(Duration::from_secs(at.saturating_sub(now)))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok().filter(|year| (1970..10_000).contains(year))?;
    let mut time = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 || words.next()? != "GMT" {
        return None;
    }
    // Days since 1970-01-01 in the proleptic Gregorian calendar, the year counted from March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{http_date, pause, retry_after};

    #[test]
    fn pauses_double_up_to_the_longest_and_differ() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(8));
        for (round, whole) in [(1, 500), (2, 1000), (3, 2000), (5, 8000), (9, 8000), (60, 8000)] {
            let whole = Duration::from_millis(whole);
            for _ in 0..50 {
                let pause = pause(first, longest, round);
                assert!(pause >= whole / 2 && pause <= whole, "round {round}: {pause:?}");
            }
        }
        let some: Vec<_> = (0..20).map(|_| pause(first, longest, 4)).collect();
        assert!(some.iter().any(|pause| *pause != some[0]));
    }

    #[test]
    fn reads_seconds_and_dates() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        let date = "Sun, 06 Nov 1994 08:49:07 GMT";
        assert_eq!(retry_after(" 7 ", None), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", Some(date)), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:48:37 GMT", Some(date)), Some(Duration::ZERO));
        for bad in
            ["", "-1", "soon", "Sun, 06 Nov 1994", "Sun, 06 Nov 1994 25:00:00 GMT", "x, 1 Foo 1994 1:1:1 GMT"]
        {
            assert_eq!(retry_after(bad, Some(date)), None, "{bad}");
        }
    }
}
