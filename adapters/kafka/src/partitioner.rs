//! The place of a message: which partition, as Kafka's Java producers choose it; and the gate in front of each partition.
//!
//! A broker that has nothing from a producer yet takes whatever sequence comes first. If a producer's first request to a partition
//! is refused for a moment (the topic was made just now, its leader is changing) and the second one goes through, the first one's
//! messages are lost, and librdkafka 2.12 still reports them delivered: it takes the later success for theirs (seen here with
//! new topics on Kafka 4.4). So only one message may be under way to a partition until the first one is there; from then on the
//! broker knows the producer and refuses every gap.
//!
//! Gates are closed again whenever the topic is asked for anew, which is each minute: it may have been deleted and made again, and then
//! its broker knows nobody. (The broker also forgets a producer that is silent for `producer.id.expiration.ms`, a day unless set.) What
//! went through a gate that was open may still be under way then, or set out a moment later, beside the one that opens it again: the
//! guard is whole when that is answered. A topic that loses partitions and gets them again has new gates there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use postrider_core::murmur2;

/// How long what the broker said isn't asked again, where it doesn't help.
pub(crate) const FRESH: Duration = Duration::from_millis(500);
/// How long the number of partitions is believed.
const BELIEVED: Duration = Duration::from_mins(1);

const CLOSED: u8 = 0;
const FIRST_UNDER_WAY: u8 = 1;
const OPEN: u8 = 2;
/// Since the first one set out, the topic was asked for anew: whatever its answer is, it closes the gate.
const FIRST_LEFT_OVER: u8 = 3;

const KEYS_UNKNOWN: u8 = 0;
const KEYS_OPTIONAL: u8 = 1;
const KEYS_REQUIRED: u8 = 2;

/// A topic as the publisher knows it.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: Box<str>,
    /// Whose gates these are: another producer begins anew.
    producer: u64,
    /// When the broker was asked for it.
    asked: Instant,
    /// Of each partition. One through which a first message is on its way is shared with what the topic was before, or is after.
    gates: Box<[Arc<AtomicU8>]>,
    turn: AtomicU32,
    /// Whether each message needs a key: the topic is compacted.
    keys: AtomicU8,
    /// It is gone: what bears its name from now on is another.
    gone: AtomicBool,
}

/// Why a message may not go to a partition now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barred {
    /// Another is the first there, and under way.
    FirstUnderWay,
    /// The topic isn't the one that is known any more.
    Exchanged,
    /// The topic has fewer partitions.
    NoSuchPartition,
}

/// A place that may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) partition: u32,
    /// Whether this is the one message that opens the gate, or closes it again.
    pub(crate) first: bool,
}

impl Topic {
    pub(crate) fn new(name: &str, partitions: u32, producer: u64, now: Instant) -> Self {
        let gates = (0..partitions.max(1)).map(|_| Arc::new(AtomicU8::new(CLOSED))).collect();
        Self {
            name: name.into(),
            producer,
            asked: now,
            gates,
            turn: AtomicU32::new(0),
            keys: AtomicU8::new(KEYS_UNKNOWN),
            gone: AtomicBool::new(false),
        }
    }

    /// The topic as it is from now on, asked for anew: its gates are closed, but for those through which a first message is on its way.
    /// This one is gone.
    pub(crate) fn renewed(&self, partitions: u32, producer: u64, now: Instant) -> Self {
        let mut renewed = Self::new(&self.name, partitions, producer, now);
        for (gate, before) in renewed.gates.iter_mut().zip(&self.gates) {
            let found = before
                .compare_exchange(FIRST_UNDER_WAY, FIRST_LEFT_OVER, Relaxed, Relaxed)
                .unwrap_or_else(|found| found);
            if is_under_way(found) {
                *gate = Arc::clone(before);
            }
        }
        // a topic that has come to need keys refuses a message, and is looked at again then; one that needs none any more does not
        if self.requires_keys() == Some(false) {
            renewed.set_requires_keys(false);
        }
        self.mark_gone();
        renewed
    }

    /// Whether it can be relied upon.
    pub(crate) fn is_current(&self, producer: u64, now: Instant) -> bool {
        self.producer == producer && !self.gone.load(Relaxed) && now < self.asked + BELIEVED
    }

