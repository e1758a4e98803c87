//! The place of a message: which partition, as Kafka's Java producers choose it; and the gate in front of each partition.
//!
//! A broker that has nothing from a producer yet takes whatever sequence comes first. If a producer's first request to a partition
//! is refused for a moment (the topic was made just now, its leader is changing) and the second one goes through, the first one's
//! messages are lost, and librdkafka 2.12 still reports them delivered: it takes the later success for theirs (seen here with
//! new topics on Kafka 4.4). So only one message may be under way to a partition until the first one is there; from then on the
//! broker knows the producer and refuses every gap.
//!
//! Gates are closed again whenever the topic is asked for anew, which is each minute: it may have been deleted and made again, and then
//! its broker knows nobody. (The broker also forgets a producer that is silent for `producer.id.expiration.ms`, a day unless set.)

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use postrider_core::murmur2;

/// How long the number of partitions is believed.
const BELIEVED: Duration = Duration::from_mins(1);

const CLOSED: u8 = 0;
const FIRST_UNDER_WAY: u8 = 1;
const OPEN: u8 = 2;

/// A topic as the publisher knows it.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: Box<str>,
    /// Whose gates these are: another producer begins anew.
    producer: u64,
    /// Until then the number of its partitions is believed.
    until: Instant,
    /// Of each partition.
    gates: Box<[AtomicU8]>,
    turn: AtomicU32,
    /// It is gone: what bears its name from now on is another.
    gone: AtomicBool,
}

/// A place that may be sent to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) partition: u32,
    /// Whether this is the one message that opens the gate, or closes it again.
    pub(crate) first: bool,
}

impl Topic {
    pub(crate) fn new(name: &str, partitions: u32, producer: u64, now: Instant) -> Self {
        let gates = (0..partitions.max(1)).map(|_| AtomicU8::new(CLOSED)).collect();
        Self {
            name: name.into(),
            producer,
            until: now + BELIEVED,
            gates,
            turn: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }
    }

    /// Whether it can be relied upon.
    pub(crate) fn is_current(&self, producer: u64, now: Instant) -> bool {
        self.producer == producer && !self.gone.load(Relaxed) && now < self.until
    }

    /// Whether it needn't be asked for again. While a gate is being opened it isn't exchanged for another.
    pub(crate) fn is_usable(&self, producer: u64, now: Instant) -> bool {
        self.is_current(producer, now) || self.is_opening()
    }

    /// The broker says that it isn't there.
    pub(crate) fn mark_gone(&self) {
        self.gone.store(true, Relaxed);
    }

    /// Whether the first message of some partition is under way.
    fn is_opening(&self) -> bool {
        self.gates.iter().any(|gate| gate.load(Relaxed) == FIRST_UNDER_WAY)
    }

    /// Whether the partition's first message is under way.
    pub(crate) fn is_under_way(&self, partition: u32) -> bool {
        self.gates.get(partition as usize).is_some_and(|gate| gate.load(Relaxed) == FIRST_UNDER_WAY)
    }

    /// The partition of a key; without one, each in turn.
    pub(crate) fn partition(&self, key: Option<&[u8]>) -> u32 {
        let hash = key.map_or_else(|| self.turn.fetch_add(1, Relaxed), |key| murmur2(key) & 0x7fff_ffff);
        hash % self.gates.len() as u32
    }

    /// Whether a message may go to the partition now; `None`: the first one is under way.
    pub(crate) fn enter(&self, partition: u32) -> Option<Place> {
        let gate = self.gates.get(partition as usize)?;
        if gate.load(Relaxed) == OPEN {
            return Some(Place { partition, first: false });
        }
        let taken = gate.compare_exchange(CLOSED, FIRST_UNDER_WAY, Relaxed, Relaxed).is_ok();
        taken.then_some(Place { partition, first: true })
    }

    /// What became of a message. The first one opens the gate, or leaves it closed for the next to try.
    pub(crate) fn answered(&self, place: Place, confirmed: bool) {
        if place.first
            && let Some(gate) = self.gates.get(place.partition as usize)
        {
            gate.store(if confirmed { OPEN } else { CLOSED }, Relaxed);
        }
    }
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
        assert!(first.first && topic.enter(0).is_none() && topic.is_opening());
        assert!(topic.enter(1).is_some(), "another partition has a gate of its own");
        topic.answered(first, false);
        let again = topic.enter(0).unwrap();
        assert!(again.first, "the first one failed");
        topic.answered(again, true);
        let next = topic.enter(0).unwrap();
        assert!(!next.first && next.partition == 0);
        topic.answered(next, false);
        assert!(
            topic.enter(0).is_some_and(|place| !place.first),
            "the broker knows the producer all the same"
        );
        assert!(topic.enter(2).is_none());
    }

    #[test]
    fn a_topic_is_believed_for_a_minute_and_by_one_producer() {
        let now = Instant::now();
        let topic = Topic::new("t", 1, 1, now);
        let just_before = now + Duration::from_millis(59_999);
        assert!(topic.is_current(1, just_before) && !topic.is_current(1, now + BELIEVED));
        assert!(!topic.is_current(2, now));
        topic.mark_gone();
        assert!(!topic.is_current(1, now));
    }
}
