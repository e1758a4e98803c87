//! What `fuzz/` reaches of the private parts: messages and options as they come from outside. No part of the interface.

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue};
use bytes::Bytes;
use postrider_core::{BrokerUrl, Envelope, Result};

use crate::config::NatsConfig;
use crate::convert;

/// The envelope of a message with these headers; those that the client can't carry are left out.
pub fn envelope(headers: &[(String, String)], body: Bytes) -> Envelope {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            map.append(name, value);
        }
    }
    convert::envelope(Some(&map), body, "orders", 7, 1_700_000_000_000)
}

/// The same after it was published again as it is.
pub fn again(envelope: &Envelope) -> Envelope {
    let map = convert::headers(envelope, None);
    convert::envelope(Some(&map), envelope.payload().clone(), "orders", 8, 1_700_000_000_001)
}

/// Reads and checks the options of a URL.
///
/// # Errors
/// As connecting would say it.
pub fn config(url: &BrokerUrl) -> Result<()> {
    url.options::<NatsConfig>()?.check()
}
