//! What a bench found, as programs read it.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::case::{Case, Kind, Subject};
use crate::growth::figures::Growth;
use crate::job::Job;
use crate::meter::Measured;
use crate::rounds::{Extent, Runs, median};

/// A bench.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) versions: Vec<String>,
    pub(crate) rounds: usize,
    /// How long a round was to last; 0 of growth and of instructions, whose rounds are as long as it takes.
    pub(crate) seconds: f64,
    pub(crate) results: Vec<Row>,
    pub(crate) latency: Vec<Latency>,
    #[serde(default)]
    pub(crate) growth: Vec<Growth>,
    #[serde(default)]
    pub(crate) instructions: Vec<Counted>,
    /// Where **best** was too weak to be compared with.
    pub(crate) weak: Vec<String>,
}

/// Where it ran.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) processor: Option<String>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) system: Option<String>,
}

/// A case on a broker. Fields that don't apply are null; a ratio is taken round by round, of rates to **best**'s.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) broker: String,
    pub(crate) case: String,
    /// Bytes of JSON.
    pub(crate) payload: usize,
    pub(crate) concurrency: Option<usize>,
    /// Messages a second, the median of the rounds.
    pub(crate) postrider: f64,
    pub(crate) usual: Option<f64>,
    pub(crate) best: f64,
    /// The best publisher of bodies alone.
    pub(crate) bare: Option<f64>,
    /// The same with 256 in flight.
    pub(crate) narrow: Option<f64>,
    pub(crate) ratio: f64,
    pub(crate) ratio_min: f64,
    pub(crate) ratio_max: f64,
    /// postrider's rate to **usual**'s.
    pub(crate) ratio_usual: Option<f64>,
    /// postrider's rate to **bare**'s.
    pub(crate) ratio_bare: Option<f64>,
    /// postrider's processor time a message to **best**'s.
    pub(crate) cpu_ratio: f64,
    /// Processor seconds a million messages.
    pub(crate) cpu_per_million: f64,
    pub(crate) cpu_per_million_best: f64,
    /// What the ratio is to reach.
    pub(crate) target: f64,
    pub(crate) allocs_per_message: Option<f64>,
    pub(crate) best_allocs_per_message: Option<f64>,
    /// The most bytes resident of postrider's process, of all rounds.
    pub(crate) peak_rss_bytes: Option<u64>,
    pub(crate) best_peak_rss_bytes: Option<u64>,
    /// Messages that postrider handled more than once, of all rounds.
    pub(crate) doubled: u64,
}

/// Instructions a message, those of all threads and of the client included.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) broker: String,
    pub(crate) case: String,
    /// Bytes of JSON.
    pub(crate) payload: usize,
    pub(crate) postrider: f64,
    pub(crate) best: f64,
    pub(crate) ratio: f64,
    /// What the ratio may be; null where nothing is asked for.
    pub(crate) most: Option<f64>,
}

/// From sending to handling, at half the rate that postrider and **best** both manage.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) broker: String,
    pub(crate) case: String,
    pub(crate) payload: usize,
    pub(crate) rate: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// Over **best**'s.
    pub(crate) added_p50_us: f64,
    pub(crate) added_p99_us: f64,
    pub(crate) added_p999_us: f64,
    /// What may be added to p99: 100 µs, or a tenth of **best**'s where that is more.
    pub(crate) allowed_p99_us: f64,
}

impl Report {
    pub(crate) fn new(extent: Extent) -> Self {
        Self {
            machine: Machine::look(),
            versions: Vec::new(),
            rounds: extent.rounds,
            seconds: extent.seconds,
            results: Vec::new(),
            latency: Vec::new(),
            growth: Vec::new(),
            instructions: Vec::new(),
            weak: Vec::new(),
        }
    }

    /// Takes up what a case found.
    pub(crate) fn add(&mut self, job: &Job, runs: &[Runs]) {
        let (Some(ours), Some(best)) = (of(runs, Subject::Postrider), of(runs, Subject::Best)) else {
            return;
        };
        if job.case == Case::Latency {
            self.latency.push(latency(job, ours, best));
        } else {
            self.results.push(row(job, ours, best, runs));
        }
    }

