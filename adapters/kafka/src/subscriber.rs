//! Subscriptions: receiving, leaving, and the control handle beside them.

use std::num::NonZeroUsize;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use postrider_core::{
    BoxFuture, Claim, ClaimId, Control, Delivery, Env, Error, ErrorKind, Group, Health, HealthState,
    InFlight, Origin, Result, SEPARATOR, Settle, Signal, Start, SubscribeOptions, Subscriber, Subscription,
    Suspect,
};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;

use crate::broker::KafkaBroker;
use crate::config::GroupProtocol;
use crate::member::{Command, Progress};
use crate::properties;
use crate::reader::{Context, Own, Reader, Reading, Terms};
use crate::settle::Tracker;
use crate::shared::Shared;
use crate::source::Source;

/// How long a subscription waits for the group to let it in; later, its partitions come by themselves.
const ADMISSION: Duration = Duration::from_secs(5);
/// How long a leaving member may take to tell the broker.
const FAREWELL: Duration = Duration::from_secs(15);

/// One member of a group. Dropped, it leaves and gives back what is unsettled; [`close`](Subscription::close) also waits until
/// the broker knows.
///
/// It reads the channel's topic and, with a client of its own, the topic of what is the group's alone: were they one client's, a
/// member could be given partitions of the second in place of its share of the first. The second client is started when there is
/// anything for it to read.
#[derive(Debug)]
pub struct KafkaSubscription {
    channel: Reader,
    /// None of an ephemeral group.
    own: Option<Arc<Own>>,
    tracker: Arc<Tracker>,
    arrived: Arc<Notify>,
    /// Looks whether there is anything for the second client.
    _lookout: JoinSet<()>,
}

impl Subscriber for KafkaBroker {
    type Subscription = KafkaSubscription;

    async fn subscribe(&self, options: &SubscribeOptions) -> Result<KafkaSubscription> {
        if self.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "subscribe", "the broker was closed; connect again"));
        }
        let mut config = self.config().clone();
        config.native.extend(options.native.iter().cloned());
        properties::check(&config.native)?;
        let claim_timeout = options.claim_timeout.unwrap_or(config.claim_timeout);
        if claim_timeout.is_zero() {
            return Err(Error::config("subscribe", "`claim_timeout` must be longer than nothing"));
        }
        self.topology().channel(&options.channel, options.partitions).await?;
        let naming = self.topology().naming();
        let topic = naming.topic(&options.channel)?;
        let arrived = Arc::<Notify>::default();
        let terms = Terms { options: options.clone(), config, claim_timeout, arrived: Arc::clone(&arrived) };
        let (group, own) = match &options.group {
            Group::Named(group) => {
                self.topology().redrive(&options.channel, group).await?;
                (
                    naming.group(&options.channel, group)?,
                    Some(Own::new(naming.redrive(&options.channel, group)?)),
                )
            }
            // the client wants a name; nothing is ever written under it
            Group::Ephemeral => {
                let unique = self.environment().random();
                (format!("{topic}{SEPARATOR}ephemeral{SEPARATOR}{unique:016x}"), None)
            }
        };
        let reading = Reading { source: Source::Channel, topic, group, start: options.start };
        let channel = self.read(&terms, reading)?;
        let mut lookout = JoinSet::new();
        if let Some(own) = &own {
            if options.durable_retry {
                self.read_own(&terms, own)?;
            } else {
                let (own, channel) = (Arc::clone(own), Arc::clone(&channel.shared));
                lookout.spawn(self.clone().look_out(terms.clone(), own, channel));
            }
        }
        let mut progress = channel.progress.clone();
        let tracker = Tracker {
            channel: Arc::clone(&channel.shared),
            own: own.clone(),
            env: self.environment().clone(),
        };
        let config = terms.config;
        let subscription =
            KafkaSubscription { channel, own, tracker: Arc::new(tracker), arrived, _lookout: lookout };
        let alone = match config.group_protocol {
            GroupProtocol::Classic => properties::heartbeat(claim_timeout) * 4 + Duration::from_millis(500),
            GroupProtocol::Consumer => ADMISSION,
        };
        tokio::select! {
            () = admitted(&mut progress, alone, self.environment()) => {}
            () = self.environment().sleep(ADMISSION.min(config.connect_timeout)) => {}
        }
        match subscription.channel.shared.take_end() {
            Some(error) => Err(error),
            None => Ok(subscription),
        }
    }
}

/// Resolves when the member holds something, or has ended, or has been let in and there is nothing for it.
async fn admitted(progress: &mut watch::Receiver<Progress>, alone: Duration, env: &Env) {
    // a thread that is gone says nothing more
    if progress.wait_for(|progress| progress.rounds > 0 || progress.ended || progress.done).await.is_err() {
        return;
    }
    tokio::select! {
        _ = progress.wait_for(|progress| progress.held > 0 || progress.ended || progress.done) => {}
        // partitions may still be on their way from another member
        () = env.sleep(alone) => {}
    }
}

impl KafkaSubscription {
    /// What there is to receive: first of what is the group's alone, which is little and late already.
    fn look(&self, max: usize, into: &mut Vec<Delivery>) -> Result<Option<Signal>> {
        let claim = |token| Claim::new(Arc::clone(&self.tracker) as Arc<dyn Settle>, token);
        let mut elsewhere = InFlight::default();
        if let Some(own) = self.own.as_ref().and_then(|own| own.get()) {
            let others = self.channel.shared.in_flight();
            if let Some(signal) = own.shared.receive(max, others, into, claim)? {
                return Ok(Some(signal));
            }
            elsewhere = own.shared.in_flight();
        }
        self.channel.shared.receive(max, elsewhere, into, claim)
    }

