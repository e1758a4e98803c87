//! What every copy of a message shares: which of its headers go along, which are left behind, how a value is cut to its bound.

use crate::envelope::Envelope;
use crate::headers::{HeaderValue, HeadersMut};

/// The longest value of a dead-letter header, in bytes; what is longer is cut and marked.
pub(crate) const MAX_VALUE: usize = 2 * 1024;
const CUT: &str = "… (cut)";
/// The headers that every dead letter has, and the redrive count among them.
pub(crate) const PREFIX: &str = "postrider-dlq-";
/// The header that every dead letter has.
pub(crate) const REASON: &str = "postrider-dlq-reason";
/// How often the message was sent back to its group.
pub(crate) const REDRIVES: &str = "postrider-dlq-redrives";
/// How many dead letters the message has been, one after the other.
const DEPTH: &str = "postrider-dlq-depth";
/// At this depth there is no further dead letter: they go round.
pub(crate) const MAX_DEPTH: u32 = 32;
/// Where the letter stood that this one was made from.
pub(crate) const EDITED_FROM: &str = "postrider-dlq-edited-from";
/// The headers of a message that waits for its retry; no other copy carries them on.
pub(crate) const RETRY_PREFIX: &str = "postrider-retry-";
/// The id that a message without a source had by its place, which a copy has no longer.
pub(super) const ORIGIN_ID: &str = "postrider-origin-id";
/// What comes off the wire is untrusted: no message was redriven more often than this.
const MOST_REDRIVES: i64 = 1_000_000;

/// How often it was redriven. A count that can't be read is none.
pub(crate) fn redrives(source: &Envelope) -> u32 {
    let count = source.headers().get(REDRIVES).and_then(HeaderValue::as_int);
    count.unwrap_or(0).clamp(0, MOST_REDRIVES) as u32
}

/// How many dead letters it has been, one after the other, since it was published or redriven. What can't be read is none.
pub(crate) fn depth(source: &Envelope) -> u32 {
    let depth = source.headers().get(DEPTH).and_then(HeaderValue::as_int);
    depth.unwrap_or(0).clamp(0, i64::from(MAX_DEPTH)) as u32
}

/// A raw message's id was derived from the broker's coordinates, which a copy of it no longer has.
pub(crate) fn keep_id(source: &Envelope, headers: &mut HeadersMut) {
    if source.source().is_empty() && source.headers().get(ORIGIN_ID).is_none() {
        headers.insert_system(ORIGIN_ID, &*source.id().to_string());
    }
}

/// Attributes and headers of a message, for a copy of it, without those of which `left_out` is true.
pub(crate) fn copied(source: &Envelope, left_out: impl Fn(&str) -> bool) -> HeadersMut {
    let mut headers = HeadersMut::new();
    for (attribute, value) in source.headers().attributes() {
        headers.set(attribute, value);
    }
    for (name, value) in source.headers().iter().filter(|(name, _)| !left_out(name)) {
        headers.insert_system(name, value);
    }
    headers
}

/// A value as a header of ours may have it.
pub(crate) fn cut(value: &str) -> String {
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
