//! One partition's task: it attends to the queue on a channel of its own, fills the buffer, and tells the broker what is settled.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use postrider_core::{BoxFuture, Env, Error, ErrorKind, Order, Result};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::connection::{Link, State};
use crate::convert;
use crate::error;
use crate::ledger::Tell;
use crate::shared::{Arrived, Shared, Told};
use crate::topology::{GroupPlan, Topology};

/// What the broker calls a consumer, on a channel of its own. Each delivery says it, and the client looks its consumer up by it, so the
/// shorter the better.
const CONSUMER: &str = "postrider";
/// How many deliveries are taken before something else is looked at.
const BATCH: usize = 256;
/// How long a queue that could not be attended to is left alone.
const PAUSE: Duration = Duration::from_millis(200);

/// How much of the broker's consumer time-out a message may be held for. Then what doesn't run is given back, before the broker takes
/// all of it away.
pub(crate) const LONGEST: f64 = 0.8;
/// How often in that time is looked.
const LOOKS: u32 = 16;

/// How long the broker may need until it has counted what goes back with a channel.
const RETURNING: Duration = Duration::from_secs(1);

/// How long a few or scattered acknowledgements wait for more that can be told with them in one word.
const GATHERING: Duration = Duration::from_millis(10);
/// How long a queue without order has to answer for settlements before a channel is closed.
const SETTLING: Duration = Duration::from_millis(20);

/// What a partition's task can be asked.
#[derive(Debug)]
pub(crate) enum Request {
    /// Answers whether all that was settled has reached the broker.
    Flush(oneshot::Sender<bool>),
    /// How many messages are still to be settled.
    Lag(oneshot::Sender<Result<u64>>),
}

/// Brings the group's topology back, once a connection.
#[derive(Debug)]
pub(crate) struct Restorer {
    pub(crate) topology: Topology,
    pub(crate) plan: GroupPlan,
    /// The generation of the connection on which it was looked at last.
    pub(crate) done: Mutex<u64>,
}

impl Restorer {
    /// Looks at the topology, unless that was done on this connection already and nothing was found missing since.
    async fn restore(&self, generation: u64, connection: &Connection, again: bool) -> Result<()> {
        let mut done = self.done.lock().await;
        if *done == generation && !again {
            return Ok(());
        }
        self.topology.group(connection, &self.plan).await?;
        *done = generation;
        Ok(())
    }
}

/// Why a channel was left.
enum End {
    /// The subscription is closed.
    Stopped,
    /// The partition was given to another member.
    Released,
    /// The channel, the connection or the queue is gone.
    Lost,
}

/// One partition's task.
pub(crate) struct Attendant {
    pub(crate) link: Link,
    pub(crate) env: Env,
    pub(crate) shared: Arc<Shared>,
    pub(crate) restorer: Arc<Restorer>,
    pub(crate) shard: usize,
    pub(crate) prefetch: u16,
    /// After how long with a message unsettled the broker takes the queue away.
    pub(crate) consumer_timeout: Duration,
    pub(crate) hash: std::hash::RandomState,
    pub(crate) stop: CancellationToken,
    pub(crate) requests: mpsc::Receiver<Request>,
    /// When the partition was given up last: for a moment the broker counts what went back with the channel nowhere.
    pub(crate) gave_up: Option<Instant>,
}

impl Attendant {
    fn queue(&self) -> &str {
        self.restorer.plan.queues.get(self.shard).map_or("", String::as_str)
    }

