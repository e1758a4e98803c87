//! Publishing: a bounded queue, handed over to the client only while a broker answers, and confirmed by its delivery report.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use postrider_core::{
    Capabilities, Channel, Confirm, Confirms, DrainReport, Env, Error, ErrorKind, NewSend, Outgoing, Pending,
    PublishError, PublishOrder, Publisher, RETRY_TIERS, Result, check_address, check_size, deadline_from,
    fit_copy, retry_tier,
};
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::BaseRecord;
use tokio::task::JoinSet;

use crate::broker::KafkaBroker;
use crate::compaction;
use crate::config::KafkaConfig;
use crate::confirms::{Sends, Target};
use crate::connection::{Connection, HEADER_ROOM};
use crate::convert;
use crate::error;
use crate::naming::Naming;
use crate::partitioner::{Barred, Topic};
use crate::properties;
use crate::topics::Topics;

/// What a record takes beside key, headers and body: it goes in a batch of its own at worst.
const FRAME: usize = 256;
/// The property that sets a record's timestamp.
const TIMESTAMP: &str = "timestamp";

/// The publishing half.
#[derive(Debug)]
pub(crate) struct Outbox {
    connection: Connection,
    naming: Naming,
    env: Env,
    sends: Arc<Sends>,
    deadline: Duration,
    /// The largest record that the client takes.
    largest: usize,
    capabilities: Capabilities,
    topics: Topics,
    /// How a client is made that asks for a topic's configuration.
    admin: ClientConfig,
    closed: AtomicBool,
    hash: std::hash::RandomState,
    _tasks: JoinSet<()>,
}

/// Why a message couldn't be handed over now.
enum Refused {
    /// There is no room here, or the client has none.
    Full,
    Failed(Error),
}

