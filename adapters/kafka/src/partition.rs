//! One partition that a member holds: its queue, how far it is settled, what is out and what waits. No locks; those are `shared`'s.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::FixedState;
use postrider_core::{Claim, ClaimId, Delivery, Envelope, InFlight, Origin, Rising, Token};

use crate::ahead::{Ahead, Found, Queue, Records};
use crate::mark::{MOST_STRIKES, Starts};
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
pub(crate) struct Partition<Q = Records> {
    pub(crate) epoch: u32,
    /// Its number among all that the subscription reads.
    shard: u32,
    pub(crate) phase: Phase,
    pub(crate) queue: Arc<Ahead<Q>>,
    /// Read already, and next in turn.
    lot: VecDeque<Found>,
    pub(crate) mark: Watermark,
    pub(crate) held: Rising<Held>,
    /// What is held and isn't out, but for the one that rests.
    pub(crate) kept: InFlight,
    /// What of it waits for room, or behind a message of its key, to be handed out before anything more is taken from the queue.
    pub(crate) waiting: BTreeSet<u64>,
    /// Keys of which something waits for its time.
    pub(crate) delayed: HashMap<u64, usize, FixedState>,
    /// The first of its messages, where it isn't due yet: nothing behind it is due before.
    pub(crate) resting: Option<u64>,
    pub(crate) out: usize,
    /// The runner is through with it.
    pub(crate) released: bool,
    /// What is known of those who held it, this hold included.
    starts: Starts,
    /// Below it lies what they may have had before this hold.
    reached: u64,
    /// How many messages may be out beyond those that are settled.
    span: u64,
    /// Nobody will end under this hold without leaving.
    clean: bool,
    /// Which state of the watermark is written down; `None` before the first time.
    pub(crate) written: Option<u64>,
}

impl<Q: Queue> Partition<Q> {
    /// A partition as it comes, with what is known of those who held it; without, nothing is ever written down.
    pub(crate) fn new(
        ClaimId { shard, epoch }: ClaimId,
        queue: Q,
        mark: Watermark,
        starts: Option<Starts>,
        span: u64,
    ) -> Self {
        // this hold counts from its beginning: it takes itself out again when it ends in good order
        let begins = starts.is_some();
        let mut starts = starts.unwrap_or_default();
        starts.count = starts.count.saturating_add(u32::from(begins));
        Self {
            epoch,
            shard,
            phase: Phase::Active,
            queue: Arc::new(Ahead::new(queue)),
            lot: VecDeque::new(),
            mark,
            held: Rising::default(),
            kept: InFlight::default(),
            waiting: BTreeSet::new(),
            delayed: HashMap::default(),
            resting: None,
            out: 0,
            released: false,
            reached: starts.reach,
            starts,
            span,
            clean: false,
            written: (!begins).then_some(0),
        }
    }

    pub(crate) fn claim(&self) -> ClaimId {
        ClaimId { shard: self.shard, epoch: self.epoch }
    }

