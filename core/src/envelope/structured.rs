//! Structured `CloudEvents` (`application/cloudevents+json`), taken apart into attributes and body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use super::WireReader;
use crate::headers::HeaderValue;

/// The event as it stands in JSON; everything but the data is an attribute.
#[derive(Deserialize)]
struct Structured<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
    #[serde(flatten)]
    attributes: BTreeMap<String, serde_json::Value>,
}

/// What every event has; without one of them, a body is none, whatever its content type says.
const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];

impl Structured<'_> {
    fn is_event(&self) -> bool {
        let text = |name| self.attributes.get(name).and_then(serde_json::Value::as_str);
        REQUIRED.into_iter().all(|name| text(name).is_some_and(|text| !text.is_empty()))
    }
}

/// Whether a content type says that the body is such an event.
pub(super) fn is_structured(content_type: &str) -> bool {
    content_type.starts_with("application/cloudevents+json")
}

/// Gives the attributes to `reader` and answers the body; `None`, and nothing is given, if the body is no such event.
pub(super) fn take_apart(body: &Bytes, reader: &mut WireReader<'_>) -> Option<Bytes> {
    let event: Structured<'_> = serde_json::from_slice(body).ok()?;
    if !event.is_event() {
        return None;
    }
    let data = match (&event.data_base64, event.data) {
        (Some(text), _) => Bytes::from(STANDARD.decode(text).ok()?),
        (None, Some(data)) => json_data(&event, data)?,
        (None, None) => Bytes::new(),
    };
    reader.forget_content_type();
    for (name, value) in &event.attributes {
        match value {
            serde_json::Value::String(text) if name == "datacontenttype" => reader.content_type(text.clone()),
            serde_json::Value::String(text) => {
                if !reader.attribute(name, text.clone()) {
                    reader.header(name, &**text);
                }
            }
            serde_json::Value::Number(n) => {
                let text = n.to_string();
                if !reader.attribute(name, text.clone()) {
                    reader.header(name, n.as_i64().map_or(HeaderValue::Text(&text), HeaderValue::Int));
                }
            }
            serde_json::Value::Null => {}
            // no version, and to be known as such
            other if name == "schemaversion" => _ = reader.attribute(name, other.to_string()),
            serde_json::Value::Bool(b) => reader.header(name, *b),
            // the specification has no other types; that of an extension is kept as it is
            other => reader.header(name, &*other.to_string()),
        }
    }
    Some(data)
}

/// JSON data stays JSON; a string under another media type is that text.
fn json_data(event: &Structured<'_>, data: &RawValue) -> Option<Bytes> {
    let media =
        event.attributes.get("datacontenttype").and_then(|v| v.as_str()).unwrap_or("application/json");
    if media.contains("json") {
        return Some(Bytes::copy_from_slice(data.get().as_bytes()));
    }
    match serde_json::from_str(data.get()).ok()? {
        serde_json::Value::String(text) => Some(Bytes::from(text)),
        _ => Some(Bytes::copy_from_slice(data.get().as_bytes())),
    }
}
