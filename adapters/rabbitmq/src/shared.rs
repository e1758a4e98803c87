//! What a subscription holds, shared by the tasks that fill it and those who empty it: buffers, claims, what is out. No I/O.

mod partition;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postrider_core::{
    Claim, ClaimId, Delivery, Error, InFlight, Order, Origin, Settlement, Signal, Token, Window,
};
use tokio::sync::Notify;

use crate::ledger::Ledger;
use partition::{Held, Partition};

pub(crate) use partition::{Arrived, Told};

/// How long what runs may hold back a partition that is to be given to another member.
const PATIENCE: Duration = Duration::from_mins(1);

/// Acknowledgements are told when they make up so much of the window, or are so many; or a little later.
const SHARE: usize = 8;
const MOST: usize = 128;

#[derive(Debug)]
struct State {
    partitions: Vec<Partition>,
    window: Window,
    in_flight: InFlight,
    events: VecDeque<Signal>,
    /// The window had no room for something that came.
    is_full: bool,
    paused: bool,
    ended: Option<Error>,
    closed: bool,
    /// Which partition is looked at first, so that each gets its turn.
    turn: usize,
    /// How many partitions this member is to hold.
    share: usize,
}

impl State {
    /// Begins to give away what is held beyond the share.
    fn balance(&mut self, now: Instant) {
        let kept = self.partitions.iter().filter(|p| p.assigned && p.moving.is_none()).count();
        let mut claims = Vec::new();
        let held =
            self.partitions.iter_mut().enumerate().rev().filter(|(_, p)| p.assigned && p.moving.is_none());
        for (shard, partition) in held.take(kept.saturating_sub(self.share)) {
            partition.moving = Some(now + PATIENCE);
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
    /// So many acknowledgements of a partition are worth telling.
    together: usize,
    /// Something to receive.
    pub(crate) arrived: Notify,
}

impl Shared {
    pub(crate) fn new(partitions: usize, window: Window, order: Order) -> Self {
        let state = State {
            partitions: (0..partitions).map(|_| Partition::new()).collect(),
            window,
            in_flight: InFlight::default(),
            events: VecDeque::new(),
            is_full: false,
            paused: false,
            ended: None,
            closed: false,
            turn: 0,
            share: usize::MAX,
        };
        let together = (window.messages / SHARE).clamp(1, MOST);
        Self { state: Mutex::new(state), order, together, arrived: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, shard: usize, with: impl FnOnce(&mut Partition) -> T) -> Option<T> {
        self.state().partitions.get_mut(shard).map(with)
    }

    /// What tells a partition's task to look again.
    pub(crate) fn wake_of(&self, shard: usize) -> Arc<Notify> {
        self.with(shard, |partition| Arc::clone(&partition.wake)).unwrap_or_default()
    }

    /// The partition's queue is attended to on a new channel, whose tags begin anew. Without order every member holds it.
    pub(crate) fn attached(&self, shard: usize, now: Instant) {
        self.with(shard, |partition| {
            partition.ledger = Ledger::default();
            partition.released = false;
        });
        if self.order == Order::None {
            self.assign(shard, now);
        }
    }

    fn assign(&self, shard: usize, now: Instant) {
        let mut state = self.state();
        let Some(partition) = state.partitions.get_mut(shard).filter(|p| !p.assigned && !p.released) else {
            return;
        };
        partition.epoch += 1;
        partition.assigned = true;
        let claim = ClaimId { shard: shard as u32, epoch: partition.epoch };
        state.events.push_back(Signal::Assigned(vec![claim]));
        state.balance(now);
        drop(state);
        self.arrived.notify_one();
    }

    /// How many partitions this member is to hold from now on.
    pub(crate) fn share(&self, partitions: usize, now: Instant) {
        let mut state = self.state();
        state.share = partitions;
        state.balance(now);
        drop(state);
        self.arrived.notify_one();
    }

    /// The runner is through with these claims: their channels can be closed.
    pub(crate) fn release(&self, claims: &[ClaimId]) {
        let mut state = self.state();
        let state = &mut *state;
        for claim in claims {
            let partition = state.partitions.get_mut(claim.shard as usize);
            if let Some(partition) = partition.filter(|p| p.moving.is_some() && p.epoch == claim.epoch) {
                // what is unsettled all the same goes back with the channel
                for bytes in partition.end() {
                    state.in_flight.settled(bytes);
                }
                partition.released = true;
                partition.wake.notify_one();
            }
        }
    }

    /// Begins to give up a partition of which a message is unsettled since `before` or longer: what doesn't run goes back to the broker,
    /// and what does has until `until`.
    pub(crate) fn hand_over(&self, shard: usize, before: Instant, until: Instant) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(partition) = state.partitions.get_mut(shard).filter(|p| p.assigned && p.moving.is_none())
        else {
            return;
        };
        // tags rise, so the first one came first
        if partition.held.first().is_none_or(|(_, held)| held.since > before) {
            return;
        }
        partition.moving = Some(until);
        let claim = ClaimId { shard: shard as u32, epoch: partition.epoch };
        state.events.push_back(Signal::Revoking(vec![claim]));
        self.arrived.notify_one();
    }

    /// Whether the partition is being given up: what was held goes back, or its channel is still to be closed.
    pub(crate) fn is_leaving(&self, shard: usize) -> bool {
        self.with(shard, |partition| partition.released || partition.moving.is_some()).unwrap_or(false)
    }

    /// Of what is on the move, that whose time is over is given up, whatever still runs.
    pub(crate) fn take_away(&self, now: Instant) {
        let mut state = self.state();
        let state = &mut *state;
        for (shard, partition) in state.partitions.iter_mut().enumerate() {
            if partition.moving.is_some_and(|until| until <= now) {
                let claim = ClaimId { shard: shard as u32, epoch: partition.epoch };
                for bytes in partition.end() {
                    state.in_flight.settled(bytes);
                }
                partition.released = true;
                partition.wake.notify_one();
                state.events.push_back(Signal::Lost(vec![claim]));
            }
        }
        self.arrived.notify_one();
    }

    /// The member doesn't hold the partition any more. The broker has it all back.
    pub(crate) fn lose(&self, shard: usize) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(partition) = state.partitions.get_mut(shard).filter(|p| p.assigned) else {
            return;
        };
        let claim = ClaimId { shard: shard as u32, epoch: partition.epoch };
        for bytes in partition.end() {
            state.in_flight.settled(bytes);
        }
        state.events.push_back(Signal::Lost(vec![claim]));
        self.arrived.notify_one();
    }

    /// The subscription ends with a reason that reconnecting doesn't mend.
    pub(crate) fn end(&self, error: Error) {
        self.state().ended = Some(error);
        self.arrived.notify_one();
    }

    /// Messages came: so the partition is this member's.
    pub(crate) fn push(&self, shard: usize, all: impl Iterator<Item = Arrived>, now: Instant) {
        self.assign(shard, now);
        let mut state = self.state();
        let closed = state.closed;
        let Some(partition) = state.partitions.get_mut(shard) else {
            return;
        };
        for Arrived { tag, envelope, key, deliveries } in all {
            partition.ledger.delivered(tag);
            if closed || partition.released {
                continue; // it goes back with the channel
            }
            let bytes = envelope.byte_len();
            let held = Held {
                since: now,
                bytes,
                key,
                out: false,
                asleep: false,
                envelope: Some(envelope),
                deliveries,
            };
            partition.held.push(tag, held);
            partition.enqueue(tag);
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
        'partitions: for step in 0..count {
            let shard = (state.turn + step) % count;
            let partition = &mut state.partitions[shard];
            if partition.moving.is_some() {
                continue;
            }
            let mut at = 0;
            while let Some(tag) = partition.buffer.get(at).copied() {
                if into.len() - before == max {
                    break 'partitions;
                }
                let Some(held) = partition.held.get_mut(tag) else {
                    partition.buffer.remove(at);
                    continue;
                };
                if held.asleep || held.key.is_some_and(|key| partition.delayed.contains_key(&key)) {
                    at += 1;
                    continue;
                }
                if !state.in_flight.has_room(&state.window, held.bytes) {
                    state.is_full = true;
                    break 'partitions;
                }
                partition.buffer.remove(at);
                // without order it never comes here again: what is given back goes to the broker
                let envelope =
                    if self.order == Order::None { held.envelope.take() } else { held.envelope.clone() };
                let Some(envelope) = envelope else {
                    continue;
                };
                held.out = true;
                state.in_flight.take(held.bytes);
                let token =
                    Token { claim: ClaimId { shard: shard as u32, epoch: partition.epoch }, seq: tag };
                into.push(Delivery {
                    envelope,
                    origin: Origin { shard: shard as u32, position: tag },
                    deliveries: Some(held.deliveries),
                    claim: claim(token),
                });
            }
        }
        state.turn = (state.turn + 1) % count.max(1);
        Ok((into.len() > before).then_some(Signal::Deliveries))
    }

    /// Answers those that were stale; `delayed` are for the caller, who has the timers.
    pub(crate) fn settle(
        &self,
        batch: &[(Token, Settlement)],
        delayed: &mut Vec<(Token, Duration)>,
    ) -> Vec<Token> {
        let mut stale = Vec::new();
        let mut state = self.state();
        let state = &mut *state;
        let mut waited_for = false;
        for (token, settlement) in batch {
            let shard = token.claim.shard as usize;
            let partition = state.partitions.get_mut(shard);
            let Some(partition) = partition
                .filter(|p| p.epoch == token.claim.epoch && p.held.get(token.seq).is_some_and(|h| h.out))
            else {
                stale.push(*token);
                continue;
            };
            // the broker knows no sign of life for a single delivery
            if *settlement == Settlement::Extend {
                continue;
            }
            let after = match settlement {
                Settlement::GiveBack(after) => Some(*after),
                _ => None,
            };
            match after {
                // under order the message waits here, at the head of what came after it; without, until its time comes
                Some(after) if self.order != Order::None || after.is_some() => {
                    let Some(held) = partition.held.get_mut(token.seq) else {
                        continue;
                    };
                    (held.out, held.asleep) = (false, after.is_some());
                    held.deliveries = held.deliveries.saturating_add(1);
                    state.in_flight.settled(held.bytes);
                    let key = held.key.filter(|_| self.order != Order::None);
                    if let Some(after) = after {
                        if let Some(key) = key {
                            *partition.delayed.entry(key).or_default() += 1;
                        }
                        delayed.push((*token, after));
                    }
                    partition.enqueue(token.seq);
                    waited_for = true;
                }
                after => {
                    let Some(held) = partition.held.remove(token.seq) else {
                        continue;
                    };
                    state.in_flight.settled(held.bytes);
                    if after.is_some() {
                        partition.ledger.give_back(token.seq);
                    } else {
                        partition.ledger.ack(token.seq);
                    }
                    if partition.is_to_be_told(self.together) {
                        partition.wake.notify_one();
                    }
                }
            }
        }
        // who receives is woken only for what can be received
        if waited_for || std::mem::take(&mut state.is_full) {
            self.arrived.notify_one();
        }
        stale
    }

    /// A delayed message's time has come: under order it goes on here, else it goes back to the broker for any member.
    pub(crate) fn awake(&self, token: Token) {
        let mut state = self.state();
        let partition = state.partitions.get_mut(token.claim.shard as usize);
        let Some(partition) = partition.filter(|p| p.epoch == token.claim.epoch) else {
            return;
        };
        let Some(held) = partition.held.get_mut(token.seq) else {
            return;
        };
        held.asleep = false;
        if self.order == Order::None {
            partition.held.remove(token.seq);
            partition.ledger.give_back(token.seq);
            partition.wake.notify_one();
        } else if let Some(key) = held.key
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

    /// What is to be told to the broker on the partition's channel; the scattered acknowledgements only if `all` is asked for.
    pub(crate) fn tell(&self, shard: usize, all: bool) -> Told {
        let told = |partition: &mut Partition| {
            let due = all
                || partition.is_worth_telling(self.together)
                || partition.ledger.has_returned()
                || partition.released;
            let tells = if due { partition.ledger.tell(all) } else { Vec::new() };
            Told { tells, more: partition.ledger.acked() > 0, released: partition.released }
        };
        self.with(shard, told).unwrap_or_default()
    }

    /// How many messages of a partition are unsettled.
    pub(crate) fn held(&self, shard: usize) -> usize {
        self.with(shard, |partition| partition.held.len()).unwrap_or(0)
    }

    /// Since when the oldest message is unsettled.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        // tags rise, so the first one of each partition came first
        let state = self.state();
        state.partitions.iter().filter_map(|p| p.held.first()).map(|(_, held)| held.since).min()
    }

    /// From now on nothing that was handed out can be settled, and nothing more is handed out.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.in_flight = InFlight::default();
        for partition in &mut state.partitions {
            partition.end();
        }
        drop(state);
        self.arrived.notify_one();
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
