//! Subscriptions: receiving, leaving, and the control handle beside them.

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postrider_core::{
    BoxFuture, Claim, ClaimId, Control, Delivery, Error, ErrorKind, Group, Health, HealthState, InFlight,
    Origin, Result, SEPARATOR, Settle, Signal, Start, SubscribeOptions, Subscriber, Subscription,
};
use rdkafka::consumer::Consumer;
use tokio::sync::{Notify, oneshot, watch};

use crate::broker::KafkaBroker;
use crate::committer::Committer;
use crate::config::{GroupProtocol, KafkaConfig};
use crate::connection::Connection;
use crate::error;
use crate::member::{Command, Member, Progress, SharedClient};
use crate::positions;
use crate::properties;
use crate::rebalance::{self, Client, Listener};
use crate::settle::Tracker;
use crate::shared::{Shared, Source};

/// How long a subscription waits for the group to let it in; later, its partitions come by themselves.
const ADMISSION: Duration = Duration::from_secs(5);
/// How long a leaving member may take to tell the broker.
const FAREWELL: Duration = Duration::from_secs(15);
/// How long one request for the group's lag may take.
const REQUEST: Duration = Duration::from_secs(5);

/// One member of a group. Dropped, it leaves and gives back what is unsettled; [`close`](Subscription::close) also waits until
/// the broker knows.
///
/// It reads the channel's topic and, with a client of its own, the topic of what is the group's alone: were they one client's, a
/// member could be given partitions of the second in place of its share of the first.
#[derive(Debug)]
pub struct KafkaSubscription {
    channel: Half,
    /// None of an ephemeral group.
    redrive: Option<Half>,
    tracker: Arc<Tracker>,
    arrived: Arc<Notify>,
}

/// What reads one of the topics.
#[derive(Debug)]
struct Half {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    progress: watch::Receiver<Progress>,
    context: Arc<Context>,
}

/// What the control handle needs.
struct Context {
    topic: String,
    group: bool,
    start: Start,
    client: SharedClient,
    connection: Connection,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// Which topic a member reads, and by which name.
struct Reading<'a> {
    source: Source,
    topic: String,
    group: String,
    start: Start,
    options: &'a SubscribeOptions,
    config: &'a KafkaConfig,
    claim_timeout: Duration,
}

