//! Subscriptions: receiving, leaving, and the control handle beside them.

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postrider_core::{
    BoxFuture, Claim, ClaimId, Control, Delivery, Error, ErrorKind, Group, Health, HealthState, Origin,
    Result, SEPARATOR, Settle, Signal, Start, SubscribeOptions, Subscriber, Subscription,
};
use rdkafka::consumer::Consumer;
use tokio::sync::{oneshot, watch};

use crate::broker::KafkaBroker;
use crate::committer::Committer;
use crate::config::GroupProtocol;
use crate::connection::Connection;
use crate::error;
use crate::member::{Command, Member, Progress, SharedClient};
use crate::positions;
use crate::properties;
use crate::rebalance::{self, Client, Listener};
use crate::settle::Tracker;
use crate::shared::Shared;

/// How long a subscription waits for the group to let it in; later, its partitions come by themselves.
const ADMISSION: Duration = Duration::from_secs(5);
/// How long a leaving member may take to tell the broker.
const FAREWELL: Duration = Duration::from_secs(15);
/// How long one request for the group's lag may take.
const REQUEST: Duration = Duration::from_secs(5);

/// One member of a group. Dropped, it leaves and gives back what is unsettled; [`close`](Subscription::close) also waits until
/// the broker knows.
#[derive(Debug)]
pub struct KafkaSubscription {
    tracker: Arc<Tracker>,
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
        let group = match &options.group {
            Group::Named(group) => naming.group(&options.channel, group)?,
            // the client wants a name; nothing is ever written under it
            Group::Ephemeral => {
                format!("{topic}{SEPARATOR}ephemeral{SEPARATOR}{:016x}", self.environment().random())
            }
        };
        let named = options.group.name().is_some();
        let client =
            properties::consumer(&self.connection().common, &config, &group, claim_timeout, options.window);
        let mut client: Client = client.create_with_context(Listener::default()).map_err(error::creation)?;
        let shared =
            Arc::new(Shared::new(topic.clone(), options.order, options.window, self.environment().clone()));
        rebalance::listen(&mut client, &shared.waker);
        let client = Arc::new(client);
        if named {
            client.subscribe(&[&topic]).map_err(|e| error::client("subscribe", e).with("topic", &topic))?;
        }
        let lent: SharedClient = Arc::new(Mutex::new(Some(Arc::clone(&client))));
        let (commands, obeyed) = mpsc::channel();
        let (sender, mut progress) = watch::channel(Progress::default());
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
            start: options.start,
            env: self.environment().clone(),
            commit_interval: config.commit_interval,
            release_timeout: config.release_timeout,
        };
        member.start(self.members())?;
        let context = Arc::new(Context {
            topic,
            group: named,
            start: options.start,
            client: lent,
            connection: self.connection().clone(),
        });
        let env = self.environment().clone();
        let tracker = Arc::new(Tracker { shared, env, group: named });
        // from here on, dropping it lets the thread leave
        let subscription = KafkaSubscription { tracker, commands, progress: progress.clone(), context };
        let alone = match config.group_protocol {
            GroupProtocol::Classic => properties::heartbeat(claim_timeout) * 4 + Duration::from_millis(500),
            GroupProtocol::Consumer => ADMISSION,
        };
        tokio::select! {
            () = admitted(&mut progress, alone, self.environment()) => {}
            () = self.environment().sleep(ADMISSION.min(config.connect_timeout)) => {}
        }
        match subscription.tracker.shared.take_end() {
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

impl KafkaSubscription {
    fn leave(&self) {
        self.tracker.shared.close();
        // a thread that is gone has left already
        let _ = self.commands.send(Command::Stop);
        self.tracker.shared.waker.wake();
    }
}

impl Subscription for KafkaSubscription {
    async fn receive(&mut self, max: NonZeroUsize, into: &mut Vec<Delivery>) -> Result<Signal> {
        loop {
            let tracker = &self.tracker;
            let claim = |token| Claim::new(Arc::clone(tracker) as Arc<dyn Settle>, token);
            if let Some(signal) = tracker.shared.receive(max.get(), into, claim)? {
                return Ok(signal);
            }
            // the only await, and nothing has been taken yet: cancel-safe. A wake-up in between is kept by the notify.
            self.tracker.shared.arrived.notified().await;
        }
    }

    async fn release(&mut self, claims: &[ClaimId]) -> Result<()> {
        self.tracker.shared.release(claims);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        self.leave();
        let env = self.tracker.env.clone();
        let left = tokio::select! {
            // a thread that is gone is through
            _ = self.progress.wait_for(|progress| progress.done) => true,
            () = env.sleep(FAREWELL) => false,
        };
        if left {
            return Ok(());
        }
        let message = "the broker could not be told in time; it finds out when the member's claim runs out";
        Err(Error::new(ErrorKind::Timeout, "close", message).with("topic", &self.context.topic))
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::new(KafkaControl {
            tracker: Arc::clone(&self.tracker),
            commands: self.commands.clone(),
            context: Arc::clone(&self.context),
        })
    }
}

impl Drop for KafkaSubscription {
    fn drop(&mut self) {
        self.leave();
    }
}

struct KafkaControl {
    tracker: Arc<Tracker>,
    commands: mpsc::Sender<Command>,
    context: Arc<Context>,
}

impl Control for KafkaControl {
    fn pause(&self) {
        self.tracker.shared.pause(true);
    }

    fn resume(&self) {
        self.tracker.shared.pause(false);
    }

    /// Moves the partitions that this member holds; other members move theirs.
    fn seek(&self, to: Start) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let gone = || Error::new(ErrorKind::Closed, "seek", "the subscription is closed");
            let (answer, answered) = oneshot::channel();
            self.commands.send(Command::Seek(to, answer)).map_err(|_| gone())?;
            self.tracker.shared.waker.wake();
            answered.await.map_err(|_| gone())?
        })
    }

    fn lag(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let Context { topic, connection, .. } = &*self.context;
            let count = connection.partitions("lag", topic).await?.unwrap_or_default();
            let (context, shared) = (Arc::clone(&self.context), Arc::clone(&self.tracker.shared));
            let asked = tokio::task::spawn_blocking(move || lag(&context, &shared, count));
            let asked = asked.await;
            asked.map_err(|e| Error::new(ErrorKind::Closed, "lag", "the runtime is stopping").because(e))?
        })
    }

    fn claims(&self) -> Vec<ClaimId> {
        self.tracker.shared.claims()
    }

    fn describe(&self, origin: Origin) -> String {
        format!("kafka:{}/{}/{}", self.context.topic, origin.shard, origin.position)
    }

    fn health(&self) -> Health {
        let connection = self.context.connection.health();
        if connection.state > HealthState::Up {
            return connection;
        }
        if self.tracker.shared.is_held_back() {
            return Health::degraded(
                "the group's place can't be written down at present, so nothing is handed out",
            );
        }
        if self.tracker.shared.claims().is_empty() {
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
