//! What handles a message: the trait, plain functions as handlers, and the route that a function carries.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::env::BoxFuture;
use crate::extract::{Declaration, FromIncoming, Incoming, RouteContext};
use crate::outcome::{IntoOutcome, Outcome, OutputContext};
use crate::policy::RouteOptions;
use crate::publish::Publisher;

/// Handles messages. Functions do by themselves; implement it for something that isn't one. It can't settle: the runner does,
/// after everything that the outcome asks for is safe.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    note = "a handler is an async function with up to 8 extractor arguments, or a type that implements `Handler`"
)]
pub trait Handler: Send + Sync + 'static {
    /// One attempt at one message, or at a batch.
    fn handle(&self, incoming: Incoming) -> impl Future<Output = Outcome> + Send;
}

/// The erased twin of [`Handler`]: one plain box a call, which borrows, so that no reference count is touched.
pub(crate) trait DynHandler: Send + Sync {
    fn dyn_handle(&self, incoming: Incoming) -> BoxFuture<'_, Outcome>;
}

impl<H: Handler> DynHandler for H {
    fn dyn_handle(&self, incoming: Incoming) -> BoxFuture<'_, Outcome> {
        Box::pin(self.handle(incoming))
    }
}

/// A function that can handle messages with state `S`. `M` is the tuple of its arguments: never written by a user.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't handle messages with state `{S}`",
    label = "every argument must be a message or an extractor for `{S}`, and the future `Send`",
    note = "put `#[handler]` on the function to see which argument it is"
)]
pub trait Function<S, M>: Send + Sync + 'static {
    /// What it returns.
    type Future: Future + Send;
    /// What its signature says.
    fn declare(declaration: &mut Declaration);
    /// One attempt.
    fn call(&self, incoming: Incoming, cx: &RouteContext<S>) -> impl Future<Output = Outcome> + Send;
}

macro_rules! functions {
    ($($T:ident $M:ident),*) => {
        #[allow(non_snake_case, unused_mut, unused_variables, clippy::allow_attributes)]
        impl<F, Fut, S, $($T, $M,)*> Function<S, ($(($T, $M),)*)> for F
        where
            F: Fn($($T),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output: IntoOutcome> + Send,
            S: Send + Sync + 'static,
            $($T: FromIncoming<S, $M>,)*
        {
            type Future = Fut;

            fn declare(declaration: &mut Declaration) {
                declaration.publishes |= <Fut::Output as IntoOutcome>::PUBLISHES;
                $($T::declare(declaration);)*
            }

            fn call(&self, mut incoming: Incoming, cx: &RouteContext<S>) -> impl Future<Output = Outcome> + Send {
                // not `async fn`: its future has room for the message twice, as argument and as what the body changes
                async move {
                    $(
                        let $T = match $T::extract(&mut incoming, cx).await {
                            Ok(value) => value,
                            Err(rejection) => return rejection.into_outcome(),
                        };
                    )*
                    let returned = (self)($($T),*).await;
                    let mut output = OutputContext::new(cx.broker().env(), &incoming.first, cx.group(), cx.handler());
                    if !incoming.rest.is_empty() || !incoming.rejected.is_empty() {
                        output = output.with_items(incoming.decoded());
                    }
                    let outcome = returned.into_outcome(&output);
                    incoming.merge(outcome)
                }
            }
        }
    };
}

macro_rules! arities {
    ($($done:ident $dm:ident),* $(,)?;) => { functions!($($done $dm),*); };
    ($($done:ident $dm:ident),* $(,)?; $T:ident $M:ident $($rest:tt)*) => {
        functions!($($done $dm),*);
        arities!($($done $dm,)* $T $M; $($rest)*);
    };
}
arities!(; A1 M1 A2 M2 A3 M3 A4 M4 A5 M5 A6 M6 A7 M7 A8 M8);

/// A function with what its arguments draw on.
pub struct FunctionHandler<F, S, M> {
    function: F,
    cx: RouteContext<S>,
    arguments: PhantomData<fn() -> M>,
}

impl<S: Send + Sync + 'static, M: 'static, F: Function<S, M>> Handler for FunctionHandler<F, S, M> {
    fn handle(&self, incoming: Incoming) -> impl Future<Output = Outcome> + Send {
        self.function.call(incoming, &self.cx)
    }
}

/// Options with what handles. Made by [`RouteOptions::handle`].
#[derive(Clone, Debug)]
#[must_use = "a route does nothing until it is added to a router"]
pub struct Route<F> {
    pub(crate) options: RouteOptions,
    pub(crate) function: F,
}

/// The future that a `#[handler]` function returns. It carries the route in its *type*, so that the function stays a function.
#[diagnostic::on_unimplemented(
    message = "this function has no route",
    note = "put `#[handler(channel = \"…\", group = \"…\")]` on it, or write `RouteOptions::new(channel, group).handle(function)`"
)]
pub trait Handling: Future + Send {
    /// The route.
    fn options() -> RouteOptions;
}

