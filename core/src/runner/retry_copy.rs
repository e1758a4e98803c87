//! What a message says of its earlier attempts while it waits at the broker for the next: the retry headers of the wire format.

use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::headers::HeaderValue;
use crate::letters::{RETRY_PREFIX, copied, cut, keep_id, redrives};

const ATTEMPTS: &str = "postrider-retry-attempts";
const FIRST_FAILED: &str = "postrider-retry-first-failed-at";
const ORIGIN: &str = "postrider-retry-origin";

/// What is known of a message's earlier attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Earlier {
    /// How many there were, from 1.
    pub(super) attempts: u32,
    /// When the first one failed, in milliseconds since the Unix epoch.
    pub(super) first_failed_ms: u64,
    /// Where the message was before it was first copied.
    pub(super) origin: String,
}

impl Earlier {
    /// What a copy says. It comes off the wire, so it is believed within bounds: at least one attempt is left, and nothing failed
    /// in the future.
    pub(super) fn of(envelope: &Envelope, max_attempts: u32, wall_ms: u64) -> Option<Self> {
        let headers = envelope.headers();
        let attempts = u32::try_from(headers.get(ATTEMPTS).and_then(HeaderValue::as_int)?).ok()?;
        let first_failed = headers.get(FIRST_FAILED).and_then(HeaderValue::as_int).unwrap_or(0);
        Some(Self {
            attempts: attempts.min(max_attempts.saturating_sub(1)),
            first_failed_ms: u64::try_from(first_failed).unwrap_or(0).min(wall_ms),
            origin: headers.get(ORIGIN).and_then(HeaderValue::as_text).map(cut).unwrap_or_default(),
        })
    }
}

/// The copy of a delivery that waits for its next attempt, and its hop: which copy it is, so that a broker that drops doubles keeps
/// each, but not two of one attempt.
pub(super) fn retry_copy(delivery: &Delivery, earlier: &Earlier, group: &str) -> (Envelope, String) {
    let source = &delivery.envelope;
    let mut headers = copied(source, |name| name.starts_with(RETRY_PREFIX));
    headers.insert_system(ATTEMPTS, &*earlier.attempts.to_string());
    headers.insert_system(FIRST_FAILED, &*earlier.first_failed_ms.to_string());
    headers.insert_system(ORIGIN, &*cut(&earlier.origin));
    keep_id(source, &mut headers);
    let hop = format!("retry/{group}/{}/{}/{}", redrives(source), earlier.origin, earlier.attempts);
    (source.clone().with_headers(headers.freeze()), hop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Env;
    use crate::headers::HeadersMut;

    fn said(attempts: &str, first_failed: &str) -> Envelope {
        let mut headers = HeadersMut::new();
        headers.insert_system(ATTEMPTS, attempts);
        headers.insert_system(FIRST_FAILED, first_failed);
        headers.insert_system(ORIGIN, "nats:orders/7");
        Envelope::builder("{}".into()).build(&Env::seeded(1)).unwrap().with_headers(headers.freeze())
    }

    #[test]
    fn what_a_copy_says_is_believed_within_bounds() {
        let read = |attempts, first_failed| {
            let earlier = Earlier::of(&said(attempts, first_failed), 5, 1_000)?;
            Some((earlier.attempts, earlier.first_failed_ms))
        };
        assert_eq!(read("3", "900"), Some((3, 900)));
        // one attempt is left, and nothing failed in the future or before the epoch
        assert_eq!(read("5", "1001"), Some((4, 1_000)));
        assert_eq!(read("4294967295", "-1"), Some((4, 0)));
        assert_eq!(read("0", "9223372036854775808"), Some((0, 0)));
        for nonsense in ["4294967296", "-1", "many", ""] {
            assert_eq!(read(nonsense, "900"), None, "{nonsense}");
        }
        assert_eq!(Earlier::of(&said("3", "900"), 1, 1_000).map(|e| e.attempts), Some(0), "`retry = never`");
    }
}
