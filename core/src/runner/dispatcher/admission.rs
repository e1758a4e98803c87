//! Attempts that wait for the route's breaker, rate or bulkhead.

use std::time::Instant;

use super::Dispatcher;
use crate::breaker::BreakerState;
use crate::runner::admission::Pass;
use crate::runner::events;

impl Dispatcher<'_> {
    /// Whether the route's guards let an attempt begin.
    pub(super) fn admitted(&mut self) -> bool {
        let Some(admission) = &mut self.admission else {
            return true;
        };
        let admitted = admission.admits(self.now);
        self.watch_breaker();
        admitted
    }

    /// Nothing starts for now: others may have what was kept for that.
    pub(super) fn rest(&mut self) {
        if let Some(admission) = &mut self.admission {
            admission.rest();
        }
    }

    /// The pass of an attempt at so many messages.
    pub(super) fn pass(&mut self, messages: usize) -> Option<Box<Pass>> {
        self.admission.as_mut()?.take(messages)
    }

    /// So many of the messages that the pass was taken for don't run.
    pub(super) fn spare(&self, pass: Option<&Pass>, messages: usize) {
        if let (Some(admission), Some(_)) = (&self.admission, pass) {
            admission.spared(messages);
        }
    }

    /// Tells of a breaker that has changed.
    pub(super) fn watch_breaker(&mut self) {
        let Some((state, left)) =
            self.admission.as_mut().and_then(|admission| admission.changed(&self.orders.env))
        else {
            return;
        };
        match state {
            BreakerState::Closed => events::breaker_closed(&self.plan.names),
            BreakerState::HalfOpen => events::breaker_probes(&self.plan.names),
            BreakerState::Open => events::breaker_opened(&self.plan.names, left),
        }
    }

    /// The clock by which the route's patience is measured: it stands still while the breaker lets nothing start.
    pub(super) fn patient_time(&self, now: Instant) -> Instant {
        match &self.admission {
            None => now,
            Some(admission) => now.checked_sub(admission.paused(now)).unwrap_or(now),
        }
    }
}
