//! Those who call the handler: attempts with their panic guard and time-out, polled once in place and parked only when they
//! wait. What an outcome means for the message is the dispatcher's.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::task::coop::has_budget_remaining;

use super::isolation::Isolation;
use super::parked::{Deadlines, Parked, State};
use crate::broker::Broker;
use crate::env::{BoxFuture, Env};
use crate::envelope::Envelope;
use crate::error::BoxError;
use crate::extract::Incoming;
use crate::handler::DynHandler;
use crate::idempotency::IdempotencyStore;
use crate::outcome::{Outcome, Reason};
use crate::policy::OnlyIf;
use crate::publish::{Confirmed, Outgoing, Publisher};

/// What a crew needs to know of its route.
#[derive(Clone)]
pub(crate) struct Orders {
    pub(crate) handler: Arc<dyn DynHandler>,
    pub(crate) broker: Broker,
    pub(crate) env: Env,
    pub(crate) publishes: Option<Arc<str>>,
    pub(crate) timeout: Duration,
    /// Which of the handler's errors are worth another attempt; `None`: all that aren't marked.
    pub(crate) only_if: Option<OnlyIf>,
    /// What the service's routes know of each other.
    pub(crate) isolation: Arc<Isolation>,
    pub(crate) index: usize,
    /// Remembers what was handled, for routes that ask for it.
    pub(crate) store: Option<Arc<dyn IdempotencyStore>>,
}

/// How an attempt ended for the dispatcher.
#[derive(Debug)]
pub(crate) enum Ended {
    Outcome(Outcome),
    /// It was cancelled: its claim is gone, or the service's time is up. Not a failure.
    Cancelled,
}

/// Runs attempts of one route on one task.
pub(crate) struct Crew<'a> {
    orders: &'a Orders,
    attempts: FuturesUnordered<Attempt<'a>>,
    /// Of those parked, by their number: numbers are used again, so there are hardly more than attempts at once.
    parked: Vec<Option<Arc<Parked>>>,
    deadlines: Deadlines,
}

impl<'a> Crew<'a> {
    pub(crate) fn new(orders: &'a Orders) -> Self {
        let deadlines = Deadlines::new(orders.timeout);
        Self { orders, attempts: FuturesUnordered::new(), parked: Vec::new(), deadlines }
    }

    /// Begins an attempt under the number `job`. One that ends at its first poll costs no task, set entry or waker.
    pub(crate) fn start(
        &mut self,
        job: impl FnOnce() -> usize,
        incoming: Incoming,
        cx: &mut Context<'_>,
    ) -> Option<Outcome> {
        let handler = &*self.orders.handler;
        let mut attempt = match catch_unwind(AssertUnwindSafe(|| handler.dyn_handle(incoming))) {
            Ok(future) => {
                Attempt { job: 0, orders: self.orders, stage: Stage::Handling(future), parked: None }
            }
            Err(panic) => return Some(panicked(&*panic)),
        };
        if let Poll::Ready(outcome) = attempt.work(cx, false) {
            return Some(outcome);
        }
        attempt.job = job();
        let parked = Arc::new(Parked::new());
        if self.parked.len() <= attempt.job {
            self.parked.resize(attempt.job + 1, None);
        }
        self.parked[attempt.job] = Some(Arc::clone(&parked));
        // what is being confirmed has the publisher's own deadline
        if let Stage::Handling(_) = attempt.stage {
            self.deadlines.push(&self.orders.env, Arc::clone(&parked), self.attempts.len());
        }
        attempt.parked = Some(parked);
        self.attempts.push(attempt);
        None
    }

    /// Cancels a parked attempt; it ends as [`Ended::Cancelled`].
    pub(crate) fn cancel(&mut self, job: usize) {
        if let Some(parked) = self.parked.get(job).and_then(Option::as_ref) {
            parked.cancel();
        }
    }

    /// The next attempt that ends; pending while none runs.
    ///
    /// Cancel-safe: an attempt is taken out only when it is answered.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Ended)> {
        loop {
            if let Poll::Ready(Some((job, end))) = self.attempts.poll_next_unpin(cx) {
                if let Some(parked) = self.parked[job].take() {
                    parked.ended();
                }
                return Poll::Ready((job, end));
            }
            // those that are overdue now end with the next look
            ready!(self.deadlines.poll(&self.orders.env, cx));
        }
    }
}

/// One attempt: the handler's future, then its outputs until they are confirmed.
struct Attempt<'a> {
    job: usize,
    orders: &'a Orders,
    stage: Stage<'a>,
    /// Made when the first poll was pending: one that is done at once needs none.
    parked: Option<Arc<Parked>>,
}

