//! Messages of RabbitMQ: tables with every type of field, nested, and properties that say anything.

use bytes::Bytes;
use postrider_rabbitmq::fuzzing::{Texts, again, envelope, value};

use crate::envelope::{NAMES, holds, same};
use crate::feed::Feed;

const LETTERS: &[u8] = b"tbBsuIilLfdDSATFVx";
const OWN: [&str; 12] = [
    "x-death",
    "x-delivery-count",
    "x-acquired-count",
    "x-first-death-queue",
    "CC",
    "BCC",
    "postrider-send",
    "postrider-null",
    "cloudEvents:id",
    "cloudEvents:time",
    "cloudEvents_type",
    "ce-partitionkey",
];

/// Any bytes as a message.
pub(crate) fn target(data: &[u8]) {
    let mut feed = Feed(data);
    let texts = Texts {
        message_id: feed.maybe(Feed::text),
        content_type: feed.maybe(Feed::text),
        correlation_id: feed.maybe(Feed::text),
        expiration: feed.maybe(Feed::text),
        timestamp: feed.maybe(Feed::number),
    };
    let body = Bytes::copy_from_slice(feed.bytes());
    let mut table = Vec::new();
    while !feed.is_empty() {
        let name = if feed.byte().is_multiple_of(2) { feed.one_of(&OWN) } else { feed.one_of(&NAMES) };
        let letter = LETTERS[usize::from(feed.byte()) % LETTERS.len()];
        let bytes = feed.bytes().to_vec();
        if let Some((letter, written)) = value(letter, &bytes) {
            let twice = value(letter, &written);
            assert_eq!(twice, Some((letter, written)), "what is written is read");
        }
        table.push((name, letter, bytes));
    }
    let (read, deliveries) = envelope(&table, &texts, body);
    assert!(deliveries >= 1);
    holds(&read);
    let once = again(&read);
    holds(&once);
    same(&read, &once);
    same(&once, &again(&once));
}
