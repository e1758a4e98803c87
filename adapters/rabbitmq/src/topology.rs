//! Exchanges, queues and bindings: created where they are missing, checked where they are not, never altered.

use std::fmt::Write as _;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};
use postrider_core::{
    Error, ErrorKind, Group, GroupName, KEY_SLOTS, Order, RETRY_TIERS, Result, SubscribeOptions,
};

use crate::config::{DeclareMode, QueueType, RabbitmqConfig};
use crate::error;
use crate::foreign;
use crate::naming::{Naming, partitions};
use crate::strikes::Notes;

/// Stands for "no limit" on dead-letter queues: the brokers before 4.0 take no other word for it, and without any limit those
/// before 4.3 put what is given back behind the others.
pub(crate) const NO_LIMIT: u32 = 2_000_000_000;

/// What is to be there, as configured.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    naming: Naming,
    mode: DeclareMode,
    queue_type: QueueType,
    delivery_limit: u32,
}

/// A group as it stands at the broker.
#[derive(Clone, Debug)]
pub(crate) struct GroupPlan {
    pub(crate) channel: postrider_core::Channel,
    pub(crate) group: Option<GroupName>,
    pub(crate) order: Order,
    /// One a partition.
    pub(crate) queues: Vec<String>,
    /// Says how many partitions there are, and who attends to them.
    pub(crate) marker: Option<String>,
    /// Whether its retries wait at the broker.
    durable_retry: bool,
    /// Its queue is somebody else's.
    foreign: bool,
}

impl GroupPlan {
    fn is_letters(&self) -> bool {
        self.channel.ends_with(".dlq")
    }
}

impl Topology {
    pub(crate) fn new(naming: Naming, config: &RabbitmqConfig) -> Self {
        let RabbitmqConfig { declare, queue_type, delivery_limit, .. } = *config;
        Self { naming, mode: declare, queue_type, delivery_limit }
    }

    pub(crate) fn naming(&self) -> &Naming {
        &self.naming
    }

    /// The plan of a group; `unique` names the queue of an ephemeral one.
    pub(crate) fn plan(&self, options: &SubscribeOptions, unique: u64) -> Result<GroupPlan> {
        let channel = options.channel.clone();
        if let Some(queue) = foreign::queue(options)? {
            let (group, order) = (options.group.name().cloned(), options.order);
            let (queues, durable_retry) = (vec![queue], false);
            return Ok(GroupPlan {
                channel,
                group,
                order,
                queues,
                marker: None,
                durable_retry,
                foreign: true,
            });
        }
        let queues = match &options.group {
            Group::Named(group) => {
                let count = partitions(options.order, options.partitions);
                (0..count).map(|n| self.naming.queue(&channel, group, n, count)).collect::<Result<_>>()?
            }
            Group::Ephemeral => vec![self.naming.ephemeral(&channel, unique)?],
        };
        let group = options.group.name().cloned();
        let marker = group.as_ref().map(|group| self.naming.marker(&channel, group)).transpose()?;
        let durable_retry = options.durable_retry;
        Ok(GroupPlan { channel, group, order: options.order, queues, marker, durable_retry, foreign: false })
    }

    /// Where a group keeps what is known of messages that may end processes; nowhere for an ephemeral one, or in another's queues.
    pub(crate) fn notes(&self, plan: &GroupPlan) -> Result<Option<Notes>> {
        let Some(group) = plan.group.as_ref().filter(|_| !plan.foreign) else {
            return Ok(None);
        };
        let queue = self.naming.strikes(&plan.channel, group)?;
        Ok(Some(Notes::new(queue, self.mode)))
    }

    /// Makes sure of a channel's exchanges.
    pub(crate) async fn channel(&self, connection: &Connection, channel: &str) -> Result<()> {
        if self.mode == DeclareMode::None {
            return Ok(());
        }
        self.session(connection).await?.channel(channel).await
    }

    /// Makes sure of a dead-letter channel, and of the queue that it always has.
    pub(crate) async fn dead_letters(&self, connection: &Connection, channel: &str) -> Result<()> {
        if self.mode == DeclareMode::None {
            return Ok(());
        }
        self.session(connection).await?.dead_letters(channel).await
    }

    /// The queue that a dead-letter channel always has.
    pub(crate) fn letters(&self, channel: &str) -> Result<String> {
        self.naming.exchange(channel)
    }

