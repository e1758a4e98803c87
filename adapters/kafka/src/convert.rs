//! Envelopes as Kafka records and back: the wire format's column for Kafka.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use postrider_core::{Attribute, Envelope, HeaderValue, MAX_HEADERS, MessageId, WireReader, chunked};
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Header, Headers, OwnedHeaders};
use smallvec::SmallVec;

const PREFIX: &str = "ce_";
const CONTENT_TYPE: &str = "content-type";
/// The attribute that stands in a header of that name.
const DATA_CONTENT_TYPE: &str = Attribute::ContentType.as_str();
/// Kafka's headers are bytes; what kind those were that aren't text stands here: `INDEX:KIND`, separated by spaces, the index
/// counted over the user's headers.
const KINDS: &str = "postrider-header-kinds";
/// No more headers than this are nothing unusual.
const FEW: usize = 16;
/// More headers than this aren't looked at: the record breaks the bounds many times over.
const MOST: usize = 4 * MAX_HEADERS;

/// The header of an attribute. The names of those that most messages have need not be made for each.
macro_rules! attribute_names {
    ($($name:literal)+) => {
        fn attribute_name(attribute: &str) -> Cow<'static, str> {
            match attribute {
                $($name => Cow::Borrowed(concat!("ce_", $name)),)+
                _ => Cow::Owned([PREFIX, attribute].concat()),
            }
        }
    };
}

attribute_names! {
    "specversion" "id" "time" "schemaversion" "type" "source" "subject" "partitionkey" "correlationid" "causationid" "traceparent"
}

/// The headers of a record. (The key is the record's own.)
pub(crate) fn headers(envelope: &Envelope) -> OwnedHeaders {
    let mut out = Some(OwnedHeaders::new_with_capacity(16));
    let mut put = |key: &str, value: Option<&[u8]>| {
        out = out.take().map(|headers| headers.insert(Header { key, value }));
    };
    let mut binary_key = false;
    envelope.write_attributes(|attribute, text| match attribute {
        // the record's key says it, byte for byte
        "partitionkeyencoding" => binary_key = true,
        "partitionkey" if binary_key => {}
        DATA_CONTENT_TYPE => put(CONTENT_TYPE, Some(text)),
        attribute => put(&attribute_name(attribute), Some(text)),
    });
    let mut kinds = String::new();
    for (index, (name, value)) in envelope.headers().iter().enumerate() {
        let mut number = String::new();
        let (kind, bytes) = match value {
            HeaderValue::Text(text) => (None, Some(text.as_bytes())),
            // those that can't be text need no mark
            HeaderValue::Bytes(bytes) | HeaderValue::Native(_, bytes) => {
                (std::str::from_utf8(bytes).is_ok().then_some('b'), Some(bytes))
            }
            HeaderValue::Int(n) => (Some('i'), Some(text_of(&mut number, n))),
            HeaderValue::Bool(b) => (Some('l'), Some(text_of(&mut number, b))),
            HeaderValue::Time(ms) => (Some('t'), Some(text_of(&mut number, ms))),
            _ => (None, None),
        };
        if let Some(kind) = kind {
            let space = if kinds.is_empty() { "" } else { " " };
            let _ = write!(kinds, "{space}{index}:{kind}");
        }
        put(name, bytes);
    }
    if !kinds.is_empty() {
        put(KINDS, Some(kinds.as_bytes()));
    }
    out.unwrap_or_default()
}

/// How many bytes of the record the key and the headers of a copy take, at most.
pub(crate) fn copy_len(envelope: &Envelope) -> usize {
    /// Lengths are numbers of up to five bytes, two of them a header.
    const LENGTHS: usize = 10;
    let headers = headers(envelope);
    let each = headers.iter().map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len) + LENGTHS);
    envelope.key().map_or(0, <[u8]>::len) + each.sum::<usize>()
}

fn text_of(buffer: &mut String, value: impl std::fmt::Display) -> &[u8] {
    *buffer = value.to_string();
    buffer.as_bytes()
}

