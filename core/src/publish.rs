//! Publishing: what is sent, what is known about it afterwards. Adapters implement [`Publisher`]; programs use [`PublisherExt`].

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use crate::address::{Address, GroupName};
use crate::capability::{Capabilities, Capability};
use crate::env::{BoxFuture, Env};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind};
use crate::message::{EnvelopeContext, IntoEnvelope};

/// How many unresolved sends may share a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublishOrder {
    /// Any number: full speed. After a lost connection a resend may overtake a later message of the key.
    #[default]
    Pipelined,
    /// One a key: order holds through every fault, at the price of a round trip for each message of a key.
    PerKey,
}

/// How one message is to be sent.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PublishOptions {
    /// How long it may wait for a confirm; the adapter's own (30 s) if not set.
    pub deadline: Option<Duration>,
    /// How many unresolved sends may share its key.
    pub order: PublishOrder,
    /// Which copy of the message this is: empty for a first publish, else as in the wire format (`dlq/GROUP/…`), so that a
    /// broker that drops duplicate ids keeps every copy.
    pub hop: Option<Arc<str>>,
    /// Not to be delivered before this time has passed; the broker keeps it meanwhile. Only towards one group
    /// ([`Address::to_group`]) that reads with [`SubscribeOptions::durable_retry`](crate::SubscribeOptions::durable_retry), and in
    /// the steps of [`RETRY_TIERS`](crate::RETRY_TIERS): what lies between two waits for the longer one.
    pub delay: Option<Duration>,
    /// The broker's own properties, at the caller's risk.
    pub native: Vec<(String, String)>,
}

/// A message on its way out.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outgoing<'a> {
    /// Where to.
    pub address: Address<'a>,
    /// What.
    pub envelope: Envelope,
    /// How.
    pub options: PublishOptions,
}

impl<'a> Outgoing<'a> {
    /// A message with the default options.
    pub fn new(address: impl Into<Address<'a>>, envelope: Envelope) -> Self {
        Self { address: address.into(), envelope, options: PublishOptions::default() }
    }

    /// With these options.
    pub fn with(mut self, options: PublishOptions) -> Self {
        self.options = options;
        self
    }
}

/// The broker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Receipt {
    /// Partition or slot, where the broker tells.
    pub shard: u32,
    /// Offset or sequence, where the broker tells.
    pub position: u64,
    /// The broker knew the id already and stored nothing new.
    pub duplicate: bool,
}

impl Receipt {
    /// A receipt with the broker's coordinates.
    pub fn new(shard: u32, position: u64) -> Self {
        Self { shard, position, duplicate: false }
    }

    /// The same, for a message that the broker had already.
    pub fn duplicate(mut self) -> Self {
        self.duplicate = true;
        self
    }
}

/// A message that isn't confirmed. The difference between the two decides whether sending again may double it.
#[derive(Debug)]
pub enum PublishError {
    /// Certainly not stored: it was never handed over, or the broker refused it.
    Failed(Error),
    /// Handed over without a definite answer: it may or may not be stored.
    Unknown(Error),
}

impl PublishError {
    /// What happened.
    pub fn error(&self) -> &Error {
        match self {
            Self::Failed(error) | Self::Unknown(error) => error,
        }
    }

    /// Whether it may be stored all the same.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error}; the message is not stored"),
            Self::Unknown(error) => write!(f, "{error}; the message may or may not be stored"),
        }
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(self.error())
    }
}

impl From<PublishError> for Error {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Failed(error) => error,
            PublishError::Unknown(error) => error.with("outcome", "unknown, the message may be stored"),
        }
    }
}

/// What became of one send.
pub type Confirmed = Result<Receipt, PublishError>;

/// Where an adapter keeps the sends that it waits for: a token a message, so that a confirm needs no allocation.
pub trait Confirms: Send + Sync + 'static {
    /// The outcome, once; or the waker is kept.
    fn poll_confirm(&self, token: u64, cx: &mut Context<'_>) -> Poll<Confirmed>;
    /// The confirm was dropped unread: a later failure is counted and reported by `flush`.
    fn forget(&self, token: u64);
}

/// Resolves to what became of a send. Dropped unread, a failure is counted and reported by [`Publisher::flush`].
///
/// # Cancel safety
/// Safe: dropping it doesn't take back the send.
#[must_use = "a message is safe only once its confirm says so: await it, or collect it and await it later"]
pub struct Confirm(State);

