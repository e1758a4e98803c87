//! Each message once: before an attempt the store is asked, and afterwards it is told what became of the message.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::copies::{CopySent, Sent};
use super::{Dispatcher, Held, Items, Pass};
use crate::error::Result;
use crate::idempotency::{self, End, Ending, Identity, Reserve, Reserved};
use crate::letters::redrives;
use crate::outcome::Reason;
use crate::runner::events;
use crate::subscribe::Health;

/// The first look again at a message that somebody else has, and the longest time until the next.
const PARKED: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// How long a store that can't be asked is left alone.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// For how long a store is told again and again that a message was handled. Then the message is acknowledged all the same: given back,
/// it would surely be handled twice.
const TELLING: u32 = 30;
/// A lease is longer than what it is for: outputs are confirmed within a publisher's deadline, and clocks differ.
const MARGIN: Duration = Duration::from_secs(45);

/// A message's reservation.
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    identity: Identity,
    token: u64,
    redrives: u32,
    /// It holds for the next attempt.
    granted: bool,
    /// How often somebody else had it.
    parked: u32,
}

impl Reservation {
    /// It has to be asked for again before the next attempt.
    pub(super) fn lapse(&mut self) {
        self.granted = false;
    }

    /// Takes the store's answer, and says how long to wait before asking again if somebody else has the message.
    fn answered(&mut self, answer: Option<Reserved>) -> Duration {
        self.granted = answer == Some(Reserved::Granted);
        let wait = PARKED.0.saturating_mul(1 << self.parked.min(10)).min(PARKED.1);
        self.parked = if matches!(answer, Some(Reserved::Taken(_))) { self.parked + 1 } else { 0 };
        wait
    }
}

/// What the store said of some messages.
pub(crate) struct Answered {
    items: Items,
    /// What allowed the attempt that waits for the answer.
    pass: Option<Box<Pass>>,
    answers: Result<Vec<Reserved>>,
}

