//! Publishing: a bounded queue, handed over to the client only while it is connected, and confirmed by the server's answer.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Message, StatusCode};
use futures_util::{FutureExt, StreamExt};
use postrider_core::{
    Capabilities, Confirm, Confirmed, DrainReport, Env, Error, ErrorKind, Outgoing, PublishError,
    PublishOrder, Receipt, Result, check_address, check_size, fit_copy, key_slot,
};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::config::{NatsConfig, OnUnknown};
use crate::confirms::{Sent, Slots};
use crate::connection::Connection;
use crate::convert;
use crate::error;
use crate::topology::Topology;

/// The byte bound is counted in pieces of this size, since a semaphore counts to 2^29 at most on every machine.
const PIECE: usize = 1024;

/// The publishing half.
#[derive(Debug)]
pub(crate) struct Outbox {
    connection: Connection,
    topology: Topology,
    env: Env,
    slots: Arc<Slots>,
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    all_bytes: u32,
    reply: String,
    deadline: Duration,
    resend: bool,
    capabilities: Capabilities,
    keyless: AtomicU64,
    /// Channels and groups of theirs that were there when something was sent to them.
    groups: Mutex<HashSet<(String, String)>>,
    closed: AtomicBool,
    hash: std::hash::RandomState,
    _tasks: JoinSet<()>,
}

/// The server's answer to a publish.
#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<async_nats::jetstream::Error>,
}

impl Outbox {
    pub(crate) async fn open(
        connection: Connection,
        topology: Topology,
        config: &NatsConfig,
        env: Env,
        capabilities: Capabilities,
    ) -> Result<Self> {
        let slots = Arc::new(Slots::default());
        let reply = connection.client.new_inbox();
        let answers = connection
            .client
            .subscribe(format!("{reply}.*"))
            .await
            .map_err(|e| error::request("connect", e))?;
        let resend = config.on_unknown == OnUnknown::Resend;
        let mut tasks = JoinSet::new();
        tasks.spawn(read_answers(answers, Arc::clone(&slots), reply.len() + 1));
        tasks.spawn(watch(connection.clone(), Arc::clone(&slots), env.clone(), reply.clone(), resend));
        let all_bytes = u32::try_from(config.max_pending_bytes.div_ceil(PIECE)).unwrap_or(u32::MAX >> 4);
        Ok(Self {
            connection,
            topology,
            env,
            slots,
            messages: Arc::new(Semaphore::new(config.max_pending)),
            bytes: Arc::new(Semaphore::new(all_bytes as usize)),
            all_bytes,
            reply,
            deadline: config.send_deadline,
            resend,
            capabilities,
            keyless: AtomicU64::new(0),
            groups: Mutex::default(),
            closed: AtomicBool::new(false),
            hash: std::hash::RandomState::new(),
            _tasks: tasks,
        })
    }

    /// Refuses what can't be sent; of a copy, leaves out what the server wouldn't store.
    fn check(&self, message: &mut Outgoing<'_>) -> Result<()> {
        if self.closed.load(Relaxed) {
            return Err(Error::new(ErrorKind::Closed, "publish", "the publisher is closed; connect again"));
        }
        // a dead letter may use the room that was left for its headers
        let usable =
            if message.options.hop.is_some() { usize::MAX } else { self.capabilities.usable_payload() };
        check_size(&message.envelope, usable)?;
        if message.options.hop.is_none()
            && let Some((found, most)) = convert::excess(&message.envelope)
        {
            let text = format!(
                "the headers take {found} bytes on the wire, {most} are left of what this server stores with a message; send less in them"
            );
            return Err(Error::new(ErrorKind::TooLarge, "publish", text).with("id", message.envelope.id()));
        }
        postrider_core::Channel::new(message.address.channel())?;
        check_address(message, &self.capabilities)?;
        let largest = self.connection.client.max_payload();
        let (body, waits) = (message.envelope.payload().len(), message.options.delay.is_some());
        fit_copy(message, convert::room_of_copy(body, largest, waits), convert::copy_len)
    }

    fn pieces(&self, message: &Outgoing<'_>) -> u32 {
        u32::try_from(message.envelope.byte_len().div_ceil(PIECE))
            .unwrap_or(u32::MAX)
            .clamp(1, self.all_bytes)
    }

