//! What `fuzz/` reaches of the private parts: tables, messages and options as they come from outside. No part of the interface.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{FieldTable, ShortString};
use postrider_core::{BrokerUrl, Envelope, Result};

use crate::config::RabbitmqConfig;
use crate::{convert, field};

/// The properties of a foreign message that are texts, and its timestamp.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// `message-id`.
    pub message_id: Option<String>,
    /// `content-type`.
    pub content_type: Option<String>,
    /// `correlation-id`.
    pub correlation_id: Option<String>,
    /// `expiration`.
    pub expiration: Option<String>,
    /// `timestamp`, in seconds.
    pub timestamp: Option<u64>,
}

/// A value in AMQP's own encoding after it was read and written again; `None`: it is none.
pub fn value(letter: u8, mut bytes: &[u8]) -> Option<(u8, Vec<u8>)> {
    let value = field::decode(letter, &mut bytes, 0)?;
    let mut out = Vec::new();
    field::encode(&value, &mut out);
    Some((field::letter(&value), out))
}

/// The envelope of a message with this table, whose values are in AMQP's own encoding; and how often it says it was delivered.
pub fn envelope(table: &[(String, u8, Vec<u8>)], texts: &Texts, body: Bytes) -> (Envelope, u32) {
    let mut fields = FieldTable::default();
    for (name, letter, bytes) in table {
        if let (Ok(name), Some(value)) =
            (ShortString::try_new(name.as_str()), field::decode(*letter, &mut bytes.as_slice(), 0))
        {
            fields.insert(name, value);
        }
    }
    let short = |text: &Option<String>| ShortString::try_new(text.as_deref()?).ok();
    let mut properties = BasicProperties::default().with_headers(fields);
    if let Some(id) = short(&texts.message_id) {
        properties = properties.with_message_id(id);
    }
    if let Some(text) = short(&texts.content_type) {
        properties = properties.with_content_type(text);
    }
    if let Some(id) = short(&texts.correlation_id) {
        properties = properties.with_correlation_id(id);
    }
    if let Some(text) = short(&texts.expiration) {
        properties = properties.with_expiration(text);
    }
    if let Some(seconds) = texts.timestamp {
        properties = properties.with_timestamp(seconds);
    }
    let deliveries = convert::deliveries(&properties, true);
    (convert::envelope(&properties, body, || "orders/7".into()), deliveries)
}

/// The same after it was published again as it is.
pub fn again(envelope: &Envelope) -> Envelope {
    convert::envelope(&convert::properties(envelope, 7), envelope.payload().clone(), || "orders/8".into())
}

/// Reads and checks the options of a URL.
///
/// # Errors
/// As connecting would say it.
pub fn config(url: &BrokerUrl) -> Result<()> {
    url.options::<RabbitmqConfig>()?.check()
}
