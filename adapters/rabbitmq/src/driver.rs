//! The one task that owns the publishing channel and all its confirms.
//!
//! lapin attaches a returned message to whichever confirm completes next, and completes the confirms of a `multiple`
//! acknowledgement in any order. So no confirm is judged by itself: all that are ready are collected, then a call that takes the
//! lock under which the client works through an acknowledgement makes sure that it is done with the last one, and what is ready
//! by then is collected too. By AMQP a return comes before its confirm, so every return of the first lot is now among the two.

use std::collections::{BTreeMap, HashSet};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, ExchangeKind};
use postrider_core::{BoxFuture, Env, Error, ErrorKind, PublishError, Receipt};

use crate::confirms::{Next, Room, Sent, Slots};
use crate::connection::Link;
use crate::convert;
use crate::error;

/// How many messages are handed over before answers are looked at again.
const BATCH: usize = 64;
/// How long a channel that could not be opened is left alone.
const PAUSE: Duration = Duration::from_millis(50);

/// The publishing channel's owner.
pub(crate) struct Driver {
    pub(crate) link: Link,
    pub(crate) slots: Arc<Slots>,
    pub(crate) env: Env,
    /// Whether what had no answer is sent again.
    pub(crate) resend: bool,
    /// How many may be handed over and unanswered, those included whose deadline has passed.
    pub(crate) most: usize,
}

type Answered = (u64, lapin::Result<Confirmation>);

/// What is handed over on one channel.
#[derive(Default)]
struct Flight {
    pending: FuturesUnordered<BoxFuture<'static, Answered>>,
    out: BTreeMap<u64, (Arc<Sent>, Option<Room>)>,
    /// Answered and not judged.
    done: Vec<Answered>,
    returned: HashSet<u64>,
}

impl Driver {
    /// Attends to the queue as long as the connection's supervisor lives.
    pub(crate) async fn run(self) {
        loop {
            let (generation, connection) = self.link.up().await;
            match self.link.during(generation, self.channel(&connection)).await {
                Some(Ok(channel)) => self.attend(generation, &connection, &channel).await,
                Some(Err(error)) => {
                    tracing::debug!(target: "postrider::connection", %error, "no publishing channel yet");
                    self.env.sleep(PAUSE).await;
                }
                None => {}
            }
        }
    }

    async fn channel(&self, connection: &lapin::Connection) -> lapin::Result<Channel> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    async fn attend(&self, generation: u64, connection: &lapin::Connection, channel: &Channel) {
        let mut flight = Flight::default();
        let failed = self.pump(generation, connection, channel, &mut flight).await;
        // answers that came before the end count
        while !flight.done.is_empty() || flight.collect() {
            if flight.judge(channel, &self.slots).is_some() {
                break;
            }
        }
        let missing = match &failed {
            Some(error) if error::is_not_found(error) => {
                let exchanges = flight.out.values().map(|(sent, _)| sent.exchange.clone()).collect();
                self.link.during(generation, missing(connection, exchanges)).await.unwrap_or_default()
            }
            _ => HashSet::new(),
        };
        // the only one that was out is the one that was refused; of several the broker doesn't say which
        let refused = failed.as_ref().filter(|e| error::is_refused(e) && flight.out.len() == 1).cloned();
        for (token, (sent, room)) in flight.out {
            if let Some(error) = &refused {
                let error = error::of("publish", error.clone()).with("exchange", &sent.exchange);
                self.slots.resolve(token, Err(PublishError::Failed(error)));
            } else if missing.contains(&sent.exchange) {
                self.slots.resolve(token, Err(PublishError::Failed(no_channel(&sent))));
            } else if self.resend && !sent.is_copy {
                self.slots.requeue(token, room);
            } else {
                let message = "the connection was lost before the answer";
                let lost = Error::new(ErrorKind::Connection, "publish", message);
                // what ended the channel may have been another's
                let why = match failed.clone() {
                    Some(error) => lost.because(error),
                    None => lost,
                };
                self.slots.fail(token, why);
            }
        }
    }

    /// Hands over and takes answers until the channel or the connection has ended.
    async fn pump(
        &self,
        generation: u64,
        connection: &lapin::Connection,
        channel: &Channel,
        flight: &mut Flight,
    ) -> Option<lapin::Error> {
        let mut watch = self.link.watch();
        let mut known = HashSet::new();
        loop {
            let state = watch.borrow_and_update().clone();
            if state.generation != generation || state.connection.is_none() || !channel.status().connected() {
                return None;
            }
            let may_hand = state.blocked.is_none() && flight.out.len() < self.most;
            let unjudged = !flight.done.is_empty();
            tokio::select! {
                biased;
                Some(answered) = flight.pending.next(), if !unjudged && !flight.pending.is_empty() => {
                    flight.take(answered);
                    if let Some(error) = flight.judge(channel, &self.slots) {
                        return Some(error);
                    }
                }
                () = std::future::ready(()), if unjudged => {
                    if let Some(error) = flight.judge(channel, &self.slots) {
                        return Some(error);
                    }
                }
                changed = watch.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                }
                () = self.queued(), if may_hand => {
                    let handing = self.hand_over(connection, channel, flight, &mut known);
                    match self.link.during(generation, handing).await {
                        Some(Ok(())) => {}
                        Some(Err(error)) => return Some(error),
                        None => return None,
                    }
                }
            }
        }
    }

    async fn queued(&self) {
        while !self.slots.has_queued() {
            self.slots.queued.notified().await;
        }
    }

    async fn hand_over(
        &self,
        connection: &lapin::Connection,
        channel: &Channel,
        flight: &mut Flight,
        known: &mut HashSet<String>,
    ) -> lapin::Result<()> {
        for _ in 0..BATCH.min(self.most - flight.out.len()) {
            match self.slots.hand(known) {
                Next::Nothing => break,
                Next::Unchecked(token, sent) => {
                    // a publish to an exchange that isn't there would close the channel under all others
                    if exists(connection, &sent.exchange).await? {
                        known.insert(sent.exchange.clone());
                    } else {
                        self.slots.fail(token, no_channel(&sent));
                    }
                }
                Next::Message(token, sent, room) => flight.send(channel, token, sent, room).await,
            }
        }
        Ok(())
    }
}

