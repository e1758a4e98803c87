//! What a subscription holds, shared by the tasks that fill it and those who empty it: buffers, claims, what is out.

mod partition;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Subject;
use postrider_core::{
    Claim, ClaimId, Delivery, Error, InFlight, Order, Origin, Settlement, Signal, Token, Window,
};
use tokio::sync::Notify;

use crate::teller::{Tell, Teller, What};
use partition::{Acknowledged, Held, Partition};

pub(crate) use partition::Arrived;

#[derive(Debug)]
struct State {
    partitions: Vec<Partition>,
    window: Window,
    in_flight: InFlight,
    events: VecDeque<Signal>,
    paused: bool,
    ended: Option<Error>,
    closed: bool,
    /// Which partition is looked at first, so that each gets its turn.
    turn: usize,
    /// How many partitions this member is to hold.
    share: usize,
}

impl State {
    /// How many messages are held, in the buffers and out.
    fn load(&self) -> usize {
        self.partitions.iter().map(|partition| partition.held.len()).sum()
    }

    /// The partition, if the hold under which it delivered goes on.
    fn partition(&mut self, token: Token) -> Option<&mut Partition> {
        let partition = self.partitions.get_mut(token.claim.shard as usize);
        partition.filter(|partition| partition.epoch == token.claim.epoch)
    }

    /// The window, which all partitions share, has room again: their pullers look whether they ask for more. They do so for many
    /// messages at once, so not for each that is settled.
    fn ask_again(&self, before: usize) {
        let (now, step) = (self.load(), (self.window.messages / 8).max(1));
        let was_full = before >= self.window.messages && now < before;
        if was_full || now / step < before / step || (now == 0 && before > 0) {
            self.partitions.iter().for_each(|partition| partition.room.notify_one());
        }
    }

    /// Begins to give away what is held beyond the share.
    fn balance(&mut self, now: Instant) {
        let kept = self.partitions.iter().filter(|p| p.assigned && p.moving.is_none()).count();
        let mut claims = Vec::new();
        let held =
            self.partitions.iter_mut().enumerate().rev().filter(|(_, p)| p.assigned && p.moving.is_none());
        for (shard, partition) in held.take(kept.saturating_sub(self.share)) {
            partition.moving = Some(now);
            claims.push(ClaimId { shard: shard as u32, epoch: partition.epoch });
        }
        if !claims.is_empty() {
            self.events.push_back(Signal::Revoking(claims));
        }
    }
}

/// What a subscription holds.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    order: Order,
    /// Something to receive.
    pub(crate) arrived: Notify,
    teller: Teller,
}

impl Shared {
    pub(crate) fn new(partitions: u32, window: Window, order: Order, teller: Teller) -> Self {
        let partitions = (0..partitions).map(|_| Partition::new()).collect();
        let state = State {
            partitions,
            window,
            in_flight: InFlight::default(),
            events: VecDeque::new(),
            paused: false,
            ended: None,
            closed: false,
            turn: 0,
            share: usize::MAX,
        };
        Self { state: Mutex::new(state), order, arrived: Notify::new(), teller }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, reply: Subject, what: What) {
        self.teller.tell(Tell { reply, what });
    }

    pub(crate) fn with_partition<T>(&self, shard: u32, with: impl FnOnce(&mut Partition) -> T) -> Option<T> {
        self.state().partitions.get_mut(shard as usize).map(with)
    }

    /// The member holds the partition from now on, unless it has just given it away. With `gather`, it hands nothing out
    /// before [`gathered`](Self::gathered).
    pub(crate) fn assign(&self, shard: u32, gather: bool, now: Instant) -> bool {
        let mut state = self.state();
        let Some(partition) = state.partitions.get_mut(shard as usize).filter(|p| !p.released) else {
            return false;
        };
        partition.epoch += 1;
        partition.assigned = true;
        partition.gathering = gather;
        let claim = ClaimId { shard, epoch: partition.epoch };
        state.events.push_back(Signal::Assigned(vec![claim]));
        state.balance(now);
        drop(state);
        self.arrived.notify_one();
        true
    }

    /// Whether the partition was given to another member since the last time that this was asked.
    pub(crate) fn take_released(&self, shard: u32) -> bool {
        self.with_partition(shard, |partition| std::mem::take(&mut partition.released)).unwrap_or(false)
    }

    /// How many partitions this member is to hold from now on.
    pub(crate) fn share(&self, partitions: u32, now: Instant) {
        let mut state = self.state();
        state.share = partitions as usize;
        state.balance(now);
        // those under their share may ask for more
        state.partitions.iter().for_each(|partition| partition.room.notify_one());
        drop(state);
        self.arrived.notify_one();
    }

    /// Whether the share has room for another partition.
    pub(crate) fn may_take_another(&self) -> bool {
        let state = self.state();
        state.partitions.iter().filter(|p| p.assigned).count() < state.share
    }

    /// Since when the partition is being given to another member.
    pub(crate) fn moving(&self, shard: u32) -> Option<Instant> {
        self.with_partition(shard, |partition| partition.moving).flatten()
    }

