//! Those who call the handler: attempts with their panic guard and time-out, polled once in place and parked only when they
//! wait; and what they return to be published, until it is confirmed. What an outcome means for the message is the dispatcher's.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::task::coop::has_budget_remaining;

use super::isolation::Isolation;
use super::outputs::Outputs;
use super::parked::{Deadlines, Parked, State};
use crate::broker::Broker;
use crate::env::{BoxFuture, Env};
use crate::extract::Incoming;
use crate::handler::DynHandler;
use crate::idempotency::IdempotencyStore;
use crate::outcome::{Outcome, Reason};
use crate::policy::OnlyIf;

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

/// How far an attempt is, as it begins.
#[derive(Debug)]
pub(crate) enum Begun {
    Ended(Outcome),
    /// Its handler waits.
    Waits,
    /// Its handler is done; what it returned is on its way to the broker.
    Publishes,
}

/// What happens to an attempt that didn't end where it began.
#[derive(Debug)]
pub(crate) enum Step {
    /// Its handler is done; what it returned is on its way to the broker. The attempt goes on.
    Handled,
    Ended(Outcome),
    /// It was cancelled: its claim is gone, or the service's time is up. Not a failure.
    Cancelled,
}

/// Runs attempts of one route on one task.
pub(crate) struct Crew<'a> {
    orders: &'a Orders,
    handling: FuturesUnordered<Handling<'a>>,
    publishing: FuturesUnordered<Publishing<'a>>,
    /// Of those parked, by their number: numbers are used again, so there are hardly more than attempts at once.
    parked: Vec<Option<Arc<Parked>>>,
    deadlines: Deadlines,
}

impl<'a> Crew<'a> {
    pub(crate) fn new(orders: &'a Orders) -> Self {
        Self {
            orders,
            handling: FuturesUnordered::new(),
            publishing: FuturesUnordered::new(),
            parked: Vec::new(),
            deadlines: Deadlines::new(orders.timeout),
        }
    }

    /// Begins an attempt under the number `job`. One that ends at its first poll costs no task, set entry or waker.
    pub(crate) fn start(
        &mut self,
        job: impl FnOnce() -> usize,
        incoming: Incoming,
        cx: &mut Context<'_>,
    ) -> Begun {
        let handler = &*self.orders.handler;
        let mut future = match catch_unwind(AssertUnwindSafe(|| handler.dyn_handle(incoming))) {
            Ok(future) => Guarded(Some(future)),
            Err(panic) => return Begun::Ended(panicked(&*panic)),
        };
        if let Poll::Ready(outcome) = future.poll_handler(self.orders, cx) {
            return match self.publish(outcome) {
                Ok(outputs) => {
                    let job = job();
                    let parked = self.park(job);
                    self.publishing.push(Publishing { job, outputs, parked });
                    Begun::Publishes
                }
                Err(outcome) => Begun::Ended(outcome),
            };
        }
        let (job, orders) = (job(), self.orders);
        let parked = self.park(job);
        self.deadlines.push(&orders.env, Arc::clone(&parked), self.handling.len());
        self.handling.push(Handling { job, orders, future, parked });
        Begun::Waits
    }

    fn park(&mut self, job: usize) -> Arc<Parked> {
        let parked = Arc::new(Parked::new());
        if self.parked.len() <= job {
            self.parked.resize(job + 1, None);
        }
        self.parked[job] = Some(Arc::clone(&parked));
        parked
    }

    /// Hands over what the outcome asks for. The outcome, if nothing of that has to be waited for.
    fn publish(&self, outcome: Outcome) -> Result<Guarded<Outputs<'a>>, Outcome> {
        let mut outputs = Outputs::of(outcome, self.orders)?;
        match catch_unwind(AssertUnwindSafe(|| outputs.begin())) {
            Ok(None) => Ok(Guarded(Some(outputs))),
            Ok(Some(outcome)) => Err(outcome),
            Err(panic) => Err(panicked(&*panic)),
        }
    }

    /// Cancels a parked attempt; it ends as [`Step::Cancelled`].
    pub(crate) fn cancel(&mut self, job: usize) {
        if let Some(parked) = self.parked.get(job).and_then(Option::as_ref) {
            parked.cancel();
        }
    }

    /// What happens next to one of the attempts; pending while nothing does.
    ///
    /// Cancel-safe: an attempt is taken out only when that is answered.
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Step)> {
        loop {
            if let Poll::Ready(Some((job, outcome))) = self.handling.poll_next_unpin(cx) {
                return Poll::Ready((job, self.handled(job, outcome)));
            }
            if let Poll::Ready(Some((job, outcome))) = self.publishing.poll_next_unpin(cx) {
                return Poll::Ready((job, self.end(job, outcome)));
            }
            // those that are overdue now end with the next look
            ready!(self.deadlines.poll(&self.orders.env, cx));
        }
    }

    /// A handler that had to wait is done, or was cancelled.
    fn handled(&mut self, job: usize, outcome: Option<Outcome>) -> Step {
        let Some(outcome) = outcome else { return self.end(job, None) };
        let outputs = match self.publish(outcome) {
            Ok(outputs) => outputs,
            Err(outcome) => return self.end(job, Some(outcome)),
        };
        if let Some(parked) = self.parked[job].clone() {
            // what is being confirmed has the publisher's own deadline
            parked.done();
            self.publishing.push(Publishing { job, outputs, parked });
        }
        Step::Handled
    }

    fn end(&mut self, job: usize, outcome: Option<Outcome>) -> Step {
        if let Some(parked) = self.parked[job].take() {
            parked.ended();
        }
        outcome.map_or(Step::Cancelled, Step::Ended)
    }
}

