//! What a dead letter says of itself: the headers of the wire format, cut to their bounds.

use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::headers::{HeaderValue, HeadersMut};
use crate::outcome::Reason;
use crate::runner::retry_copy;

/// The longest value of a dead-letter header, in bytes; what is longer is cut and marked.
const MAX_VALUE: usize = 2 * 1024;
const CUT: &str = "… (cut)";
/// The headers that every dead letter has, and the redrive count among them.
const PREFIX: &str = "postrider-dlq-";
/// The header that every dead letter has.
pub(crate) const REASON: &str = "postrider-dlq-reason";
const ORIGIN_ID: &str = "postrider-origin-id";
const REDRIVES: &str = "postrider-dlq-redrives";

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
    let mut headers = copied(source, |name| name.starts_with(PREFIX) || name.starts_with(retry_copy::PREFIX));
    let mut put = |name: &str, value: &str| headers.insert_system(&format!("{PREFIX}{name}"), &*cut(value));
    put("reason", failure.reason.as_str());
    put("error", &failure.error.to_string());
    put("error-chain", &chain(failure.error));
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
    keep_id(source, &mut headers);
    let hop = format!("dlq/{}/{redrives}/{}", failure.group, failure.origin);
    (source.clone().with_headers(headers.freeze()), hop)
}

/// How often it was redriven. What comes off the wire is untrusted: a count that can't be read is none.
pub(super) fn redrives(source: &Envelope) -> i64 {
    let count = source.headers().get(REDRIVES).and_then(HeaderValue::as_int);
    count.unwrap_or(0).clamp(0, 1_000_000)
}

/// A raw message's id was derived from the broker's coordinates, which a copy of it no longer has.
pub(super) fn keep_id(source: &Envelope, headers: &mut HeadersMut) {
    if source.source().is_empty() && source.headers().get(ORIGIN_ID).is_none() {
        headers.insert_system(ORIGIN_ID, &*source.id().to_string());
    }
}

/// Attributes and headers of a message, for a copy of it, without those of which `left_out` is true.
pub(super) fn copied(source: &Envelope, left_out: impl Fn(&str) -> bool) -> HeadersMut {
    let mut headers = HeadersMut::new();
    for (attribute, value) in source.headers().attributes() {
        headers.set(attribute, value);
    }
    for (name, value) in source.headers().iter().filter(|(name, _)| !left_out(name)) {
        headers.insert_system(name, value);
    }
    headers
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
        if text.len() > MAX_VALUE {
            break;
        }
    }
    text
}

pub(super) fn cut(value: &str) -> String {
    // control characters have no place in a header on any broker
    let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if value.len() <= MAX_VALUE {
        return value;
    }
    let mut end = MAX_VALUE - CUT.len();
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", &value[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_cut_at_its_bound_and_not_before() {
        assert_eq!(cut(&"x".repeat(MAX_VALUE)).len(), MAX_VALUE);
        let long = cut(&"ä".repeat(MAX_VALUE));
        assert!(long.len() <= MAX_VALUE && long.ends_with(CUT), "{}", long.len());
        assert_eq!(cut("a\r\nb"), "a  b");
    }
}
