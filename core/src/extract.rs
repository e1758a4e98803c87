//! What a handler's arguments may be, and how each is taken out of an incoming message.

mod batch;
mod dead_letter;
mod meta;
mod outputs;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use batch::Batch;
pub use dead_letter::DeadLetter;
pub use meta::Meta;
pub use outputs::Publish;

use crate::broker::Broker;
use crate::envelope::Envelope;
use crate::error::{BoxError, HandlerError};
use crate::message::{DecodeError, Message, decode};
use crate::outcome::Outcome;
use crate::settle::ClaimId;

/// What reaches a handler: messages without the right to settle them. One message and a batch are one type, so that a layer
/// serves both.
#[derive(Debug)]
#[non_exhaustive]
pub struct Incoming {
    /// The message, or the first one of a batch.
    pub first: Envelope,
    /// The rest of a batch.
    pub rest: Vec<Envelope>,
    /// Which attempt this is, from 1; of a batch, the highest.
    pub attempt: u32,
    /// The broker's count of deliveries, of the first message.
    pub deliveries: Option<u32>,
    /// The hold under which the first message was delivered.
    pub claim: ClaimId,
    /// Items of a batch that couldn't be decoded, by index; merged into the outcome afterwards.
    pub(crate) rejected: Vec<(usize, Outcome)>,
}

impl Incoming {
    pub(crate) fn new(
        first: Envelope,
        rest: Vec<Envelope>,
        attempt: u32,
        deliveries: Option<u32>,
        claim: ClaimId,
    ) -> Self {
        Self { first, rest, attempt, deliveries, claim, rejected: Vec::new() }
    }

    /// All messages: one, or those of the batch.
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// How many messages.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        1 + self.rest.len()
    }
}

/// What a route is, for those who run inside it.
#[derive(Debug)]
pub(crate) struct RouteNames {
    pub(crate) channel: String,
    pub(crate) group: String,
    pub(crate) handler: String,
    pub(crate) publishes: Option<String>,
}

/// What an extractor may draw on besides the message.
#[derive(Debug)]
pub struct RouteContext<S> {
    state: S,
    broker: Broker,
    route: Arc<RouteNames>,
    stop: CancellationToken,
}

impl<S> RouteContext<S> {
    pub(crate) fn new(state: S, broker: Broker, route: Arc<RouteNames>, stop: CancellationToken) -> Self {
        Self { state, broker, route, stop }
    }

    /// The router's state.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// The broker that the route runs on.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The channel that the route reads.
    pub fn channel(&self) -> &str {
        &self.route.channel
    }

    /// The group that the route reads for.
    pub fn group(&self) -> &str {
        &self.route.group
    }

    /// The handler's name.
    pub fn handler(&self) -> &str {
        &self.route.handler
    }

    pub(crate) fn route(&self) -> &Arc<RouteNames> {
        &self.route
    }
}

/// What a handler's signature says, for the checks at start-up and for `describe`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Declaration {
    /// The message types that it takes.
    pub types: Vec<&'static str>,
    /// Whether it takes them in batches.
    pub batch: bool,
    /// Whether it publishes.
    pub publishes: bool,
}

/// Why an argument could not be extracted. By `?` from any error: retried, unless marked permanent.
#[derive(Debug)]
pub struct Rejection(Outcome);

impl Rejection {
    pub(crate) fn into_outcome(self) -> Outcome {
        self.0
    }
}

impl<E: Into<HandlerError>> From<E> for Rejection {
    fn from(error: E) -> Self {
        Self(Outcome::failed(BoxError::from(error.into())))
    }
}

fn undecodable(error: DecodeError) -> Rejection {
    Rejection(error.into())
}

/// Marks the extraction of a message: never written by a user.
#[derive(Debug)]
pub enum ViaMessage {}
/// Marks every other extraction: never written by a user.
#[derive(Debug)]
pub enum ViaParts {}

