//! What goes around every attempt: a user's own layers. The order of the built-in policies is the runner's.

use std::future::Future;

use crate::extract::Incoming;
use crate::handler::Handler;
use crate::outcome::Outcome;

/// Goes around a handler: before, after, instead of, for one message and for batches alike.
///
/// ```
/// use postrider_core::{Handler, Incoming, Layer, Outcome};
/// #[derive(Clone)]
/// struct Timed;
/// impl Layer for Timed {
///     async fn call<H: Handler>(&self, incoming: Incoming, next: &H) -> Outcome {
///         let (began, messages) = (std::time::Instant::now(), incoming.len());
///         let outcome = next.handle(incoming).await;
///         println!("{messages} in {:?}", began.elapsed());
///         outcome
///     }
/// }
/// ```
pub trait Layer: Clone + Send + Sync + 'static {
    /// Calls `next`, or doesn't.
    fn call<H: Handler>(&self, incoming: Incoming, next: &H) -> impl Future<Output = Outcome> + Send;
}

/// A handler with a layer around it.
#[derive(Clone, Debug)]
pub struct Layered<L, H> {
    layer: L,
    inner: H,
}

impl<L: Layer, H: Handler> Handler for Layered<L, H> {
    fn handle(&self, incoming: Incoming) -> impl Future<Output = Outcome> + Send {
        self.layer.call(incoming, &self.inner)
    }
}

/// The layers of a router, composed by value when a route is built.
pub trait Stack: Clone + Send + Sync + 'static {
    /// The handler inside all layers.
    fn wrap<H: Handler>(self, inner: H) -> impl Handler;
}

impl Stack for () {
    fn wrap<H: Handler>(self, inner: H) -> impl Handler {
        inner
    }
}

impl<Outer: Stack, L: Layer> Stack for (Outer, L) {
    fn wrap<H: Handler>(self, inner: H) -> impl Handler {
        self.0.wrap(Layered { layer: self.1, inner })
    }
}