/// The envelope of a record.
pub(crate) fn envelope(message: &BorrowedMessage<'_>, topic: &str) -> Envelope {
    let found = message.headers();
    let count = found.map_or(0, Headers::count);
    let mut fields = SmallVec::<[_; FEW]>::new();
    let mut unreadable = 0;
    let mut indices = 0..count.min(MOST);
    // the client panics on a name that isn't UTF-8; such a header can't be carried, and is counted
    while catch_unwind(AssertUnwindSafe(|| {
        for index in &mut indices {
            match found.and_then(|headers| headers.try_get(index)) {
                Some(Header { key, value }) => fields.push((key, value)),
                None => unreadable += 1,
            }
        }
    }))
    .is_err()
    {
        unreadable += 1;
    }
    let record = Record {
        key: message.key(),
        body: message.payload().map(chunked),
        time_ms: message.timestamp().to_millis().unwrap_or(0).max(0) as u64,
        unreadable,
        excess: count.saturating_sub(MOST),
    };
    read(record, &fields, || format!("{topic}/{}/{}", message.partition(), message.offset()))
}

/// What a record has beside its headers.
pub(crate) struct Record<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) body: Option<Bytes>,
    pub(crate) time_ms: u64,
    /// How many headers have a name that isn't text.
    pub(crate) unreadable: usize,
    /// How many headers weren't looked at.
    pub(crate) excess: usize,
}

/// Whether a header of that name can be carried. Kafka takes any name; an envelope none that is empty or has control characters.
fn is_a_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte >= 0x20)
}

/// The envelope of a record with these headers; `place` is the id it gets if it brought none.
pub(crate) fn read(
    record: Record<'_>,
    fields: &[(&str, Option<&[u8]>)],
    place: impl FnOnce() -> String,
) -> Envelope {
    let mut reader = WireReader::new(record.body);
    let kinds = fields.iter().find(|(name, _)| *name == KINDS).and_then(|(_, value)| *value);
    let kinds: Vec<_> = kinds
        .and_then(|text| std::str::from_utf8(text).ok())
        .map_or(Vec::new(), |text| text.split(' ').filter_map(|mark| mark.split_once(':')).collect());
    let (mut index, mut left_out) = (0, record.unreadable + record.excess);
    for (name, value) in fields {
        if !is_a_name(name) {
            left_out += 1;
            continue;
        }
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        if let (Some(attribute), Some(text)) = (name.strip_prefix(PREFIX), text)
            && reader.attribute(attribute, text)
        {
            continue;
        }
        let says_type = *name == CONTENT_TYPE || name.eq_ignore_ascii_case(CONTENT_TYPE);
        if let (true, Some(text)) = (says_type, text) {
            reader.content_type(text);
            continue;
        }
        if *name == KINDS {
            continue;
        }
        let kind = kinds.iter().find(|(at, _)| at.parse() == Ok(index)).map(|(_, kind)| *kind);
        reader.header(name, typed(kind, *value, text));
        index += 1;
    }
    if left_out > 0 {
        reader.header("postrider-unreadable-headers", &*left_out.to_string());
    }
    if record.excess > 0 {
        // a header without a name breaks the bounds: the runner dead-letters the record
        reader.header("", HeaderValue::Null);
    }
    if let Some(key) = record.key {
        reader.key(key);
    }
    reader.id_or(|| MessageId::Text(place().into()));
    reader.time_or(record.time_ms);
    reader.finish()
}

/// A value as the kind that it was; what doesn't read as that is what it looks like.
fn typed<'a>(kind: Option<&str>, value: Option<&'a [u8]>, text: Option<&'a str>) -> HeaderValue<'a> {
    let Some(bytes) = value else {
        return HeaderValue::Null;
    };
    let typed = match (kind, text) {
        (Some("b"), _) => Some(HeaderValue::Bytes(bytes)),
        (Some("i"), Some(text)) => text.parse().ok().map(HeaderValue::Int),
        (Some("t"), Some(text)) => text.parse().ok().map(HeaderValue::Time),
        (Some("l"), Some(text)) => text.parse().ok().map(HeaderValue::Bool),
        _ => None,
    };
    typed.unwrap_or_else(|| text.map_or(HeaderValue::Bytes(bytes), HeaderValue::Text))
}

#[cfg(test)]
mod tests {
    use postrider_core::Env;

    use super::*;

    fn through(envelope: &Envelope) -> Envelope {
        let written = headers(envelope);
        let fields: Vec<_> = written.iter().map(|Header { key, value }| (key, value)).collect();
        let body = (!envelope.is_null()).then(|| envelope.payload().clone());
        read(Record { key: envelope.key(), body, time_ms: 7, unreadable: 0, excess: 0 }, &fields, || {
            "t/0/1".into()
        })
    }

