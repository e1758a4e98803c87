//! Those who call the handler: attempts with their panic guard and time-out, polled once in place and parked only when they
//! wait; and what they return to be published, until it is confirmed. What an outcome means for the message is the dispatcher's.

use std::future::Future;
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
use crate::envelope::Envelope;
use crate::extract::Incoming;
use crate::handler::DynHandler;
use crate::idempotency::IdempotencyStore;
use crate::outcome::{Outcome, Reason};
use crate::panics::{caught, drop_caught};
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

/// Who panics, in what is said of an attempt.
const HANDLER: &str = "the handler";

/// How far an attempt is, as it begins.
#[derive(Debug)]
pub(crate) enum Begun {
    Ended(Outcome),
    /// For its handler, or, if it `publishes`, only for the broker to confirm what that returned.
    Waits {
        publishes: bool,
    },
}

/// What happens to an attempt that didn't end where it began.
#[derive(Debug)]
pub(crate) enum Step {
    /// Its handler is done, and the publisher has what that returned. The attempt goes on until it is confirmed.
    Handled,
    Ended(Outcome),
    /// It was cancelled: its claim is gone, or the service's time is up. Not a failure. Where its handler was done, this is the outcome
    /// with the outputs that were on their way.
    Cancelled(Option<Outcome>),
}

/// What an attempt begins with.
#[derive(Debug)]
pub(crate) enum Work {
    /// A call of the handler.
    Handle(Incoming),
    /// Outputs of an earlier call that were not confirmed.
    Publish(Vec<Envelope>),
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
    pub(crate) fn start(&mut self, job: impl FnOnce() -> usize, work: Work, cx: &mut Context<'_>) -> Begun {
        let (orders, handler) = (self.orders, &*self.orders.handler);
        let incoming = match work {
            Work::Handle(incoming) => incoming,
            Work::Publish(outputs) => {
                return match hand_over(Outcome::Done(outputs), orders) {
                    Handed::Ended(outcome) => Begun::Ended(outcome),
                    Handed::Publishes(outputs) => self.confirm(job(), outputs),
                    Handed::Waits(outputs) => self.wait(job(), Stage::Outputs(Box::new(outputs))),
                };
            }
        };
        let mut future = match caught(|| handler.dyn_handle(incoming)) {
            Ok(future) => Guarded::new(HANDLER, future),
            Err(panic) => return Begun::Ended(panicked(HANDLER, &panic)),
        };
        let polled = if has_turn(cx) { future.poll_handler(orders, cx) } else { Poll::Pending };
        let stage = match polled {
            Poll::Pending => Stage::Handler(future),
            Poll::Ready(outcome) => match hand_over(outcome, orders) {
                Handed::Ended(outcome) => return Begun::Ended(outcome),
                Handed::Publishes(outputs) => return self.confirm(job(), outputs),
                Handed::Waits(outputs) => Stage::Outputs(Box::new(outputs)),
            },
        };
        self.wait(job(), stage)
    }

    /// Parks an attempt whose outputs are all handed over.
    fn confirm(&mut self, job: usize, outputs: Guarded<Outputs<'a>>) -> Begun {
        let parked = self.park(job);
        self.publishing.push(Publishing { job, outputs, parked });
        Begun::Waits { publishes: true }
    }

    /// Parks an attempt whose handler waits, or whose outputs wait for room.
    fn wait(&mut self, job: usize, stage: Stage<'a>) -> Begun {
        let (orders, parked) = (self.orders, self.park(job));
        // what is published has the publisher's own deadline
        if let Stage::Handler(_) = stage {
            self.deadlines.push(&orders.env, Arc::clone(&parked), self.handling.len());
        }
        self.handling.push(Handling { job, orders, stage, parked });
        Begun::Waits { publishes: false }
    }

