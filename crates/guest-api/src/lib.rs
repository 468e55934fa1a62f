//! What host and guest say to each other: types without a runtime of either side.

pub mod boot;