    #[test]
    fn what_is_written_is_read() {
        postrider_conformance::round_trip(through, |_| true);
    }

    #[test]
    fn the_time_of_a_message_is_a_header_and_not_the_record_s_timestamp() {
        for ms in [1, 1_700_000_000_123, 253_402_200_000_999] {
            let envelope = Envelope::builder(Bytes::new()).time_ms(ms).build(&Env::seeded(1)).unwrap();
            assert_eq!(headers(&envelope).iter().filter(|header| header.key == "ce_time").count(), 1);
            assert_eq!(through(&envelope).time_ms(), ms);
        }
    }

    #[test]
    fn a_foreign_record_gets_its_id_from_where_it_stood_and_keeps_its_headers() {
        let fields: [(&str, Option<&[u8]>); 5] = [
            ("trace", Some(b"1")),
            ("trace", None),
            ("ce_unknown", Some(b"kept")),
            ("ce_time", Some(b"yesterday")),
            ("raw", Some(&[0xff])),
        ];
        let record = Record { key: Some(b"k"), body: None, time_ms: 99, unreadable: 0, excess: 0 };
        let envelope = read(record, &fields, || "orders/3/7".into());
        assert_eq!((envelope.id().to_string().as_str(), envelope.time_ms()), ("orders/3/7", 99));
        assert_eq!((envelope.key(), envelope.is_null()), (Some(&b"k"[..]), true));
        let headers: Vec<_> = envelope.headers().iter().collect();
        let expected = [
            ("trace", HeaderValue::Text("1")),
            ("trace", HeaderValue::Null),
            ("ce_unknown", HeaderValue::Text("kept")),
            ("ce_time", HeaderValue::Text("yesterday")),
            ("raw", HeaderValue::Bytes(&[0xff])),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn headers_that_cannot_be_carried_are_left_out_and_counted() {
        let fields: [(&str, Option<&[u8]>); 4] =
            [("", Some(b"1")), ("kept", Some(b"2")), ("a\tb", None), ("", None)];
        let record = Record { key: None, body: None, time_ms: 0, unreadable: 1, excess: 0 };
        let envelope = read(record, &fields, || "t/0/0".into());
        assert!(!envelope.breaks_bounds());
        let expected =
            [("kept", HeaderValue::Text("2")), ("postrider-unreadable-headers", HeaderValue::Text("4"))];
        assert_eq!(envelope.headers().iter().collect::<Vec<_>>(), expected);
        let none = Record { key: None, body: None, time_ms: 0, unreadable: 0, excess: 0 };
        assert_eq!(read(none, &fields[1..2], || "t/0/0".into()).headers().iter().count(), 1);
    }

    #[test]
    fn far_too_many_headers_break_the_bounds() {
        let record = Record { key: None, body: None, time_ms: 0, unreadable: 0, excess: 1 };
        assert!(read(record, &[], || "t/0/0".into()).breaks_bounds());
    }

    #[test]
    fn a_binary_key_stands_in_the_record_alone() {
        let envelope = Envelope::builder(Bytes::new()).key([0xff]).build(&Env::seeded(1)).unwrap();
        let written = headers(&envelope);
        assert!(written.iter().all(|header| !header.key.starts_with("ce_partitionkey")));
    }

    #[test]
    fn the_wire_format_s_vectors_hold() {
        use postrider_conformance::vectors::{self, Record as Vector};
        let write = |envelope: &Envelope, _: &str| {
            let written = headers(envelope);
            let header = |Header { key, value }: Header<'_, &[u8]>| (key.to_owned(), value.map(Into::into));
            Vector {
                key: envelope.key().map(Into::into),
                headers: written.iter().map(header).collect(),
                body: (!envelope.is_null()).then(|| envelope.payload()[..].into()),
                ..Vector::default()
            }
        };
        let read = |record: &Vector| {
            let fields: Vec<_> = record
                .headers
                .iter()
                .map(|(name, value)| (&**name, value.as_ref().map(|value| &*value.0)))
                .collect();
            let body = record.body.as_ref().map(|body| Bytes::copy_from_slice(&body.0));
            let key = record.key.as_ref().map(|key| &*key.0);
            read(Record { key, body, time_ms: 1_700_000_000_999, unreadable: 0, excess: 0 }, &fields, || {
                "orders/0/7".into()
            })
        };
        vectors::check("kafka", write, read);
    }
}
