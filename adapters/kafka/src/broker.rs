//! A connected Kafka cluster as a broker.

use std::sync::Arc;
use std::time::Instant;

use postrider_core::{
    Adapter, BrokerUrl, Capabilities, Capability, Declare, Env, Error, ErrorKind, Finding, Health, Inventory,
    Result, Scope,
};

use crate::config::KafkaConfig;
use crate::connection::Connection;
use crate::inventory;
use crate::letters::KafkaLetters;
use crate::members::Members;
use crate::naming::Naming;
use crate::publisher::Outbox;
use crate::topology::Topology;

/// A Kafka cluster. Clones share the producing client; each subscription has a client of its own.
#[derive(Clone, Debug)]
pub struct KafkaBroker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    env: Env,
    config: KafkaConfig,
    connection: Connection,
    capabilities: Capabilities,
    topology: Topology,
    outbox: Outbox,
    /// Threads of subscriptions that outlive them for a moment: they write down what was settled last.
    members: Members,
}

impl KafkaBroker {
    /// Connects.
    ///
    /// # Errors
    /// `Config` for a setting that is wrong, `Timeout` (naming host and port) when nobody answers, `Connection` when that is because the
    /// name of a host is unknown, `Unauthorized` when the
    /// credentials are refused, `Unsupported` for TLS without its feature.
    pub async fn connect(url: &BrokerUrl, config: KafkaConfig, env: Env) -> Result<Self> {
        config.check()?;
        let naming = Naming::new(config.tenant.as_deref())?;
        let connection = Connection::open(url, &config, &env).await?;
        let capabilities = [
            Capability::KeyOrder,
            Capability::PartitionOrder,
            Capability::Partitions,
            Capability::Ephemeral,
            Capability::Replay,
            Capability::StartTime,
            Capability::Delay,
            Capability::GroupAddress,
            Capability::CrashLoops,
            Capability::DurableRetry,
            Capability::Seek,
            Capability::Lag,
            Capability::Letters,
            Capability::Gaps,
            Capability::Durable,
            Capability::Inventory,
        ]
        .into_iter()
        .fold(Capabilities::new(config.max_payload), Capabilities::with);
        let outbox =
            Outbox::open(connection.clone(), naming.clone(), &config, env.clone(), capabilities.clone());
        let topology = Topology::new(connection.clone(), naming, &config, env.clone());
        let members = Members::default();
        Ok(Self(Arc::new(Inner { env, config, connection, capabilities, topology, outbox, members })))
    }

    pub(crate) fn environment(&self) -> &Env {
        &self.0.env
    }

    pub(crate) fn config(&self) -> &KafkaConfig {
        &self.0.config
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.0.connection
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.0.topology
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.0.outbox
    }

    pub(crate) fn members(&self) -> &Members {
        &self.0.members
    }

    /// Lets the subscriptions write down what was settled last.
    pub(crate) async fn end(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(self.0.env.now());
        tokio::select! {
            () = self.0.members.ended() => {}
            () = self.0.env.sleep(left) => {}
        }
    }
}

impl Adapter for KafkaBroker {
    type Letters = KafkaLetters;

    fn name(&self) -> &'static str {
        "kafka"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    async fn declare(&self, topology: &[Declare]) -> Result<()> {
        for declare in topology {
            match declare {
                Declare::Channel(channel) => self.topology().channel(channel, None).await?,
                Declare::DeadLetters(channel) => self.topology().dead_letters(channel).await?,
                Declare::Group(options) => {
                    self.topology().channel(&options.channel, options.partitions).await?;
                    if let Some(group) = options.group.name() {
                        self.topology().redrive(&options.channel, group).await?;
                    }
                }
                other => {
                    let message = "the Kafka adapter doesn't know this kind of topology";
                    return Err(Error::new(ErrorKind::Unsupported, "declare", message)
                        .with("topology", format!("{other:?}")));
                }
            }
        }
        Ok(())
    }

    async fn letters(&self, channel: &postrider_core::Channel) -> Result<KafkaLetters> {
        KafkaLetters::open(self, channel).await
    }

    fn health(&self) -> Health {
        if self.is_closed() {
            return Health::down("the broker was closed; connect again");
        }
        self.0.connection.health()
    }

    async fn inventory(&self, scope: &Scope) -> Result<Inventory> {
        inventory::read(self, scope).await
    }

    async fn examine(&self) -> Vec<Finding> {
        inventory::examine(self).await
    }
}
