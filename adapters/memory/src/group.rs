//! Where a group stands: what it has read, what is out at which member, what comes again. A state machine without I/O; its
//! positions mean the log's.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// One member's hold of the group: a number that no later hold has.
pub(crate) type Epoch = u32;

/// A group's place among those of a channel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GroupKey {
    Named(Arc<str>),
    Ephemeral(u64),
}

/// What became of one position that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the member with this hold.
    Out(Epoch),
    /// To be delivered again, to whoever may have it.
    Queued,
    /// To be delivered again, but not before its time.
    Delayed,
    Settled,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: State,
    deliveries: u32,
    /// Its key, hashed; `None` without order.
    key: Option<u64>,
}

/// Who has a key: as long as anything of it is unsettled, nobody else gets it.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    /// Who had something of it last.
    epoch: Epoch,
    /// Unsettled positions of the key that were read.
    count: usize,
    /// Those of them that are out.
    out: usize,
    /// Those of them that wait for their time: nobody gets anything of the key meanwhile.
    delayed: usize,
}

impl Owner {
    fn lets(&self, epoch: Epoch) -> bool {
        self.delayed == 0 && (self.epoch == epoch || self.out == 0)
    }
}

/// How many positions may wait for their keys' owners before the others stop reading on.
const READ_AHEAD: usize = 4096;

/// One group of a channel.
#[derive(Debug)]
pub(crate) struct Group {
    /// The lowest position that isn't settled; all below are.
    floor: u64,
    /// One for each position from `floor` that was read.
    slots: VecDeque<Slot>,
    settled: usize,
    queued: BTreeSet<u64>,
    /// Kept only while several members share the group, or a key waits: a single member's lanes need no owner.
    owners: Option<HashMap<u64, Owner>>,
    members: Vec<Epoch>,
    epochs: Epoch,
    delayed: usize,
}

/// A position handed to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) position: u64,
    pub(crate) deliveries: u32,
}

impl Group {
    pub(crate) fn new(start: u64) -> Self {
        Self {
            floor: start,
            slots: VecDeque::new(),
            settled: 0,
            queued: BTreeSet::new(),
            owners: None,
            members: Vec::new(),
            epochs: 0,
            delayed: 0,
        }
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// The next position that nobody has read.
    pub(crate) fn next(&self) -> u64 {
        self.floor + self.slots.len() as u64
    }

    /// How many messages are unread or unsettled, of a log that ends at `end`.
    pub(crate) fn lag(&self, end: u64) -> u64 {
        end.saturating_sub(self.floor).saturating_sub(self.settled as u64)
    }

    pub(crate) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// A new hold.
    pub(crate) fn join(&mut self) -> Epoch {
        self.epochs += 1;
        self.members.push(self.epochs);
        self.track_owners();
        self.epochs
    }

    /// The hold ends: what was out is delivered again, in its place.
    pub(crate) fn leave(&mut self, epoch: Epoch) {
        self.members.retain(|member| *member != epoch);
        let floor = self.floor;
        let out = self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.state == State::Out(epoch));
        for (i, slot) in out {
            slot.state = State::Queued;
            self.queued.insert(floor + i as u64);
        }
        // what the hold owned is anybody's now
        self.owners = None;
        self.track_owners();
    }

    /// Moves the group; what is out belongs to no hold any more.
    pub(crate) fn seek(&mut self, position: u64) {
        self.floor = position;
        self.slots.clear();
        self.queued.clear();
        self.settled = 0;
        self.delayed = 0;
        self.owners = None;
        self.track_owners();
    }

    /// The next position for a member, below `end`. `key_of` hashes the key of a position, for groups that keep its order.
    pub(crate) fn take(
        &mut self,
        epoch: Epoch,
        end: u64,
        key_of: impl Fn(u64) -> Option<u64>,
    ) -> Option<Handed> {
        if let Some(position) = self.peek(epoch) {
            self.queued.remove(&position);
            let slot = self.slot_mut(position)?;
            slot.state = State::Out(epoch);
            slot.deliveries += 1;
            let (deliveries, key) = (slot.deliveries, slot.key);
            self.change(key, |owner| (owner.epoch, owner.out) = (epoch, owner.out + 1));
            return Some(Handed { position, deliveries });
        }
        while self.next() < end && self.queued.len() < READ_AHEAD {
            let position = self.next();
            let key = key_of(position);
            // what is queued of the key comes first; all that `epoch` may have of it was found above
            let free = self.owner(key).is_none_or(|owner| owner.delayed == 0 && owner.epoch == epoch);
            let state = if free { State::Out(epoch) } else { State::Queued };
            self.slots.push_back(Slot { state, deliveries: u32::from(free), key });
            if let (Some(key), Some(owners)) = (key, &mut self.owners) {
                let owner = owners.entry(key).or_insert(Owner { epoch, ..Owner::default() });
                owner.count += 1;
                owner.out += usize::from(free);
            }
            if free {
                return Some(Handed { position, deliveries: 1 });
            }
            // read, but it is another's turn: it waits in its place for the key's owner
            self.queued.insert(position);
        }
        None
    }

