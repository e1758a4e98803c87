//! The sends that wait for their delivery report: one slot each, found again by the token that the client carries along.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use foldhash::fast::FixedState;
use postrider_core::{Confirmed, Confirms, DrainReport, Error, ErrorKind, PublishError, Receipt};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::partitioner::{Place, Topic};

/// Room in the bounded queue: a message's, and its bytes'.
pub(crate) type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

#[derive(Debug)]
enum Answer {
    Waiting(Option<Waker>),
    /// The confirm was dropped; only a failure is of interest.
    Forgotten,
    Here(Confirmed),
}

/// Where a message was sent.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) topic: Arc<Topic>,
    pub(crate) place: Place,
}

#[derive(Debug)]
struct Slot {
    answer: Answer,
    key: Option<u64>,
    target: Target,
    /// Its share of the bounded queue, given back with the answer.
    room: Option<Room>,
}

#[derive(Debug, Default)]
struct Table {
    slots: HashMap<u64, Slot, FixedState>,
    /// Slots whose answer isn't here, with their deadlines.
    open: BTreeMap<u64, Instant>,
    keys: HashMap<u64, usize, FixedState>,
    /// First messages to a partition: they stay until the client reports them, however long that takes.
    firsts: HashMap<u64, Target, FixedState>,
    next: u64,
    unread_failures: u64,
    last_failure: Option<String>,
    report: DrainReport,
}

/// All sends under way.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    table: Mutex<Table>,
    /// Something was answered.
    answered: Notify,
    /// The producer's number at the brokers, as far as it is known.
    producer: AtomicU64,
}

impl Slots {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for what is about to be handed over.
    pub(crate) fn open(&self, deadline: Instant, key: Option<u64>, room: Room, target: Target) -> u64 {
        let mut table = self.table();
        table.next += 1;
        let token = table.next;
        if target.place.first {
            table.firsts.insert(token, target.clone());
        }
        table.slots.insert(token, Slot { answer: Answer::Waiting(None), key, target, room: Some(room) });
        table.open.insert(token, deadline);
        if let Some(key) = key {
            *table.keys.entry(key).or_default() += 1;
        }
        token
    }

    /// It was never handed over after all: its room goes back.
    pub(crate) fn cancel(&self, token: u64) -> Option<Room> {
        let mut table = self.table();
        table.open.remove(&token);
        let slot = table.slots.remove(&token)?;
        table.release_key(slot.key);
        table.firsts.remove(&token);
        slot.target.topic.answered(slot.target.place, false, Instant::now());
        drop(table);
        self.answered.notify_waiters();
        slot.room
    }

    /// The client reports what became of a send, which may have been given up here already.
    pub(crate) fn delivered(&self, token: u64, outcome: Confirmed) {
        let (mut table, now) = (self.table(), Instant::now());
        if let Err(PublishError::Failed(error)) = &outcome
            && error.kind() == ErrorKind::NotFound
            && let Some(slot) = table.slots.get(&token)
        {
            slot.target.topic.mark_gone();
        }
        if let Some(first) = table.firsts.remove(&token) {
            first.topic.answered(first.place, outcome.is_ok(), now);
        } else if let Some(slot) = table.slots.get(&token) {
            slot.target.topic.answered(slot.target.place, outcome.is_ok(), now);
        }
        drop(table);
        self.resolve(token, outcome);
        self.answered.notify_waiters();
    }

    /// The brokers know the producer by this number; to them, another is another producer.
    pub(crate) fn produced_by(&self, producer: u64) {
        self.producer.store(producer + 1, Relaxed);
    }

    pub(crate) fn producer(&self) -> u64 {
        self.producer.load(Relaxed)
    }

    /// Whether a send of this key has no answer yet.
    pub(crate) fn has_key(&self, key: u64) -> bool {
        self.table().keys.contains_key(&key)
    }

    /// The answer to a send; later ones to the same send change nothing.
    pub(crate) fn resolve(&self, token: u64, outcome: Confirmed) {
        let mut table = self.table();
        if table.open.remove(&token).is_none() {
            return;
        }
        match &outcome {
            Ok(_) => table.report.confirmed += 1,
            Err(PublishError::Failed(_)) => table.report.failed += 1,
            Err(PublishError::Unknown(_)) => table.report.unknown += 1,
        }
        let Some(slot) = table.slots.get_mut(&token) else {
            return;
        };
        let room = slot.room.take();
        let key = slot.key.take();
        let waker = if let Answer::Waiting(waker) = std::mem::replace(&mut slot.answer, Answer::Forgotten) {
            slot.answer = Answer::Here(outcome);
            waker
        } else {
            table.slots.remove(&token);
            if let Err(error) = outcome {
                table.unread_failures += 1;
                table.last_failure = Some(error.to_string());
            }
            None
        };
        table.release_key(key);
        drop(table);
        drop(room);
        waker.into_iter().for_each(Waker::wake);
        self.answered.notify_waiters();
    }

