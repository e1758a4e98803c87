//! What a route has done and how it is, counted while it runs and reported when it stops.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::breaker::BreakerState;
use crate::subscribe::{Health, HealthState};

/// What one route did, from start to stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RouteReport {
    /// The handler's name.
    pub route: String,
    /// The channel that it read.
    pub channel: String,
    /// The group that it read for; `(ephemeral)` without one.
    pub group: String,
    /// Messages handled and acknowledged.
    pub handled: u64,
    /// Failed attempts after which another was decided on.
    pub retried: u64,
    /// Messages that went to the dead letters, confirmed.
    pub dead_lettered: u64,
    /// Messages that came again after they were handled or dead-lettered: acknowledged without calling the handler.
    pub duplicates: u64,
    /// Messages dropped by policy: expired, or given up on without dead letters.
    pub dropped: u64,
    /// Messages given back when it stopped or lost a claim: another member handles them.
    pub given_back: u64,
    /// Handlers that were cancelled at the deadline or because their claim was lost.
    pub cancelled: u64,
    /// Messages that retention had removed before they were read.
    pub missed: u64,
}

/// What a whole service did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// One for each route, in the router's order.
    pub routes: Vec<RouteReport>,
    /// Whether every handler finished before the deadline.
    pub drained: bool,
    /// How long stopping took.
    pub took: Duration,
}

/// As a table, one line a route.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.routes.iter().map(|r| r.route.len() + r.channel.len() + r.group.len() + 8);
        let width = names.max().unwrap_or(0).max(5);
        write!(
            f,
            "{:width$} {:>9} {:>9} {:>13} {:>10}",
            "route", "handled", "retried", "dead-lettered", "given back"
        )?;
        for r in &self.routes {
            let name = format!("{} ({} → {})", r.route, r.channel, r.group);
            write!(
                f,
                "\n{name:width$} {:>9} {:>9} {:>13} {:>10}",
                r.handled, r.retried, r.dead_lettered, r.given_back
            )?;
        }
        Ok(())
    }
}

/// What a route does, or waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouteState {
    /// It handles what comes.
    #[default]
    Running,
    /// Nothing starts before its breaker lets an attempt through.
    PausedByBreaker,
    /// What is over its rate waits.
    PausedByRate,
    /// It waits for a place in a bulkhead.
    PausedByBulkhead,
    /// Nothing new starts before a dead letter that the broker didn't take is published.
    PausedByDeadLetters,
    /// A message that may end processes runs alone.
    Alone,
    /// The connection is degraded or down: it is being restored, or the broker takes nothing at present. [`ServiceHealth::connection`] says
    /// which.
    ConnectionTroubled,
}

/// How a route is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteHealth {
    /// The handler's name.
    pub route: String,
    /// The channel that it reads.
    pub channel: String,
    /// The group that it reads for.
    pub group: String,
    /// In one word, and why.
    pub health: Health,
    /// What it does, or waits for.
    pub state: RouteState,
    /// Messages received and not yet settled.
    pub in_flight: usize,
    /// How long ago the oldest of them was received.
    pub oldest_unsettled: Option<Duration>,
    /// Messages that its group has still to settle, where the broker tells and it was asked:
    /// [`Running::health_with_lag`](crate::Running::health_with_lag).
    pub lag: Option<u64>,
    /// Messages since the last one that was handled which failed their attempt.
    pub consecutive_failures: u64,
    /// Its breaker; `None` without one.
    pub breaker: Option<BreakerState>,
}

/// How a whole service is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceHealth {
    /// The worst of the connection and all routes.
    pub state: HealthState,
    /// The connection.
    pub connection: Health,
    /// One for each route.
    pub routes: Vec<RouteHealth>,
}

/// The counters of a running route, shared between its task and those who ask.
#[derive(Debug, Default)]
pub(crate) struct Status {
    pub(crate) handled: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) dead_lettered: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) given_back: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) missed: AtomicU64,
    pub(crate) in_flight: AtomicUsize,
    /// Rises whenever anything happens: two equal readings with nothing in flight between them mean that it is idle.
    pub(crate) activity: AtomicU64,
    pub(crate) consecutive_failures: AtomicU64,
    /// Dead letters that can't be published at present; while there are any, nothing new starts.
    pub(crate) stalled: AtomicUsize,
    pub(crate) arrivals: Arrivals,
    state: Mutex<RouteState>,
    trouble: Mutex<Option<Health>>,
}

/// When the messages that are unsettled were received. Those that came together share one time, which is known to be over when nobody
/// has it any more: so nothing has to be told when a message is settled.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Mutex<VecDeque<Arc<Instant>>>);

impl Arrivals {
    /// Messages came at this time; each has the answer for as long as it is unsettled.
    pub(crate) fn at(&self, now: Instant) -> Arc<Instant> {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut over = None;
        while times.front().is_some_and(|time| Arc::strong_count(time) == 1) {
            over = times.pop_front();
        }
        let mut time = over.unwrap_or_else(|| Arc::new(now));
        // one that nobody has is used again, so that messages that come one by one cost no allocation
        if let Some(time) = Arc::get_mut(&mut time) {
            *time = now;
        }
        times.push_back(Arc::clone(&time));
        time
    }

    /// How long ago the oldest that is unsettled came.
    pub(crate) fn oldest(&self, now: Instant) -> Option<Duration> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = times.iter().find(|time| Arc::strong_count(time) > 1)?;
        Some(now.saturating_duration_since(**oldest))
    }
}

impl Status {
    pub(crate) fn set_state(&self, state: RouteState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    pub(crate) fn state(&self) -> RouteState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_trouble(&self, trouble: Option<Health>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    pub(crate) fn trouble(&self) -> Option<Health> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn report(&self, route: &str, channel: &str, group: &str) -> RouteReport {
        RouteReport {
            route: route.into(),
            channel: channel.into(),
            group: group.into(),
            handled: self.handled.load(Relaxed),
            retried: self.retried.load(Relaxed),
            dead_lettered: self.dead_lettered.load(Relaxed),
            duplicates: self.duplicates.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            given_back: self.given_back.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            missed: self.missed.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_first_that_somebody_still_has() {
        let (arrivals, began) = (Arrivals::default(), Instant::now());
        let at = |ms| began + Duration::from_millis(ms);
        assert_eq!(arrivals.oldest(at(0)), None);
        let (one, two) = (arrivals.at(at(0)), arrivals.at(at(10)));
        let also_one = Arc::clone(&one);
        drop(one);
        assert_eq!(arrivals.oldest(at(50)), Some(Duration::from_millis(50)));
        drop(also_one);
        assert_eq!(arrivals.oldest(at(50)), Some(Duration::from_millis(40)));
        let three = arrivals.at(at(60));
        drop(two);
        assert_eq!(arrivals.oldest(at(70)), Some(Duration::from_millis(10)));
        drop(three);
        assert_eq!(arrivals.oldest(at(70)), None);
        for ms in 100..200 {
            drop(arrivals.at(at(ms)));
        }
        assert!(arrivals.0.lock().unwrap().len() <= 2, "times that are over don't pile up");
    }
}
