//! What was handled: every number once, however they come. All subjects call it for each message, so that it costs all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::meter::{CountAllocations, Measured, Meter};
use crate::order::OrderPlaced;

/// Counts what is handled and knows when it is all.
#[derive(Clone, Debug)]
pub(crate) struct Tally(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    meter: Meter,
    wanted: u64,
    /// How many are handled before the measuring begins.
    warm: u64,
    /// A bit for each number.
    seen: Vec<AtomicU64>,
    handled: AtomicU64,
    doubled: AtomicU64,
    /// When each was sent and how long it took, in tenths of a microsecond; empty where nobody asks.
    times: Vec<(AtomicU64, AtomicU32)>,
    origin: Instant,
    measured: watch::Sender<Option<Measured>>,
    /// How many somebody waits for.
    goal: AtomicU64,
    reached: Notify,
}

impl Tally {
    /// Of so many messages, with the time of each where asked for.
    pub(crate) fn of(wanted: u64, timed: bool, count: Option<CountAllocations>) -> Self {
        Self::new(0, wanted, timed, count)
    }

    /// Of so many messages, of which the first `warm` aren't measured.
    pub(crate) fn warmed(warm: u64, wanted: u64) -> Self {
        Self::new(warm, wanted, false, None)
    }

    fn new(warm: u64, wanted: u64, timed: bool, count: Option<CountAllocations>) -> Self {
        let seen = (0..wanted.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let times = (0..if timed { wanted } else { 0 }).map(|_| (AtomicU64::new(0), AtomicU32::new(0)));
        Self(Arc::new(Inner {
            meter: Meter::new(count),
            wanted,
            warm,
            seen,
            handled: AtomicU64::new(0),
            doubled: AtomicU64::new(0),
            times: times.collect(),
            origin: Instant::now(),
            measured: watch::channel(None).0,
            goal: AtomicU64::new(wanted),
            reached: Notify::new(),
        }))
    }

    /// The order of that number goes out, or should have at that time.
    pub(crate) fn sent(&self, number: u64, at: Instant) {
        if let Some((sent, _)) = self.0.times.get(number as usize) {
            sent.store((at - self.0.origin).as_nanos() as u64, Relaxed);
        }
    }

    /// The measuring begins, if it hasn't.
    pub(crate) fn begin(&self) {
        self.0.meter.begin();
    }

    /// Handles an order.
    pub(crate) fn add(&self, order: &OrderPlaced) {
        let (inner, number) = (&*self.0, order.serial());
        std::hint::black_box(order);
        let bit = 1 << (number % 64);
        let known = inner.seen.get((number / 64) as usize).map_or(bit, |word| word.fetch_or(bit, Relaxed));
        if known & bit != 0 {
            inner.doubled.fetch_add(1, Relaxed);
            return;
        }
        if let Some((sent, took)) = inner.times.get(number as usize) {
            let took_ns = inner.origin.elapsed().as_nanos() as u64 - sent.load(Relaxed);
            took.store((took_ns / 100).min(u64::from(u32::MAX)) as u32, Relaxed);
        }
        let handled = inner.handled.fetch_add(1, Relaxed) + 1;
        if handled == inner.warm.max(1) {
            inner.meter.begin();
        }
        if handled == inner.wanted {
            inner.measured.send_replace(Some(inner.meter.end(inner.wanted - inner.warm)));
        }
        if handled == inner.goal.load(Relaxed) {
            inner.reached.notify_one();
        }
    }

    /// Whether all are handled.
    pub(crate) fn is_full(&self) -> bool {
        self.0.handled.load(Relaxed) >= self.0.wanted
    }

    /// So many are to be handled next, of which some are still to come. Said while nothing is handled.
    pub(crate) fn expect(&self, goal: u64) {
        self.0.goal.store(goal, Relaxed);
    }

    /// Resolves when as many are handled as were [expected](Self::expect).
    pub(crate) async fn reached(&self) {
        self.0.reached.notified().await;
    }

    /// How many came more than once.
    pub(crate) fn doubled(&self) -> u64 {
        self.0.doubled.load(Relaxed)
    }

    /// Resolves when all are handled.
    pub(crate) async fn full(&self) {
        // the sender lives as long as this
        let _ = self.0.measured.subscribe().wait_for(Option::is_some).await;
    }

    /// What was found: after the subject has stopped, so that what came twice at the end counts.
    pub(crate) fn measured(&self) -> Option<Measured> {
        let mut measured = self.0.measured.borrow().clone()?;
        measured.doubled = self.doubled();
        if !self.0.times.is_empty() {
            // the first half came while members were still joining their group
            let settled = &self.0.times[self.0.times.len() / 2..];
            let mut times: Vec<_> = settled.iter().map(|(_, took)| took.load(Relaxed)).collect();
            times.sort_unstable();
            let at = |share: f64| {
                let index = ((times.len() as f64 * share) as usize).min(times.len() - 1);
                f64::from(times[index]) / 10.0
            };
            measured.latency_us = Some([at(0.5), at(0.99), at(0.999)]);
        }
        Some(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_twice_counts_once_and_is_told() {
        let tally = Tally::of(2, false, None);
        let mut order = OrderPlaced::template(256);
        for number in [1, 1] {
            order.number(number);
            tally.add(&order);
        }
        assert!(tally.measured().is_none(), "number 0 is missing");
        order.number(0);
        tally.add(&order);
        assert_eq!(tally.measured().unwrap().doubled, 1);
    }
}
