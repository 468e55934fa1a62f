//! Rate limiters of drives, network interfaces, entropy and others.

use serde::{Deserialize, Serialize};

use super::open::open_struct;

/// Limits of a device; an absent bucket is no limit, and in a PATCH no change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Tokens are bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

open_struct! {
    /// `size` tokens per `refill_time`, after a first `one_time_burst`. A `size` or `refill_time` of 0 is no
    /// limit; in a PATCH it lifts the limit.
    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct TokenBucket {
        /// Tokens that the bucket holds, 0 to 2⁶⁴−1.
        size: u64,
        /// Tokens that may be used once before the bucket's own, never refilled.
        one_time_burst: Option<u64>,
        /// Milliseconds in which an empty bucket fills.
        refill_time: u64,
    }
}
