//! What a dead letter says of its failure, as data. How it is written is the runner's.

use super::copy::{EDITED_FROM, PREFIX, cut, depth, redrives};
use crate::address::{Channel, GroupName};
use crate::envelope::Envelope;
use crate::headers::HeaderValue;
use crate::outcome::Reason;

/// Why and where a message failed, read from the headers of its dead letter.
///
/// Nothing here is to be trusted more than the channel that it was read from: whoever may write there may write this. What is missing
/// or can't be read is `None`; texts are cut at 2 KiB and have no control characters; numbers are clamped to their type.
///
/// A dead letter that the broker made itself (RabbitMQ, beyond its delivery limit) says as much of this as the broker noted.
///
/// As an argument of a handler it stands beside the message, or beside `Envelope` for bodies of any kind; the message and this in one is
/// [`DeadLetter`](crate::DeadLetter).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// Why it was given up on.
    pub reason: Option<Reason>,
    /// The last error.
    pub error: Option<String>,
    /// The last error with all its sources.
    pub error_chain: Option<String>,
    /// How often the route tried.
    pub attempts: Option<u32>,
    /// How often the broker delivered it, where the broker counts.
    pub deliveries: Option<u32>,
    /// When it failed first, in milliseconds since the Unix epoch.
    pub first_failed_ms: Option<u64>,
    /// When it failed last, in milliseconds since the Unix epoch.
    pub last_failed_ms: Option<u64>,
    /// The channel that it was read from.
    pub channel: Option<Channel>,
    /// The group that gave up on it; `None` for an ephemeral one, too.
    pub group: Option<GroupName>,
    /// The handler that gave up on it.
    pub handler: Option<String>,
    /// Where it stood at the broker, in the broker's words.
    pub origin: Option<String>,
    /// How often it was sent back to its group before; at most 1,000,000.
    pub redrives: u32,
    /// How many dead letters the message has been, one after the other, this one included: its routes' dead-letter channels were read by
    /// routes that failed it, too. At most 32.
    pub depth: u32,
    /// Where the letter stood that this one was made from by a correction.
    pub edited_from: Option<String>,
}

impl Failure {
    /// What a dead letter says of itself.
    pub fn of(letter: &Envelope) -> Self {
        let value = |name: &str| letter.headers().get(&format!("{PREFIX}{name}"));
        let text = |name: &str| value(name).and_then(HeaderValue::as_text).map(cut);
        let count = |name: &str| {
            let count = u64::try_from(value(name).and_then(HeaderValue::as_int)?).ok()?;
            Some(u32::try_from(count).unwrap_or(u32::MAX))
        };
        let time = |name: &str| crate::time::parse_rfc3339(&text(name)?);
        Self {
            reason: text("reason").and_then(|word| Reason::from_name(&word)),
            error: text("error"),
            error_chain: text("error-chain"),
            attempts: count("attempts"),
            deliveries: count("deliveries"),
            first_failed_ms: time("first-failed-at"),
            last_failed_ms: time("last-failed-at"),
            channel: text("channel").and_then(|name| Channel::new(name).ok()),
            group: text("group").and_then(|name| GroupName::new(name).ok()),
            handler: text("handler"),
            origin: text("origin"),
            redrives: redrives(letter),
            depth: depth(letter),
            edited_from: letter.headers().get(EDITED_FROM).and_then(HeaderValue::as_text).map(cut),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Env;
    use crate::headers::HeadersMut;

    fn letter<'a>(headers: impl IntoIterator<Item = (&'a str, HeaderValue<'a>)>) -> Envelope {
        let mut written = HeadersMut::new();
        for (name, value) in headers {
            written.insert_system(&format!("{PREFIX}{name}"), value);
        }
        Envelope::builder("{}".into()).build(&Env::seeded(1)).unwrap().with_headers(written.freeze())
    }

    #[test]
    fn what_is_written_is_read() {
        let failure = Failure::of(&letter([
            ("reason", "exhausted".into()),
            ("error", "out of paper".into()),
            ("attempts", "5".into()),
            ("deliveries", HeaderValue::Int(7)),
            ("first-failed-at", "1970-01-01T00:00:01Z".into()),
            ("channel", "orders".into()),
            ("group", "billing".into()),
            ("redrives", "2".into()),
        ]));
        assert_eq!(
            (failure.reason, failure.error.as_deref()),
            (Some(Reason::Exhausted), Some("out of paper"))
        );
        assert_eq!((failure.attempts, failure.deliveries, failure.redrives), (Some(5), Some(7), 2));
        assert_eq!((failure.first_failed_ms, failure.last_failed_ms), (Some(1000), None));
        assert_eq!(failure.channel.as_deref(), Some("orders"));
        assert_eq!(failure.group.as_deref(), Some("billing"));
    }

    #[test]
    fn what_cannot_be_read_is_nothing_and_what_is_too_large_is_clamped() {
        let long = "x".repeat(9000);
        let failure = Failure::of(&letter([
            ("reason", "because".into()),
            ("error", HeaderValue::Text(&long)),
            ("error-chain", "a\r\nb".into()),
            ("attempts", "-1".into()),
            ("deliveries", "99999999999".into()),
            ("last-failed-at", "yesterday".into()),
            ("channel", "no such/channel".into()),
            ("group", "(ephemeral)".into()),
            ("handler", HeaderValue::Bytes(&[0xff])),
            ("redrives", "9223372036854775807".into()),
        ]));
        assert_eq!((failure.reason, failure.attempts, failure.last_failed_ms), (None, None, None));
        assert!(failure.error.as_ref().is_some_and(|text| text.len() <= 2048));
        assert_eq!(failure.error_chain.as_deref(), Some("a  b"));
        assert_eq!((failure.deliveries, failure.redrives), (Some(u32::MAX), 1_000_000));
        assert_eq!((failure.channel, failure.group, failure.handler), (None, None, None));
        assert_eq!(Failure::of(&letter([])), Failure::default());
    }

    proptest! {
        #[test]
        fn nothing_that_stands_there_is_too_much(bytes in prop::collection::vec(any::<u8>(), 0..40), n in any::<i64>(), which in 0..12_usize) {
            const NAMES: [&str; 12] = ["reason", "error", "error-chain", "attempts", "deliveries", "first-failed-at", "last-failed-at", "channel", "group", "handler", "origin", "redrives"];
            for value in [HeaderValue::Bytes(&bytes), HeaderValue::Int(n), HeaderValue::Null, HeaderValue::Native(9, &bytes)] {
                let failure = Failure::of(&letter([(NAMES[which], value)]));
                prop_assert!(failure.redrives <= 1_000_000);
            }
        }
    }
}
