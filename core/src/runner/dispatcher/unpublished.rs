//! Messages whose handler is done while the broker does not take what it returned. The outputs are kept and published again with back-off;
//! the handler does not run again as long as the process lives.

use std::collections::{HashMap, VecDeque};
use std::task::Context;
use std::time::{Duration, Instant};

use super::{Begun, Dispatcher, Hands, Held, Items};
use crate::envelope::Envelope;
use crate::id::MessageId;
use crate::letters::redrives;
use crate::outcome::Outcome;
use crate::runner::crew::Work;
use crate::runner::events;
use crate::runner::outputs::Unpublished;
use crate::subscribe::Health;

/// The first wait before outputs are published again, and the longest. The longest is less than what an idempotency lease has to spare.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// For how long outputs are kept of a message that the broker has taken back. What comes later is handled like any other message.
const KEEP_FOR: Duration = Duration::from_mins(15);

/// What is left to do for a message whose handler is done.
#[derive(Debug, Default)]
pub(crate) struct KeptOutputs {
    /// Without a confirm, in their order, with their ids.
    outputs: Vec<Envelope>,
    /// How often they were published in vain.
    failures: u32,
}

/// How a message is recognised when the broker delivers it again: its source, its id, and how often it was redriven.
type Identity = (Box<str>, MessageId, u32);

/// Outputs of messages that the broker has taken back, from the oldest on.
#[derive(Debug, Default)]
pub(super) struct TakenBack {
    kept: HashMap<Identity, Box<KeptOutputs>>,
    order: VecDeque<(Instant, Identity)>,
}

fn identity(envelope: &Envelope) -> Identity {
    (envelope.source().into(), envelope.id().clone(), redrives(envelope))
}

impl TakenBack {
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Keeps the outputs of a message, of at most as many messages as a window has.
    fn keep(&mut self, envelope: &Envelope, outputs: Box<KeptOutputs>, now: Instant, most: usize) {
        let identity = identity(envelope);
        self.order.push_back((now, identity.clone()));
        self.kept.insert(identity, outputs);
        while self.order.len() > most.max(1)
            || self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > KEEP_FOR)
        {
            if let Some((_, oldest)) = self.order.pop_front() {
                self.kept.remove(&oldest);
            }
        }
    }

    /// The outputs of a message that comes again.
    fn take(&mut self, envelope: &Envelope, now: Instant) -> Option<Box<KeptOutputs>> {
        let identity = identity(envelope);
        let outputs = self.kept.remove(&identity)?;
        let at = self.order.iter().position(|(_, other)| *other == identity)?;
        let (kept_at, _) = self.order.remove(at)?;
        (now.saturating_duration_since(kept_at) <= KEEP_FOR).then_some(outputs)
    }
}

/// The outputs of an outcome that the broker did not confirm, or the outcome.
pub(super) fn unpublished(outcome: Outcome) -> Result<Box<Unpublished>, Outcome> {
    match outcome {
        Outcome::Retry(error, advised) => {
            error.downcast::<Unpublished>().map_err(|error| Outcome::Retry(error, advised))
        }
        other => Err(other),
    }
}

