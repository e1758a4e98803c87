//! Records of any broker as envelopes: attributes, headers, structured `CloudEvents`.

use std::borrow::Cow;

use bytes::Bytes;
use postrider_core::codec::Json;
use postrider_core::{
    Envelope, HeaderValue, MAX_HEADER_NAME, MAX_HEADER_VALUE, MAX_HEADERS, Message, MessageId, WireReader,
    decode,
};
use serde::{Deserialize, Serialize};

use crate::feed::Feed;

/// Names that mean something, and some that nearly do.
pub(crate) const NAMES: [&str; 26] = [
    "id",
    "source",
    "type",
    "time",
    "specversion",
    "schemaversion",
    "partitionkey",
    "partitionkeyencoding",
    "expirytime",
    "datacontenttype",
    "dataschema",
    "subject",
    "idempotencykey",
    "correlationid",
    "causationid",
    "sequence",
    "replyto",
    "traceparent",
    "postrider-dlq-reason",
    "postrider-dlq-redrives",
    "postrider-retry-attempts",
    "postrider-retry-first-failed-at",
    "postrider-retry-origin",
    "postrider-origin-id",
    "postrider-null",
    "content-type",
];

/// The latest time that text can say: the end of the year 9999.
const LATEST: u64 = 253_402_300_799_999;

#[derive(Serialize, Deserialize)]
struct Order {
    number: u64,
    note: Option<serde_free::Any>,
}

impl Message for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 2;
    type Codec = Json;
}

/// An envelope as a reader makes it of whatever comes.
pub(crate) fn envelope(feed: &mut Feed<'_>) -> Envelope {
    let body = feed.maybe(|feed| Bytes::copy_from_slice(feed.bytes()));
    let mut reader = WireReader::new(body);
    if feed.byte().is_multiple_of(3) {
        reader.content_type("application/cloudevents+json; charset=utf-8");
    }
    while !feed.is_empty() {
        match feed.byte() % 10 {
            0..=2 => {
                let (name, text) = (feed.one_of(&NAMES), feed.text());
                if !reader.attribute(&name, text.clone()) {
                    reader.header(&name, &*text);
                }
            }
            3 => reader.key(feed.bytes()),
            4 => reader.content_type(feed.text()),
            5 => reader.id_or(|| MessageId::parse(&feed.text())),
            6 => reader.time_or(feed.number()),
            7 => reader.made_up_id_or(|| MessageId::Text(feed.text().into())),
            _ => {
                let name = feed.one_of(&NAMES);
                feed.value(|value| reader.header(&name, value));
            }
        }
    }
    reader.finish()
}

/// What must hold of every envelope that came from outside.
pub(crate) fn holds(envelope: &Envelope) {
    if !envelope.breaks_bounds() {
        let (mut users, mut own) = (0, 0);
        for (name, value) in envelope.headers().iter() {
            let length = value.as_bytes().map_or(8, <[u8]>::len);
            assert!(!name.is_empty() && name.bytes().all(|byte| byte >= 0x20), "{name:?}");
            if name.starts_with("postrider-") && length <= 2 * 1024 && own < 32 {
                own += 1;
            } else {
                users += 1;
                assert!(name.len() <= MAX_HEADER_NAME && length <= MAX_HEADER_VALUE, "{name:?}: {length}");
            }
        }
        assert!(users <= MAX_HEADERS, "{users}");
    }
    let _ = (envelope.expires_ms(), envelope.byte_len(), format!("{envelope:?}"));
    let _ = decode::<Order>(envelope);
}

/// Whether two envelopes are the same message to a handler.
pub(crate) fn same(one: &Envelope, other: &Envelope) {
    assert_eq!(one.id().to_string(), other.id().to_string());
    assert_eq!((one.type_name(), one.source()), (other.type_name(), other.source()));
    assert_eq!((one.key(), one.version()), (other.key(), other.version()));
    if one.time_ms() <= LATEST && one.time_ms() > 0 {
        assert_eq!(one.time_ms(), other.time_ms());
    }
}

/// Any bytes as a record; what is written of the envelope is read as the same.
pub(crate) fn target(data: &[u8]) {
    let envelope = envelope(&mut Feed(data));
    holds(&envelope);
    let mut reader = WireReader::new((!envelope.is_null()).then(|| envelope.payload().clone()));
    envelope.write_attributes(|name, text| {
        let text = String::from_utf8_lossy(text);
        assert!(matches!(text, Cow::Borrowed(_)), "`{name}` isn't text: {text}");
        if !reader.attribute(name, text.clone().into_owned()) {
            assert!(matches!(name, "time" | "expirytime"), "`{name}` can't be read: {text}");
        }
    });
    envelope.headers().iter().for_each(|(name, value): (&str, HeaderValue<'_>)| reader.header(name, value));
    let read = reader.finish();
    holds(&read);
    same(&envelope, &read);
    assert_eq!(envelope.content_type(), read.content_type());
}

/// JSON of any shape, to any depth that the reader allows.
mod serde_free {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Any {
        Flag(bool),
        Number(f64),
        Text(String),
        List(Vec<Any>),
        Table(BTreeMap<String, Any>),
    }
}