impl Outbox {
    pub(crate) fn open(
        connection: Connection,
        naming: Naming,
        config: &KafkaConfig,
        env: Env,
        capabilities: Capabilities,
    ) -> Self {
        let sends = Arc::clone(&connection.sends);
        let mut admin = connection.common.clone();
        properties::native(&mut admin, config);
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(Arc::clone(&sends), env.clone()));
        Self {
            connection,
            naming,
            env,
            sends,
            deadline: config.send_deadline,
            largest: properties::largest_record(config, HEADER_ROOM),
            capabilities,
            topics: Topics::default(),
            admin,
            closed: AtomicBool::new(false),
            hash: std::hash::RandomState::new(),
            _tasks: tasks,
        }
    }

    /// Refuses what can't be sent; of a copy, leaves out what the client wouldn't take.
    fn check(&self, message: &mut Outgoing<'_>) -> Result<()> {
        if self.closed.load(Relaxed) {
            return Err(Error::new(ErrorKind::Closed, "publish", "the publisher is closed; connect again"));
        }
        // a dead letter may use the room that was left for its headers
        let usable =
            if message.options.hop.is_some() { usize::MAX } else { self.capabilities.usable_payload() };
        check_size(&message.envelope, usable)?;
        timestamp(message)?;
        let most = self.largest.saturating_sub(message.envelope.payload().len() + FRAME);
        fit_copy(message, most, convert::copy_len)
    }

    /// The name of the topic that the message goes to.
    fn topic(&self, message: &Outgoing<'_>) -> Result<String> {
        let channel = message.address.channel();
        Channel::check(channel)?;
        check_address(message, &self.capabilities)?;
        match message.address.group() {
            Some(group) => self.naming.redrive(channel, group),
            None => self.naming.topic(channel),
        }
    }

    /// Which partition of the topic the message goes to.
    fn partition(message: &Outgoing<'_>, key: Option<&[u8]>, topic: &Topic) -> u32 {
        match (message.address.group(), message.options.delay) {
            (None, _) => topic.partition(key),
            (Some(_), None) => 0,
            (Some(_), Some(delay)) => 1 + retry_tier(delay) as u32,
        }
    }

    fn key(&self, message: &Outgoing<'_>) -> Option<u64> {
        (message.options.order == PublishOrder::PerKey)
            .then(|| message.envelope.key().map(|key| self.hash.hash_one(key)))
            .flatten()
    }

    /// The topic, if it is known and needn't be asked for again.
    fn known(&self, topic: &str, now: Instant) -> Option<Arc<Topic>> {
        self.topics.current(topic, self.sends.producer(), now)
    }

    /// The topic that the message goes to, if it is known.
    fn target(&self, message: &Outgoing<'_>, now: Instant) -> Result<Option<Arc<Topic>>> {
        let (channel, plain) =
            (message.address.channel(), message.address.group().is_none() && message.options.delay.is_none());
        if plain
            && let Some(found) = self.topics.of_channel(channel)
            && found.is_current(self.sends.producer(), now)
        {
            return Ok(Some(found));
        }
        let found = self.known(&self.topic(message)?, now);
        if let (Some(found), true) = (&found, plain) {
            self.topics.remember(channel, found);
        }
        Ok(found)
    }

    /// Hands over to the client, which copies the message and answers by its delivery report. `open` opens the slot.
    fn hand_over<R>(
        &self,
        message: &Outgoing<'_>,
        record_key: Option<&[u8]>,
        target: Target,
        deadline: Instant,
        open: impl FnOnce(&Pending<Target>, NewSend<Target>) -> std::result::Result<u64, R>,
    ) -> std::result::Result<Confirm, Refused> {
        let envelope = &message.envelope;
        let (topic, place) = (Arc::clone(&target.topic), target.place);
        let send = NewSend { deadline, key: self.key(message), bytes: envelope.byte_len(), sent: target };
        let Ok(token) = self.sends.open(send, open) else {
            return Err(Refused::Full);
        };
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&topic.name, token as usize)
                .partition(place.partition as i32)
                .headers(convert::headers(envelope));
        record.key = record_key;
        record.payload = (!envelope.is_null()).then(|| &envelope.payload()[..]);
        // unless the caller asks for another one, it is the time of this publish: retention goes by it, and removes by the time
        // of a message what was published a moment ago
        record.timestamp = timestamp(message).unwrap_or_default();
        let Err((refused, _)) = self.connection.producer.send(record) else {
            return Ok(self.confirm(token));
        };
        self.sends.cancel(token);
        let code = refused.rdkafka_error_code();
        if code == Some(Code::QueueFull) {
            return Err(Refused::Full);
        }
        if matches!(code, Some(Code::UnknownTopic | Code::UnknownPartition)) {
            self.topics.forget(&topic);
        }
        Err(Refused::Failed(error::client("publish", refused).with("topic", &topic.name)))
    }

    /// Whoever waits for a gate that another was the first to enter, for a moment, is to look at it again.
    fn look_again(&self) {
        self.sends.pending.changed();
    }

    fn confirm(&self, token: u64) -> Confirm {
        Confirm::tracked(Arc::clone(&self.sends.pending) as Arc<dyn Confirms>, token)
    }

    #[allow(clippy::async_yields_async, reason = "the confirm is awaited by whoever wants the outcome")]
    async fn send(&self, mut message: Outgoing<'_>) -> Confirm {
        let topic = match self.check(&mut message).and_then(|()| self.topic(&message)) {
            Ok(topic) => topic,
            Err(error) => return Confirm::failed(error),
        };
        let allowed = message.options.deadline.unwrap_or(self.deadline);
        let deadline = self.env.deadline(allowed);
        let (bytes, key) = (message.envelope.byte_len(), self.key(&message));
        let ready = async {
            let mut held = None;
            loop {
                let room = match held.take() {
                    Some(room) => room,
                    None => self.sends.pending.room(bytes).await,
                };
                if let Some(key) = key {
                    self.sends.pending.until_free(key).await;
                }
                self.connection.up().await;
                let found = match self.known(&topic, self.env.now()) {
                    Some(found) => Ok(found),
                    None => self.topics.find(&self.connection, &self.env, &topic).await,
                };
                let found = match found {
                    Ok(found) => found,
                    Err(error) if !error.is_temporary() => return Confirm::failed(error),
                    Err(_) => {
                        // no answer: the deadline bounds how often it is tried
                        self.env.sleep(Duration::from_millis(50)).await;
                        held = Some(room);
                        continue;
                    }
                };
                let ask = || compaction::is_compacted(self.admin.clone(), &topic);
                if message.envelope.key().is_none() && self.topics.requires_keys(&found, ask).await {
                    return Confirm::failed(needs_key(&topic));
                }
                let partition = Self::partition(&message, message.envelope.key(), &found);
                let place = match self.topics.enter(&found, partition) {
                    Ok(place) => place,
                    // somebody may have added partitions; who has just been told of none asks no more
                    Err(Barred::NoSuchPartition) if found.is_fresh(self.env.now()) => {
                        return Confirm::failed(too_few(&found, partition));
                    }
                    Err(Barred::NoSuchPartition) => {
                        self.topics.forget(&found);
                        held = Some(room);
                        continue;
                    }
                    Err(Barred::FirstUnderWay) => {
                        self.sends.pending.until(|| !found.is_under_way(partition)).await;
                        held = Some(room);
                        continue;
                    }
                    Err(Barred::Exchanged) => {
                        self.look_again();
                        held = Some(room);
                        continue;
                    }
                };
                let target = Target { topic: found, place };
                let handed =
                    self.hand_over(&message, message.envelope.key(), target, deadline, |pending, send| {
                        // another send of the key came between: the room is kept for the next turn
                        pending.open(send, room).map_err(|(_, room)| held = Some(room))
                    });
                match handed {
                    Ok(confirm) => return confirm,
                    Err(Refused::Failed(error)) => return Confirm::failed(error),
                    Err(Refused::Full) if held.is_some() => {}
                    Err(Refused::Full) => self.env.sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::select! {
            biased;
            confirm = ready => confirm,
            () = self.env.sleep(allowed) => {
                let what = if self.connection.is_up() { "there was no room" } else { "no broker answered" };
                let text = format!("{what} until the deadline of {allowed:?}; it was never handed over");
                let error = Error::new(ErrorKind::Timeout, "publish", text);
                Confirm::failed(error.with("channel", message.address.channel()))
            }
        }
    }

    #[expect(clippy::result_large_err, reason = "the message is given back, not an error made")]
    fn try_send<'a>(&self, mut message: Outgoing<'a>) -> std::result::Result<Confirm, Outgoing<'a>> {
        let now = self.env.now();
        let topic = match self.check(&mut message).and_then(|()| self.target(&message, now)) {
            Ok(Some(topic)) if self.connection.is_up() => topic,
            Ok(_) => return Err(message),
            Err(error) => return Ok(Confirm::failed(error)),
        };
        let key = message.envelope.key();
        match topic.requires_keys() {
            _ if key.is_some() => {}
            Some(true) => return Ok(Confirm::failed(needs_key(&topic.name))),
            Some(false) => {}
            None => return Err(message),
        }
        let place = match self.topics.enter(&topic, Self::partition(&message, key, &topic)) {
            Ok(place) => place,
            Err(Barred::Exchanged) => {
                self.look_again();
                return Err(message);
            }
            Err(Barred::FirstUnderWay | Barred::NoSuchPartition) => return Err(message),
        };
        let deadline = deadline_from(now, message.options.deadline.unwrap_or(self.deadline));
        match self.hand_over(&message, key, Target { topic, place }, deadline, Pending::try_open) {
            Ok(confirm) => Ok(confirm),
            Err(Refused::Failed(error)) => Ok(Confirm::failed(error)),
            Err(Refused::Full) => Err(message),
        }
    }
}

