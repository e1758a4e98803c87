//! Dead letters on their way back: to the group that failed them, and to nobody else; or, corrected, to their own channel.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::address::{Address, Channel, GroupName};
use crate::broker::Broker;
use crate::capability::Capability;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::letters::{
    BoxLetters, EDITED_FROM, Letter, Letters, PREFIX, REDRIVES, RETRY_PREFIX, copied, cut, keep_id, redrives,
};
use crate::publish::{Outgoing, PublishError, PublishOptions, Publisher, Receipt};

/// How often a copy is published that the broker doesn't confirm, the first time included.
const TRIES: u32 = 5;
/// The first wait between two of those; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// How letters are sent back to their group.
///
/// ```
/// use postrider_core::{ErrorKind, Redrive};
/// let back = Redrive::new().limit(3);
/// assert_eq!(back, back.clone());
/// let error = Redrive::new().to("orders", "a.b").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redrive {
    limit: Option<u32>,
    to: Option<(Channel, GroupName)>,
}

impl Redrive {
    /// To the group that each letter names, however often it was there.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves alone what was redriven `limit` times already.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Some(limit);
        self
    }

    /// To this group, whatever the letters say: for letters that don't say it, such as those of foreign producers.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a name that is none.
    pub fn to(mut self, channel: &str, group: &str) -> Result<Self> {
        self.to = Some((Channel::new(channel)?, GroupName::new(group)?));
        Ok(self)
    }

    fn target(&self, letter: &Letter) -> Result<(Channel, GroupName)> {
        if let Some(to) = &self.to {
            return Ok(to.clone());
        }
        let failure = letter.failure();
        failure.channel.zip(failure.group).ok_or_else(|| {
            let message =
                "the letter doesn't say which group of which channel gave it up; say where it is to go";
            Error::new(ErrorKind::Config, "redrive", message)
        })
    }
}

/// What became of one letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Redriven {
    /// The broker has the copy, and the letter is closed.
    Sent(Receipt),
    /// It was redriven as often as is allowed, so many times; it is open still.
    Limit(u32),
}

/// A copy with where it goes.
struct Copy {
    channel: Channel,
    group: Option<GroupName>,
    envelope: Envelope,
    hop: Arc<str>,
}

impl Copy {
    /// The copy of a letter for its group: key, id, attributes and the user's headers as they are, one redrive more, and nothing of
    /// earlier attempts.
    fn of_letter(letter: &Letter, place: &str, (channel, group): (Channel, GroupName)) -> Self {
        let source = &letter.envelope;
        let count = redrives(source).saturating_add(1);
        let mut headers = copied(source, |name| name.starts_with(PREFIX) || name.starts_with(RETRY_PREFIX));
        headers.insert_system(REDRIVES, &*count.to_string());
        keep_id(source, &mut headers);
        // two letters of one id have two places, and one letter has another count each time it comes
        let hop = format!("redrive/{group}/{count}/{place}").into();
        Self { channel, group: Some(group), envelope: source.clone().with_headers(headers.freeze()), hop }
    }

    /// A letter again, with another body.
    fn corrected(letter: &Letter, place: &str, channel: &Channel, body: Bytes) -> Self {
        let source = &letter.envelope;
        let mut headers = copied(source, |name| name == EDITED_FROM);
        headers.insert_system(EDITED_FROM, &*cut(place));
        keep_id(source, &mut headers);
        let digest = crate::envelope::derived_id(&[&body]);
        let hop = format!("edit/{place}/{digest}").into();
        let envelope = source.clone().with_headers(headers.freeze()).with_body(body);
        Self { channel: channel.clone(), group: None, envelope, hop }
    }

    fn outgoing(&self) -> Outgoing<'_> {
        let options = PublishOptions { hop: Some(Arc::clone(&self.hop)), ..PublishOptions::default() };
        let to = self
            .group
            .as_ref()
            .map_or_else(|| Address::from(&self.channel), |group| Address::to_group(&self.channel, group));
        Outgoing::new(to, self.envelope.clone()).with(options)
    }
}

