//! A dead letter as an argument: its message, and what became of it.

use super::{Declaration, FromIncoming, Incoming, Rejection, RouteContext, undecodable};
use crate::letters::Failure;
use crate::message::{Message, decode};

/// A dead letter with its message, for handlers that read a dead-letter channel.
///
/// A body that is no such `T`, as it may well be where that is why it is a dead letter, is rejected like everywhere: it goes where this
/// route says that its own failures go, and never back to the channel that it came from. A handler for bodies of any kind takes
/// `Envelope` and [`Failure`].
///
/// ```
/// use postrider_core::{DeadLetter, HandlerError, Message, Reason, RouteOptions, codec::Json};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct OrderPlaced { order_id: String }
/// # impl Message for OrderPlaced {
/// #     const NAME: &'static str = "order.placed";
/// #     const VERSION: u32 = 1;
/// #     type Codec = Json;
/// # }
/// async fn call(letter: DeadLetter<OrderPlaced>) -> Result<(), HandlerError> {
///     if letter.failure.reason == Some(Reason::Exhausted) {
///         println!("{}: {}", letter.message.order_id, letter.failure.error.unwrap_or_default());
///     }
///     Ok(())
/// }
/// let route = RouteOptions::new("orders.billing.dlq", "desk").no_dead_letter().handle(call);
/// # let _ = postrider_core::Router::new().route(route);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter<T> {
    /// The message that failed.
    pub message: T,
    /// Why and where.
    pub failure: Failure,
}

impl<T: Message, S: Sync> FromIncoming<S> for DeadLetter<T> {
    fn declare(declaration: &mut Declaration) {
        declaration.types.push(T::NAME);
    }

    async fn extract(incoming: &mut Incoming, _: &RouteContext<S>) -> Result<Self, Rejection> {
        let message = decode(&incoming.first).map_err(undecodable)?;
        Ok(Self { message, failure: Failure::of(&incoming.first) })
    }
}

impl<S: Sync> FromIncoming<S> for Failure {
    async fn extract(incoming: &mut Incoming, _: &RouteContext<S>) -> Result<Self, Rejection> {
        Ok(Self::of(&incoming.first))
    }
}
