//! A connected NATS server as a broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use postrider_core::{
    Adapter, BrokerUrl, Capabilities, Capability, Confirm, Declare, DrainReport, Env, Error, ErrorKind,
    Finding, Health, Inventory, Outgoing, PublishError, Publisher, Result, Scope,
};
use tokio_util::task::TaskTracker;

use crate::config::NatsConfig;
use crate::connection::Connection;
use crate::inventory;
use crate::letters::NatsLetters;
use crate::naming::Naming;
use crate::publisher::Outbox;
use crate::topology::{DUPLICATE_WINDOW, Topology};

/// What is left for headers within the server's bound on a message: the user's, and those of a dead letter.
const HEADER_ROOM: usize = 96 * 1024;

/// A NATS server with JetStream. Clones share the connection.
#[derive(Clone, Debug)]
pub struct NatsBroker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    env: Env,
    config: NatsConfig,
    connection: Connection,
    capabilities: Capabilities,
    topology: Topology,
    outbox: Outbox,
    /// Tasks of subscriptions that outlive them for a moment: they tell the server what was settled last.
    tasks: TaskTracker,
    hash: std::hash::RandomState,
}

impl NatsBroker {
    /// Connects.
    ///
    /// # Errors
    /// `Config` for a setting that is wrong, `Connection` or `Timeout` (naming host and port) when nobody answers,
    /// `Unauthorized` when the credentials are refused, `Unsupported` when JetStream is off.
    pub async fn connect(url: &BrokerUrl, config: NatsConfig, env: Env) -> Result<Self> {
        config.check()?;
        let naming = Naming::new(config.tenant.as_deref())?;
        let connection = Connection::open(url, &config, &env).await?;
        let mut js = jetstream::new(connection.client.clone());
        js.set_timeout(Duration::from_secs(5));
        js.query_account().await.map_err(|e| {
            let message = "the server has no JetStream for this account; start it with `-js`, or enable it for the account";
            Error::new(ErrorKind::Unsupported, "connect", message).with("address", url).because(e)
        })?;
        let largest = connection.client.max_payload().saturating_sub(HEADER_ROOM);
        let usable = config.max_payload.min(largest);
        let schedules = connection.client.is_server_compatible(2, 12, 0);
        let mut capabilities = [
            Capability::KeyOrder,
            Capability::PartitionOrder,
            Capability::Partitions,
            Capability::Ephemeral,
            Capability::Replay,
            Capability::StartTime,
            Capability::Delay,
            Capability::GroupAddress,
            Capability::CrashLoops,
            Capability::DeliveryCount,
            Capability::Lag,
            Capability::Letters,
            Capability::Durable,
            Capability::Inventory,
        ]
        .into_iter()
        .fold(Capabilities::new(usable).with_dedupe(DUPLICATE_WINDOW), Capabilities::with);
        if schedules {
            capabilities = capabilities.with(Capability::DurableRetry);
        }
        let topology = Topology::new(js, connection.client.clone(), naming, &config, schedules);
        let outbox =
            Outbox::open(connection.clone(), topology.clone(), &config, env.clone(), capabilities.clone())
                .await?;
        let (tasks, hash) = (TaskTracker::new(), std::hash::RandomState::new());
        Ok(Self(Arc::new(Inner { env, config, connection, capabilities, topology, outbox, tasks, hash })))
    }

    pub(crate) fn environment(&self) -> &Env {
        &self.0.env
    }

    pub(crate) fn config(&self) -> &NatsConfig {
        &self.0.config
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.0.connection
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

    /// Lets the subscriptions' last words out, then closes the connection.
    pub(crate) async fn end(&self, deadline: Instant) {
        self.0.tasks.close();
        let left = deadline.saturating_duration_since(self.0.env.now());
        tokio::select! {
            () = self.0.tasks.wait() => {}
            () = self.0.env.sleep(left) => {}
        }
        // a client that is closed already says so; that is what was wanted
        let _ = self.0.connection.client.drain().await;
    }
}

impl Publisher for NatsBroker {
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

impl Adapter for NatsBroker {
    type Letters = NatsLetters;

    fn name(&self) -> &'static str {
        "nats"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    async fn declare(&self, topology: &[Declare]) -> Result<()> {
        for declare in topology {
            match declare {
                Declare::Channel(channel) | Declare::DeadLetters(channel) => {
                    self.topology().channel(channel).await?;
                }
                Declare::Group(options) => {
                    self.topology().channel(&options.channel).await?;
                    if options.group.name().is_some() {
                        let plans = self.topology().plans(options, "")?;
                        self.topology().group(options, &plans).await?;
                    }
                }
                other => {
                    let message = "the NATS adapter doesn't know this kind of topology";
                    return Err(Error::new(ErrorKind::Unsupported, "declare", message)
                        .with("topology", format!("{other:?}")));
                }
            }
        }
        Ok(())
    }

    async fn letters(&self, channel: &postrider_core::Channel) -> Result<NatsLetters> {
        NatsLetters::open(self, channel).await
    }

    fn health(&self) -> Health {
        self.0.connection.health()
    }

    async fn inventory(&self, scope: &Scope) -> Result<Inventory> {
        inventory::read(self, scope).await
    }

    async fn examine(&self) -> Vec<Finding> {
        inventory::examine(self).await
    }
}
