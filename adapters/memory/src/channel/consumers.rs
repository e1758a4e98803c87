//! The groups of a channel and their members: who is handed what, and what becomes of it.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use postrider_core::{
    ClaimId, Delivery, Envelope, InFlight, Order, Origin, Settlement, Signal, Start, Token, Window,
};
use tokio::sync::Notify;

use super::{Channel, State};
use crate::addressed::Turn;
use crate::group::{Epoch, Group, GroupKey};

/// Names a member towards its channel.
#[derive(Clone, Debug)]
pub(crate) struct MemberId {
    pub(crate) group: GroupKey,
    pub(crate) number: u64,
}

/// What a look for messages came to.
pub(crate) enum Found {
    Signal(Signal),
    Nothing,
}

/// A group with its members.
#[derive(Debug)]
pub(super) struct Consumers {
    pub(super) group: Group,
    /// How often a position was begun alone and not ended.
    strikes: HashMap<u64, u32>,
    order: Order,
    members: Vec<Member>,
}

/// One subscription.
#[derive(Debug)]
struct Member {
    number: u64,
    epoch: Epoch,
    window: Window,
    in_flight: InFlight,
    paused: bool,
    events: Vec<Signal>,
    notify: Arc<Notify>,
    /// Whether it waits for something to happen.
    waits: bool,
}

impl Channel {
    pub(crate) fn has_group(&self, name: &str) -> bool {
        self.state().groups.contains_key(&GroupKey::Named(name.into()))
    }

    /// Whether anybody reads it.
    pub(crate) fn has_groups(&self) -> bool {
        !self.state().groups.is_empty()
    }

    /// Makes sure that a group has its place.
    pub(crate) fn declare_group(&self, name: &str, start: Start, order: Order) {
        self.state().group(GroupKey::Named(name.into()), start, order);
    }

    pub(crate) fn join(
        &self,
        name: Option<&str>,
        start: Start,
        order: Order,
        window: Window,
    ) -> (MemberId, Arc<Notify>) {
        let mut state = self.state();
        state.ephemerals += 1;
        let number = state.ephemerals;
        let key = name.map_or(GroupKey::Ephemeral(number), |name| GroupKey::Named(name.into()));
        let consumers = state.group(key.clone(), start, order);
        let epoch = consumers.group.join();
        let notify = Arc::new(Notify::new());
        let events = vec![Signal::Assigned(vec![ClaimId { shard: 0, epoch }])];
        consumers.members.push(Member {
            number,
            epoch,
            window,
            in_flight: InFlight::default(),
            paused: false,
            events,
            notify: Arc::clone(&notify),
            waits: false,
        });
        (MemberId { group: key, number }, notify)
    }

    pub(crate) fn leave(&self, id: &MemberId) {
        let mut state = self.state();
        let Some(consumers) = state.groups.get_mut(&id.group) else {
            return;
        };
        if let Some(at) = consumers.members.iter().position(|member| member.number == id.number) {
            let member = consumers.members.swap_remove(at);
            consumers.group.leave(member.epoch);
            consumers.wake_all();
        }
        if matches!(id.group, GroupKey::Ephemeral(_)) && !consumers.group.has_members() {
            state.groups.remove(&id.group);
            state.room.call_first();
        }
    }

    /// Appends deliveries to `into`, or reports an event, or marks the member as waiting.
    pub(crate) fn receive(
        &self,
        id: &MemberId,
        max: usize,
        into: &mut Vec<Delivery>,
        claim: impl Fn(Token) -> postrider_core::Claim,
    ) -> Found {
        let mut state = self.state();
        let state = &mut *state;
        let Some(consumers) = state.groups.get_mut(&id.group) else {
            return Found::Signal(Signal::Closed);
        };
        let Consumers { group, order, members, .. } = consumers;
        let Some(member) = members.iter_mut().find(|member| member.number == id.number) else {
            return Found::Signal(Signal::Closed);
        };
        member.waits = false;
        if !member.events.is_empty() {
            return Found::Signal(member.events.remove(0));
        }
        if state.closed {
            return Found::Signal(Signal::Closed);
        }
        let log = &state.log;
        let key_of = |position: u64| match order {
            Order::Key => log.get(position).and_then(Envelope::key).map(|key| self.hash.hash_one(key)),
            // one shard: all is one lane, for one member at a time
            Order::Partition => Some(0),
            Order::None => None,
        };
        let mut appended = 0;
        while appended < max && !member.paused {
            // asked before the position is taken, by the size of the next that could come
            let ahead = group.peek(member.epoch).or_else(|| (group.next() < log.end()).then(|| group.next()));
            let Some(ahead) = ahead else { break };
            let bytes = log.get(ahead).map_or(0, Envelope::byte_len);
            if !member.in_flight.has_room(&member.window, bytes) {
                break;
            }
            let Some(handed) = group.take(member.epoch, log.end(), key_of) else {
                break;
            };
            match state.addressed.turn(handed.position, &id.group) {
                Turn::Now => {}
                Turn::Later => {
                    group.delay(handed.position);
                    continue;
                }
                Turn::Never => {
                    group.ack(handed.position);
                    continue;
                }
            }
            let Some(envelope) = log.get(handed.position) else {
                break;
            };
            member.in_flight.take(envelope.byte_len());
            let token = Token { claim: ClaimId { shard: 0, epoch: member.epoch }, seq: handed.position };
            into.push(Delivery {
                envelope: envelope.clone(),
                origin: Origin { shard: 0, position: handed.position },
                deliveries: Some(handed.deliveries),
                claim: claim(token),
            });
            appended += 1;
        }
        if appended > 0 {
            return Found::Signal(Signal::Deliveries);
        }
        member.waits = true;
        // nothing to read: whoever waits for room need not wait for more of it
        state.room.call_first();
        Found::Nothing
    }

