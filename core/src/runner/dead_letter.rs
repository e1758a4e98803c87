//! What a dead letter says of itself: the headers of the wire format, cut to their bounds.

use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, chain, text_of};
use crate::letters::{MAX_DEPTH, MAX_VALUE, PREFIX, RETRY_PREFIX, copied, cut, depth, keep_id, redrives};
use crate::outcome::Reason;

/// Why and where a message failed.
pub(crate) struct Failure<'a> {
    pub(crate) reason: Reason,
    /// The error and everything below it.
    pub(crate) error: &'a (dyn std::error::Error + 'static),
    pub(crate) attempts: u32,
    pub(crate) first_failed_ms: u64,
    pub(crate) last_failed_ms: u64,
    pub(crate) channel: &'a str,
    pub(crate) group: &'a str,
    pub(crate) handler: &'a str,
    pub(crate) origin: &'a str,
}

/// The dead letter of a delivery, and its hop: which copy it is, so that a broker that drops doubles keeps each.
pub(crate) fn dead_letter(delivery: &Delivery, failure: &Failure<'_>) -> (Envelope, String) {
    let source = &delivery.envelope;
    let redrives = redrives(source);
    let mut headers = copied(source, |name| name.starts_with(PREFIX) || name.starts_with(RETRY_PREFIX));
    let mut put = |name: &str, value: &str| headers.insert_system(&format!("{PREFIX}{name}"), &*cut(value));
    put("reason", failure.reason.as_str());
    put("error", &text_of(failure.error));
    put("error-chain", &chain_text(failure.error));
    put("attempts", &failure.attempts.to_string());
    if let Some(deliveries) = delivery.deliveries {
        put("deliveries", &deliveries.to_string());
    }
    put("first-failed-at", &crate::time::rfc3339(failure.first_failed_ms as i64));
    put("last-failed-at", &crate::time::rfc3339(failure.last_failed_ms as i64));
    put("channel", failure.channel);
    put("group", failure.group);
    put("handler", failure.handler);
    put("origin", failure.origin);
    put("redrives", &redrives.to_string());
    put("depth", &(depth(source) + 1).to_string());
    keep_id(source, &mut headers);
    let hop = format!("dlq/{}/{redrives}/{}", failure.group, failure.origin);
    (source.clone().with_headers(headers.freeze()), hop)
}

/// Why there is no further dead letter of this message; it stays where it is.
pub(crate) fn too_deep(message: &Envelope) -> Option<Error> {
    if depth(message) < MAX_DEPTH {
        return None;
    }
    let text = format!(
        "the message has been a dead letter {MAX_DEPTH} times, one after the other: dead letters lead back to where they came from, maybe through another service; let one route's go elsewhere, then redrive it"
    );
    Some(Error::new(ErrorKind::Config, "dead-letter", text).temporary(true))
}

/// The error and its sources as one text.
fn chain_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for (index, error) in chain(error).enumerate() {
        if index > 0 {
            text.push_str(": ");
        }
        text.push_str(&text_of(error));
        if text.len() > MAX_VALUE {
            break;
        }
    }
    text
}
