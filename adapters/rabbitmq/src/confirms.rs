//! The sends that have no outcome yet: one slot each, first in the queue, then in the hands of the driver.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use postrider_core::{Confirmed, Confirms, DrainReport, Envelope, Error, ErrorKind, PublishError, Receipt};
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// A share of the bounded queue, given back when the client has nothing of the message any more.
pub(crate) type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What stands at the head of the queue.
pub(crate) enum Next {
    Nothing,
    /// Nobody has looked yet whether its exchange is there.
    Unchecked(u64, Arc<Sent>),
    Message(u64, Arc<Sent>, Option<Room>),
}

/// What is sent.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) exchange: String,
    pub(crate) routing_key: Cow<'static, str>,
    pub(crate) envelope: Envelope,
    /// A dead letter, a retry's or a redrive's: whoever makes one knows whether it is still wanted once the connection is back.
    pub(crate) is_copy: bool,
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
    sent: Option<Arc<Sent>>,
    deadline: Instant,
    key: Option<u64>,
    /// In the queue only; the driver has it afterwards.
    room: Option<Room>,
}

#[derive(Debug, Default)]
struct Table {
    slots: BTreeMap<u64, Slot>,
    /// Slots whose answer isn't here.
    open: BTreeSet<u64>,
    /// Those of them that were never handed over, or are to be sent again.
    queue: BTreeSet<u64>,
    /// Those that may be stored: they were handed over at least once.
    handed: HashSet<u64>,
    /// Keys that have an unresolved send of one-a-key order.
    keys: HashSet<u64>,
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
    /// Something came into the queue.
    pub(crate) queued: Notify,
    /// Exchanges whose last message no queue took.
    unread: Mutex<BTreeSet<String>>,
}

impl Slots {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message into the queue; gives the room back if its key must wait for an earlier one.
    #[expect(clippy::result_large_err, reason = "the message is given back, not an error made")]
    pub(crate) fn open(
        &self,
        sent: Sent,
        deadline: Instant,
        key: Option<u64>,
        room: Room,
    ) -> Result<u64, (Sent, Room)> {
        let mut table = self.table();
        if let Some(key) = key
            && !table.keys.insert(key)
        {
            return Err((sent, room));
        }
        table.next += 1;
        let token = table.next;
        let slot = Slot {
            answer: Answer::Waiting(None),
            sent: Some(Arc::new(sent)),
            deadline,
            key,
            room: Some(room),
        };
        table.slots.insert(token, slot);
        table.open.insert(token);
        table.queue.insert(token);
        drop(table);
        self.queued.notify_one();
        Ok(token)
    }

    /// Takes the next message out of the queue, if its exchange is `known` to be there; from now on it may be stored.
    pub(crate) fn hand(&self, known: &HashSet<String>) -> Next {
        let mut table = self.table();
        let Some(token) = table.queue.first().copied() else {
            return Next::Nothing;
        };
        let slot = table.slots.get_mut(&token);
        let Some((sent, slot)) = slot.and_then(|slot| Some((slot.sent.clone()?, slot))) else {
            return Next::Nothing;
        };
        if !known.contains(&sent.exchange) {
            return Next::Unchecked(token, sent);
        }
        let room = slot.room.take();
        table.queue.remove(&token);
        table.handed.insert(token);
        Next::Message(token, sent, room)
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.table().queue.is_empty()
    }

    /// It is to be handed over again, in its old place.
    pub(crate) fn requeue(&self, token: u64, room: Option<Room>) {
        let mut table = self.table();
        if table.open.contains(&token)
            && let Some(slot) = table.slots.get_mut(&token)
        {
            slot.room = room;
            table.queue.insert(token);
            drop(table);
            self.queued.notify_one();
        }
    }

    /// The answer to a send; later ones to the same send change nothing.
    pub(crate) fn resolve(&self, token: u64, outcome: Confirmed) {
        let mut table = self.table();
        if !table.open.remove(&token) {
            return;
        }
        table.queue.remove(&token);
        table.handed.remove(&token);
        match &outcome {
            Ok(_) => table.report.confirmed += 1,
            Err(PublishError::Failed(_)) => table.report.failed += 1,
            Err(PublishError::Unknown(_)) => table.report.unknown += 1,
        }
        let Some(slot) = table.slots.get_mut(&token) else {
            return;
        };
        (slot.sent, slot.room) = (None, None);
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
        if let Some(key) = key {
            table.keys.remove(&key);
        }
        drop(table);
        waker.into_iter().for_each(Waker::wake);
        self.answered.notify_waiters();
    }

