//! One channel: its log, its groups and their members, under one lock; and who is to be woken when it is let go.

mod consumers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postrider_core::{ChannelEntry, Envelope, GroupEntry, Letter, Origin, Start};
use tokio::sync::Notify;

use crate::addressed::Addressed;
use crate::config::Bound;
use crate::group::GroupKey;
use crate::log::Log;
use crate::room::Room;
use consumers::Consumers;

pub(crate) use consumers::{Found, MemberId};

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) name: Arc<str>,
    bound: Bound,
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
    /// How many messages were acknowledged, by whichever group.
    settled: u64,
    ephemerals: u64,
    closed: bool,
}

/// What a publish came to.
pub(crate) enum Appended {
    At(u64),
    NoRoom(Envelope),
    Closed,
}

impl Channel {
    pub(crate) fn new(name: &str, bound: Bound) -> Self {
        Self {
            name: name.into(),
            bound,
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
        if !turn || !state.make_room(self.bound, envelope.byte_len()) {
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
            group.members = Some(consumers.count() as u32);
            entry.groups.push(group);
        }
        entry
    }

    pub(crate) fn enter_room(&self) -> (u64, Arc<Notify>) {
        self.state().room.enter()
    }

    /// How many messages its groups have acknowledged so far.
    pub(crate) fn settled(&self) -> u64 {
        self.state().settled
    }

    /// The groups whose members hold messages, if none was acknowledged since there were so many.
    pub(crate) fn standing_still(&self, settled: u64) -> Vec<String> {
        let state = self.state();
        if state.settled != settled {
            return Vec::new();
        }
        let holding = state.groups.iter().filter(|(_, consumers)| consumers.holds_any());
        let name = |key: &GroupKey| match key {
            GroupKey::Named(name) => format!("`{name}`"),
            GroupKey::Ephemeral(_) => "(ephemeral)".to_owned(),
        };
        holding.map(|(key, _)| name(key)).collect()
    }

    pub(crate) fn leave_room(&self, ticket: u64) {
        let mut state = self.state();
        state.room.leave(ticket);
        state.room.call_first();
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
    fn make_room(&mut self, bound: Bound, bytes: usize) -> bool {
        let needed_from = self.needed_from();
        while self.log.len() >= bound.messages || self.log.bytes() + bytes > bound.bytes {
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
    fn call_when_roomy(&mut self, bound: Bound) {
        if self.room.is_empty() {
            return;
        }
        let needed = self.log.end().saturating_sub(self.needed_from().max(self.log.base())) as usize;
        if needed <= bound.messages - bound.messages.div_ceil(4) {
            self.room.call_first();
        }
    }
}