/// The route of one function; `#[handler]` implements it.
pub trait RouteInfo {
    /// The route.
    fn options() -> RouteOptions;
}

pin_project_lite::pin_project! {
    /// The future of a `#[handler]` function: the function's own, with the route in its type.
    #[must_use = "futures do nothing unless awaited"]
    pub struct Handled<R, Fut> {
        #[pin]
        future: Fut,
        route: PhantomData<fn() -> R>,
    }
}

/// Puts a route beside a future; `#[handler]` calls it.
pub fn handled<R: RouteInfo, Fut: Future + Send>(future: Fut) -> Handled<R, Fut> {
    Handled { future, route: PhantomData }
}

impl<R, Fut: Future> Future for Handled<R, Fut> {
    type Output = Fut::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Fut::Output> {
        self.project().future.poll(cx)
    }
}

impl<R: RouteInfo, Fut: Future + Send> Handling for Handled<R, Fut> {
    fn options() -> RouteOptions {
        R::options()
    }
}

/// Marks a `#[handler]` function as a route: never written by a user.
#[derive(Debug)]
pub enum ViaFunction {}
/// Marks options with a function as a route: never written by a user.
#[derive(Debug)]
pub enum ViaBuilder {}
/// Marks options with a [`Handler`] as a route: never written by a user.
#[derive(Debug)]
pub enum ViaHandler {}

/// What a router with state `S` takes as a route.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a route for a router with state `{S}`",
    label = "not a `#[handler]` function whose arguments are messages or extractors for `{S}`",
    note = "a message is a type with `#[derive(Message)]`; extractors are `Meta`, `Envelope`, `Envelope<T>`, `Batch<T>`, `DeadLetter<T>`, `Failure`, `Publish<T>`, `Attempt`, `Broker`, `Stop` and `State<T>`",
    note = "`State<T>` needs `Router::with_state(…)`, with a `T` or with a type that has `#[derive(FromRef)]` and a field `T`",
    note = "put `#[handler(channel = \"…\", group = \"…\")]` on the function, or write `RouteOptions::new(channel, group).handle(function)`"
)]
pub trait IntoRoute<S, M> {
    /// What handles.
    type Handler: Handler;
    /// Options, what the signature says, and how the handler is made once the broker is known.
    fn into_route(
        self,
    ) -> (RouteOptions, Declaration, impl FnOnce(RouteContext<S>) -> Self::Handler + Send + 'static);
}

impl<S: Send + Sync + 'static, M: 'static, F: Function<S, M>> IntoRoute<S, (ViaFunction, M)> for F
where
    F::Future: Handling,
{
    type Handler = FunctionHandler<F, S, M>;

    fn into_route(
        self,
    ) -> (RouteOptions, Declaration, impl FnOnce(RouteContext<S>) -> Self::Handler + Send + 'static) {
        <F::Future as Handling>::options().handle(self).into_route()
    }
}

impl<S: Send + Sync + 'static, M: 'static, F: Function<S, M>> IntoRoute<S, (ViaBuilder, M)> for Route<F> {
    type Handler = FunctionHandler<F, S, M>;

    fn into_route(
        self,
    ) -> (RouteOptions, Declaration, impl FnOnce(RouteContext<S>) -> Self::Handler + Send + 'static) {
        let mut declaration = Declaration::default();
        F::declare(&mut declaration);
        let Self { options, function } = self;
        (options, declaration, move |cx| FunctionHandler { function, cx, arguments: PhantomData })
    }
}

impl<S: 'static, H: Handler> IntoRoute<S, ViaHandler> for Route<H> {
    type Handler = H;

    fn into_route(self) -> (RouteOptions, Declaration, impl FnOnce(RouteContext<S>) -> H + Send + 'static) {
        // a handler of the user's own may return outputs; whether it does is known only when it does
        (self.options, Declaration::default(), move |_| self.function)
    }
}