    fn park(&mut self, job: usize) -> Arc<Parked> {
        let parked = Arc::new(Parked::new());
        if self.parked.len() <= job {
            self.parked.resize(job + 1, None);
        }
        self.parked[job] = Some(Arc::clone(&parked));
        parked
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
            // first those that need hardly any of the task's budget
            if let Poll::Ready(Some((job, step))) = self.publishing.poll_next_unpin(cx) {
                return Poll::Ready((job, self.end(job, step)));
            }
            if let Poll::Ready(Some(handled)) = self.handling.poll_next_unpin(cx) {
                return Poll::Ready(match handled {
                    Handled::Publishes(publishing) => {
                        let job = publishing.job;
                        self.publishing.push(publishing);
                        (job, Step::Handled)
                    }
                    Handled::Ended(job, step) => (job, self.end(job, step)),
                });
            }
            // those that are overdue now end with the next look
            ready!(self.deadlines.poll(&self.orders.env, cx));
        }
    }

    fn end(&mut self, job: usize, step: Step) -> Step {
        if let Some(parked) = self.parked[job].take() {
            parked.ended();
        }
        step
    }
}

/// What became of an outcome whose outputs were handed over as far as there was room.
enum Handed<'a> {
    /// There were none, or what became of them is known already.
    Ended(Outcome),
    /// Some wait for room.
    Waits(Guarded<Outputs<'a>>),
    /// All are being confirmed.
    Publishes(Guarded<Outputs<'a>>),
}

fn hand_over(outcome: Outcome, orders: &Orders) -> Handed<'_> {
    let mut outputs = match Outputs::of(outcome, &orders.broker, orders.publishes.as_deref()) {
        Ok(outputs) => Guarded::new("the publisher", outputs),
        Err(outcome) => return Handed::Ended(outcome),
    };
    match outputs.with(Outputs::hand_over) {
        Ok(true) => known(outputs),
        Ok(false) => Handed::Waits(outputs),
        Err(outcome) => Handed::Ended(outcome),
    }
}

/// Of outputs that are all handed over.
fn known(mut outputs: Guarded<Outputs<'_>>) -> Handed<'_> {
    match outputs.with(Outputs::known) {
        Ok(None) => Handed::Publishes(outputs),
        Ok(Some(outcome)) | Err(outcome) => Handed::Ended(outcome),
    }
}

/// A handler that waits, or what it returned while that waits for room at the publisher: so many as may run at once keep a publisher
/// busy, and more would only stand before it.
struct Handling<'a> {
    job: usize,
    orders: &'a Orders,
    stage: Stage<'a>,
    parked: Arc<Parked>,
}

enum Stage<'a> {
    Handler(Guarded<BoxFuture<'a, Outcome>>),
    /// Boxed, since few wait so, and all handlers would have to have room for it.
    Outputs(Box<Guarded<Outputs<'a>>>),
    Ended,
}

enum Handled<'a> {
    Ended(usize, Step),
    Publishes(Publishing<'a>),
}

impl<'a> Future for Handling<'a> {
    type Output = Handled<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Handled<'a>> {
        let state = self.parked.poll_state(cx);
        if state == State::Cancelled {
            let outcome = match std::mem::replace(&mut self.stage, Stage::Ended) {
                Stage::Outputs(mut outputs) => outputs.with(Outputs::cancelled).ok(),
                Stage::Handler(_) | Stage::Ended => None,
            };
            return Poll::Ready(Handled::Ended(self.job, Step::Cancelled(outcome)));
        }
        if !has_turn(cx) {
            return Poll::Pending;
        }
        let orders = self.orders;
        loop {
            let handed = match std::mem::replace(&mut self.stage, Stage::Ended) {
                Stage::Handler(mut future) => match future.poll_handler(orders, cx) {
                    Poll::Ready(outcome) => hand_over(outcome, orders),
                    // that was its last chance
                    Poll::Pending if state == State::Overdue => {
                        let limit = orders.timeout;
                        let text = format!("the attempt took longer than its time-out of {limit:?}");
                        Handed::Ended(Outcome::Retry(text.into(), None))
                    }
                    Poll::Pending => {
                        self.stage = Stage::Handler(future);
                        return Poll::Pending;
                    }
                },
                Stage::Outputs(mut outputs) => match outputs.with(|outputs| outputs.poll_handed(cx)) {
                    Ok(Poll::Ready(())) => known(*outputs),
                    Ok(Poll::Pending) => {
                        self.stage = Stage::Outputs(outputs);
                        return Poll::Pending;
                    }
                    Err(outcome) => Handed::Ended(outcome),
                },
                Stage::Ended => return Poll::Pending,
            };
            self.parked.done();
            let (job, parked) = (self.job, Arc::clone(&self.parked));
            match handed {
                Handed::Ended(outcome) => return Poll::Ready(Handled::Ended(job, Step::Ended(outcome))),
                Handed::Publishes(outputs) => {
                    return Poll::Ready(Handled::Publishes(Publishing { job, outputs, parked }));
                }
                // polled once, it tells when there is room
                Handed::Waits(outputs) => self.stage = Stage::Outputs(Box::new(outputs)),
            }
        }
    }
}