    /// Those without an answer whose deadline has passed.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<u64> {
        let table = self.table();
        table.open.iter().filter(|(_, deadline)| **deadline <= now).map(|(token, _)| *token).collect()
    }

    /// All without an answer.
    pub(crate) fn unanswered(&self) -> Vec<u64> {
        self.table().open.keys().copied().collect()
    }

    /// Resolves when everything sent before the call is answered.
    pub(crate) async fn flushed(&self) -> Result<(), PublishError> {
        let last = self.table().next;
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // before the look, so that an answer in between isn't missed
            answered.as_mut().enable();
            if self.table().open.first_key_value().is_none_or(|(first, _)| *first > last) {
                break;
            }
            answered.await;
        }
        let mut table = self.table();
        let (count, last) = (std::mem::take(&mut table.unread_failures), table.last_failure.take());
        if count == 0 {
            return Ok(());
        }
        let message = format!(
            "{count} sends whose confirm was dropped have failed; the last: {}",
            last.unwrap_or_default()
        );
        Err(PublishError::Failed(Error::new(ErrorKind::Broker, "flush", message)))
    }

    /// Resolves when a condition holds that an answer may bring about.
    pub(crate) async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if condition() {
                return;
            }
            answered.await;
        }
    }

    pub(crate) fn report(&self) -> DrainReport {
        self.table().report
    }
}

impl Table {
    fn release_key(&mut self, key: Option<u64>) {
        if let Some(key) = key
            && let Some(count) = self.keys.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.keys.remove(&key);
            }
        }
    }
}

impl Confirms for Slots {
    fn poll_confirm(&self, token: u64, cx: &mut Context<'_>) -> Poll<Confirmed> {
        let mut table = self.table();
        match table.slots.get_mut(&token).map(|slot| &mut slot.answer) {
            Some(Answer::Waiting(waker)) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Answer::Here(_)) => match table.slots.remove(&token).map(|slot| slot.answer) {
                Some(Answer::Here(outcome)) => Poll::Ready(outcome),
                _ => Poll::Pending,
            },
            _ => Poll::Ready(Ok(Receipt::default())),
        }
    }

    fn forget(&self, token: u64) {
        let mut table = self.table();
        let Some(slot) = table.slots.get_mut(&token) else {
            return;
        };
        if let Answer::Waiting(_) = slot.answer {
            slot.answer = Answer::Forgotten;
        } else if let Some(Slot { answer: Answer::Here(Err(error)), .. }) = table.slots.remove(&token) {
            table.unread_failures += 1;
            table.last_failure = Some(error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postrider_core::Confirm;
    use tokio::sync::Semaphore;

    use super::*;

    fn open(slots: &Slots, room: &Arc<Semaphore>) -> u64 {
        let permit = || Arc::clone(room).try_acquire_owned().unwrap();
        let topic = Arc::new(Topic::new("t", 1, 0, Instant::now()));
        let target = Target { topic, place: Place { partition: 0, first: true } };
        slots.open(Instant::now() + Duration::from_secs(1), Some(1), (permit(), permit()), target)
    }

    fn failed() -> Confirmed {
        Err(PublishError::Failed(Error::new(ErrorKind::Broker, "publish", "no")))
    }

    #[tokio::test]
    async fn an_answer_reaches_its_confirm_and_gives_back_the_room() {
        let (slots, room) = (Arc::new(Slots::default()), Arc::new(Semaphore::new(2)));
        let token = open(&slots, &room);
        assert!(slots.has_key(1) && room.available_permits() == 0);
        let confirm = Confirm::tracked(slots.clone(), token);
        slots.resolve(token, Ok(Receipt::new(0, 7)));
        slots.resolve(token, failed());
        assert_eq!(confirm.await.unwrap().position, 7);
        assert!(!slots.has_key(1) && room.available_permits() == 2);
        assert_eq!(slots.report().confirmed, 1);
    }

    #[tokio::test]
    async fn what_was_never_handed_over_leaves_nothing_behind() {
        let (slots, room) = (Slots::default(), Arc::new(Semaphore::new(2)));
        let token = open(&slots, &room);
        drop(slots.cancel(token));
        assert!(!slots.has_key(1) && room.available_permits() == 2 && slots.unanswered().is_empty());
        assert!(slots.flushed().await.is_ok());
    }

    #[tokio::test]
    async fn a_failure_that_nobody_read_is_told_by_flush_once() {
        let (slots, room) = (Arc::new(Slots::default()), Arc::new(Semaphore::new(4)));
        let (early, late) = (open(&slots, &room), open(&slots, &room));
        drop(Confirm::tracked(slots.clone(), early));
        slots.resolve(early, failed());
        slots.resolve(late, failed());
        drop(Confirm::tracked(slots.clone(), late));
        assert!(slots.flushed().await.unwrap_err().to_string().contains("2 sends"));
        assert!(slots.flushed().await.is_ok());
    }
}
