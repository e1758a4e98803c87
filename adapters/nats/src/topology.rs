//! Streams and consumers: created where they are missing, checked where they are not, never altered.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PriorityPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy};
use bytes::Bytes;
use postrider_core::{Error, ErrorKind, Group, Order, Result, Start, SubscribeOptions};

use crate::config::{DeclareMode, NatsConfig};
use crate::error;
use crate::naming::{Naming, partitions};
use crate::pull::PRIORITY_GROUP;

/// How long the server remembers message ids.
pub(crate) const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);
const PARTITIONS: &str = "postrider-partitions";
/// An ephemeral group's consumer goes when nobody has pulled for this long.
const INACTIVE: Duration = Duration::from_mins(1);

/// Declares on one server.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    js: Context,
    client: Client,
    naming: Naming,
    mode: DeclareMode,
    replicas: usize,
    max_ack_pending: i64,
    claim_timeout: Duration,
    /// Whether the server can keep messages until their time.
    schedules: bool,
}

/// One consumer: what it must be, and how to bring it back.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerPlan {
    pub(crate) stream: String,
    pub(crate) name: String,
    pub(crate) pinned: bool,
    config: pull::Config,
    pub(crate) channel: String,
    topology: Topology,
}

impl Topology {
    pub(crate) fn new(
        js: Context,
        client: Client,
        naming: Naming,
        config: &NatsConfig,
        schedules: bool,
    ) -> Self {
        Self {
            js,
            client,
            naming,
            mode: config.declare,
            replicas: config.replicas,
            max_ack_pending: config.max_ack_pending,
            claim_timeout: config.claim_timeout,
            schedules,
        }
    }