    /// The first of those to be delivered again that `epoch` may have, if there is one.
    pub(crate) fn peek(&self, epoch: Epoch) -> Option<u64> {
        if self.queued.is_empty() { None } else { self.queued_for(epoch) }
    }

    /// Whether `epoch` holds `position` now.
    pub(crate) fn holds(&self, epoch: Epoch, position: u64) -> bool {
        self.slot(position).is_some_and(|slot| slot.state == State::Out(epoch))
    }

    /// It is done with.
    pub(crate) fn ack(&mut self, position: u64) {
        let Some(slot) = self.slot_mut(position) else {
            return;
        };
        slot.state = State::Settled;
        let key = slot.key;
        self.settled += 1;
        self.change(key, |owner| (owner.count, owner.out) = (owner.count - 1, owner.out - 1));
        if let (Some(key), Some(owners)) = (key, &mut self.owners)
            && owners.get(&key).is_some_and(|owner| owner.count == 0)
        {
            owners.remove(&key);
        }
        while self.slots.front().is_some_and(|slot| slot.state == State::Settled) {
            self.slots.pop_front();
            self.floor += 1;
            self.settled -= 1;
        }
    }

    /// It comes again at once, before everything that came after it.
    pub(crate) fn give_back(&mut self, position: u64) {
        if let Some(slot) = self.slot_mut(position) {
            slot.state = State::Queued;
            let key = slot.key;
            self.change(key, |owner| owner.out -= 1);
            self.queued.insert(position);
        }
    }

    /// It comes again when [`wake`](Self::wake) is called; nothing of its key is delivered before.
    pub(crate) fn delay(&mut self, position: u64) {
        let Some(slot) = self.slot_mut(position) else {
            return;
        };
        let key = slot.key;
        self.change(key, |owner| (owner.out, owner.delayed) = (owner.out - 1, owner.delayed + 1));
        if let Some(slot) = self.slot_mut(position) {
            slot.state = State::Delayed;
        }
        self.delayed += 1;
        self.track_owners();
    }

    /// Its time has come.
    pub(crate) fn wake(&mut self, position: u64) {
        let Some(slot) = self.slot_mut(position) else {
            return;
        };
        if slot.state == State::Delayed {
            slot.state = State::Queued;
            let key = slot.key;
            self.delayed -= 1;
            self.change(key, |owner| owner.delayed -= 1);
            self.queued.insert(position);
            self.track_owners();
        }
    }

