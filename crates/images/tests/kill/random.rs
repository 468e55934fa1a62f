//! Random numbers that a seed gives again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64: every seed is a good one.
pub(crate) struct Random(u64);

impl Random {
    /// From `SMARTVM_TEST_SEED`, else another one each time. Says which.
    pub(crate) fn from_environment(what: &str) -> Self {
        let seed = match std::env::var("SMARTVM_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                now.as_nanos() as u64 ^ u64::from(std::process::id())
            }
        };
        println!("{what}: SMARTVM_TEST_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `bound` - 1.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Zero to `most`.
    pub(crate) fn duration(&mut self, most: Duration) -> Duration {
        Duration::from_nanos(self.below(most.as_nanos() as u64 + 1))
    }

    /// So many bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}