    /// Whether a group of that name reads the channel, of however many partitions.
    pub(crate) async fn has_group(&self, channel: &str, group: &str) -> Result<bool> {
        let stream = self.naming.stream(channel)?;
        for partitions in [1, 2] {
            let name = self.naming.consumer(channel, group, 0, partitions)?;
            if self.info("publish", &stream, &name).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn naming(&self) -> &Naming {
        &self.naming
    }

    pub(crate) fn js(&self) -> &Context {
        &self.js
    }

    /// Makes sure of a channel's stream.
    pub(crate) async fn channel(&self, channel: &str) -> Result<()> {
        let name = self.naming.stream(channel)?;
        if self.mode == DeclareMode::None {
            return Ok(());
        }
        match self.js.get_stream(&name).await {
            Ok(stream) => self.check_stream(channel, &stream.cached_info().config),
            Err(e) => match e.kind() {
                GetStreamErrorKind::JetStream(ref answer)
                    if error::api("declare", answer).kind() == ErrorKind::NotFound =>
                {
                    self.create_stream(channel, name).await
                }
                GetStreamErrorKind::JetStream(answer) => {
                    Err(error::api("declare", &answer).with("stream", name))
                }
                _ => Err(error::request("declare", e).with("stream", name)),
            },
        }
    }

    async fn create_stream(&self, channel: &str, name: String) -> Result<()> {
        if self.mode == DeclareMode::Check {
            let message = "there is no such stream, and nothing may be created (`declare=check`); create it, or use `declare=create`";
            return Err(Error::new(ErrorKind::NotFound, "declare", message)
                .with("stream", name)
                .with("channel", channel));
        }
        let config = stream::Config {
            name: name.clone(),
            subjects: self.naming.subjects(channel),
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            duplicate_window: DUPLICATE_WINDOW,
            num_replicas: self.replicas,
            allow_message_schedules: self.schedules,
            description: Some(format!("postrider: {channel}")),
            ..stream::Config::default()
        };
        match self.js.create_stream(config).await {
            Ok(_) => Ok(()),
            // another process was faster; if it made the same one, the server answers as if we had
            Err(e) => Err(Error::new(ErrorKind::Mismatch, "declare", "the stream can't be created")
                .with("stream", name)
                .because(e)),
        }
    }

    fn check_stream(&self, channel: &str, found: &stream::Config) -> Result<()> {
        let has: BTreeSet<_> = found.subjects.iter().collect();
        let missing: Vec<_> =
            self.naming.subjects(channel).into_iter().filter(|subject| !has.contains(subject)).collect();
        let mismatch = |what: &str, expected: String, found: String| {
            let message =
                format!("the stream's {what} differs; change the stream, or choose another channel");
            let error = Error::new(ErrorKind::Mismatch, "declare", message).with("channel", channel);
            Err(error.with("expected", expected).with("found", found))
        };
        if !missing.is_empty() {
            return mismatch("subjects", format!("also {}", missing.join(" ")), found.subjects.join(" "));
        }
        if found.retention != RetentionPolicy::Limits {
            return mismatch("retention", "Limits".into(), format!("{:?}", found.retention));
        }
        if found.discard != DiscardPolicy::Old {
            return mismatch("discard policy", "Old".into(), format!("{:?}", found.discard));
        }
        Ok(())
    }

    /// The consumers of a group, one for each partition.
    pub(crate) fn plans(&self, options: &SubscribeOptions, unique: &str) -> Result<Vec<ConsumerPlan>> {
        let group = options.group.name().map(|name| &**name);
        let count = if group.is_some() { partitions(options.order, options.partitions) } else { 1 };
        let claim_timeout = options.claim_timeout.unwrap_or(self.claim_timeout);
        (0..count)
            .map(|partition| {
                let pinned = group.is_some() && options.order != Order::None;
                let name = match group {
                    Some(group) => self.naming.consumer(&options.channel, group, partition, count)?,
                    None => format!("ephemeral-{unique}"),
                };
                let filters = self.naming.filters(&options.channel, group, partition, count);
                Ok(ConsumerPlan {
                    stream: self.naming.stream(&options.channel)?,
                    name: name.clone(),
                    pinned,
                    channel: options.channel.to_string(),
                    topology: self.clone(),
                    config: pull::Config {
                        durable_name: group.is_some().then(|| name.clone()),
                        name: Some(name),
                        deliver_policy: deliver_policy(options.start)?,
                        ack_policy: AckPolicy::Explicit,
                        ack_wait: claim_timeout,
                        max_deliver: -1,
                        max_ack_pending: self.max_ack_pending,
                        filter_subjects: filters,
                        inactive_threshold: if group.is_some() { Duration::ZERO } else { INACTIVE },
                        metadata: HashMap::from([(PARTITIONS.to_owned(), count.to_string())]),
                        priority_policy: if pinned {
                            PriorityPolicy::PinnedClient
                        } else {
                            PriorityPolicy::None
                        },
                        priority_groups: if pinned { vec![PRIORITY_GROUP.into()] } else { Vec::new() },
                        // longer than the wait for an acknowledgement, or the next holder would get newer messages first
                        priority_timeout: if pinned {
                            claim_timeout.saturating_add(claim_timeout / 2)
                        } else {
                            Duration::ZERO
                        },
                        ..pull::Config::default()
                    },
                })
            })
            .collect()
    }

    /// Makes sure of a group's consumers, and that they were made for the same number of partitions.
    pub(crate) async fn group(&self, options: &SubscribeOptions, plans: &[ConsumerPlan]) -> Result<()> {
        if self.mode == DeclareMode::None {
            return Ok(());
        }
        if let Group::Named(group) = &options.group {
            // the one consumer of an unsplit group, or the first of a split one: only the one asked for may be there
            let count = plans.len() as u32;
            let other = if count > 1 { (0, 1) } else { (0, 2) };
            let other = self.naming.consumer(&options.channel, group, other.0, other.1)?;
            if let (Some(first), true) = (plans.first(), plans.iter().all(|plan| plan.name != other))
                && let Some(found) = first.look(&other).await?
            {
                return Err(repartitioned(options, group, count, &found));
            }
            if let Some(first) = plans.first()
                && let Some(found) = first.look(&first.name).await?
                && found.metadata.get(PARTITIONS).is_some_and(|n| *n != count.to_string())
            {
                return Err(repartitioned(options, group, count, &found));
            }
        }
        if options.durable_retry {
            self.check_schedules(&options.channel).await?;
        }
        for plan in plans {
            plan.ensure().await?;
        }
        Ok(())
    }

    /// A stream that was made without schedules keeps no message until its retry.
    async fn check_schedules(&self, channel: &str) -> Result<()> {
        let name = self.naming.stream(channel)?;
        let stream = self.js.get_stream(&name).await;
        let stream = stream.map_err(|e| error::request("declare", e).with("stream", &name))?;
        if stream.cached_info().config.allow_message_schedules {
            return Ok(());
        }
        let message = "durable retries need a stream that allows message schedules; allow them with `nats stream edit --allow-schedules`, or retry in place";
        let error = Error::new(ErrorKind::Mismatch, "declare", message).with("stream", name);
        Err(error.with("expected", "allow_msg_schedules").with("found", "none"))
    }

    async fn info(
        &self,
        operation: &'static str,
        stream: &str,
        name: &str,
    ) -> Result<Option<consumer::Info>> {
        let subject = format!("$JS.API.CONSUMER.INFO.{stream}.{name}");
        // asked for by hand: the API takes no payload here, and the client's own call asks for the stream as well
        let answer = self.client.request(subject, Bytes::new()).await;
        let answer = answer.map_err(|e| error::request(operation, e).with("consumer", name))?;
        let answer: Response<consumer::Info> = serde_json::from_slice(&answer.payload).map_err(|e| {
            Error::new(ErrorKind::Broker, operation, "the server's answer can't be read").because(e)
        })?;
        match answer {
            Response::Ok(info) => Ok(Some(info)),
            Response::Err { error: e } => {
                let error = error::api(operation, &e).with("stream", stream).with("consumer", name);
                if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) }
            }
        }
    }
}

