//! The sends that wait for their acknowledgement: one slot each, found again by the token in the reply subject.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use async_nats::HeaderMap;
use bytes::Bytes;
use postrider_core::{Confirmed, Confirms, DrainReport, Error, ErrorKind, PublishError, Receipt};
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// What was sent, kept as long as it may have to be sent again.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

#[derive(Debug)]
enum Answer {
    Waiting(Option<Waker>),
    /// The confirm was dropped; only a failure is of interest.
    Forgotten,
    Here(Confirmed),
}

#[derive(Debug)]
struct Slot {
    answer: Answer,
    sent: Option<Sent>,
    resent: bool,
    deadline: Instant,
    key: Option<u64>,
    /// Its share of the bounded queue, given back with the answer.
    room: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

#[derive(Debug, Default)]
struct Table {
    slots: BTreeMap<u64, Slot>,
    /// Slots whose answer isn't here.
    open: BTreeSet<u64>,
    keys: HashMap<u64, usize>,
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
}

impl Slots {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for what is about to be handed over.
    pub(crate) fn open(
        &self,
        sent: Option<Sent>,
        deadline: Instant,
        key: Option<u64>,
        room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) -> u64 {
        let mut table = self.table();
        table.next += 1;
        let token = table.next;
        let answer = Answer::Waiting(None);
        table.slots.insert(token, Slot { answer, sent, resent: false, deadline, key, room: Some(room) });
        table.open.insert(token);
        if let Some(key) = key {
            *table.keys.entry(key).or_default() += 1;
        }
        token
    }

    /// It was never handed over after all.
    pub(crate) fn cancel(&self, token: u64) {
        let mut table = self.table();
        table.open.remove(&token);
        if let Some(slot) = table.slots.remove(&token) {
            table.release_key(slot.key);
        }
        drop(table);
        self.answered.notify_waiters();
    }

    /// Whether a send of this key has no answer yet.
    pub(crate) fn has_key(&self, key: u64) -> bool {
        self.table().keys.contains_key(&key)
    }

    /// The answer to a send; later ones to the same send change nothing.
    pub(crate) fn resolve(&self, token: u64, mut outcome: Confirmed) {
        let mut table = self.table();
        if !table.open.remove(&token) {
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
        slot.sent = None;
        slot.room = None;
        if let (true, Ok(receipt)) = (slot.resent, &mut outcome) {
            // our own first copy was stored; that is what was asked for
            receipt.duplicate = false;
        }
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
        waker.into_iter().for_each(Waker::wake);
        self.answered.notify_waiters();
    }

    /// Those without an answer, with what was sent, in their order; each counts as sent again.
    pub(crate) fn to_resend(&self) -> Vec<(u64, Sent)> {
        let mut table = self.table();
        let open: Vec<_> = table.open.iter().copied().collect();
        let mut out = Vec::with_capacity(open.len());
        for token in open {
            if let Some(slot) = table.slots.get_mut(&token)
                && let Some(sent) = &slot.sent
            {
                out.push((token, sent.clone()));
                slot.resent = true;
            }
        }
        out
    }

    /// Those without an answer whose deadline has passed.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<u64> {
        let table = self.table();
        let late = |token: &&u64| table.slots.get(token).is_some_and(|slot| slot.deadline <= now);
        table.open.iter().filter(late).copied().collect()
    }

    /// All without an answer.
    pub(crate) fn unanswered(&self) -> Vec<u64> {
        self.table().open.iter().copied().collect()
    }

    /// Resolves when everything sent before the call is answered.
    pub(crate) async fn flushed(&self) -> Result<(), PublishError> {
        let last = self.table().next;
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // before the look, so that an answer in between isn't missed
            answered.as_mut().enable();
            if self.table().open.iter().next().is_none_or(|first| *first > last) {
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

    /// Resolves when something is answered.
    pub(crate) async fn answer(&self) {
        self.answered.notified().await;
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
    use std::sync::Arc;
    use std::time::Duration;

    use postrider_core::Confirm;
    use tokio::sync::Semaphore;

    use super::*;

    fn open(slots: &Slots, room: &Arc<Semaphore>) -> u64 {
        let permit = || Arc::clone(room).try_acquire_owned().unwrap();
        slots.open(None, Instant::now() + Duration::from_secs(1), Some(1), (permit(), permit()))
    }

    fn failed() -> Confirmed {
        Err(PublishError::Failed(Error::new(ErrorKind::Broker, "publish", "no")))
    }

    #[tokio::test]
    async fn an_answer_reaches_its_confirm_and_gives_back_theroom() {
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