enum State {
    Ready(Confirmed),
    Tracked(Arc<dyn Confirms>, u64),
    Boxed(BoxFuture<'static, Confirmed>),
    Done,
}

impl Confirm {
    /// The outcome is known already: a refusal, or an embedded broker.
    pub fn ready(outcome: Confirmed) -> Self {
        Self(State::Ready(outcome))
    }

    /// A refusal before anything was sent.
    pub fn failed(error: Error) -> Self {
        Self::ready(Err(PublishError::Failed(error)))
    }

    /// The outcome stands in `confirms` under `token`.
    pub fn tracked(confirms: Arc<dyn Confirms>, token: u64) -> Self {
        Self(State::Tracked(confirms, token))
    }

    /// Whether the outcome is known without a look at the broker's answers.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self.0, State::Ready(_))
    }

    /// The outcome of a future, for clients that box their own.
    pub fn boxed(future: impl Future<Output = Confirmed> + Send + 'static) -> Self {
        Self(State::Boxed(Box::pin(future)))
    }
}

impl Future for Confirm {
    type Output = Confirmed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Confirmed> {
        let outcome = match &mut self.0 {
            State::Tracked(confirms, token) => task::ready!(confirms.poll_confirm(*token, cx)),
            State::Boxed(future) => task::ready!(future.as_mut().poll(cx)),
            State::Ready(_) | State::Done => match std::mem::replace(&mut self.0, State::Done) {
                State::Ready(outcome) => outcome,
                // the contract of `Future`: nobody polls after ready; waiting for ever is the gentlest answer
                _ => return Poll::Pending,
            },
        };
        self.0 = State::Done;
        Poll::Ready(outcome)
    }
}

impl Drop for Confirm {
    fn drop(&mut self) {
        if let State::Tracked(confirms, token) = &self.0 {
            confirms.forget(*token);
        }
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            State::Ready(outcome) => f.debug_tuple("Confirm").field(outcome).finish(),
            _ => f.write_str("Confirm(..)"),
        }
    }
}

/// How a publisher closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Sends that the broker has.
    pub confirmed: u64,
    /// Sends that are certainly not stored.
    pub failed: u64,
    /// Sends without a definite answer.
    pub unknown: u64,
}

/// The publishing half of an adapter.
///
/// `send` never fails by itself: every refusal is a ready [`Confirm`], so there is one place to look and one error type.
pub trait Publisher: Send + Sync + 'static {
    /// Clock and ids.
    fn env(&self) -> &Env;

    /// Waits for room in the publisher's bounded queue, then sends. Unroutable is a failure. Does nothing until it is polled.
    ///
    /// # Cancel safety
    /// Dropped before it resolves, the message is not sent.
    fn send(&self, message: Outgoing<'_>) -> impl Future<Output = Confirm> + Send;

    /// Sends if there is room now, else gives the message back.
    ///
    /// # Errors
    /// The message, when it would have to wait.
    #[expect(clippy::result_large_err, reason = "the message is given back, not an error made")]
    fn try_send<'a>(&self, message: Outgoing<'a>) -> Result<Confirm, Outgoing<'a>>;

    /// Resolves when all sends so far have their outcome.
    ///
    /// # Errors
    /// When a confirm that was dropped unread failed since the last flush; the context says how many.
    ///
    /// # Cancel safety
    /// Safe.
    fn flush(&self) -> impl Future<Output = Result<(), PublishError>> + Send;

    /// Accepts no more, waits until `deadline` for outcomes, and resolves every accepted send by then.
    fn close(&self, deadline: Instant) -> impl Future<Output = DrainReport> + Send;
}

