//! Records of Kafka, and the text that stands beside a group's place.

use bytes::Bytes;
use postrider_kafka::fuzzing::{again, envelope, mark};

use crate::envelope::{NAMES, holds, same};
use crate::feed::Feed;

/// The broker takes so much beside a place.
const MOST: usize = 4_096;

/// Any text beside any place: what is made of it can be written, and reads as the same.
pub(crate) fn mark_target(data: &[u8]) {
    let mut feed = Feed(data);
    let position = feed.number();
    let text = String::from_utf8_lossy(feed.0);
    for text in [text.to_string(), format!("postrider/1 {text}")] {
        let (read, written) = mark(position, &text);
        assert!(read.ahead.is_sorted_by(|a, b| a < b) && read.ahead.first().is_none_or(|at| *at >= position));
        assert!(read.strikes.len() <= 8 && read.strikes.iter().all(|(at, _)| *at >= position));
        assert!(written.len() < MOST, "{}", written.len());
        let (again, twice) = mark(position, &written);
        assert_eq!(twice, written, "what is written is read");
        assert_eq!((again.strikes, again.starts.0), (read.strikes, read.starts.0));
        assert!(read.ahead.starts_with(&again.ahead), "what doesn't fit is left out from the end");
    }
}

/// Any bytes as a record.
pub(crate) fn record_target(data: &[u8]) {
    let mut feed = Feed(data);
    let (key, body) = (feed.maybe(Feed::bytes), feed.maybe(|feed| Bytes::copy_from_slice(feed.bytes())));
    let mut fields: Vec<(String, Option<&[u8]>)> = Vec::new();
    while !feed.is_empty() {
        let mut name = feed.one_of(&NAMES);
        match feed.byte() % 3 {
            0 => name = format!("ce_{name}"),
            1 if feed.byte().is_multiple_of(4) => "postrider-header-kinds".clone_into(&mut name),
            _ => {}
        }
        fields.push((name, feed.maybe(Feed::bytes)));
    }
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let read = envelope(key, body, &fields);
    holds(&read);
    let once = again(&read);
    holds(&once);
    same(&read, &once);
    same(&once, &again(&once));
}
