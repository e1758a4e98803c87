//! Which dead letters are closed. A log can't let go of single records, so a compacted topic beside the letters' own keeps a mark for
//! each: its key is the letter's place, `PARTITION/OFFSET`, its value the letter's time, in milliseconds since the Unix epoch. The time is
//! there because a topic that is deleted and made again counts its places anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postrider_core::{Error, ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use crate::{connection, error};

/// How long the marks of one call may take to be confirmed.
const CONFIRMED: Duration = Duration::from_secs(30);
/// How long a full queue is waited for at a time.
const FULL: Duration = Duration::from_millis(20);

/// Where a letter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// The marks.
#[derive(Debug, Default)]
pub(crate) struct Closed(HashMap<Place, i64>);

impl Closed {
    /// Takes a record of the compacted topic; what is no mark is left out.
    pub(crate) fn note(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) {
        let Some(place) = key.and_then(place) else {
            return;
        };
        let time = value.and_then(|value| std::str::from_utf8(value).ok()).and_then(|text| text.parse().ok());
        match time {
            Some(time) => drop(self.0.insert(place, time)),
            None => drop(self.0.remove(&place)),
        }
    }

    pub(crate) fn add(&mut self, marks: &[(Place, i64)]) {
        self.0.extend(marks.iter().copied());
    }

    pub(crate) fn has(&self, place: Place, time: i64) -> bool {
        self.0.get(&place) == Some(&time)
    }

    /// How many letters are marked that stand within these edges, by partition.
    pub(crate) fn within(&self, edges: &[(i64, i64)]) -> u64 {
        let inside = |place: &&Place| {
            usize::try_from(place.partition)
                .ok()
                .and_then(|partition| edges.get(partition))
                .is_some_and(|(low, high)| (*low..*high).contains(&place.offset))
        };
        self.0.keys().filter(inside).count() as u64
    }
}

fn place(key: &[u8]) -> Option<Place> {
    let (partition, offset) = std::str::from_utf8(key).ok()?.split_once('/')?;
    Some(Place { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
}

/// Hears what became of marks: the first that failed.
#[derive(Debug, Default)]
struct Ear(Mutex<Option<KafkaError>>);

#[derive(Clone, Debug, Default)]
struct Ears(Arc<Ear>);

impl ClientContext for Ears {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        connection::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        connection::log_error(&error, reason);
    }
}

impl ProducerContext for Ears {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        }
    }
}

/// Writes marks down, and waits until the brokers have them. Blocks its thread.
pub(crate) fn close(config: &ClientConfig, topic: &str, marks: &[(Place, i64)]) -> Result<()> {
    let failed = |e| error::client("close", e).with("topic", topic);
    let ears = Ears::default();
    let producer: BaseProducer<Ears> = config.create_with_context(ears.clone()).map_err(error::creation)?;
    let deadline = Instant::now() + CONFIRMED;
    for (Place { partition, offset }, time) in marks {
        let (key, value) = (format!("{partition}/{offset}"), time.to_string());
        let mut record = BaseRecord::to(topic).key(&key).payload(&value);
        while let Err((e, again)) = producer.send(record) {
            if e.rdkafka_error_code() != Some(Code::QueueFull) || Instant::now() > deadline {
                return Err(failed(e));
            }
            producer.poll(FULL);
            record = again;
        }
    }
    producer.flush(deadline.saturating_duration_since(Instant::now())).map_err(failed)?;
    match ears.0.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
        None => Ok(()),
        Some(KafkaError::MessageProduction(Code::MessageTimedOut)) => {
            Err(Error::new(ErrorKind::Timeout, "close", "the broker didn't answer in time")
                .with("topic", topic))
        }
        Some(e) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_letter_alone() {
        let mut closed = Closed::default();
        for (key, value) in
            [("0/7", Some("99")), ("1/7", Some("5")), ("0/8", Some("5")), ("0/8", None), ("x", Some("1"))]
        {
            closed.note(Some(key.as_bytes()), value.map(str::as_bytes));
        }
        closed.note(None, Some(b"1"));
        let at = |partition, offset| Place { partition, offset };
        assert!(closed.has(at(0, 7), 99) && closed.has(at(1, 7), 5));
        // the topic was made again, and another letter stands there
        assert!(!closed.has(at(0, 7), 100));
        // opened again by a record without a value
        assert!(!closed.has(at(0, 8), 5));
        assert_eq!((closed.within(&[(0, 8), (0, 9)]), closed.within(&[(8, 9)])), (2, 0));
    }
}