impl Dispatcher<'_> {
    /// Keeps outputs with their message. Answers how long to wait before they are published again.
    pub(super) fn keep_outputs(&mut self, held: &mut Held, unpublished: Unpublished) -> Duration {
        let mut kept = held.outputs.take().unwrap_or_default();
        kept.outputs = unpublished.outputs;
        if let Some(error) = &unpublished.error {
            let wait = BACKOFF.0.saturating_mul(1 << kept.failures.min(10)).min(BACKOFF.1);
            kept.failures = kept.failures.saturating_add(1);
            let is_news = self.outputs_trouble.is_none();
            events::outputs_failed(&self.plan.names, &held.delivery, wait, error, is_news);
            let text = format!("what the handler returned is not published, and it is tried again: {error}");
            self.outputs_trouble = Some(Health::degraded(text));
            held.outputs = Some(kept);
            return wait;
        }
        held.outputs = Some(kept);
        Duration::ZERO
    }

    /// Of messages whose attempt was cancelled: the handlers of some were done.
    pub(super) fn keep_cancelled(&mut self, items: &mut Items, outcome: Outcome) {
        let outcomes = super::outcomes::spread(outcome, items.len());
        for (held, outcome) in items.iter_mut().zip(outcomes) {
            match unpublished(outcome) {
                Ok(unpublished) => drop(self.keep_outputs(held, *unpublished)),
                // nothing is left to publish, and only the acknowledgement is missing
                Err(Outcome::Done(_)) => held.outputs = Some(Box::default()),
                Err(_) => {}
            }
        }
    }

    /// Remembers the outputs of a message that the broker gets back.
    pub(super) fn remember_outputs(&mut self, held: &mut Held) {
        if let Some(outputs) = held.outputs.take() {
            let most = self.plan.subscribe.window.messages;
            self.taken_back.keep(&held.delivery.envelope, outputs, self.now, most);
        }
    }

    /// Finds the outputs of a message that was delivered again.
    pub(super) fn recall_outputs(&mut self, held: &mut Held) {
        if !self.taken_back.is_empty() {
            held.outputs = self.taken_back.take(&held.delivery.envelope, self.now);
        }
    }

    /// Publishes the outputs of those whose handler is done, and answers the others.
    #[cold]
    pub(super) fn publish_again(&mut self, items: Items, occupied: bool, cx: &mut Context<'_>) -> Items {
        let mut others = Items::new();
        for held in items {
            let Some(outputs) = held.outputs.as_ref().map(|kept| kept.outputs.clone()) else {
                others.push(held);
                continue;
            };
            if !occupied {
                held.lane.into_iter().for_each(|lane| self.lanes.occupy(lane));
            }
            let item = Items::from_iter([held]);
            if self.must_ask(&item) {
                // its lease is renewed
                self.ask(item, None);
                continue;
            }
            let begun = match &mut self.hands {
                Hands::Own(crew) => crew.start(|| self.jobs.next(), Work::Publish(outputs), cx),
                Hands::Pool(pool) => {
                    pool.start(self.jobs.next(), Work::Publish(outputs));
                    Begun::Waits { publishes: false }
                }
            };
            match begun {
                Begun::Ended(outcome) => self.conclude(item, None, outcome, true),
                Begun::Waits { publishes } => self.jobs.insert(item, None, publishes),
            }
        }
        others
    }

    /// Notices that all outputs are published.
    pub(super) fn watch_outputs(&mut self) {
        if self.outputs_trouble.is_none() {
            return;
        }
        let delayed = self.delayed.iter().map(|delayed| &delayed.held);
        let mut held = delayed.chain(&self.ready).chain(self.jobs.held());
        if !held.any(|held| held.outputs.is_some()) {
            self.outputs_trouble = None;
            events::outputs_published(&self.plan.names);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    fn message(id: &str) -> Envelope {
        let id = MessageId::Text(id.into());
        Envelope::builder(crate::Bytes::new()).id(id).build(&Env::seeded(1)).expect("an envelope")
    }

    fn kept() -> KeptOutputs {
        KeptOutputs { outputs: vec![message("output")], failures: 1 }
    }

    #[test]
    fn outputs_are_found_once_by_their_message() {
        let (mut taken_back, now) = (TakenBack::default(), Instant::now());
        taken_back.keep(&message("a"), Box::new(kept()), now, 10);
        assert!(taken_back.take(&message("b"), now).is_none());
        assert_eq!(taken_back.take(&message("a"), now).expect("they are kept").outputs.len(), 1);
        assert!(taken_back.take(&message("a"), now).is_none() && taken_back.is_empty());
    }

    #[test]
    fn at_most_a_window_of_them_is_kept_and_none_longer_than_the_limit() {
        let (mut taken_back, now) = (TakenBack::default(), Instant::now());
        for n in 0..11 {
            taken_back.keep(&message(&n.to_string()), Box::new(kept()), now, 10);
        }
        assert!(taken_back.take(&message("0"), now).is_none(), "the eleventh replaces the first");
        assert!(taken_back.take(&message("1"), now + KEEP_FOR).is_some());
        assert!(taken_back.take(&message("2"), now + KEEP_FOR + Duration::from_millis(1)).is_none());
        taken_back.keep(&message("new"), Box::new(kept()), now + 2 * KEEP_FOR, 10);
        assert_eq!((taken_back.kept.len(), taken_back.order.len()), (1, 1));
    }
}
