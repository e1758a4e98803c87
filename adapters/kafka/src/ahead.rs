//! One partition's records, some of them read ahead.
//!
//! To make an envelope of a record takes longer than all else that is done with it here: the client takes a record's headers apart
//! only when it is asked for them. So while what was received is handled, a thread of its own does that for what comes next, as long
//! as there is much. Where there is little, whoever receives takes it from the client's queue: to wake somebody would be a detour.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use postrider_core::Envelope;
use rdkafka::Message as _;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;

use crate::convert;
use crate::rebalance::Listener;

/// How many records one holds the queue for.
const ROUND: usize = 64;
/// What all partitions of a subscription have read ahead at most, shared among them: records, and bytes.
const RECORDS: usize = 4096;
const BYTES: usize = 4 * 1024 * 1024;

/// A record as it was found.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) offset: u64,
    /// When it was sent, by its timestamp.
    pub(crate) sent_ms: u64,
    pub(crate) envelope: Envelope,
}

pub(crate) type Found = Result<Record, KafkaError>;

/// Where records come from.
pub(crate) trait Queue {
    /// The next one that is there.
    fn next(&mut self) -> Option<Found>;
}

/// A partition's queue at the client.
pub(crate) struct Records {
    queue: PartitionQueue<Listener>,
    topic: Arc<str>,
}

impl Records {
    pub(crate) fn new(queue: PartitionQueue<Listener>, topic: Arc<str>) -> Self {
        Self { queue, topic }
    }
}

impl Queue for Records {
    fn next(&mut self) -> Option<Found> {
        let found = self.queue.poll(Duration::ZERO)?;
        Some(found.map(|record| Record {
            offset: record.offset().max(0) as u64,
            sent_ms: record.timestamp().to_millis().unwrap_or(0).max(0) as u64,
            envelope: convert::envelope(&record, &self.topic),
        }))
    }
}

/// A queue, and what was read of it.
pub(crate) struct Ahead<Q> {
    /// Whoever has it may append to the stock.
    source: Mutex<Source<Q>>,
    stock: Mutex<Stock>,
    /// There was less than half of the share when it was last read, or what there was is taken: else to wake the reader would cost
    /// more than it gives.
    low: AtomicBool,
}

struct Source<Q> {
    /// `None` when it isn't this hold's any more.
    queue: Option<Q>,
    /// Nothing is taken out of it: its place is being changed.
    moving: bool,
}

impl<Q: Queue> Source<Q> {
    fn next(&mut self) -> Option<Found> {
        if self.moving { None } else { self.queue.as_mut()?.next() }
    }
}

#[derive(Default)]
struct Stock {
    found: VecDeque<Found>,
    bytes: usize,
}

impl Stock {
    fn take(&mut self, lot: &mut VecDeque<Found>) -> Option<Found> {
        if lot.is_empty() {
            std::mem::swap(lot, &mut self.found);
            self.bytes = 0;
        }
        lot.pop_front()
    }
}

impl<Q: Queue> Ahead<Q> {
    pub(crate) fn new(queue: Q) -> Self {
        Self {
            source: Mutex::new(Source { queue: Some(queue), moving: false }),
            stock: Mutex::default(),
            low: AtomicBool::new(true),
        }
    }

