//! What a handler returned to be published: handed over in its order, and awaited until the broker has all of it. What the broker did
//! not confirm is kept, so that it can be published again without the handler.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use smallvec::SmallVec;

use crate::broker::Broker;
use crate::env::BoxFuture;
use crate::envelope::Envelope;
use crate::error::{BoxError, ErrorKind};
use crate::outcome::{Outcome, Reason};
use crate::publish::{Confirm, Outgoing, PublishError, Publisher};

/// After so many outputs of one message others have their turn: an embedded broker takes them at once.
const TURN: usize = 64;

/// Outputs that were not confirmed: the error of an attempt whose handler is done.
///
/// It travels as the error of [`Outcome::Retry`]. The dispatcher publishes the outputs again; the handler does not run again.
#[derive(Debug)]
pub(crate) struct Unpublished {
    /// Those without a confirm, in their order, with their ids.
    pub(crate) outputs: Vec<Envelope>,
    /// Why the last of them failed; `None`: the attempt was cancelled while they were on their way.
    pub(crate) error: Option<PublishError>,
}

impl fmt::Display for Unpublished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => write!(f, "an output was not confirmed: {error}"),
            None => f.write_str("outputs were on their way when the attempt was cancelled"),
        }
    }
}

impl std::error::Error for Unpublished {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.as_ref().and_then(std::error::Error::source)
    }
}

/// The outputs of one attempt, on their way.
pub(super) enum Outputs<'a> {
    /// Of one message, or of a batch as a whole.
    One(Sends<'a>),
    /// Of the messages of a batch, in order.
    Each(Vec<Item<'a>>),
}

/// What became of one message of a batch.
pub(super) enum Item<'a> {
    Known(Outcome),
    Publishes(Sends<'a>),
}

/// Messages of which one is handed over after the other, while those before it are being confirmed.
pub(super) struct Sends<'a> {
    broker: &'a Broker,
    channel: &'a str,
    /// All of them, to be published again if need be.
    outputs: Vec<Envelope>,
    /// The one to hand over next.
    next: usize,
    /// The one before that waits for room; those left wait behind it.
    waits: Option<BoxFuture<'a, Confirm>>,
    /// Of those that are handed over, from the first on; the last ones are taken out as they are confirmed.
    confirms: SmallVec<[Confirm; 1]>,
    failed: Option<Box<Failed>>,
}

/// Which outputs were not confirmed, and why.
#[derive(Default)]
struct Failed {
    /// Their numbers, the last one first.
    numbers: Vec<usize>,
    /// Why the first of them failed.
    error: Option<PublishError>,
    /// Why one of them can never be published.
    hopeless: Option<PublishError>,
}

impl<'a> Outputs<'a> {
    /// The outputs of an outcome, which go to that channel, or the outcome if it has none.
    pub(super) fn of(
        outcome: Outcome,
        broker: &'a Broker,
        channel: Option<&'a str>,
    ) -> Result<Self, Outcome> {
        if !has_outputs(&outcome) {
            return Err(outcome);
        }
        match outcome {
            Outcome::Done(outputs) => Sends::new(outputs, broker, channel).map(Self::One),
            Outcome::Each(each) => {
                Ok(Self::Each(each.into_iter().map(|outcome| Item::of(outcome, broker, channel)).collect()))
            }
            other => Err(other),
        }
    }

    /// Hands over what there is room for. Answers whether that was all.
    pub(super) fn hand_over(&mut self) -> bool {
        self.sends().all(Sends::hand_over)
    }

    /// Ready when all are handed over.
    pub(super) fn poll_handed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for sends in self.sends() {
            ready!(sends.poll_handed(cx));
        }
        Poll::Ready(())
    }

    /// The outcome of those that are handed over, if all of it is known already.
    pub(super) fn known(&mut self) -> Option<Outcome> {
        if !self.sends().all(|sends| sends.confirms.iter().all(Confirm::is_known)) {
            return None;
        }
        match self.poll_confirmed(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }

    /// Ready with the outcome when the fate of all that are handed over is known. All are awaited, so that none is on its way when that
    /// is judged.
    pub(super) fn poll_confirmed(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        for sends in self.sends() {
            ready!(sends.poll_confirmed(cx));
        }
        Poll::Ready(self.outcome())
    }

    /// The outcome of an attempt that was cancelled now: what has no confirm is to be published again.
    pub(super) fn cancelled(&mut self) -> Outcome {
        for sends in self.sends() {
            sends.cancel();
        }
        self.outcome()
    }

    fn sends(&mut self) -> impl Iterator<Item = &mut Sends<'a>> {
        let (one, each) = match self {
            Self::One(sends) => (Some(sends), [].iter_mut()),
            Self::Each(items) => (None, items.iter_mut()),
        };
        let each = each.filter_map(|item| match item {
            Item::Known(_) => None,
            Item::Publishes(sends) => Some(sends),
        });
        one.into_iter().chain(each)
    }

    /// Of sends that are all confirmed.
    fn outcome(&mut self) -> Outcome {
        match self {
            Self::One(sends) => sends.outcome(),
            Self::Each(items) => {
                let each = std::mem::take(items).into_iter().map(|item| match item {
                    Item::Known(outcome) => outcome,
                    Item::Publishes(mut sends) => sends.outcome(),
                });
                Outcome::Each(each.collect())
            }
        }
    }
}

