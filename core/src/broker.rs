//! An adapter as a whole, and [`Broker`]: the one handle that programs hold, whatever is behind it.

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use crate::address::Channel;
use crate::capability::{Capabilities, Capability};
use crate::delivery::Delivery;
use crate::env::{BoxFuture, Env};
use crate::error::Result;
use crate::inventory::{Finding, Inventory, Scope};
use crate::letters::{BoxLetters, Letters};
use crate::publish::{Confirm, DrainReport, Outgoing, PublishError, Publisher};
use crate::runtime_guard::OnRuntime;
use crate::settle::ClaimId;
use crate::subscribe::{Control, Health, Signal, SubscribeOptions, Subscriber, Subscription};

/// Something that must exist at the broker before it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Declare {
    /// A channel that is published to.
    Channel(Channel),
    /// A group with the channel that it reads.
    Group(SubscribeOptions),
    /// A dead-letter channel, which always has a place where its messages stay.
    DeadLetters(Channel),
}

/// What an adapter is: both halves, and what it says of itself.
pub trait Adapter: Publisher + Subscriber {
    /// How it hands out dead letters; [`NoLetters`](crate::NoLetters) where it doesn't.
    type Letters: Letters;

    /// The adapter's name: `memory`, `nats`, `kafka`, `rabbitmq`.
    fn name(&self) -> &'static str;

    /// What this broker can do.
    fn capabilities(&self) -> &Capabilities;

    /// Makes sure that all of these exist: creates what is missing (never alters), or only checks, as configured.
    ///
    /// # Errors
    /// `Mismatch` with what was expected and what was found; `NotFound` where nothing may be created.
    fn declare(&self, topology: &[Declare]) -> impl Future<Output = Result<()>> + Send;

    /// Opens a dead-letter channel, to read and close its letters. Asked only where
    /// [`Capability::Letters`](crate::Capability::Letters) is declared.
    ///
    /// # Errors
    /// `NotFound` where there is no such channel.
    fn letters(&self, channel: &Channel) -> impl Future<Output = Result<Self::Letters>> + Send;

    /// How the connection is.
    fn health(&self) -> Health;

    /// What stands at the broker; [`Broker::inventory`] has checked the capability.
    ///
    /// # Errors
    /// A lost connection, or a missing permission.
    fn inventory(&self, scope: &Scope) -> impl Future<Output = Result<Inventory>> + Send;

    /// Looks at the server and at what this connection may do there, changing nothing.
    fn examine(&self) -> impl Future<Output = Vec<Finding>> + Send;
}

/// A connected broker. Clones share the connection.
#[derive(Clone)]
pub struct Broker(Arc<dyn DynAdapter>);

impl Broker {
    /// Erases an adapter.
    pub fn new(adapter: impl Adapter) -> Self {
        Self(Arc::new(adapter))
    }

    /// Erases an adapter whose connection lives on the present tokio runtime. When that runtime has ended, each call fails at once with
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed), the health is down, and [`close`](Publisher::close) resolves at once.
    pub fn on_runtime(adapter: impl Adapter) -> Self {
        Self::new(OnRuntime::new(adapter))
    }

    /// The adapter's name: `memory`, `nats`, `kafka`, `rabbitmq`.
    pub fn name(&self) -> &'static str {
        self.0.dyn_name()
    }

    /// What this broker can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.0.dyn_capabilities()
    }

    /// How the connection is.
    pub fn health(&self) -> Health {
        self.0.dyn_health()
    }

    /// Declares a channel, for a process that only publishes. (A router declares what its routes need.)
    ///
    /// # Errors
    /// A bad name, or topology at the broker that differs.
    pub async fn declare(&self, channel: &str) -> Result<()> {
        self.declare_all(&[Declare::Channel(Channel::new(channel)?)]).await
    }

    /// Declares all of these.
    ///
    /// # Errors
    /// See [`Adapter::declare`].
    pub async fn declare_all(&self, topology: &[Declare]) -> Result<()> {
        self.0.dyn_declare(topology).await
    }

    /// What stands at the broker. Nothing is created or altered, and what isn't there is left out.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) before any I/O for [`Scope::Everything`] without
    /// [`Capability::Inventory`]; a lost connection, or a missing permission.
    pub async fn inventory(&self, scope: &Scope) -> Result<Inventory> {
        if *scope == Scope::Everything {
            self.capabilities().require(Capability::Inventory, "inventory")?;
        }
        self.0.dyn_inventory(scope).await
    }

    /// Looks at the server and at what this connection may do there, changing nothing: one finding for each thing that was tried.
    pub async fn examine(&self) -> Vec<Finding> {
        self.0.dyn_examine().await
    }

    /// Opens a dead-letter channel, to read its open letters from the oldest on, and to close them. Groups are not disturbed.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) before any I/O without [`Capability::Letters`]; a bad name; `NotFound` where
    /// there is no such channel.
    pub async fn letters(&self, channel: &str) -> Result<BoxLetters> {
        self.capabilities().require(Capability::Letters, "letters")?;
        self.0.dyn_letters(&Channel::new(channel)?).await
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Broker").field(&self.name()).finish()
    }
}

impl Publisher for Broker {
    fn env(&self) -> &Env {
        self.0.dyn_env()
    }

