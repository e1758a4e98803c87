//! Envelopes as NATS messages and back: the wire format's column for NATS.

use std::sync::LazyLock;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue as NatsValue, NATS_MESSAGE_ID};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use memchr::memchr;
use postrider_core::{Attribute, Envelope, HeaderValue, MessageId, WireReader, derived_id, rfc3339};

const PREFIX: &str = "ce-";
const CONTENT_TYPE: &str = "content-type";
/// The attribute that stands in a header of that name.
const DATA_CONTENT_TYPE: &str = Attribute::ContentType.as_str();
const NULL: &str = "postrider-null";
/// A header that NATS can't carry as it is goes as `postrider-h-N`: kind, value and name in base64 (the name last: a value may be empty).
const ENCODED: &str = "postrider-h-";
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// What the server adds for one delivery alone.
const OF_THE_SERVER: [&str; 3] = ["Nats-Pin-Id", "Nats-Scheduler", "Nats-Schedule-Next"];

/// The most bytes of headers that the server stores with a message. See `JSStreamHeaderExceedsMaximumErr` of the server.
const MOST: usize = u16::MAX as usize;
/// What is left of that for what a copy says besides: of a failure, of a retry and its time.
const ROOM: usize = 7 * 1024;
/// Headers of fewer bytes in memory fit on the wire, however they are written there.
const SMALL: usize = 16 * 1024;
/// What makes a copy wait for its time is added last.
const WAITING: usize = 1024;

/// How many bytes of headers are more than a first publish may have; `None`: they fit.
pub(crate) fn excess(envelope: &Envelope) -> Option<(usize, usize)> {
    let most = MOST - ROOM;
    if envelope.headers().byte_len() <= SMALL {
        return None;
    }
    let found = wire_len(&headers(envelope, None));
    (found > most).then_some((found, most))
}

/// How many bytes of headers the server stores with a copy whose body is so long, on a connection that takes `largest` in all; and
/// whether the copy has to wait for its time.
pub(crate) fn room_of_copy(body: usize, largest: usize, waits: bool) -> usize {
    MOST.min(largest.saturating_sub(body)).saturating_sub(if waits { WAITING } else { 0 })
}

/// How many bytes the headers of a copy take on the wire.
pub(crate) fn copy_len(envelope: &Envelope) -> usize {
    wire_len(&headers(envelope, None))
}

/// `NATS/1.0`, a line for each header, an empty line.
fn wire_len(map: &HeaderMap) -> usize {
    let lines = map.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| name.len() + value.as_str().len() + 4)
    });
    12 + lines.sum::<usize>()
}

/// Names of attributes that need not be made for each message.
macro_rules! attribute_names {
    ($($name:literal),+) => {
        fn attribute_name(attribute: &str) -> Option<HeaderName> {
            Some(match attribute {
                $($name => {
                    static NAME: HeaderName = HeaderName::from_static(concat!("ce-", $name));
                    NAME.clone()
                })+
                _ => return format!("{PREFIX}{attribute}").parse().ok(),
            })
        }
    };
}

attribute_names!(
    "id",
    "time",
    "schemaversion",
    "type",
    "source",
    "subject",
    "partitionkey",
    "partitionkeyencoding",
    "correlationid",
    "causationid",
    "traceparent"
);

static CONTENT_TYPE_NAME: HeaderName = HeaderName::from_static(CONTENT_TYPE);

/// What every message begins with: the version, and the fields that nearly all have, without a value. Such a field isn't written; a copy
/// of the map has its place for it, which takes a third of the time of a map that grows.
static BEGIN: LazyLock<HeaderMap> = LazyLock::new(|| {
    const FIELDS: &str = r#"{"ce-id": [], "ce-time": [], "ce-schemaversion": [], "ce-type": [], "ce-source": [],
        "ce-partitionkey": [], "content-type": [], "Nats-Msg-Id": []}"#;
    // where the client doesn't read that, the map grows
    let mut map: HeaderMap = serde_json::from_str(FIELDS).unwrap_or_default();
    map.insert("ce-specversion", "1.0");
    map
});

