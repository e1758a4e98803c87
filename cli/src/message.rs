//! A message as people and programs read it: one line of text, or one JSON object.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postrider::{Envelope, HeaderValue, rfc3339};
use serde::Serialize;
use serde_json::{Map, Value};

/// How much of a body stands on a line of a table, in characters.
const LINE: usize = 120;

/// A message as a JSON object. What is absent is left out; what isn't text stands in base64 under a name that says so.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    id: String,
    time: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    type_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    headers: Map<String, Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    null: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl Shown {
    /// The message, with the headers of which `wanted` is true.
    pub(crate) fn of(envelope: &Envelope, wanted: impl Fn(&str) -> bool) -> Self {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (key, key_base64) = envelope.key().map_or((None, None), text_or_base64);
        let (body, body_base64) =
            if envelope.is_null() { (None, None) } else { text_or_base64(envelope.payload()) };
        let mut headers = Map::new();
        for (name, value) in envelope.headers().iter().filter(|(name, _)| wanted(name)) {
            add(&mut headers, name, json_of(value));
        }
        Self {
            id: envelope.id().to_string(),
            time: rfc3339(i64::try_from(envelope.time_ms()).unwrap_or(i64::MAX)),
            type_name: some(envelope.type_name()),
            version: (envelope.version() != 0).then(|| envelope.version()),
            key,
            key_base64,
            source: some(envelope.source()),
            content_type: envelope.content_type().map(str::to_owned),
            idempotency_key: envelope.idempotency_key().map(str::to_owned),
            headers,
            null: envelope.is_null(),
            body,
            body_base64,
        }
    }
}

/// Text as it is, anything else in base64.
fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

fn json_of(value: HeaderValue<'_>) -> Value {
    match value {
        HeaderValue::Int(n) => n.into(),
        HeaderValue::Bool(b) => b.into(),
        HeaderValue::Null => Value::Null,
        other => other.to_string().into(),
    }
}

/// A name that is there again gets a list.
fn add(headers: &mut Map<String, Value>, name: &str, value: Value) {
    match headers.get_mut(name) {
        None => {
            headers.insert(name.to_owned(), value);
        }
        Some(Value::Array(values)) => values.push(value),
        Some(one) => *one = Value::Array(vec![one.take(), value]),
    }
}

/// A message on one line: when, who, for which key, what.
pub(crate) fn line(envelope: &Envelope) -> String {
    let time = rfc3339(i64::try_from(envelope.time_ms()).unwrap_or(i64::MAX));
    let key = envelope.key().map_or_else(String::new, |key| format!("  key={}", printable(key)));
    let kind = match envelope.type_name() {
        "" => String::new(),
        name => format!("  {}/{}", printable(name.as_bytes()), envelope.version()),
    };
    format!("{time}  {}{key}{kind}  {}", envelope.id(), body(envelope))
}

/// The whole body, on one line.
pub(crate) fn body(envelope: &Envelope) -> String {
    if envelope.is_null() { "(null)".into() } else { printable(envelope.payload()) }
}

/// The beginning of the body, on one line.
pub(crate) fn short_body(envelope: &Envelope) -> String {
    shortened(&body(envelope), LINE)
}

/// At most so many characters, marked where some are left out.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Text without control characters, which a terminal would act upon; bytes that are no text by their number.
pub(crate) fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Err(_) => format!("({} bytes that are no text)", bytes.len()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postrider::Env;

    use super::*;

    #[test]
    fn a_message_is_shown_whole_and_harmless() {
        let env = Env::seeded(1);
        let built =
            Envelope::builder(Bytes::from_static(b"{\"a\":\n\x1b[31m1}")).type_name("t").version(2).key("k");
        let built = built.header("n", 1_i64).header("x", "1").header("x", "2").time_ms(1000);
        let envelope = built.id(postrider::MessageId::parse("m-1")).build(&env).unwrap();
        insta::assert_snapshot!(line(&envelope), @r#"1970-01-01T00:00:01Z  m-1  key=k  t/2  {"a":  [31m1}"#);
        insta::assert_snapshot!(serde_json::to_string(&Shown::of(&envelope, |_| true)).unwrap(), @r#"{"id":"m-1","time":"1970-01-01T00:00:01Z","type":"t","version":2,"key":"k","source":"/postrider","headers":{"n":1,"x":["1","2"]},"body":"{\"a\":\n\u001b[31m1}"}"#);
        let bytes = Envelope::builder(Bytes::from_static(&[0xff])).key([0xfe]).time_ms(0);
        let bytes = bytes.id(postrider::MessageId::parse("m-2")).build(&env).unwrap();
        insta::assert_snapshot!(line(&bytes), @"1970-01-01T00:00:00Z  m-2  key=(1 bytes that are no text)  (1 bytes that are no text)");
        assert_eq!(shortened("abcdef", 3), "ab…");
    }
}
