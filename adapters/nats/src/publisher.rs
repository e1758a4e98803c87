//! Publishing: a bounded queue, handed over to the client only while it is connected, and confirmed by the server's answer.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{Message, StatusCode, Subject};
use futures_util::{FutureExt, StreamExt};
use postrider_core::{
    Capabilities, Channel, Confirm, Confirmed, Confirms, DrainReport, Env, Error, ErrorKind, NewSend,
    Outgoing, Pending, PublishError, PublishOrder, Receipt, Result, Window, check_address, check_size,
    fit_copy, key_slot,
};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::config::{NatsConfig, OnUnknown};
use crate::connection::Connection;
use crate::convert;
use crate::error;
use crate::topology::Topology;

/// The most answers that are taken together.
const LOT: usize = 256;

/// The publishing half.
#[derive(Debug)]
pub(crate) struct Outbox {
    connection: Connection,
    topology: Topology,
    env: Env,
    pending: Arc<Pending<Sent>>,
    /// The inbox of the answers, up to the dot before the token.
    inbox: String,
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

/// What is kept of a send until it is answered.
#[derive(Debug, Default)]
struct Sent {
    /// What went out, where it may have to be sent again.
    message: Option<Box<OutboundMessage>>,
    resent: bool,
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
        let bound = Window { messages: config.max_pending, bytes: config.max_pending_bytes };
        let pending = Arc::new(Pending::new(bound));
        let inbox = connection.client.new_inbox() + ".";
        let answers = connection
            .client
            .subscribe(format!("{inbox}*"))
            .await
            .map_err(|e| error::request("connect", e))?;
        let resend = config.on_unknown == OnUnknown::Resend;
        let mut tasks = JoinSet::new();
        tasks.spawn(read_answers(answers, Arc::clone(&pending), inbox.len()));
        tasks.spawn(watch(connection.clone(), Arc::clone(&pending), env.clone(), resend));
        Ok(Self {
            connection,
            topology,
            env,
            pending,
            inbox,
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
        Channel::check(message.address.channel())?;
        check_address(message, &self.capabilities)?;
        let largest = self.connection.client.max_payload();
        let (body, waits) = (message.envelope.payload().len(), message.options.delay.is_some());
        fit_copy(message, convert::room_of_copy(body, largest, waits), convert::copy_len)
    }

    /// The message as it goes out; its answer names the token.
    fn outbound(&self, message: &Outgoing<'_>, token: u64) -> OutboundMessage {
        let (envelope, channel) = (&message.envelope, message.address.channel());
        let naming = self.topology.naming();
        let mut headers = convert::headers(envelope, message.options.hop.as_deref());
        let subject = match (message.address.group(), message.options.delay) {
            (None, _) => naming.slot(channel, self.slot(envelope.key())),
            (Some(group), None) => naming.redrive(channel, group),
            (Some(group), Some(delay)) => {
                let unique =
                    convert::schedule(&mut headers, self.env.due_ms(delay), &naming.redrive(channel, group));
                naming.retry(channel, group, &unique)
            }
        };
        OutboundMessage {
            subject: subject.into(),
            reply: Some(self.reply(token)),
            payload: envelope.payload().clone(),
            headers: Some(headers),
        }
    }

    fn slot(&self, key: Option<&[u8]>) -> u32 {
        match key {
            Some(key) => key_slot(key),
            None => (self.keyless.fetch_add(1, Relaxed) % u64::from(postrider_core::KEY_SLOTS)) as u32,
        }
    }

    /// Where the answer to that send goes.
    fn reply(&self, token: u64) -> Subject {
        let mut digits = itoa::Buffer::new();
        let token = digits.format(token);
        let mut reply = String::with_capacity(self.inbox.len() + token.len());
        reply.extend([self.inbox.as_str(), token]);
        reply.into()
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

    fn entry(&self, message: &Outgoing<'_>) -> NewSend<Sent> {
        NewSend {
            deadline: self.env.deadline(message.options.deadline.unwrap_or(self.deadline)),
            key: self.key(message),
            bytes: message.envelope.byte_len(),
            sent: Sent::default(),
        }
    }

    /// A slot for a message that needn't wait; for one to a group the server may have to be asked first.
    fn open_at_once(
        &self,
        message: &Outgoing<'_>,
        entry: NewSend<Sent>,
    ) -> std::result::Result<u64, NewSend<Sent>> {
        if message.address.group().is_some() || !self.connection.is_up() {
            return Err(entry);
        }
        self.pending.try_open(entry)
    }

    /// A slot when there is room, the key's turn has come, and the connection is there.
    async fn opened(&self, message: &Outgoing<'_>, mut entry: NewSend<Sent>) -> Result<u64> {
        let mut room = self.pending.room(entry.bytes).await;
        loop {
            if let Some(key) = entry.key {
                self.pending.until_free(key).await;
            }
            self.connection.up().await;
            self.check_group(message).await?;
            match self.pending.open(entry, room) {
                Ok(token) => return Ok(token),
                // another send of the key came between
                Err(back) => (entry, room) = back,
            }
        }
    }

    /// The same within the deadline.
    async fn open_in_time(&self, message: &Outgoing<'_>, entry: NewSend<Sent>) -> Result<u64> {
        let allowed = message.options.deadline.unwrap_or(self.deadline);
        tokio::select! {
            biased;
            opened = self.opened(message, entry) => opened,
            () = self.env.sleep(allowed) => {
                let what = if self.connection.is_up() { "there was no room" } else { "the connection was down" };
                let text = format!("{what} until the deadline of {allowed:?}; it was never handed over");
                Err(Error::new(ErrorKind::Timeout, "publish", text).with("channel", message.address.channel()))
            }
        }
    }

    /// Hands over to the client, which takes it at once unless its own queue is full. Dropped before that, nothing was sent.
    async fn hand_over(&self, message: &Outgoing<'_>, token: u64) -> Confirm {
        struct Cancel<'a>(&'a Pending<Sent>, Option<u64>);
        impl Drop for Cancel<'_> {
            fn drop(&mut self) {
                if let Some(token) = self.1 {
                    self.0.cancel(token);
                }
            }
        }
        let mut cancel = Cancel(&self.pending, Some(token));
        let out = self.outbound(message, token);
        if self.resend {
            self.pending.with(token, |sent| sent.message = Some(Box::new(out.clone())));
        }
        let handed = self.connection.client.publish_message(out).await;
        cancel.1 = None;
        if let Err(e) = handed {
            let kind = match e.kind() {
                async_nats::client::PublishErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
                _ => ErrorKind::Broker,
            };
            let error = Error::new(kind, "publish", "the client refuses the message")
                .with("channel", message.address.channel());
            self.pending.resolve(token, |_| Err(PublishError::Failed(error.because(e))));
        }
        Confirm::tracked(Arc::clone(&self.pending) as Arc<dyn Confirms>, token)
    }

