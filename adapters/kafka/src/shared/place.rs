//! How far partitions are settled, and what of it is written down.

use std::collections::HashMap;

use postrider_core::{ClaimId, Origin, Token};

use super::Shared;
use crate::ahead::Queue;
use crate::partition::Partition;
use crate::positions::Edges;

/// A place to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) partition: i32,
    pub(crate) epoch: u32,
    pub(crate) version: u64,
    pub(crate) position: u64,
    pub(crate) metadata: String,
}

impl<Q: Queue> Shared<Q> {
    /// All that isn't written down yet.
    pub(crate) fn to_commit(&self) -> Vec<Commit> {
        let mut state = self.state();
        state.flush = false;
        let initial_partitions = state.initial_partitions;
        let dirty = state.partitions.iter_mut().filter(|(_, partition)| partition.is_dirty());
        let commit = |(number, partition): (&i32, &mut Partition<Q>)| Commit {
            partition: *number,
            epoch: partition.epoch,
            version: partition.mark.version(),
            position: partition.mark.position(),
            metadata: partition.metadata(initial_partitions),
        };
        dirty.map(commit).collect()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.state().partitions.values().any(Partition::is_dirty)
    }

    pub(crate) fn is_flush_wanted(&self) -> bool {
        self.state().flush
    }

    /// These are written down.
    pub(crate) fn committed(&self, commits: &[Commit]) {
        let (mut state, mut opened) = (self.state(), false);
        for commit in commits {
            if let Some(partition) = state.partitions.get_mut(&commit.partition)
                && partition.epoch == commit.epoch
            {
                opened |= partition.written.replace(commit.version).is_none();
            }
        }
        drop(state);
        self.written.notify_waiters();
        if opened {
            self.arrived.notify_one();
        }
    }

    /// How often a message was begun alone and not ended.
    pub(crate) fn strikes(&self, origin: Origin) -> u32 {
        let number = self.number(ClaimId { shard: origin.shard, epoch: 0 });
        self.state().partitions.get(&number).map_or(0, |partition| partition.strikes(origin.position))
    }

    /// To be written down with the next commit; `false`: its partition isn't held here.
    pub(crate) fn set_strikes(&self, origin: Origin, strikes: u32) -> bool {
        let number = self.number(ClaimId { shard: origin.shard, epoch: 0 });
        let mut state = self.state();
        let found = state.partitions.get_mut(&number).map(|p| p.set_strikes(origin.position, strikes));
        found.is_some()
    }

    /// Resolves when all that is settled now is written down; answers those that can't be any more.
    pub(crate) async fn flush(&self) -> Vec<Token> {
        let targets: Vec<_> = {
            let mut state = self.state();
            state.flush = true;
            let dirty = state.partitions.iter().filter(|(_, partition)| partition.is_dirty());
            dirty.map(|(number, p)| (*number, p.epoch, p.mark.version(), p.mark.position())).collect()
        };
        self.waker.wake();
        loop {
            let written = self.written.notified();
            tokio::pin!(written);
            // before the look, so that nothing in between is missed
            written.as_mut().enable();
            {
                let state = self.state();
                let (mut open, mut gone) = (false, Vec::new());
                for (number, epoch, version, position) in &targets {
                    match state.partitions.get(number).filter(|partition| partition.epoch == *epoch) {
                        Some(partition) => open |= partition.written < Some(*version),
                        None => gone.push(Token { claim: self.claim(*number, *epoch), seq: *position }),
                    }
                }
                if !open {
                    return gone;
                }
            }
            written.await;
        }
    }

    /// Of each partition held here: what comes next from the log.
    pub(crate) fn nexts(&self) -> Vec<(i32, u64)> {
        self.state().partitions.iter().map(|(number, partition)| (*number, partition.mark.next())).collect()
    }

    /// The partitions of which all that was taken out of the client's queues so far has been received, each with its epoch.
    pub(crate) fn drained(&self) -> HashMap<i32, u32> {
        let state = self.state();
        let drained = state
            .partitions
            .iter()
            .filter(|(number, partition)| partition.is_drained() && !state.troubled.contains(number));
        drained.map(|(number, partition)| (*number, partition.epoch)).collect()
    }

    /// Up to these positions the client has taken everything out of its queues. What was not received of that is no message: the mark of a
    /// transaction, what a transaction undid, what compaction removed. `drained` was answered before the client was asked.
    ///
    /// For the member's thread alone: nobody else moves a partition, or finds that a message came past its queue.
    pub(crate) fn pass_to(
        &self,
        drained: &HashMap<i32, u32>,
        positions: impl IntoIterator<Item = (i32, u64)>,
    ) {
        let mut state = self.state();
        let state = &mut *state;
        let mut passed = false;
        for (number, position) in positions {
            if let Some(partition) = state.partitions.get_mut(&number)
                && drained.get(&number) == Some(&partition.epoch)
                && position > partition.mark.next()
                // once more, now that the position is known: what was taken out before it was asked for may wait to be received
                && partition.is_drained()
                && !state.troubled.contains(&number)
            {
                partition.mark.pass_to(position);
                passed = true;
            }
        }
        if passed {
            self.waker.wake();
        }
    }

    /// Of each partition held here: how many of its messages are unsettled, where its log has these edges.
    pub(crate) fn lags(&self, edges: &HashMap<i32, Edges>) -> HashMap<i32, u64> {
        let lag = |(number, partition): (&i32, &Partition<Q>)| {
            let Edges { low, high } = edges.get(number)?;
            Some((*number, partition.mark.lag(*low, *high)))
        };
        self.state().partitions.iter().filter_map(lag).collect()
    }
}