impl Publisher for KafkaBroker {
    fn env(&self) -> &Env {
        self.environment()
    }

    async fn send(&self, message: Outgoing<'_>) -> Confirm {
        self.outbox().send(message).await
    }

    fn try_send<'a>(&self, message: Outgoing<'a>) -> std::result::Result<Confirm, Outgoing<'a>> {
        self.outbox().try_send(message)
    }

    async fn flush(&self) -> std::result::Result<(), PublishError> {
        self.outbox().sends.pending.flushed().await
    }

    async fn close(&self, deadline: Instant) -> DrainReport {
        let outbox = self.outbox();
        outbox.closed.store(true, Relaxed);
        let left = deadline.saturating_duration_since(outbox.env.now());
        let in_time = tokio::select! {
            biased;
            // failures that nobody read are in the report
            _ = outbox.sends.pending.flushed() => true,
            () = outbox.env.sleep(left) => false,
        };
        if !in_time {
            // what was never sent is told apart from what may have been
            outbox.connection.purge(deadline, &outbox.env).await;
            for token in outbox.sends.pending.unanswered() {
                let text = "the broker didn't answer before the publisher closed";
                let error = Error::new(ErrorKind::Timeout, "close", text);
                outbox.sends.pending.resolve(token, |_| Err(PublishError::Unknown(error)));
            }
        }
        self.end(deadline).await;
        outbox.sends.pending.report()
    }
}

