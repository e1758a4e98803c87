//! What a route asks before each attempt: its breaker, its rate, its bulkhead, and what is to happen before it is worth to ask again.
//! A route without any of them has none of this. What starts, and what an outcome says, is the dispatcher's.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::outputs::Unpublished;
use super::plan::Plan;
use super::report::RouteState;
use crate::breaker::{Breaker, BreakerState, Guard, Verdict};
use crate::bulkhead::{Bulkhead, BulkheadPlace};
use crate::env::{BoxFuture, Env};
use crate::outcome::Outcome;
use crate::policy::{BreakerOption, RateOption};
use crate::rate::RateLimit;
use crate::subscribe::Health;

/// The guards of one route.
pub(crate) struct Admission {
    circuit: Option<Circuit>,
    rate: Option<RateLimit>,
    bulkhead: Option<Bulkhead>,
    /// Given, and not used yet.
    pass: Option<Box<Pass>>,
    /// It was waited for, and not used yet.
    place: Option<BulkheadPlace>,
    /// When to ask again.
    until: Option<Instant>,
    /// What to wait for before asking again.
    turn: Option<BoxFuture<'static, Option<BulkheadPlace>>>,
}

/// The breaker, and what the route has seen of it.
struct Circuit {
    breaker: Breaker,
    turns: watch::Receiver<()>,
    seen: BreakerState,
    /// Since when nothing may start.
    opened: Option<Instant>,
    /// For how long nothing might start before that.
    paused: Duration,
    trouble: Option<Health>,
}

/// The right to one attempt. Dropped without an outcome, it was cancelled.
#[derive(Debug)]
pub(crate) struct Pass {
    call: Option<Guard>,
    _place: Option<BulkheadPlace>,
}

impl Pass {
    /// The attempt begins now.
    pub(crate) fn begin(&mut self, now: Instant) {
        if let Some(call) = &mut self.call {
            call.begin(now);
        }
    }

    /// Whether the breaker hasn't changed since: what has waited for an answer in between asks anew if it has.
    pub(crate) fn holds(&self) -> bool {
        self.call.as_ref().is_none_or(Guard::holds)
    }

    /// The attempt has ended.
    pub(crate) fn ended(mut self, outcome: &Outcome) {
        if let Some(call) = &mut self.call {
            call.ended(verdict(outcome));
        }
    }
}

/// What an outcome says of what the handler calls: only what is retried has failed, and what is rejected says nothing.
///
/// Outputs that the broker did not take say nothing of it either: the handler is done.
fn verdict(outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Done(_) => Verdict::Succeeded,
        Outcome::Retry(error, _) if error.is::<Unpublished>() => Verdict::Succeeded,
        Outcome::Retry(..) => Verdict::Failed,
        Outcome::Reject(..) => Verdict::Cancelled,
        Outcome::Each(each) => {
            let verdicts = || each.iter().map(verdict);
            let failed = verdicts().filter(|verdict| *verdict == Verdict::Failed).count();
            match verdicts().any(|verdict| verdict == Verdict::Succeeded) {
                _ if failed > 0 && failed * 2 >= each.len() => Verdict::Failed,
                true => Verdict::Succeeded,
                false => Verdict::Cancelled,
            }
        }
    }
}

impl Admission {
    /// The guards that the route asks for, if any.
    pub(crate) fn of(plan: &Plan, env: &Env) -> Option<Self> {
        let breaker = plan.breaker.as_ref().map(|breaker| match breaker {
            BreakerOption::Own(policy) => Breaker::with(policy.clone(), env.clone()),
            BreakerOption::Shared(breaker) => breaker.clone(),
        });
        let rate = plan.rate.as_ref().map(|rate| match rate {
            RateOption::Own(policy) => RateLimit::with(*policy, env.clone()),
            RateOption::Shared(limit) => limit.clone(),
        });
        let bulkhead = plan.bulkhead.clone();
        if breaker.is_none() && rate.is_none() && bulkhead.is_none() {
            return None;
        }
        let circuit = breaker.map(|breaker| Circuit {
            turns: breaker.turns(),
            breaker,
            seen: BreakerState::Closed,
            opened: None,
            paused: Duration::ZERO,
            trouble: None,
        });
        Some(Self { circuit, rate, bulkhead, pass: None, place: None, until: None, turn: None })
    }

    pub(crate) fn breaker(&self) -> Option<Breaker> {
        self.circuit.as_ref().map(|circuit| circuit.breaker.clone())
    }

    /// Gives back a pass that was taken before the breaker changed.
    pub(crate) fn look_again(&mut self) {
        self.pass.take_if(|pass| !pass.holds());
    }

