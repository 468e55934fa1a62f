//! Benches of smartvm against floors that are measured in the same run.
//!
//! A figure is worth something only beside its floor: a minimal program of our own that does the same by hand.
//! Both are measured by turns, so that whatever else the machine does hits both.

pub mod figure;
pub mod floor;
pub mod image;
pub mod kernel;
pub mod scene;