impl<'a> Item<'a> {
    fn of(outcome: Outcome, broker: &'a Broker, channel: Option<&'a str>) -> Self {
        match outcome {
            Outcome::Done(outputs) if !outputs.is_empty() => {
                Sends::new(outputs, broker, channel).map_or_else(Self::Known, Self::Publishes)
            }
            other => Self::Known(other),
        }
    }
}

impl<'a> Sends<'a> {
    fn new(outputs: Vec<Envelope>, broker: &'a Broker, channel: Option<&'a str>) -> Result<Self, Outcome> {
        let Some(channel) = channel else {
            let message = "the handler returned messages, but its route has no `publishes` channel; add one";
            return Err(Outcome::Reject(Reason::Rejected, message.into()));
        };
        let confirms = SmallVec::with_capacity(outputs.len());
        Ok(Self { broker, channel, outputs, next: 0, waits: None, confirms, failed: None })
    }

    fn hand_over(&mut self) -> bool {
        for _ in 0..TURN {
            if self.waits.is_some() {
                return false;
            }
            let Some(output) = self.outputs.get(self.next) else { return true };
            self.next += 1;
            match self.broker.try_send(Outgoing::new(self.channel, output.clone())) {
                Ok(confirm) => self.confirms.push(confirm),
                Err(message) => self.waits = Some(Box::pin(self.broker.send(message))),
            }
        }
        self.waits.is_none() && self.next == self.outputs.len()
    }

    fn poll_handed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.hand_over() {
            let Some(waits) = &mut self.waits else {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            };
            self.confirms.push(ready!(waits.as_mut().poll(cx)));
            self.waits = None;
        }
        Poll::Ready(())
    }

    fn poll_confirmed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // the last one first: it is likely to be the last that is answered
        while let Some(confirm) = self.confirms.last_mut() {
            let confirmed = ready!(Pin::new(confirm).poll(cx));
            self.confirms.pop();
            if let Err(error) = confirmed {
                let failed = self.failed.get_or_insert_default();
                failed.numbers.push(self.confirms.len());
                if can_heal(&error) {
                    failed.error = Some(error);
                } else {
                    failed.hopeless = Some(error);
                }
            }
        }
        Poll::Ready(())
    }

    /// Gives up waiting: what is not confirmed has failed.
    fn cancel(&mut self) {
        let confirmed_from = self.confirms.len();
        let handed_over = self.next - usize::from(self.waits.is_some());
        self.waits = None;
        self.confirms.clear();
        let failed = self.failed.get_or_insert_default();
        let mut numbers: Vec<_> = (handed_over..self.outputs.len()).rev().collect();
        numbers.append(&mut failed.numbers);
        numbers.extend((0..confirmed_from).rev());
        failed.numbers = numbers;
        self.next = self.outputs.len();
    }

    fn outcome(&mut self) -> Outcome {
        let Some(mut failed) = self.failed.take() else { return Outcome::done() };
        if let Some(error) = failed.hopeless {
            return Outcome::Reject(Reason::OutputFailed, BoxError::from(error));
        }
        if failed.numbers.is_empty() {
            return Outcome::done();
        }
        failed.numbers.reverse();
        let mut number = 0..;
        // in their order, and without a copy
        self.outputs.retain(|_| number.next().is_some_and(|n| failed.numbers.binary_search(&n).is_ok()));
        let outputs = std::mem::take(&mut self.outputs);
        Outcome::Retry(Box::new(Unpublished { outputs, error: failed.error }), None)
    }
}

/// Whether publishing the same message again may succeed without a change to it or to what this program may do.
fn can_heal(error: &PublishError) -> bool {
    let PublishError::Failed(error) = error else { return true };
    let about_the_message = matches!(
        error.kind(),
        ErrorKind::TooLarge
            | ErrorKind::Codec
            | ErrorKind::Config
            | ErrorKind::Unsupported
            | ErrorKind::Unauthorized
    );
    error.is_temporary() || !about_the_message
}

fn has_outputs(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Done(outputs) => !outputs.is_empty(),
        Outcome::Each(each) => each.iter().any(has_outputs),
        Outcome::Retry(..) | Outcome::Reject(..) => false,
    }
}
