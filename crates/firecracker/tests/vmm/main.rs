//! This crate against the real Firecracker that `smartvm_lab::firecracker` finds.
#![expect(clippy::unwrap_used, reason = "what cannot be set up, or is not as claimed, fails the test")]

mod client;
mod support;