fn repartitioned(options: &SubscribeOptions, group: &str, asked: u32, found: &consumer::Config) -> Error {
    let had = found.metadata.get(PARTITIONS).map_or("another number of", |n| n.as_str());
    let message = format!(
        "the group was set up with {had} partitions, not {asked}; drain the group, delete its consumers, and start with the new number"
    );
    Error::new(ErrorKind::Mismatch, "declare", message)
        .with("channel", &options.channel)
        .with("group", group)
        .with("expected", asked)
        .with("found", had)
}

/// What a consumer has delivered and not got settled.
#[derive(Clone, Debug)]
pub(crate) struct Unsettled {
    pub(crate) count: usize,
    /// How many deliveries there had been when it was counted.
    pub(crate) delivered: u64,
    /// Who is pinned.
    pub(crate) pin: Option<String>,
}

impl ConsumerPlan {
    pub(crate) fn naming(&self) -> &Naming {
        &self.topology.naming
    }

    pub(crate) fn js(&self) -> &Context {
        &self.topology.js
    }

    /// After the server said that the consumer is gone: brings it back, with its stream.
    pub(crate) async fn restore(&self) -> Result<()> {
        let restored = match self.topology.channel(&self.channel).await {
            Ok(()) => self.ensure().await,
            Err(error) => Err(error),
        };
        match restored {
            // the server is still starting: the next look will tell
            Err(error) if error.is_temporary() || error.kind() == ErrorKind::Connection => Ok(()),
            other => other,
        }
    }