    fn source(&self) -> MutexGuard<'_, Source<Q>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next record, from `lot` as long as there is something in it. `None`: nothing is there, or the reader is about it and
    /// will tell.
    pub(crate) fn next(&self, lot: &mut VecDeque<Found>) -> Option<Found> {
        if let Some(found) = lot.pop_front() {
            return Some(found);
        }
        // had before the look at the stock, so that nothing can come into it between that look and the queue
        let source = match self.source.try_lock() {
            Ok(source) => Some(source),
            Err(TryLockError::Poisoned(source)) => Some(source.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(found) = self.stock().take(lot) {
            self.low.store(true, Relaxed);
            return Some(found);
        }
        source?.next()
    }

    /// Whether all that was taken out of the queue so far has been received. `false` also while somebody takes something out.
    pub(crate) fn is_drained(&self, lot: &VecDeque<Found>) -> bool {
        // held during the look: what is being taken out is in nobody's stock
        let reading = self.source.try_lock();
        !matches!(reading, Err(TryLockError::WouldBlock)) && lot.is_empty() && self.stock().found.is_empty()
    }

    /// Whether it is worth while to read ahead.
    pub(crate) fn is_low(&self) -> bool {
        self.low.load(Relaxed)
    }

    /// Reads ahead until the queue is empty or the share of one of `partitions` is used up; `told` is called for each round.
    pub(crate) fn read(&self, partitions: usize, told: impl Fn()) {
        let partitions = partitions.max(1);
        let (records, bytes) = ((RECORDS / partitions).max(ROUND), (BYTES / partitions).max(64 * 1024));
        let mut round = Vec::with_capacity(ROUND);
        loop {
            let mut source = self.source();
            let (mut left, mut room) = {
                let stock = self.stock();
                (records.saturating_sub(stock.found.len()).min(ROUND), bytes.saturating_sub(stock.bytes))
            };
            let before = room;
            while left > 0
                && room > 0
                && let Some(found) = source.next()
            {
                left -= 1;
                room = room.saturating_sub(found.as_ref().map_or(0, |record| record.envelope.byte_len()));
                round.push(found);
            }
            if round.is_empty() {
                return;
            }
            let mut stock = self.stock();
            stock.found.extend(round.drain(..));
            stock.bytes += before - room;
            self.low.store(stock.found.len() < records / 2 && stock.bytes < bytes / 2, Relaxed);
            drop((stock, source));
            told();
        }
    }

    /// From now until [`go_on`](Self::go_on) nothing is taken out of the queue.
    pub(crate) fn hold(&self) {
        self.source().moving = true;
    }

    /// Gives the queue back to the client, at once: its next holder asks to be told of what comes, and an earlier one that went
    /// later would take that back.
    pub(crate) fn end(&self) {
        self.source().queue = None;
    }

    /// The queue is read again: from another place, if it has `moved`, and what was read before is forgotten.
    pub(crate) fn go_on(&self, moved: bool) {
        let mut source = self.source();
        source.moving = false;
        if moved {
            *self.stock() = Stock::default();
            self.low.store(true, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    use std::thread;

    use bytes::Bytes;
    use postrider_core::Env;

    use super::*;

    /// Numbers from a place on, up to an end.
    struct Numbers {
        next: Arc<AtomicU64>,
        end: u64,
        size: usize,
    }

    impl Queue for Numbers {
        fn next(&mut self) -> Option<Found> {
            let offset = self.next.fetch_add(1, Relaxed);
            let envelope = Envelope::builder(Bytes::from(vec![0; self.size])).build(&Env::seeded(1)).unwrap();
            (offset < self.end).then_some(Ok(Record { offset, sent_ms: 0, envelope }))
        }
    }

    fn numbers(end: u64, size: usize) -> (Ahead<Numbers>, Arc<AtomicU64>) {
        let next = Arc::default();
        (Ahead::new(Numbers { next: Arc::clone(&next), end, size }), next)
    }

    fn all(ahead: &Ahead<Numbers>, lot: &mut VecDeque<Found>) -> Vec<u64> {
        std::iter::from_fn(|| ahead.next(lot)).map(|found| found.unwrap().offset).collect()
    }

    #[test]
    fn whoever_reads_the_order_is_that_of_the_queue() {
        const END: u64 = 20_000;
        let (ahead, _) = numbers(END, 0);
        let over = AtomicBool::new(false);
        let mut found = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    ahead.read(1, || {});
                }
            });
            let mut lot = VecDeque::new();
            while found.len() < END as usize {
                match ahead.next(&mut lot) {
                    Some(next) => found.push(next.unwrap().offset),
                    None => thread::yield_now(),
                }
            }
            over.store(true, Relaxed);
        });
        assert!(found.into_iter().eq(0..END));
    }

    #[test]
    fn no_more_is_read_ahead_than_a_partitions_share() {
        let (ahead, next) = numbers(u64::MAX, 0);
        assert!(ahead.is_low());
        ahead.read(1, || {});
        ahead.read(1, || {});
        assert_eq!(next.load(Relaxed), RECORDS as u64);
        assert!(!ahead.is_low());
        let (ahead, next) = numbers(u64::MAX, 0);
        ahead.read(1000, || {});
        assert_eq!(next.load(Relaxed), ROUND as u64);
        let (ahead, next) = numbers(u64::MAX, BYTES / 4);
        ahead.read(1, || {});
        assert_eq!(next.load(Relaxed), 4);
        let mut lot = VecDeque::new();
        assert_eq!(ahead.next(&mut lot).unwrap().unwrap().offset, 0);
        // the whole lot was taken, so there is room for as much again
        assert!(ahead.is_low());
        ahead.read(1, || {});
        assert_eq!(next.load(Relaxed), 8);
    }

    #[test]
    fn what_was_read_before_a_move_is_forgotten_and_nothing_is_read_during_it() {
        let (ahead, next) = numbers(u64::MAX, 0);
        let mut lot = VecDeque::new();
        ahead.read(RECORDS / ROUND, || {});
        ahead.hold();
        ahead.read(1, || {});
        assert_eq!(next.load(Relaxed), ROUND as u64);
        next.store(7, Relaxed);
        ahead.go_on(true);
        assert!(ahead.is_low());
        assert_eq!(ahead.next(&mut lot).unwrap().unwrap().offset, 7);
        ahead.hold();
        assert!(ahead.next(&mut lot).is_none());
        ahead.go_on(false);
        assert_eq!(ahead.next(&mut lot).unwrap().unwrap().offset, 8);
    }

    #[test]
    fn what_was_taken_out_and_not_received_is_not_drained() {
        let (ahead, _) = numbers(2, 0);
        let mut lot = VecDeque::new();
        assert!(ahead.is_drained(&lot));
        ahead.read(1, || {});
        assert!(!ahead.is_drained(&lot), "in the stock");
        assert!(ahead.next(&mut lot).is_some());
        assert!(!ahead.is_drained(&lot), "in the lot");
        assert!(ahead.next(&mut lot).is_some());
        assert!(ahead.is_drained(&lot));
        let reading = ahead.source();
        assert!(!ahead.is_drained(&lot), "somebody may have taken something out");
        drop(reading);
    }

    #[test]
    fn after_the_end_there_is_nothing_but_what_was_read() {
        let (ahead, next) = numbers(u64::MAX, 0);
        ahead.read(RECORDS / ROUND, || {});
        ahead.end();
        assert_eq!(Arc::strong_count(&next), 1);
        assert_eq!(all(&ahead, &mut VecDeque::new()).len(), ROUND);
    }

    #[test]
    fn what_was_read_stays_where_the_place_did_not_change() {
        let (ahead, _) = numbers(100, 0);
        ahead.read(RECORDS / ROUND, || {});
        ahead.hold();
        ahead.go_on(false);
        assert!(all(&ahead, &mut VecDeque::new()).into_iter().eq(0..100));
    }
}
