//! What the server is told of deliveries. Acknowledgements are published by whoever settles; a task does all that may have to wait: signs
//! of life, what is given back, asking whether the server has it all, and telling it again after a lost connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use postrider_core::{Env, Result};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::coop::unconstrained;

use crate::connection::Connection;
use crate::error;
use crate::pull::{PRIORITY_GROUP, nanos};
use crate::shared::{Shared, Tell, What};

/// How many acknowledgements may be unconfirmed before the server is asked whether it has them.
const CONFIRM_EVERY: usize = 512;

/// How many may be so before further ones go by the task, which asks first.
const DIRECT_UNTIL: usize = 8 * CONFIRM_EVERY;

/// A request to answer when everything told so far has reached the server.
pub(crate) type Flush = oneshot::Sender<bool>;

/// What was told, and the server may not have.
#[derive(Debug, Default)]
struct Unconfirmed {
    tells: Mutex<VecDeque<Tell>>,
    /// There are so many that the server is to be asked.
    due: Notify,
}

impl Unconfirmed {
    fn tells(&self) -> MutexGuard<'_, VecDeque<Tell>> {
        self.tells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the server, or the task that does.
#[derive(Debug)]
pub(crate) struct Teller {
    connection: Connection,
    unconfirmed: Arc<Unconfirmed>,
    task: mpsc::UnboundedSender<Tell>,
}

impl Teller {
    /// By the task. Bounded by what the server hands out unacknowledged, `max_ack_pending`.
    pub(crate) fn tell(&self, tell: Tell) {
        // the receiver is gone only when the subscription is
        let _ = self.task.send(tell);
    }

    /// The right to acknowledge before anybody asks whether the server has it all.
    pub(crate) fn direct(&self) -> Direct<'_> {
        Direct { teller: self, unconfirmed: self.unconfirmed.tells() }
    }
}

/// Whoever asks the server whether it has everything waits until this is dropped.
pub(crate) struct Direct<'a> {
    teller: &'a Teller,
    unconfirmed: MutexGuard<'a, VecDeque<Tell>>,
}

impl Direct<'_> {
    /// Acknowledges at once; what the client has no room for, or can't be sent now, the task tells.
    pub(crate) fn acknowledge(mut self, replies: Vec<Subject>) {
        let connection = &self.teller.connection;
        let mut is_open = connection.is_up() && self.unconfirmed.len() < DIRECT_UNTIL;
        for reply in replies {
            let tell = Tell { reply, what: What::Ack };
            // without `unconstrained`, a task that has used up its budget would look like a full queue
            is_open = is_open && unconstrained(publish(connection, &tell)).now_or_never().is_some();
            if is_open {
                self.unconfirmed.push_back(tell);
            } else {
                self.teller.tell(tell);
            }
        }
        if self.unconfirmed.len() >= CONFIRM_EVERY {
            self.teller.unconfirmed.due.notify_one();
        }
    }
}

async fn publish(connection: &Connection, tell: &Tell) {
    let payload = match tell.what {
        What::Ack => Bytes::from_static(b"+ACK"),
        What::Nak(None) => Bytes::from_static(b"-NAK"),
        What::Nak(Some(after)) => Bytes::from(format!("-NAK {{\"delay\": {}}}", nanos(after))),
        What::Progress => Bytes::from_static(b"+WPI"),
        What::Unpin => Bytes::from(format!("{{\"group\":\"{PRIORITY_GROUP}\"}}")),
    };
    // an error here is a closed client: the server redelivers
    let message = OutboundMessage { subject: tell.reply.clone(), reply: None, payload, headers: None };
    let _ = connection.client.publish_message(message).await;
}

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
            if tell.what != What::Progress {
                self.unconfirmed.tells().push_back(tell);
            }
        }
    }

    /// After a reconnect: the server may or may not have these, and taking one twice changes nothing. Not so of pins: one that was given
    /// up is another member's by now, or its time runs out.
    async fn tell_again(&mut self) {
        let connects = self.connection.connects();
        if self.connects == connects {
            return;
        }
        self.connects = connects;
        let again: Vec<_> =
            self.unconfirmed.tells().iter().filter(|tell| tell.what != What::Unpin).cloned().collect();
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
        let told: Vec<_> = self.unconfirmed.tells().iter().cloned().collect();
        let last = last_of_each(told.iter().filter(|tell| tell.what != What::Unpin));
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

/// What comes to the task.
pub(crate) struct Inlet {
    tells: mpsc::UnboundedReceiver<Tell>,
    unconfirmed: Arc<Unconfirmed>,
    /// How often the client had connected before anything was told.
    connects: u64,
}

/// All ends: for those who tell, for the task, and for those who want to know that it was told.
pub(crate) struct Ends {
    pub(crate) teller: Teller,
    pub(crate) inlet: Inlet,
    pub(crate) flush: mpsc::Sender<Flush>,
    pub(crate) flushed: mpsc::Receiver<Flush>,
}

impl Ends {
    pub(crate) fn new(connection: Connection) -> Self {
        let (task, tells) = mpsc::unbounded_channel();
        let (flush, flushed) = mpsc::channel(16);
        let (unconfirmed, connects) = (Arc::new(Unconfirmed::default()), connection.connects());
        let teller = Teller { connection, unconfirmed: Arc::clone(&unconfirmed), task };
        Self { teller, inlet: Inlet { tells, unconfirmed, connects }, flush, flushed }
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
