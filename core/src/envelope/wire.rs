//! The text forms that every broker shares: attributes, ids, times, binary keys. Prefixes and places are the adapter's.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::structured::{self, is_structured};
use super::{Envelope, EnvelopeBuilder};
use crate::headers::{Attribute, HeaderValue};
use crate::id::MessageId;
use crate::time::{TimeText, parse_rfc3339, rfc3339};

/// The extension that says how a key that isn't text was written: `base64`.
const KEY_ENCODING: &str = "partitionkeyencoding";

impl Envelope {
    /// Gives each attribute's `CloudEvents` name and text to `write`: `specversion` first, and last the content type,
    /// `datacontenttype`, which has a place of its own on every broker. Before a key that isn't text comes `partitionkeyencoding`: where
    /// messages have a key of their own neither need be written.
    ///
    /// Text comes as bytes, and is UTF-8: most brokers have bytes, and to look at all of it once more would be felt.
    pub fn write_attributes(&self, mut write: impl FnMut(&str, &[u8])) {
        write("specversion", b"1.0");
        write("id", self.id.bytes(&mut [0; 36]));
        if self.time_ms > 0 {
            match TimeText::new(self.time_ms as i64) {
                Some(text) => write("time", text.as_bytes()),
                None => write("time", rfc3339(self.time_ms as i64).as_bytes()),
            }
        }
        if self.version > 0 {
            write("schemaversion", itoa::Buffer::new().format(self.version).as_bytes());
        }
        let (mut seen, mut content_type) = (0_u32, None);
        for (attribute, kind, value) in self.headers.kept_attributes() {
            // the first one set counts, as for reading
            if seen & (1 << attribute as u32) != 0 {
                continue;
            }
            seen |= 1 << attribute as u32;
            if attribute == Attribute::SchemaVersion && self.version > 0 {
                continue;
            }
            let is_text = kind == HeaderValue::TEXT;
            debug_assert!(!is_text || std::str::from_utf8(value).is_ok(), "what was kept as text was `str`");
            if attribute == Attribute::ContentType {
                let other = || HeaderValue::read(kind, value).as_text().map(str::as_bytes);
                content_type = if is_text { Some(value) } else { other() };
                continue;
            }
            if is_text {
                write(attribute.as_str(), value);
                continue;
            }
            match HeaderValue::read(kind, value) {
                HeaderValue::Bytes(bytes) if attribute == Attribute::Key => {
                    write(KEY_ENCODING, b"base64");
                    write(attribute.as_str(), STANDARD.encode(bytes).as_bytes());
                }
                other => write(attribute.as_str(), other.to_string().as_bytes()),
            }
        }
        if let Some(text) = content_type {
            write(Attribute::ContentType.as_str(), text);
        }
    }
}

impl Envelope {
    /// For adapters without a wire: what a consumer reads of a structured `CloudEvent`, which is taken apart as by
    /// [`WireReader::finish`]. `None` for any other message, which is read as it is.
    pub fn read_structured(&self) -> Option<Self> {
        if !self.content_type().is_some_and(is_structured) {
            return None;
        }
        let mut reader = WireReader::new((!self.null).then(|| self.payload.clone()));
        self.write_attributes(|name, text| {
            let text = String::from_utf8_lossy(text).into_owned();
            if name == Attribute::ContentType.as_str() {
                reader.content_type(text);
            } else if !reader.attribute(name, text.clone()) {
                reader.header(name, &*text);
            }
        });
        self.headers.iter().for_each(|(name, value)| reader.header(name, value));
        Some(reader.finish())
    }
}

/// Reads an envelope off the wire: adapters give it attributes and headers as they come, then what the broker knows.
///
/// Nothing here fails: a value that can't be read is carried as a header, and what breaks a bound is noted.
#[derive(Debug)]
#[must_use = "it becomes an envelope by `finish`"]
pub struct WireReader<'a> {
    builder: EnvelopeBuilder,
    key_is_base64: bool,
    key: Option<Cow<'a, str>>,
    content_type: Option<Cow<'a, str>>,
    made_up: Option<MessageId>,
}

