//! One partition's part of what a subscription holds: what came of it, what is out, and what is remembered.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use async_nats::Subject;
use postrider_core::{Envelope, Rising};
use tokio::sync::Notify;

use crate::pull::Place;
use crate::teller::{Tell, What};

/// A message that came and is not settled.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) reply: Subject,
    pub(super) bytes: usize,
    /// Its key, hashed.
    pub(super) key: Option<u64>,
    /// Handed to the runner; else it is in the buffer.
    pub(super) out: bool,
    /// Kept while it may be handed out, and under order while it may be so again.
    pub(super) envelope: Option<Envelope>,
    pub(super) deliveries: u32,
    /// Which of all deliveries of the consumer this was.
    pub(super) delivered: u64,
    /// When it was stored.
    pub(super) time_ms: u64,
}

/// A message as it came.
pub(crate) struct Arrived {
    pub(crate) reply: Subject,
    pub(crate) envelope: Envelope,
    /// Its key, hashed.
    pub(crate) key: Option<u64>,
    pub(crate) place: Place,
}

/// How many acknowledged messages a partition remembers.
const REMEMBERED: usize = 4_096;

/// The latest acknowledged messages. A server that is killed has written down neither the latest deliveries nor their
/// acknowledgements (it does so ten times a second) and delivers those messages as if for the first time.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    /// By sequence; with the time, since a stream that was made anew counts anew.
    times_ms: Rising<u64>,
    oldest_first: VecDeque<u64>,
}

impl Acknowledged {
    pub(super) fn insert(&mut self, sequence: u64, time_ms: u64) {
        if self.times_ms.insert(sequence, time_ms).is_some() {
            return;
        }
        self.oldest_first.push_back(sequence);
        if self.oldest_first.len() > REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.times_ms.remove(oldest);
        }
    }

    fn contains(&self, place: Place) -> bool {
        self.times_ms.get(place.sequence) == Some(&place.time_ms)
    }
}

/// One partition as this member sees it.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each follows another event, and they come in any combination"
)]
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) epoch: u32,
    /// Whether this member holds it.
    pub(crate) assigned: bool,
    /// Since when it is to be given to another member: nothing more is handed out, and what is out is waited for.
    pub(super) moving: Option<Instant>,
    /// It was given to another member, and its puller doesn't know yet.
    pub(super) released: bool,
    /// Nothing is handed out while the server can't be heard: it could be another's by now, and couldn't be acknowledged.
    pub(super) reachable: bool,
    /// Nothing is handed out before all is here that an earlier holder left unsettled.
    pub(super) gathering: bool,
    /// By their sequence in the stream.
    pub(super) held: Rising<Held>,
    /// What waits to be handed out: sequences, ascending.
    pub(super) buffer: VecDeque<u64>,
    /// Keys of which something waits for its time.
    pub(super) delayed: HashMap<u64, usize>,
    pub(super) acknowledged: Acknowledged,
    /// Its puller looks again when something is settled.
    pub(crate) room: Arc<Notify>,
}

impl Partition {
    pub(super) fn new() -> Self {
        Self {
            epoch: 0,
            assigned: false,
            moving: None,
            released: false,
            reachable: true,
            gathering: false,
            held: Rising::default(),
            buffer: VecDeque::new(),
            delayed: HashMap::new(),
            acknowledged: Acknowledged::default(),
            room: Arc::new(Notify::new()),
        }
    }

    /// The hold is over; answers what was held under it, in its order.
    pub(super) fn end(&mut self) -> impl Iterator<Item = Held> + use<> {
        (self.assigned, self.moving) = (false, None);
        self.delayed.clear();
        self.take_all()
    }

    /// Takes out everything that is held, in its order; nothing of it can be settled any more.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Held> + use<> {
        self.epoch += 1;
        self.buffer.clear();
        std::mem::take(&mut self.held).into_values()
    }

    /// Keeps what came, or came again while it is held: then it is only to be settled by its newest name. Answers what is to be told
    /// of it at once.
    pub(super) fn push(&mut self, arrived: Arrived) -> Option<Tell> {
        let Arrived { reply, envelope, key, place } = arrived;
        let tell = |reply, what| Some(Tell { reply, what });
        if !self.assigned {
            // given to another member a moment ago, and the puller didn't know yet
            return tell(reply, What::Nak(None));
        }
        let Place { deliveries, delivered, sequence, time_ms } = place;
        if let Some(held) = self.held.get_mut(sequence) {
            (held.reply, held.delivered) = (reply, delivered);
            return None;
        }
        if self.acknowledged.contains(place) {
            return tell(reply, What::Ack);
        }
        let bytes = envelope.byte_len();
        let envelope = Some(envelope);
        self.held.insert(
            sequence,
            Held { reply, bytes, key, out: false, envelope, deliveries, delivered, time_ms },
        );
        self.enqueue(sequence);
        None
    }

    /// What is handed out and not settled.
    pub(super) fn out(&mut self, sequence: u64) -> Option<&mut Held> {
        self.held.get_mut(sequence).filter(|held| held.out)
    }

    /// Takes out what was handed out and is done.
    pub(super) fn done(&mut self, sequence: u64) -> Option<Held> {
        if self.held.get(sequence)?.out { self.held.remove(sequence) } else { None }
    }

    /// Puts a held message where it belongs among those that wait.
    pub(super) fn enqueue(&mut self, sequence: u64) {
        if self.buffer.back().is_none_or(|last| *last < sequence) {
            return self.buffer.push_back(sequence);
        }
        let at = self.buffer.partition_point(|other| *other < sequence);
        self.buffer.insert(at, sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_last_is_remembered_whatever_its_sequence() {
        let mut acknowledged = Acknowledged::default();
        let knows = |acknowledged: &Acknowledged, sequence, time_ms| {
            acknowledged.contains(Place { deliveries: 1, sequence, delivered: 1, time_ms })
        };
        let most = REMEMBERED as u64;
        (10_000..10_000 + most).for_each(|sequence| acknowledged.insert(sequence, 7));
        // one that took long, and those of a stream that was made anew
        (1..=3).for_each(|sequence| acknowledged.insert(sequence, 8));
        assert!((1..=3).all(|sequence| knows(&acknowledged, sequence, 8)));
        assert!(!knows(&acknowledged, 1, 7), "of another stream");
        let forgotten = (10_000..10_000 + most).filter(|sequence| !knows(&acknowledged, *sequence, 7));
        assert!(forgotten.eq(10_000..10_003), "the three oldest, and no more");
    }
}
