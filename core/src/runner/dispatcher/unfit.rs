//! Messages that never reach the handler: their headers are beyond the bounds, or their time has passed.

use std::sync::atomic::Ordering::Relaxed;

use super::{Dispatcher, Items};
use crate::envelope::Envelope;
use crate::error::BoxError;
use crate::idempotency::Ending;
use crate::letters::REASON;
use crate::outcome::Reason;
use crate::policy::OnExpired;

pub(super) enum Unfit {
    Reject(Reason, BoxError),
    Drop,
}

impl Dispatcher<'_> {
    /// Why a message isn't handed to the handler at all.
    pub(super) fn unfit(&self, envelope: &Envelope) -> Option<Unfit> {
        if envelope.headers().get(REASON).is_some() {
            // a dead letter is read as it is: that its headers break a bound or its time has passed may be why it is one
            return None;
        }
        if envelope.breaks_bounds() {
            return Some(Unfit::Reject(Reason::Oversize, "its headers are beyond the bounds".into()));
        }
        let expires = envelope.expires_ms()?;
        if expires > self.orders.env.wall_ms() {
            return None;
        }
        match self.plan.on_expired {
            OnExpired::Drop => Some(Unfit::Drop),
            OnExpired::DeadLetter => {
                Some(Unfit::Reject(Reason::Expired, "its expiry time has passed".into()))
            }
        }
    }

    /// Settles those that never reach the handler, and answers the others.
    #[cold]
    pub(super) fn sort_out(&mut self, items: Items, occupied: bool) -> Items {
        let mut fit = Items::new();
        for mut held in items {
            let Some(unfit) = self.unfit(&held.delivery.envelope) else {
                fit.push(held);
                continue;
            };
            self.not_alone_now(&mut held);
            if !occupied {
                held.lane.into_iter().for_each(|lane| self.lanes.occupy(lane));
            }
            match unfit {
                Unfit::Reject(reason, error) => self.give_up(held, reason, &error),
                Unfit::Drop => {
                    self.status.dropped.fetch_add(1, Relaxed);
                    self.end(held, |_, _| Ending::Released);
                }
            }
        }
        fit
    }
}