    pub(crate) async fn send(&self, mut message: Outgoing<'_>) -> Confirm {
        if let Err(error) = self.check(&mut message) {
            return Confirm::failed(error);
        }
        // who needn't wait needs no timer
        let opened = match self.open_at_once(&message, self.entry(&message)) {
            Ok(token) => Ok(token),
            Err(entry) => self.open_in_time(&message, entry).await,
        };
        match opened {
            Ok(token) => self.hand_over(&message, token).await,
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
        let Ok(token) = self.open_at_once(&message, self.entry(&message)) else {
            return Err(message);
        };
        // pending means that the client's queue is full: the future is dropped, and nothing was sent
        match self.hand_over(&message, token).now_or_never() {
            Some(confirm) => Ok(confirm),
            None => Err(message),
        }
    }

    /// All that was handed over is answered.
    pub(crate) async fn flush(&self) -> std::result::Result<(), PublishError> {
        self.pending.flushed().await
    }

    /// Takes no more, and waits until all is answered or the deadline has come.
    pub(crate) async fn close(&self, deadline: Instant) -> DrainReport {
        self.closed.store(true, Relaxed);
        let left = deadline.saturating_duration_since(self.env.now());
        let in_time = tokio::select! {
            biased;
            // failures that nobody read are in the report
            _ = self.pending.flushed() => true,
            () = self.env.sleep(left) => false,
        };
        if !in_time {
            let text = "the server didn't answer before the publisher closed";
            unknown(&self.pending, self.pending.unanswered(), || {
                Error::new(ErrorKind::Timeout, "close", text)
            });
        }
        self.pending.report()
    }
}

/// Answers, each with its token behind the last dot; all that are there are taken together.
async fn read_answers(mut answers: async_nats::Subscriber, pending: Arc<Pending<Sent>>, prefix: usize) {
    let mut lot = Vec::with_capacity(LOT);
    while let Some(message) = answers.next().await {
        let mut next = Some(message);
        while let Some(message) = next {
            if let Some(token) = message.subject.get(prefix..).and_then(|token| token.parse::<u64>().ok()) {
                lot.push((token, outcome(&message)));
            }
            next = if lot.len() < LOT { answers.next().now_or_never().flatten() } else { None };
        }
        pending.resolve_all(
            lot.drain(..)
                .map(|(token, outcome)| (token, move |sent: &mut Sent| as_asked(outcome, sent.resent))),
        );
    }
}

/// Where our own first copy was stored, that is what was asked for.
fn as_asked(mut outcome: Confirmed, resent: bool) -> Confirmed {
    if let (true, Ok(receipt)) = (resent, &mut outcome) {
        receipt.duplicate = false;
    }
    outcome
}

/// Resolves what isn't answered: it may be stored.
fn unknown(pending: &Pending<Sent>, tokens: Vec<u64>, why: impl Fn() -> Error) {
    pending.resolve_all(
        tokens.into_iter().map(|token| (token, |_: &mut Sent| Err(PublishError::Unknown(why())))),
    );
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
async fn watch(connection: Connection, pending: Arc<Pending<Sent>>, env: Env, resend: bool) {
    let mut link = connection.link();
    loop {
        tokio::select! {
            now = connection.changed(link) => {
                let lost = !now.up || now.generation != link.generation;
                link = now;
                if lost && !resend {
                    let text = "the connection was lost before the answer";
                    unknown(&pending, pending.unanswered(), || Error::new(ErrorKind::Connection, "publish", text));
                } else if lost && now.up {
                    send_again(&connection, &pending).await;
                }
            }
            () = env.sleep(Duration::from_millis(100)) => {
                let text = "the server didn't answer within the deadline";
                let overdue = pending.overdue(env.now());
                unknown(&pending, overdue, || Error::new(ErrorKind::Timeout, "publish", text));
            }
        }
    }
}

/// Sends again what has no answer, in its order.
async fn send_again(connection: &Connection, pending: &Pending<Sent>) {
    for token in pending.unanswered() {
        let again = pending.with(token, |sent| {
            let message = sent.message.clone();
            sent.resent |= message.is_some();
            message
        });
        if let Some(message) = again.flatten() {
            // refused by the client: the deadline will say so
            let _ = connection.client.publish_message(*message).await;
        }
    }
}