impl<'a> WireReader<'a> {
    /// A record with this body; `None` is null.
    pub fn new(body: Option<Bytes>) -> Self {
        let null = body.is_none();
        let builder = EnvelopeBuilder { null, ..EnvelopeBuilder::new(body.unwrap_or_default()) };
        Self { builder, key_is_base64: false, key: None, content_type: None, made_up: None }
    }

    /// An attribute by its `CloudEvents` name. Answers `false` for an unknown or unreadable one, which the adapter then carries
    /// along with [`header`](Self::header) under the name it came with.
    pub fn attribute(&mut self, name: &str, text: impl Into<Cow<'a, str>>) -> bool {
        let text = text.into();
        match name {
            "specversion" => {}
            "id" => self.builder.id = Some(MessageId::parse(&text)),
            "time" => match parse_rfc3339(&text) {
                Some(ms) => self.builder.time_ms = Some(ms),
                None => return false,
            },
            "schemaversion" => match text.parse() {
                Ok(version) => self.builder.version = version,
                // whoever decodes it has to know that there is one
                Err(_) => self.builder.headers.set(Attribute::SchemaVersion, &*text),
            },
            "partitionkey" => self.key = Some(text),
            KEY_ENCODING => self.key_is_base64 = text == "base64",
            "expirytime" => match parse_rfc3339(&text) {
                Some(ms) => self.builder.headers.set(Attribute::ExpiryTime, HeaderValue::Time(ms as i64)),
                None => return false,
            },
            name => match Attribute::from_name(name) {
                Some(attribute) => self.builder.headers.set(attribute, &*text),
                None => return false,
            },
        }
        true
    }

    /// A header as it came; one beyond the bounds is kept and noted.
    pub fn header<'v>(&mut self, name: &str, value: impl Into<HeaderValue<'v>>) {
        self.builder.headers.insert_foreign(name, value);
    }

    /// The media type of the body.
    pub fn content_type(&mut self, text: impl Into<Cow<'a, str>>) {
        self.content_type = Some(text.into());
    }

    pub(super) fn forget_content_type(&mut self) {
        self.content_type = None;
    }

    /// The record's own key, where the broker has one; it goes before the attribute.
    pub fn key(&mut self, key: &[u8]) {
        self.builder.headers.set(Attribute::Key, HeaderValue::text_or_bytes(key));
        self.key = None;
    }

    /// The id a foreign record gets from the broker's coordinates, if it brought none of its own.
    pub fn id_or(&mut self, id: impl FnOnce() -> MessageId) {
        if self.builder.id.is_none() {
            self.builder.id = Some(id());
        }
    }

    /// The id a foreign record gets for this delivery alone, where the broker has no name for it that lasts.
    pub fn made_up_id_or(&mut self, id: impl FnOnce() -> MessageId) {
        if self.builder.id.is_none() {
            self.made_up = Some(id());
            self.builder.id.clone_from(&self.made_up);
        }
    }

    /// The time a foreign record gets from the broker, if it brought none of its own.
    pub fn time_or(&mut self, time_ms: u64) {
        self.builder.time_ms.get_or_insert(time_ms);
    }

    /// The envelope. A structured `CloudEvent` (`application/cloudevents+json`) is taken apart first. A body that is none, because it
    /// is not JSON or lacks `specversion`, `id`, `source` or `type`, is a plain message: its bytes stay as they came.
    pub fn finish(mut self) -> Envelope {
        if self.content_type.as_deref().is_some_and(is_structured)
            && let Some(body) = structured::take_apart(&self.builder.payload.clone(), &mut self)
        {
            self.builder.payload = body;
        }
        if let Some(key) = self.key.take() {
            match self.key_is_base64.then(|| STANDARD.decode(&*key).ok()).flatten() {
                Some(bytes) => self.builder.headers.set(Attribute::Key, &*bytes),
                None => self.builder.headers.set(Attribute::Key, &*key),
            }
        }
        if let Some(text) = &self.content_type {
            self.builder.headers.set(Attribute::ContentType, &**text);
        }
        // by reference: the room that headers are written into is large, and isn't worth a copy
        let builder = &mut self.builder;
        // a structured one may have brought an id after all
        let made_up = self.made_up.is_some() && builder.id == self.made_up;
        Envelope {
            id: builder.id.take().unwrap_or_else(|| MessageId::Text("".into())),
            time_ms: builder.time_ms.unwrap_or(0),
            version: builder.version,
            null: builder.null,
            breach: builder.headers.breach(),
            made_up,
            headers: builder.headers.freeze(),
            payload: std::mem::take(&mut builder.payload),
        }
    }
}