    /// Whether an attempt may begin; its pass is ready then. Else it is known when to ask again.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        if self.pass.is_some() {
            return true;
        }
        if self.turn.is_some() {
            return false;
        }
        self.until = None;
        if let Some(circuit) = &mut self.circuit {
            // seen before asking, so that no change after it is missed
            circuit.turns.borrow_and_update();
            if let Err(left) = circuit.breaker.peek() {
                // others may have it meanwhile
                self.place = None;
                return self.wait_for_circuit(left, now);
            }
        }
        if let Some(Err(left)) = self.rate.as_ref().map(RateLimit::peek) {
            self.place = None;
            self.until = Some(now + left);
            return false;
        }
        let mut place = None;
        if let Some(bulkhead) = &self.bulkhead {
            place = self.place.take().or_else(|| bulkhead.try_place());
            if place.is_none() {
                self.turn = Some(bulkhead.place());
                return false;
            }
        }
        let call = match self.circuit.as_ref().map(|circuit| circuit.breaker.enter()) {
            None => None,
            Some(Ok(call)) => Some(call),
            // somebody who shares it was quicker
            Some(Err(left)) => return self.wait_for_circuit(left, now),
        };
        self.pass = Some(Box::new(Pass { call, _place: place }));
        true
    }

    fn wait_for_circuit(&mut self, left: Duration, now: Instant) -> bool {
        if !left.is_zero() {
            self.until = Some(now + left);
        } else if let Some(circuit) = &self.circuit {
            let mut turns = circuit.turns.clone();
            self.turn = Some(Box::pin(async move {
                // the sender lives in the breaker, which the route has
                let _ = turns.changed().await;
                None
            }));
        }
        false
    }

    /// The pass of an attempt at so many messages, if it was admitted.
    pub(crate) fn take(&mut self, messages: usize) -> Option<Box<Pass>> {
        let pass = self.pass.take()?;
        if let Some(rate) = &self.rate {
            rate.take(messages);
        }
        Some(pass)
    }

    /// So many of the messages of an attempt weren't handed to the handler after all.
    pub(crate) fn spared(&self, messages: usize) {
        if let Some(rate) = &self.rate {
            rate.give_back(messages);
        }
    }

    /// Nothing waits any more: others may have what was kept for it.
    pub(crate) fn rest(&mut self) {
        (self.pass, self.place, self.until, self.turn) = (None, None, None, None);
    }

    /// The time has come: `until` is over.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.until = self.until.filter(|until| *until > now);
    }

    /// When to ask again, if that is known.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Resolves when what is waited for has come.
    pub(crate) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(turn) = &mut self.turn else {
            return Poll::Pending;
        };
        turn.as_mut().poll(cx).map(|place| (self.turn, self.place) = (None, place))
    }

    /// The breaker's state, if it is another than at the last look.
    pub(crate) fn changed(&mut self, env: &Env) -> Option<(BreakerState, Duration)> {
        let circuit = self.circuit.as_mut()?;
        let state = circuit.breaker.state();
        if state == std::mem::replace(&mut circuit.seen, state) {
            return None;
        }
        let now = env.now();
        if let Some(opened) = circuit.opened.take() {
            circuit.paused += now.saturating_duration_since(opened);
        }
        let left = circuit.breaker.probes_in().unwrap_or_default();
        circuit.trouble = match state {
            BreakerState::Closed => None,
            BreakerState::HalfOpen => Some(Health::degraded(
                "the circuit breaker is half-open: a few attempts are let through, to see",
            )),
            BreakerState::Open => {
                circuit.opened = Some(now);
                let at = env.wall_ms() + u64::try_from(left.as_millis()).unwrap_or(u64::MAX / 2);
                let at = crate::time::rfc3339(i64::try_from(at).unwrap_or(i64::MAX));
                Some(Health::degraded(format!(
                    "the circuit breaker is open: too many attempts failed, nothing starts before {at}"
                )))
            }
        };
        Some((state, left))
    }

    /// What is waited for.
    pub(crate) fn state(&self) -> RouteState {
        let waits = self.until.is_some() || self.turn.is_some();
        match &self.circuit {
            Some(circuit) if circuit.seen == BreakerState::Open => RouteState::PausedByBreaker,
            Some(circuit) if waits && circuit.breaker.peek().is_err() => RouteState::PausedByBreaker,
            _ if self.until.is_some() => RouteState::PausedByRate,
            _ if self.turn.is_some() => RouteState::PausedByBulkhead,
            _ => RouteState::Running,
        }
    }

    pub(crate) fn trouble(&self) -> Option<&Health> {
        self.circuit.as_ref()?.trouble.as_ref()
    }

    /// For how long the breaker has let nothing start, in all.
    pub(crate) fn paused(&self, now: Instant) -> Duration {
        let Some(circuit) = &self.circuit else {
            return Duration::ZERO;
        };
        circuit.paused + circuit.opened.map_or(Duration::ZERO, |opened| now.saturating_duration_since(opened))
    }
}
