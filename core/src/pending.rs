//! What a publisher waits for: a slot for each send, from its place in the bounded queue to the moment when somebody has read its
//! outcome. Adapters share it; what is special about their sends is the `T` that each slot carries along.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use foldhash::fast::FixedState;
use slab::Slab;
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind};
use crate::publish::{Confirmed, Confirms, DrainReport, PublishError, Receipt};
use crate::settle::Window;

mod room;
mod waiting;

pub use room::Room;
use room::Rooms;
use waiting::{Flush, Flushing, Watching};

/// A send that is about to be made.
#[derive(Debug)]
pub struct NewSend<T> {
    /// When it counts as unanswered; the adapter looks ([`Pending::overdue`]).
    pub deadline: Instant,
    /// What it shares with sends that must not be under way beside it.
    pub key: Option<u64>,
    /// Bytes that it takes of the bounded queue.
    pub bytes: usize,
    /// What the adapter keeps of it until it is answered.
    pub sent: T,
}

#[derive(Debug)]
enum Answer {
    Waiting(Option<Waker>),
    /// The confirm was dropped; only a failure is of interest.
    Forgotten,
    Here(Confirmed),
}

#[derive(Debug)]
struct Slot<T> {
    /// The how-manieth send it is, from 1: tells slots apart that stood in one place, and which was first.
    number: u64,
    answer: Answer,
    deadline: Instant,
    key: Option<u64>,
    /// What it takes of the queue, until that is given back.
    bytes: Option<usize>,
    /// Until it is answered.
    sent: Option<T>,
}

#[derive(Debug)]
struct Table<T> {
    slots: Slab<Slot<T>>,
    /// No deadline of one without an answer is earlier.
    earliest: Option<Instant>,
    /// How many have no answer.
    open: usize,
    keys: HashMap<u64, usize, FixedState>,
    rooms: Rooms,
    flushes: Slab<Flush>,
    /// How many wait for a condition that an answer may bring about.
    watchers: usize,
    sends: u64,
    unread_failures: u64,
    last_failure: Option<String>,
    report: DrainReport,
}

/// All sends under way, and how many there may be.
///
/// A token names a send; it may be told to the broker and come back with its answer, however late: a token whose send is over
/// names nothing. One lock is held, for a few dozen nanoseconds at a time; wakers are called, and what adapters keep is dropped,
/// outside of it.
pub struct Pending<T> {
    table: Mutex<Table<T>>,
    answered: Notify,
}

impl<T> Pending<T> {
    /// Nothing yet. No more than `bound` is ever under way, but one message always may, however large.
    pub fn new(bound: Window) -> Self {
        let table = Table {
            slots: Slab::new(),
            earliest: None,
            open: 0,
            keys: HashMap::default(),
            rooms: Rooms::new(bound),
            flushes: Slab::new(),
            watchers: 0,
            sends: 0,
            unread_failures: 0,
            last_failure: None,
            report: DrainReport::default(),
        };
        Self { table: Mutex::new(table), answered: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table<T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a slot if there is room, nobody waits for some, and no other send has its key.
    ///
    /// # Errors
    /// The entry, when it would have to wait.
    pub fn try_open(&self, entry: NewSend<T>) -> Result<u64, NewSend<T>> {
        let mut table = self.table();
        if entry.key.is_some_and(|key| table.keys.contains_key(&key)) || !table.rooms.try_take(entry.bytes) {
            return Err(entry);
        }
        Ok(table.open(entry))
    }

    /// Room for so many bytes, in turn with all others that wait for some.
    ///
    /// # Cancel safety
    /// Safe: what was granted is given back.
    pub async fn room(&self, bytes: usize) -> Room<'_, T> {
        room::Waiting::new(self, bytes).await
    }

    /// Opens a slot in a room that was waited for; its key's turn must have come ([`until_free`](Self::until_free)).
    ///
    /// # Errors
    /// The entry and its room, when another has its key meanwhile.
    pub fn open<'a>(&self, entry: NewSend<T>, room: Room<'a, T>) -> Result<u64, (NewSend<T>, Room<'a, T>)> {
        let mut table = self.table();
        if entry.key.is_some_and(|key| table.keys.contains_key(&key)) {
            drop(table);
            return Err((entry, room));
        }
        room.used();
        Ok(table.open(entry))
    }

    /// It was never handed over after all, and nobody has its confirm: its slot and its room are free again. `None` if it was
    /// given up meanwhile.
    pub fn cancel(&self, token: u64) -> Option<T> {
        let mut table = self.table();
        let index = table.find(token)?;
        let slot = table.slots.remove(index);
        let sent = slot.sent?;
        let wakers = table.close(slot.number, slot.key, slot.bytes);
        self.release(table, None, wakers);
        Some(sent)
    }

    /// The answer to a send, made of what the adapter kept of it; later ones to the same send change nothing. Answers what was
    /// kept.
    ///
    /// `outcome` is called under the lock: it should do little, and must not come back here.
    pub fn resolve(&self, token: u64, outcome: impl FnOnce(&mut T) -> Confirmed) -> Option<T> {
        let mut table = self.table();
        let (sent, waker, rooms) = table.resolve(token, outcome)?;
        self.release(table, waker, rooms);
        Some(sent)
    }

