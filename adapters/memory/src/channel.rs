//! One channel: its log, its groups and their members, under one lock; and who is to be woken when it is let go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postrider_core::{
    ChannelEntry, ClaimId, Delivery, Envelope, GroupEntry, InFlight, Letter, Order, Origin, Settlement,
    Signal, Start, Token, Window,
};
use tokio::sync::Notify;

use crate::addressed::{Addressed, Turn};
use crate::config::MemoryConfig;
use crate::group::{Epoch, Group};
use crate::log::Log;
use crate::room::Room;

/// A group's place among those of a channel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GroupKey {
    Named(Arc<str>),
    Ephemeral(u64),
}

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) name: Arc<str>,
    config: MemoryConfig,
    hash: foldhash::fast::RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    log: Log,
    addressed: Addressed,
    /// In an order of their own, so that they are woken in the same order in each run.
    groups: BTreeMap<GroupKey, Consumers>,
    /// Positions of dead letters that somebody closed.
    closed_letters: BTreeSet<u64>,
    room: Room,
    ephemerals: u64,
    closed: bool,
}

/// A group with its members.
#[derive(Debug)]
struct Consumers {
    group: Group,
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

/// Names a member towards its channel.
#[derive(Clone, Debug)]
pub(crate) struct MemberId {
    pub(crate) group: GroupKey,
    pub(crate) number: u64,
}

/// What a publish came to.
pub(crate) enum Appended {
    At(u64),
    NoRoom(Envelope),
    Closed,
}

/// What a look for messages came to.
pub(crate) enum Found {
    Signal(Signal),
    Nothing,
}

impl Channel {
    pub(crate) fn new(name: &str, config: MemoryConfig) -> Self {
        Self {
            name: name.into(),
            config,
            hash: foldhash::fast::RandomState::default(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends, if there is room and nobody waits in front. `ticket`: the place in the queue of one who has waited.
    pub(crate) fn append(&self, envelope: Envelope, ticket: Option<u64>) -> Appended {
        self.append_to(None, envelope, ticket)
    }

    /// The same, to everybody or to one group alone; the flag says that it has to wait until it is [`due`](Self::due).
    pub(crate) fn append_to(
        &self,
        group: Option<(&str, bool)>,
        envelope: Envelope,
        ticket: Option<u64>,
    ) -> Appended {
        let mut state = self.state();
        let state = &mut *state;
        if state.closed {
            return Appended::Closed;
        }
        let turn = ticket.map_or(state.room.is_empty(), |ticket| state.room.is_first(ticket));
        if !turn || !state.make_room(&self.config, envelope.byte_len()) {
            return Appended::NoRoom(envelope);
        }
        let position = state.log.push(envelope);
        if let Some((group, early)) = group {
            state.addressed.add(position, group, early);
        }
        if let Some(ticket) = ticket {
            state.room.leave(ticket);
            // there may be room for the next one, too
            state.room.call_first();
        }
        for consumers in state.groups.values_mut() {
            consumers.wake_one();
        }
        Appended::At(position)
    }

    /// The time of a message that was appended for one group has come.
    pub(crate) fn due(&self, group: &str, position: u64) {
        self.state().addressed.due(position);
        self.wake(&GroupKey::Named(group.into()), position);
    }

    /// How it stands: what it keeps, and the named groups that read it.
    pub(crate) fn entry(&self) -> ChannelEntry {
        let state = self.state();
        let mut entry = ChannelEntry::new(&*self.name);
        entry.messages = Some(state.log.len() as u64);
        for (key, consumers) in &state.groups {
            let GroupKey::Named(name) = key else { continue };
            let mut group = GroupEntry::new(&**name);
            let others = state.addressed.others(consumers.group.next(), key);
            group.lag = Some(consumers.group.lag(state.log.end()).saturating_sub(others));
            group.members = Some(consumers.members.len() as u32);
            entry.groups.push(group);
        }
        entry
    }

    pub(crate) fn has_group(&self, name: &str) -> bool {
        self.state().groups.contains_key(&GroupKey::Named(name.into()))
    }

    pub(crate) fn enter_room(&self) -> (u64, Arc<Notify>) {
        self.state().room.enter()
    }

    pub(crate) fn leave_room(&self, ticket: u64) {
        let mut state = self.state();
        state.room.leave(ticket);
        state.room.call_first();
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
        let mut returned = false;
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
                _ => group.ack(token.seq),
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
        state.call_when_roomy(&self.config);
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

    /// Appends up to `max` open letters from `from` on, and answers the position that reading goes on with.
    pub(crate) fn read_letters(&self, from: u64, max: usize, into: &mut Vec<Letter>) -> u64 {
        let state = self.state();
        let mut next = from;
        let open = state.letters(from).take(max).map(|(position, envelope)| {
            next = position + 1;
            Letter::new(envelope.clone(), Origin { shard: 0, position })
        });
        into.extend(open);
        next
    }

    pub(crate) fn close_letters(&self, letters: &[Origin]) {
        let mut state = self.state();
        let kept = state.log.base()..state.log.end();
        let positions = letters.iter().map(|letter| letter.position).filter(|at| kept.contains(at));
        state.closed_letters.extend(positions);
    }

    pub(crate) fn open_letters(&self) -> u64 {
        self.state().letters(0).count() as u64
    }

    /// How many messages are kept now.
    pub(crate) fn kept(&self) -> usize {
        self.state().log.len()
    }

    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.room.call_all();
        state.groups.values_mut().for_each(Consumers::wake_all);
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

    fn position(&self, start: Start) -> u64 {
        match start {
            Start::Latest => self.log.end(),
            Start::Time(ms) => self.log.at_time(ms),
            _ => self.log.base(),
        }
    }

    /// What is kept from `from` on, is everybody's, and wasn't closed.
    fn letters(&self, from: u64) -> impl Iterator<Item = (u64, &Envelope)> {
        let positions = from.max(self.log.base())..self.log.end();
        let open = positions
            .filter(|position| !self.closed_letters.contains(position) && self.addressed.is_free(*position));
        open.filter_map(|position| Some((position, self.log.get(position)?)))
    }

    /// The oldest position that a group has still to settle.
    fn needed_from(&self) -> u64 {
        self.groups.values().map(|consumers| consumers.group.floor()).min().unwrap_or(u64::MAX)
    }

    /// Lets go of what no group needs, until `bytes` more fit. Without a group, the oldest go.
    fn make_room(&mut self, config: &MemoryConfig, bytes: usize) -> bool {
        let needed_from = self.needed_from();
        while self.log.len() >= config.max_messages || self.log.bytes() + bytes > config.max_bytes {
            if self.log.base() >= needed_from || !self.log.pop() {
                // a message larger than the bound passes when it is alone; the publisher has checked it against its own
                return self.log.len() == 0;
            }
        }
        let base = self.log.base();
        self.addressed.forget_before(base);
        while self.closed_letters.first().is_some_and(|position| *position < base) {
            self.closed_letters.pop_first();
        }
        true
    }

    /// Wakes a sender when a good part of the bound is free, so that the two sides don't wake each other for each message.
    fn call_when_roomy(&mut self, config: &MemoryConfig) {
        if self.room.is_empty() {
            return;
        }
        let needed = self.log.end().saturating_sub(self.needed_from().max(self.log.base())) as usize;
        if needed <= config.max_messages - config.max_messages.div_ceil(4) {
            self.room.call_first();
        }
    }
}

impl Consumers {
    /// New messages: one member that waits is enough, it wakes the next if it can't take all.
    fn wake_one(&mut self) {
        if let Some(member) = self.members.iter_mut().find(|member| member.waits && !member.paused) {
            member.wake();
        }
    }

    fn wake_all(&mut self) {
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
