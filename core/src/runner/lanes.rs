//! Lanes: one message of a key at a time, in order of arrival, and no lane in another's way. A state machine without I/O.

use std::collections::{HashMap, VecDeque};

/// Which lane a message belongs to. Keys are told apart by a 64-bit hash: two that collide share a lane, which keeps the order
/// and costs a little concurrency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneId(pub(crate) u64);

/// What waits behind what runs. Only busy lanes take memory: with handlers that finish at once, none does.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    /// Its hasher has no secret of its own: the ids are hashes under one. So a run with the same ids goes through them in the same order.
    busy: HashMap<LaneId, Lane<T>, foldhash::fast::FixedState>,
    waiting: usize,
}

#[derive(Debug)]
struct Lane<T> {
    /// Messages of this lane that are under way: one, or several consecutive ones in one batch.
    holders: usize,
    queue: VecDeque<T>,
}

impl<T> Lanes<T> {
    pub(crate) fn new() -> Self {
        Self { busy: HashMap::default(), waiting: 0 }
    }

    /// Queues `item` behind what runs in its lane, which must be [busy](Self::is_busy).
    pub(crate) fn queue(&mut self, lane: LaneId, item: T) {
        let lane = self.busy.get_mut(&lane);
        debug_assert!(lane.is_some(), "in a free lane nothing would let it go");
        if let Some(lane) = lane {
            lane.queue.push_back(item);
            self.waiting += 1;
        }
    }

    /// Whether a message of the lane is under way. In a free lane one may start, and [`occupy`](Self::occupy) follows unless it
    /// finished at once.
    pub(crate) fn is_busy(&self, lane: LaneId) -> bool {
        !self.busy.is_empty() && self.busy.contains_key(&lane)
    }

    /// A message of the lane is under way.
    pub(crate) fn occupy(&mut self, lane: LaneId) {
        self.busy.entry(lane).or_insert_with(|| Lane { holders: 0, queue: VecDeque::new() }).holders += 1;
    }

    /// A message of the lane has ended. Answers the next one, now under way, if it was the last holder and one waits.
    pub(crate) fn finished(&mut self, id: LaneId) -> Option<T> {
        let lane = self.busy.get_mut(&id)?;
        lane.holders = lane.holders.saturating_sub(1);
        if lane.holders > 0 {
            return None;
        }
        let next = lane.queue.pop_front();
        match next {
            Some(_) => (lane.holders, self.waiting) = (1, self.waiting - 1),
            None => drop(self.busy.remove(&id)),
        }
        next
    }

    /// Takes up to `most` of those that wait in a busy lane, to go with what is under way: consecutive messages of a batch.
    pub(crate) fn take_next(&mut self, lane: LaneId, most: usize) -> Vec<T> {
        let Some(lane) = self.busy.get_mut(&lane) else {
            return Vec::new();
        };
        let taken: Vec<_> = lane.queue.drain(..most.min(lane.queue.len())).collect();
        lane.holders += taken.len();
        self.waiting -= taken.len();
        taken
    }

    /// Puts messages that were under way back to the head of their lane, in their order: they wait for one that still is.
    pub(crate) fn put_back(&mut self, lane: LaneId, items: impl DoubleEndedIterator<Item = T>) {
        let Some(lane) = self.busy.get_mut(&lane) else {
            return;
        };
        for item in items.rev() {
            lane.queue.push_front(item);
            lane.holders = lane.holders.saturating_sub(1);
            self.waiting += 1;
        }
    }

    /// Takes out all waiting items for which `which` holds, in the order of their lanes.
    pub(crate) fn take_waiting(&mut self, mut which: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for Lane { queue, .. } in self.busy.values_mut() {
            if queue.iter().any(&mut which) {
                let (out, stay): (Vec<_>, Vec<_>) = queue.drain(..).partition(|item| which(item));
                queue.extend(stay);
                taken.extend(out);
            }
        }
        self.waiting -= taken.len();
        taken
    }

    /// How many wait in all lanes.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The longest queue behind a running message, with one of its items, if at least so many wait in it.
    ///
    /// It is asked for in every round, so the lanes are gone through only where that many wait in all.
    pub(crate) fn longest(&self, least: usize) -> Option<(usize, &T)> {
        if self.waiting < least {
            return None;
        }
        let longest = self.busy.values().map(|lane| &lane.queue).max_by_key(|queue| queue.len())?;
        (longest.len() >= least).then_some((longest.len(), longest.front()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One step in a lane.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A message arrives.
        Arrive,
        /// One that is under way ends.
        Finish,
        /// A batch takes up to this many that wait.
        TakeNext(usize),
        /// All but the first of those under way are to be tried again.
        PutBack,
        /// All that wait are taken away.
        TakeWaiting,
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let step = prop_oneof![
            4 => Just(Step::Arrive),
            3 => Just(Step::Finish),
            1 => (0..4_usize).prop_map(Step::TakeNext),
            1 => Just(Step::PutBack),
            1 => Just(Step::TakeWaiting),
        ];
        prop::collection::vec((0..4_u64, step), 0..200)
    }

    /// A lane as one would draw it: those under way, and those that wait.
    #[derive(Default)]
    struct Model {
        running: VecDeque<(u64, u32)>,
        waiting: VecDeque<(u64, u32)>,
    }

    proptest! {
        #[test]
        fn each_lane_is_a_queue_behind_what_runs(steps in steps()) {
            let mut lanes = Lanes::new();
            let mut models: HashMap<u64, Model> = HashMap::new();
            for (n, (lane, step)) in (0_u32..).zip(steps) {
                let (id, model) = (LaneId(lane), models.entry(lane).or_default());
                match step {
                    Step::Arrive => {
                        let busy = lanes.is_busy(id);
                        prop_assert_eq!(busy, !model.running.is_empty(), "an idle lane starts at once, a busy one never");
                        if busy {
                            lanes.queue(id, (lane, n));
                            model.waiting.push_back((lane, n));
                        } else {
                            lanes.occupy(id);
                            model.running.push_back((lane, n));
                        }
                    }
                    Step::Finish => if model.running.pop_front().is_some() {
                        let next = if model.running.is_empty() { model.waiting.pop_front() } else { None };
                        model.running.extend(next);
                        prop_assert_eq!(lanes.finished(id), next);
                    },
                    Step::TakeNext(most) => if !model.running.is_empty() {
                        let expected: Vec<_> = model.waiting.drain(..most.min(model.waiting.len())).collect();
                        prop_assert_eq!(lanes.take_next(id, most), &*expected);
                        model.running.extend(expected);
                    },
                    Step::PutBack => if model.running.len() > 1 {
                        let back: Vec<_> = model.running.drain(1..).collect();
                        lanes.put_back(id, back.iter().copied());
                        back.into_iter().rev().for_each(|item| model.waiting.push_front(item));
                    },
                    Step::TakeWaiting => {
                        let expected: Vec<_> = model.waiting.drain(..).collect();
                        prop_assert_eq!(lanes.take_waiting(|item| item.0 == lane), expected);
                    }
                }
                prop_assert_eq!(lanes.waiting(), models.values().map(|m| m.waiting.len()).sum::<usize>());
                let longest = models.values().map(|m| m.waiting.len()).max().unwrap_or(0);
                prop_assert_eq!(lanes.longest(1).map_or(0, |(n, _)| n), longest);
                prop_assert_eq!(lanes.longest(longest + 1), None);
            }
        }
    }
}