    /// The answers to many sends, as [`resolve`](Self::resolve) takes one: under one lock, so that whoever waits finds all of them.
    /// What was kept is dropped.
    pub fn resolve_all<O: FnOnce(&mut T) -> Confirmed>(&self, answers: impl IntoIterator<Item = (u64, O)>) {
        let (mut kept, mut wakers) = (Vec::new(), Vec::new());
        let mut table = self.table();
        for (token, outcome) in answers {
            if let Some((sent, waker, rooms)) = table.resolve(token, outcome) {
                // dropped outside of the lock; what needs no dropping takes no memory here either
                if std::mem::needs_drop::<T>() {
                    kept.push(sent);
                }
                wakers.extend(waker.into_iter().chain(rooms));
            }
        }
        self.release(table, None, wakers);
    }

    /// The answers to sends whose room was taken over ([`take_rooms`](Self::take_rooms)) and is free now, as
    /// [`resolve_all`](Self::resolve_all): each a token, its room, and its answer.
    pub fn resolve_taken(&self, answers: impl IntoIterator<Item = (u64, usize, Confirmed)>) {
        let (mut over, mut rooms) = (Vec::new(), Vec::new());
        let mut table = self.table();
        for (token, bytes, outcome) in answers {
            rooms.append(&mut table.rooms.give_back(bytes));
            if let Some((sent, waker, mut room)) = table.resolve(token, |_| outcome) {
                over.push((sent, waker));
                rooms.append(&mut room);
            }
        }
        self.release(table, None, rooms);
        over.into_iter().filter_map(|(_, waker)| waker).for_each(Waker::wake);
    }

    /// Lets go of the lock, then wakes whoever waits.
    fn release(&self, table: MutexGuard<'_, Table<T>>, waker: Option<Waker>, rooms: Vec<Waker>) {
        let watched = table.watchers > 0;
        drop(table);
        waker.into_iter().chain(rooms).for_each(Waker::wake);
        if watched {
            self.answered.notify_waiters();
        }
    }

    /// Looks at what is kept of a send that has no answer yet.
    pub fn with<R>(&self, token: u64, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut table = self.table();
        let index = table.find(token)?;
        table.slots[index].sent.as_mut().map(look)
    }

    /// Takes the rooms of sends over, under one lock: from now on the adapter says when they are free again
    /// ([`give_back`](Self::give_back)). `look` is given what is kept of each that has no answer yet, and its room.
    ///
    /// `look` is called under the lock: it should do little, and must not come back here.
    pub fn take_rooms(
        &self,
        tokens: impl IntoIterator<Item = u64>,
        mut look: impl FnMut(u64, &mut T, usize),
    ) {
        let mut table = self.table();
        for token in tokens {
            let slot = table.find(token).map(|index| &mut table.slots[index]);
            if let Some((sent, bytes)) = slot.and_then(|slot| Some((slot.sent.as_mut()?, slot.bytes.take()?)))
            {
                look(token, sent, bytes);
            }
        }
    }

    /// Lets a send have its room again, which was taken over. Answers whether it has no answer yet; else the room is free.
    pub fn return_room(&self, token: u64, bytes: usize) -> bool {
        let mut table = self.table();
        let slot = table.find(token).map(|index| &mut table.slots[index]);
        if let Some(slot) = slot.filter(|slot| slot.sent.is_some()) {
            slot.bytes = Some(bytes);
            return true;
        }
        let wakers = table.rooms.give_back(bytes);
        self.release(table, None, wakers);
        false
    }

    /// Gives back what was taken over.
    pub fn give_back(&self, bytes: usize) {
        let mut table = self.table();
        let wakers = table.rooms.give_back(bytes);
        self.release(table, None, wakers);
    }

    /// Whether a send of this key has no answer yet.
    pub fn has_key(&self, key: u64) -> bool {
        self.table().keys.contains_key(&key)
    }

    /// Resolves when no send has this key.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn until_free(&self, key: u64) {
        self.until(|| !self.has_key(key)).await;
    }

    /// Resolves when a condition holds that an answer may bring about, or a call of [`changed`](Self::changed).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn until(&self, condition: impl Fn() -> bool) {
        if condition() {
            return;
        }
        let _watching = Watching::new(self);
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // before the look, so that an answer in between isn't missed
            answered.as_mut().enable();
            if condition() {
                return;
            }
            answered.await;
        }
    }

    /// Something else happened that somebody may wait for.
    pub fn changed(&self) {
        self.answered.notify_waiters();
    }

    /// The tokens of those without an answer whose deadline has passed, in the order in which they were opened.
    pub fn overdue(&self, now: Instant) -> Vec<u64> {
        let mut table = self.table();
        // nearly always; deadlines are looked at many times a second, and there may be thousands
        if table.earliest.is_none_or(|earliest| earliest > now) {
            return Vec::new();
        }
        let unanswered = table.slots.iter().filter(|(_, slot)| slot.sent.is_some());
        table.earliest = unanswered.map(|(_, slot)| slot.deadline).min();
        table.unanswered(|slot| slot.deadline <= now)
    }

    /// The tokens of all without an answer, in the order in which they were opened.
    pub fn unanswered(&self) -> Vec<u64> {
        self.table().unanswered(|_| true)
    }

    /// Resolves when everything opened before the call is answered.
    ///
    /// # Errors
    /// When a confirm that was dropped unread has failed since the last flush; the text says how many.
    ///
    /// # Cancel safety
    /// Safe: failures are told by the next flush.
    pub async fn flushed(&self) -> Result<(), PublishError> {
        let flushing = Flushing::new(self);
        self.until(|| flushing.is_done()).await;
        let mut table = self.table();
        let (count, last) = (std::mem::take(&mut table.unread_failures), table.last_failure.take());
        drop(table);
        if count == 0 {
            return Ok(());
        }
        let message = format!(
            "{count} sends whose confirm was dropped have failed; the last: {}",
            last.unwrap_or_default()
        );
        Err(PublishError::Failed(Error::new(ErrorKind::Broker, "flush", message)))
    }

    /// What has become of all sends so far.
    pub fn report(&self) -> DrainReport {
        self.table().report
    }
}

