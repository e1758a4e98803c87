//! The place of a message: which partition, as Kafka's Java producers choose it; and the gate in front of each partition.
//!
//! A broker that has nothing from a producer yet takes whatever sequence comes first. If a producer's first request to a partition
//! is refused for a moment (the topic was made just now, its leader is changing) and the second one goes through, the first one's
//! messages are lost, and librdkafka 2.12 still reports them delivered: it takes the later success for theirs (seen here with
//! new topics on Kafka 4.4). So only one message may be under way to a partition until the first one is there; from then on the
//! broker knows the producer and refuses every gap.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use postrider_core::murmur2;

/// A broker forgets a producer that is silent (`producer.id.expiration.ms`, a day unless set); long before that it is a stranger
/// to us.
const REMEMBERED: Duration = Duration::from_mins(10);

/// How long the number of partitions is believed.
const BELIEVED: Duration = Duration::from_mins(1);

const CLOSED: u64 = 0;
const FIRST_UNDER_WAY: u64 = 1;

/// A topic as the publisher knows it.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: Box<str>,
    /// Whose gates these are: another producer begins anew.
    producer: u64,
    /// Where its clock begins.
    since: Instant,
    /// Until then the number of its partitions is believed.
    until: Instant,
    /// Of each partition: closed, its first message under way, or else when a message was sent that is confirmed, the latest such.
    gates: Box<[AtomicU64]>,
    turn: AtomicU32,
    /// It is gone: what bears its name from now on is another.
    gone: AtomicBool,
}

/// A place that may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) partition: u32,
    /// Whether this is the one message that opens the gate, or closes it again.
    pub(crate) first: bool,
    /// When it was entered, by the topic's own clock.
    at: u64,
}

impl Topic {
    pub(crate) fn new(name: &str, partitions: u32, producer: u64, now: Instant) -> Self {
        let gates = (0..partitions.max(1)).map(|_| AtomicU64::new(CLOSED)).collect();
        Self {
            name: name.into(),
            producer,
            since: now,
            until: now + BELIEVED,
            gates,
            turn: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }
    }

    /// The same topic asked for again: gates stay open if it has as many partitions, and the producer is the same.
    pub(crate) fn renewed(&self, partitions: u32, producer: u64, now: Instant) -> Self {
        let mut new = Self::new(&self.name, partitions, producer, now);
        if producer == self.producer && !self.gone.load(Relaxed) {
            new.since = self.since;
            for (new, old) in new.gates.iter().zip(&self.gates) {
                let open = old.load(Relaxed);
                // one that is being opened is opened anew: two at a time would be no gate
                if open > FIRST_UNDER_WAY {
                    new.store(open, Relaxed);
                }
            }
        }
        new
    }

    /// Whether it can be relied upon.
    pub(crate) fn is_current(&self, producer: u64, now: Instant) -> bool {
        self.producer == producer && !self.gone.load(Relaxed) && now < self.until
    }

    /// The broker says that it isn't there.
    pub(crate) fn mark_gone(&self) {
        self.gone.store(true, Relaxed);
    }

    /// Whether the first message of some partition is under way.
    pub(crate) fn is_opening(&self) -> bool {
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
    pub(crate) fn enter(&self, partition: u32, now: Instant) -> Option<Place> {
        let gate = self.gates.get(partition as usize)?;
        let found = gate.load(Relaxed);
        if found == FIRST_UNDER_WAY {
            return None;
        }
        let at = self.clock(now);
        if found != CLOSED && at.saturating_sub(found) < REMEMBERED.as_millis() as u64 {
            return Some(Place { partition, first: false, at });
        }
        let taken = gate.compare_exchange(found, FIRST_UNDER_WAY, Relaxed, Relaxed).is_ok();
        taken.then_some(Place { partition, first: true, at })
    }

    /// What became of a message. The first one opens the gate, or leaves it closed for the next to try.
    pub(crate) fn answered(&self, place: Place, confirmed: bool) {
        let Some(gate) = self.gates.get(place.partition as usize) else { return };
        if confirmed && (place.first || gate.load(Relaxed) != FIRST_UNDER_WAY) {
            gate.store(place.at, Relaxed);
        } else if place.first {
            gate.store(CLOSED, Relaxed);
        }
    }

    /// Milliseconds, never mistaken for one of the marks.
    fn clock(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_millis() as u64 + FIRST_UNDER_WAY + 1
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
        let now = Instant::now();
        let topic = Topic::new("t", 2, 1, now);
        let first = topic.enter(0, now).unwrap();
        assert!(first.first && topic.enter(0, now).is_none() && topic.is_opening());
        assert!(topic.enter(1, now).is_some(), "another partition has a gate of its own");
        topic.answered(first, false);
        let again = topic.enter(0, now).unwrap();
        assert!(again.first, "the first one failed");
        topic.answered(again, true);
        assert!(topic.enter(0, now).is_some_and(|place| place.partition == 0 && !place.first));
        assert!(topic.enter(0, now + REMEMBERED).unwrap().first, "after a long silence");
    }

    #[test]
    fn an_open_gate_stays_open_when_the_topic_is_asked_for_again() {
        let now = Instant::now();
        let topic = Topic::new("t", 1, 1, now);
        let later = now + BELIEVED;
        let first = topic.enter(0, now).unwrap();
        topic.answered(first, true);
        assert!(topic.is_current(1, now) && !topic.is_current(2, now) && !topic.is_current(1, later));
        let renewed = topic.renewed(4, 1, later);
        assert!(!renewed.enter(0, later).unwrap().first && renewed.is_current(1, later));
        assert!(renewed.enter(0, now + REMEMBERED).unwrap().first, "its clock goes on");
        assert!(topic.renewed(4, 1, later).enter(3, later).unwrap().first);
        assert!(topic.renewed(1, 2, later).enter(0, later).unwrap().first, "another producer");
    }
}
