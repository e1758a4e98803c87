//! Publishing: a bounded queue, which the driver hands over to the client only while it is connected.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use postrider_core::{
    Capabilities, Confirm, Confirms, DrainReport, Env, Error, ErrorKind, Health, MessageId, Outgoing,
    PublishError, PublishOrder, Result, check_address, check_size, fit_copy, key_slot, retry_tier,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::{OnUnknown, RabbitmqConfig};
use crate::confirms::{Sent, Slots};
use crate::connection::Link;
use crate::convert;
use crate::driver::Driver;
use crate::foreign::Destination;
use crate::naming::Naming;

/// The byte bound is counted in pieces of this size, since a semaphore counts to 2^29 at most on every machine.
const PIECE: usize = 1024;
/// What the broker adds to a message's headers in their one frame: its counts, and where and why the message waited or died.
const ADDED: usize = 4 * 1024;
/// Properties that are shorter in memory fit into such a frame, however they are written there.
const SMALL: usize = 16 * 1024;
/// The largest frame of a broker that nobody has set otherwise, in bytes.
const FRAME: usize = 128 * 1024;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(50);

/// The publishing half.
#[derive(Debug)]
pub(crate) struct Outbox {
    link: Link,
    naming: Naming,
    env: Env,
    slots: Arc<Slots>,
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    all_bytes: u32,
    deadline: Duration,
    /// The largest frame of the last connection, in bytes.
    frame: AtomicUsize,
    capabilities: Capabilities,
    keyless: AtomicU64,
    closed: AtomicBool,
    hash: std::hash::RandomState,
    _tasks: JoinSet<()>,
}

impl Outbox {
    pub(crate) fn new(
        link: Link,
        naming: Naming,
        config: &RabbitmqConfig,
        env: Env,
        capabilities: Capabilities,
    ) -> Self {
        let slots = Arc::new(Slots::default());
        let driver = Driver {
            link: link.clone(),
            slots: Arc::clone(&slots),
            env: env.clone(),
            resend: config.on_unknown == OnUnknown::Resend,
            most: config.max_pending,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run());
        tasks.spawn(deadlines(Arc::clone(&slots), env.clone()));
        let all_bytes = u32::try_from(config.max_pending_bytes.div_ceil(PIECE)).unwrap_or(u32::MAX >> 4);
        Self {
            frame: AtomicUsize::new(link.frame().unwrap_or(FRAME)),
            link,
            naming,
            env,
            slots,
            messages: Arc::new(Semaphore::new(config.max_pending)),
            bytes: Arc::new(Semaphore::new(all_bytes as usize)),
            all_bytes,
            deadline: config.send_deadline,
            capabilities,
            keyless: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            hash: std::hash::RandomState::new(),
            _tasks: tasks,
        }
    }

    /// Where the message goes: an exchange, and the routing key if it isn't the key's slot. Of a copy, leaves out what the broker
    /// wouldn't take.
    fn check(&self, message: &mut Outgoing<'_>) -> Result<Destination> {
        if self.closed.load(Relaxed) {
            return Err(Error::new(ErrorKind::Closed, "publish", "the publisher is closed; connect again"));
        }
        // a dead letter may use the room that was left for its headers
        let usable =
            if message.options.hop.is_some() { usize::MAX } else { self.capabilities.usable_payload() };
        check_size(&message.envelope, usable)?;
        self.fit(message)?;
        let channel = message.address.channel();
        postrider_core::Channel::check(channel)?;
        check_address(message, &self.capabilities)?;
        let mut destination = Destination::of(message)?;
        if destination.exchange.is_none() {
            destination.exchange = Some(match (message.address.group(), message.options.delay) {
                (None, _) => self.naming.exchange(channel)?,
                (Some(group), None) => self.naming.redrive(channel, group)?,
                (Some(group), Some(delay)) => self.naming.retry(channel, group, retry_tier(delay))?,
            });
        } else if destination.routing_key.is_none() {
            // somebody else's exchange knows nothing of slots
            destination.routing_key = Some(String::new());
        }
        Ok(destination)
    }

    /// A larger frame would end the connection under all others.
    fn fit(&self, message: &mut Outgoing<'_>) -> Result<()> {
        if let Some(frame) = self.link.frame() {
            self.frame.store(frame, Relaxed);
        }
        let most = self.frame.load(Relaxed).saturating_sub(ADDED);
        let id = match message.envelope.id() {
            MessageId::Text(id) => id.len(),
            MessageId::Uuid(_) => 36,
        };
        if most > 4 * SMALL && message.envelope.headers().byte_len() + id <= SMALL {
            return Ok(());
        }
        if message.options.hop.is_some() {
            return fit_copy(message, most, convert::frame_len);
        }
        let found = convert::frame_len(&message.envelope);
        if found <= most {
            return Ok(());
        }
        let text = format!(
            "headers and attributes take {found} bytes on the wire, and this broker's frames have room for {most}; send less in them"
        );
        Err(Error::new(ErrorKind::TooLarge, "publish", text).with("id", message.envelope.id()))
    }