impl Flight {
    /// Hands a message to the client, which takes its frames at the first poll.
    async fn send(&mut self, channel: &Channel, token: u64, sent: Arc<Sent>, room: Option<Room>) {
        self.out.insert(token, (Arc::clone(&sent), room));
        let channel = channel.clone();
        let mut publishing: BoxFuture<'static, Answered> = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let properties = convert::properties(&sent.envelope, token);
            let key = sent.routing_key.as_ref().into();
            let exchange = sent.exchange.as_str().into();
            let body = sent.envelope.payload();
            let written = channel.basic_publish(exchange, key, options, body, properties).await;
            let answer = match written {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            (token, answer)
        });
        match futures_util::poll!(publishing.as_mut()) {
            Poll::Ready(answered) => self.take(answered),
            Poll::Pending => self.pending.push(publishing),
        }
    }

    fn take(&mut self, (token, mut answer): Answered) {
        if let Ok(Confirmation::Ack(message) | Confirmation::Nack(message)) = &mut answer
            && let Some(message) = message.take()
            && let Some(returned) = convert::returned(&message.properties)
        {
            self.returned.insert(returned);
        }
        self.done.push((token, answer));
    }

    /// Takes every answer that is ready; whether there was one.
    fn collect(&mut self) -> bool {
        let before = self.done.len();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut self.pending).poll_next(&mut cx) {
                Poll::Ready(Some(answered)) => self.take(answered),
                // it may only have made a pause
                Poll::Pending if woken.0.swap(false, Relaxed) => {}
                Poll::Pending | Poll::Ready(None) => break,
            }
        }
        self.done.len() > before
    }

    /// Judges all that were answered before this call. Answers why the channel ended, if it has.
    fn judge(&mut self, channel: &Channel, slots: &Slots) -> Option<lapin::Error> {
        self.collect();
        let sure = self.done.len();
        // polled once only: it takes the lock of the acknowledgements, which is held while one is worked through
        let _ = pin!(channel.wait_for_confirms()).now_or_never();
        self.collect();
        let mut failed = None;
        for (token, answer) in self.done.drain(..sure) {
            let sent = self.out.get(&token).map(|(sent, _)| Arc::clone(sent));
            let exchange = sent.as_ref().map_or("", |sent| sent.exchange.as_str());
            let outcome = match answer {
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
                Ok(_) if self.returned.remove(&token) => {
                    slots.taken(exchange, false);
                    Err(PublishError::Failed(unroutable(exchange)))
                }
                Ok(Confirmation::Ack(_)) => {
                    slots.taken(exchange, true);
                    Ok(Receipt::default())
                }
                Ok(_) => {
                    let message = "a queue refused the message; another may have taken it";
                    Err(PublishError::Unknown(
                        Error::new(ErrorKind::Broker, "publish", message).temporary(true),
                    ))
                }
            };
            self.out.remove(&token);
            slots.resolve(token, outcome);
        }
        failed
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// Whether there is such an exchange, asked on a channel of its own, which a "no" closes.
async fn exists(connection: &lapin::Connection, exchange: &str) -> lapin::Result<bool> {
    if exchange.is_empty() {
        return Ok(true); // the default one always is
    }
    let channel = connection.create_channel().await?;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let found =
        channel.exchange_declare(exchange.into(), ExchangeKind::Direct, passive, FieldTable::default()).await;
    match found {
        Ok(()) => {
            channel.close(200, "looked".into()).await?;
            Ok(true)
        }
        Err(error) if error::is_not_found(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Which of the exchanges are gone.
async fn missing(connection: &lapin::Connection, exchanges: HashSet<String>) -> HashSet<String> {
    let mut missing = HashSet::new();
    for exchange in exchanges {
        if matches!(exists(connection, &exchange).await, Ok(false)) {
            missing.insert(exchange);
        }
    }
    missing
}

fn no_channel(sent: &Sent) -> Error {
    let text = "the broker has no exchange for this channel; start the router that reads it first, or declare it: `broker.declare(…)`";
    Error::new(ErrorKind::NotFound, "publish", text).with("exchange", &sent.exchange)
}

fn unroutable(exchange: &str) -> Error {
    let text =
        "no queue takes this channel's messages; start the router that reads it first, or declare its group";
    Error::new(ErrorKind::NotFound, "publish", text).with("exchange", exchange)
}
