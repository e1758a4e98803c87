//! The wire format's test vectors: files that say which bytes each broker carries for which message, and the check of an adapter
//! against them. What an adapter does on a live broker is `groups`'.
//!
//! `vectors/messages.json` holds the messages; `vectors/BROKER.json` holds, for each of them, the record that is written (and that
//! is read as that message again), and foreign records with the message that each is read as. Bytes stand in hexadecimal. An
//! author of another language's client reads the same files.
//!
//! With `POSTRIDER_BLESS=1` a check writes what it found instead; whoever does that reads the difference before it is committed.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use postrider_core::{Attribute, Bytes, Env, Envelope, EnvelopeBuilder, HeaderValue, MessageId};
use serde::{Deserialize, Serialize};

/// Any bytes, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hex(pub Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digit = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(digit).collect();
        bytes
            .filter(|_| text.len().is_multiple_of(2))
            .map(Self)
            .ok_or_else(|| format!("not hexadecimal: {text}"))
    }
}

impl From<Hex> for String {
    fn from(hex: Hex) -> Self {
        use std::fmt::Write as _;
        hex.0.iter().fold(Self::new(), |mut text, byte| {
            // writing to a string doesn't fail
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl From<&[u8]> for Hex {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

/// What a broker carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The record's own key, where the broker has such a thing; absent is null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Hex>,
    /// The broker's own properties of a message, where it has such things.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Names and values, null where the broker has that; for RabbitMQ the value is an AMQP field value with its type octet.
    pub headers: Vec<(String, Option<Hex>)>,
    /// The body; null where the broker has that.
    pub body: Option<Hex>,
}

/// A header's value with its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Value {
    Text(String),
    Bytes(Hex),
    Int(i64),
    Bool(bool),
    /// Milliseconds since the Unix epoch.
    Time(i64),
    Null,
    /// A type that only one broker has: its tag, and its bytes as that broker carries them.
    Native(u8, Hex),
}

impl Value {
    fn of(value: HeaderValue<'_>) -> Self {
        match value {
            HeaderValue::Text(text) => Self::Text(text.into()),
            HeaderValue::Bytes(bytes) => Self::Bytes(bytes.into()),
            HeaderValue::Int(n) => Self::Int(n),
            HeaderValue::Bool(b) => Self::Bool(b),
            HeaderValue::Time(ms) => Self::Time(ms),
            HeaderValue::Native(tag, bytes) => Self::Native(tag, bytes.into()),
            HeaderValue::Null => Self::Null,
            other => panic!("a new kind of value, which the vectors should have: {other:?}"),
        }
    }

    fn as_header(&self) -> HeaderValue<'_> {
        match self {
            Self::Text(text) => HeaderValue::Text(text),
            Self::Bytes(Hex(bytes)) => HeaderValue::Bytes(bytes),
            Self::Int(n) => HeaderValue::Int(*n),
            Self::Bool(b) => HeaderValue::Bool(*b),
            Self::Time(ms) => HeaderValue::Time(*ms),
            Self::Native(tag, Hex(bytes)) => HeaderValue::Native(*tag, bytes),
            Self::Null => HeaderValue::Null,
        }
    }
}

/// A message as the files say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    id: String,
    /// Milliseconds since the Unix epoch.
    time_ms: u64,
    version: u32,
    /// By their `CloudEvents` names.
    attributes: BTreeMap<String, Value>,
    /// In the order of their names, and those of one name in theirs: not every broker keeps the order between names.
    headers: Vec<(String, Value)>,
    body: Option<Hex>,
    /// A header is beyond the bounds, or can't be carried: the runner dead-letters such a message.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    breaks_bounds: bool,
}

impl Message {
    fn of(envelope: &Envelope) -> Self {
        let name = |(attribute, value): (Attribute, _)| (attribute.as_str().to_owned(), Value::of(value));
        let mut headers: Vec<_> =
            envelope.headers().iter().map(|(name, value)| (name.to_owned(), Value::of(value))).collect();
        headers.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self {
            id: envelope.id().to_string(),
            time_ms: envelope.time_ms(),
            version: envelope.version(),
            attributes: envelope.headers().attributes().map(name).collect(),
            headers,
            body: (!envelope.is_null()).then(|| envelope.payload()[..].into()),
            breaks_bounds: envelope.breaks_bounds(),
        }
    }

    fn envelope(&self) -> Envelope {
        let body = self.body.as_ref().map(|Hex(body)| Bytes::copy_from_slice(body));
        let mut builder = body.map_or_else(EnvelopeBuilder::null, Envelope::builder);
        for (name, value) in &self.attributes {
            let attribute = Attribute::from_name(name).unwrap_or_else(|| panic!("no attribute: {name}"));
            builder = builder.attribute(attribute, value.as_header());
        }
        for (name, value) in &self.headers {
            if name.starts_with("postrider-") {
                builder.headers_mut().insert_system(name, value.as_header());
            } else {
                builder.headers_mut().insert(name, value.as_header()).expect("a legal header");
            }
        }
        let builder = builder.id(MessageId::parse(&self.id)).time_ms(self.time_ms).version(self.version);
        builder.build(&Env::seeded(1)).expect("a legal message")
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    /// Which copy of the message it is; empty for the first.
    #[serde(default)]
    hop: String,
    message: Message,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    record: Record,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Foreign {
    name: String,
    record: Record,
    message: Option<Message>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The name of a message, and the record that carries it.
    written: Vec<Written>,
    /// Records of other programs, which stood at position 7 of the channel's first partition, and what they are read as.
    foreign: Vec<Foreign>,
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(format!("{file}.json"))
}

/// Checks an adapter's conversion in both directions: `write` makes the record of a message for a hop, `read` the message of a
/// record that stood at position 7.
///
/// # Panics
///
/// With the first vector that doesn't hold.
pub fn check(broker: &str, write: impl Fn(&Envelope, &str) -> Record, read: impl Fn(&Record) -> Envelope) {
    let text = fs::read_to_string(path("messages")).expect("the messages are there");
    let messages: Vec<Named> = serde_json::from_str(&text).expect("the messages can be read");
    let text = fs::read_to_string(path(broker)).expect("the broker's vectors are there");
    let mut file: File = serde_json::from_str(&text).expect("the vectors can be read");
    if std::env::var_os("POSTRIDER_BLESS").is_some() {
        file.written = messages
            .iter()
            .map(|Named { name, hop, message }| Written {
                name: name.clone(),
                record: write(&message.envelope(), hop),
            })
            .collect();
        for foreign in &mut file.foreign {
            foreign.message = Some(Message::of(&read(&foreign.record)));
        }
        let text = serde_json::to_string_pretty(&file).expect("it becomes JSON") + "\n";
        fs::write(path(broker), text).expect("the file is written");
    }
    assert_eq!(messages.len(), file.written.len(), "every message has a record in {broker}.json");
    assert!(file.foreign.len() >= 3, "foreign records are checked, too");
    for (Named { name, hop, message }, written) in messages.iter().zip(&file.written) {
        assert_eq!(*name, written.name, "the order of messages.json and {broker}.json");
        assert_eq!(write(&message.envelope(), hop), written.record, "`{name}`, as it is written");
        assert_eq!(Message::of(&read(&written.record)), *message, "`{name}`, as it is read");
    }
    for Foreign { name, record, message } in &file.foreign {
        assert_eq!(Some(Message::of(&read(record))), *message, "the foreign record `{name}`");
    }
}
