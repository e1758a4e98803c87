//! Messages of NATS: headers that are text, with values of other kinds encoded in them.

use bytes::Bytes;
use postrider_nats::fuzzing::{again, envelope};

use crate::envelope::{NAMES, holds, same};
use crate::feed::Feed;

const OWN: [&str; 8] = [
    "postrider-h-0",
    "postrider-h-1",
    "postrider-h-18446744073709551615",
    "Nats-Msg-Id",
    "Nats-Schedule",
    "Nats-Pin-Id",
    "nats-expected-stream",
    "ce-specversion",
];

/// Any bytes as a message.
pub(crate) fn target(data: &[u8]) {
    let mut feed = Feed(data);
    let body = Bytes::copy_from_slice(feed.bytes());
    let mut headers = Vec::new();
    while !feed.is_empty() {
        let name = match feed.byte() % 3 {
            0 => feed.one_of(&OWN),
            1 => format!("ce-{}", feed.one_of(&NAMES)),
            _ => feed.one_of(&NAMES),
        };
        headers.push((name, feed.text()));
    }
    let read = envelope(&headers, body);
    holds(&read);
    let once = again(&read);
    holds(&once);
    same(&read, &once);
    same(&once, &again(&once));
}