    /// Settles what the member still holds; answers the others. `delayed` are given to the caller, who knows the time.
    pub(crate) fn settle(
        &self,
        id: &MemberId,
        batch: &[(Token, Settlement)],
        delayed: &mut Vec<(u64, std::time::Duration)>,
    ) -> Vec<Token> {
        let mut stale = Vec::new();
        let mut state = self.state();
        let state = &mut *state;
        let Some(consumers) = state.groups.get_mut(&id.group) else {
            return batch.iter().map(|(token, _)| *token).collect();
        };
        let Consumers { group, members, .. } = consumers;
        let mut member = members.iter_mut().find(|member| member.number == id.number);
        let (mut returned, mut acknowledged) = (false, 0);
        for (token, settlement) in batch {
            if !group.holds(token.claim.epoch, token.seq) {
                stale.push(*token);
                continue;
            }
            let bytes = state.log.get(token.seq).map_or(0, Envelope::byte_len);
            match settlement {
                Settlement::Extend => continue,
                Settlement::GiveBack(None) => (group.give_back(token.seq), returned = true).0,
                Settlement::GiveBack(Some(after)) => {
                    group.delay(token.seq);
                    delayed.push((token.seq, *after));
                }
                // acks, and whatever may be added to them
                _ => {
                    group.ack(token.seq);
                    acknowledged += 1;
                }
            }
            if let Some(member) = &mut member {
                member.in_flight.settled(bytes);
            }
        }
        if let Some(member) = member {
            member.wake();
        }
        if returned || consumers.members.len() > 1 {
            consumers.wake_all();
        }
        state.settled += acknowledged;
        state.call_when_roomy(self.bound);
        stale
    }

    /// The time of a delayed message has come.
    pub(crate) fn wake(&self, group: &GroupKey, position: u64) {
        if let Some(consumers) = self.state().groups.get_mut(group) {
            consumers.group.wake(position);
            consumers.wake_all();
        }
    }

    /// Every member's hold ends and a new one begins, as after a lost connection.
    pub(crate) fn disconnect(&self) {
        for consumers in self.state().groups.values_mut() {
            consumers.renew(|_| true, true);
        }
    }

    pub(crate) fn seek(&self, id: &MemberId, to: Start) {
        let mut state = self.state();
        let position = state.position(to);
        let Some(consumers) = state.groups.get_mut(&id.group) else {
            return;
        };
        consumers.group.seek(position);
        consumers.renew(|_| true, false);
        state.room.call_all();
    }

    pub(crate) fn pause(&self, id: &MemberId, paused: bool) {
        let mut state = self.state();
        let member = state
            .groups
            .get_mut(&id.group)
            .and_then(|c| c.members.iter_mut().find(|m| m.number == id.number));
        if let Some(member) = member {
            member.paused = paused;
            member.wake();
        }
    }

    pub(crate) fn lag(&self, id: &MemberId) -> u64 {
        let state = self.state();
        state.groups.get(&id.group).map_or(0, |Consumers { group, .. }| {
            group.lag(state.log.end()) - state.addressed.others(group.next(), &id.group)
        })
    }

    pub(crate) fn strikes(&self, id: &MemberId, position: u64) -> u32 {
        let state = self.state();
        state.groups.get(&id.group).and_then(|c| c.strikes.get(&position)).copied().unwrap_or(0)
    }

    pub(crate) fn set_strikes(&self, id: &MemberId, position: u64, strikes: u32) {
        let mut state = self.state();
        if let Some(consumers) = state.groups.get_mut(&id.group) {
            if strikes == 0 {
                consumers.strikes.remove(&position);
            } else {
                consumers.strikes.insert(position, strikes);
            }
        }
    }

    pub(crate) fn epoch(&self, id: &MemberId) -> Option<Epoch> {
        let state = self.state();
        let consumers = state.groups.get(&id.group)?;
        consumers.members.iter().find(|member| member.number == id.number).map(|member| member.epoch)
    }
}

impl State {
    fn group(&mut self, key: GroupKey, start: Start, order: Order) -> &mut Consumers {
        let position = self.position(start);
        self.groups.entry(key).or_insert_with(|| Consumers {
            group: Group::new(position),
            strikes: HashMap::new(),
            order,
            members: Vec::new(),
        })
    }
}

impl Consumers {
    /// How many members there are.
    pub(super) fn count(&self) -> usize {
        self.members.len()
    }

    /// Whether a member holds messages.
    pub(super) fn holds_any(&self) -> bool {
        self.members.iter().any(|member| member.in_flight.messages > 0)
    }

    /// New messages: one member that waits is enough, it wakes the next if it can't take all.
    pub(super) fn wake_one(&mut self) {
        if let Some(member) = self.members.iter_mut().find(|member| member.waits && !member.paused) {
            member.wake();
        }
    }

    pub(super) fn wake_all(&mut self) {
        self.members.iter_mut().for_each(Member::wake);
    }

    fn renew(&mut self, which: impl Fn(&Member) -> bool, reconnected: bool) {
        for member in self.members.iter_mut().filter(|member| which(member)) {
            let old = member.epoch;
            self.group.leave(old);
            member.epoch = self.group.join();
            member.in_flight = InFlight::default();
            member.events.push(Signal::Lost(vec![ClaimId { shard: 0, epoch: old }]));
            if reconnected {
                member.events.push(Signal::Reconnected);
            }
            member.events.push(Signal::Assigned(vec![ClaimId { shard: 0, epoch: member.epoch }]));
            member.wake();
        }
    }
}

impl Member {
    fn wake(&mut self) {
        if self.waits {
            self.waits = false;
            self.notify.notify_one();
        }
    }
}