/// The headers of a message; `hop` says which copy it is.
pub(crate) fn headers(envelope: &Envelope, hop: Option<&str>) -> HeaderMap {
    let mut map = BEGIN.clone();
    // of each attribute there is one
    envelope.write_attributes(|attribute, text| {
        // the envelope gives nothing but UTF-8
        let text = || std::str::from_utf8(text).unwrap_or_default();
        match attribute {
            "specversion" => {}
            DATA_CONTENT_TYPE => {
                if let Ok(value) = text().parse::<NatsValue>() {
                    map.insert(CONTENT_TYPE_NAME.clone(), value);
                }
            }
            attribute => {
                if let Some(name) = attribute_name(attribute) {
                    map.insert(name, NatsValue::from(&*escape(text())));
                }
            }
        }
    });
    if envelope.is_null() {
        append(&mut map, NULL, "1");
    }
    let id = message_id(envelope, hop.unwrap_or_default());
    map.insert(NATS_MESSAGE_ID, id.text(&mut [0; 36]));
    let mut put = |name: &str, value: &str| append(&mut map, name, value);
    for (index, (name, value)) in envelope.headers().iter().enumerate() {
        match value {
            HeaderValue::Text(text) if is_plain(text) && is_token(name) => {
                if name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-")) {
                    // it would act on the server; it came from a foreign message and is only carried along
                    put(&format!("postrider-orig-{name}"), text);
                } else {
                    put(name, text);
                }
            }
            _ => put(&format!("{ENCODED}{index}"), &encode(name, value)),
        }
    }
    map
}

/// The id by which the server tells copies apart.
pub(crate) fn message_id(envelope: &Envelope, hop: &str) -> MessageId {
    let mut room = [0; 36];
    let id = envelope.id().text(&mut room);
    derived_id(&[envelope.source().as_bytes(), id.as_bytes(), hop.as_bytes()])
}

/// The envelope of a message that stood at `position` of `stream` since `time_ms`.
pub(crate) fn envelope(
    headers: Option<&HeaderMap>,
    body: Bytes,
    stream: &str,
    position: u64,
    time_ms: u64,
) -> Envelope {
    let null = body.is_empty()
        && headers.is_some_and(|map| map.get(NULL).is_some_and(|value| value.as_str() == "1"));
    let mut reader = WireReader::new((!null).then_some(body));
    let mut encoded: Vec<(usize, &str)> = Vec::new();
    let mut ours = false;
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        for value in values {
            let text = value.as_str();
            if let Some(attribute) = name.strip_prefix(PREFIX) {
                ours |= attribute == "specversion";
                if !reader.attribute(attribute, unescape(text)) {
                    reader.header(name, text);
                }
            } else if name == CONTENT_TYPE || name.eq_ignore_ascii_case(CONTENT_TYPE) {
                reader.content_type(text);
            } else if let Some(index) = name.strip_prefix(ENCODED).and_then(|n| n.parse().ok()) {
                encoded.push((index, text));
            } else if name == MESSAGE_ID || name == NULL || OF_THE_SERVER.contains(&name) {
                // said by the envelope itself, or by the server for this delivery alone; a foreign id follows
            } else {
                reader.header(name, text);
            }
        }
    }
    for id in headers.into_iter().filter(|_| !ours).flat_map(|map| map.get_all(NATS_MESSAGE_ID)) {
        reader.header(MESSAGE_ID, id.as_str());
    }
    encoded.sort_by_key(|(index, _)| *index);
    for (_, text) in encoded {
        if !decode(text, &mut reader) {
            reader.header("postrider-unreadable-header", text);
        }
    }
    reader.id_or(|| MessageId::Text(format!("{stream}/{position}").into()));
    reader.time_or(time_ms);
    reader.finish()
}

/// The latest time that fits the server's 64-bit nanoseconds.
const LATEST_MS: u64 = 9_223_372_036_854;

