//! The one task that owns the publishing channel and all its confirms. How answers are judged is `flight`'s.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use postrider_core::{Env, Error, ErrorKind, PublishError};

use crate::confirms::{Exchange, Queued, Sends};
use crate::connection::Link;
use crate::error;
use crate::flight::Flight;

/// How many messages are handed over together.
const LOT: usize = 16;
/// How many of those before answers are looked at again.
const LOTS: usize = 4;
/// How long a channel that could not be opened is left alone.
const PAUSE: Duration = Duration::from_millis(50);

/// The publishing channel's owner.
pub(crate) struct Driver {
    pub(crate) link: Link,
    pub(crate) sends: Arc<Sends>,
    pub(crate) env: Env,
    /// Whether what had no answer is sent again.
    pub(crate) resend: bool,
    /// How many may be handed over and unanswered, those included whose deadline has passed.
    pub(crate) most: usize,
}

/// The exchanges that are known to be there.
struct Known {
    /// The channel's number: an exchange that has it was seen on this channel.
    channel: u64,
    names: HashSet<String>,
}

impl Known {
    fn has(&self, exchange: &Exchange) -> bool {
        exchange.seen.load(Relaxed) == self.channel
    }

    fn see(&mut self, exchange: &Exchange) {
        exchange.seen.store(self.channel, Relaxed);
    }
}

impl Driver {
    /// Attends to the queue as long as the connection's supervisor lives.
    pub(crate) async fn run(self) {
        for number in 1.. {
            let (generation, connection) = self.link.up().await;
            match self.link.during(generation, self.channel(&connection)).await {
                Some(Ok(channel)) => self.attend(generation, number, &connection, channel).await,
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

    async fn attend(&self, generation: u64, number: u64, connection: &lapin::Connection, channel: Channel) {
        let mut flight = Flight::new(channel);
        let known = Known { channel: number, names: HashSet::new() };
        let failed = self.pump(generation, connection, &mut flight, known).await;
        // answers that came before the end count
        while flight.has_answers() {
            if flight.judge(&self.sends).is_some() {
                break;
            }
        }
        let out = flight.unanswered();
        let missing = match &failed {
            Some(error) if error::is_not_found(error) => {
                let exchanges = out.iter().map(|(queued, _)| queued.exchange.name.to_string()).collect();
                self.link.during(generation, missing(connection, exchanges)).await.unwrap_or_default()
            }
            _ => HashSet::new(),
        };
        // the only one that was out is the one that was refused; of several the broker doesn't say which
        let refused = failed.as_ref().filter(|e| error::is_refused(e) && out.len() == 1);
        let refusal = |queued: &Queued| match refused {
            Some(error) => Some(error::of("publish", error.clone()).with("exchange", &queued.exchange.name)),
            None if missing.contains(queued.exchange.name.as_str()) => Some(no_channel(&queued.exchange)),
            None => None,
        };
        let mut lost = Vec::new();
        let mut definite = Vec::new();
        for (queued, room) in out {
            match refusal(&queued) {
                Some(error) => definite.push((queued.token, room, Err(PublishError::Failed(error)))),
                None => lost.push((queued, room)),
            }
        }
        self.sends.pending.resolve_taken(definite);
        self.sends.lost(lost, self.resend, |_| {
            let message = "the connection was lost before the answer";
            let lost = Error::new(ErrorKind::Connection, "publish", message);
            // what ended the channel may have been another's
            match failed.clone() {
                Some(error) => lost.because(error),
                None => lost,
            }
        });
    }

    /// Hands over and takes answers until the channel or the connection has ended.
    async fn pump(
        &self,
        generation: u64,
        connection: &lapin::Connection,
        flight: &mut Flight,
        mut known: Known,
    ) -> Option<lapin::Error> {
        let mut watch = self.link.watch();
        let mut state = watch.borrow_and_update().clone();
        loop {
            if state.generation != generation
                || state.connection.is_none()
                || !flight.channel().status().connected()
            {
                return None;
            }
            let may_hand = state.blocked.is_none() && flight.len() < self.most;
            tokio::select! {
                biased;
                () = flight.answered() => {
                    if let Some(error) = flight.judge(&self.sends) {
                        return Some(error);
                    }
                }
                changed = watch.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                    state = watch.borrow_and_update().clone();
                }
                () = self.sends.queued(), if may_hand => {
                    self.hand_over(flight, &known);
                    let unseen = self.sends.first().filter(|exchange| !known.has(exchange));
                    if let Some(exchange) = unseen {
                        let looking = self.look(connection, &exchange, &mut known);
                        match self.link.during(generation, looking).await {
                            Some(Ok(())) => {}
                            Some(Err(error)) => return Some(error),
                            None => return None,
                        }
                    }
                }
            }
        }
    }

    fn hand_over(&self, flight: &mut Flight, known: &Known) {
        for _ in 0..LOTS {
            let mut lot = Vec::new();
            let most = LOT.min(self.most - flight.len());
            self.sends.hand(most, self.resend, |exchange| known.has(exchange), &mut lot);
            if lot.is_empty() {
                break;
            }
            flight.send(lot);
        }
    }

    /// Makes sure that an exchange is there: a publish to one that isn't would close the channel under all others.
    async fn look(
        &self,
        connection: &lapin::Connection,
        exchange: &Arc<Exchange>,
        known: &mut Known,
    ) -> lapin::Result<()> {
        let name = exchange.name.as_str();
        if known.names.contains(name) || exists(connection, name).await? {
            known.names.insert(name.to_owned());
            known.see(exchange);
        } else {
            self.sends.fail_first(exchange, no_channel(exchange));
        }
        Ok(())
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

fn no_channel(exchange: &Exchange) -> Error {
    let text = "the broker has no exchange for this channel; start the router that reads it first, or declare it: `broker.declare(…)`";
    Error::new(ErrorKind::NotFound, "publish", text).with("exchange", &exchange.name)
}

pub(crate) fn unroutable(exchange: &Exchange) -> Error {
    let text =
        "no queue takes this channel's messages; start the router that reads it first, or declare its group";
    Error::new(ErrorKind::NotFound, "publish", text).with("exchange", &exchange.name)
}
