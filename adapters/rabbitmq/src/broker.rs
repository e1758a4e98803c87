//! A connected RabbitMQ as a broker.

use std::sync::Arc;
use std::time::Instant;

use postrider_core::{
    Adapter, BrokerUrl, Capabilities, Capability, Confirm, Declare, DrainReport, Env, Error, ErrorKind,
    Finding, Health, Inventory, Outgoing, PublishError, Publisher, Result, Scope,
};
use tokio_util::task::TaskTracker;

use crate::config::{QueueType, RabbitmqConfig};
use crate::connection::{Link, Target};
use crate::inventory;
use crate::letters::RabbitmqLetters;
use crate::naming::Naming;
use crate::publisher::Outbox;
use crate::topology::Topology;

/// RabbitMQ, by two connections: one publishes, the other consumes. Clones share them.
#[derive(Clone, Debug)]
pub struct RabbitmqBroker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    env: Env,
    config: RabbitmqConfig,
    publishing: Link,
    consuming: Link,
    capabilities: Capabilities,
    topology: Topology,
    outbox: Outbox,
    /// Tasks of subscriptions that outlive them for a moment: they tell the broker what was settled last.
    tasks: TaskTracker,
    hash: std::hash::RandomState,
}

impl RabbitmqBroker {
    /// Connects.
    ///
    /// # Errors
    /// `Config` for a setting that is wrong, `Connection` or `Timeout` (naming host and port) when nobody answers,
    /// `Unauthorized` when the credentials or the virtual host are refused.
    pub async fn connect(url: &BrokerUrl, config: RabbitmqConfig, env: Env) -> Result<Self> {
        config.check()?;
        let naming = Naming::new(config.tenant.as_deref())?;
        let target = Target::new(url, &config, env.clone())?;
        let publishing = Link::open(target.clone(), "postrider publishing").await?;
        let consuming = Link::open(target, "postrider consuming").await?;
        let mut capabilities = [
            Capability::KeyOrder,
            Capability::PartitionOrder,
            Capability::Partitions,
            Capability::Ephemeral,
            Capability::Delay,
            Capability::GroupAddress,
            Capability::CrashLoops,
            Capability::DurableRetry,
            Capability::Lag,
            Capability::Letters,
            Capability::Durable,
        ]
        .into_iter()
        .fold(Capabilities::new(config.max_payload), Capabilities::with);
        if config.queue_type == QueueType::Quorum {
            capabilities = capabilities.with(Capability::DeliveryCount);
        }
        let outbox =
            Outbox::new(publishing.clone(), naming.clone(), &config, env.clone(), capabilities.clone());
        let topology = Topology::new(naming, &config);
        let (tasks, hash) = (TaskTracker::new(), std::hash::RandomState::new());
        let inner = Inner { env, config, publishing, consuming, capabilities, topology, outbox, tasks, hash };
        Ok(Self(Arc::new(inner)))
    }

    pub(crate) fn environment(&self) -> &Env {
        &self.0.env
    }

    pub(crate) fn config(&self) -> &RabbitmqConfig {
        &self.0.config
    }

    pub(crate) fn consuming(&self) -> &Link {
        &self.0.consuming
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.0.topology
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    pub(crate) fn hash(&self) -> &std::hash::RandomState {
        &self.0.hash
    }

    /// Lets the subscriptions' last words out, then closes the connections.
    async fn end(&self, deadline: Instant) {
        self.0.tasks.close();
        let left = deadline.saturating_duration_since(self.0.env.now());
        tokio::select! {
            () = self.0.tasks.wait() => {}
            () = self.0.env.sleep(left) => {}
        }
        tokio::join!(self.0.publishing.close(), self.0.consuming.close());
    }
}

impl Publisher for RabbitmqBroker {
    fn env(&self) -> &Env {
        self.environment()
    }

    async fn send(&self, message: Outgoing<'_>) -> Confirm {
        self.0.outbox.send(message).await
    }

    fn try_send<'a>(&self, message: Outgoing<'a>) -> std::result::Result<Confirm, Outgoing<'a>> {
        self.0.outbox.try_send(message)
    }

    async fn flush(&self) -> std::result::Result<(), PublishError> {
        self.0.outbox.flush().await
    }

    async fn close(&self, deadline: Instant) -> DrainReport {
        let report = self.0.outbox.close(deadline).await;
        self.end(deadline).await;
        report
    }
}

impl Adapter for RabbitmqBroker {
    type Letters = RabbitmqLetters;

    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    async fn declare(&self, topology: &[Declare]) -> Result<()> {
        let link = self.consuming();
        let (generation, connection) = link.up_within("declare", self.environment(), self.config()).await?;
        link.operation("declare", generation, self.declare_on(&connection, topology)).await
    }

    async fn letters(&self, channel: &postrider_core::Channel) -> Result<RabbitmqLetters> {
        RabbitmqLetters::open(self, channel).await
    }

    /// The worst of the two connections and of what is published.
    fn health(&self) -> Health {
        let all = [self.0.publishing.health(), self.0.consuming.health(), self.0.outbox.health()];
        all.into_iter()
            .reduce(|worst, next| if next.state > worst.state { next } else { worst })
            .unwrap_or_default()
    }

    async fn inventory(&self, scope: &Scope) -> Result<Inventory> {
        inventory::read(self, scope).await
    }

    async fn examine(&self) -> Vec<Finding> {
        inventory::examine(self).await
    }
}

impl RabbitmqBroker {
    async fn declare_on(&self, connection: &lapin::Connection, topology: &[Declare]) -> Result<()> {
        for declare in topology {
            match declare {
                Declare::Channel(channel) => self.topology().channel(connection, channel).await?,
                Declare::DeadLetters(channel) => self.topology().dead_letters(connection, channel).await?,
                Declare::Group(options) if options.group.name().is_some() => {
                    let plan = self.topology().plan(options, 0)?;
                    self.topology().group(connection, &plan).await?;
                }
                Declare::Group(options) => self.topology().channel(connection, &options.channel).await?,
                other => {
                    let message = "the RabbitMQ adapter doesn't know this kind of topology";
                    return Err(Error::new(ErrorKind::Unsupported, "declare", message)
                        .with("topology", format!("{other:?}")));
                }
            }
        }
        Ok(())
    }
}
