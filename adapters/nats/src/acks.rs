//! The task that tells the server what became of deliveries: acknowledgements, signs of life, and what to tell again after a
//! lost connection.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use postrider_core::{Env, Result};
use tokio::sync::{mpsc, oneshot};

use crate::connection::Connection;
use crate::error;
use crate::pull::{PRIORITY_GROUP, nanos};
use crate::shared::{Shared, Tell, What};

/// How many acknowledgements may be unconfirmed before the server is asked whether it has them.
const UNCONFIRMED: usize = 512;

/// A request to answer when everything told so far has reached the server.
pub(crate) type Flush = oneshot::Sender<bool>;

pub(crate) struct Acks {
    pub(crate) connection: Connection,
    pub(crate) env: Env,
    pub(crate) tell: mpsc::UnboundedReceiver<Tell>,
    pub(crate) flush: mpsc::Receiver<Flush>,
    pub(crate) shared: Weak<Shared>,
    /// How often a sign of life is given for everything that is held.
    pub(crate) progress: Duration,
}

/// What goes over one connection, and what of it the server may not have.
struct Line {
    connection: Connection,
    replies: Subscriber,
    inbox: String,
    unconfirmed: VecDeque<Tell>,
    rounds: u64,
}

impl Acks {
    /// Runs until the subscription is gone and everything is told.
    pub(crate) async fn run(mut self) -> Result<()> {
        let inbox = self.connection.client.new_inbox();
        let replies = self.connection.client.subscribe(format!("{inbox}.*")).await;
        let replies = replies.map_err(|e| error::request("subscribe", e))?;
        let mut line =
            Line { connection: self.connection, replies, inbox, unconfirmed: VecDeque::new(), rounds: 0 };
        let mut link = line.connection.link();
        let mut told = Vec::with_capacity(256);
        let mut due = self.env.now() + self.progress;
        loop {
            let wait = due.saturating_duration_since(self.env.now());
            tokio::select! {
                biased;
                now = line.connection.changed(link) => {
                    if now.up && now.generation != link.generation {
                        line.tell_again().await;
                    }
                    link = now;
                }
                count = self.tell.recv_many(&mut told, 256) => {
                    if count == 0 {
                        break;
                    }
                    line.tell(&self.env, told.drain(..)).await;
                }
                Some(flush) = self.flush.recv() => {
                    while let Ok(tell) = self.tell.try_recv() {
                        told.push(tell);
                    }
                    line.tell(&self.env, told.drain(..)).await;
                    // nobody waits any more: fine
                    let _ = flush.send(line.confirm(&self.env).await);
                }
                () = self.env.sleep(wait) => {
                    due = self.env.now() + self.progress;
                    let held = self.shared.upgrade().map(|shared| shared.held()).unwrap_or_default();
                    line.tell(&self.env, held.into_iter().map(|reply| Tell { reply, what: What::Progress })).await;
                }
            }
            if line.unconfirmed.len() >= UNCONFIRMED {
                line.confirm(&self.env).await;
            }
        }
        line.confirm(&self.env).await;
        Ok(())
    }
}

impl Line {
    async fn tell(&mut self, env: &Env, tells: impl Iterator<Item = Tell>) {
        for tell in tells {
            // handed over only while connected: what is told to a lost connection would be told late
            if !self.connection.is_up() {
                self.connection.up().await;
            }
            if tell.what == What::Unpin {
                // the next holder must find everything that was given back
                self.confirm(env).await;
            }
            self.publish(&tell).await;
            if tell.what != What::Progress {
                self.unconfirmed.push_back(tell);
            }
        }
    }

    async fn publish(&self, tell: &Tell) {
        let payload = match tell.what {
            What::Ack => Bytes::from_static(b"+ACK"),
            What::Nak(None) => Bytes::from_static(b"-NAK"),
            What::Nak(Some(after)) => Bytes::from(format!("-NAK {{\"delay\": {}}}", nanos(after))),
            What::Progress => Bytes::from_static(b"+WPI"),
            What::Unpin => Bytes::from(format!("{{\"group\":\"{PRIORITY_GROUP}\"}}")),
        };
        // an error here is a closed client: the server redelivers
        let message = OutboundMessage { subject: tell.reply.clone(), reply: None, payload, headers: None };
        let _ = self.connection.client.publish_message(message).await;
    }