impl Broker {
    /// Sends letters back, each to the group that gave it up and to that alone, for a first attempt: with their key, id, attributes and
    /// headers, and a redrive count that is one higher. A letter is closed when its copy is confirmed, and not before; interrupted in
    /// between, it is open still and its copy may come twice.
    ///
    /// Answers for each letter, in order. All are on their way at once: hand over as many as there is memory for.
    ///
    /// # Errors
    /// One for each letter that is open still: [`Unsupported`](ErrorKind::Unsupported) before any I/O without
    /// [`Capability::GroupAddress`]; `Config` where the letter doesn't say where it belongs; `NotFound` where that group isn't there;
    /// whatever the publish comes to after five tries. A broker that drops doubles and took the copy for one stored nothing: that is an
    /// error, too, and passes with the broker's window. `operation` is `close` where the copy is confirmed and only the closing failed:
    /// then a further redrive doubles the message.
    ///
    /// # Cancel safety
    /// Dropped, some may be sent and not closed.
    pub async fn redrive(
        &self,
        letters: &mut BoxLetters,
        chosen: &[Letter],
        how: &Redrive,
    ) -> Vec<Result<Redriven>> {
        let mut confirms = Vec::with_capacity(chosen.len());
        for letter in chosen {
            let sent = match self.copy_back(letters, letter, how) {
                Ok(Ok(copy)) => {
                    let confirm = self.send(copy.outgoing()).await;
                    Ok((copy, confirm))
                }
                Ok(Err(limit)) => Err(Ok(Redriven::Limit(limit))),
                Err(error) => Err(Err(error)),
            };
            confirms.push(sent);
        }
        let mut outcomes = Vec::with_capacity(chosen.len());
        let mut confirmed = Vec::with_capacity(chosen.len());
        for (letter, sent) in chosen.iter().zip(confirms) {
            outcomes.push(match sent {
                Ok((copy, confirm)) => {
                    let receipt = self.insist("redrive", &copy, confirm.await).await;
                    let place = || letters.describe(letter.origin);
                    receipt.map(Redriven::Sent).map_err(|error| error.with("letter", place()))
                }
                Err(known) => known,
            });
            if matches!(outcomes.last(), Some(Ok(Redriven::Sent(_)))) {
                confirmed.push(letter.origin);
            }
        }
        if let Err(error) = self.close_sent(letters, &confirmed).await {
            for outcome in outcomes.iter_mut().filter(|outcome| matches!(outcome, Ok(Redriven::Sent(_)))) {
                *outcome = Err(left_open(&error));
            }
        }
        outcomes
    }

    /// Puts a letter with another body in the place of one: appends it, with everything else as it is and where it was made from, and closes
    /// the first when the broker has it. Redriven, it is the message that its group gets.
    ///
    /// # Errors
    /// [`TooLarge`](ErrorKind::TooLarge) for a body beyond the broker's usable payload; whatever the publish comes to after five tries;
    /// the first letter is open then. `operation` is `close` where only the closing failed: then both are open.
    pub async fn edit(&self, letters: &mut BoxLetters, letter: &Letter, body: Bytes) -> Result<Receipt> {
        let place = letters.describe(letter.origin);
        let copy = Copy::corrected(letter, &place, letters.channel(), body);
        crate::publish::check_size(&copy.envelope, self.capabilities().usable_payload())?;
        let first = self.send(copy.outgoing()).await.await;
        let receipt =
            self.insist("edit", &copy, first).await.map_err(|error| error.with("letter", &place))?;
        self.close_sent(letters, &[letter.origin]).await.map_err(|error| left_open(&error))?;
        Ok(receipt)
    }

    /// The copy of a letter; or how often it was redriven, if that is as often as is allowed.
    fn copy_back(
        &self,
        letters: &BoxLetters,
        letter: &Letter,
        how: &Redrive,
    ) -> Result<std::result::Result<Copy, u32>> {
        self.capabilities().require(Capability::GroupAddress, "redrive")?;
        let count = redrives(&letter.envelope);
        if how.limit.is_some_and(|limit| count >= limit) {
            return Ok(Err(count));
        }
        let place = letters.describe(letter.origin);
        let to = how.target(letter).map_err(|error| error.with("letter", &place))?;
        Ok(Ok(Copy::of_letter(letter, &place, to)))
    }