    /// Attends to the queue until the subscription ends. `attached` is told when it does for the first time.
    pub(crate) async fn run(mut self, attached: oneshot::Sender<Result<()>>) {
        let mut attached = Some(attached);
        let mut missing = false;
        loop {
            let link = self.link.clone();
            let Some((generation, connection)) = self.beside(Box::pin(async move { link.up().await })).await
            else {
                return;
            };
            let (link, restorer, queue) =
                (self.link.clone(), Arc::clone(&self.restorer), self.queue().to_owned());
            let (prefetch, again) = (self.prefetch, std::mem::take(&mut missing));
            let attaching = Box::pin(async move {
                let attaching = attach(&restorer, queue, prefetch, generation, &connection, again);
                link.operation("subscribe", generation, attaching).await
            });
            let error = match self.beside(attaching).await {
                None => return,
                Some(Ok((channel, consumer))) => {
                    self.shared.attached(self.shard, self.env.now());
                    if let Some(attached) = attached.take() {
                        // nobody waits when `subscribe` was cancelled; then `stop` comes next
                        let _ = attached.send(Ok(()));
                    }
                    match self.attend(generation, &channel, consumer).await {
                        End::Stopped => return,
                        End::Released => self.gave_up = Some(self.env.now()),
                        End::Lost => {
                            self.shared.lose(self.shard);
                            // it may have been deleted
                            missing = true;
                        }
                    }
                    continue;
                }
                Some(Err(error)) => error,
            };
            // what the broker refuses for now, a look a little later shows again; a lost connection shows in the link
            let passing =
                matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout | ErrorKind::NotFound);
            if let Some(attached) = attached.take() {
                let _ = attached.send(Err(error));
                return;
            }
            if !passing {
                return self.shared.end(error);
            }
            tracing::debug!(target: "postrider::connection", queue = self.queue(), %error, "not attached yet");
            missing = true;
            let pause = self.env.sleep(PAUSE);
            if self.beside(pause).await.is_none() {
                return;
            }
        }
    }

    /// Waits, and answers those who ask meanwhile that it can't be told; `None` when the subscription ends.
    async fn beside<T>(&mut self, mut waiting: BoxFuture<'_, T>) -> Option<T> {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                out = &mut waiting => return Some(out),
                Some(request) = self.requests.recv() => refuse(request),
            }
        }
    }

    async fn attend(&mut self, generation: u64, channel: &Channel, mut consumer: Consumer) -> End {
        let wake = self.shared.wake_of(self.shard);
        let mut link = self.link.watch();
        let mut scattered: Option<BoxFuture<'static, ()>> = None;
        let budget = self.consumer_timeout.mul_f64(LONGEST);
        let mut look = self.env.sleep(budget / LOOKS);
        loop {
            if !is_on(&link.borrow_and_update(), generation) {
                return End::Lost;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    // still attached: what was settled last is told before the queue goes on to another member
                    self.link.during(generation, self.leave(channel)).await;
                    return End::Stopped;
                }
                changed = link.changed() => {
                    if changed.is_err() {
                        return End::Lost;
                    }
                }
                all = due(&wake, &mut scattered) => {
                    // those that are being settled at this moment go with them
                    tokio::task::yield_now().await;
                    match self.tell(channel, all) {
                        Ok(told) if told.released => {
                            self.link.during(generation, self.leave(channel)).await;
                            return End::Released;
                        }
                        Ok(told) if told.more => {
                            scattered.get_or_insert_with(|| self.env.sleep(GATHERING));
                        }
                        Ok(_) => scattered = None,
                        Err(_) => return End::Lost,
                    }
                }
                () = &mut look => {
                    look = self.env.sleep(budget / LOOKS);
                    let now = self.env.now();
                    if let Some(before) = now.checked_sub(budget) {
                        self.shared.hand_over(self.shard, before, now + self.consumer_timeout.saturating_sub(budget));
                    }
                }
                Some(request) = self.requests.recv() => {
                    let answering = self.answer(request, channel, &mut consumer);
                    if self.link.during(generation, answering).await != Some(true) {
                        return End::Lost;
                    }
                }
                delivery = consumer.next() => match delivery {
                    Some(Ok(delivery)) => {
                        self.take(delivery, &mut consumer);
                        // a wake-up for each delivery costs more than all else: let several come
                        tokio::task::yield_now().await;
                    }
                    // cancelled by the broker, or the channel is closed
                    Some(Err(_)) | None => return End::Lost,
                },
            }
        }
    }

    /// Takes a delivery, and those that came with it.
    fn take(&self, first: Delivery, consumer: &mut Consumer) {
        let rest = std::iter::from_fn(|| match consumer.next().now_or_never() {
            Some(Some(Ok(delivery))) => Some(delivery),
            // the end is seen by the next look: the stream of an ended consumer stays ended by its channel's state
            _ => None,
        });
        let all = std::iter::once(first).chain(rest.take(BATCH)).map(|delivery| self.arrived(delivery));
        let all: Vec<_> = all.collect();
        self.shared.push(self.shard, all.into_iter(), self.env.now());
    }

    fn arrived(&self, delivery: Delivery) -> Arrived {
        let tag = delivery.delivery_tag;
        let deliveries = convert::deliveries(&delivery.properties, delivery.redelivered);
        let body = Bytes::from(delivery.data);
        let envelope = convert::envelope(&delivery.properties, body, || {
            // unique, and no identity: the broker gives a message no name that it keeps
            format!("{}/{:016x}", self.queue(), self.env.random())
        });
        let is_ordered = self.restorer.plan.order != Order::None;
        let key = envelope.key().filter(|_| is_ordered).map(|key| self.hash.hash_one(key));
        Arrived { tag, envelope, key, deliveries }
    }

    /// Tells the broker what was settled.
    fn tell(&self, channel: &Channel, all: bool) -> lapin::Result<Told> {
        let told = self.shared.tell(self.shard, all);
        for tell in &told.tells {
            // polled once, its frame has its place. That it was written shows in what is written after it, and that it wasn't in the
            // state of the channel
            let written = match *tell {
                Tell::Ack { tag, multiple } => {
                    channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never()
                }
                Tell::Nack { tag } => {
                    let options = BasicNackOptions { multiple: false, requeue: true };
                    channel.basic_nack(tag, options).now_or_never()
                }
            };
            written.transpose()?;
        }
        Ok(told)
    }

    /// Everything that was told before has reached the queue when this resolves.
    ///
    /// Towards a busy quorum queue the broker's channel keeps settlements back until the queue has answered for earlier ones,
    /// and forgets them when it is closed. Adding a consumer and taking it away again waits for the queue's answer, twice, by
    /// which time what was kept back has gone out. Behind a single active consumer it gets nothing.
    async fn settled(&self, channel: &Channel) -> lapin::Result<()> {
        self.tell(channel, true)?;
        let plan = &self.restorer.plan;
        if plan.order == Order::None || plan.group.is_none() {
            self.roundtrip(channel).await?;
            self.env.sleep(SETTLING).await;
        } else {
            let options = BasicConsumeOptions::default();
            let queue = self.queue().into();
            let shadow = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
            channel.basic_cancel(shadow.tag(), BasicCancelOptions::default()).await?;
        }
        self.roundtrip(channel).await
    }

    /// Everything that was sent before has been taken by the broker's channel when this resolves.
    async fn roundtrip(&self, channel: &Channel) -> lapin::Result<()> {
        channel.basic_qos(self.prefetch, BasicQosOptions::default()).await
    }

    async fn leave(&self, channel: &Channel) {
        let left = async {
            self.settled(channel).await?;
            channel.close(200, "left".into()).await
        };
        // a channel that is gone already was left as well
        let _: lapin::Result<()> = left.await;
    }

    /// Answers a request; whether the channel is still there.
    async fn answer(&self, request: Request, channel: &Channel, consumer: &mut Consumer) -> bool {
        match request {
            Request::Flush(answer) => {
                let told = self.settled(channel).await.is_ok();
                let _ = answer.send(told);
                told
            }
            Request::Lag(_) if self.is_giving_up() => {
                refuse(request);
                true
            }
            Request::Lag(answer) => {
                let lag = self.lag(channel, consumer).await;
                let there = lag.is_ok();
                let _ = answer.send(lag.map_err(|e| error::of("lag", e)));
                there
            }
        }
    }

    fn is_giving_up(&self) -> bool {
        let recent = |at| self.env.now().saturating_duration_since(at) < RETURNING;
        self.shared.is_leaving(self.shard) || self.gave_up.is_some_and(recent)
    }

    /// What is ready in the queue and what is here. Some may be on the way between: they are waited for on the channel that they
    /// come by, and what arrives while the broker counts makes it count again.
    async fn lag(&self, channel: &Channel, consumer: &mut Consumer) -> lapin::Result<u64> {
        let mut ready = 0;
        for _ in 0..5 {
            self.gather(channel, consumer).await?;
            let before = self.shared.held(self.shard);
            ready = u64::from(ready_in(channel, self.queue()).await?);
            self.gather(channel, consumer).await?;
            if self.shared.held(self.shard) == before {
                break;
            }
        }
        Ok(ready + self.shared.held(self.shard) as u64)
    }

    async fn gather(&self, channel: &Channel, consumer: &mut Consumer) -> lapin::Result<()> {
        self.tell(channel, true)?;
        self.roundtrip(channel).await?;
        if let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
            self.take(delivery, consumer);
        }
        Ok(())
    }
}