/// Makes a message one that the server keeps until `at_ms` (since the Unix epoch) and then publishes to `target`. Answers a name for
/// it that no other has.
pub(crate) fn schedule(map: &mut HeaderMap, at_ms: u64, target: &str) -> String {
    append(map, "Nats-Schedule", &format!("@at {}", rfc3339(at_ms.min(LATEST_MS) as i64)));
    append(map, "Nats-Schedule-Target", target);
    map.get(MESSAGE_ID).map(ToString::to_string).unwrap_or_default()
}

fn append(map: &mut HeaderMap, name: &str, value: &str) {
    // both were made fit above; what the client still refuses is left out rather than failing the message
    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<NatsValue>()) {
        map.append(name, value);
    }
}

/// Printable ASCII without the colon, as the server's parser takes it.
fn is_token(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_graphic() && b != b':')
}

/// One line, without space around it that a parser would trim.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic()) || !text.chars().any(char::is_control) && text.trim() == text
}

fn encode(name: &str, value: HeaderValue<'_>) -> String {
    let mut number = String::new();
    let (kind, bytes) = match value {
        HeaderValue::Text(text) => ('s', text.as_bytes()),
        HeaderValue::Int(n) => ('i', text_of(&mut number, n)),
        HeaderValue::Bool(b) => ('l', text_of(&mut number, b)),
        HeaderValue::Time(ms) => ('t', text_of(&mut number, ms)),
        HeaderValue::Bytes(bytes) | HeaderValue::Native(_, bytes) => ('b', bytes),
        _ => ('n', &[][..]),
    };
    format!("{kind} {} {}", STANDARD.encode(bytes), STANDARD.encode(name))
}

fn text_of(buffer: &mut String, value: impl std::fmt::Display) -> &[u8] {
    *buffer = value.to_string();
    buffer.as_bytes()
}

fn decode(text: &str, reader: &mut WireReader<'_>) -> bool {
    let mut parts = text.splitn(3, ' ');
    let (Some(kind), Some(value), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let (Ok(name), Ok(value)) = (STANDARD.decode(name), STANDARD.decode(value)) else {
        return false;
    };
    let Ok(name) = String::from_utf8(name) else {
        return false;
    };
    let as_text = std::str::from_utf8(&value);
    let value = match (kind, as_text) {
        ("s", Ok(text)) => HeaderValue::Text(text),
        ("b", _) => HeaderValue::Bytes(&value),
        ("i", Ok(text)) => match text.parse() {
            Ok(n) => HeaderValue::Int(n),
            Err(_) => return false,
        },
        ("t", Ok(text)) => match text.parse() {
            Ok(ms) => HeaderValue::Time(ms),
            Err(_) => return false,
        },
        ("l", Ok(text)) => HeaderValue::Bool(text == "true"),
        ("n", _) => HeaderValue::Null,
        _ => return false,
    };
    reader.header(&name, value);
    true
}

/// As the `CloudEvents` HTTP binding escapes: space, `"`, `%` and everything that isn't printable ASCII.
fn escape(text: &str) -> std::borrow::Cow<'_, str> {
    use std::fmt::Write as _;
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'%');
    // to the end, whatever comes, which looks at many bytes at once
    if text.bytes().fold(true, |all, byte| all & plain(byte)) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out.into()
}

/// Undoes [`escape`]; what isn't a valid escape is left as it came.
fn unescape(text: &str) -> std::borrow::Cow<'_, str> {
    if memchr(b'%', text.as_bytes()).is_none() {
        return text.into();
    }
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).map_or_else(|_| text.into(), Into::into)
}

#[cfg(test)]
mod tests {
    use postrider_core::Env;

    use super::*;

    fn through(envelope: &Envelope) -> Envelope {
        super::envelope(Some(&headers(envelope, None)), envelope.payload().clone(), "s", 1, 0)
    }

    #[test]
    fn a_schedule_names_its_due_time_to_the_millisecond() {
        let mut map = HeaderMap::new();
        schedule(&mut map, 1_767_225_601_001, "t.redrive");
        let text = |name: &str| map.get(name).map(ToString::to_string);
        assert_eq!(text("Nats-Schedule").as_deref(), Some("@at 2026-01-01T00:00:01.001Z"));
        assert_eq!(text("Nats-Schedule-Target").as_deref(), Some("t.redrive"));
        // the latest date, whatever is asked for
        let mut map = HeaderMap::new();
        schedule(&mut map, u64::MAX, "t.redrive");
        let latest = map.get("Nats-Schedule").map(ToString::to_string);
        assert_eq!(latest.as_deref(), Some("@at 2262-04-11T23:47:16.854Z"));
    }