impl<T> Table<T> {
    fn open(&mut self, entry: NewSend<T>) -> u64 {
        let NewSend { deadline, key, bytes, sent } = entry;
        self.sends += 1;
        self.open += 1;
        if let Some(key) = key {
            *self.keys.entry(key).or_default() += 1;
        }
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        let number = self.sends;
        let answer = Answer::Waiting(None);
        let slot = Slot { number, answer, deadline, key, bytes: Some(bytes), sent: Some(sent) };
        token(number, self.slots.insert(slot))
    }

    fn find(&self, token: u64) -> Option<usize> {
        let index = token as u32 as usize;
        self.slots.get(index).is_some_and(|slot| self::token(slot.number, index) == token).then_some(index)
    }

    /// Answers what was kept, whom to wake, and who has got room by it.
    fn resolve(
        &mut self,
        token: u64,
        outcome: impl FnOnce(&mut T) -> Confirmed,
    ) -> Option<(T, Option<Waker>, Vec<Waker>)> {
        let index = self.find(token)?;
        let slot = &mut self.slots[index];
        let mut sent = slot.sent.take()?;
        let outcome = outcome(&mut sent);
        match &outcome {
            Ok(_) => self.report.confirmed += 1,
            Err(PublishError::Failed(_)) => self.report.failed += 1,
            Err(PublishError::Unknown(_)) => self.report.unknown += 1,
        }
        let (number, key, bytes) = (slot.number, slot.key, slot.bytes.take());
        let waker = if let Answer::Waiting(waker) = &mut slot.answer {
            let waker = waker.take();
            slot.answer = Answer::Here(outcome);
            waker
        } else {
            self.slots.remove(index);
            self.unread(outcome);
            None
        };
        let rooms = self.close(number, key, bytes);
        Some((sent, waker, rooms))
    }

    /// A send is over: what it held is free.
    fn close(&mut self, number: u64, key: Option<u64>, bytes: Option<usize>) -> Vec<Waker> {
        self.open -= 1;
        if let Some(key) = key
            && let Some(count) = self.keys.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.keys.remove(&key);
            }
        }
        for (_, flush) in &mut self.flushes {
            flush.left -= usize::from(number <= flush.last);
        }
        bytes.map_or_else(Vec::new, |bytes| self.rooms.give_back(bytes))
    }

    fn unread(&mut self, outcome: Confirmed) {
        if let Err(error) = outcome {
            self.unread_failures += 1;
            self.last_failure = Some(error.to_string());
        }
    }

    fn unanswered(&self, which: impl Fn(&Slot<T>) -> bool) -> Vec<u64> {
        let open = self.slots.iter().filter(|(_, slot)| slot.sent.is_some() && which(slot));
        let mut open: Vec<_> = open.map(|(index, slot)| (slot.number, token(slot.number, index))).collect();
        open.sort_unstable();
        open.into_iter().map(|(_, token)| token).collect()
    }
}

/// Where the slot stands, and enough of its number to tell it from those that stood there before.
fn token(number: u64, index: usize) -> u64 {
    number << 32 | index as u64
}

impl<T: Send + 'static> Confirms for Pending<T> {
    fn poll_confirm(&self, token: u64, cx: &mut Context<'_>) -> Poll<Confirmed> {
        let mut table = self.table();
        let Some(index) = table.find(token) else {
            return Poll::Ready(Ok(Receipt::default()));
        };
        if let Answer::Waiting(waker) = &mut table.slots[index].answer {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        match table.slots.remove(index).answer {
            Answer::Here(outcome) => Poll::Ready(outcome),
            _ => Poll::Pending,
        }
    }

    fn forget(&self, token: u64) {
        let mut table = self.table();
        let Some(index) = table.find(token) else {
            return;
        };
        if let Answer::Waiting(_) = table.slots[index].answer {
            table.slots[index].answer = Answer::Forgotten;
        } else if let Answer::Here(outcome) = table.slots.remove(index).answer {
            table.unread(outcome);
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("open", &self.table().open).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