/// A handler that waits.
struct Handling<'a> {
    job: usize,
    orders: &'a Orders,
    future: Guarded<BoxFuture<'a, Outcome>>,
    parked: Arc<Parked>,
}

impl Future for Handling<'_> {
    /// `None`: it was cancelled.
    type Output = (usize, Option<Outcome>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let state = self.parked.poll_state(cx);
        if state == State::Cancelled {
            self.future.leave();
            return Poll::Ready((self.job, None));
        }
        if !has_turn(cx) {
            return Poll::Pending;
        }
        let orders = self.orders;
        let outcome = match self.future.poll_handler(orders, cx) {
            Poll::Ready(outcome) => outcome,
            // that was its last chance
            Poll::Pending if state == State::Overdue => {
                self.future.leave();
                let text = format!("the attempt took longer than its time-out of {:?}", orders.timeout);
                Outcome::Retry(text.into(), None)
            }
            Poll::Pending => return Poll::Pending,
        };
        Poll::Ready((self.job, Some(outcome)))
    }
}

/// A handler is done, and what it returned is on its way.
struct Publishing<'a> {
    job: usize,
    outputs: Guarded<Outputs<'a>>,
    parked: Arc<Parked>,
}

impl Future for Publishing<'_> {
    /// `None`: it was cancelled.
    type Output = (usize, Option<Outcome>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.parked.poll_state(cx) == State::Cancelled {
            self.outputs.leave();
            return Poll::Ready((self.job, None));
        }
        let outcome = ready!(self.outputs.poll_with(cx, Outputs::poll));
        Poll::Ready((self.job, Some(outcome)))
    }
}

/// Whether the task has budget left; else it is woken. Tokio's futures say "not yet" once it has used that up, and wake it: all attempts
/// that wait, polled without one, would come back only for each other's sake, again and again.
fn has_turn(cx: &Context<'_>) -> bool {
    let has_turn = has_budget_remaining();
    if !has_turn {
        cx.waker().wake_by_ref();
    }
    has_turn
}

/// What may panic, at work or as it is dropped.
struct Guarded<F>(Option<F>);

impl<F> Guarded<F> {
    /// Pending for ever once it has ended.
    fn poll_with(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut F, &mut Context<'_>) -> Poll<Outcome>,
    ) -> Poll<Outcome> {
        let Some(work) = self.0.as_mut().filter(|_| has_turn(cx)) else { return Poll::Pending };
        let polled = catch_unwind(AssertUnwindSafe(|| poll(work, cx)));
        let polled = polled.unwrap_or_else(|panic| Poll::Ready(panicked(&*panic)));
        if polled.is_ready() {
            self.leave();
        }
        polled
    }

    /// Drops what is at work.
    fn leave(&mut self) {
        let ended = self.0.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(ended)));
    }
}

impl Guarded<BoxFuture<'_, Outcome>> {
    fn poll_handler(&mut self, orders: &Orders, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.poll_with(cx, |future, cx| {
            future.as_mut().poll(cx).map(|outcome| judged(outcome, orders.only_if.as_ref()))
        })
    }
}

impl<F> Drop for Guarded<F> {
    /// One that panics must not keep those behind it from being dropped.
    fn drop(&mut self) {
        if self.0.is_some() {
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

fn panicked(panic: &(dyn std::any::Any + Send)) -> Outcome {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(|s| &**s));
    Outcome::Retry(format!("the handler panicked: {}", text.unwrap_or("no message")).into(), None)
}