    /// The message as it goes out.
    fn sent(&self, message: &Outgoing<'_>) -> Sent {
        let (envelope, channel) = (&message.envelope, message.address.channel());
        let slot = match envelope.key() {
            Some(key) => key_slot(key),
            None => (self.keyless.fetch_add(1, Relaxed) % u64::from(postrider_core::KEY_SLOTS)) as u32,
        };
        let naming = self.topology.naming();
        let mut headers = convert::headers(envelope, message.options.hop.as_deref());
        let subject = match (message.address.group(), message.options.delay) {
            (None, _) => naming.slot(channel, slot),
            (Some(group), None) => naming.redrive(channel, group),
            (Some(group), Some(delay)) => {
                let unique = convert::schedule(
                    &mut headers,
                    self.env.wall_ms().saturating_add(delay.as_millis() as u64),
                    &naming.redrive(channel, group),
                );
                naming.retry(channel, group, &unique)
            }
        };
        Sent { subject, headers, payload: envelope.payload().clone() }
    }

    /// The stream takes messages to any group, also to one that nobody reads for; that would be a loss.
    async fn check_group(&self, message: &Outgoing<'_>) -> Result<()> {
        let channel = message.address.channel();
        let Some(group) = message.address.group() else {
            return Ok(());
        };
        let known = (channel.to_owned(), group.to_owned());
        if self.groups().contains(&known) {
            return Ok(());
        }
        if self.topology.has_group(channel, group).await? {
            self.groups().insert(known);
            return Ok(());
        }
        let text = "the channel has no such group; start the router that reads for it first";
        let error = Error::new(ErrorKind::NotFound, "publish", text);
        Err(error.with("channel", channel).with("group", group))
    }

    fn groups(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, message: &Outgoing<'_>) -> Option<u64> {
        (message.options.order == PublishOrder::PerKey)
            .then(|| message.envelope.key().map(|key| self.hash.hash_one(key)))
            .flatten()
    }

    /// Hands over to the client, which takes it at once unless its own queue is full. Dropped before that, nothing was sent.
    async fn hand_over(
        &self,
        message: &Outgoing<'_>,
        room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
        key: Option<u64>,
        deadline: Instant,
    ) -> Confirm {
        struct Cancel<'a>(&'a Slots, Option<u64>);
        impl Drop for Cancel<'_> {
            fn drop(&mut self) {
                self.1.into_iter().for_each(|token| self.0.cancel(token));
            }
        }
        let sent = self.sent(message);
        let token = self.slots.open(self.resend.then(|| sent.clone()), deadline, key, room);
        let mut cancel = Cancel(&self.slots, Some(token));
        let reply = format!("{}.{token}", self.reply);
        let Sent { subject, headers, payload } = sent;
        let handed =
            self.connection.client.publish_with_reply_and_headers(subject, reply, headers, payload).await;
        cancel.1 = None;
        if let Err(e) = handed {
            let kind = match e.kind() {
                async_nats::client::PublishErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
                _ => ErrorKind::Broker,
            };
            let error = Error::new(kind, "publish", "the client refuses the message")
                .with("channel", message.address.channel());
            self.slots.resolve(token, Err(PublishError::Failed(error.because(e))));
        }
        Confirm::tracked(Arc::clone(&self.slots) as Arc<dyn postrider_core::Confirms>, token)
    }

    pub(crate) async fn send(&self, mut message: Outgoing<'_>) -> Confirm {
        if let Err(error) = self.check(&mut message) {
            return Confirm::failed(error);
        }
        let allowed = message.options.deadline.unwrap_or(self.deadline);
        let deadline = self.env.now() + allowed;
        let (pieces, key) = (self.pieces(&message), self.key(&message));
        let ready = async {
            // the semaphores are never closed
            let messages = Arc::clone(&self.messages).acquire_owned().await.ok()?;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(pieces).await.ok()?;
            while let Some(key) = key
                && self.slots.has_key(key)
            {
                tokio::select! {
                    () = self.slots.answer() => {}
                    // an answer may have come between the look and the wait
                    () = self.env.sleep(Duration::from_millis(1)) => {}
                }
            }
            self.connection.up().await;
            Some(self.check_group(&message).await.map(|()| (messages, bytes)))
        };
        let room = tokio::select! {
            biased;
            room = ready => room,
            () = self.env.sleep(allowed) => None,
        };
        let Some(room) = room else {
            let what = if self.connection.is_up() { "there was no room" } else { "the connection was down" };
            let message_text = format!("{what} until the deadline of {allowed:?}; it was never handed over");
            let error = Error::new(ErrorKind::Timeout, "publish", message_text)
                .with("channel", message.address.channel());
            return Confirm::failed(error);
        };
        match room {
            Ok(room) => self.hand_over(&message, room, key, deadline).await,
            Err(error) => Confirm::failed(error),
        }
    }

    #[expect(clippy::result_large_err, reason = "the message is given back, not an error made")]
    pub(crate) fn try_send<'a>(
        &self,
        mut message: Outgoing<'a>,
    ) -> std::result::Result<Confirm, Outgoing<'a>> {
        if let Err(error) = self.check(&mut message) {
            return Ok(Confirm::failed(error));
        }
        let key = self.key(&message);
        if message.address.group().is_some()
            || !self.connection.is_up()
            || key.is_some_and(|key| self.slots.has_key(key))
        {
            return Err(message);
        }
        let Ok(messages) = Arc::clone(&self.messages).try_acquire_owned() else {
            return Err(message);
        };
        let pieces = self.pieces(&message);
        let Ok(bytes) = Arc::clone(&self.bytes).try_acquire_many_owned(pieces) else {
            return Err(message);
        };
        let deadline = self.env.now() + message.options.deadline.unwrap_or(self.deadline);
        // pending means that the client's queue is full: the future is dropped, and nothing was sent
        match self.hand_over(&message, (messages, bytes), key, deadline).now_or_never() {
            Some(confirm) => Ok(confirm),
            None => Err(message),
        }
    }

    /// All that was handed over is answered.
    pub(crate) async fn flush(&self) -> std::result::Result<(), PublishError> {
        self.slots.flushed().await
    }

    /// Takes no more, and waits until all is answered or the deadline has come.
    pub(crate) async fn close(&self, deadline: Instant) -> DrainReport {
        self.closed.store(true, Relaxed);
        let left = deadline.saturating_duration_since(self.env.now());
        let in_time = tokio::select! {
            biased;
            // failures that nobody read are in the report
            _ = self.slots.flushed() => true,
            () = self.env.sleep(left) => false,
        };
        if !in_time {
            for token in self.slots.unanswered() {
                let error = Error::new(
                    ErrorKind::Timeout,
                    "close",
                    "the server didn't answer before the publisher closed",
                );
                self.slots.resolve(token, Err(PublishError::Unknown(error)));
            }
        }
        self.slots.report()
    }
}

