//! Samples, figures, and how they are printed and kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One line of a bench's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name.
    pub figure: String,
    /// The unit of `median`, `p99` and `floor_median`.
    pub unit: String,
    /// How many samples of ours.
    pub n: usize,
    /// Ours.
    pub median: f64,
    /// Ours; for few samples the worst one.
    pub p99: f64,
    /// The floor's, measured in the same run; `None` for a figure that has an absolute bound only.
    pub floor_median: Option<f64>,
    /// How much worse than the floor we are: 1 is equal, more is worse, whichever way the unit points.
    pub ratio: Option<f64>,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A time or a size.
    Lower,
    /// A rate.
    Higher,
}

impl Figure {
    /// A figure with its floor.
    ///
    /// # Panics
    /// When there are no samples: a bench that measured nothing has no figure.
    pub fn against(name: &str, unit: &str, better: Better, ours: &[f64], floor: &[f64]) -> Self {
        let (median, floor_median) = (median(ours), median(floor));
        let ratio = match better {
            Better::Lower => median / floor_median,
            Better::Higher => floor_median / median,
        };
        let worst = match better {
            Better::Lower => quantile(ours, 0.99),
            Better::Higher => quantile(ours, 0.01),
        };
        Self {
            figure: name.into(),
            unit: unit.into(),
            n: ours.len(),
            median,
            p99: worst,
            floor_median: Some(floor_median),
            ratio: Some(ratio),
        }
    }

    /// A figure with an absolute bound.
    ///
    /// # Panics
    /// When there are no samples.
    pub fn alone(name: &str, unit: &str, ours: &[f64]) -> Self {
        Self {
            figure: name.into(),
            unit: unit.into(),
            n: ours.len(),
            median: median(ours),
            p99: quantile(ours, 0.99),
            floor_median: None,
            ratio: None,
        }
    }
}

/// The middle sample.
///
/// # Panics
/// When there are none.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The sample below which this share of all lies (nearest rank).
///
/// # Panics
/// When there are none.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    assert!(!samples.is_empty(), "a figure needs samples");
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// What a figure must reach.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The figure's name.
    pub figure: &'static str,
    /// The bound in words.
    pub says: &'static str,
    /// Whether it is met.
    pub met: fn(&Figure) -> bool,
}

/// The figures as a table for people, each with its target.
pub fn table(figures: &[Figure], targets: &[Target]) -> String {
    let mut lines = vec![format!(
        "{:<26} {:>6} {:>9} {:>9} {:>9} {:>7}  {}",
        "figure", "n", "median", "p99", "floor", "ratio", "target"
    )];
    let optional = |value: Option<f64>, digits| value.map_or_else(|| "-".into(), |v| format!("{v:.digits$}"));
    for figure in figures {
        let verdicts: Vec<String> = targets
            .iter()
            .filter(|target| target.figure == figure.figure)
            .map(|target| {
                format!("{} {}", if (target.met)(figure) { "met:" } else { "MISSED:" }, target.says)
            })
            .collect();
        lines.push(format!(
            "{:<26} {:>6} {:>9.3} {:>9.3} {:>9} {:>7}  {}",
            format!("{} [{}]", figure.figure, figure.unit),
            figure.n,
            figure.median,
            figure.p99,
            optional(figure.floor_median, 3),
            optional(figure.ratio, 2),
            verdicts.join("; ")
        ));
    }
    lines.join("\n")
}

/// Writes the figures to `<target dir>/bench/<name>.json` and says where.
///
/// # Errors
/// When the directory or file cannot be written.
pub fn keep(target_dir: &Path, name: &str, figures: &[Figure]) -> io::Result<PathBuf> {
    let dir = target_dir.join("bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_string_pretty(figures)? + "\n")?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!(median(&samples), 3.0);
        assert_eq!(quantile(&samples, 0.99), 5.0);
        assert_eq!(quantile(&samples, 0.01), 1.0);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn a_ratio_above_one_is_worse_whichever_way_the_unit_points() {
        let time = Figure::against("t", "ms", Better::Lower, &[2.0], &[1.0]);
        let rate = Figure::against("r", "VMs/s", Better::Higher, &[50.0], &[100.0]);
        assert_eq!((time.ratio, rate.ratio), (Some(2.0), Some(2.0)));
    }
}