    /// The rows of a broker.
    pub(crate) fn of(&self, kind: Kind) -> impl Iterator<Item = &Row> {
        self.results.iter().filter(move |row| row.broker == kind.name())
    }
}

fn of(runs: &[Runs], subject: Subject) -> Option<&Runs> {
    runs.iter().find(|runs| runs.subject == subject)
}

fn figures(runs: &Runs, of: impl Fn(&Measured) -> f64) -> Vec<f64> {
    runs.rounds.iter().map(of).collect()
}

fn ratios(ours: &Runs, theirs: &Runs, of: impl Fn(&Measured) -> f64) -> Vec<f64> {
    ours.rounds.iter().zip(&theirs.rounds).map(|(ours, theirs)| of(ours) / of(theirs)).collect()
}

fn row(job: &Job, ours: &Runs, best: &Runs, runs: &[Runs]) -> Row {
    let ratio = ratios(ours, best, Measured::rate);
    let (usual, bare) = (of(runs, Subject::Usual), of(runs, Subject::Bare));
    let rate = |runs: &Runs| median(&figures(runs, Measured::rate));
    let peak = |runs: &Runs| runs.rounds.iter().filter_map(|m| m.peak_rss_bytes).max();
    Row {
        broker: job.broker.name().to_owned(),
        case: job.case.name().to_owned(),
        payload: job.payload,
        concurrency: job.case.concurrency(),
        postrider: rate(ours),
        usual: usual.map(rate),
        best: rate(best),
        bare: bare.map(rate),
        narrow: of(runs, Subject::Narrow).map(rate),
        ratio: median(&ratio),
        ratio_min: ratio.iter().copied().fold(f64::INFINITY, f64::min),
        ratio_max: ratio.iter().copied().fold(0.0, f64::max),
        ratio_usual: usual.map(|usual| median(&ratios(ours, usual, Measured::rate))),
        ratio_bare: bare.map(|bare| median(&ratios(ours, bare, Measured::rate))),
        cpu_ratio: median(&ratios(ours, best, Measured::cpu_per_million)),
        cpu_per_million: median(&figures(ours, Measured::cpu_per_million)),
        cpu_per_million_best: median(&figures(best, Measured::cpu_per_million)),
        target: job.case.target(job.broker),
        allocs_per_message: ours.allocations,
        best_allocs_per_message: best.allocations,
        peak_rss_bytes: peak(ours),
        best_peak_rss_bytes: peak(best),
        doubled: ours.rounds.iter().map(|m| m.doubled).sum(),
    }
}

fn latency(job: &Job, ours: &Runs, best: &Runs) -> Latency {
    let at = |runs, n: usize| median(&figures(runs, |m| m.latency_us.map_or(f64::NAN, |us| us[n])));
    Latency {
        broker: job.broker.name().to_owned(),
        case: job.case.name().to_owned(),
        payload: job.payload,
        rate: median(&figures(best, Measured::rate)),
        p50_us: at(ours, 0),
        p99_us: at(ours, 1),
        p999_us: at(ours, 2),
        added_p50_us: at(ours, 0) - at(best, 0),
        added_p99_us: at(ours, 1) - at(best, 1),
        added_p999_us: at(ours, 2) - at(best, 2),
        allowed_p99_us: (at(best, 1) / 10.0).max(100.0),
    }
}

impl Machine {
    fn look() -> Self {
        let line = |file: &str, name: &str| {
            let text = fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = line("/proc/meminfo", "MemTotal");
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: line("/proc/cpuinfo", "model name"),
            memory_bytes: memory
                .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
                .map(|kib| kib * 1024),
            system: fs::read_to_string("/proc/sys/kernel/osrelease")
                .ok()
                .map(|text| format!("Linux {}", text.trim())),
        }
    }
}
