//! What reads one topic for a subscription: a client, the thread that serves it, and what both share with the subscription.

use std::collections::HashMap;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use postrider_core::{Error, ErrorKind, Result, Start, SubscribeOptions};
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::{Notify, watch};

use crate::broker::KafkaBroker;
use crate::committer::Committer;
use crate::config::KafkaConfig;
use crate::connection::Connection;
use crate::error;
use crate::mark::Mark;
use crate::member::{Command, Member, Progress, SharedClient};
use crate::patience::ask_again;
use crate::positions::{self, Edges};
use crate::properties;
use crate::rebalance::{self, Client, Listener};
use crate::shared::Shared;
use crate::source::Source;

/// How often a member without a second client looks whether there is anything for it.
const LOOK: Duration = Duration::from_secs(5);
/// How long one request for the group's lag may take.
const REQUEST: Duration = Duration::from_secs(5);

/// What reads one of the topics.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) context: Arc<Context>,
}

/// What the control handle needs.
pub(crate) struct Context {
    pub(crate) topic: String,
    group: bool,
    start: Start,
    client: SharedClient,
    pub(crate) connection: Connection,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// What both members of a subscription are made by.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) options: SubscribeOptions,
    pub(crate) config: KafkaConfig,
    pub(crate) claim_timeout: Duration,
    pub(crate) arrived: Arc<Notify>,
}

/// Which topic a member reads, and by which name.
pub(crate) struct Reading {
    pub(crate) source: Source,
    pub(crate) topic: String,
    pub(crate) group: String,
    pub(crate) start: Start,
}

/// What reads the topic of what is the group's alone, once there is anything to read.
#[derive(Debug)]
pub(crate) struct Own {
    topic: String,
    reader: OnceLock<Reader>,
}

impl Own {
    pub(crate) fn new(topic: String) -> Arc<Self> {
        Arc::new(Self { topic, reader: OnceLock::new() })
    }

    pub(crate) fn get(&self) -> Option<&Reader> {
        self.reader.get()
    }

    /// What the group has still to settle of it; until it is read, all that is there.
    pub(crate) async fn lag(&self, connection: &Connection) -> Result<u64> {
        match self.get() {
            Some(reader) => Context::lag(&reader.context, &reader.shared).await,
            None => connection.held("lag", &self.topic).await,
        }
    }
}

impl KafkaBroker {
    /// Starts a member of its own for one topic.
    pub(crate) fn read(&self, terms: &Terms, reading: Reading) -> Result<Reader> {
        let Terms { options, config, claim_timeout, arrived } = terms;
        let Reading { source, topic, group, start } = reading;
        let named = options.group.name().is_some();
        let env = self.environment();
        let common = &self.connection().common;
        let client = properties::consumer(common, config, &group, *claim_timeout, options.window);
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
        Ok(Reader { shared, commands, progress, context })
    }

    /// Reads what is one group's alone, from its beginning wherever the group begins.
    pub(crate) fn read_own(&self, terms: &Terms, own: &Own) -> Result<()> {
        let (topic, group) = (own.topic.clone(), own.topic.clone());
        let reader =
            self.read(terms, Reading { source: Source::Group, topic, group, start: Start::Earliest })?;
        own.reader.get_or_init(|| reader);
        Ok(())
    }

    /// Starts the second client when there is anything for it to read.
    pub(crate) async fn look_out(self, terms: Terms, own: Arc<Own>, channel: Arc<Shared>) {
        // a broker that is away is asked again
        while self.connection().held("receive", &own.topic).await.unwrap_or(0) == 0 {
            self.environment().sleep(LOOK).await;
        }
        while let Err(error) = self.read_own(&terms, &own) {
            let topic = &own.topic;
            tracing::warn!(target: "postrider::connection", %error, topic, "what is the group's alone can't be read yet");
            self.environment().sleep(LOOK).await;
        }
        // the subscription may have been paused or left meanwhile; whichever looks last finds the other's mark
        if let Some(reader) = own.get() {
            reader.shared.pause(channel.is_paused());
            if channel.is_closed() {
                reader.leave();
            }
        }
        terms.arrived.notify_one();
    }
}

impl Reader {
    pub(crate) fn leave(&self) {
        self.shared.close();
        // a thread that is gone has left already
        let _ = self.commands.send(Command::Stop);
        self.shared.waker.wake();
    }

    /// Resolves when the thread is through.
    pub(crate) async fn left(&self) {
        // one that is gone is through, too
        let _ = self.progress.clone().wait_for(|progress| progress.done).await;
    }
}

impl Context {
    /// What the whole group has still to settle of the topic.
    pub(crate) async fn lag(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<u64> {
        ask_again(&self.connection.env, REQUEST, error::is_leaderless, || self.lag_now(shared)).await
    }

    async fn lag_now(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<u64> {
        let Some(count) = self.connection.partitions("lag", &self.topic).await? else {
            // that nothing can be handled does not mean that nothing is left to handle
            shared.suspect_topic();
            return Err(error::code("lag", Code::UnknownTopic).with("topic", &self.topic));
        };
        let (context, shared) = (Arc::clone(self), Arc::clone(shared));
        let asked = tokio::task::spawn_blocking(move || {
            let lag = lag(&context, &shared, count);
            // it has let go of the client, for which a member that leaves waits
            shared.waker.wake();
            lag
        });
        let asked = asked.await;
        asked.map_err(|e| Error::new(ErrorKind::Closed, "lag", "the runtime is stopping").because(e))?
    }
}

/// What is known counts here, elsewhere by what was written down.
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
    let held = shared.lags(&edges);
    let others: Vec<i32> = all.iter().copied().filter(|number| !held.contains_key(number)).collect();
    let mut written = if context.group && !others.is_empty() {
        positions::written(&client, topic, &others, REQUEST).map_err(failed)?
    } else {
        HashMap::new()
    };
    // the group has begun in what is held here, whether that is written down by now or not
    let begun = Mark::default();
    let marks = written.values().map(|written| &written.mark).chain(held.keys().map(|_| &begun));
    let initial = positions::initial_partitions(shared.initial_partitions(), count, marks);
    let lag = |(number, edges): (i32, Edges)| match (held.get(&number), written.remove(&number)) {
        (Some(lag), _) => *lag,
        (None, Some(written)) => written.lag(edges),
        (None, None) if context.start == Start::Latest && (number as u32) < initial => 0,
        (None, None) => edges.high - edges.low,
    };
    Ok(edges.into_iter().map(lag).sum())
}
