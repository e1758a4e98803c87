//! Dead letters of the queue that every dead-letter channel has: taken out one by one and held, acknowledged to close them, given back
//! where they aren't.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use postrider_core::{Env, Error, ErrorKind, Letter, Letters, Origin, Result};

use crate::broker::RabbitmqBroker;
use crate::convert;
use crate::error;

/// How many acknowledgements may be on their way to the queue. A channel of the broker's passes no more than 32 on to a quorum queue
/// before it hears of the first; it keeps the others, and forgets them when it is closed (`SOFT_LIMIT` in `rabbit_fifo_client`).
const AT_ONCE: usize = 8;

/// How often in all the queue is asked whether it has what was given back. Another reader may have taken it already: then order is lost,
/// and nothing else.
const LOOKS: usize = 400;
/// How long to wait between two of those.
const PAUSE: Duration = Duration::from_millis(5);

/// The letters of one channel's own queue that nobody else holds. What was read and not closed is held until [`Letters::leave`], or
/// until this is dropped; the broker takes it back by itself after its consumer time-out (30 minutes, unless it is set otherwise).
#[derive(Debug)]
pub struct RabbitmqLetters {
    broker: RabbitmqBroker,
    queue: String,
    session: Option<Session>,
    sessions: u32,
    /// What went back, with a channel that is gone or by leaving: it is open, and no longer ours to close.
    returned: BTreeSet<(u32, u64)>,
    /// What was being closed when the connection was lost or the call given up: the queue may have heard of it or not.
    doubted: BTreeSet<(u32, u64)>,
}

/// One AMQP channel, and what is held by it. Dropped, the client closes it, and the broker gives back what is held.
#[derive(Debug)]
struct Session {
    generation: u64,
    channel: Channel,
    /// The message id by delivery tag.
    held: BTreeMap<u64, String>,
    /// Those of them that the queue is being told of, and whose answer isn't there yet.
    closing: BTreeSet<u64>,
    /// Held as well, but not handed out yet: they came with the answers to what was closed.
    ahead: VecDeque<Letter>,
}

impl RabbitmqLetters {
    pub(crate) async fn open(broker: &RabbitmqBroker, channel: &str) -> Result<Self> {
        let queue = broker.topology().letters(channel)?;
        let (returned, doubted) = (BTreeSet::new(), BTreeSet::new());
        let mut letters =
            Self { broker: broker.clone(), queue, session: None, sessions: 0, returned, doubted };
        letters.ready("letters").await?;
        Ok(letters)
    }

    /// Makes sure of a session on a connection that lives. The queue is asked for each new one.
    async fn ready(&mut self, operation: &'static str) -> Result<()> {
        let broker = &self.broker;
        let link = broker.consuming();
        let (generation, connection) =
            link.up_within(operation, broker.environment(), broker.config()).await?;
        // a closing that was given up leaves open what the queue has heard, and the letter that was to come with its answer is held by
        // the channel and was never seen: both are over when the channel is
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.lives(generation) && session.closing.is_empty())
        {
            return Ok(());
        }
        let lost = self.session.take().is_some_and(|session| self.give_back(session));
        let (link, queue) = (self.broker.consuming(), &self.queue);
        let opened = async {
            let channel = connection.create_channel().await.map_err(|e| error::of(operation, e))?;
            count(&channel, queue, operation).await?;
            Ok(channel)
        };
        let channel = link.operation(operation, generation, opened).await?;
        self.sessions += 1;
        self.session = Some(Session::new(generation, channel));
        if lost {
            let message = "what was read went back to the queue, since the connection was lost or a closing was given up; reading begins with the oldest again";
            return Err(Error::new(ErrorKind::Connection, operation, message).with("queue", queue));
        }
        Ok(())
    }

    /// Writes down that what a session held is no longer ours; answers whether that was anything.
    fn give_back(&mut self, session: Session) -> bool {
        let held = !session.held.is_empty();
        for tag in session.held.into_keys() {
            let kept = if session.closing.contains(&tag) { &mut self.doubted } else { &mut self.returned };
            kept.insert((self.sessions, tag));
        }
        held
    }

    /// Acknowledges letters that this session holds.
    async fn acknowledge(&mut self, tags: &BTreeSet<u64>) -> Result<()> {
        self.ready("close").await?;
        let (shard, link) = (self.sessions, self.broker.consuming().clone());
        if let Some(session) = &mut self.session {
            let generation = session.generation;
            let acknowledged = session.acknowledge(tags, &self.queue, shard, self.broker.environment());
            link.operation("close", generation, acknowledged).await?;
            session.closing.clear();
            session.held.retain(|tag, _| !tags.contains(tag));
        }
        Ok(())
    }

    /// What there is to say of these, which may not be ours to close any more.
    fn ours(&self, letters: &[Origin]) -> Result<()> {
        let any = |those: &BTreeSet<_>| {
            letters.iter().any(|letter| those.contains(&(letter.shard, letter.position)))
        };
        let message = if any(&self.doubted) {
            "the connection was lost while letters were being closed, or closing them was given up, and whether they are is not known; those that are open come again"
        } else if any(&self.returned) {
            "letters went back to the queue before they could be closed, and are open; read them again"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Connection, "close", message).with("queue", &self.queue).temporary(false))
    }
}

impl Session {
    fn new(generation: u64, channel: Channel) -> Self {
        let (held, closing, ahead) = (BTreeMap::new(), BTreeSet::new(), VecDeque::new());
        Self { generation, channel, held, closing, ahead }
    }

    fn lives(&self, generation: u64) -> bool {
        self.generation == generation && self.channel.status().connected()
    }