    /// Ends a send without an answer: failed, or unknown if it was ever handed over.
    pub(crate) fn fail(&self, token: u64, error: Error) {
        let handed = self.table().handed.contains(&token);
        self.resolve(
            token,
            Err(if handed { PublishError::Unknown(error) } else { PublishError::Failed(error) }),
        );
    }

    /// Whether a queue took a message of the exchange.
    pub(crate) fn taken(&self, exchange: &str, by_a_queue: bool) {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        if !by_a_queue {
            unread.insert(exchange.into());
        } else if !unread.is_empty() {
            unread.remove(exchange);
        }
    }

    /// The exchanges whose last message no queue took.
    pub(crate) fn unread(&self) -> Vec<String> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Whether a send may be stored already.
    pub(crate) fn is_handed(&self, token: u64) -> bool {
        self.table().handed.contains(&token)
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
            if self.table().open.first().is_none_or(|first| *first > last) {
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

    /// As [`open`](Self::open), and waits for the key's turn.
    pub(crate) async fn open_in_turn(
        &self,
        mut sent: Sent,
        deadline: Instant,
        key: Option<u64>,
        mut room: Room,
    ) -> u64 {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            match self.open(sent, deadline, key, room) {
                Ok(token) => return token,
                Err(back) => (sent, room) = back,
            }
            answered.await;
        }
    }

    pub(crate) fn report(&self) -> DrainReport {
        self.table().report
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

    use bytes::Bytes;
    use postrider_core::{Confirm, Env};
    use tokio::sync::Semaphore;

    use super::*;

    fn sent() -> Sent {
        let envelope = Envelope::builder(Bytes::new()).build(&Env::seeded(1)).unwrap();
        Sent { exchange: "c".into(), routing_key: "~00".into(), envelope, is_copy: false }
    }

    fn open(slots: &Slots, room: &Arc<Semaphore>, key: Option<u64>) -> Option<u64> {
        let permit = || Arc::clone(room).try_acquire_owned().unwrap();
        slots.open(sent(), Instant::now() + Duration::from_secs(1), key, (permit(), permit())).ok()
    }

    fn no() -> Error {
        Error::new(ErrorKind::Broker, "publish", "no")
    }

    #[tokio::test]
    async fn an_answer_reaches_its_confirm_and_frees_key_and_room() {
        let (slots, room) = (Arc::new(Slots::default()), Arc::new(Semaphore::new(4)));
        let token = open(&slots, &room, Some(1)).unwrap();
        assert!(open(&slots, &room, Some(1)).is_none(), "one a key");
        let confirm = Confirm::tracked(slots.clone(), token);
        slots.resolve(token, Ok(Receipt::new(0, 7)));
        slots.fail(token, no());
        assert_eq!(confirm.await.unwrap().position, 7);
        assert!(open(&slots, &room, Some(1)).is_some());
        assert_eq!(slots.report().confirmed, 1);
    }

    #[tokio::test]
    async fn only_what_was_handed_over_may_be_stored() {
        let (slots, room) = (Arc::new(Slots::default()), Arc::new(Semaphore::new(8)));
        let tokens = [0; 4].map(|_| open(&slots, &room, None).unwrap());
        let known = HashSet::from(["c".to_owned()]);
        assert!(matches!(slots.hand(&HashSet::new()), Next::Unchecked(token, _) if token == tokens[0]));
        for token in &tokens[..2] {
            let Next::Message(handed, _, room) = slots.hand(&known) else { panic!("nothing is queued") };
            assert_eq!(handed, *token);
            slots.requeue(handed, room);
            let Next::Message(again, ..) = slots.hand(&known) else { panic!("nothing is queued") };
            assert_eq!(again, *token, "it goes back to its place");
        }
        for token in tokens {
            slots.fail(token, no());
        }
        let report = slots.report();
        assert_eq!((report.unknown, report.failed), (2, 2));
        assert!(!slots.has_queued());
    }

    #[tokio::test]
    async fn a_failure_that_nobody_read_is_told_by_flush_once() {
        let (slots, room) = (Arc::new(Slots::default()), Arc::new(Semaphore::new(4)));
        let (early, late) = (open(&slots, &room, None).unwrap(), open(&slots, &room, None).unwrap());
        drop(Confirm::tracked(slots.clone(), early));
        slots.fail(early, no());
        slots.fail(late, no());
        drop(Confirm::tracked(slots.clone(), late));
        assert!(slots.flushed().await.unwrap_err().to_string().contains("2 sends"));
        assert!(slots.flushed().await.is_ok());
    }
}