    #[test]
    fn what_is_written_is_read() {
        postrider_conformance::round_trip(through, |_| true);
    }

    #[test]
    fn a_foreign_message_gets_its_id_from_where_it_stood_and_keeps_its_headers() {
        let mut map = HeaderMap::new();
        map.append("X-Trace", "1");
        map.append("X-Trace", "2");
        map.append("Nats-Msg-Id", "theirs");
        let envelope = super::envelope(Some(&map), Bytes::from_static(b"x"), "orders", 7, 99);
        assert_eq!((envelope.id().to_string().as_str(), envelope.time_ms()), ("orders/7", 99));
        assert_eq!(
            envelope.headers().get_all("X-Trace").filter_map(HeaderValue::as_text).collect::<Vec<_>>(),
            ["1", "2"]
        );
        assert_eq!(envelope.headers().get("Nats-Msg-Id"), Some(HeaderValue::Text("theirs")));
        // carried along, it must not act
        let again = headers(&envelope, Some("dlq/g/0/x"));
        assert_ne!(again.get("Nats-Msg-Id").map(NatsValue::as_str), Some("theirs"));
        assert_eq!(again.get("postrider-orig-Nats-Msg-Id").map(NatsValue::as_str), Some("theirs"));
    }

    #[test]
    fn what_messages_begin_with_has_room_and_says_the_version_alone() {
        assert_eq!((BEGIN.len(), wire_len(&BEGIN)), (9, 12 + "ce-specversion: 1.0\r\n".len()));
        for name in BEGIN.iter().map(|(name, _)| name.to_string()).filter(|name| name != "ce-specversion") {
            assert!(BEGIN.get(name).is_none());
        }
    }

    #[test]
    fn every_hop_has_an_id_of_its_own_and_null_is_not_empty() {
        let null = postrider_core::EnvelopeBuilder::null().build(&Env::seeded(1)).unwrap();
        assert!(through(&null).is_null());
        let empty = Envelope::builder(Bytes::new()).build(&Env::seeded(1)).unwrap();
        assert!(!through(&empty).is_null());
        assert_ne!(message_id(&empty, ""), message_id(&empty, "dlq/g/0/x"));
    }

    #[test]
    fn what_is_said_of_a_failure_gives_way_to_the_message_s_own_headers() {
        const LESS: [&str; 3] = ["postrider-dlq-error-chain", "postrider-dlq-error", "postrider-dlq-origin"];
        let letter = |own: usize| {
            let value = "v".repeat(own / 64);
            let built = Envelope::builder(Bytes::new());
            let built = (0..64).fold(built, |built, n| built.header(&format!("h{n}"), &*value));
            let built = built.build(&Env::seeded(1)).unwrap();
            let mut said = postrider_core::HeadersMut::from_headers(built.headers());
            for name in LESS {
                said.insert_system(name, &*"e".repeat(2000));
            }
            said.insert_system("postrider-dlq-reason", "rejected");
            let fits = excess(&built).is_none();
            (fits, fitted(built.with_headers(said.freeze())))
        };
        for (own, fits, left) in
            [(50_000, true, 3), (57_000, true, 3), (59_000, false, 2), (61_000, false, 1), (63_000, false, 0)]
        {
            let (fitted, map) = letter(own);
            assert_eq!(fitted, fits, "{own}");
            let told = LESS.iter().filter(|name| map.get(**name).is_some()).count();
            assert_eq!(told, left, "{own}");
            assert!(map.get("postrider-dlq-reason").is_some() && wire_len(&map) <= MOST, "{own}");
            assert!(map.get("postrider-dropped-headers").is_none(), "{own}");
        }
    }