    fn pieces(&self, message: &Outgoing<'_>) -> u32 {
        u32::try_from(message.envelope.byte_len().div_ceil(PIECE))
            .unwrap_or(u32::MAX)
            .clamp(1, self.all_bytes)
    }

    /// The message as it goes out.
    fn sent(&self, message: &Outgoing<'_>, destination: Destination) -> Sent {
        let Destination { exchange, routing_key } = destination;
        let slot = || match message.envelope.key() {
            Some(key) => key_slot(key),
            None => (self.keyless.fetch_add(1, Relaxed) % u64::from(postrider_core::KEY_SLOTS)) as u32,
        };
        let routing_key = routing_key.unwrap_or_else(|| Naming::slot(slot())).into();
        let (exchange, is_copy) = (exchange.unwrap_or_default(), message.options.hop.is_some());
        Sent { exchange, routing_key, envelope: message.envelope.clone(), is_copy }
    }

    /// What tells keys apart that have one unresolved send at most.
    fn key(&self, message: &Outgoing<'_>) -> Option<u64> {
        (message.options.order == PublishOrder::PerKey)
            .then(|| message.envelope.key().map(|key| self.hash.hash_one((message.address.channel(), key))))
            .flatten()
    }

    fn confirm(&self, token: u64) -> Confirm {
        Confirm::tracked(Arc::clone(&self.slots) as Arc<dyn Confirms>, token)
    }

    pub(crate) async fn send(&self, mut message: Outgoing<'_>) -> Confirm {
        let destination = match self.check(&mut message) {
            Ok(destination) => destination,
            Err(error) => return Confirm::failed(error),
        };
        let allowed = message.options.deadline.unwrap_or(self.deadline);
        let deadline = self.env.now() + allowed;
        let (pieces, key) = (self.pieces(&message), self.key(&message));
        let opened = async {
            // the semaphores are never closed
            let messages = Arc::clone(&self.messages).acquire_owned().await.ok()?;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(pieces).await.ok()?;
            let sent = self.sent(&message, destination);
            Some(self.slots.open_in_turn(sent, deadline, key, (messages, bytes)).await)
        };
        let token = tokio::select! {
            biased;
            token = opened => token,
            () = self.env.sleep(allowed) => None,
        };
        if let Some(token) = token {
            return self.confirm(token);
        }
        let text = format!("there was no room until the deadline of {allowed:?}; it was never handed over");
        let error = Error::new(ErrorKind::Timeout, "publish", text);
        Confirm::failed(error.with("channel", message.address.channel()))
    }

    #[expect(clippy::result_large_err, reason = "the message is given back, not an error made")]
    pub(crate) fn try_send<'a>(
        &self,
        mut message: Outgoing<'a>,
    ) -> std::result::Result<Confirm, Outgoing<'a>> {
        let destination = match self.check(&mut message) {
            Ok(destination) => destination,
            Err(error) => return Ok(Confirm::failed(error)),
        };
        let pieces = self.pieces(&message);
        let (Ok(messages), Ok(bytes)) = (
            Arc::clone(&self.messages).try_acquire_owned(),
            Arc::clone(&self.bytes).try_acquire_many_owned(pieces),
        ) else {
            return Err(message);
        };
        let deadline = self.env.now() + message.options.deadline.unwrap_or(self.deadline);
        let (sent, key) = (self.sent(&message, destination), self.key(&message));
        match self.slots.open(sent, deadline, key, (messages, bytes)) {
            Ok(token) => Ok(self.confirm(token)),
            Err(_) => Err(message),
        }
    }

    /// Says which channels have nobody who would read them.
    pub(crate) fn health(&self) -> Health {
        let unread = self.slots.unread();
        if unread.is_empty() {
            return Health::up();
        }
        Health::degraded(format!("no queue takes the messages of {}; they fail", unread.join(", ")))
    }

    /// All that was accepted is answered.
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
                let text = "the broker didn't answer before the publisher closed";
                self.slots.fail(token, Error::new(ErrorKind::Timeout, "close", text));
            }
        }
        self.slots.report()
    }
}

/// Ends sends whose deadline has passed.
async fn deadlines(slots: Arc<Slots>, env: Env) {
    loop {
        env.sleep(TICK).await;
        for token in slots.overdue(env.now()) {
            let text = if slots.is_handed(token) {
                "the broker didn't answer within the deadline"
            } else {
                "the broker could not be reached, or took no publishes, until the deadline; it was never handed over"
            };
            slots.fail(token, Error::new(ErrorKind::Timeout, "publish", text));
        }
    }
}
