//! The short way of most messages: nothing is known against it, its lane is free, there is room, and the handler is done at its first
//! poll. Such a message is never held: it is handled where it arrived, and acknowledged.

use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use super::{Begun, Dispatcher, Hands, Held, Items};
use crate::delivery::Delivery;
use crate::extract::Incoming;
use crate::outcome::Outcome;
use crate::runner::crew::Work;
use crate::runner::lanes::LaneId;
use crate::settle::Settlement;

impl Dispatcher<'_> {
    /// Whether deliveries may go the short way at all, as the route was planned and as it stands.
    pub(super) fn is_direct(&self) -> bool {
        matches!(self.hands, Hands::Own(_))
            && self.plan.batch.is_none()
            && self.plan.idempotency.is_none()
            && !self.plan.subscribe.durable_retry
            && self.admission.is_none()
            && self.revoking.is_empty()
            && self.taken_back.is_empty()
    }

    /// Handles a delivery where it stands, if nothing keeps it from beginning; else gives it back.
    pub(super) fn direct(
        &mut self,
        delivery: Delivery,
        lane: Option<LaneId>,
        received: &Arc<Instant>,
        cx: &mut Context<'_>,
    ) -> Option<Delivery> {
        if !self.ready.is_empty()
            || lane.is_some_and(|lane| self.lanes.is_busy(lane))
            || self.is_suspect(&delivery)
            || self.unfit(&delivery.envelope).is_some()
            || !self.has_room()
        {
            return Some(delivery);
        }
        let Hands::Own(crew) = &mut self.hands else { return Some(delivery) };
        let incoming =
            Incoming::new(delivery.envelope.clone(), Vec::new(), 1, delivery.deliveries, delivery.claim_id());
        let begun = crew.start(|| self.jobs.next(), Work::Handle(incoming), cx);
        if let Begun::Ended(Outcome::Done(_)) = begun {
            self.handled += 1;
            self.settled.push((delivery.claim, Settlement::Ack));
            return None;
        }
        let items = Items::from_iter([Held::new(delivery, lane, Arc::clone(received), self.patient_now)]);
        let publishes = match begun {
            Begun::Ended(outcome) => {
                self.conclude(items, None, outcome, false);
                // what is tried again at once isn't in the way of those that came after it
                self.pump(cx);
                return None;
            }
            Begun::Waits { publishes } => publishes,
        };
        if let Some(lane) = lane {
            self.lanes.occupy(lane);
        }
        self.jobs.insert(items, None, publishes);
        None
    }
}
