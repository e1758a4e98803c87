//! Publishing from inside a handler, with ids that a re-run repeats.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Declaration, FromIncoming, Incoming, Rejection, RouteContext, RouteNames};
use crate::broker::Broker;
use crate::envelope::Envelope;
use crate::message::Message;
use crate::outcome::OutputContext;
use crate::publish::{Confirmed, Outgoing, PublishError, Publisher};

/// Publishes messages of one type to the route's `publishes` channel while the handler runs, for more than it can return.
///
/// Each id follows from the input's, the handler's name and the number of the call, so that a re-run publishes the same
/// messages again and their consumers' idempotency absorbs them.
#[derive(Debug)]
pub struct Publish<T> {
    broker: Broker,
    cause: Envelope,
    route: Arc<RouteNames>,
    next: AtomicU64,
    of: PhantomData<fn(T)>,
}

impl<T: Message> Publish<T> {
    /// Publishes and waits for the confirm.
    ///
    /// # Errors
    /// [`PublishError`]; by `?` it fails the attempt, which is then retried.
    ///
    /// # Cancel safety
    /// Dropped before it resolves, the message may or may not have been sent; a re-run sends it under the same id.
    pub async fn send(&self, message: &T) -> Confirmed {
        let index = self.next.fetch_add(1, Relaxed);
        let envelope =
            OutputContext::new(self.broker.env(), &self.cause, &self.route.group, &self.route.handler)
                .envelope(message, "published", index)
                .map_err(PublishError::Failed)?;
        // start-up refuses a route that publishes without a channel
        let channel = self.route.publishes.as_deref().unwrap_or_default();
        self.broker.send(Outgoing::new(channel, envelope)).await.await
    }
}

impl<T: Message, S: Sync> FromIncoming<S> for Publish<T> {
    fn declare(declaration: &mut Declaration) {
        declaration.publishes = true;
    }

    async fn extract(incoming: &mut Incoming, cx: &RouteContext<S>) -> Result<Self, Rejection> {
        Ok(Self {
            broker: cx.broker().clone(),
            cause: incoming.first.clone(),
            route: Arc::clone(cx.route()),
            next: AtomicU64::new(0),
            of: PhantomData,
        })
    }
}