    /// Makes sure of a group with its channel, and that it was made for the same number of partitions.
    pub(crate) async fn group(&self, connection: &Connection, plan: &GroupPlan) -> Result<()> {
        if plan.group.is_none() {
            // a queue of one's own can't have been made by anybody else
            return self.session(connection).await?.ephemeral(plan).await;
        }
        if self.mode == DeclareMode::None {
            return Ok(());
        }
        if plan.foreign {
            return self.session(connection).await?.foreign(&plan.queues).await;
        }
        self.session(connection).await?.group(connection, plan).await
    }

    async fn session<'a>(&'a self, connection: &Connection) -> Result<Session<'a>> {
        let channel = connection.create_channel().await.map_err(|e| error::of("declare", e))?;
        Ok(Session { topology: self, channel })
    }

    fn queue_arguments(&self, plan: &GroupPlan) -> Result<FieldTable> {
        let mut arguments = FieldTable::default();
        let mut put = |name: &str, value: AMQPValue| {
            arguments.insert(name.into(), value);
        };
        let quorum = self.queue_type == QueueType::Quorum;
        put("x-queue-type", text(if quorum { "quorum" } else { "classic" }));
        if plan.order != Order::None {
            put("x-single-active-consumer", AMQPValue::Boolean(true));
        }
        if plan.is_letters() {
            if quorum {
                put("x-delivery-limit", AMQPValue::LongLongInt(NO_LIMIT.into()));
            }
            return Ok(arguments);
        }
        if let Some(group) = &plan.group {
            let letters = plan.channel.dead_letter(group)?;
            put("x-dead-letter-exchange", text(&self.naming.exchange(&letters)?));
        }
        put("x-overflow", text("reject-publish"));
        if quorum {
            put("x-delivery-limit", AMQPValue::LongLongInt(self.delivery_limit.into()));
            put("x-dead-letter-strategy", text("at-least-once"));
        }
        Ok(arguments)
    }
}

/// One channel for declaring; a refusal closes it.
struct Session<'a> {
    topology: &'a Topology,
    channel: Channel,
}

