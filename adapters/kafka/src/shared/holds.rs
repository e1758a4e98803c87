//! Partitions come, go, and get other places.

use postrider_core::{ClaimId, Gap, Signal};

use super::Shared;
use crate::ahead::Queue;
use crate::mark::Starts;
use crate::partition::{Partition, Phase};
use crate::watermark::Watermark;

impl<Q: Queue> Shared<Q> {
    /// A partition that is held already comes anew: its queue goes back first.
    pub(crate) fn give_back(&self, number: i32) {
        if let Some(partition) = self.state().partitions.get(&number) {
            partition.queue.end();
        }
    }

    /// The member holds a partition from now on.
    pub(crate) fn assign(&self, number: i32, queue: Q, mark: Watermark, starts: Option<Starts>) -> ClaimId {
        let mut state = self.state();
        let epoch = state.epochs.entry(number).or_default();
        *epoch += 1;
        let claim = self.claim(number, *epoch);
        state.troubled.remove(&number);
        let span = state.window.messages as u64;
        let before = state.partitions.insert(number, Partition::new(claim, queue, mark, starts, span));
        if let Some(before) = before {
            before.make_room(&mut state.in_flight);
        }
        claim
    }

    /// Nothing more is handed out of these; answers the claims on them.
    pub(crate) fn begin_revoke(&self, numbers: &[i32]) -> Vec<ClaimId> {
        let mut state = self.state();
        let mut claims = Vec::new();
        for number in numbers {
            if let Some(partition) = state.partitions.get_mut(number) {
                partition.phase = Phase::Revoking;
                partition.end();
                claims.push(partition.claim());
            }
        }
        claims
    }

    /// Whether nothing runs under any of these.
    pub(crate) fn is_drained(&self, numbers: &[i32]) -> bool {
        let state = self.state();
        numbers
            .iter()
            .filter_map(|number| state.partitions.get(number))
            .all(|partition| partition.released || partition.out == 0)
    }

    /// The runner is through with these.
    pub(crate) fn release(&self, claims: &[ClaimId]) {
        let mut state = self.state();
        for claim in claims {
            if let Some(partition) = state.partitions.get_mut(&self.number(*claim))
                && partition.epoch == claim.epoch
                && partition.phase == Phase::Revoking
            {
                partition.released = true;
            }
        }
        drop(state);
        self.waker.wake();
    }

    /// The member doesn't hold these any more. Answers the claims under which something was still out.
    pub(crate) fn remove(&self, numbers: &[i32]) -> Vec<ClaimId> {
        let mut state = self.state();
        let state = &mut *state;
        let mut cut = Vec::new();
        for number in numbers {
            state.troubled.remove(number);
            let Some(partition) = state.partitions.remove(number) else { continue };
            partition.queue.end();
            partition.make_room(&mut state.in_flight);
            if partition.out > 0 {
                cut.push(partition.claim());
            }
            // a later hold has a later epoch, also where its place was changed meanwhile
            state.epochs.insert(*number, partition.epoch);
        }
        self.written.notify_waiters();
        self.arrived.notify_one();
        cut
    }

    /// Nothing is handed out of these until they have their new places.
    pub(crate) fn begin_move(&self, numbers: &[i32]) {
        let mut state = self.state();
        for number in numbers {
            if let Some(partition) = state.partitions.get_mut(number) {
                partition.phase = Phase::Moving;
                partition.queue.hold();
            }
        }
    }

    /// A partition has another place: what was handed out before can't be settled any more.
    pub(crate) fn moved(&self, number: i32, position: u64) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(partition) = state.partitions.get_mut(&number) else { return };
        partition.make_room(&mut state.in_flight);
        state.troubled.remove(&number);
        let lost = partition.claim();
        partition.restart(Watermark::new(position, []));
        state.epochs.insert(number, partition.epoch);
        state.events.push_back(Signal::Lost(vec![lost]));
        state.events.push_back(Signal::Assigned(vec![partition.claim()]));
        self.arrived.notify_one();
    }

    /// The place wasn't changed after all.
    pub(crate) fn end_move(&self, numbers: &[i32]) {
        let mut state = self.state();
        for number in numbers {
            if let Some(partition) = state.partitions.get_mut(number) {
                partition.queue.go_on(false);
                if partition.phase == Phase::Moving {
                    partition.phase = Phase::Active;
                }
            }
        }
        self.arrived.notify_one();
    }

    /// Partitions whose place has to be found anew, each with what would have come next.
    pub(crate) fn troubled(&self) -> Vec<(i32, u64)> {
        let state = self.state();
        let next = |number: &i32| Some((*number, state.partitions.get(number)?.mark.next()));
        state.troubled.iter().filter_map(next).collect()
    }

    /// The partition is read from `position` on: what comes next, or where the log begins now, and then the gap is told before
    /// anything from behind it. What was read ahead is forgotten; what is held stays held, and its claim holds.
    pub(crate) fn mended(&self, number: i32, position: u64) {
        let mut state = self.state();
        let state = &mut *state;
        state.troubled.remove(&number);
        if let Some(partition) = state.partitions.get_mut(&number) {
            partition.forget_read();
            let next = partition.mark.next();
            if next < position {
                let gap = Gap::new(partition.claim().shard, next, position);
                state.events.push_back(Signal::Gap(gap));
            }
            partition.mark.pass_to(position);
            if partition.phase == Phase::Moving {
                partition.phase = Phase::Active;
            }
        }
        self.arrived.notify_one();
    }

    /// From now on nothing is handed out of this partition, until its place is found anew.
    pub(crate) fn trouble(&self, number: i32) {
        self.state().troubled.insert(number);
    }
}
