//! The task that tells the server what may have to wait: signs of life, what is given back, and after a lost connection again what it may
//! not have; and asks whether it has it all. Acknowledgements are mostly published by whoever settles: see `teller`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::{Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use postrider_core::{Env, Result};
use tokio::sync::{mpsc, oneshot};

use crate::connection::Connection;
use crate::error;
use crate::shared::Shared;
use crate::teller::{CONFIRM_EVERY, Inlet, Tell, Unconfirmed, What, publish};

/// A request to answer when everything told so far has reached the server.
pub(crate) type Flush = oneshot::Sender<bool>;

/// The task.
pub(crate) struct Acks {
    pub(crate) connection: Connection,
    pub(crate) env: Env,
    pub(crate) inlet: Inlet,
    pub(crate) flush: mpsc::Receiver<Flush>,
    pub(crate) shared: Weak<Shared>,
    /// How often a sign of life is given for everything that is held.
    pub(crate) progress: Duration,
}

/// What goes over one connection.
struct Line {
    connection: Connection,
    /// Over which one all that is unconfirmed was told.
    connects: u64,
    replies: Subscriber,
    inbox: String,
    unconfirmed: Arc<Unconfirmed>,
    rounds: u64,
}

impl Acks {
    /// Runs until the subscription is gone and everything is told.
    pub(crate) async fn run(mut self) -> Result<()> {
        let inbox = self.connection.client.new_inbox();
        let replies = self.connection.client.subscribe(format!("{inbox}.*")).await;
        let replies = replies.map_err(|e| error::request("subscribe", e))?;
        let Inlet { mut tells, unconfirmed, connects } = self.inlet;
        let mut line = Line {
            connection: self.connection,
            connects,
            replies,
            inbox,
            unconfirmed: Arc::clone(&unconfirmed),
            rounds: 0,
        };
        let mut link = line.connection.link();
        let mut told = Vec::with_capacity(256);
        // before all that may come without a pause
        let mut sign = self.env.sleep(self.progress);
        loop {
            tokio::select! {
                biased;
                now = line.connection.changed(link) => {
                    if now.up {
                        line.tell_again().await;
                    }
                    link = now;
                }
                () = &mut sign => {
                    sign = self.env.sleep(self.progress);
                    let held = self.shared.upgrade().map(|shared| shared.held()).unwrap_or_default();
                    line.tell(&self.env, held.into_iter().map(|reply| Tell { reply, what: What::Progress })).await;
                }
                count = tells.recv_many(&mut told, 256) => {
                    if count == 0 {
                        break;
                    }
                    line.tell(&self.env, told.drain(..)).await;
                }
                Some(flush) = self.flush.recv() => {
                    while let Ok(tell) = tells.try_recv() {
                        told.push(tell);
                    }
                    line.tell(&self.env, told.drain(..)).await;
                    // nobody waits any more: fine
                    let _ = flush.send(line.confirm(&self.env).await);
                }
                () = unconfirmed.due.notified() => {}
            }
            if unconfirmed.tells().len() >= CONFIRM_EVERY {
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
            publish(&self.connection, &tell).await;
            // of the others nothing is lost with a connection: signs of life come again, and the time of a pin runs out
            if let What::Ack | What::Nak(_) = tell.what {
                self.unconfirmed.tells().push_back(tell);
            }
        }
    }

    /// After a reconnect: the server may or may not have these, and taking one twice changes nothing.
    async fn tell_again(&mut self) {
        let connects = self.connection.connects();
        if self.connects == connects {
            return;
        }
        self.connects = connects;
        let again = self.unconfirmed.tells().clone();
        for tell in &again {
            publish(&self.connection, tell).await;
        }
    }

    /// Asks each consumer for a reply behind what it was told: it works its acknowledgements off in order. Answers whether all
    /// replied.
    async fn confirm(&mut self, env: &Env) -> bool {
        let link = self.connection.link();
        if !link.up {
            return self.unconfirmed.tells().is_empty();
        }
        // an answer over this connection says nothing of what went over another
        self.tell_again().await;
        let told = self.unconfirmed.tells().clone();
        let last = last_of_each(told.iter());
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
            biased;
            // replies to the old connection don't come, and what is held wants its signs of life
            _ = self.connection.changed(link) => false,
            came = all => came,
            () = env.sleep(Duration::from_secs(5)) => false,
        };
        if !came || self.connection.connects() != self.connects {
            return false;
        }
        // only this task takes any out, and what came meanwhile came behind
        self.unconfirmed.tells().drain(..told.len());
        true
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