    /// Publishes a copy again until it is confirmed, if that can help.
    async fn insist(
        &self,
        operation: &'static str,
        copy: &Copy,
        first: std::result::Result<Receipt, PublishError>,
    ) -> Result<Receipt> {
        let (mut outcome, mut unknown) = (first, false);
        let mut wait = FIRST_WAIT;
        for _ in 1..TRIES {
            match outcome {
                // an earlier try of this very copy may have been stored: then the broker knows it by that
                Ok(receipt) if !receipt.duplicate || unknown => return Ok(receipt),
                Ok(_) => break,
                Err(PublishError::Unknown(_)) => unknown = true,
                Err(PublishError::Failed(error)) if !error.is_temporary() => return Err(error),
                Err(PublishError::Failed(_)) => {}
            }
            self.env().sleep(wait).await;
            wait *= 2;
            outcome = self.send(copy.outgoing()).await.await;
        }
        match outcome {
            Ok(receipt) if !receipt.duplicate || unknown => Ok(receipt),
            Ok(_) => {
                let message = "the broker took the copy for one that it had already, and stored nothing: an earlier redrive may have been interrupted; the letter is open, try again when the broker's window for doubles has passed";
                Err(Error::new(ErrorKind::Broker, operation, message).temporary(true))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Closes what is confirmed, with some patience: it would be doubled otherwise.
    async fn close_sent(&self, letters: &mut BoxLetters, sent: &[crate::Origin]) -> Result<()> {
        if sent.is_empty() {
            return Ok(());
        }
        let mut wait = FIRST_WAIT;
        let mut closed = letters.close(sent).await;
        for _ in 1..TRIES {
            if closed.as_ref().err().is_none_or(|error| !error.is_temporary()) {
                break;
            }
            self.env().sleep(wait).await;
            wait *= 2;
            closed = letters.close(sent).await;
        }
        closed
    }
}

fn left_open(error: &Error) -> Error {
    let message = format!(
        "the copy is confirmed, but the letter may be open still; sent again, it is there twice: {error}"
    );
    Error::new(error.kind(), "close", message).temporary(error.is_temporary())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Env;
    use crate::delivery::Origin;
    use crate::headers::{HeaderValue, HeadersMut};

    fn letter(redrives: &str) -> Letter {
        let built = Envelope::builder(Bytes::from_static(b"{}")).type_name("order").version(2).key("k");
        let built = built.header("tenant", "acme").build(&Env::seeded(1)).unwrap();
        let mut headers = HeadersMut::from_headers(built.headers());
        for (name, value) in [
            ("postrider-dlq-reason", "exhausted"),
            (REDRIVES, redrives),
            ("postrider-retry-attempts", "3"),
            ("postrider-orig-CC", "elsewhere"),
        ] {
            headers.insert_system(name, value);
        }
        Letter::new(built.with_headers(headers.freeze()), Origin { shard: 0, position: 7 })
    }

    fn billing() -> (Channel, GroupName) {
        (Channel::new("orders").unwrap(), GroupName::new("billing").unwrap())
    }

    #[test]
    fn a_copy_keeps_what_the_message_is_and_drops_what_became_of_it() {
        let source = letter("1");
        let copy = Copy::of_letter(&source, "nats:dlq/7", billing());
        let names: Vec<_> = copy.envelope.headers().iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(names, ["tenant", "postrider-orig-CC", REDRIVES]);
        assert_eq!(redrives(&copy.envelope), 2);
        assert_eq!(copy.envelope.id(), source.envelope.id());
        assert_eq!((copy.envelope.key(), copy.envelope.version()), (Some(&b"k"[..]), 2));
        assert_eq!(&*copy.hop, "redrive/billing/2/nats:dlq/7");
    }

    #[test]
    fn a_corrected_letter_says_what_it_was_made_from_and_keeps_its_failure() {
        let channel = Channel::new("orders.billing.dlq").unwrap();
        let first = Copy::corrected(&letter("1"), "nats:dlq/7", &channel, Bytes::from_static(b"{1}"));
        let again = Letter::new(first.envelope, Origin { shard: 0, position: 9 });
        let copy = Copy::corrected(&again, "nats:dlq/9", &channel, Bytes::from_static(b"{2}"));
        let from: Vec<_> = copy.envelope.headers().get_all(EDITED_FROM).collect();
        assert_eq!(from, [HeaderValue::Text("nats:dlq/9")]);
        assert_eq!(copy.envelope.payload(), &Bytes::from_static(b"{2}"));
        assert_eq!((redrives(&copy.envelope), copy.envelope.headers().get_all(REDRIVES).count()), (1, 1));
        let back = Copy::of_letter(&again, "nats:dlq/9", billing());
        assert_eq!(back.envelope.headers().get(EDITED_FROM), None);
    }
}
