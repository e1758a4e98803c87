//! From the client's queues to whoever receives, as far as the window goes.

use std::collections::BTreeSet;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_core::{Claim, Delivery, Error, InFlight, Order, Signal, Token, Window};

use super::Shared;
use crate::ahead::{Queue, Record};
use crate::partition::{Held, Partition};

/// So many messages received at once are a sign that there is more.
const MUCH: usize = 64;

/// What is out, here and under the subscription's other claims: they share one window.
struct Shares<'a> {
    own: &'a mut InFlight,
    elsewhere: InFlight,
}

/// How much is left at `now_ms` of the wait of a record that was sent at `sent_ms`.
///
/// Both times are cut to the millisecond. So the record counts as sent at the end of its millisecond, and no wait ends early.
fn remaining(wait: Duration, sent_ms: u64, now_ms: u64) -> Duration {
    wait.saturating_sub(Duration::from_millis(now_ms.saturating_sub(sent_ms.saturating_add(1))))
}

impl Shares<'_> {
    fn all(&self) -> InFlight {
        let InFlight { messages, bytes } = *self.own;
        InFlight { messages: messages + self.elsewhere.messages, bytes: bytes + self.elsewhere.bytes }
    }

    fn has_room(&self, window: &Window, bytes: usize) -> bool {
        self.all().has_room(window, bytes)
    }

    /// Whether there is room for another message of unknown size.
    fn has_any_room(&self, window: &Window) -> bool {
        let all = self.all();
        all.has_room(window, 0) && (all.messages == 0 || all.bytes < window.bytes)
    }
}

impl<Q: Queue> Shared<Q> {
    /// The next event, or what the window has room for, of which `elsewhere` is taken up.
    pub(crate) fn receive(
        &self,
        max: usize,
        elsewhere: InFlight,
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
        if state.paused || state.held_back || state.partitions.is_empty() {
            return Ok(None);
        }
        let in_flight = Shares { own: &mut state.in_flight, elsewhere };
        let (before, count) = (into.len(), state.partitions.len());
        let numbers: Vec<i32> = state.partitions.keys().copied().collect();
        let mut kept = InFlight::default();
        for partition in state.partitions.values() {
            kept.messages += partition.kept.messages;
            kept.bytes += partition.kept.bytes;
        }
        let mut next_turn = state.turn + 1;
        let mut low = false;
        for step in 0..count {
            let number = numbers[(state.turn + step) % count];
            let Some(partition) = state.partitions.get_mut(&number) else { continue };
            if !partition.is_open() || state.troubled.contains(&number) {
                continue;
            }
            let ready: Vec<u64> = partition.ready().take(max - (into.len() - before)).collect();
            let mut full = false;
            for offset in ready {
                let Some(held) = partition.held.get(offset) else {
                    partition.waiting.remove(&offset);
                    continue;
                };
                if !in_flight.has_room(&state.window, held.bytes) {
                    // it comes first next time, too: the others would use up its room again and again
                    next_turn = state.turn + step;
                    full = true;
                    break;
                }
                partition.waiting.remove(&offset);
                kept.settled(held.bytes);
                into.extend(partition.hand_out(offset, in_flight.own, &claim));
            }
            while !full && into.len() - before < max && partition.resting.is_none() {
                if !in_flight.has_any_room(&state.window) {
                    full = true;
                    break;
                }
                if kept.messages >= state.window.messages || kept.bytes >= state.window.bytes {
                    break; // nothing more is read, but another partition may have what waits here already
                }
                let Some((offset, held, due)) = self.pop(partition, number, &mut state.troubled) else {
                    break;
                };
                if let Some(due) = due {
                    partition.rest(offset, held);
                    state.timers.insert((due, number, partition.epoch, offset));
                    self.waker.wake();
                    break;
                }
                full = !in_flight.has_room(&state.window, held.bytes);
                if full || partition.is_delayed(held.key) {
                    kept.take(held.bytes);
                    partition.keep(offset, held);
                    partition.waiting.insert(offset);
                    next_turn = if full { state.turn + step } else { next_turn };
                    continue;
                }
                into.push(partition.hand_on(offset, held, in_flight.own, &claim));
            }
            low |= partition.queue.is_low();
            if full || into.len() - before == max {
                break;
            }
        }
        state.turn = next_turn % count;
        if into.len() - before >= MUCH && low {
            self.reader.wake();
        }
        if !state.troubled.is_empty() {
            self.waker.wake();
        }
        Ok((into.len() > before).then_some(Signal::Deliveries))
    }

    /// Takes the next open message out of the client's queue; answers its offset, and its time if that hasn't come.
    fn pop(
        &self,
        partition: &mut Partition<Q>,
        number: i32,
        troubled: &mut BTreeSet<i32>,
    ) -> Option<(u64, Held, Option<Instant>)> {
        loop {
            let Record { offset, sent_ms, envelope } = match partition.next()? {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(target: "postrider::receive", topic = &*self.topic, partition = number, %error, "fetch error");
                    troubled.insert(number);
                    return None;
                }
            };
            let dirty = partition.is_dirty();
            if !partition.mark.take(offset) {
                if !dirty && partition.is_dirty() {
                    self.waker.wake();
                }
                continue;
            }
            let key = match self.order {
                Order::None => None,
                // the partition is what is ordered
                Order::Partition => Some(0),
                Order::Key => envelope.key().map(|key| self.hash.hash_one(key)),
            };
            let bytes = envelope.byte_len();
            return Some((offset, Held { envelope, bytes, key, out: false }, self.due(sent_ms, number)));
        }
    }

    /// When a message that waits for its retry may be handed out; `None`: now.
    fn due(&self, sent_ms: u64, number: i32) -> Option<Instant> {
        // a copy bears the time when it was sent, not that of the message
        let left = remaining(self.source.wait(number)?, sent_ms, self.env.wall_ms());
        (!left.is_zero()).then(|| self.env.now() + left)
    }

    /// Reads ahead on the calling thread until the subscription is closed.
    pub(crate) fn read_ahead(&self) {
        self.reader.here();
        loop {
            let queues: Vec<_> = {
                let state = self.state();
                if state.closed {
                    return;
                }
                state.partitions.values().map(|partition| Arc::clone(&partition.queue)).collect()
            };
            for queue in &queues {
                queue.read(queues.len(), || self.arrived.notify_one());
            }
            drop(queues);
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_counts_from_the_end_of_the_millisecond_in_which_the_record_was_sent() {
        let wait = Duration::from_secs(1);
        let left = |now_ms| remaining(wait, 5_000, now_ms);
        assert_eq!([left(5_000), left(5_001)], [wait; 2]);
        assert_eq!(left(5_002), Duration::from_millis(999));
        // sent at 5,000.9 it has waited for 999.1 ms at 6,000.0
        assert_eq!(left(6_000), Duration::from_millis(1));
        assert_eq!([left(6_001), left(u64::MAX)], [Duration::ZERO; 2]);
        assert_eq!(left(4_000), wait, "the sender's clock is ahead");
        assert_eq!(remaining(wait, u64::MAX, u64::MAX), wait);
    }
}
