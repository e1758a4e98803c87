//! The bounded queue's room, in messages and bytes: granted in the order in which it was asked for.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::Pending;
use crate::settle::{InFlight, Window};

/// Who waits for room.
#[derive(Debug)]
struct Asking {
    number: u64,
    bytes: usize,
    granted: bool,
    waker: Waker,
}

/// How much is taken, and who waits.
#[derive(Debug)]
pub(super) struct Rooms {
    bound: Window,
    taken: InFlight,
    /// In the order in which they asked; those at the front may have been granted.
    asking: VecDeque<Asking>,
    waiting: usize,
    asked: u64,
}

impl Rooms {
    pub(super) fn new(bound: Window) -> Self {
        Self { bound, taken: InFlight::default(), asking: VecDeque::new(), waiting: 0, asked: 0 }
    }

    /// Takes room if there is some and nobody waits for it.
    pub(super) fn try_take(&mut self, bytes: usize) -> bool {
        let free = self.waiting == 0 && self.taken.has_room(&self.bound, bytes);
        if free {
            self.taken.take(bytes);
        }
        free
    }

    /// Answers those who have got it.
    pub(super) fn give_back(&mut self, bytes: usize) -> Vec<Waker> {
        self.taken.settled(bytes);
        self.grant()
    }

    fn grant(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        if self.waiting > 0 {
            for asking in self.asking.iter_mut().filter(|asking| !asking.granted) {
                if !self.taken.has_room(&self.bound, asking.bytes) {
                    break;
                }
                self.taken.take(asking.bytes);
                self.waiting -= 1;
                asking.granted = true;
                wakers.push(asking.waker.clone());
            }
        }
        wakers
    }

    fn ask(&mut self, bytes: usize, waker: &Waker) -> u64 {
        self.asked += 1;
        self.waiting += 1;
        let (number, waker) = (self.asked, waker.clone());
        self.asking.push_back(Asking { number, bytes, granted: false, waker });
        number
    }

    fn find(&self, number: u64) -> Option<usize> {
        self.asking.binary_search_by_key(&number, |asking| asking.number).ok()
    }

    /// Whether it was granted; it is asked for no longer then.
    fn is_granted(&mut self, number: u64, waker: &Waker) -> bool {
        let Some(index) = self.find(number) else { return false };
        if !self.asking[index].granted {
            self.asking[index].waker.clone_from(waker);
            return false;
        }
        self.asking.remove(index);
        true
    }

    /// It isn't wanted any more.
    fn withdraw(&mut self, number: u64) -> Vec<Waker> {
        let Some(asking) = self.find(number).and_then(|index| self.asking.remove(index)) else {
            return Vec::new();
        };
        if asking.granted {
            return self.give_back(asking.bytes);
        }
        self.waiting -= 1;
        // one that needs less may have waited behind it
        self.grant()
    }
}

/// Room in the bounded queue, given back when dropped.
#[must_use = "dropping it gives the room back"]
pub struct Room<'a, T> {
    pending: &'a Pending<T>,
    bytes: usize,
    used: bool,
}

impl<T> Room<'_, T> {
    /// A slot has it now.
    pub(super) fn used(mut self) {
        self.used = true;
    }
}

impl<T> Drop for Room<'_, T> {
    fn drop(&mut self) {
        if !self.used {
            self.pending.give_back(self.bytes);
        }
    }
}

impl<T> fmt::Debug for Room<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Room").field(&self.bytes).finish()
    }
}

/// Waits for room.
pub(super) struct Waiting<'a, T> {
    pending: &'a Pending<T>,
    bytes: usize,
    number: Option<u64>,
}

impl<'a, T> Waiting<'a, T> {
    pub(super) fn new(pending: &'a Pending<T>, bytes: usize) -> Self {
        Self { pending, bytes, number: None }
    }
}

impl<'a, T> Future for Waiting<'a, T> {
    type Output = Room<'a, T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Room<'a, T>> {
        let (pending, bytes) = (self.pending, self.bytes);
        let mut table = pending.table();
        let granted = match self.number {
            Some(number) => table.rooms.is_granted(number, cx.waker()),
            None if table.rooms.try_take(bytes) => true,
            None => {
                self.number = Some(table.rooms.ask(bytes, cx.waker()));
                false
            }
        };
        drop(table);
        if !granted {
            return Poll::Pending;
        }
        self.number = None;
        Poll::Ready(Room { pending, bytes, used: false })
    }
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let mut table = self.pending.table();
            let wakers = table.rooms.withdraw(number);
            self.pending.release(table, None, wakers);
        }
    }
}
