//! What a subscription holds, shared by its thread, those who receive and those who settle: queues, claims, what is out.

mod holds;
mod place;
mod receive;
mod settle;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use foldhash::fast::FixedState;
use postrider_core::{ClaimId, Env, Error, Gap, InFlight, Order, Signal, Window};
use tokio::sync::Notify;

use crate::ahead::{Queue, Records};
use crate::partition::Partition;
use crate::rebalance::Waker;
use crate::source::Source;

pub(crate) use place::Commit;

#[allow(
    clippy::struct_excessive_bools,
    reason = "each follows another event, and they come in any combination"
)]
struct State<Q> {
    partitions: BTreeMap<i32, Partition<Q>>,
    /// Of every partition that was ever held here.
    epochs: HashMap<i32, u32>,
    window: Window,
    in_flight: InFlight,
    events: VecDeque<Signal>,
    timers: BTreeSet<(Instant, i32, u32, u64)>,
    /// Partitions whose place isn't in the log any more, or isn't sure: nothing is handed out of them.
    troubled: BTreeSet<i32>,
    /// How many partitions the topic had when the group began, or the subscription if it has no group.
    initial_partitions: Option<u32>,
    /// The topic does not exist.
    topic_missing: bool,
    /// A request has failed because the topic does not exist: the member's thread checks it.
    topic_suspected: bool,
    paused: bool,
    /// The group's place can't be written down at present.
    held_back: bool,
    flush: bool,
    ended: Option<Error>,
    closed: bool,
    /// Which partition is looked at first, so that each gets its turn.
    turn: usize,
}

/// What a subscription holds.
pub(crate) struct Shared<Q = Records> {
    state: Mutex<State<Q>>,
    pub(crate) topic: Arc<str>,
    source: Source,
    order: Order,
    env: Env,
    hash: FixedState,
    pub(crate) waker: Arc<Waker>,
    /// Of the thread that reads ahead.
    reader: Waker,
    /// Something to receive.
    pub(crate) arrived: Arc<Notify>,
    /// Something was written down, or can't be any more.
    written: Notify,
}

impl<Q> std::fmt::Debug for Shared<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl<Q: Queue> Shared<Q> {
    pub(crate) fn new(
        topic: String,
        source: Source,
        order: Order,
        window: Window,
        env: Env,
        arrived: Arc<Notify>,
    ) -> Self {
        let state = State {
            partitions: BTreeMap::new(),
            epochs: HashMap::new(),
            window,
            in_flight: InFlight::default(),
            events: VecDeque::new(),
            timers: BTreeSet::new(),
            troubled: BTreeSet::new(),
            initial_partitions: None,
            topic_missing: false,
            topic_suspected: false,
            paused: false,
            held_back: false,
            flush: false,
            ended: None,
            closed: false,
            turn: 0,
        };
        Self {
            state: Mutex::new(state),
            topic: topic.into(),
            source,
            order,
            env,
            hash: FixedState::default(),
            waker: Arc::default(),
            reader: Waker::default(),
            arrived,
            written: Notify::new(),
        }
    }

    fn claim(&self, number: i32, epoch: u32) -> ClaimId {
        ClaimId { shard: self.source.base() + number as u32, epoch }
    }

    fn number(&self, claim: ClaimId) -> i32 {
        // the other topic's shards give a number that no partition has
        i32::try_from(claim.shard).unwrap_or(-1).wrapping_sub(self.source.base() as i32)
    }

    /// What is out under these claims.
    pub(crate) fn in_flight(&self) -> InFlight {
        self.state().in_flight
    }

    fn state(&self) -> MutexGuard<'_, State<Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn event(&self, signal: Signal) {
        self.state().events.push_back(signal);
        self.arrived.notify_one();
    }

    /// Messages of a partition are missing.
    pub(crate) fn gap(&self, mut gap: Gap) {
        gap.shard += self.source.base();
        self.event(Signal::Gap(gap));
    }

    /// The subscription ends with a reason that reconnecting doesn't mend.
    pub(crate) fn end(&self, error: Error) {
        self.state().ended.get_or_insert(error);
        self.arrived.notify_one();
    }

    /// Why it ended, for whoever comes first.
    pub(crate) fn take_end(&self) -> Option<Error> {
        self.state().ended.take()
    }

    /// From now on nothing that was handed out can be settled.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.closed, true) {
            state.partitions.values_mut().for_each(Partition::end);
        }
        drop(state);
        self.arrived.notify_one();
        self.waker.wake();
        self.reader.wake();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state().paused
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.state().paused = paused;
        self.arrived.notify_one();
    }

    /// Hands nothing out while `held`.
    pub(crate) fn hold_back(&self, held: bool) {
        let mut state = self.state();
        if std::mem::replace(&mut state.held_back, held) && !held {
            self.arrived.notify_one();
        }
    }

    /// Whether nothing is handed out because the group's place can't be written down.
    pub(crate) fn is_held_back(&self) -> bool {
        self.state().held_back
    }

    /// The topic may not exist: the member's thread checks it.
    pub(crate) fn suspect_topic(&self) {
        self.state().topic_suspected = true;
        self.waker.wake();
    }

    pub(crate) fn take_topic_suspected(&self) -> bool {
        std::mem::take(&mut self.state().topic_suspected)
    }

    /// Whether the topic does not exist.
    pub(crate) fn is_topic_missing(&self) -> bool {
        self.state().topic_missing
    }

    pub(crate) fn set_topic_missing(&self, missing: bool) {
        if std::mem::replace(&mut self.state().topic_missing, missing) != missing && missing {
            tracing::warn!(target: "postrider::connection", topic = &*self.topic, "the topic does not exist");
        }
    }

    /// How many partitions the topic had when the group began, as far as it is known.
    pub(crate) fn initial_partitions(&self) -> Option<u32> {
        self.state().initial_partitions
    }

    pub(crate) fn set_initial_partitions(&self, count: Option<u32>) {
        self.state().initial_partitions = count;
    }

    pub(crate) fn numbers(&self) -> Vec<i32> {
        self.state().partitions.keys().copied().collect()
    }

    pub(crate) fn claims(&self) -> Vec<ClaimId> {
        self.state().partitions.values().map(Partition::claim).collect()
    }
}

#[cfg(test)]
mod tests;
