//! The figures as a table for people and as JSON for programs.

use std::fmt;

use serde::Serialize;

use crate::rounds::{Figures, median};

/// A run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Messages a round.
    pub(crate) messages: u64,
    pub(crate) rounds: u32,
    pub(crate) results: Vec<Row>,
}

/// A case on a broker. Fields that don't apply are null.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    broker: &'static str,
    case: &'static str,
    /// Bytes of JSON.
    payload: usize,
    concurrency: Option<usize>,
    /// Messages a second, the median of the rounds.
    postrider: f64,
    usual: Option<f64>,
    best: f64,
    /// postrider to best, round by round: the median, the smallest and the largest.
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    ratio_usual: Option<f64>,
    cpu_ratio: Option<f64>,
    /// What the ratio is to reach.
    target: f64,
    allocs_per_message: f64,
    best_allocs_per_message: f64,
    /// The most bytes resident, of the whole run.
    peak_rss_bytes: Option<u64>,
}

impl Row {
    /// Publish and handle on the embedded broker.
    pub(crate) fn embedded(figures: &Figures, allocations: f64, best_allocations: f64) -> Self {
        let ratios: Vec<_> = figures.postrider.iter().zip(&figures.best).map(|(p, b)| p / b).collect();
        Self {
            broker: "memory",
            case: "publish and handle, key order",
            payload: 256,
            concurrency: None,
            postrider: median(&figures.postrider),
            usual: None,
            best: median(&figures.best),
            ratio: median(&ratios),
            ratio_min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratio_max: ratios.iter().copied().fold(0.0, f64::max),
            ratio_usual: None,
            cpu_ratio: None,
            target: 0.70,
            allocs_per_message: allocations,
            best_allocs_per_message: best_allocations,
            peak_rss_bytes: peak_rss_bytes(),
        }
    }
}

/// As the system tells it, where it does.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8} {:<30} {:>12} {:>12} {:>7} {:>15} {:>7} {:>12} {:>10}",
            "broker", "case", "postrider/s", "best/s", "ratio", "spread", "target", "allocs/msg", "peak RSS"
        )?;
        for row in &self.results {
            writeln!(
                f,
                "{:<8} {:<30} {:>12.0} {:>12.0} {:>7.2} {:>15} {:>7.2} {:>12} {:>10}",
                row.broker,
                row.case,
                row.postrider,
                row.best,
                row.ratio,
                format!("{:.2} to {:.2}", row.ratio_min, row.ratio_max),
                row.target,
                format!("{:.1} / {:.1}", row.allocs_per_message, row.best_allocs_per_message),
                row.peak_rss_bytes.map_or("?".into(), |bytes| format!("{} MiB", bytes >> 20)),
            )?;
        }
        Ok(())
    }
}