impl Session<'_> {
    fn naming(&self) -> &Naming {
        &self.topology.naming
    }

    async fn channel(&self, channel: &str) -> Result<()> {
        let (exchange, unslotted) = (self.naming().exchange(channel)?, self.naming().unslotted(channel)?);
        self.exchange(&unslotted, ExchangeKind::Fanout, FieldTable::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("alternate-exchange".into(), text(&unslotted));
        self.exchange(&exchange, ExchangeKind::Direct, arguments).await
    }

    async fn dead_letters(&self, channel: &str) -> Result<()> {
        self.channel(channel).await?;
        let queue = self.naming().exchange(channel)?;
        let mut arguments = FieldTable::default();
        let quorum = self.topology.queue_type == QueueType::Quorum;
        arguments.insert("x-queue-type".into(), text(if quorum { "quorum" } else { "classic" }));
        if quorum {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(NO_LIMIT.into()));
        }
        self.queue(&queue, arguments).await?;
        self.bind(channel, &queue, 0..KEY_SLOTS, true).await?;
        self.done().await
    }

    async fn group(&self, connection: &Connection, plan: &GroupPlan) -> Result<()> {
        let (Some(group), Some(marker)) = (&plan.group, &plan.marker) else {
            return Ok(());
        };
        self.channel(&plan.channel).await?;
        self.marker(connection, plan, group, marker).await?;
        if !plan.is_letters() {
            // where the broker puts what it gives up
            self.dead_letters(&plan.channel.dead_letter(group)?).await?;
        }
        let arguments = self.topology.queue_arguments(plan)?;
        let declared = join_all(plan.queues.iter().map(|queue| self.queue(queue, arguments.clone()))).await;
        // a refusal closes the channel under the others: it is the one that says why
        let refused: Vec<_> = declared.into_iter().filter_map(Result::err).collect();
        let why = refused.iter().position(|error| error.kind() != ErrorKind::Connection).unwrap_or(0);
        if let Some(error) = refused.into_iter().nth(why) {
            return Err(error);
        }
        let count = plan.queues.len() as u32;
        for (partition, queue) in plan.queues.iter().enumerate() {
            let slots = Naming::slots(partition as u32, count);
            self.bind(&plan.channel, queue, slots, partition == 0).await?;
        }
        self.entrance(plan, group).await?;
        self.done().await
    }

    /// Somebody else's queues: they are there, or not.
    async fn foreign(&self, queues: &[String]) -> Result<()> {
        for queue in queues {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let found = self.channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
            found.await.map_err(|e| {
                if !error::is_not_found(&e) {
                    return error::of("declare", e).with("queue", queue);
                }
                let message = "there is no such queue, and one that is named by `queue` is never made; create it, or correct the name";
                Error::new(ErrorKind::NotFound, "declare", message).with("queue", queue).because(e)
            })?;
        }
        Ok(())
    }

    /// The group's own exchange, to its queues alone; and the queues where its messages wait, which leads back to it.
    async fn entrance(&self, plan: &GroupPlan, group: &str) -> Result<()> {
        let redrive = self.naming().redrive(&plan.channel, group)?;
        self.exchange(&redrive, ExchangeKind::Direct, FieldTable::default()).await?;
        let count = plan.queues.len() as u32;
        for (partition, queue) in plan.queues.iter().enumerate() {
            for slot in Naming::slots(partition as u32, count) {
                self.bind_to(queue, &redrive, Naming::slot(slot)).await?;
            }
        }
        if !plan.durable_retry {
            return Ok(());
        }
        for (tier, wait) in RETRY_TIERS.iter().enumerate() {
            let name = self.naming().retry(&plan.channel, group, tier)?;
            let mut arguments = FieldTable::default();
            let mut put = |name: &str, value: AMQPValue| {
                arguments.insert(name.into(), value);
            };
            let quorum = self.topology.queue_type == QueueType::Quorum;
            put("x-queue-type", text(if quorum { "quorum" } else { "classic" }));
            put("x-message-ttl", AMQPValue::LongLongInt(time_to_live(*wait)));
            // the routing key stays what it was: the slot
            put("x-dead-letter-exchange", text(&redrive));
            put("x-overflow", text("reject-publish"));
            if quorum {
                put("x-dead-letter-strategy", text("at-least-once"));
            }
            self.exchange(&name, ExchangeKind::Fanout, FieldTable::default()).await?;
            self.queue(&name, arguments).await?;
            self.bind_to(&name, &name, String::new()).await?;
        }
        Ok(())
    }

    async fn ephemeral(&self, plan: &GroupPlan) -> Result<()> {
        if self.topology.mode != DeclareMode::None {
            self.channel(&plan.channel).await?;
        }
        for queue in &plan.queues {
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let made =
                self.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await;
            made.map_err(|e| error::of("subscribe", e).with("queue", queue))?;
            self.bind(&plan.channel, queue, 0..KEY_SLOTS, true).await?;
        }
        self.done().await
    }

    /// The bindings are sent without waiting for each: what follows on the channel is answered after them.
    async fn bind(
        &self,
        channel: &str,
        queue: &str,
        slots: impl Iterator<Item = u32>,
        unslotted: bool,
    ) -> Result<()> {
        let (exchange, fanout) = (self.naming().exchange(channel)?, self.naming().unslotted(channel)?);
        let keys = slots.map(|slot| (&exchange, Naming::slot(slot)));
        for (exchange, key) in keys.chain(unslotted.then(|| (&fanout, String::new()))) {
            self.bind_to(queue, exchange, key).await?;
        }
        Ok(())
    }

    async fn bind_to(&self, queue: &str, exchange: &str, key: String) -> Result<()> {
        if self.topology.mode == DeclareMode::Check {
            return Ok(());
        }
        let options = QueueBindOptions { nowait: true };
        let bound = self.channel.queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            options,
            FieldTable::default(),
        );
        bound.await.map_err(|e| error::of("declare", e).with("queue", queue))
    }

    /// All that was sent without waiting is done, or refused.
    async fn done(&self) -> Result<()> {
        self.channel
            .basic_qos(1, lapin::options::BasicQosOptions::default())
            .await
            .map_err(|e| error::of("declare", e))
    }

    async fn exchange(&self, name: &str, kind: ExchangeKind, arguments: FieldTable) -> Result<()> {
        let options =
            |passive| ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
        let declare = |passive| {
            self.channel.exchange_declare(name.into(), kind.clone(), options(passive), arguments.clone())
        };
        if self.topology.mode == DeclareMode::Check {
            declare(true).await.map_err(|e| missing(e, "exchange", name))?;
        }
        declare(false).await.map_err(|e| {
            let expected = format!("a durable {kind:?} exchange{}", listed(&arguments));
            differs(e, "exchange", name, &expected)
        })
    }

    async fn queue(&self, name: &str, arguments: FieldTable) -> Result<()> {
        let options = |passive| QueueDeclareOptions { passive, ..QueueDeclareOptions::durable() };
        let declare = |passive| self.channel.queue_declare(name.into(), options(passive), arguments.clone());
        if self.topology.mode == DeclareMode::Check {
            declare(true).await.map_err(|e| missing(e, "queue", name))?;
        }
        declare(false)
            .await
            .map(drop)
            .map_err(|e| differs(e, "queue", name, &format!("a durable queue{}", listed(&arguments))))
    }

    /// An empty queue whose length limit is the number of partitions: the broker refuses to declare it with another.
    async fn marker(&self, connection: &Connection, plan: &GroupPlan, group: &str, name: &str) -> Result<()> {
        let count = plan.queues.len();
        let options = |passive| QueueDeclareOptions { passive, ..QueueDeclareOptions::durable() };
        if self.topology.mode == DeclareMode::Check {
            let found = self.channel.queue_declare(name.into(), options(true), FieldTable::default());
            found.await.map_err(|e| missing(e, "queue", name))?;
        }
        let made = self.channel.queue_declare(name.into(), options(false), marked(count)).await;
        let Err(refused) = made else {
            return Ok(());
        };
        if !error::is_mismatch(&refused) {
            return Err(error::of("declare", refused).with("queue", name));
        }
        // the one that it takes is the one that is there
        let mut found = None;
        for other in [1, 2, 4, 8, 16, 32, 64] {
            let channel = connection.create_channel().await.map_err(|e| error::of("declare", e))?;
            if channel.queue_declare(name.into(), options(false), marked(other)).await.is_ok() {
                found = Some(other);
                break;
            }
        }
        let found = found.map_or("another number".to_owned(), |n: usize| n.to_string());
        let message = format!(
            "the group was set up with {found} partitions, not {count}; drain the group, delete its queues, and start with the new number"
        );
        Err(Error::new(ErrorKind::Mismatch, "declare", message)
            .with("channel", &plan.channel)
            .with("group", group)
            .with("expected", count)
            .with("found", found))
    }
}

