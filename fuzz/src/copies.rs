//! Dead letters and retries of messages that say anything of themselves: counts from nowhere, times from the future, headers of the
//! library's own.

use postrider_core::{Envelope, HeaderValue, fuzzing};

use crate::envelope::{envelope, holds, same};
use crate::feed::Feed;

const LETTER: &str = "postrider-dlq-";
const RETRY: &str = "postrider-retry-";

/// Any bytes as a message that failed.
pub(crate) fn target(data: &[u8]) {
    let mut feed = Feed(data);
    let (error, max_attempts) = (feed.text().repeat(40), 1 + u32::from(feed.byte() % 9));
    let wall_ms = 1_700_000_000_000 + u64::from(feed.byte());
    let source = envelope(&mut feed);
    let copies = fuzzing::copies(&source, &error, max_attempts, wall_ms);
    assert!((1..=max_attempts).contains(&copies.attempt), "attempt {} of {max_attempts}", copies.attempt);
    for copy in [&copies.letter, &copies.retry] {
        same(&source, copy);
        assert_eq!(source.payload(), copy.payload());
        assert_eq!(users(&source), users(copy));
        let _ = format!("{copy:?}");
    }
    // what a copy writes is bounded; the failure that a letter tells of waits for its retry as it came
    bounded(&copies.letter, is_own);
    bounded(&copies.retry, |name| name.starts_with(RETRY));
    assert_eq!(failure(&source), failure(&copies.retry));
    let letter = copies.letter.headers();
    for name in ["reason", "error", "attempts", "origin", "redrives", "first-failed-at"] {
        assert_eq!(letter.get_all(&format!("{LETTER}{name}")).count(), 1, "{name}");
    }
    let redrives = letter.get("postrider-dlq-redrives").and_then(HeaderValue::as_int);
    assert!(redrives.is_some_and(|n| (0..=1_000_000).contains(&n)), "{redrives:?}");
    assert!(!letter.iter().any(|(name, _)| name.starts_with(RETRY)));
    // a copy of a copy is no larger, however often it goes round
    let again = fuzzing::copies(&copies.retry, &error, max_attempts, wall_ms);
    assert_eq!(again.retry.headers().len(), copies.retry.headers().len());
    assert!(again.attempt >= copies.attempt.min(max_attempts), "attempts are forgotten");
    holds(&copies.letter);
}

fn bounded(copy: &Envelope, written: impl Fn(&str) -> bool) {
    for (name, value) in copy.headers().iter().filter(|(name, _)| written(name)) {
        assert!(value.as_bytes().map_or(8, <[u8]>::len) <= 2 * 1024, "{name}");
    }
}

fn is_own(name: &str) -> bool {
    name.starts_with(LETTER) || name.starts_with(RETRY)
}

/// The headers that are the user's, as they came.
fn users(envelope: &Envelope) -> Vec<(String, String)> {
    those(envelope, |name| !is_own(name) && name != "postrider-origin-id")
}

/// What a letter says of its failure.
fn failure(envelope: &Envelope) -> Vec<(String, String)> {
    those(envelope, |name| name.starts_with(LETTER))
}

fn those(envelope: &Envelope, wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let those = envelope.headers().iter().filter(|(name, _)| wanted(name));
    those.map(|(name, value)| (name.to_owned(), format!("{value:?}"))).collect()
}
