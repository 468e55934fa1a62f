//! Random numbers that a seed gives again, for tests that choose moments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64: every seed is a good one.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From `SMARTVM_TEST_SEED`, else another one each time. Says which.
    ///
    /// # Panics
    /// When the variable holds no number.
    pub fn from_environment(what: &str) -> Self {
        let seed = match std::env::var("SMARTVM_TEST_SEED") {
            Ok(seed) => seed.parse().expect("SMARTVM_TEST_SEED is a number"),
            Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
                now.as_nanos() as u64 ^ u64::from(std::process::id())
            }
        };
        println!("{what}: SMARTVM_TEST_SEED={seed}");
        Self(seed)
    }

    /// From this seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Another sequence, decided by this one.
    pub fn split(&mut self) -> Self {
        Self(self.number())
    }

    /// Any of all 64-bit numbers.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `bound` - 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// True once in so many times.
    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// One of these, of which there is at least one.
    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize]
    }

    /// Zero to `most`.
    pub fn duration(&mut self, most: Duration) -> Duration {
        Duration::from_nanos(self.below(most.as_nanos() as u64 + 1))
    }
    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.number().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}
