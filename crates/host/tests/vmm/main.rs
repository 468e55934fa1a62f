//! The process room against the real Firecracker.

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod flat;
#[cfg(test)]
mod life;
#[cfg(test)]
mod ownership;
#[cfg(test)]
mod readiness;