    /// Nothing that was handed out under these claims is unsettled: the rest is given back. Answers the partitions.
    pub(crate) fn release(&self, claims: &[ClaimId]) -> Vec<u32> {
        let mut state = self.state();
        let state = &mut *state;
        let mut released = Vec::new();
        for claim in claims {
            let partition = state.partitions.get_mut(claim.shard as usize);
            if let Some(partition) = partition.filter(|p| p.moving.is_some() && p.epoch == claim.epoch) {
                for held in partition.end() {
                    if held.out {
                        state.in_flight.settled(held.bytes);
                    }
                    self.tell(held.reply, What::Nak(None));
                }
                partition.released = true;
                partition.room.notify_one();
                released.push(claim.shard);
            }
        }
        released
    }

    /// The member doesn't hold the partition any more. What it held is given back, so that it comes again soon.
    pub(crate) fn lose(&self, shard: u32) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(partition) = state.partitions.get_mut(shard as usize) else {
            return;
        };
        if !partition.assigned {
            return;
        }
        let claim = ClaimId { shard, epoch: partition.epoch };
        for held in partition.end() {
            if held.out {
                state.in_flight.settled(held.bytes);
            }
            self.tell(held.reply, What::Nak(None));
        }
        state.events.push_back(Signal::Lost(vec![claim]));
        self.arrived.notify_one();
    }

    pub(crate) fn event(&self, signal: Signal) {
        self.state().events.push_back(signal);
        self.arrived.notify_one();
    }

    /// The subscription ends with a reason that reconnecting doesn't mend.
    pub(crate) fn end(&self, error: Error) {
        self.state().ended = Some(error);
        self.arrived.notify_one();
    }

    /// How many of the held messages came by the consumer's first `delivered` deliveries.
    pub(crate) fn held_of(&self, shard: u32, delivered: u64) -> usize {
        let count = |partition: &mut Partition| {
            partition.held.iter().filter(|(_, held)| held.delivered <= delivered).count()
        };
        self.with_partition(shard, count).unwrap_or(0)
    }

    /// The server can be heard, or it can't.
    pub(crate) fn reach(&self, shard: u32, reachable: bool) {
        self.with_partition(shard, |partition| partition.reachable = reachable);
        self.arrived.notify_one();
    }

    /// The stream is another, whose sequences mean other messages.
    pub(crate) fn forget(&self, shard: u32) {
        self.with_partition(shard, |partition| partition.acknowledged = Acknowledged::default());
    }

    /// Nothing is handed out before [`gathered`](Self::gathered).
    pub(crate) fn gather(&self, shard: u32) {
        self.with_partition(shard, |partition| partition.gathering = true);
    }

    /// All is here that an earlier holder left: it can be handed out, in its order.
    pub(crate) fn gathered(&self, shard: u32) {
        self.with_partition(shard, |partition| partition.gathering = false);
        self.arrived.notify_one();
    }

    /// Messages came.
    pub(crate) fn push(&self, shard: u32, lot: Vec<Arrived>) {
        if lot.is_empty() {
            return;
        }
        let mut state = self.state();
        let Some(partition) = state.partitions.get_mut(shard as usize) else {
            return;
        };
        for tell in lot.into_iter().filter_map(|arrived| partition.push(arrived)) {
            self.teller.tell(tell);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// The next event, or what the window has room for.
    pub(crate) fn receive(
        &self,
        max: usize,
        into: &mut Vec<Delivery>,
        claim: impl Fn(Token) -> Claim,
    ) -> Result<Option<Signal>, Error> {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(signal) = state.events.pop_front() {
            return Ok(Some(signal));
        }
        if let Some(error) = state.ended.take() {
            state.closed = true;
            return Err(error);
        }
        if state.closed {
            return Ok(Some(Signal::Closed));
        }
        if state.paused {
            return Ok(None);
        }
        let (count, before) = (state.partitions.len(), into.len());
        for step in 0..count {
            let shard = (state.turn + step) % count;
            let partition = &mut state.partitions[shard];
            if partition.gathering || partition.moving.is_some() || !partition.reachable {
                continue;
            }
            let mut at = 0;
            while into.len() - before < max && at < partition.buffer.len() {
                let seq = partition.buffer[at];
                let Some(held) = partition.held.get_mut(seq) else {
                    partition.buffer.remove(at);
                    continue;
                };
                if held.key.is_some_and(|key| partition.delayed.contains_key(&key)) {
                    at += 1;
                    continue;
                }
                if !state.in_flight.has_room(&state.window, held.bytes) {
                    at = usize::MAX;
                    break;
                }
                // only under order it may be handed out again
                let again = if self.order == Order::None { None } else { held.envelope.clone() };
                let Some(envelope) = std::mem::replace(&mut held.envelope, again) else {
                    debug_assert!(false, "without order nothing is handed out twice");
                    partition.buffer.remove(at);
                    continue;
                };
                // at the front nearly always, which costs nothing
                partition.buffer.remove(at);
                held.out = true;
                state.in_flight.take(held.bytes);
                let token = Token { claim: ClaimId { shard: shard as u32, epoch: partition.epoch }, seq };
                into.push(Delivery {
                    envelope,
                    origin: Origin { shard: shard as u32, position: seq },
                    deliveries: Some(held.deliveries),
                    claim: claim(token),
                });
            }
            if at == usize::MAX || into.len() - before == max {
                break;
            }
        }
        state.turn = (state.turn + 1) % count.max(1);
        Ok((into.len() > before).then_some(Signal::Deliveries))
    }

    /// Answers those that were stale; `delayed` are for the caller, who knows the time.
    pub(crate) fn settle(
        &self,
        batch: &[(Token, Settlement)],
        delayed: &mut Vec<(Token, Duration)>,
    ) -> Vec<Token> {
        let (mut stale, mut acknowledged) = (Vec::new(), Vec::with_capacity(batch.len()));
        let mut state = self.state();
        let before = state.load();
        for (token, settlement) in batch {
            let known = match *settlement {
                Settlement::Extend => self.extend(&mut state, *token),
                Settlement::GiveBack(after) => self.give_back(&mut state, *token, after, delayed),
                _ => acknowledge(&mut state, *token).map(|reply| acknowledged.push(reply)).is_some(),
            };
            if !known {
                stale.push(*token);
            }
        }
        state.ask_again(before);
        // what waits for room, or was given back
        let waits = state.partitions.iter().any(|partition| !partition.buffer.is_empty());
        // had before others can see that it is settled, so that a flush of theirs waits for it
        let direct = (!acknowledged.is_empty()).then(|| self.teller.direct());
        drop(state);
        if let Some(direct) = direct {
            direct.acknowledge(acknowledged);
        }
        if waits {
            self.arrived.notify_one();
        }
        stale
    }

    fn extend(&self, state: &mut State, token: Token) -> bool {
        let held = state.partition(token).and_then(|partition| partition.out(token.seq));
        let reply = held.map(|held| held.reply.clone());
        reply.map(|reply| self.tell(reply, What::Progress)).is_some()
    }

    fn give_back(
        &self,
        state: &mut State,
        token: Token,
        after: Option<Duration>,
        delayed: &mut Vec<(Token, Duration)>,
    ) -> bool {
        let closed = state.closed;
        let Some(partition) = state.partition(token) else { return false };
        let Some(held) = partition.out(token.seq) else { return false };
        let (bytes, key) = (held.bytes, held.key);
        if self.keeps(held, after) && !closed {
            // under order the message waits here, at the head of what came after it
            held.out = false;
            held.deliveries = held.deliveries.saturating_add(1);
            partition.enqueue(token.seq);
            if let Some(after) = after {
                if let Some(key) = key {
                    *partition.delayed.entry(key).or_default() += 1;
                }
                delayed.push((token, after));
            }
        } else if let Some(held) = partition.done(token.seq) {
            self.tell(held.reply, What::Nak(after));
        }
        state.in_flight.settled(bytes);
        true
    }

    /// Whether a message that is given back waits here rather than at the server: so it is where order is kept.
    fn keeps(&self, held: &Held, after: Option<Duration>) -> bool {
        self.order != Order::None && (held.key.is_some() || after.is_none())
    }

    /// A delayed message's time has come.
    pub(crate) fn wake(&self, token: Token) {
        let mut state = self.state();
        let Some(partition) = state.partitions.get_mut(token.claim.shard as usize) else {
            return;
        };
        let key = partition.held.get(token.seq).and_then(|held| held.key);
        if partition.epoch == token.claim.epoch
            && let Some(key) = key
            && let Some(count) = partition.delayed.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                partition.delayed.remove(&key);
            }
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// How many messages are held, in the buffers and out.
    pub(crate) fn load(&self) -> usize {
        self.state().load()
    }

    /// Everything that is held, for the sign of life.
    pub(crate) fn held(&self) -> Vec<Subject> {
        self.state()
            .partitions
            .iter()
            .flat_map(|p| p.held.iter().map(|(_, held)| held.reply.clone()))
            .collect()
    }

    /// Takes out everything that is held, in its order, to be given back.
    pub(crate) fn take_all(&self) -> Vec<Subject> {
        let mut state = self.state();
        state.closed = true;
        state.in_flight = InFlight::default();
        let mut all = Vec::new();
        for partition in &mut state.partitions {
            all.extend(partition.take_all().map(|held| held.reply));
        }
        drop(state);
        self.arrived.notify_one();
        all
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.state().paused = paused;
        self.arrived.notify_one();
    }

    pub(crate) fn claims(&self) -> Vec<ClaimId> {
        let state = self.state();
        let held = state.partitions.iter().enumerate().filter(|(_, p)| p.assigned);
        held.map(|(shard, p)| ClaimId { shard: shard as u32, epoch: p.epoch }).collect()
    }
}

/// Takes out what was handled; answers by which name the server is to be told.
fn acknowledge(state: &mut State, token: Token) -> Option<Subject> {
    let partition = state.partition(token)?;
    let held = partition.done(token.seq)?;
    partition.acknowledged.insert(token.seq, held.time_ms);
    state.in_flight.settled(held.bytes);
    Some(held.reply)
}