/// Whether the connection of that generation lives.
fn is_on(state: &State, generation: u64) -> bool {
    state.generation == generation && state.connection.is_some()
}

/// Resolves when something is settled, or, with `true`, when the scattered ones have waited long enough.
async fn due(wake: &Notify, scattered: &mut Option<BoxFuture<'static, ()>>) -> bool {
    let waited = async {
        match scattered {
            Some(sleep) => sleep.await,
            None => std::future::pending().await,
        }
    };
    let all = tokio::select! {
        biased;
        () = waited => true,
        () = wake.notified() => false,
    };
    if all {
        *scattered = None;
    }
    all
}

async fn attach(
    restorer: &Restorer,
    queue: String,
    prefetch: u16,
    generation: u64,
    connection: &Connection,
    again: bool,
) -> Result<(Channel, Consumer)> {
    restorer.restore(generation, connection, again).await?;
    let failed = |e| error::of("subscribe", e).with("queue", &queue);
    let channel = connection.create_channel().await.map_err(failed)?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
    let options = BasicConsumeOptions::default();
    let (queue, tag) = (queue.as_str().into(), CONSUMER.into());
    let consumer = channel.basic_consume(queue, tag, options, FieldTable::default()).await;
    Ok((channel, consumer.map_err(failed)?))
}

/// How many messages wait in a queue.
async fn ready_in(channel: &Channel, queue: &str) -> lapin::Result<u32> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    Ok(channel.queue_declare(queue.into(), passive, FieldTable::default()).await?.message_count())
}

fn refuse(request: Request) {
    match request {
        Request::Flush(answer) => drop(answer.send(false)),
        Request::Lag(answer) => {
            let message =
                "the queue can't be asked now: its connection is being restored, or it changes hands";
            drop(answer.send(Err(Error::new(ErrorKind::Connection, "lag", message))));
        }
    }
}