    /// Whether the broker was asked for it only now.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        now < self.asked + FRESH
    }

    /// Whether each message needs a key, if that is known.
    pub(crate) fn requires_keys(&self) -> Option<bool> {
        match self.keys.load(Relaxed) {
            KEYS_OPTIONAL => Some(false),
            KEYS_REQUIRED => Some(true),
            _ => None,
        }
    }

    pub(crate) fn set_requires_keys(&self, required: bool) {
        self.keys.store(if required { KEYS_REQUIRED } else { KEYS_OPTIONAL }, Relaxed);
    }

    /// The broker refused a message: whether each needs a key isn't known any more.
    pub(crate) fn forget_keys(&self) {
        self.keys.store(KEYS_UNKNOWN, Relaxed);
    }

    /// It isn't there, or isn't what it was.
    pub(crate) fn mark_gone(&self) {
        self.gone.store(true, Relaxed);
    }

    pub(crate) fn partitions(&self) -> usize {
        self.gates.len()
    }

    /// Whether the first message of some partition is under way.
    pub(crate) fn has_first_under_way(&self) -> bool {
        self.gates.iter().any(|gate| is_under_way(gate.load(Relaxed)))
    }

    /// Whether the partition's first message is under way.
    pub(crate) fn is_under_way(&self, partition: u32) -> bool {
        self.gates.get(partition as usize).is_some_and(|gate| is_under_way(gate.load(Relaxed)))
    }

    /// The partition of a key; without one, each in turn.
    pub(crate) fn partition(&self, key: Option<&[u8]>) -> u32 {
        let hash = key.map_or_else(|| self.turn.fetch_add(1, Relaxed), |key| murmur2(key) & 0x7fff_ffff);
        hash % self.gates.len() as u32
    }

    /// Where a message for the partition goes now.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn enter(&self, partition: u32) -> Result<Place, Barred> {
        let gate = self.gates.get(partition as usize).ok_or(Barred::NoSuchPartition)?;
        if gate.load(Relaxed) == OPEN {
            return Ok(Place { partition, first: false });
        }
        match gate.compare_exchange(CLOSED, FIRST_UNDER_WAY, Relaxed, Relaxed) {
            Ok(_) => Ok(Place { partition, first: true }),
            Err(OPEN) => Ok(Place { partition, first: false }),
            Err(_) => Err(Barred::FirstUnderWay),
        }
    }

    /// What became of a message. The first one opens the gate, or leaves it closed for the next to try.
    pub(crate) fn answered(&self, place: Place, confirmed: bool) {
        if place.first
            && let Some(gate) = self.gates.get(place.partition as usize)
        {
            let state = if confirmed { OPEN } else { CLOSED };
            if gate.compare_exchange(FIRST_UNDER_WAY, state, Relaxed, Relaxed).is_err() {
                gate.store(CLOSED, Relaxed);
            }
        }
    }
}

fn is_under_way(state: u8) -> bool {
    matches!(state, FIRST_UNDER_WAY | FIRST_LEFT_OVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_places_of_javas_producers() {
        let topic = Topic::new("t", 8, 1, Instant::now());
        // (murmur2 & 0x7fffffff) % 8, by the values of Kafka's own test
        for (key, partition) in [("21", 4), ("foobar", 6), ("abc", 3), ("", 1)] {
            assert_eq!(topic.partition(Some(key.as_bytes())), partition, "{key}");
        }
        let turns: Vec<_> = (0..9).map(|_| topic.partition(None)).collect();
        assert_eq!(turns, [0, 1, 2, 3, 4, 5, 6, 7, 0]);
    }

    #[test]
    fn one_message_opens_a_gate_and_the_others_wait() {
        let topic = Topic::new("t", 2, 1, Instant::now());
        let first = topic.enter(0).unwrap();
        assert!(first.first && topic.enter(0) == Err(Barred::FirstUnderWay) && topic.has_first_under_way());
        assert!(topic.enter(1).is_ok(), "another partition has a gate of its own");
        topic.answered(first, false);
        let again = topic.enter(0).unwrap();
        assert!(again.first, "the first one failed");
        topic.answered(again, true);
        let next = topic.enter(0).unwrap();
        assert!(!next.first && next.partition == 0);
        topic.answered(next, false);
        assert!(topic.enter(0).is_ok_and(|place| !place.first), "the broker knows the producer all the same");
        assert_eq!(topic.enter(2), Err(Barred::NoSuchPartition));
    }

    #[test]
    fn a_topic_that_is_asked_for_anew_has_closed_gates_but_for_firsts_under_way() {
        for confirmed in [true, false] {
            let now = Instant::now();
            let topic = Topic::new("t", 3, 1, now);
            topic.answered(topic.enter(0).unwrap(), true);
            let first = topic.enter(1).unwrap();
            let anew = topic.renewed(4, 1, now).renewed(4, 1, now);
            assert!(
                anew.enter(0).unwrap().first && anew.enter(2).unwrap().first && anew.enter(3).unwrap().first
            );
            assert!(anew.is_under_way(1) && anew.enter(1) == Err(Barred::FirstUnderWay));
            topic.answered(first, confirmed);
            assert!(
                !anew.is_under_way(1) && anew.enter(1).unwrap().first,
                "it opens no gate of the topic as it is now"
            );
        }
    }

    #[test]
    fn whether_keys_are_needed_is_asked_again_where_it_can_change_unseen() {
        let now = Instant::now();
        let topic = Topic::new("t", 1, 1, now);
        assert_eq!(topic.requires_keys(), None);
        topic.set_requires_keys(false);
        let renewed = topic.renewed(1, 1, now);
        assert_eq!(renewed.requires_keys(), Some(false), "if it changes, the broker refuses");
        renewed.forget_keys();
        assert_eq!(renewed.requires_keys(), None);
        renewed.set_requires_keys(true);
        assert_eq!(renewed.requires_keys(), Some(true));
        assert_eq!(renewed.renewed(1, 1, now).requires_keys(), None, "nothing would show a change");
    }

    #[test]
    fn a_topic_is_believed_for_a_minute_and_by_one_producer() {
        let now = Instant::now();
        let topic = Topic::new("t", 1, 1, now);
        let just_before = now + Duration::from_millis(59_999);
        assert!(topic.is_current(1, just_before) && !topic.is_current(1, now + BELIEVED));
        assert!(!topic.is_current(2, now));
        assert!(topic.is_fresh(now + Duration::from_millis(499)) && !topic.is_fresh(now + FRESH));
        topic.mark_gone();
        assert!(!topic.is_current(1, now));
    }
}
