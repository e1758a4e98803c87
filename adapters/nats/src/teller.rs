//! What the server is told of deliveries, and the teller: acknowledgements are published by whoever settles, all else is handed to the task,
//! `acks`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Subject;
use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::coop::unconstrained;

use crate::connection::Connection;
use crate::pull::{PRIORITY_GROUP, nanos};

/// How many acknowledgements may be unconfirmed before the server is asked whether it has them.
pub(crate) const CONFIRM_EVERY: usize = 512;

/// How many may be so before further ones wait for the task.
const DIRECT_UNTIL: usize = 8 * CONFIRM_EVERY;

/// What is to be told to the server about a delivery.
#[derive(Clone, Debug)]
pub(crate) struct Tell {
    pub(crate) reply: Subject,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Ack,
    Nak(Option<Duration>),
    Progress,
    /// Gives up a pin; the subject is the API's.
    Unpin,
}

/// What was told, and the server may not have.
#[derive(Debug, Default)]
pub(crate) struct Unconfirmed {
    tells: Mutex<VecDeque<Tell>>,
    /// There are so many that the server is to be asked.
    pub(crate) due: Notify,
}

impl Unconfirmed {
    pub(crate) fn tells(&self) -> MutexGuard<'_, VecDeque<Tell>> {
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
    /// With what it shares with the task.
    pub(crate) fn new(connection: Connection) -> (Self, Inlet) {
        let (task, tells) = mpsc::unbounded_channel();
        let (unconfirmed, connects) = (Arc::new(Unconfirmed::default()), connection.connects());
        let inlet = Inlet { tells, unconfirmed: Arc::clone(&unconfirmed), connects };
        (Self { connection, unconfirmed, task }, inlet)
    }

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

pub(crate) async fn publish(connection: &Connection, tell: &Tell) {
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

/// What comes to the task.
pub(crate) struct Inlet {
    pub(crate) tells: mpsc::UnboundedReceiver<Tell>,
    pub(crate) unconfirmed: Arc<Unconfirmed>,
    /// How often the client had connected before anything was told.
    pub(crate) connects: u64,
}
