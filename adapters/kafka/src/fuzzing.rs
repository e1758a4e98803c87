//! What `fuzz/` reaches of the private parts: records, commit metadata and options as they come from outside. No part of the
//! interface.

use bytes::Bytes;
use postrider_core::{BrokerUrl, Envelope, Result};
use rdkafka::message::Headers as _;

use crate::config::KafkaConfig;
use crate::convert::{self, Record};
use crate::mark;

/// What is read from commit metadata: the offsets that are settled ahead, starts and their reach, strikes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Offsets that are settled above the position.
    pub ahead: Vec<u64>,
    /// Starts that didn't end well, and how far they came.
    pub starts: (u32, u64),
    /// Messages that were begun alone.
    pub strikes: Vec<(u64, u32)>,
    /// How many partitions the topic had when the group began.
    pub initial_partitions: Option<u32>,
}

/// What a text says beside a position, and the text that says the same.
pub fn mark(position: u64, text: &str) -> (Mark, String) {
    let read = mark::read(position, text);
    let initial_partitions = read.initial_partitions;
    let written = mark::write(position, read.ahead.iter().copied(), &read.starts, initial_partitions);
    let starts = (read.starts.count, read.starts.reach);
    let strikes = read.starts.strikes.into_iter().collect();
    (Mark { ahead: read.ahead, starts, strikes, initial_partitions }, written)
}

/// The envelope of a record.
pub fn envelope(key: Option<&[u8]>, body: Option<Bytes>, fields: &[(&str, Option<&[u8]>)]) -> Envelope {
    let record = Record { key, body, time_ms: 1_700_000_000_000, unreadable: 0, excess: 0 };
    convert::read(record, fields, || "orders/0/7".into())
}

/// The same after it was published again as it is.
pub fn again(envelope: &Envelope) -> Envelope {
    let written = convert::headers(envelope);
    let fields: Vec<_> = written.iter().map(|header| (header.key, header.value)).collect();
    let body = (!envelope.is_null()).then(|| envelope.payload().clone());
    self::envelope(envelope.key(), body, &fields)
}

/// Reads and checks the options of a URL.
///
/// # Errors
/// As connecting would say it.
pub fn config(url: &BrokerUrl) -> Result<()> {
    KafkaConfig::from_url(url)?.check()
}