impl KafkaBroker {
    pub(crate) fn is_closed(&self) -> bool {
        self.outbox().closed.load(Relaxed)
    }
}

/// The broker would refuse it, and with it all that goes in the same batch.
fn needs_key(topic: &str) -> Error {
    let text = "a compacted topic needs a key: of the messages with the same key it keeps the last one; set one with `key`";
    Error::new(ErrorKind::Mismatch, "publish", text).with("topic", topic)
}

/// The timestamp that the caller asks for, in milliseconds since the epoch: the only property of a single message.
fn timestamp(message: &Outgoing<'_>) -> Result<Option<i64>> {
    let mut found = None;
    for (name, value) in &message.options.native {
        let refuse = |text: &str| Err(Error::config("publish", text).with("property", name));
        if name != TIMESTAMP {
            return refuse(
                "the Kafka adapter takes one property of a message, `timestamp`; leave the others out",
            );
        }
        if message.address.group().is_some() {
            return refuse("a message to one group waits by its timestamp; leave `timestamp` out");
        }
        // the client takes zero for "now"
        found = value.parse().ok().filter(|ms| *ms > 0);
        if found.is_none() {
            return refuse("`timestamp` is the number of milliseconds since 1970, greater than zero");
        }
    }
    Ok(found)
}

/// Of a group's own topic: no other has partitions that messages must be in.
fn too_few(topic: &Topic, partition: u32) -> Error {
    let text = format!(
        "the topic has no partition for this wait; add some, {} in all: one for what is redriven, and one for each time that a message can wait",
        1 + RETRY_TIERS.len()
    );
    Error::new(ErrorKind::Mismatch, "publish", text)
        .with("topic", &topic.name)
        .with("expected", format!("at least {}", partition + 1))
        .with("found", topic.partitions())
}

/// Resolves what isn't answered by its deadline. It was handed over, so what became of it isn't known.
async fn watch(sends: Arc<Sends>, env: Env) {
    loop {
        env.sleep(Duration::from_millis(50)).await;
        for token in sends.pending.overdue(env.now()) {
            let text = "the broker didn't answer within the deadline";
            let error = Error::new(ErrorKind::Timeout, "publish", text);
            sends.pending.resolve(token, |_| Err(PublishError::Unknown(error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postrider_core::{Address, Envelope, PublishOptions};

    use super::*;

    fn timestamp_of(address: Address<'_>, native: &[(&str, &str)]) -> Result<Option<i64>> {
        let old = Envelope::builder(Bytes::new()).time_ms(7).build(&Env::seeded(1)).unwrap();
        let mut options = PublishOptions::default();
        options.native = native.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        timestamp(&Outgoing::new(address, old).with(options))
    }

    #[test]
    fn only_the_property_timestamp_sets_a_record_s_timestamp() {
        let channel = || Address::from("c");
        assert_eq!(timestamp_of(channel(), &[]).unwrap(), None, "never the message's own time");
        assert_eq!(
            timestamp_of(channel(), &[("timestamp", "1700000000123")]).unwrap(),
            Some(1_700_000_000_123)
        );
        for wrong in ["0", "-1", "now", "", "9223372036854775808"] {
            let error = timestamp_of(channel(), &[("timestamp", wrong)]).unwrap_err().to_string();
            assert!(error.contains("milliseconds"), "{wrong}: {error}");
        }
        let error = timestamp_of(channel(), &[("partition", "3")]).unwrap_err().to_string();
        assert!(error.contains("`timestamp`") && error.contains("partition"), "{error}");
        let to_group = timestamp_of(Address::to_group("c", "g"), &[("timestamp", "1")]);
        assert!(to_group.unwrap_err().to_string().contains("leave `timestamp` out"));
    }
}
