//! How far a partition is settled: the place below which nothing is open, and what is settled above it. No I/O.

use std::collections::BTreeSet;

use postrider_core::Rising;

/// The place of one partition. Offsets go in as they are handed out, ascending, with holes where the log has them.
#[derive(Debug)]
pub(crate) struct Watermark {
    /// Where reading goes on.
    next: u64,
    /// What was read and isn't settled. All else below `next` is settled, or was never there.
    open: Rising<()>,
    /// Settled by an earlier holder above the place where it stopped; passed over when they come.
    ahead: BTreeSet<u64>,
    /// Rises with every change of what is to be written down.
    version: u64,
}

impl Watermark {
    /// A partition that is read from `position` on, of which `ahead` are settled already.
    pub(crate) fn new(position: u64, ahead: impl IntoIterator<Item = u64>) -> Self {
        let ahead = ahead.into_iter().filter(|offset| *offset >= position).collect();
        Self { next: position, open: Rising::default(), ahead, version: 0 }
    }

    /// An offset was read. `false`: it was settled before, or read before, and isn't to be handed out.
    pub(crate) fn take(&mut self, offset: u64) -> bool {
        if offset < self.next {
            return false;
        }
        self.next = offset + 1;
        let settled = self.ahead.remove(&offset);
        // what lies below was compacted away
        while self.ahead.first().is_some_and(|first| *first < offset) {
            self.ahead.pop_first();
        }
        if !settled {
            self.open.push(offset, ());
        } else if self.open.is_empty() {
            self.version += 1;
        }
        !settled
    }

    /// What wasn't read below `position` isn't in the log any more: reading goes on there.
    pub(crate) fn pass_to(&mut self, position: u64) {
        if position > self.next {
            self.next = position;
            self.ahead = self.ahead.split_off(&position);
            self.version += 1;
        }
    }

    /// An offset is settled. `false`: it isn't open.
    pub(crate) fn settle(&mut self, offset: u64) -> bool {
        let settled = self.open.remove(offset).is_some();
        self.version += u64::from(settled);
        settled
    }

    /// Below this nothing is open: what a restart begins with.
    pub(crate) fn position(&self) -> u64 {
        self.open.first().map_or(self.next, |(offset, ())| offset)
    }

    /// What comes next from the log.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// What is settled above the position, ascending; what was never there counts as that.
    pub(crate) fn settled_above(&self) -> impl Iterator<Item = u64> {
        let mut open = self.open.iter().map(|(offset, ())| offset).peekable();
        let read = (self.position()..self.next).filter(move |offset| open.next_if_eq(offset).is_none());
        read.chain(self.ahead.iter().copied())
    }

    /// How many messages are unsettled of a log from `low` to `high`, those that are out included.
    pub(crate) fn lag(&self, low: u64, high: u64) -> u64 {
        let unread = high.saturating_sub(self.next.max(low));
        let settled = self.ahead.range(low..).count() as u64;
        unread.saturating_sub(settled) + self.open.len() as u64
    }

    /// There is something else to write down beside it.
    pub(crate) fn touch(&mut self) {
        self.version += 1;
    }

    /// Which state this is; a later one is greater.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_position_waits_for_the_oldest_open_one() {
        let mut mark = Watermark::new(5, []);
        assert!(mark.take(5) && mark.take(6) && mark.take(9));
        assert!(mark.settle(9) && mark.settle(6));
        // 7 and 8 aren't in the log
        assert_eq!((mark.position(), mark.settled_above().collect::<Vec<_>>()), (5, vec![6, 7, 8, 9]));
        assert!(mark.settle(5) && !mark.settle(5));
        assert_eq!((mark.position(), mark.settled_above().count()), (10, 0));
        assert!(!mark.take(9), "read before");
    }

    #[test]
    fn what_the_log_has_no_more_is_passed_over_and_what_is_out_stays_open() {
        let mut mark = Watermark::new(0, [6, 12]);
        assert!(mark.take(0) && mark.take(1));
        assert!(mark.settle(1));
        let version = mark.version();
        mark.pass_to(10);
        assert!(mark.version() > version, "to be written down");
        assert_eq!((mark.position(), mark.next()), (0, 10));
        assert!(mark.settled_above().eq((1..10).chain([12])));
        mark.pass_to(4);
        assert_eq!(mark.next(), 10, "never back");
        assert_eq!(mark.lag(10, 20), 10, "0 is out, 10 to 19 are unread, 12 is settled");
        assert!(!mark.take(9) && mark.take(10) && mark.take(11) && !mark.take(12));
        assert_eq!(mark.lag(10, 20), 10, "0, 10 and 11 are out, 13 to 19 are unread");
        assert!(mark.settle(0));
        assert_eq!(mark.position(), 10);
    }

    proptest! {
        /// Against the plain model: sets of what was taken and settled, over a restart at any moment.
        #[test]
        fn nothing_is_lost_and_nothing_settled_comes_again(
            steps in prop::collection::vec((any::<bool>(), 0_usize..8, 0_u64..3), 1..80),
            restart in 0_usize..80,
        ) {
            let mut mark = Watermark::new(0, []);
            let (mut log, mut open, mut settled) = (Vec::new(), Vec::new(), BTreeSet::new());
            let (mut at, mut version) = (0, 0);
            for (n, (take, pick, hole)) in steps.into_iter().enumerate() {
                if n == restart {
                    // what is written down is all that the next holder knows
                    at = mark.position();
                    mark = Watermark::new(at, mark.settled_above().collect::<Vec<_>>());
                    version = 0;
                    open.clear();
                    let again: Vec<u64> = log.iter().copied().filter(|offset| *offset >= at).collect();
                    for offset in again {
                        prop_assert_eq!(mark.take(offset), !settled.contains(&offset), "{}", offset);
                        if !settled.contains(&offset) {
                            open.push(offset);
                        }
                    }
                }
                if take {
                    let offset = log.last().map_or(0, |last| last + 1) + hole;
                    prop_assert!(mark.take(offset));
                    log.push(offset);
                    open.push(offset);
                } else if !open.is_empty() {
                    let offset = open.remove(pick % open.len());
                    prop_assert!(mark.settle(offset));
                    settled.insert(offset);
                }
                prop_assert!(mark.version() >= version);
                version = mark.version();
                let oldest = open.iter().min().copied();
                if let Some(oldest) = oldest {
                    prop_assert_eq!(mark.position(), oldest);
                } else {
                    prop_assert!(log.iter().all(|offset| *offset < mark.position() || settled.contains(offset)));
                }
                prop_assert!(mark.position() >= at);
                let above: BTreeSet<_> = mark.settled_above().collect();
                let end = log.last().map_or(0, |last| last + 1);
                prop_assert_eq!(mark.lag(0, end + 7), open.len() as u64 + 7);
                prop_assert!(mark.settled_above().is_sorted());
                prop_assert!(log.iter().all(|o| settled.contains(o) == (*o < mark.position() || above.contains(o))));
            }
        }
    }
}
