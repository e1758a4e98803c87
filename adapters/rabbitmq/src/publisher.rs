//! Publishing: a bounded queue, which the driver hands over to the client only while it is connected.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use postrider_core::{
    Capabilities, Channel, Confirm, DrainReport, Env, Envelope, Error, ErrorKind, Health, MessageId, NewSend,
    Outgoing, PublishError, PublishOrder, Result, Window, check_address, check_size, fit_copy, key_slot,
    retry_tier,
};
use tokio::task::JoinSet;

use crate::config::{OnUnknown, RabbitmqConfig};
use crate::confirms::{Exchange, Message, RoutingKey, Sends, Sent};
use crate::connection::Link;
use crate::convert;
use crate::driver::Driver;
use crate::foreign::Destination;
use crate::naming::Naming;

/// What the broker adds to a message's headers in their one frame: its counts, and where and why the message waited or died.
const ADDED: usize = 4 * 1024;
/// Properties that are shorter in memory fit into such a frame, however they are written there.
const SMALL: usize = 16 * 1024;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(50);

/// The publishing half.
#[derive(Debug)]
pub(crate) struct Outbox {
    link: Link,
    naming: Naming,
    env: Env,
    sends: Arc<Sends>,
    deadline: Duration,
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
        let bound = Window { messages: config.max_pending, bytes: config.max_pending_bytes };
        let sends = Arc::new(Sends::new(bound));
        let driver = Driver {
            link: link.clone(),
            sends: Arc::clone(&sends),
            env: env.clone(),
            resend: config.on_unknown == OnUnknown::Resend,
            most: config.max_pending,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run());
        tasks.spawn(deadlines(Arc::clone(&sends), env.clone()));
        Self {
            link,
            naming,
            env,
            sends,
            deadline: config.send_deadline,
            capabilities,
            keyless: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            hash: std::hash::RandomState::new(),
            _tasks: tasks,
        }
    }

    /// Where the message goes: an exchange, and the routing key. Of a copy, leaves out what the broker wouldn't take.
    fn check(&self, message: &mut Outgoing<'_>) -> Result<(Arc<Exchange>, RoutingKey)> {
        if self.closed.load(Relaxed) {
            return Err(Error::new(ErrorKind::Closed, "publish", "the publisher is closed; connect again"));
        }
        // a dead letter may use the room that was left for its headers
        let usable =
            if message.options.hop.is_some() { usize::MAX } else { self.capabilities.usable_payload() };
        check_size(&message.envelope, usable)?;
        self.fit(message)?;
        check_address(message, &self.capabilities)?;
        let Destination { exchange, routing_key } = Destination::of(message)?;
        let is_foreign = exchange.is_some();
        let exchange = match exchange {
            Some(name) => {
                Channel::check(message.address.channel())?;
                Exchange::new(name)?
            }
            None => self.exchange(message)?,
        };
        let routing_key = match routing_key {
            Some(key) => RoutingKey::named(key)?,
            // somebody else's exchange knows nothing of slots
            None if is_foreign => RoutingKey::named(String::new())?,
            None => RoutingKey::Slot(self.slot(&message.envelope)),
        };
        Ok((exchange, routing_key))
    }

    /// The exchange of a message's channel, or of one group.
    fn exchange(&self, message: &Outgoing<'_>) -> Result<Arc<Exchange>> {
        let channel = message.address.channel();
        let Some(group) = message.address.group() else {
            return self.sends.exchange(channel, || {
                Channel::check(channel)?;
                self.naming.exchange(channel)
            });
        };
        Channel::check(channel)?;
        Exchange::new(match message.options.delay {
            None => self.naming.redrive(channel, group)?,
            Some(delay) => self.naming.retry(channel, group, retry_tier(delay))?,
        })
    }

    fn slot(&self, envelope: &Envelope) -> u32 {
        match envelope.key() {
            Some(key) => key_slot(key),
            None => (self.keyless.fetch_add(1, Relaxed) % u64::from(postrider_core::KEY_SLOTS)) as u32,
        }
    }

    /// A larger frame would end the connection under all others.
    fn fit(&self, message: &mut Outgoing<'_>) -> Result<()> {
        let most = self.link.frame().saturating_sub(ADDED);
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

    /// What tells keys apart that have one unresolved send at most.
    fn key(&self, message: &Outgoing<'_>) -> Option<u64> {
        (message.options.order == PublishOrder::PerKey)
            .then(|| message.envelope.key().map(|key| self.hash.hash_one((message.address.channel(), key))))
            .flatten()
    }

    /// The send as it is waited for.
    fn made(&self, message: &Outgoing<'_>, routing_key: RoutingKey) -> NewSend<Sent> {
        let content = Message { routing_key, envelope: message.envelope.clone() };
        NewSend {
            deadline: self.env.deadline(message.options.deadline.unwrap_or(self.deadline)),
            key: self.key(message),
            bytes: message.envelope.byte_len(),
            sent: Sent::new(content, message.options.hop.is_some()),
        }
    }

    pub(crate) async fn send(&self, mut message: Outgoing<'_>) -> Confirm {
        let (exchange, routing_key) = match self.check(&mut message) {
            Ok(destination) => destination,
            Err(error) => return Confirm::failed(error),
        };
        let send = match self.sends.try_send(self.made(&message, routing_key), &exchange) {
            Ok(confirm) => return confirm,
            Err(send) => send,
        };
        let allowed = message.options.deadline.unwrap_or(self.deadline);
        tokio::select! {
            biased;
            confirm = self.sends.send(send, &exchange) => confirm,
            () = self.env.sleep(allowed) => {
                let text = format!("there was no room until the deadline of {allowed:?}; it was never handed over");
                let error = Error::new(ErrorKind::Timeout, "publish", text);
                Confirm::failed(error.with("channel", message.address.channel()))
            }
        }
    }

    #[expect(clippy::result_large_err, reason = "the message is given back, not an error made")]
    pub(crate) fn try_send<'a>(
        &self,
        mut message: Outgoing<'a>,
    ) -> std::result::Result<Confirm, Outgoing<'a>> {
        match self.check(&mut message) {
            Ok((exchange, routing_key)) => {
                self.sends.try_send(self.made(&message, routing_key), &exchange).map_err(|_| message)
            }
            Err(error) => Ok(Confirm::failed(error)),
        }
    }

    /// Says which channels have nobody who would read them.
    pub(crate) fn health(&self) -> Health {
        let unread = self.sends.unread();
        if unread.is_empty() {
            return Health::up();
        }
        Health::degraded(format!("no queue takes the messages of {}; they fail", unread.join(", ")))
    }

    /// All that was accepted is answered.
    pub(crate) async fn flush(&self) -> std::result::Result<(), PublishError> {
        self.sends.pending.flushed().await
    }

    /// Takes no more, and waits until all is answered or the deadline has come.
    pub(crate) async fn close(&self, deadline: Instant) -> DrainReport {
        self.closed.store(true, Relaxed);
        let left = deadline.saturating_duration_since(self.env.now());
        let in_time = tokio::select! {
            biased;
            // failures that nobody read are in the report
            _ = self.sends.pending.flushed() => true,
            () = self.env.sleep(left) => false,
        };
        if !in_time {
            self.sends.fail_all(self.sends.pending.unanswered(), |_| {
                let text = "the broker didn't answer before the publisher closed";
                Error::new(ErrorKind::Timeout, "close", text)
            });
        }
        self.sends.pending.report()
    }
}

/// Ends sends whose deadline has passed.
async fn deadlines(sends: Arc<Sends>, env: Env) {
    loop {
        env.sleep(TICK).await;
        sends.fail_all(sends.pending.overdue(env.now()), |sent| {
            let text = if sent.handed {
                "the broker didn't answer within the deadline"
            } else {
                "the broker could not be reached, or took no publishes, until the deadline; it was never handed over"
            };
            Error::new(ErrorKind::Timeout, "publish", text)
        });
    }
}
