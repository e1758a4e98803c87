//! What becomes of messages whose attempt has ended: they are acknowledged, tried again or given up.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::unpublished::unpublished;
use super::{Dispatcher, Held, Items};
use crate::error::{BoxError, Class};
use crate::idempotency::Ending;
use crate::outcome::{Outcome, Reason};
use crate::policy::Verdict;
use crate::runner::admission::Pass;
use crate::runner::events;
use crate::runner::held::Delayed;
use crate::runner::lanes::LaneId;
use crate::settle::Settlement;

/// What stands for a wait that is longer than clocks reach.
const LONGEST_WAIT: Duration = Duration::from_hours(24 * 365);

impl Dispatcher<'_> {
    /// What an outcome means for its messages.
    pub(super) fn conclude(
        &mut self,
        items: Items,
        pass: Option<Box<Pass>>,
        outcome: Outcome,
        occupied: bool,
    ) {
        if let Some(pass) = pass {
            pass.ended(&outcome);
            self.watch_breaker();
        }
        if !self.suspects.is_empty() && items.iter().any(|held| self.suspects.is_alone(held)) {
            self.end_alone();
        }
        if let Outcome::Done(_) = outcome {
            self.handled += items.len() as u64;
            for held in items {
                if held.reservation.is_some() {
                    self.end(held, |ttl, _| Ending::Completed(ttl));
                } else {
                    self.acknowledge(held, occupied);
                }
            }
            return;
        }
        if !occupied {
            items.iter().filter_map(|held| held.lane).for_each(|lane| self.lanes.occupy(lane));
        }
        let verdicts = spread(outcome, items.len());
        let mut again: Vec<(Duration, Items)> = Vec::new();
        for (mut held, outcome) in items.into_iter().zip(verdicts) {
            if let Some(reservation) = &mut held.reservation {
                // the next attempt asks for more time
                reservation.lapse();
            }
            let outcome = match unpublished(outcome) {
                Err(outcome) => outcome,
                Ok(unpublished) => {
                    // no attempt: the handler is done, whoever waits behind it in its lane
                    let wait = self.keep_outputs(&mut held, *unpublished);
                    again.push((wait, Items::from_iter([held])));
                    continue;
                }
            };
            let same_lane =
                |(_, items): &&mut (Duration, Items)| held.lane.is_some() && items[0].lane == held.lane;
            if let Some((_, behind)) = again.iter_mut().find(same_lane) {
                // an earlier message of its key is tried again, so this one counts as not run
                behind.push(held);
                continue;
            }
            match outcome {
                Outcome::Done(_) => {
                    self.handled += 1;
                    self.end(held, |ttl, _| Ending::Completed(ttl));
                }
                // whoever has it next begins anew
                _ if self.late || self.is_lost(&held) => {
                    again.push((Duration::ZERO, Items::from_iter([held])));
                }
                Outcome::Retry(error, advised) => match self.verdict(&mut held, advised) {
                    Verdict::Again(wait) => {
                        events::retry(&self.plan.names, &held.delivery, held.attempt, wait, &*error);
                        self.status.retried.fetch_add(1, Relaxed);
                        held.attempt += 1;
                        held.wait = wait;
                        again.push((wait, Items::from_iter([held])));
                    }
                    Verdict::GiveUp => self.give_up(held, Reason::Exhausted, &error),
                },
                Outcome::Reject(reason, error) => self.give_up(held, reason, &error),
                // `spread` leaves no batch inside a batch
                Outcome::Each(_) => self.give_up(held, Reason::Rejected, &"a batch inside a batch".into()),
            }
        }
        for (wait, items) in again {
            let (lost, mut items): (Items, Items) = items.into_iter().partition(|held| self.is_lost(held));
            lost.into_iter().for_each(|held| self.leave(held));
            if items.is_empty() {
                continue;
            }
            if self.late {
                self.returned.extend(items);
            } else if self.plan.subscribe.durable_retry
                && items[0].outputs.is_none()
                && !self.is_revoking(&items[0])
            {
                // without order nothing waits behind it
                items.drain(..).for_each(|held| self.send_retry(held, wait));
            } else {
                self.delay(wait, items);
            }
        }
    }

    fn verdict(&mut self, held: &mut Held, advised: Option<Duration>) -> Verdict {
        let env = &self.orders.env;
        if held.first_failed_ms == 0 {
            held.first_failed_ms = env.wall_ms();
        }
        self.status.consecutive_failures.fetch_add(1, Relaxed);
        let elapsed = self.patient_time(env.now()).saturating_duration_since(held.began);
        self.plan.retry.verdict(held.attempt, elapsed, held.wait, Class::Retry(advised), env.random())
    }

    /// The first waits, or is the next if there is no wait; what came after it in its lane waits for it.
    pub(super) fn delay(&mut self, wait: Duration, items: Items) {
        if self.is_revoking(&items[0]) {
            // whoever holds the claim next tries again
            return items.into_iter().for_each(|held| self.withhold(held));
        }
        let mut items = items.into_iter();
        let Some(held) = items.next() else { return };
        if let Some(lane) = held.lane {
            self.lanes.put_back(lane, items);
        }
        if wait.is_zero() && held.attempt == 2 {
            // whoever fails again lets the others go first, and a stop be noticed
            return self.ready.push_front(held);
        }
        self.delays += 1;
        let now = self.orders.env.now();
        // what a handler advises may be more than the clock can count
        let due = now.checked_add(wait).unwrap_or(now + LONGEST_WAIT);
        self.delayed.push(Delayed { due, number: self.delays, held });
    }

    pub(super) fn acknowledge(&mut self, held: Held, occupied: bool) {
        if occupied && let Some(lane) = held.lane {
            self.release(lane);
        }
        self.settled.push((held.delivery.claim, Settlement::Ack));
    }

    /// What ran in the lane has ended: the next one is ready.
    pub(super) fn release(&mut self, lane: LaneId) {
        if let Some(next) = self.lanes.finished(lane) {
            self.ready.push_back(next);
        }
    }

    pub(super) fn give_up(&mut self, held: Held, reason: Reason, error: &BoxError) {
        if let Some(channel) = self.plan.dead_letter_of(reason) {
            self.send_letter(held, reason, error, channel);
        } else {
            events::dropped(&self.plan.names, &held.delivery, held.attempt, reason, &**error);
            self.status.dropped.fetch_add(1, Relaxed);
            // a copy of it is looked at for itself
            self.end(held, |_, _| Ending::Released);
        }
    }
}

/// One outcome for each message, whatever the handler returned.
pub(super) fn spread(outcome: Outcome, messages: usize) -> Vec<Outcome> {
    match outcome {
        Outcome::Each(each) if each.len() == messages => each,
        Outcome::Each(each) => {
            let error = format!("the handler returned {} outcomes for {messages} messages", each.len());
            (0..messages).map(|_| Outcome::Retry(error.clone().into(), None)).collect()
        }
        Outcome::Done(_) => (0..messages).map(|_| Outcome::done()).collect(),
        Outcome::Retry(error, after) if messages == 1 => vec![Outcome::Retry(error, after)],
        Outcome::Reject(reason, error) if messages == 1 => vec![Outcome::Reject(reason, error)],
        Outcome::Retry(error, after) => {
            let error = Arc::new(error);
            (0..messages).map(|_| Outcome::Retry(Box::new(Shared(Arc::clone(&error))), after)).collect()
        }
        Outcome::Reject(reason, error) => {
            let error = Arc::new(error);
            (0..messages).map(|_| Outcome::Reject(reason, Box::new(Shared(Arc::clone(&error))))).collect()
        }
    }
}

/// One error for all messages of a batch.
#[derive(Debug)]
struct Shared(Arc<BoxError>);

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
