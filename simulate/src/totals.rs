//! What happened in a run, or in many, counted: by which one sees that a simulation does simulate something.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use crate::history::{Event, How, Sent, What};

/// Counts over one run, or over many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Messages confirmed to the publisher.
    pub confirmed: u64,
    /// Calls of handlers.
    pub calls: u64,
    /// Of those, panicked or dropped.
    pub broken_off: u64,
    /// Messages handled.
    pub effects: u64,
    /// Dead letters, by reason.
    pub letters: BTreeMap<String, u64>,
    /// Retries that waited at the broker.
    pub retries: u64,
    /// Claims lost.
    pub lost: u64,
    /// Members that ended from one moment to the next.
    pub dropped: u64,
    /// Members that were told to stop.
    pub stopped: u64,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
}

impl Totals {
    pub(crate) fn of(events: &[(u64, Event)]) -> Self {
        let mut totals =
            Self { simulated_ms: events.last().map_or(0, |(at, _)| at / 1000), ..Self::default() };
        for (_, event) in events {
            match event {
                Event::Sent { what: What::Message, sent: Sent::Confirmed, .. } => totals.confirmed += 1,
                Event::Sent { what: What::Retry, sent: Sent::Confirmed, .. } => totals.retries += 1,
                Event::Began { .. } => totals.calls += 1,
                Event::Ended { how: How::Panicked | How::Dropped, .. } => totals.broken_off += 1,
                Event::Effect { .. } => totals.effects += 1,
                Event::Letter { reason, .. } => *totals.letters.entry(reason.clone()).or_default() += 1,
                Event::Lost { .. } => totals.lost += 1,
                Event::Dropped { .. } => totals.dropped += 1,
                Event::Stopped { .. } => totals.stopped += 1,
                _ => {}
            }
        }
        totals
    }
}

impl AddAssign<&Totals> for Totals {
    fn add_assign(&mut self, other: &Totals) {
        self.confirmed += other.confirmed;
        self.calls += other.calls;
        self.broken_off += other.broken_off;
        self.effects += other.effects;
        self.retries += other.retries;
        self.lost += other.lost;
        self.dropped += other.dropped;
        self.stopped += other.stopped;
        self.simulated_ms += other.simulated_ms;
        for (reason, count) in &other.letters {
            *self.letters.entry(reason.clone()).or_default() += count;
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters: Vec<_> =
            self.letters.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        write!(
            f,
            "{} confirmed, {} handled in {} calls ({} broken off), {} durable retries, dead letters: {}; {} claims lost, {} members dropped, {} stopped; {} s simulated",
            self.confirmed,
            self.effects,
            self.calls,
            self.broken_off,
            self.retries,
            if letters.is_empty() { "none".to_owned() } else { letters.join(", ") },
            self.lost,
            self.dropped,
            self.stopped,
            self.simulated_ms / 1000
        )
    }
}