enum Stage<'a> {
    Handling(BoxFuture<'a, Outcome>),
    Publishing(BoxFuture<'a, Outcome>),
    Ended,
}

impl Future for Attempt<'_> {
    type Output = (usize, Ended);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let state = self.parked.as_ref().map_or(State::Waits, |parked| parked.poll_state(cx));
        if state == State::Cancelled {
            self.leave();
            return Poll::Ready((self.job, Ended::Cancelled));
        }
        let outcome = ready!(self.work(cx, state == State::Overdue));
        Poll::Ready((self.job, Ended::Outcome(outcome)))
    }
}

impl Attempt<'_> {
    /// Goes on, until there is an outcome; a handler that is overdue has its last chance.
    fn work(&mut self, cx: &mut Context<'_>, overdue: bool) -> Poll<Outcome> {
        // tokio's futures say "not yet" once a task has used up its budget, and wake it: all attempts that wait, polled without one,
        // would come back only for each other's sake, again and again
        if !has_budget_remaining() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let (future, handling) = match &mut self.stage {
                Stage::Handling(future) => (future, true),
                Stage::Publishing(future) => (future, false),
                Stage::Ended => return Poll::Pending,
            };
            let only_if = self.orders.only_if.as_ref().filter(|_| handling);
            let poll = AssertUnwindSafe(|| future.as_mut().poll(cx).map(|outcome| judged(outcome, only_if)));
            let outcome = match catch_unwind(poll) {
                Ok(Poll::Ready(outcome)) => outcome,
                Err(panic) => panicked(&*panic),
                Ok(Poll::Pending) if handling && overdue => {
                    let limit = self.orders.timeout;
                    let text = format!("the attempt took longer than its time-out of {limit:?}");
                    Outcome::Retry(text.into(), None)
                }
                Ok(Poll::Pending) => return Poll::Pending,
            };
            self.leave();
            if handling && let Some(parked) = &self.parked {
                parked.done();
            }
            if has_outputs(&outcome) && handling {
                self.stage = Stage::Publishing(Box::pin(confirm(outcome, self.orders)));
            } else {
                return Poll::Ready(outcome);
            }
        }
    }

    /// Drops what is at work, which may panic, too.
    fn leave(&mut self) {
        let ended = std::mem::replace(&mut self.stage, Stage::Ended);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(ended)));
    }
}

impl Drop for Attempt<'_> {
    /// One that panics must not keep those behind it from being dropped.
    fn drop(&mut self) {
        if !matches!(self.stage, Stage::Ended) {
            self.leave();
        }
    }
}

/// An error that isn't worth another attempt is as good as marked.
fn judged(outcome: Outcome, only_if: Option<&OnlyIf>) -> Outcome {
    let Some(only_if) = only_if else { return outcome };
    match outcome {
        Outcome::Retry(error, _) if !only_if.holds(&error) => Outcome::Reject(Reason::Rejected, error),
        Outcome::Each(each) => {
            Outcome::Each(each.into_iter().map(|outcome| judged(outcome, Some(only_if))).collect())
        }
        other => other,
    }
}

fn has_outputs(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Done(outputs) => !outputs.is_empty(),
        Outcome::Each(each) => each.iter().any(has_outputs),
        Outcome::Retry(..) | Outcome::Reject(..) => false,
    }
}

/// Publishes what the outcome asks for, pipelined, and waits for every confirm. What isn't confirmed makes its item retried.
async fn confirm(outcome: Outcome, orders: &Orders) -> Outcome {
    match outcome {
        Outcome::Done(outputs) => confirm_outputs(outputs, orders).await,
        Outcome::Each(each) => {
            let mut confirmed = Vec::with_capacity(each.len());
            for outcome in each {
                confirmed.push(match outcome {
                    Outcome::Done(outputs) if !outputs.is_empty() => confirm_outputs(outputs, orders).await,
                    other => other,
                });
            }
            Outcome::Each(confirmed)
        }
        other => other,
    }
}

async fn confirm_outputs(outputs: Vec<Envelope>, orders: &Orders) -> Outcome {
    let Some(channel) = &orders.publishes else {
        let message = "the handler returned messages, but its route has no `publishes` channel; add one";
        return Outcome::Reject(Reason::Rejected, message.into());
    };
    let mut confirms = Vec::with_capacity(outputs.len());
    for output in outputs {
        confirms.push(orders.broker.send(Outgoing::new(&**channel, output)).await);
    }
    let mut result: Confirmed = Ok(crate::Receipt::default());
    for confirm in confirms {
        // all are awaited, so that none is left on its way when the attempt is judged
        let confirmed = confirm.await;
        result = result.and(confirmed);
    }
    match result {
        Ok(_) => Outcome::done(),
        Err(error) => Outcome::Retry(BoxError::from(error), None),
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Outcome {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(|s| &**s));
    Outcome::Retry(format!("the handler panicked: {}", text.unwrap_or("no message")).into(), None)
}
