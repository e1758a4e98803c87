//! What a stretch of work took: time, processor time of the whole process, and allocations where they are counted.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Tells how many allocations this process has made.
pub type CountAllocations = fn() -> u64;

/// What a run of a subject found; a process tells it to the one that started it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) messages: u64,
    /// Messages that came more than once.
    pub(crate) doubled: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) allocations: Option<u64>,
    /// Of the whole process, from its start to its end, where they were counted.
    #[serde(default)]
    pub(crate) instructions: Option<u64>,
    pub(crate) peak_rss_bytes: Option<u64>,
    /// Median, 99 % and 99.9 % of the times from sending to handling, in microseconds.
    pub(crate) latency_us: Option<[f64; 3]>,
}

impl Measured {
    /// Messages a second.
    pub(crate) fn rate(&self) -> f64 {
        self.messages as f64 / self.seconds
    }

    /// Processor seconds a million messages.
    pub(crate) fn cpu_per_million(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.messages as f64
    }
}

/// Begun with the first message, ended with the last: what comes before and after isn't the broker's speed.
#[derive(Debug)]
pub(crate) struct Meter {
    count: Option<CountAllocations>,
    begun: Mutex<Option<Reading>>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    cpu: Duration,
    allocations: Option<u64>,
}

impl Meter {
    pub(crate) fn new(count: Option<CountAllocations>) -> Self {
        Self { count, begun: Mutex::new(None) }
    }

    /// The first call counts.
    pub(crate) fn begin(&self) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.is_none() {
            *begun = Some(self.read());
        }
    }

    /// What it took since.
    pub(crate) fn end(&self, messages: u64) -> Measured {
        let now = self.read();
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(now);
        Measured {
            messages,
            doubled: 0,
            seconds: (now.at - begun.at).as_secs_f64(),
            cpu_seconds: now.cpu.saturating_sub(begun.cpu).as_secs_f64(),
            allocations: now.allocations.zip(begun.allocations).map(|(now, begun)| now - begun),
            instructions: None,
            peak_rss_bytes: peak_rss_bytes(),
            latency_us: None,
        }
    }

    fn read(&self) -> Reading {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Reading {
            at: Instant::now(),
            cpu: Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32),
            allocations: self.count.map(|count| count()),
        }
    }
}

/// As the system tells it, where it does.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