    #[expect(
        clippy::manual_async_fn,
        clippy::async_yields_async,
        reason = "the future of an `async fn` has room for its argument twice (rust-lang/rust#62958), and is copied by who awaits it"
    )]
    fn send(&self, message: Outgoing<'_>) -> impl Future<Output = Confirm> + Send {
        async move {
            // who publishes in a loop, and never has to wait, would leave no turn to those whom this wakes
            tokio::task::coop::consume_budget().await;
            let waiting = match self.0.dyn_try_send(message) {
                Ok(confirm) => return confirm, // room, as nearly always: no box
                Err(message) => self.0.dyn_send(message),
            };
            waiting.await
        }
    }

    fn try_send<'a>(&self, message: Outgoing<'a>) -> std::result::Result<Confirm, Outgoing<'a>> {
        self.0.dyn_try_send(message)
    }

    async fn flush(&self) -> Result<(), PublishError> {
        self.0.dyn_flush().await
    }

    async fn close(&self, deadline: Instant) -> DrainReport {
        self.0.dyn_close(deadline).await
    }
}

impl Subscriber for Broker {
    type Subscription = BoxSubscription;

    async fn subscribe(&self, options: &SubscribeOptions) -> Result<BoxSubscription> {
        self.0.dyn_subscribe(options).await
    }
}

/// Any adapter's subscription.
pub struct BoxSubscription(Box<dyn DynSubscription>);

impl Subscription for BoxSubscription {
    async fn receive(&mut self, max: NonZeroUsize, into: &mut Vec<Delivery>) -> Result<Signal> {
        self.0.dyn_receive(max, into).await
    }

    async fn release(&mut self, claims: &[ClaimId]) -> Result<()> {
        self.0.dyn_release(claims).await
    }

    async fn close(&mut self) -> Result<()> {
        self.0.dyn_close().await
    }

    fn control(&self) -> Arc<dyn Control> {
        self.0.dyn_control()
    }
}

/// The erased twin of [`Adapter`]. Its names differ, because the blanket implementation puts both on every adapter.
trait DynAdapter: Send + Sync {
    fn dyn_name(&self) -> &'static str;
    fn dyn_capabilities(&self) -> &Capabilities;
    fn dyn_health(&self) -> Health;
    fn dyn_env(&self) -> &Env;
    #[expect(clippy::result_large_err, reason = "the message is given back, not an error made")]
    fn dyn_try_send<'a>(&self, message: Outgoing<'a>) -> Result<Confirm, Outgoing<'a>>;
    fn dyn_send<'a>(&'a self, message: Outgoing<'a>) -> BoxFuture<'a, Confirm>;
    fn dyn_flush(&self) -> BoxFuture<'_, Result<(), PublishError>>;
    fn dyn_close(&self, deadline: Instant) -> BoxFuture<'_, DrainReport>;
    fn dyn_declare<'a>(&'a self, topology: &'a [Declare]) -> BoxFuture<'a, Result<()>>;
    fn dyn_subscribe<'a>(&'a self, options: &'a SubscribeOptions) -> BoxFuture<'a, Result<BoxSubscription>>;
    fn dyn_inventory<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Inventory>>;
    fn dyn_examine(&self) -> BoxFuture<'_, Vec<Finding>>;
    fn dyn_letters<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<BoxLetters>>;
}

impl<A: Adapter> DynAdapter for A {
    fn dyn_name(&self) -> &'static str {
        self.name()
    }
    fn dyn_capabilities(&self) -> &Capabilities {
        self.capabilities()
    }
    fn dyn_health(&self) -> Health {
        self.health()
    }
    fn dyn_env(&self) -> &Env {
        self.env()
    }
    fn dyn_try_send<'a>(&self, message: Outgoing<'a>) -> Result<Confirm, Outgoing<'a>> {
        self.try_send(message)
    }
    fn dyn_send<'a>(&'a self, message: Outgoing<'a>) -> BoxFuture<'a, Confirm> {
        Box::pin(self.send(message))
    }
    fn dyn_flush(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(self.flush())
    }
    fn dyn_close(&self, deadline: Instant) -> BoxFuture<'_, DrainReport> {
        Box::pin(self.close(deadline))
    }
    fn dyn_declare<'a>(&'a self, topology: &'a [Declare]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.declare(topology))
    }
    fn dyn_subscribe<'a>(&'a self, options: &'a SubscribeOptions) -> BoxFuture<'a, Result<BoxSubscription>> {
        Box::pin(async move { Ok(BoxSubscription(Box::new(self.subscribe(options).await?))) })
    }
    fn dyn_inventory<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Inventory>> {
        Box::pin(self.inventory(scope))
    }
    fn dyn_examine(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(self.examine())
    }

    fn dyn_letters<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<BoxLetters>> {
        Box::pin(async move { Ok(BoxLetters::new(channel.clone(), self.letters(channel).await?)) })
    }
}

trait DynSubscription: Send {
    fn dyn_receive<'a>(
        &'a mut self,
        max: NonZeroUsize,
        into: &'a mut Vec<Delivery>,
    ) -> BoxFuture<'a, Result<Signal>>;
    fn dyn_release<'a>(&'a mut self, claims: &'a [ClaimId]) -> BoxFuture<'a, Result<()>>;
    fn dyn_close(&mut self) -> BoxFuture<'_, Result<()>>;
    fn dyn_control(&self) -> Arc<dyn Control>;
}

impl<T: Subscription> DynSubscription for T {
    fn dyn_receive<'a>(
        &'a mut self,
        max: NonZeroUsize,
        into: &'a mut Vec<Delivery>,
    ) -> BoxFuture<'a, Result<Signal>> {
        Box::pin(self.receive(max, into))
    }
    fn dyn_release<'a>(&'a mut self, claims: &'a [ClaimId]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.release(claims))
    }
    fn dyn_close(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.close())
    }
    fn dyn_control(&self) -> Arc<dyn Control> {
        self.control()
    }
}