    /// The headers of a dead letter, as it goes out.
    fn fitted(letter: Envelope) -> HeaderMap {
        let hop: std::sync::Arc<str> = "dlq/g/0/s/1".into();
        let mut options = postrider_core::PublishOptions::default();
        options.hop = Some(hop.clone());
        let mut message = postrider_core::Outgoing::new("o.g.dlq", letter).with(options);
        postrider_core::fit_copy(&mut message, room_of_copy(0, 1 << 20, false), copy_len).unwrap();
        headers(&message.envelope, Some(&hop))
    }

    #[test]
    fn a_foreign_message_that_fits_the_server_has_a_letter_that_does_however_it_is_written() {
        let letter_of = |fields: &[(String, String)]| {
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                append(&mut map, name, value);
            }
            assert!(wire_len(&map) <= MOST, "the server takes it: {}", wire_len(&map));
            let read = super::envelope(Some(&map), Bytes::new(), "s", 1, 0);
            let mut said = postrider_core::HeadersMut::from_headers(read.headers());
            said.insert_system("postrider-dlq-reason", "oversize");
            let map = fitted(read.with_headers(said.freeze()));
            assert!(wire_len(&map) <= MOST, "{}", wire_len(&map));
            assert!(map.get("postrider-dlq-reason").is_some());
            map
        };
        let field = |name: &str, value: String| (name.to_owned(), value);
        // tabs are written in base64, what would act under a longer name, attributes in escapes
        let tabs: Vec<_> =
            (0..50).map(|n| field(&format!("t{n}"), format!("a{}b", "\t".repeat(1250)))).collect();
        let acting: Vec<_> = (0..4000).map(|n| field(&format!("Nats-{n}"), "v".into())).collect();
        let escaped = [field("ce-subject", "\u{e9}".repeat(15_000)), field("ce-id", "\u{e9}".repeat(15_000))];
        for (fields, gone) in [(&tabs[..], 10..20), (&acting[..], 1000..3000), (&escaped[..], 1..3)] {
            let map = letter_of(fields);
            let told = map.get("postrider-dropped-headers").expect("some are gone").as_str();
            let count: usize = told.split(' ').next().unwrap().parse().unwrap();
            assert!(gone.contains(&count), "{told}");
        }
        let whole = letter_of(&[field("mine", "v".repeat(60_000))]);
        assert!(whole.get("mine").is_some() && whole.get("postrider-dropped-headers").is_none());
    }

    #[test]
    fn a_large_body_leaves_less_room_for_a_copy_s_headers() {
        assert_eq!(room_of_copy(0, 1 << 20, false), MOST);
        assert_eq!(room_of_copy(0, 1 << 20, true), MOST - WAITING);
        assert_eq!(room_of_copy((1 << 20) - 5000, 1 << 20, true), 5000 - WAITING);
        assert_eq!(room_of_copy(1 << 21, 1 << 20, false), 0);
    }

    #[test]
    fn the_wire_format_s_vectors_hold() {
        use postrider_conformance::vectors::{self, Record};
        let write = |envelope: &Envelope, hop: &str| {
            let map = headers(envelope, (!hop.is_empty()).then_some(hop));
            let values = |(name, values): (&HeaderName, &Vec<NatsValue>)| {
                let name: &str = name.as_ref();
                values
                    .iter()
                    .map(|value| (name.to_owned(), Some(value.as_str().as_bytes().into())))
                    .collect::<Vec<_>>()
            };
            let mut headers: Vec<_> = map.iter().flat_map(values).collect();
            // the client keeps the order of one name's values, and none between names
            headers.sort_by(|(a, _), (b, _)| a.cmp(b));
            Record { headers, body: Some(envelope.payload()[..].into()), ..Record::default() }
        };
        let read = |record: &Record| {
            let mut map = HeaderMap::new();
            for (name, value) in &record.headers {
                let value = value.as_ref().expect("NATS has no null values");
                append(&mut map, name, std::str::from_utf8(&value.0).expect("NATS has text values"));
            }
            let body = record.body.as_ref().expect("NATS has no null bodies");
            super::envelope(Some(&map), Bytes::copy_from_slice(&body.0), "orders", 7, 1_700_000_000_999)
        };
        vectors::check("nats", write, read);
    }
}