/// A handler is done, and what it returned is being confirmed.
struct Publishing<'a> {
    job: usize,
    outputs: Guarded<Outputs<'a>>,
    parked: Arc<Parked>,
}

impl Future for Publishing<'_> {
    type Output = (usize, Step);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.parked.poll_state(cx) == State::Cancelled {
            let outcome = self.outputs.with(Outputs::cancelled).ok();
            self.outputs.leave();
            return Poll::Ready((self.job, Step::Cancelled(outcome)));
        }
        if !has_turn(cx) {
            return Poll::Pending;
        }
        let outcome = ready!(self.outputs.poll_with(|outputs| outputs.poll_confirmed(cx)));
        Poll::Ready((self.job, Step::Ended(outcome)))
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
struct Guarded<F> {
    name: &'static str,
    /// Until it has ended.
    work: Option<F>,
}

impl<F> Guarded<F> {
    fn new(name: &'static str, work: F) -> Self {
        Self { name, work: Some(work) }
    }

    /// Lets it work.
    ///
    /// # Errors
    /// What stands for a panic, with which it has ended.
    fn with<T>(&mut self, with: impl FnOnce(&mut F) -> T) -> Result<T, Outcome> {
        let Some(work) = &mut self.work else {
            return Err(Outcome::Retry("it has ended already".into(), None));
        };
        caught(|| with(work)).map_err(|panic| {
            self.leave();
            panicked(self.name, &panic)
        })
    }

    /// Lets it work until there is an outcome, with which it ends.
    fn poll_with(&mut self, poll: impl FnOnce(&mut F) -> Poll<Outcome>) -> Poll<Outcome> {
        let outcome = match self.with(poll) {
            Ok(polled) => ready!(polled),
            Err(outcome) => outcome,
        };
        self.leave();
        Poll::Ready(outcome)
    }

    /// Drops what is at work.
    fn leave(&mut self) {
        drop_caught(self.work.take());
    }
}

impl Guarded<BoxFuture<'_, Outcome>> {
    fn poll_handler(&mut self, orders: &Orders, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.poll_with(|future| {
            // inside the guard: from here on nothing of the outcome is the user's
            future.as_mut().poll(cx).map(|outcome| judged(outcome, orders.only_if.as_ref()).contained())
        })
    }
}

impl<F> Drop for Guarded<F> {
    /// One that panics must not keep those behind it from being dropped.
    fn drop(&mut self) {
        if self.work.is_some() {
            self.leave();
        }
    }
}

/// An error that isn't worth another attempt is as good as marked.
fn judged(outcome: Outcome, only_if: Option<&OnlyIf>) -> Outcome {
    let Some(only_if) = only_if else { return outcome };
    match outcome {
        // a predicate that panics decides nothing
        Outcome::Retry(error, _) if caught(|| only_if.holds(&error)) == Ok(false) => {
            Outcome::Reject(Reason::Rejected, error)
        }
        Outcome::Each(each) => {
            Outcome::Each(each.into_iter().map(|outcome| judged(outcome, Some(only_if))).collect())
        }
        other => other,
    }
}

fn panicked(who: &str, panic: &str) -> Outcome {
    Outcome::Retry(format!("{who} panicked: {panic}").into(), None)
}