/// Answers, each with its token behind the last dot.
async fn read_answers(mut answers: async_nats::Subscriber, slots: Arc<Slots>, prefix: usize) {
    while let Some(message) = answers.next().await {
        if let Some(token) = message.subject.get(prefix..).and_then(|token| token.parse().ok()) {
            slots.resolve(token, outcome(&message));
        }
    }
}

fn outcome(message: &Message) -> Confirmed {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        let text = "no stream takes this channel; start the router that reads it first, or declare it: `broker.declare(…)`";
        return Err(PublishError::Failed(Error::new(ErrorKind::NotFound, "publish", text)));
    }
    match serde_json::from_slice::<Ack>(&message.payload) {
        Ok(Ack { error: Some(e), .. }) => {
            let error = error::api("publish", &e);
            // a server that is short of something may have stored it; one that refuses has not
            Err(if error.is_temporary() { PublishError::Unknown(error) } else { PublishError::Failed(error) })
        }
        Ok(ack) if ack.seq > 0 => {
            let receipt = Receipt::new(0, ack.seq);
            Ok(if ack.duplicate { receipt.duplicate() } else { receipt })
        }
        Ok(_) => Err(PublishError::Unknown(Error::new(
            ErrorKind::Broker,
            "publish",
            "the server's answer has no sequence",
        ))),
        Err(e) => {
            let error =
                Error::new(ErrorKind::Broker, "publish", "the server's answer can't be read").because(e);
            Err(PublishError::Unknown(error))
        }
    }
}

/// Resolves what can't be answered any more: after a lost connection, and after the deadline.
async fn watch(connection: Connection, slots: Arc<Slots>, env: Env, reply: String, resend: bool) {
    let mut link = connection.link();
    loop {
        tokio::select! {
            now = connection.changed(link) => {
                let lost = !now.up || now.generation != link.generation;
                link = now;
                if lost && !resend {
                    for token in slots.unanswered() {
                        let error = Error::new(ErrorKind::Connection, "publish", "the connection was lost before the answer");
                        slots.resolve(token, Err(PublishError::Unknown(error)));
                    }
                } else if lost && now.up {
                    for (token, sent) in slots.to_resend() {
                        let Sent { subject, headers, payload } = sent;
                        let reply = format!("{reply}.{token}");
                        // refused by the client: the deadline will say so
                        let _ = connection.client.publish_with_reply_and_headers(subject, reply, headers, payload).await;
                    }
                }
            }
            () = env.sleep(Duration::from_millis(100)) => {
                for token in slots.overdue(env.now()) {
                    let error = Error::new(ErrorKind::Timeout, "publish", "the server didn't answer within the deadline");
                    slots.resolve(token, Err(PublishError::Unknown(error)));
                }
            }
        }
    }
}
