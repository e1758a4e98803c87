//! The task that tells the server what became of deliveries: acknowledgements, signs of life, and what to tell again after a
//! lost connection.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::Subscriber;
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
    echo: Subscriber,
    echo_subject: String,
    unconfirmed: VecDeque<Tell>,
    echoes: u64,
}

impl Acks {
    /// Runs until the subscription is gone and everything is told.
    pub(crate) async fn run(mut self) -> Result<()> {
        let echo_subject = self.connection.client.new_inbox();
        let echo = self
            .connection
            .client
            .subscribe(echo_subject.clone())
            .await
            .map_err(|e| error::request("subscribe", e))?;
        let mut line = Line {
            connection: self.connection,
            echo,
            echo_subject,
            unconfirmed: VecDeque::new(),
            echoes: 0,
        };
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
                    line.tell(told.drain(..)).await;
                }
                Some(flush) = self.flush.recv() => {
                    while let Ok(tell) = self.tell.try_recv() {
                        told.push(tell);
                    }
                    line.tell(told.drain(..)).await;
                    // nobody waits any more: fine
                    let _ = flush.send(line.confirm(&self.env).await);
                }
                () = self.env.sleep(wait) => {
                    due = self.env.now() + self.progress;
                    let held = self.shared.upgrade().map(|shared| shared.held()).unwrap_or_default();
                    line.tell(held.into_iter().map(|reply| Tell { reply, what: What::Progress })).await;
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
    async fn tell(&mut self, tells: impl Iterator<Item = Tell>) {
        for tell in tells {
            // handed over only while connected: what is told to a lost connection would be told late
            self.connection.up().await;
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
        let _ = self.connection.client.publish(tell.reply.clone(), payload).await;
    }

    /// After a reconnect: the server may or may not have these, and taking one twice changes nothing.
    async fn tell_again(&mut self) {
        for tell in &self.unconfirmed {
            self.publish(tell).await;
        }
    }

    /// Sends a message to ourselves: when it is back, the server has had everything before it. Answers whether it came.
    async fn confirm(&mut self, env: &Env) -> bool {
        if self.unconfirmed.is_empty() {
            return true;
        }
        let count = self.unconfirmed.len();
        self.echoes += 1;
        let number = self.echoes.to_string();
        if !self.connection.is_up()
            || self
                .connection
                .client
                .publish(self.echo_subject.clone(), Bytes::from(number.clone()))
                .await
                .is_err()
        {
            return false;
        }
        let echo = async {
            while let Some(message) = self.echo.next().await {
                if message.payload == number.as_bytes() {
                    return true;
                }
            }
            false
        };
        let came = tokio::select! {
            came = echo => came,
            () = env.sleep(Duration::from_secs(5)) => false,
        };
        if came {
            self.unconfirmed.drain(..count);
        }
        came
    }
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
        Self {
            tell,
            told,
            flush,
            flushed,
        }
    }
}

/// Keeps the state alive no longer than the subscription.
pub(crate) fn weak(shared: &Arc<Shared>) -> Weak<Shared> {
    Arc::downgrade(shared)
}