    /// Whether anything may be handed out: not before it is written down that somebody holds the partition, since one who ends at once
    /// would never be counted.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Active && self.written.is_some()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.written != Some(self.mark.version())
    }

    /// The client reads from another place.
    pub(crate) fn forget_read(&mut self) {
        self.lot.clear();
        self.queue.go_on(true);
    }

    /// From here on other messages are meant: nothing that was handed out before can be settled.
    pub(crate) fn restart(&mut self, mark: Watermark) {
        self.epoch += 1;
        self.forget_read();
        self.mark = mark;
        self.reached = 0;
        self.starts = Starts { count: self.starts.count.min(1), ..Starts::default() };
        // nobody counts holders where nothing is written down
        self.written = (self.starts.count == 0).then_some(0);
        self.held.clear();
        self.kept = InFlight::default();
        self.waiting.clear();
        self.delayed.clear();
        self.resting = None;
        self.out = 0;
        self.phase = Phase::Active;
    }

    /// Nothing more is handed out: the next holder needn't be afraid of what this one had.
    pub(crate) fn end(&mut self) {
        self.clean = true;
        self.mark.touch();
    }

    /// The text beside the position. The topic had `initial_partitions` when the group began, where it is known.
    pub(crate) fn metadata(&mut self, initial_partitions: Option<u32>) -> String {
        let position = self.mark.position();
        if position >= self.reached {
            // all that earlier holders had out is settled
            self.starts.count = self.starts.count.min(1);
        }
        // what will be handed out until the next time counts as well
        self.starts.reach = self.reached.max(self.mark.next().max(position).saturating_add(self.span));
        self.starts.strikes.retain(|offset, _| *offset >= position);
        let strikes = self.starts.strikes.clone();
        let starts = if self.clean { Starts { strikes, ..Starts::default() } } else { self.starts.clone() };
        crate::mark::write(position, self.mark.settled_above(), &starts, initial_partitions)
    }

    /// How often a message was begun alone and not ended.
    pub(crate) fn strikes(&self, offset: u64) -> u32 {
        self.starts.strikes.get(&offset).copied().unwrap_or(0)
    }

    /// 0: it has ended.
    pub(crate) fn set_strikes(&mut self, offset: u64, strikes: u32) {
        let all = &mut self.starts.strikes;
        if strikes == 0 {
            all.remove(&offset);
        } else {
            all.insert(offset, strikes);
        }
        while all.len() > MOST_STRIKES {
            let other = all.keys().rev().find(|other| **other != offset).copied();
            other.and_then(|other| all.remove(&other));
        }
        self.mark.touch();
    }

    /// By how many holders it was handed out, this one included, as far as is known.
    fn deliveries(&self, offset: u64) -> u32 {
        if offset < self.reached { self.starts.count.max(1) } else { 1 }
    }

    /// What waits and may be handed out, ascending.
    pub(crate) fn ready(&self) -> impl Iterator<Item = u64> {
        self.waiting.iter().copied().filter(|offset| !self.is_held_back(*offset))
    }

    /// The next record of the client's.
    pub(crate) fn next(&mut self) -> Option<Found> {
        self.queue.next(&mut self.lot)
    }

    /// Whether it is read, and all that was taken out of the client's queue so far has been received.
    pub(crate) fn is_drained(&self) -> bool {
        self.phase == Phase::Active && self.queue.is_drained(&self.lot)
    }

    /// Whether something of its key waits for its time.
    fn is_held_back(&self, offset: u64) -> bool {
        self.held.get(offset).is_some_and(|held| self.is_delayed(held.key))
    }

    /// Whether something of this key waits for its time.
    pub(crate) fn is_delayed(&self, key: Option<u64>) -> bool {
        key.is_some_and(|key| self.delayed.contains_key(&key))
    }

    /// What was read just now waits here.
    pub(crate) fn keep(&mut self, offset: u64, held: Held) {
        self.kept.take(held.bytes);
        self.held.push(offset, held);
    }

    /// What was read just now isn't due yet: all behind it waits with it. It is one message, so it doesn't count.
    pub(crate) fn rest(&mut self, offset: u64, held: Held) {
        self.held.push(offset, held);
        self.resting = Some(offset);
    }

    /// The one that rests is due, if it is this one: from now on it waits as others do.
    pub(crate) fn end_rest(&mut self, offset: u64) -> bool {
        let Some(held) = self.held.get(offset).filter(|_| self.resting == Some(offset)) else { return false };
        self.kept.take(held.bytes);
        self.resting = None;
        self.waiting.insert(offset);
        true
    }

    /// What is out of it takes no room of the window any more: its claim has ended.
    pub(crate) fn make_room(&self, in_flight: &mut InFlight) {
        self.held.iter().filter(|(_, held)| held.out).for_each(|(_, held)| in_flight.settled(held.bytes));
    }

    /// Hands out what was read just now.
    pub(crate) fn hand_on(
        &mut self,
        offset: u64,
        held: Held,
        in_flight: &mut InFlight,
        claim: impl Fn(Token) -> Claim,
    ) -> Delivery {
        let delivery = self.delivery(offset, held.envelope.clone(), claim);
        self.out += 1;
        in_flight.take(held.bytes);
        self.held.push(offset, Held { out: true, ..held });
        delivery
    }

    /// Hands out what waits here.
    pub(crate) fn hand_out(
        &mut self,
        offset: u64,
        in_flight: &mut InFlight,
        claim: impl Fn(Token) -> Claim,
    ) -> Option<Delivery> {
        let held = self.held.get_mut(offset)?;
        held.out = true;
        self.kept.settled(held.bytes);
        in_flight.take(held.bytes);
        let envelope = held.envelope.clone();
        self.out += 1;
        Some(self.delivery(offset, envelope, claim))
    }

    fn delivery(&self, offset: u64, envelope: Envelope, claim: impl Fn(Token) -> Claim) -> Delivery {
        Delivery {
            envelope,
            origin: Origin { shard: self.shard, position: offset },
            deliveries: Some(self.deliveries(offset)),
            claim: claim(Token { claim: self.claim(), seq: offset }),
        }
    }
}