/// What programs call: typed messages in, outcomes back. Implemented for every [`Publisher`].
pub trait PublisherExt: Publisher {
    /// Publishes and waits for the confirm.
    ///
    /// # Errors
    /// [`PublishError::Failed`] or [`PublishError::Unknown`].
    ///
    /// # Cancel safety
    /// Dropped before it resolves, the message may or may not have been sent.
    fn publish<'a>(
        &self,
        to: impl Into<Address<'a>> + Send,
        message: impl IntoEnvelope,
    ) -> impl Future<Output = Confirmed> + Send {
        self.publish_with(to, message, PublishOptions::default())
    }

    /// Publishes with options and waits for the confirm.
    ///
    /// # Errors
    /// [`PublishError::Failed`] or [`PublishError::Unknown`].
    ///
    /// # Cancel safety
    /// Dropped before it resolves, the message may or may not have been sent.
    fn publish_with<'a>(
        &self,
        to: impl Into<Address<'a>> + Send,
        message: impl IntoEnvelope,
        options: PublishOptions,
    ) -> impl Future<Output = Confirmed> + Send {
        // encoded at once: the future holds no `&T`, so `T: Sync` is not asked for
        let made = message.into_envelope(&EnvelopeContext::first(self.env(), self.env().wall_ms()));
        match made {
            Ok(envelope) => {
                self.send(Outgoing { address: to.into(), envelope, options }).flatten().left_future()
            }
            Err(error) => ready(Err(PublishError::Failed(error))).right_future(),
        }
    }

    /// Hands a message over and answers with its [`Confirm`], to be awaited later: pipelining. What can't be encoded is a failed one.
    ///
    /// # Cancel safety
    /// Dropped before it resolves, the message is not sent.
    fn enqueue<'a>(
        &self,
        to: impl Into<Address<'a>> + Send,
        message: impl IntoEnvelope,
    ) -> impl Future<Output = Confirm> + Send {
        let made = message.into_envelope(&EnvelopeContext::first(self.env(), self.env().wall_ms()));
        match made {
            Ok(envelope) => self.send(Outgoing::new(to, envelope)).left_future(),
            Err(error) => ready(Confirm::failed(error)).right_future(),
        }
    }

    /// Publishes all, pipelined, and answers one outcome for each, in order.
    fn publish_all<'a, I: IntoEnvelope>(
        &self,
        to: impl Into<Address<'a>> + Send,
        messages: impl IntoIterator<Item = I>,
    ) -> impl Future<Output = Vec<Confirmed>> + Send {
        let (address, wall_ms) = (to.into(), self.env().wall_ms());
        let cx = EnvelopeContext::first(self.env(), wall_ms);
        let made: Vec<_> = messages.into_iter().map(|message| message.into_envelope(&cx)).collect();
        async move {
            let mut confirms = Vec::with_capacity(made.len());
            for envelope in made {
                confirms.push(match envelope {
                    Ok(envelope) => self.send(Outgoing::new(address, envelope)).await,
                    Err(error) => Confirm::failed(error),
                });
            }
            let mut outcomes = Vec::with_capacity(confirms.len());
            for confirm in confirms {
                outcomes.push(confirm.await);
            }
            outcomes
        }
    }
}

impl<P: Publisher + ?Sized> PublisherExt for P {}

/// Refuses a group's address or a delay that `can` doesn't allow, before any I/O. The channel's name is the adapter's to check.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming the capability; [`ErrorKind::Config`] for a bad group name, or a delay without a group.
pub fn check_address(message: &Outgoing<'_>, can: &Capabilities) -> Result<(), Error> {
    match (message.address.group(), message.options.delay) {
        (None, None) => Ok(()),
        (None, Some(_)) => {
            let text = "only a message to one group can be delayed: send it to `Address::to_group(…)`";
            Err(Error::config("publish", text).with("channel", message.address.channel()))
        }
        (Some(group), delay) => {
            GroupName::new(group)?;
            can.require(Capability::GroupAddress, "publish")?;
            if delay.is_some() { can.require(Capability::DurableRetry, "publish") } else { Ok(()) }
        }
    }
}

/// Refuses what is larger than the broker's usable payload, before any I/O.
///
/// # Errors
/// [`ErrorKind::TooLarge`], with both sizes.
pub fn check_size(envelope: &Envelope, usable: usize) -> Result<(), Error> {
    let size = envelope.payload().len();
    if size <= usable {
        return Ok(());
    }
    let message = format!(
        "the body has {size} bytes, this broker takes {usable} at most; send a reference to it instead"
    );
    Err(Error::new(ErrorKind::TooLarge, "publish", message).with("id", envelope.id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirm_is_small() {
        assert!(size_of::<Confirm>() <= 32, "{}", size_of::<Confirm>());
    }

    #[test]
    fn a_body_is_bounded_from_both_sides() {
        let e = |n: usize| Envelope::builder(vec![0; n].into()).build(&Env::seeded(1)).unwrap();
        assert!(check_size(&e(10), 10).is_ok());
        assert_eq!(check_size(&e(11), 10).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
