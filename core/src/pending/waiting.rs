//! Who waits for answers: for a condition that one may bring about, or for all that were sent so far.

use super::Pending;

/// Who flushes: how many of the sends up to that number have no answer yet.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) last: u64,
    pub(super) left: usize,
}

/// Counts who waits for a condition, so that an answer that nobody waits for wakes nobody.
pub(super) struct Watching<'a, T>(&'a Pending<T>);

impl<'a, T> Watching<'a, T> {
    pub(super) fn new(pending: &'a Pending<T>) -> Self {
        pending.table().watchers += 1;
        Self(pending)
    }
}

impl<T> Drop for Watching<'_, T> {
    fn drop(&mut self) {
        self.0.table().watchers -= 1;
    }
}

/// A flush under way.
pub(super) struct Flushing<'a, T>(&'a Pending<T>, usize);

impl<'a, T> Flushing<'a, T> {
    pub(super) fn new(pending: &'a Pending<T>) -> Self {
        let mut table = pending.table();
        let flush = Flush { last: table.sends, left: table.open };
        let index = table.flushes.insert(flush);
        Self(pending, index)
    }

    pub(super) fn is_done(&self) -> bool {
        self.0.table().flushes[self.1].left == 0
    }
}

impl<T> Drop for Flushing<'_, T> {
    fn drop(&mut self) {
        self.0.table().flushes.remove(self.1);
    }
}