impl Dispatcher<'_> {
    /// Whether the store has still to be asked for any of these.
    pub(super) fn must_ask(&self, items: &Items) -> bool {
        self.plan.idempotency.is_some()
            && items.iter().any(|held| held.reservation.as_ref().is_none_or(|r| !r.granted))
    }

    /// Asks the store for these; their lanes are occupied.
    pub(super) fn ask(&mut self, items: Items, pass: Option<Box<Pass>>) {
        let (plan, Some(store)) = (self.plan, self.orders.store.clone()) else {
            return;
        };
        let Some(policy) = &plan.idempotency else { return };
        let mut known = Items::new();
        for mut held in items {
            if held.reservation.is_none() {
                let envelope = &held.delivery.envelope;
                let Some(identity) = policy.identity(envelope, &plan.names.group, &plan.names.handler) else {
                    let error = "it has no idempotency key, by which alone this route knows messages again";
                    self.spare(pass.as_deref(), 1);
                    self.not_alone_now(&mut held);
                    self.give_up(held, Reason::NoIdentity, &error.into());
                    continue;
                };
                self.tokens = self.tokens.wrapping_add(1);
                let (token, redrives) = (self.tokens, redrives(envelope));
                let new = Reservation { identity, token, redrives, granted: false, parked: 0 };
                held.reservation = Some(Box::new(new));
            }
            // kept like one with a copy on its way: its claim may be lost meanwhile
            self.copied.push((held.delivery.claim.token(), CancellationToken::new()));
            known.push(held);
        }
        if known.is_empty() {
            return;
        }
        // held in place until its next attempt, a message may wait for its back-off besides
        let wait = if plan.retry.is_durable() { Duration::ZERO } else { plan.retry.longest_wait() };
        let lease = plan.timeout.saturating_add(wait).saturating_add(MARGIN);
        let requests: Vec<_> = known
            .iter()
            .filter_map(|held| held.reservation.as_ref())
            .map(|r| Reserve { identity: r.identity.clone(), token: r.token, lease, redrives: r.redrives })
            .collect();
        self.asked.push(Box::pin(async move {
            let answers = idempotency::reserve(&*store, &requests).await;
            Answered { items: known, pass, answers }
        }));
    }

    pub(super) fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<Answered> {
        match self.asked.poll_next_unpin(cx) {
            Poll::Ready(Some(answered)) => Poll::Ready(answered),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Starts what was granted, acknowledges what was handled, and lets wait what somebody else has.
    pub(super) fn answered(&mut self, Answered { items, pass, answers }: Answered, cx: &mut Context<'_>) {
        // what may not begin any more, since the breaker has changed, asks for all of it again
        let (admitted, asked) = (pass.as_ref().is_none_or(|pass| pass.holds()), items.len());
        let answers = match answers {
            Ok(answers) if answers.len() == items.len() => {
                self.store_trouble = None;
                answers.into_iter().map(Some).collect()
            }
            failed => {
                let text = failed.map_or_else(|e| e.to_string(), |_| "it answered for too few".into());
                events::store_failed(&self.plan.names, &text);
                self.store_trouble =
                    Some(Health::degraded(format!("the idempotency store can't be asked: {text}")));
                vec![None; items.len()]
            }
        };
        let (mut granted, mut behind) = (Items::new(), Vec::<Held>::new());
        let mut parked: Vec<(Duration, Items)> = Vec::new();
        for (mut held, answer) in items.into_iter().zip::<Vec<_>>(answers) {
            let token = held.delivery.claim.token();
            let lost = self.copied.iter().any(|(other, lost)| *other == token && lost.is_cancelled());
            self.copied.retain(|(other, _)| *other != token);
            let mut patience = Duration::ZERO;
            if let Some(reservation) = &mut held.reservation {
                patience = reservation.answered(answer);
            }
            if answer != Some(Reserved::Granted)
                || !admitted
                || lost
                || self.is_stopping()
                || self.is_revoking(&held)
            {
                // nobody waits for a suspect that isn't to run
                self.not_alone_now(&mut held);
            }
            if lost {
                self.leave(held);
                continue;
            }
            if self.is_stopping() {
                self.returned.push(held);
                continue;
            }
            if self.is_revoking(&held) {
                self.withhold(held);
                continue;
            }
            let follows = |other: &Held| held.lane.is_some() && other.lane == held.lane;
            let wait = match answer {
                Some(Reserved::Taken(left)) => Some(patience.min(left)),
                None => Some(STORE_PAUSE),
                Some(Reserved::Granted) if !admitted => {
                    held.reservation.iter_mut().for_each(|reservation| reservation.lapse());
                    Some(Duration::ZERO)
                }
                Some(_) => None,
            };
            if behind.iter().any(follows) || wait.is_some() && granted.iter().any(follows) {
                // an earlier message of its key runs first, and until then nobody knows how that ends: this one is asked for anew
                held.reservation.iter_mut().for_each(|reservation| reservation.lapse());
                behind.push(held);
                continue;
            }
            let waits =
                |(_, items): &&mut (Duration, Items)| held.lane.is_some() && items[0].lane == held.lane;
            if let Some((_, waiting)) = parked.iter_mut().find(waits) {
                // an earlier message of its key waits
                waiting.push(held);
                continue;
            }
            if let Some(wait) = wait {
                parked.push((wait, Items::from_iter([held])));
            } else if answer == Some(Reserved::Granted) {
                granted.push(held);
            } else {
                events::duplicate(&self.plan.names, &held.delivery);
                self.status.duplicates.fetch_add(1, Relaxed);
                self.acknowledge(held, true);
            }
        }
        self.put_back(behind);
        for (wait, items) in parked {
            self.delay(wait, items);
        }
        self.spare(pass.as_deref(), asked - granted.len());
        if granted.first().is_some_and(|held| self.suspects.is_alone(held) && !held.cleared) {
            granted.into_iter().for_each(|held| self.strike(held));
        } else if !granted.is_empty() {
            self.run(granted, pass, true, cx);
        }
    }

    /// Tells the store what became of the message, then acknowledges it.
    pub(super) fn end(&mut self, held: Held, how: impl FnOnce(Duration, u32) -> Ending) {
        let (Some(policy), Some(store), Some(reservation)) =
            (&self.plan.idempotency, &self.orders.store, &held.reservation)
        else {
            return self.acknowledge(held, true);
        };
        let how = how(policy.ttl, reservation.redrives);
        let end = End { identity: reservation.identity.clone(), token: reservation.token, how };
        let (plan, orders, store) = (self.plan, self.orders, Arc::clone(store));
        let lost = self.hold_for_copy(&held);
        self.copies.push(Box::pin(async move {
            for again in 0..TELLING {
                match idempotency::end(&*store, &end).await {
                    Ok(()) => break,
                    Err(error) => events::store_failed(&plan.names, &error.to_string()),
                }
                if again + 1 < TELLING {
                    orders.env.sleep(STORE_PAUSE).await;
                }
            }
            let sent = if lost.is_cancelled() { Sent::Lost } else { Sent::Ended };
            CopySent { held: Some(held), sent }
        }));
    }

    /// Another may have what this member doesn't handle after all.
    pub(super) fn let_go(&mut self, held: &Held) {
        let (Some(store), Some(reservation)) = (&self.orders.store, &held.reservation) else {
            return;
        };
        let (store, identity, token) = (Arc::clone(store), reservation.identity.clone(), reservation.token);
        self.copies.push(Box::pin(async move {
            // what can't be told lapses with the lease
            let _ = idempotency::end(&*store, &End { identity, token, how: Ending::Released }).await;
            CopySent { held: None, sent: Sent::Ended }
        }));
    }
}
