//! The delivery tags of one channel: which are settled, and with how few words the broker can be told. No I/O here.

use std::collections::BTreeSet;

use postrider_core::Rising;

/// One thing to tell the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    /// This delivery is done with; with `multiple` every earlier one as well.
    Ack { tag: u64, multiple: bool },
    /// This delivery goes back.
    Nack { tag: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Done with.
    Acked,
    /// It goes back.
    Returned,
}

/// Tags that the broker hasn't been told about.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    untold: Rising<State>,
    acked: usize,
    returned: BTreeSet<u64>,
}

impl Ledger {
    /// A delivery came.
    pub(crate) fn delivered(&mut self, tag: u64) {
        self.untold.push(tag, State::Open);
    }

    fn settle(&mut self, tag: u64, state: State) -> bool {
        let open = self.untold.get_mut(tag).filter(|state| **state == State::Open);
        open.map(|open| *open = state).is_some()
    }

    /// It is done with.
    pub(crate) fn ack(&mut self, tag: u64) {
        self.acked += usize::from(self.settle(tag, State::Acked));
    }

    /// It goes back.
    pub(crate) fn give_back(&mut self, tag: u64) {
        if self.settle(tag, State::Returned) {
            self.returned.insert(tag);
        }
    }

    /// How many are done with that the broker wasn't told about.
    pub(crate) fn acked(&self) -> usize {
        self.acked
    }

    /// Whether something goes back.
    pub(crate) fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// What is to be told now, in this order. `multiple` only ever reaches over tags that are settled. Those that have unsettled
    /// ones before them are told one by one only when `all` is asked for.
    pub(crate) fn tell(&mut self, all: bool) -> Vec<Tell> {
        let mut out = Vec::new();
        // what goes back first: an acknowledgement after it may then reach over it
        for tag in std::mem::take(&mut self.returned) {
            self.untold.remove(tag);
            out.push(Tell::Nack { tag });
        }
        let (mut last, mut count) = (None, 0);
        while let Some((tag, State::Acked)) = self.untold.first() {
            self.untold.remove(tag);
            (last, count) = (Some(tag), count + 1);
        }
        self.acked -= count;
        if let Some(tag) = last {
            out.push(Tell::Ack { tag, multiple: count > 1 });
        }
        if all && self.acked > 0 {
            let scattered = self.untold.iter().filter(|(_, state)| **state == State::Acked);
            let scattered: Vec<_> = scattered.map(|(tag, _)| tag).collect();
            for tag in scattered {
                self.untold.remove(tag);
                out.push(Tell::Ack { tag, multiple: false });
            }
            self.acked = 0;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Deliver,
        Ack(prop::sample::Index),
        GiveBack(prop::sample::Index),
        Tell(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Deliver),
            4 => any::<prop::sample::Index>().prop_map(Step::Ack),
            1 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
            2 => any::<bool>().prop_map(Step::Tell),
        ]
    }

    proptest! {
        /// A broker that is told what the ledger says has exactly what was settled.
        #[test]
        fn the_broker_knows_what_was_settled_and_nothing_else(steps in prop::collection::vec(step(), 0..120)) {
            let mut ledger = Ledger::default();
            let (mut next, mut unsettled) = (1, Vec::new());
            let (mut acked, mut returned) = (BTreeSet::new(), BTreeSet::new());
            // the broker's side
            let (mut held, mut has_acked, mut has_back) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            for step in steps.into_iter().chain([Step::Tell(true)]) {
                match step {
                    Step::Deliver => {
                        ledger.delivered(next);
                        held.insert(next);
                        unsettled.push(next);
                        next += 1;
                    }
                    Step::Ack(at) if !unsettled.is_empty() => {
                        let tag = unsettled.swap_remove(at.index(unsettled.len()));
                        ledger.ack(tag);
                        acked.insert(tag);
                    }
                    Step::GiveBack(at) if !unsettled.is_empty() => {
                        let tag = unsettled.swap_remove(at.index(unsettled.len()));
                        ledger.give_back(tag);
                        returned.insert(tag);
                    }
                    Step::Tell(all) => {
                        let mut last_back = 0;
                        for tell in ledger.tell(all) {
                            match tell {
                                Tell::Nack { tag } => {
                                    prop_assert!(held.remove(&tag) && tag > last_back, "in order, and held");
                                    last_back = tag;
                                    has_back.insert(tag);
                                }
                                Tell::Ack { tag, multiple } => {
                                    prop_assert!(held.contains(&tag), "an unknown tag would close the channel");
                                    let reached: Vec<_> = held.iter().copied().filter(|t| *t == tag || (multiple && *t < tag)).collect();
                                    for tag in reached {
                                        held.remove(&tag);
                                        has_acked.insert(tag);
                                    }
                                }
                            }
                        }
                    }
                    Step::Ack(_) | Step::GiveBack(_) => {}
                }
            }
            prop_assert_eq!(&has_acked, &acked);
            prop_assert_eq!(&has_back, &returned);
            prop_assert_eq!(held, unsettled.into_iter().collect());
        }
    }

    #[test]
    fn a_settled_run_is_told_in_one_word() {
        let mut ledger = Ledger::default();
        (1..=100).for_each(|tag| ledger.delivered(tag));
        (1..=90).rev().for_each(|tag| ledger.ack(tag));
        ledger.ack(95);
        assert_eq!(ledger.tell(false), [Tell::Ack { tag: 90, multiple: true }]);
        assert_eq!(ledger.acked(), 1);
        assert_eq!(ledger.tell(true), [Tell::Ack { tag: 95, multiple: false }]);
        assert_eq!(ledger.tell(true), []);
    }
}