    async fn ensure(&self) -> Result<()> {
        if let Some(found) = self.look(&self.name).await? {
            return self.check(&found);
        }
        if self.topology.mode != DeclareMode::Create {
            let message =
                "there is no such consumer, and nothing may be created; create it, or use `declare=create`";
            let error = Error::new(ErrorKind::NotFound, "declare", message);
            return Err(error.with("stream", &self.stream).with("consumer", &self.name));
        }
        let created = self.topology.js.create_consumer_on_stream(self.config.clone(), &self.stream).await;
        created.map(drop).map_err(|e| {
            let error = Error::new(ErrorKind::Mismatch, "declare", "the consumer can't be created");
            error.with("stream", &self.stream).with("consumer", &self.name).because(e)
        })
    }

    /// The consumer of that name, if it is there.
    async fn look(&self, name: &str) -> Result<Option<consumer::Config>> {
        let info = self.info("declare", name).await?;
        Ok(info.map(|info| info.config))
    }

    /// How many messages the consumer has still to settle.
    pub(crate) async fn lag(&self) -> Result<u64> {
        if let Some(info) = self.info("lag", &self.name).await? {
            Ok(info.num_pending + info.num_ack_pending as u64)
        } else {
            let error = Error::new(ErrorKind::NotFound, "lag", "the consumer is gone");
            Err(error.with("consumer", &self.name).temporary(true))
        }
    }

    /// What has been delivered and not settled, to whomever; `None` where the consumer is gone.
    pub(crate) async fn unsettled(&self) -> Result<Option<Unsettled>> {
        let info = self.info("receive", &self.name).await?;
        Ok(info.map(|info| Unsettled {
            count: info.num_ack_pending,
            delivered: info.delivered.consumer_sequence,
            pin: info.priority_groups.into_iter().find_map(|group| group.pinned_client_id),
        }))
    }

    async fn info(&self, operation: &'static str, name: &str) -> Result<Option<consumer::Info>> {
        self.topology.info(operation, &self.stream, name).await
    }

    fn check(&self, found: &consumer::Config) -> Result<()> {
        let mismatch = |what: &str, expected: String, found: String| {
            let message = format!(
                "the consumer's {what} differs; delete the consumer when its group is drained, or choose another group"
            );
            let error = Error::new(ErrorKind::Mismatch, "declare", message).with("consumer", &self.name);
            Err(error.with("expected", expected).with("found", found))
        };
        if found.ack_policy != AckPolicy::Explicit {
            return mismatch("ack policy", "Explicit".into(), format!("{:?}", found.ack_policy));
        }
        let pinned = found.priority_policy == PriorityPolicy::PinnedClient;
        if pinned != self.pinned {
            let words = |pinned: bool| {
                if pinned { "pinned (order kept)" } else { "shared (no order)" }
            };
            return mismatch("priority policy", words(self.pinned).into(), words(pinned).into());
        }
        if found.ack_wait != self.config.ack_wait {
            return mismatch(
                "ack wait (`claim_timeout`)",
                format!("{:?}", self.config.ack_wait),
                format!("{:?}", found.ack_wait),
            );
        }
        let (expected, has): (BTreeSet<_>, BTreeSet<_>) =
            (self.config.filter_subjects.iter().collect(), found.filter_subjects.iter().collect());
        if expected != has {
            return mismatch(
                "subjects",
                format!("{} subjects", expected.len()),
                format!("{} subjects", has.len()),
            );
        }
        Ok(())
    }

    /// Removes an ephemeral group's consumer.
    pub(crate) async fn remove(&self) {
        // gone already, or gone by itself when nobody pulls
        let _ = self.topology.js.delete_consumer_from_stream(&self.name, &self.stream).await;
    }
}

fn deliver_policy(start: Start) -> Result<DeliverPolicy> {
    Ok(match start {
        Start::Latest => DeliverPolicy::New,
        Start::Time(ms) => {
            let time = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
                .map_err(|e| Error::config("subscribe", "the start time can't be expressed").because(e))?;
            DeliverPolicy::ByStartTime { start_time: time }
        }
        _ => DeliverPolicy::All,
    })
}
