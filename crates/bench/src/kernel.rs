//! What importing a kernel costs: from Debian's package to a bundle in a store on disk.

use std::error::Error;
use std::time::Instant;

use smartvm_images::kernel::{self, Import};
use smartvm_images::{Progress, Store};
use smartvm_lab::cache::Cache;
use smartvm_lab::debian::{KernelSeries, kernel_package};
use tokio::runtime::Runtime;

use crate::figure::{Figure, Target};

/// The bounds of [`figures`].
pub const TARGETS: [Target; 2] = [
    Target { figure: "kernel-import", says: "≤ 1 s", met: |figure| figure.median <= 1000.0 },
    Target { figure: "kernel-import-6.12", says: "≤ 1 s", met: |figure| figure.median <= 1000.0 },
];

/// `kernel-import` (6.1: lz4, modules as they are) and `kernel-import-6.12` (zstd, modules with xz), in milliseconds.
/// Each run imports into an empty store.
///
/// # Errors
/// When Debian's packages cannot be had, or an import fails.
///
/// # Panics
/// With no runs.
pub fn figures(runs: usize) -> Result<Vec<Figure>, Box<dyn Error>> {
    let runtime = Runtime::new()?;
    let kinds = [("kernel-import", KernelSeries::Stable), ("kernel-import-6.12", KernelSeries::Backports)];
    let mut figures = Vec::new();
    for (name, series) in kinds {
        let package = kernel_package(&Cache::open(), series)?;
        let mut samples = Vec::new();
        for _ in 0..runs {
            let dir = tempfile::tempdir()?;
            let store = Store::open(&dir.path().join("store"))?;
            let import = Import::paths([package.clone()]);
            let begin = Instant::now();
            runtime.block_on(kernel::import(&store, import, &Progress::none()))?;
            samples.push(begin.elapsed().as_secs_f64() * 1000.0);
        }
        figures.push(Figure::alone(name, "ms", &samples));
    }
    Ok(figures)
}