    fn readers(&self) -> impl Iterator<Item = &Reader> {
        std::iter::once(&self.channel).chain(self.own.iter().filter_map(|own| own.get()))
    }
}

impl Subscription for KafkaSubscription {
    async fn receive(&mut self, max: NonZeroUsize, into: &mut Vec<Delivery>) -> Result<Signal> {
        loop {
            if let Some(signal) = self.look(max.get(), into)? {
                return Ok(signal);
            }
            // the only await, and nothing has been taken yet: cancel-safe. A wake-up in between is kept by the notify.
            self.arrived.notified().await;
        }
    }

    async fn release(&mut self, claims: &[ClaimId]) -> Result<()> {
        self.readers().for_each(|reader| reader.shared.release(claims));
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        self.readers().for_each(Reader::leave);
        let env = self.tracker.env.clone();
        let all_left = async {
            for reader in self.readers() {
                reader.left().await;
            }
        };
        let left = tokio::select! {
            () = all_left => true,
            () = env.sleep(FAREWELL) => false,
        };
        if left {
            return Ok(());
        }
        let message = "the broker could not be told in time; it finds out when the member's claim runs out";
        Err(Error::new(ErrorKind::Timeout, "close", message).with("topic", &self.channel.context.topic))
    }

    fn control(&self) -> Arc<dyn Control> {
        let Reader { shared, commands, context, .. } = &self.channel;
        Arc::new(KafkaControl {
            shared: Arc::clone(shared),
            commands: commands.clone(),
            context: Arc::clone(context),
            own: self.own.clone(),
        })
    }
}

impl Drop for KafkaSubscription {
    fn drop(&mut self) {
        self.readers().for_each(Reader::leave);
    }
}

struct KafkaControl {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    context: Arc<Context>,
    own: Option<Arc<Own>>,
}

impl KafkaControl {
    fn own(&self) -> Option<&Reader> {
        self.own.as_ref()?.get()
    }

    /// What the message was read by.
    fn of(&self, origin: Origin) -> &Arc<Shared> {
        let own = self.own().filter(|_| Source::of(origin.shard) == Source::Group);
        own.map_or(&self.shared, |own| &own.shared)
    }

    fn both(&self) -> impl Iterator<Item = &Arc<Shared>> {
        std::iter::once(&self.shared).chain(self.own().map(|reader| &reader.shared))
    }
}

impl Control for KafkaControl {
    fn pause(&self) {
        self.both().for_each(|shared| shared.pause(true));
    }

    fn resume(&self) {
        self.both().for_each(|shared| shared.pause(false));
    }

    /// Moves the partitions of the channel that this member holds; other members move theirs.
    fn seek(&self, to: Start) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let gone = || Error::new(ErrorKind::Closed, "seek", "the subscription is closed");
            let (answer, answered) = oneshot::channel();
            self.commands.send(Command::Seek(to, answer)).map_err(|_| gone())?;
            self.shared.waker.wake();
            answered.await.map_err(|_| gone())?
        })
    }

    fn lag(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let channel = self.context.lag(&self.shared);
            let Some(own) = &self.own else {
                return channel.await;
            };
            let (channel, own) = tokio::try_join!(channel, own.lag(&self.context.connection))?;
            Ok(channel + own)
        })
    }

    fn strikes(&self, suspect: Suspect) -> BoxFuture<'_, Result<u32>> {
        Box::pin(async move { Ok(self.of(suspect.origin).strikes(suspect.origin)) })
    }

    fn set_strikes(&self, suspect: Suspect, strikes: u32) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let shared = self.of(suspect.origin);
            if shared.set_strikes(suspect.origin, strikes) && shared.flush().await.is_empty() {
                return Ok(());
            }
            let message = "the partition is held by another member by now";
            Err(Error::new(ErrorKind::Broker, "set_strikes", message).temporary(true))
        })
    }

    fn claims(&self) -> Vec<ClaimId> {
        self.both().flat_map(|shared| shared.claims()).collect()
    }

    fn describe(&self, origin: Origin) -> String {
        let source = Source::of(origin.shard);
        let context =
            self.own().filter(|_| source == Source::Group).map_or(&self.context, |own| &own.context);
        let partition = origin.shard - source.base();
        format!("kafka:{}/{partition}/{}", context.topic, origin.position)
    }

    fn health(&self) -> Health {
        let connection = self.context.connection.health();
        if connection.state > HealthState::Up {
            return connection;
        }
        if let Some(shared) = self.both().find(|shared| shared.is_topic_missing()) {
            let topic = &shared.topic;
            return Health::down(format!(
                "the topic `{topic}` does not exist; declare the channel again, or create the topic"
            ));
        }
        if self.both().any(|shared| shared.is_held_back()) {
            return Health::degraded(
                "the group's place can't be written down at present, so nothing is handed out",
            );
        }
        if self.shared.claims().is_empty() {
            let reason =
                "no partition is held at present: other members hold them all, or they are changing hands";
            return Health { state: HealthState::Standby, reason: Some(reason.into()) };
        }
        connection
    }
}