/// A type that a handler may take. `S` is the router's state; `M` tells messages from everything else and is never written.
///
/// ```
/// use postrider_core::{FromIncoming, HandlerError, Incoming, Rejection, RouteContext};
/// /// Who the message is for, from a header.
/// struct Tenant(String);
/// impl<S: Sync> FromIncoming<S> for Tenant {
///     async fn extract(incoming: &mut Incoming, _: &RouteContext<S>) -> Result<Self, Rejection> {
///         let tenant = incoming.first.headers().get("tenant").and_then(|v| v.as_text());
///         Ok(Tenant(tenant.ok_or_else(|| HandlerError::msg("no tenant"))?.into()))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a handler can't take an argument of type `{Self}`",
    label = "neither a message nor an extractor for a router with state `{S}`",
    note = "a message needs `#[derive(Message)]`; `State<T>` needs `T: FromRef<{S}>`: give the router its state with `Router::with_state(…)`"
)]
pub trait FromIncoming<S, M = ViaParts>: Sized + Send {
    /// Adds what this argument says of the handler.
    fn declare(_: &mut Declaration) {}

    /// Takes the argument.
    ///
    /// # Errors
    /// [`Rejection`]: the attempt fails as if the handler had returned the error.
    fn extract(
        incoming: &mut Incoming,
        cx: &RouteContext<S>,
    ) -> impl Future<Output = Result<Self, Rejection>> + Send;
}

#[diagnostic::do_not_recommend]
impl<T: Message, S: Sync> FromIncoming<S, ViaMessage> for T {
    fn declare(declaration: &mut Declaration) {
        declaration.types.push(T::NAME);
    }

    async fn extract(incoming: &mut Incoming, _: &RouteContext<S>) -> Result<Self, Rejection> {
        decode(&incoming.first).map_err(undecodable)
    }
}

/// The envelope as it came, body undecoded.
impl<S: Sync> FromIncoming<S> for Envelope {
    async fn extract(incoming: &mut Incoming, _: &RouteContext<S>) -> Result<Self, Rejection> {
        Ok(incoming.first.clone())
    }
}

/// The envelope with its message.
impl<T: Message, S: Sync> FromIncoming<S> for Envelope<T> {
    fn declare(declaration: &mut Declaration) {
        declaration.types.push(T::NAME);
    }

    async fn extract(incoming: &mut Incoming, _: &RouteContext<S>) -> Result<Self, Rejection> {
        let message = decode(&incoming.first).map_err(undecodable)?;
        Ok(incoming.first.clone().map(|_| message))
    }
}

/// A part of the router's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State<T>(pub T);

/// A type that can be taken out of a router's state `S`. Derive it on the state: `#[derive(FromRef)]`.
#[diagnostic::on_unimplemented(
    message = "the router's state `{S}` has no `{Self}`",
    note = "give the router a state with `Router::with_state(…)`; for a part of it, put `#[derive(FromRef)]` on the state"
)]
pub trait FromRef<S> {
    /// The part.
    fn from_ref(state: &S) -> Self;
}

impl<T: Clone> FromRef<T> for T {
    fn from_ref(state: &T) -> T {
        state.clone()
    }
}

impl<S: Sync, T: FromRef<S> + Send> FromIncoming<S> for State<T> {
    async fn extract(_: &mut Incoming, cx: &RouteContext<S>) -> Result<Self, Rejection> {
        Ok(Self(T::from_ref(&cx.state)))
    }
}

/// Which attempt this is, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt(pub u32);

impl<S: Sync> FromIncoming<S> for Attempt {
    async fn extract(incoming: &mut Incoming, _: &RouteContext<S>) -> Result<Self, Rejection> {
        Ok(Self(incoming.attempt))
    }
}

/// The broker that the route runs on.
impl<S: Sync> FromIncoming<S> for Broker {
    async fn extract(_: &mut Incoming, cx: &RouteContext<S>) -> Result<Self, Rejection> {
        Ok(cx.broker.clone())
    }
}

/// Tells a long handler that the service is stopping.
#[derive(Clone, Debug)]
pub struct Stop(CancellationToken);

impl Stop {
    /// Whether the service is stopping.
    pub fn is_stopping(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves when the service begins to stop; the handler then has until the deadline.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn stopping(&self) {
        self.0.cancelled().await;
    }
}

impl<S: Sync> FromIncoming<S> for Stop {
    async fn extract(_: &mut Incoming, cx: &RouteContext<S>) -> Result<Self, Rejection> {
        Ok(Self(cx.stop.clone()))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