    fn slot(&self, position: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(position.checked_sub(self.floor)?).ok()?)
    }

    fn slot_mut(&mut self, position: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(position.checked_sub(self.floor)?).ok()?)
    }

    /// The first of those to be delivered again that `epoch` may have.
    fn queued_for(&self, epoch: Epoch) -> Option<u64> {
        self.queued.iter().copied().find(|position| {
            let key = self.slot(*position).and_then(|slot| slot.key);
            self.owner(key).is_none_or(|owner| owner.lets(epoch))
        })
    }

    fn owner(&self, key: Option<u64>) -> Option<&Owner> {
        self.owners.as_ref()?.get(&key?)
    }

    fn change(&mut self, key: Option<u64>, with: impl FnOnce(&mut Owner)) {
        if let (Some(key), Some(owners)) = (key, &mut self.owners)
            && let Some(owner) = owners.get_mut(&key)
        {
            with(owner);
        }
    }

    /// Begins or ends keeping owners, as it is needed.
    fn track_owners(&mut self) {
        let needed = self.members.len() > 1 || self.delayed > 0;
        if !needed {
            self.owners = None;
            return;
        }
        if self.owners.is_some() {
            return;
        }
        let mut owners: HashMap<u64, Owner> = HashMap::new();
        for slot in &self.slots {
            let (Some(key), false) = (slot.key, slot.state == State::Settled) else {
                continue;
            };
            let owner = owners.entry(key).or_default();
            owner.count += 1;
            match slot.state {
                State::Out(epoch) => (owner.epoch, owner.out) = (epoch, owner.out + 1),
                State::Delayed => owner.delayed += 1,
                State::Queued | State::Settled => {}
            }
        }
        self.owners = Some(owners);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEMBERS: usize = 3;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Publish(u64),
        Join(usize),
        Leave(usize),
        Take(usize),
        /// Settle the oldest, or the newest, of a member's.
        Ack(usize, bool),
        GiveBackAll(usize),
        DelayOldest(usize),
        Wake,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let member = 0..MEMBERS;
        let step = prop_oneof![
            4 => (0..4_u64).prop_map(Step::Publish),
            1 => member.clone().prop_map(Step::Join),
            1 => member.clone().prop_map(Step::Leave),
            8 => member.clone().prop_map(Step::Take),
            4 => (member.clone(), any::<bool>()).prop_map(|(m, b)| Step::Ack(m, b)),
            1 => member.clone().prop_map(Step::GiveBackAll),
            1 => member.prop_map(Step::DelayOldest),
            1 => Just(Step::Wake),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
            #[test]
            fn nothing_is_lost_doubled_or_out_of_order_within_a_key(steps in steps()) {
                let mut group = Group::new(0);
                let mut keys: Vec<u64> = Vec::new();
                let mut members: [Option<Epoch>; MEMBERS] = [None; MEMBERS];
                // what each member has out, in the order in which it got it
                let mut out: HashMap<Epoch, Vec<u64>> = HashMap::new();
                let mut settled: BTreeSet<u64> = BTreeSet::new();
                let mut waiting: BTreeSet<u64> = BTreeSet::new();
                let take = |group: &mut Group, epoch, keys: &[u64]| group.take(epoch, keys.len() as u64, |p| Some(keys[p as usize]));
                for step in steps {
                    match step {
                        Step::Publish(key) => keys.push(key),
                        Step::Join(m) => if members[m].is_none() { members[m] = Some(group.join()); },
                        Step::Leave(m) => if let Some(epoch) = members[m].take() { group.leave(epoch); out.remove(&epoch); },
                        Step::Take(m) => if let Some(epoch) = members[m]
                            && let Some(handed) = take(&mut group, epoch, &keys)
                        {
                            let key = keys[handed.position as usize];
                            prop_assert!(!settled.contains(&handed.position), "{} came again after its ack", handed.position);
                            prop_assert!(!waiting.contains(&handed.position), "{} came before its time", handed.position);
                            for (other, theirs) in &out {
                                prop_assert!(!theirs.contains(&handed.position), "{} is out twice", handed.position);
                                if *other != epoch {
                                    prop_assert!(theirs.iter().all(|p| keys[*p as usize] != key), "key {key} is at two members");
                                }
                            }
                            let earlier = (0..handed.position).filter(|p| keys[*p as usize] == key && !settled.contains(p));
                            let mine = out.entry(epoch).or_default();
                            for p in earlier {
                                prop_assert!(mine.contains(&p), "{} overtook {p}", handed.position);
                            }
                            mine.push(handed.position);
                        },
                        Step::Ack(m, oldest) => if let Some(mine) = members[m].and_then(|e| out.get_mut(&e))
                            && !mine.is_empty()
                        {
                            let position = if oldest { mine.remove(0) } else { mine.remove(mine.len() - 1) };
                            group.ack(position);
                            settled.insert(position);
                        },
                        Step::GiveBackAll(m) => if let Some(mine) = members[m].and_then(|e| out.get_mut(&e)) {
                            mine.drain(..).for_each(|p| group.give_back(p));
                        },
                        Step::DelayOldest(m) => if let Some(mine) = members[m].and_then(|e| out.get_mut(&e))
                            && !mine.is_empty()
                        {
                            // the runner gives back a key's whole suffix with its head
                            let head = mine.remove(0);
                            let key = keys[head as usize];
                            let (suffix, rest): (Vec<_>, Vec<_>) = mine.drain(..).partition(|p| keys[*p as usize] == key);
                            *mine = rest;
                            for p in suffix {
     group.give_back(p);
    }
                            group.delay(head);
                            waiting.insert(head);
                        },
                        Step::Wake => std::mem::take(&mut waiting).into_iter().for_each(|p| group.wake(p)),
                    }
                    prop_assert_eq!(group.lag(keys.len() as u64), (keys.len() - settled.len()) as u64);
                }
                // whatever happened, one member that stays gets all that is left
                for p in waiting {
                    group.wake(p);
                }
                for epoch in members.into_iter().flatten() {
                    group.leave(epoch);
                }
                let last = group.join();
                while let Some(handed) = take(&mut group, last, &keys) {
                    prop_assert!(settled.insert(handed.position));
                    group.ack(handed.position);
                }
                prop_assert_eq!(settled.len(), keys.len(), "all are settled in the end");
            }
        }

    #[test]
    fn deliveries_are_counted() {
        let mut group = Group::new(0);
        let member = group.join();
        for n in 1..4 {
            assert_eq!(group.take(member, 1, |_| None), Some(Handed { position: 0, deliveries: n }));
            group.give_back(0);
        }
    }
}