fn marked(partitions: usize) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("classic"));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(partitions as i64));
    arguments
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// The time to live, in milliseconds, of a message that waits for its retry.
///
/// A quorum queue cuts the time of arrival and the present time to the millisecond, and drops a message when they differ by
/// that much. One millisecond more, and no wait ends early.
fn time_to_live(wait: Duration) -> i64 {
    i64::try_from(wait.as_nanos().div_ceil(1_000_000)).map_or(i64::MAX, |ms| ms.saturating_add(1))
}

/// Arguments as people read them.
fn listed(arguments: &FieldTable) -> String {
    let mut out = String::new();
    for (name, value) in arguments.inner() {
        let start = if out.is_empty() { " with " } else { ", " };
        let value = crate::field::text(value).unwrap_or_default();
        let _ = write!(out, "{start}{name}={value}");
    }
    out
}

fn missing(error: lapin::Error, what: &'static str, name: &str) -> Error {
    if !error::is_not_found(&error) {
        return error::of("declare", error).with(what, name);
    }
    let message = format!(
        "there is no such {what}, and nothing may be created (`declare=check`); create it, or use `declare=create`"
    );
    Error::new(ErrorKind::NotFound, "declare", message).with(what, name).because(error)
}

fn differs(error: lapin::Error, what: &'static str, name: &str, expected: &str) -> Error {
    if !error::is_mismatch(&error) {
        return error::of("declare", error).with(what, name);
    }
    let found = error.to_string();
    let message = format!(
        "the {what} is there, but differs; delete it when it is drained, or choose another channel or group"
    );
    let differs = Error::new(ErrorKind::Mismatch, "declare", message).with(what, name);
    differs.with("expected", expected).with("found", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_a_millisecond_longer_than_the_wait() {
        assert_eq!(RETRY_TIERS.map(time_to_live)[0], 1_001);
        assert_eq!(time_to_live(Duration::from_micros(1_000_001)), 1_002);
        assert_eq!(time_to_live(Duration::MAX), i64::MAX);
    }
}
