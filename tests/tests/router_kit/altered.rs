//! The embedded broker, but for what a test makes different.

use std::time::Instant;

use postrider::memory::{MemoryBroker, MemorySubscription};
use postrider::{
    Adapter, Capabilities, Channel, Confirm, Declare, DrainReport, Env, Finding, Health, Inventory, Outgoing,
    PublishError, Publisher, Result, Scope, SubscribeOptions, Subscriber, Subscription,
};

/// What is different.
pub(crate) trait Difference: Send + Sync + 'static {
    type Subscription: Subscription;

    /// What takes the place of a subscription.
    fn subscription(&self, inner: MemorySubscription) -> Self::Subscription;

    /// What takes the place of a confirm.
    fn confirm(&self, known: Confirm) -> Confirm {
        known
    }
}

/// The broker with that difference.
#[derive(Clone, Debug)]
pub(crate) struct Altered<D> {
    pub(crate) inner: MemoryBroker,
    pub(crate) difference: D,
}

impl<D: Difference> Publisher for Altered<D> {
    fn env(&self) -> &Env {
        self.inner.env()
    }

    async fn send(&self, message: Outgoing<'_>) -> Confirm {
        self.difference.confirm(self.inner.send(message).await)
    }

    fn try_send<'a>(&self, message: Outgoing<'a>) -> std::result::Result<Confirm, Outgoing<'a>> {
        self.inner.try_send(message).map(|confirm| self.difference.confirm(confirm))
    }

    async fn flush(&self) -> std::result::Result<(), PublishError> {
        self.inner.flush().await
    }

    async fn close(&self, deadline: Instant) -> DrainReport {
        self.inner.close(deadline).await
    }
}

impl<D: Difference> Subscriber for Altered<D> {
    type Subscription = D::Subscription;

    async fn subscribe(&self, options: &SubscribeOptions) -> Result<D::Subscription> {
        Ok(self.difference.subscription(self.inner.subscribe(options).await?))
    }
}

impl<D: Difference> Adapter for Altered<D> {
    type Letters = <MemoryBroker as Adapter>::Letters;

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn declare(&self, topology: &[Declare]) -> Result<()> {
        self.inner.declare(topology).await
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn letters(&self, channel: &Channel) -> Result<Self::Letters> {
        self.inner.letters(channel).await
    }

    async fn inventory(&self, scope: &Scope) -> Result<Inventory> {
        self.inner.inventory(scope).await
    }

    async fn examine(&self) -> Vec<Finding> {
        self.inner.examine().await
    }
}