    /// After a reconnect: the server may or may not have these, and taking one twice changes nothing.
    async fn tell_again(&mut self) {
        for tell in &self.unconfirmed {
            self.publish(tell).await;
        }
    }

    /// Asks each consumer for a reply behind what it was told: it works its acknowledgements off in order. Answers whether all
    /// replied.
    async fn confirm(&mut self, env: &Env) -> bool {
        let count = self.unconfirmed.len();
        let last = last_of_each(self.unconfirmed.iter().filter(|tell| tell.what != What::Unpin));
        let link = self.connection.link();
        if !link.up {
            return count == 0;
        }
        self.rounds += 1;
        let reply = format!("{}.{}", self.inbox, self.rounds);
        let mut open = last.len();
        for subject in last {
            let asked = self.connection.client.publish_with_reply(
                subject.clone(),
                reply.clone(),
                Bytes::from_static(b"+WPI"),
            );
            if asked.await.is_err() {
                return false;
            }
        }
        let replies = &mut self.replies;
        let all = async {
            while open > 0 {
                match replies.next().await {
                    Some(message) if *message.subject == *reply => open -= 1,
                    Some(_) => {}
                    None => return false,
                }
            }
            true
        };
        let came = tokio::select! {
            came = all => came,
            // replies to the old connection don't come, and what is held wants its signs of life
            _ = self.connection.changed(link) => false,
            () = env.sleep(Duration::from_secs(5)) => false,
        };
        if came {
            self.unconfirmed.drain(..count);
        }
        came
    }
}

/// What each consumer was told last.
fn last_of_each<'a>(tells: impl DoubleEndedIterator<Item = &'a Tell>) -> Vec<&'a Subject> {
    let mut found: Vec<(&str, &Subject)> = Vec::new();
    for tell in tells.rev() {
        if !found.iter().any(|(consumer, _)| tell.reply.starts_with(consumer)) {
            found.push((consumer_of(&tell.reply), &tell.reply));
        }
    }
    found.into_iter().map(|(_, reply)| reply).collect()
}

/// `$JS.ACK.stream.consumer.`, or the longer form with domain and account, of an acknowledgement's subject.
fn consumer_of(reply: &str) -> &str {
    let dots = || reply.match_indices('.').map(|(at, _)| at);
    let keep = if dots().count() >= 10 { 6 } else { 4 };
    dots().nth(keep - 1).map_or(reply, |at| &reply[..=at])
}

/// Asks the task to flush; answers whether everything reached the server.
pub(crate) async fn flush(to: &mpsc::Sender<Flush>) -> bool {
    let (answer, answered) = oneshot::channel();
    to.send(answer).await.is_ok() && answered.await.unwrap_or(false)
}

/// The task's ends: for those who tell, and for those who want to know that it was told.
pub(crate) struct Lines {
    pub(crate) tell: mpsc::UnboundedSender<Tell>,
    pub(crate) told: mpsc::UnboundedReceiver<Tell>,
    pub(crate) flush: mpsc::Sender<Flush>,
    pub(crate) flushed: mpsc::Receiver<Flush>,
}

impl Lines {
    pub(crate) fn new() -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let (flush, flushed) = mpsc::channel(16);
        Self { tell, told, flush, flushed }
    }
}

/// Keeps the state alive no longer than the subscription.
pub(crate) fn weak(shared: &Arc<Shared>) -> Weak<Shared> {
    Arc::downgrade(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_consumer_is_asked_by_what_it_was_told_last() {
        let ack = |reply: &str| Tell { reply: reply.into(), what: What::Ack };
        let long = "$JS.ACK._.hash.orders.billing.2.17.5.1700000000000000000.3.token";
        let tells = [
            ack("$JS.ACK.orders.billing.1.1.1.1700000000000000000.3"),
            ack("$JS.ACK.orders.billing--1.1.2.1.1700000000000000000.3"),
            ack("$JS.ACK.orders.billing.1.3.2.1700000000000000000.3"),
            ack(long),
        ];
        let mut last: Vec<_> = last_of_each(tells.iter()).into_iter().map(Subject::as_str).collect();
        last.sort_unstable();
        assert_eq!(last, [long, &*tells[1].reply, &*tells[2].reply]);
        assert_eq!(consumer_of(long), "$JS.ACK._.hash.orders.billing.");
    }
}
