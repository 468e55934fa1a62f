//! This crate against the real Firecracker that `smartvm_lab::firecracker` finds.
#![expect(clippy::unwrap_used, reason = "what cannot be set up, or is not as claimed, fails the test")]

mod bodies;
mod client;
mod config;
mod life;
mod secrecy;
mod support;
