//! What a handler returned to be published: handed over in its order, and awaited until the broker has all of it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::vec;

use smallvec::SmallVec;

use crate::broker::Broker;
use crate::env::BoxFuture;
use crate::envelope::Envelope;
use crate::error::BoxError;
use crate::outcome::{Outcome, Reason};
use crate::publish::{Confirm, Outgoing, PublishError, Publisher};

/// After so many outputs of one message others have their turn: an embedded broker takes them at once.
const TURN: usize = 64;

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
    left: vec::IntoIter<Envelope>,
    /// Waits for room; those left wait behind it.
    waits: Option<BoxFuture<'a, Confirm>>,
    /// Those that are handed over, in order; the last ones are taken out as they are confirmed.
    confirms: SmallVec<[Confirm; 1]>,
    /// The first that failed.
    failed: Option<PublishError>,
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

    /// Ready with the outcome when all that are handed over are confirmed. What isn't makes its message tried again; all are awaited, so
    /// that none is on its way when that is judged.
    pub(super) fn poll_confirmed(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        for sends in self.sends() {
            ready!(sends.poll_confirmed(cx));
        }
        Poll::Ready(self.outcome())
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
        let left = outputs.into_iter();
        Ok(Self { broker, channel, left, waits: None, confirms, failed: None })
    }

    fn hand_over(&mut self) -> bool {
        for _ in 0..TURN {
            if self.waits.is_some() {
                return false;
            }
            let Some(output) = self.left.next() else { return true };
            match self.broker.try_send(Outgoing::new(self.channel, output)) {
                Ok(confirm) => self.confirms.push(confirm),
                Err(message) => self.waits = Some(Box::pin(self.broker.send(message))),
            }
        }
        self.waits.is_none() && self.left.len() == 0
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
            if let Err(error) = ready!(Pin::new(confirm).poll(cx)) {
                self.failed = Some(error);
            }
            self.confirms.pop();
        }
        Poll::Ready(())
    }

    fn outcome(&mut self) -> Outcome {
        match self.failed.take() {
            None => Outcome::done(),
            Some(error) => Outcome::Retry(BoxError::from(error), None),
        }
    }
}

fn has_outputs(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Done(outputs) => !outputs.is_empty(),
        Outcome::Each(each) => each.iter().any(has_outputs),
        Outcome::Retry(..) | Outcome::Reject(..) => false,
    }
}
