//! One message alone in the whole service: who has it, and whether the other routes stand still meanwhile. Why it is alone is the
//! dispatcher's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// Shared by the routes of a service.
#[derive(Debug, Default)]
pub(crate) struct Isolation {
    /// The route that is to be alone, from 1; 0: none.
    owner: AtomicUsize,
    /// How many routes are at work.
    busy: AtomicUsize,
    /// Wakes those who wait in the order in which they began to, so that a run can be repeated.
    changes: Arc<Notify>,
}

/// One route's place in it.
#[derive(Debug)]
pub(crate) struct Place {
    isolation: Arc<Isolation>,
    number: usize,
    busy: bool,
}

impl Isolation {
    /// A place for the route with this index.
    pub(crate) fn place(self: &Arc<Self>, index: usize) -> Place {
        Place { isolation: Arc::clone(self), number: index + 1, busy: false }
    }

    /// Resolves when a route has begun to stand still or to go on, from now on, whenever it is polled first.
    pub(crate) fn changed(&self) -> OwnedNotified {
        Arc::clone(&self.changes).notified_owned()
    }

    fn tell(&self) {
        self.changes.notify_waiters();
    }
}

impl Place {
    /// Begins to work, if no other route is to be alone. Once a round is enough.
    pub(crate) fn enter(&mut self) -> bool {
        if self.busy {
            return true;
        }
        // who is held up leaves no mark: taking it away would wake those who wait for the one that is alone, again and again
        if self.is_held_up() {
            return false;
        }
        // first the mark, then the look; who claims does it the other way round, so that one of both sees the other
        self.isolation.busy.fetch_add(1, SeqCst);
        self.busy = true;
        let allowed = !self.is_held_up();
        if !allowed {
            self.leave();
        }
        allowed
    }

    /// Nothing of this route runs.
    pub(crate) fn leave(&mut self) {
        if std::mem::take(&mut self.busy) {
            self.isolation.busy.fetch_sub(1, SeqCst);
            if self.isolation.owner.load(SeqCst) != 0 {
                self.isolation.tell();
            }
        }
    }

    /// Whether another route is to be alone.
    pub(crate) fn is_held_up(&self) -> bool {
        let owner = self.isolation.owner.load(SeqCst);
        owner != 0 && owner != self.number
    }

    /// Asks to be alone; `true`: the other routes stand still. While it is `false`, those that run end, and nothing new starts.
    pub(crate) fn claim(&mut self) -> bool {
        let owner = self.isolation.owner.compare_exchange(0, self.number, SeqCst, SeqCst);
        if owner.is_err_and(|owner| owner != self.number) {
            return false;
        }
        self.isolation.busy.load(SeqCst) == usize::from(self.busy)
    }

    /// The other routes go on.
    pub(crate) fn free(&mut self) {
        if self.isolation.owner.compare_exchange(self.number, 0, SeqCst, SeqCst).is_ok() {
            self.isolation.tell();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
        self.free();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_is_alone_when_the_others_have_ended() {
        let isolation = Arc::new(Isolation::default());
        let (mut a, mut b) = (isolation.place(0), isolation.place(1));
        assert!(a.enter() && b.enter());
        assert!(!a.claim(), "the other one is at work");
        b.leave();
        assert!(!b.enter() && b.is_held_up(), "and may not begin again");
        assert!(a.claim() && !b.claim());
        a.free();
        assert!(b.enter() && !b.claim(), "now it is the first one's work that it waits for");
        a.leave();
        assert!(b.claim());
        drop(b);
        assert!(a.enter(), "a route that is gone is in nobody's way");
    }

    #[tokio::test]
    async fn who_waits_is_told() {
        let isolation = Arc::new(Isolation::default());
        let (mut a, mut b) = (isolation.place(0), isolation.place(1));
        let stands_still = isolation.changed();
        assert!(b.enter() && !a.claim());
        b.leave();
        stands_still.await;
        let goes_on = isolation.changed();
        assert!(a.claim() && !b.enter());
        a.free();
        goes_on.await;
        assert!(b.enter());
    }

    #[tokio::test]
    async fn who_asks_in_vain_tells_nobody() {
        let isolation = Arc::new(Isolation::default());
        let (mut a, mut b) = (isolation.place(0), isolation.place(1));
        assert!(a.claim());
        let changed = isolation.changed();
        assert!(!b.enter());
        // told of that, all routes that stand still would ask again, and so on without an end
        assert!(changed.now_or_never().is_none());
    }
}