    /// Takes out the next letter.
    async fn next(&mut self, queue: &str, shard: u32, env: &Env) -> Result<Option<Letter>> {
        let found = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await;
        let Some(found) = found.map_err(|e| error::of("letters", e).with("queue", queue))? else {
            return Ok(None);
        };
        let delivery = found.delivery;
        let tag = delivery.delivery_tag;
        let envelope = convert::envelope(&delivery.properties, Bytes::from(delivery.data), || {
            format!("{queue}/{:016x}", env.random())
        });
        self.held.insert(tag, envelope.id().to_string());
        Ok(Some(Letter::new(envelope, Origin { shard, position: tag })))
    }

    /// Gives back what is held, in order, and closes the channel. Closing alone gives back as well, but more than 32 in no order.
    async fn leave(&self, queue: &str, env: &Env) -> Result<()> {
        let failed = |e| error::of("leave", e).with("queue", queue);
        let mut ready = count(&self.channel, queue, "leave").await?;
        let mut looks = 0..LOOKS;
        // the queue may have heard of one whose closing was given up, and no tag may be told of twice: closing gives it back, if not
        let open = self.held.keys().filter(|tag| !self.closing.contains(tag));
        for (given, tag) in open.enumerate() {
            let options = BasicNackOptions { multiple: false, requeue: true };
            self.channel.basic_nack(*tag, options).await.map_err(failed)?;
            if (given + 1) % AT_ONCE == 0 {
                let wanted = ready + AT_ONCE as u32;
                while looks.next().is_some() {
                    ready = count(&self.channel, queue, "leave").await?;
                    if ready >= wanted {
                        break;
                    }
                    env.sleep(PAUSE).await;
                }
            }
        }
        self.channel.close(200, "".into()).await.map_err(failed)
    }

    /// Acknowledges these, and waits until the queue has it. The broker's channel answers most things by itself; the queue is heard of
    /// by being asked for a letter, after all that it was told before.
    async fn acknowledge(&mut self, tags: &BTreeSet<u64>, queue: &str, shard: u32, env: &Env) -> Result<()> {
        for (told, tag) in tags.iter().enumerate() {
            self.closing.insert(*tag);
            let acknowledged = self.channel.basic_ack(*tag, BasicAckOptions::default()).await;
            acknowledged.map_err(|e| error::of("close", e).with("queue", queue))?;
            if (told + 1) % AT_ONCE == 0 || told + 1 == tags.len() {
                let next = self.next(queue, shard, env).await?;
                self.ahead.extend(next);
            }
        }
        Ok(())
    }
}

/// How many messages of the queue nobody holds.
async fn count(channel: &Channel, queue: &str, operation: &'static str) -> Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
    match found {
        Ok(found) => Ok(found.message_count()),
        Err(e) if error::is_not_found(&e) => {
            let message = "there is no queue of such a channel's dead letters; start the router whose dead letters go there, or check the name";
            Err(Error::new(ErrorKind::NotFound, operation, message).with("queue", queue).because(e))
        }
        Err(e) => Err(error::of(operation, e).with("queue", queue)),
    }
}

impl Letters for RabbitmqLetters {
    async fn read(&mut self, max: NonZeroUsize, into: &mut Vec<Letter>) -> Result<()> {
        self.ready("letters").await?;
        let (shard, link) = (self.sessions, self.broker.consuming().clone());
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        for _ in 0..max.get() {
            if let Some(letter) = session.ahead.pop_front() {
                into.push(letter);
                continue;
            }
            let generation = session.generation;
            let next = session.next(&self.queue, shard, self.broker.environment());
            let Some(letter) = link.operation("letters", generation, next).await? else {
                break;
            };
            into.push(letter);
        }
        Ok(())
    }

    async fn close(&mut self, letters: &[Origin]) -> Result<()> {
        let own: BTreeSet<u64> = match &self.session {
            Some(session) => {
                let own = letters.iter().filter(|letter| letter.shard == self.sessions);
                own.map(|letter| letter.position).filter(|tag| session.held.contains_key(tag)).collect()
            }
            None => BTreeSet::new(),
        };
        if !own.is_empty()
            && let Err(error) = self.acknowledge(&own).await
        {
            tracing::debug!(target: "postrider::letters", queue = self.queue, %error, "closing was cut off");
            // a connection that is lost takes all letters with it that this reader had
            if let Some(session) = self.session.take_if(|session| !session.held.is_empty()) {
                self.give_back(session);
            }
        }
        self.ours(letters)
    }

    async fn count(&mut self) -> Result<u64> {
        self.ready("count").await?;
        let link = self.broker.consuming().clone();
        let Some(session) = &self.session else {
            return Ok(0);
        };
        let counted = count(&session.channel, &self.queue, "count");
        let ready = link.operation("count", session.generation, counted).await?;
        Ok(u64::from(ready) + session.held.len() as u64)
    }

    fn describe(&self, letter: Origin) -> String {
        let session = self.session.as_ref().filter(|_| letter.shard == self.sessions);
        match session.and_then(|session| session.held.get(&letter.position)) {
            Some(id) => format!("rabbitmq:{}/{id}", self.queue),
            // closed or given back: of its place there is nothing left but the number that it was handed out by
            None => format!("rabbitmq:{}/{}.{}", self.queue, letter.shard, letter.position),
        }
    }

    async fn leave(&mut self) -> Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        // one that is gone has given back already what it held
        let leaving = session.leave(&self.queue, self.broker.environment());
        let _ = self.broker.consuming().during(session.generation, leaving).await;
        self.give_back(session);
        Ok(())
    }
}
