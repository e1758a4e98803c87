//! Which letters are meant, and a walk over those that are open now.

use std::num::NonZeroUsize;

use clap::Args;
use postrider::{BoxLetters, Error, Letter, Letters, Reason, Result};

use crate::when::{When, when};

/// How many letters are read at once.
pub(super) const BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99);

/// Filters; a letter is meant that fits all that are given.
#[derive(Args, Default)]
pub(super) struct Filters {
    /// Only letters with this reason; may be given again
    #[arg(long = "reason", value_name = "REASON", value_parser = reason)]
    reasons: Vec<Reason>,
    /// Only letters whose error, or an error underneath it, contains this text
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only letters that failed at or after this time: `2026-01-31T12:00:00Z`, or how long ago: `2h`
    #[arg(long, value_name = "TIME", value_parser = when)]
    since: Option<When>,
    /// Only letters that failed before this time
    #[arg(long, value_name = "TIME", value_parser = when)]
    until: Option<When>,
    /// Only letters with this key
    #[arg(long)]
    key: Option<String>,
    /// Only letters of this message
    #[arg(long)]
    id: Option<String>,
}

fn reason(text: &str) -> std::result::Result<Reason, String> {
    Reason::from_name(text).ok_or_else(|| {
        "no such reason; there are rejected, exhausted, undecodable, unknown-type, unknown-version, expired, oversize, crash-loop and no-identity".into()
    })
}

/// When a letter failed: as it says itself, else when its message happened.
pub(super) fn failed_ms(letter: &Letter) -> u64 {
    letter.failure().last_failed_ms.unwrap_or_else(|| letter.envelope.time_ms())
}

impl Filters {
    /// Letters of one message.
    pub(super) fn of_id(id: &str) -> Self {
        Self { id: Some(id.to_owned()), ..Self::default() }
    }

    /// Whether none is given.
    pub(super) fn is_empty(&self) -> bool {
        self.reasons.is_empty()
            && self.error.is_none()
            && self.since.is_none()
            && self.until.is_none()
            && self.key.is_none()
            && self.id.is_none()
    }

    /// A command that changes something wants to be told what.
    pub(super) fn check(&self, all: bool, operation: &'static str) -> Result<()> {
        if all || !self.is_empty() {
            return Ok(());
        }
        let message = "which letters? Give a filter such as `--reason exhausted` or `--id ID`, or `--all`";
        Err(Error::config(operation, message))
    }

    /// Whether a letter is meant.
    pub(super) fn fits(&self, letter: &Letter, now_ms: u64) -> bool {
        let failure = letter.failure();
        let reason =
            self.reasons.is_empty() || failure.reason.is_some_and(|reason| self.reasons.contains(&reason));
        let texts = [&failure.error, &failure.error_chain];
        let error = self
            .error
            .as_ref()
            .is_none_or(|wanted| texts.into_iter().flatten().any(|text| text.contains(wanted)));
        let at = failed_ms(letter);
        reason
            && error
            && self.since.is_none_or(|since| at >= since.ms(now_ms))
            && self.until.is_none_or(|until| at < until.ms(now_ms))
            && self.key.as_ref().is_none_or(|key| letter.envelope.key() == Some(key.as_bytes()))
            && self.id.as_ref().is_none_or(|id| letter.envelope.id().to_string() == *id)
    }
}

/// A walk over the letters that are open when it begins. Those that come meanwhile, such as redriven ones that fail again, are left for
/// the next.
pub(super) struct Walk {
    left: u64,
}

impl Walk {
    /// Begins; also answers how many there are.
    pub(super) async fn begin(letters: &mut BoxLetters) -> Result<(Self, u64)> {
        let open = letters.count().await?;
        Ok((Self { left: open }, open))
    }

    /// Appends at most `most` further letters; nothing appended: that is all.
    pub(super) async fn next(
        &mut self,
        letters: &mut BoxLetters,
        most: NonZeroUsize,
        into: &mut Vec<Letter>,
    ) -> Result<()> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let Some(most) = NonZeroUsize::new(left.min(most.get())) else { return Ok(()) };
        let before = into.len();
        letters.read(most, into).await?;
        self.left -= (into.len() - before) as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use postrider::{Env, Envelope, EnvelopeBuilder, MessageId, Origin};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filters: Filters,
    }

    fn filters(line: &str) -> Filters {
        let words = std::iter::once("x").chain(line.split(' ').filter(|word| !word.is_empty()));
        Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).filters
    }

    fn letter() -> Letter {
        let built: EnvelopeBuilder = Envelope::builder("{}".into());
        let built = built.key("k").id(MessageId::parse("m-1")).time_ms(5_000).build(&Env::seeded(1)).unwrap();
        let mut headers = postrider::HeadersMut::from_headers(built.headers());
        headers.insert_system("postrider-dlq-reason", "exhausted");
        headers.insert_system("postrider-dlq-error-chain", "no: card declined");
        Letter::new(built.with_headers(headers.freeze()), Origin { shard: 0, position: 7 })
    }

    #[test]
    fn a_letter_is_meant_that_fits_all_filters() {
        for fits in [
            "",
            "--reason exhausted",
            "--reason rejected --reason exhausted",
            "--error declined",
            "--key k",
            "--id m-1",
            "--since 5s",
            "--since 1970-01-01T00:00:05Z",
            "--until 1970-01-01T00:00:06Z",
            "--until 4s",
        ] {
            assert!(filters(fits).fits(&letter(), 10_000), "{fits}");
        }
        for not in [
            "--reason rejected",
            "--error accepted",
            "--key K",
            "--id m-2",
            "--since 4s",
            "--until 1970-01-01T00:00:05Z",
            "--reason exhausted --key K",
        ] {
            assert!(!filters(not).fits(&letter(), 10_000), "{not}");
        }
        assert!(filters("").check(false, "purge").is_err() && filters("").check(true, "purge").is_ok());
        assert!(Line::try_parse_from(["x", "--reason", "because"]).is_err());
    }
}
