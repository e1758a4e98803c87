//! What the consuming client reports: rebalances, commits, errors. It only takes note; the member's thread acts.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;

use crate::connection;

/// The consuming client of one member.
pub(crate) type Client = BaseConsumer<Listener>;

/// Something that the member's thread has to act upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// These partitions come; the client waits until they are taken.
    Assign(Vec<i32>),
    /// These partitions go; the client waits until they are given up.
    Revoke(Vec<i32>),
    /// The commit that was under way is through, or isn't.
    Committed(Result<(), Code>),
}

/// Wakes the member's thread.
#[derive(Debug, Default)]
pub(crate) struct Waker(OnceLock<Thread>);

impl Waker {
    /// The calling thread is the one to be woken.
    pub(crate) fn here(&self) {
        // set once: each member has one thread
        let _ = self.0.set(std::thread::current());
    }

    pub(crate) fn wake(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

/// What the client calls, on the member's thread.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    events: Mutex<VecDeque<Event>>,
    /// Rises with every call, so that the thread knows whether a poll did something.
    calls: AtomicU64,
    /// Nobody waits for partitions any more: they are given up within the call.
    closing: AtomicBool,
}

impl Listener {
    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn next(&self) -> Option<Event> {
        self.events().pop_front()
    }

    pub(crate) fn push(&self, event: Event) {
        self.events().push_back(event);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Relaxed);
    }

    fn called(&self) {
        self.calls.fetch_add(1, Relaxed);
    }
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.called();
        connection::log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {
        self.called();
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.called();
        connection::log_error(&error, reason);
    }
}

impl ConsumerContext for Listener {
    fn rebalance(&self, client: &Client, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.called();
        let assign = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Relaxed) {
            let answered =
                if assign { client.incremental_assign(list) } else { client.incremental_unassign(list) };
            if answered.is_err() {
                // not cooperative: a client without a group's subscription
                let _ = client.unassign();
            }
            return;
        }
        let partitions = list.elements().iter().map(TopicPartitionListElem::partition).collect();
        self.events().push_back(if assign { Event::Assign(partitions) } else { Event::Revoke(partitions) });
    }
}

/// Lets the thread know when the client has something for it.
pub(crate) fn listen(client: &mut Client, waker: &Arc<Waker>) {
    let waker = Arc::clone(waker);
    client.set_nonempty_callback(move || waker.wake());
}
