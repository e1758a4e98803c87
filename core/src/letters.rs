//! Dead letters as something to be worked on: read, told apart, closed. Sending one back to its group is `redrive`'s.

mod copy;
mod failure;
mod fit;

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;

pub use failure::Failure;
pub use fit::fit_copy;

pub(crate) use copy::{
    EDITED_FROM, MAX_DEPTH, MAX_VALUE, PREFIX, REASON, REDRIVES, RETRY_PREFIX, copied, cut, depth, keep_id,
    redrives,
};

use crate::address::Channel;
use crate::delivery::Origin;
use crate::env::BoxFuture;
use crate::envelope::Envelope;
use crate::error::Result;

/// A dead letter that is open: nobody has closed it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Letter {
    /// The message, with what is said of its failure in its headers: see [`Failure::of`].
    pub envelope: Envelope,
    /// Where it stands, in the numbering of the [`Letters`] that it was read by.
    pub origin: Origin,
}

impl Letter {
    /// A letter that stands there.
    pub fn new(envelope: Envelope, origin: Origin) -> Self {
        Self { envelope, origin }
    }

    /// What it says of its failure.
    pub fn failure(&self) -> Failure {
        Failure::of(&self.envelope)
    }
}

/// The open letters of one dead-letter channel, from the oldest on. No group is disturbed: each keeps its place.
///
/// A letter is open until it is closed. How a broker keeps that: RabbitMQ acknowledges it in the channel's own queue, NATS deletes it
/// from the stream, Kafka writes its place into a compacted topic beside the channel's, the embedded broker remembers it.
///
/// Where the broker hands out a letter to one reader at a time (RabbitMQ), what was read and not closed stays with this reader until it
/// [`leave`](Self::leave)s or is dropped; then it goes back to its place. Elsewhere two readers see the same letters.
pub trait Letters: Send + 'static {
    /// Appends up to `max` further open letters, oldest first. Nothing appended: that is all, as of now; a later call looks again.
    ///
    /// # Errors
    /// When the broker can't be asked, or the channel is gone.
    ///
    /// # Cancel safety
    /// What was appended stays in `into`, which the caller owns. A letter taken from the broker meanwhile is open still, and comes to
    /// the next who opens the channel.
    fn read(&mut self, max: NonZeroUsize, into: &mut Vec<Letter>) -> impl Future<Output = Result<()>> + Send;

    /// Closes letters that were read here and not given back. Resolves when the broker has it. Closing what is closed is harmless.
    ///
    /// # Errors
    /// When the broker can't be told. Some may be closed all the same; the others are open.
    fn close(&mut self, letters: &[Origin]) -> impl Future<Output = Result<()>> + Send;

    /// How many are open, those that were read here included. Those that another reader holds (RabbitMQ) are not counted.
    ///
    /// # Errors
    /// When the broker can't be asked.
    fn count(&mut self) -> impl Future<Output = Result<u64>> + Send;

    /// Where a letter that was read here stands, in the broker's words, such as `nats:orders.billing.dlq/17`.
    fn describe(&self, letter: Origin) -> String;

    /// Gives back in order what was read and not closed. What is read afterwards begins with the oldest again.
    ///
    /// # Errors
    /// When the broker can't be told; it will find out by itself.
    fn leave(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// The [`Letters`] of an adapter whose broker doesn't have [`Capability::Letters`](crate::Capability::Letters): there are none.
#[derive(Debug)]
pub enum NoLetters {}

impl Letters for NoLetters {
    async fn read(&mut self, _: NonZeroUsize, _: &mut Vec<Letter>) -> Result<()> {
        match *self {}
    }

    async fn close(&mut self, _: &[Origin]) -> Result<()> {
        match *self {}
    }

    async fn count(&mut self) -> Result<u64> {
        match *self {}
    }

    fn describe(&self, _: Origin) -> String {
        match *self {}
    }

    async fn leave(&mut self) -> Result<()> {
        match *self {}
    }
}

/// Any adapter's letters. [`Broker::letters`](crate::Broker::letters) opens them.
pub struct BoxLetters {
    channel: Channel,
    letters: Box<dyn DynLetters>,
}

impl BoxLetters {
    pub(crate) fn new(channel: Channel, letters: impl Letters) -> Self {
        Self { channel, letters: Box::new(letters) }
    }

    /// The dead-letter channel.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }
}

impl fmt::Debug for BoxLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BoxLetters").field(&self.channel).finish()
    }
}

impl Letters for BoxLetters {
    async fn read(&mut self, max: NonZeroUsize, into: &mut Vec<Letter>) -> Result<()> {
        self.letters.dyn_read(max, into).await
    }

    async fn close(&mut self, letters: &[Origin]) -> Result<()> {
        self.letters.dyn_close(letters).await
    }

    async fn count(&mut self) -> Result<u64> {
        self.letters.dyn_count().await
    }

    fn describe(&self, letter: Origin) -> String {
        self.letters.dyn_describe(letter)
    }

    async fn leave(&mut self) -> Result<()> {
        self.letters.dyn_leave().await
    }
}

/// The erased twin of [`Letters`].
trait DynLetters: Send {
    fn dyn_read<'a>(&'a mut self, max: NonZeroUsize, into: &'a mut Vec<Letter>) -> BoxFuture<'a, Result<()>>;
    fn dyn_close<'a>(&'a mut self, letters: &'a [Origin]) -> BoxFuture<'a, Result<()>>;
    fn dyn_count(&mut self) -> BoxFuture<'_, Result<u64>>;
    fn dyn_describe(&self, letter: Origin) -> String;
    fn dyn_leave(&mut self) -> BoxFuture<'_, Result<()>>;
}

impl<T: Letters> DynLetters for T {
    fn dyn_read<'a>(&'a mut self, max: NonZeroUsize, into: &'a mut Vec<Letter>) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.read(max, into))
    }
    fn dyn_close<'a>(&'a mut self, letters: &'a [Origin]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.close(letters))
    }
    fn dyn_count(&mut self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.count())
    }
    fn dyn_describe(&self, letter: Origin) -> String {
        self.describe(letter)
    }
    fn dyn_leave(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.leave())
    }
}
