//! One partition that a member holds: its queue, how far it is settled, what is out and what waits. No locks; those are `shared`'s.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use foldhash::fast::FixedState;
use postrider_core::{Claim, ClaimId, Delivery, Envelope, InFlight, Origin, Token};
use rdkafka::consumer::base_consumer::PartitionQueue;

use crate::rebalance::Listener;
use crate::watermark::Watermark;

/// A message that was read and isn't settled.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) envelope: Envelope,
    pub(crate) bytes: usize,
    /// Its key, hashed; `None` where no order is asked for.
    pub(crate) key: Option<u64>,
    /// Handed out; else it waits here.
    pub(crate) out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Active,
    /// Goes to another member: nothing more is handed out.
    Revoking,
    /// Its place is being changed.
    Moving,
}

/// One partition that this member holds.
pub(crate) struct Partition {
    pub(crate) epoch: u32,
    /// Its number among all that the subscription reads.
    shard: u32,
    pub(crate) phase: Phase,
    pub(crate) queue: PartitionQueue<Listener>,
    pub(crate) mark: Watermark,
    pub(crate) held: HashMap<u64, Held, FixedState>,
    /// What waits to be handed out, before anything more is taken from the queue.
    pub(crate) waiting: BTreeSet<u64>,
    /// Keys of which something waits for its time.
    pub(crate) delayed: HashMap<u64, usize, FixedState>,
    /// The first of its messages isn't due before, nor is anything behind it.
    pub(crate) rests_until: Option<Instant>,
    pub(crate) out: usize,
    /// The runner is through with it.
    pub(crate) released: bool,
    /// Which state of the watermark is written down; `None` before the first time.
    pub(crate) written: Option<u64>,
}

impl Partition {
    /// A partition as it comes; `fresh`: nothing is written down for it.
    pub(crate) fn new(
        ClaimId { shard, epoch }: ClaimId,
        queue: PartitionQueue<Listener>,
        mark: Watermark,
        fresh: bool,
    ) -> Self {
        Self {
            epoch,
            shard,
            phase: Phase::Active,
            queue,
            mark,
            held: HashMap::default(),
            waiting: BTreeSet::new(),
            delayed: HashMap::default(),
            rests_until: None,
            out: 0,
            released: false,
            written: (!fresh).then_some(0),
        }
    }

    pub(crate) fn claim(&self) -> ClaimId {
        ClaimId { shard: self.shard, epoch: self.epoch }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.written != Some(self.mark.version())
    }

    /// From here on other messages are meant: nothing that was handed out before can be settled.
    pub(crate) fn restart(&mut self, mark: Watermark) {
        self.epoch += 1;
        self.mark = mark;
        self.held.clear();
        self.waiting.clear();
        self.delayed.clear();
        self.rests_until = None;
        self.out = 0;
        self.written = None;
        self.phase = Phase::Active;
    }

    /// What waits and may be handed out, ascending.
    pub(crate) fn ready(&self) -> impl Iterator<Item = u64> {
        self.waiting.iter().copied().filter(|offset| !self.is_held_back(*offset))
    }

    /// Whether something of its key waits for its time.
    pub(crate) fn is_held_back(&self, offset: u64) -> bool {
        let key = self.held.get(&offset).and_then(|held| held.key);
        key.is_some_and(|key| self.delayed.contains_key(&key))
    }

    pub(crate) fn hand_out(
        &mut self,
        offset: u64,
        in_flight: &mut InFlight,
        claim: impl Fn(Token) -> Claim,
    ) -> Option<Delivery> {
        let token = Token { claim: self.claim(), seq: offset };
        let held = self.held.get_mut(&offset)?;
        held.out = true;
        self.out += 1;
        in_flight.take(held.bytes);
        Some(Delivery {
            envelope: held.envelope.clone(),
            origin: Origin { shard: self.shard, position: offset },
            deliveries: None,
            claim: claim(token),
        })
    }
}