/// The id of an output or of a copy: the same inputs give the same id, so that a re-run publishes the same message again.
/// A `UUIDv8` over 128 bits of XXH3.
pub fn derived_id(parts: &[&[u8]]) -> MessageId {
    let bits = hash(parts) & !(0xf << 76) & !(0x3 << 62) | (0x8 << 76) | (0x2 << 62);
    MessageId::Uuid(bits.to_be_bytes())
}

/// All parts, each behind its length. A few bytes are hashed at once, which is the same and takes a tenth of the time.
fn hash(parts: &[&[u8]]) -> u128 {
    use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};
    let (mut few, mut length) = ([0; AT_ONCE], 0);
    let whole: usize = parts.iter().map(|part| part.len() + 8).sum();
    if whole <= AT_ONCE {
        for part in parts {
            few[length..length + 8].copy_from_slice(&(part.len() as u64).to_le_bytes());
            few[length + 8..][..part.len()].copy_from_slice(part);
            length += 8 + part.len();
        }
        return xxh3_128(&few[..length]);
    }
    let mut hash = Xxh3Default::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest128()
}

const AT_ONCE: usize = 192;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::env::Env;

    fn through_the_wire(envelope: &Envelope) -> Envelope {
        let mut reader = WireReader::new((!envelope.is_null()).then(|| envelope.payload().clone()));
        envelope.write_attributes(|name, text| {
            let text = std::str::from_utf8(text).unwrap().to_owned();
            assert!(reader.attribute(name, text), "{name}");
        });
        envelope.headers().iter().for_each(|(name, value)| reader.header(name, value));
        reader.finish()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(key in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)), version in 0_u32..9, ms in 1_u64..4_000_000_000_000, text in "\\PC{0,20}") {
            let mut builder = Envelope::builder(Bytes::from_static(b"x")).type_name("t").version(version).time_ms(ms).correlation_id(&text).attribute(Attribute::ContentType, "text/plain").header("h", &text);
            if let Some(key) = &key {
                builder = builder.key(key);
            }
            let envelope = builder.build(&Env::seeded(1)).unwrap();
            let read = through_the_wire(&envelope);
            prop_assert_eq!(read.id(), envelope.id());
            prop_assert_eq!(read.time_ms(), ms);
            prop_assert_eq!(read.version(), version);
            prop_assert_eq!(read.key(), key.as_deref());
            prop_assert_eq!(read.correlation_id(), Some(&*text));
            prop_assert_eq!(read.content_type(), Some("text/plain"));
            prop_assert_eq!(read.source(), "/postrider");
            prop_assert_eq!(read.headers().get("h"), envelope.headers().get("h"));
        }

        #[test]
        fn a_uuid_comes_back_and_other_text_stays(bytes in any::<[u8; 16]>(), text in "[0-9a-fA-F-]{30,40}") {
            let id = MessageId::Uuid(bytes);
            prop_assert_eq!(&MessageId::parse(&id.to_string()), &id);
            prop_assert_eq!(MessageId::parse(&text).to_string(), text);
        }
    }

    #[test]
    fn a_content_type_comes_last_and_only_if_it_is_text() {
        let written = |value: HeaderValue<'_>| {
            let builder = Envelope::builder(Bytes::new()).attribute(Attribute::ContentType, value);
            let envelope = builder.type_name("t").build(&Env::seeded(1)).unwrap();
            let mut written = Vec::new();
            envelope.write_attributes(|name, text| written.push((name.to_owned(), text.to_vec())));
            written
        };
        for text in [HeaderValue::Text("text/plain"), HeaderValue::Bytes(b"text/plain")] {
            let last = written(text).pop().unwrap();
            assert_eq!(last, ("datacontenttype".to_owned(), b"text/plain".to_vec()));
        }
        for other in [HeaderValue::Bytes(&[0xff]), HeaderValue::Int(5), HeaderValue::Null] {
            assert!(written(other).iter().all(|(name, _)| name != "datacontenttype"));
        }
    }

    #[test]
    fn a_version_that_is_no_number_is_kept_as_it_came() {
        let read = |text: &str| {
            let mut reader = WireReader::new(Some(Bytes::from_static(b"{}")));
            assert!(reader.attribute("schemaversion", text.to_owned()), "{text}");
            reader.finish()
        };
        for number in ["0", "1", "4294967295"] {
            let e = read(number);
            assert_eq!((e.version().to_string().as_str(), e.unreadable_version()), (number, None));
        }
        for text in ["two", "4294967296", "-1", "1.0", "", " 1", "18446744073709551616"] {
            let e = read(text);
            assert_eq!((e.version(), e.unreadable_version()), (0, Some(text)));
            // and every copy has it, once
            let mut written = Vec::new();
            e.write_attributes(|name, value| written.push((name.to_owned(), value.to_vec())));
            written.retain(|(name, _)| name == "schemaversion");
            assert_eq!(written, [("schemaversion".to_owned(), text.as_bytes().to_vec())]);
            assert_eq!(through_the_wire(&e).unreadable_version(), Some(text));
        }
        let structured = |version: &str| {
            let body = format!(
                r#"{{"specversion":"1.0","id":"7","source":"/s","type":"t","schemaversion":{version}}}"#
            );
            let mut reader = WireReader::new(Some(body.into()));
            reader.content_type("application/cloudevents+json");
            reader.finish()
        };
        for (version, found) in [
            ("2", None),
            ("null", None),
            ("2.5", Some("2.5")),
            ("true", Some("true")),
            ("4294967296", Some("4294967296")),
            ("[1]", Some("[1]")),
            ("\"x\"", Some("x")),
        ] {
            assert_eq!(structured(version).unreadable_version(), found, "{version}");
        }
    }

    #[test]
    fn times_are_read_with_any_offset() {
        assert_eq!(parse_rfc3339("1970-01-01T01:00:00.001+01:00"), Some(1));
        assert_eq!(rfc3339(1), "1970-01-01T00:00:00.001Z");
        assert_eq!(parse_rfc3339("yesterday"), None);
    }

    #[test]
    fn derived_ids_repeat_and_differ_by_every_part() {
        let id = |parts: &[&[u8]]| derived_id(parts);
        assert_eq!(id(&[b"a", b"b"]), id(&[b"a", b"b"]));
        assert_ne!(id(&[b"a", b"b"]), id(&[b"ab", b""]));
        let MessageId::Uuid(bytes) = id(&[b"a"]) else { panic!("not a UUID") };
        assert_eq!((bytes[6] >> 4, bytes[8] >> 6), (8, 2));
    }

    #[test]
    fn few_bytes_and_many_are_hashed_alike() {
        let long = [7; 300];
        for length in 0..300 {
            let parts: [&[u8]; 2] = [&long[..length], b"end"];
            let mut stream = xxhash_rust::xxh3::Xxh3Default::new();
            for part in parts {
                stream.update(&(part.len() as u64).to_le_bytes());
                stream.update(part);
            }
            assert_eq!(hash(&parts), stream.digest128(), "{length}");
        }
    }

    #[test]
    fn a_body_that_is_no_event_stays_as_it_came_whatever_its_content_type() {
        const TYPE: &str = "application/cloudevents+json";
        let read = |body: String| {
            let mut reader = WireReader::new(Some(Bytes::from(body)));
            assert!(reader.attribute("id", "7") && reader.attribute("type", "order"));
            reader.content_type(TYPE);
            reader.finish()
        };
        let members = [r#""specversion":"1.0""#, r#""id":"1""#, r#""source":"/s""#, r#""type":"t""#];
        let data = r#""data":{"a":1},"lines":[{"sku":1}],"total":12.50"#;
        let whole = format!("{{{},{data}}}", members.join(","));
        assert_eq!(read(whole).payload(), &Bytes::from_static(br#"{"a":1}"#));
        let mut bodies = vec![
            r#"{"order_id":"o-1","lines":[{"sku":1}],"total":12.50}"#.to_owned(),
            "[]".into(),
            "7".into(),
        ];
        for lacking in 0..members.len() {
            for instead in [
                "\"other\":\"x\"".to_owned(),
                members[lacking].split(':').next().unwrap().to_owned() + ":7",
                members[lacking].split(':').next().unwrap().to_owned() + ":\"\"",
            ] {
                let mut members = members.map(str::to_owned);
                members[lacking] = instead;
                bodies.push(format!("{{{},{data}}}", members.join(",")));
            }
        }
        for body in bodies {
            let e = read(body.clone());
            assert_eq!(e.payload(), &body.clone().into_bytes(), "{body}");
            assert_eq!((e.id().to_string().as_str(), e.type_name()), ("7", "order"), "{body}");
            assert_eq!((e.content_type(), e.headers().len()), (Some(TYPE), 0), "{body}");
        }
    }

    #[test]
    fn a_structured_cloud_event_is_read_without_a_wire_as_with_one() {
        let env = Env::seeded(1);
        let body = r#"{"specversion":"1.0","id":"7","source":"/s","type":"t","schemaversion":2,"partitionkey":"k","data":{"a":1}}"#;
        let build = |content_type: &str| {
            let builder =
                Envelope::builder(Bytes::from(body)).attribute(Attribute::ContentType, content_type);
            builder.header("tenant", "acme").build(&env).unwrap()
        };
        let e = build("application/cloudevents+json").read_structured().unwrap();
        assert_eq!((e.id().to_string().as_str(), e.type_name(), e.version()), ("7", "t", 2));
        assert_eq!((e.key(), e.payload().as_ref()), (Some(&b"k"[..]), &br#"{"a":1}"#[..]));
        assert_eq!(e.headers().get("tenant"), Some(HeaderValue::Text("acme")));
        assert_eq!(build("application/json").read_structured(), None);
    }

    #[test]
    fn a_structured_cloud_event_is_taken_apart() {
        let read = |body: &'static str| {
            let mut reader = WireReader::new(Some(Bytes::from_static(body.as_bytes())));
            reader.content_type("application/cloudevents+json; charset=utf-8");
            reader.finish()
        };
        let e = read(
            r#"{"specversion":"1.0","id":"7","source":"/s","type":"t","schemaversion":2,"partitionkey":"k","datacontenttype":"application/json","odd":true,"data":{"a":1}}"#,
        );
        assert_eq!(
            (e.id().to_string().as_str(), e.source(), e.type_name(), e.version()),
            ("7", "/s", "t", 2)
        );
        assert_eq!(e.key(), Some(&b"k"[..]));
        assert_eq!(e.content_type(), Some("application/json"));
        assert_eq!(e.payload(), &Bytes::from_static(br#"{"a":1}"#));
        let headers: Vec<_> = e.headers().iter().collect();
        assert_eq!(headers, [("odd", HeaderValue::Bool(true))], "what is an attribute is no header as well");
        let base64 = read(
            r#"{"specversion":"1.0","data_base64":"AP8=","id":"1","source":"/s","type":"t","tags":[1]}"#,
        );
        assert_eq!(base64.payload(), &Bytes::from_static(&[0, 255]));
        assert_eq!(base64.headers().get("tags"), Some(HeaderValue::Text("[1]")), "nothing is lost");
        let broken = read(r#"{"id":"#);
        assert_eq!(broken.payload(), &Bytes::from_static(br#"{"id":"#));
    }
}