impl KafkaBroker {
    /// Starts a member of its own for one topic.
    fn read(&self, reading: Reading<'_>, arrived: &Arc<Notify>) -> Result<Half> {
        let Reading { source, topic, group, start, options, config, claim_timeout } = reading;
        let named = options.group.name().is_some();
        let env = self.environment();
        let common = &self.connection().common;
        let client = properties::consumer(common, config, &group, claim_timeout, options.window);
        let mut client: Client = client.create_with_context(Listener::default()).map_err(error::creation)?;
        let arrived = Arc::clone(arrived);
        let shared = Shared::new(topic.clone(), source, options.order, options.window, env.clone(), arrived);
        let shared = Arc::new(shared);
        rebalance::listen(&mut client, &shared.waker);
        let client = Arc::new(client);
        if named {
            client.subscribe(&[&topic]).map_err(|e| error::client("subscribe", e).with("topic", &topic))?;
        }
        let lent: SharedClient = Arc::new(Mutex::new(Some(Arc::clone(&client))));
        let (commands, obeyed) = mpsc::channel();
        let (sender, progress) = watch::channel(Progress::default());
        let committer = Committer::start(Arc::clone(&client), topic.clone(), Arc::clone(&shared.waker))?;
        let member = Member {
            client,
            committer,
            lent: Arc::clone(&lent),
            shared: Arc::clone(&shared),
            commands: obeyed,
            progress: sender,
            topic: topic.clone(),
            group: named,
            start,
            env: env.clone(),
            commit_interval: config.commit_interval,
            release_timeout: config.release_timeout,
        };
        member.start(self.members())?;
        let connection = self.connection().clone();
        let context = Arc::new(Context { topic, group: named, start, client: lent, connection });
        // from here on, dropping it lets the thread leave
        Ok(Half { shared, commands, progress, context })
    }
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
        let reading = |source, topic, group, start| {
            self.read(
                Reading { source, topic, group, start, options, config: &config, claim_timeout },
                &arrived,
            )
        };
        let (group, redrive) = match &options.group {
            Group::Named(group) => {
                self.topology().redrive(&options.channel, group).await?;
                let redrive = naming.redrive(&options.channel, group)?;
                // what is the group's alone is read from its beginning, wherever the group begins
                let redrive = reading(Source::Group, redrive.clone(), redrive, Start::Earliest)?;
                (naming.group(&options.channel, group)?, Some(redrive))
            }
            // the client wants a name; nothing is ever written under it
            Group::Ephemeral => {
                let unique = self.environment().random();
                (format!("{topic}{SEPARATOR}ephemeral{SEPARATOR}{unique:016x}"), None)
            }
        };
        let channel = reading(Source::Channel, topic, group, options.start)?;
        let mut progress = channel.progress.clone();
        let tracker = Tracker {
            channel: Arc::clone(&channel.shared),
            redrive: redrive.as_ref().map(|half| Arc::clone(&half.shared)),
            env: self.environment().clone(),
        };
        let subscription = KafkaSubscription { channel, redrive, tracker: Arc::new(tracker), arrived };
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
async fn admitted(progress: &mut watch::Receiver<Progress>, alone: Duration, env: &postrider_core::Env) {
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

impl Half {
    fn leave(&self) {
        self.shared.close();
        // a thread that is gone has left already
        let _ = self.commands.send(Command::Stop);
        self.shared.waker.wake();
    }

    /// Resolves when the thread is through.
    async fn left(&mut self) {
        // one that is gone is through, too
        let _ = self.progress.wait_for(|progress| progress.done).await;
    }
}

impl KafkaSubscription {
    /// What there is to receive: first of what is the group's alone, which is little and late already.
    fn look(&self, max: usize, into: &mut Vec<Delivery>) -> Result<Option<Signal>> {
        let claim = |token| Claim::new(Arc::clone(&self.tracker) as Arc<dyn Settle>, token);
        let mut elsewhere = InFlight::default();
        if let Some(redrive) = &self.redrive {
            let others = self.channel.shared.in_flight();
            if let Some(signal) = redrive.shared.receive(max, others, into, claim)? {
                return Ok(Some(signal));
            }
            elsewhere = redrive.shared.in_flight();
        }
        self.channel.shared.receive(max, elsewhere, into, claim)
    }

    fn halves(&self) -> impl Iterator<Item = &Half> {
        std::iter::once(&self.channel).chain(&self.redrive)
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
        self.halves().for_each(|half| half.shared.release(claims));
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        self.halves().for_each(Half::leave);
        let env = self.tracker.env.clone();
        let Self { channel, redrive, .. } = self;
        let all_left = async {
            channel.left().await;
            if let Some(redrive) = redrive {
                redrive.left().await;
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
        let reader = |half: &Half| Reader {
            shared: Arc::clone(&half.shared),
            commands: half.commands.clone(),
            context: Arc::clone(&half.context),
        };
        Arc::new(KafkaControl { channel: reader(&self.channel), redrive: self.redrive.as_ref().map(reader) })
    }
}

impl Drop for KafkaSubscription {
    fn drop(&mut self) {
        self.halves().for_each(Half::leave);
    }
}

struct KafkaControl {
    channel: Reader,
    redrive: Option<Reader>,
}

/// What the control handle has of each topic.
struct Reader {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    context: Arc<Context>,
}

impl Reader {
    async fn lag(&self) -> Result<u64> {
        let Context { topic, connection, .. } = &*self.context;
        let count = connection.partitions("lag", topic).await?.unwrap_or_default();
        let (context, shared) = (Arc::clone(&self.context), Arc::clone(&self.shared));
        let asked = tokio::task::spawn_blocking(move || lag(&context, &shared, count));
        let asked = asked.await;
        asked.map_err(|e| Error::new(ErrorKind::Closed, "lag", "the runtime is stopping").because(e))?
    }
}

impl KafkaControl {
    fn readers(&self) -> impl Iterator<Item = &Reader> {
        std::iter::once(&self.channel).chain(&self.redrive)
    }
}

impl Control for KafkaControl {
    fn pause(&self) {
        self.readers().for_each(|reader| reader.shared.pause(true));
    }

    fn resume(&self) {
        self.readers().for_each(|reader| reader.shared.pause(false));
    }

    /// Moves the partitions of the channel that this member holds; other members move theirs.
    fn seek(&self, to: Start) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let gone = || Error::new(ErrorKind::Closed, "seek", "the subscription is closed");
            let (answer, answered) = oneshot::channel();
            self.channel.commands.send(Command::Seek(to, answer)).map_err(|_| gone())?;
            self.channel.shared.waker.wake();
            answered.await.map_err(|_| gone())?
        })
    }

    fn lag(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let Some(redrive) = &self.redrive else {
                return self.channel.lag().await;
            };
            let (channel, own) = tokio::try_join!(self.channel.lag(), redrive.lag())?;
            Ok(channel + own)
        })
    }

    fn claims(&self) -> Vec<ClaimId> {
        self.readers().flat_map(|reader| reader.shared.claims()).collect()
    }

    fn describe(&self, origin: Origin) -> String {
        let source = Source::of(origin.shard);
        let reader = self.redrive.as_ref().filter(|_| source == Source::Group).unwrap_or(&self.channel);
        let partition = origin.shard - source.base();
        format!("kafka:{}/{partition}/{}", reader.context.topic, origin.position)
    }

    fn health(&self) -> Health {
        let connection = self.channel.context.connection.health();
        if connection.state > HealthState::Up {
            return connection;
        }
        if self.readers().any(|reader| reader.shared.is_held_back()) {
            return Health::degraded(
                "the group's place can't be written down at present, so nothing is handed out",
            );
        }
        if self.channel.shared.claims().is_empty() {
            let reason =
                "no partition is held at present: other members hold them all, or they are changing hands";
            return Health { state: HealthState::Standby, reason: Some(reason.into()) };
        }
        connection
    }
}

