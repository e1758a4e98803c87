//! What a route has done and how it is, counted while it runs and reported when it stops.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

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
    /// Messages received and not yet settled.
    pub in_flight: usize,
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
    trouble: Mutex<Option<Health>>,
}

impl Status {
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
