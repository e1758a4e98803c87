//! What becomes of what was handed out: it is done with, or comes again, at once or at its time.

use std::time::Instant;

use postrider_core::{Settlement, Token};

use super::Shared;
use crate::ahead::Queue;
use crate::partition::{Partition, Phase};

impl<Q: Queue> Shared<Q> {
    /// Answers those that were stale.
    pub(crate) fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Token> {
        let (mut stale, mut wake) = (Vec::new(), false);
        let mut state = self.state();
        let state = &mut *state;
        for (token, settlement) in batch {
            let number = self.number(token.claim);
            let of_this_hold = |p: &&mut Partition<Q>| !state.closed && p.epoch == token.claim.epoch;
            let Some(partition) = state.partitions.get_mut(&number).filter(of_this_hold) else {
                stale.push(*token);
                continue;
            };
            let Some(held) = partition.held.get_mut(token.seq).filter(|held| held.out) else {
                stale.push(*token);
                continue;
            };
            if *settlement == Settlement::Extend {
                continue; // the client's own thread shows that the member lives
            }
            partition.out -= 1;
            wake |= partition.phase == Phase::Revoking && partition.out == 0;
            state.in_flight.settled(held.bytes);
            if let Settlement::GiveBack(after) = settlement {
                held.out = false;
                partition.kept.take(held.bytes);
                let key = held.key;
                match (after, key) {
                    (Some(_), Some(key)) => {
                        *partition.delayed.entry(key).or_default() += 1;
                        partition.waiting.insert(token.seq);
                    }
                    (Some(_), None) => {} // its timer brings it back
                    (None, _) => {
                        partition.waiting.insert(token.seq);
                    }
                }
                if let Some(after) = after {
                    let due = self.env.deadline(*after);
                    wake |= state.timers.first().is_none_or(|(first, ..)| due < *first);
                    state.timers.insert((due, number, partition.epoch, token.seq));
                }
            } else {
                partition.held.remove(token.seq);
                wake |= !partition.is_dirty();
                partition.mark.settle(token.seq);
            }
        }
        if wake {
            self.waker.wake();
        }
        self.arrived.notify_one();
        stale
    }

    /// Brings back what has waited for its time; answers when the next one is due.
    pub(crate) fn wake_due(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        let state = &mut *state;
        let mut woken = false;
        while let Some((due, number, epoch, offset)) = state.timers.first().copied() {
            if due > now {
                break;
            }
            state.timers.pop_first();
            let Some(partition) = state.partitions.get_mut(&number).filter(|p| p.epoch == epoch) else {
                continue;
            };
            if !partition.end_rest(offset)
                && let Some(key) = partition.held.get(offset).map(|held| held.key)
            {
                partition.waiting.insert(offset);
                if let Some(key) = key
                    && let Some(count) = partition.delayed.get_mut(&key)
                {
                    *count -= 1;
                    if *count == 0 {
                        partition.delayed.remove(&key);
                    }
                }
            }
            woken = true;
        }
        if woken {
            self.arrived.notify_one();
        }
        state.timers.first().map(|(due, ..)| *due)
    }
}