/// What the whole group has still to settle: here by what is known, elsewhere by what was written down.
fn lag(context: &Context, shared: &Shared, count: u32) -> Result<u64> {
    let client = context.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(client) = client else {
        return Err(Error::new(ErrorKind::Closed, "lag", "the subscription is closed"));
    };
    let topic = &context.topic;
    let failed = |e| error::client("lag", e).with("topic", topic);
    let all: Vec<i32> = (0..count as i32).collect();
    if all.is_empty() {
        return Ok(0);
    }
    let edges = positions::edges(&client, topic, &all, REQUEST).map_err(failed)?;
    let places = shared.places();
    let others: Vec<i32> = all.iter().copied().filter(|number| !places.contains_key(number)).collect();
    let mut written = if context.group && !others.is_empty() {
        positions::written(&client, topic, &others, REQUEST).map_err(failed)?
    } else {
        std::collections::HashMap::new()
    };
    let mut lag = 0;
    for (number, edges) in edges {
        let (position, above) = match (places.get(&number), written.remove(&number)) {
            (Some(place), _) => *place,
            (None, Some(written)) => (written.position, written.ahead.len() as u64),
            (None, None) if context.start == Start::Latest => (edges.high, 0),
            (None, None) => (edges.low, 0),
        };
        lag += edges.high.saturating_sub(position.max(edges.low)).saturating_sub(above);
    }
    Ok(lag)
}
