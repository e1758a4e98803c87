//! The delivery tags of one channel: which are settled, and with how few words the broker can be told. No I/O here.

use std::collections::BTreeSet;

/// One thing to tell the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    /// This delivery is done with; with `multiple` every earlier one as well.
    Ack { tag: u64, multiple: bool },
    /// This delivery goes back.
    Nack { tag: u64 },
}

/// Tags that the broker hasn't been told about.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    open: BTreeSet<u64>,
    acked: BTreeSet<u64>,
    returned: BTreeSet<u64>,
}

impl Ledger {
    /// A delivery came.
    pub(crate) fn delivered(&mut self, tag: u64) {
        self.open.insert(tag);
    }

    /// It is done with.
    pub(crate) fn ack(&mut self, tag: u64) {
        self.acked.insert(tag);
    }

    /// It goes back.
    pub(crate) fn give_back(&mut self, tag: u64) {
        self.returned.insert(tag);
    }

    /// Whether something is done with that could still become part of a longer run.
    pub(crate) fn has_scattered(&self) -> bool {
        !self.acked.is_empty()
    }

    /// What is to be told now, in this order. `multiple` only ever reaches over tags that are settled. Those that have unsettled
    /// ones before them are told one by one only when `all` is asked for.
    pub(crate) fn tell(&mut self, all: bool) -> Vec<Tell> {
        // what goes back first: an acknowledgement after it may then reach over it
        let mut out: Vec<_> = std::mem::take(&mut self.returned)
            .into_iter()
            .filter(|tag| self.open.remove(tag))
            .map(|tag| Tell::Nack { tag })
            .collect();
        let mut prefix = None;
        while let (Some(first), Some(acked)) = (self.open.first(), self.acked.first())
            && first == acked
        {
            let count = prefix.map_or(1, |(_, count)| count + 1);
            prefix = self.open.pop_first().map(|tag| (tag, count));
            self.acked.pop_first();
        }
        if let Some((tag, count)) = prefix {
            out.push(Tell::Ack { tag, multiple: count > 1 });
        }
        let scattered = if all { std::mem::take(&mut self.acked) } else { BTreeSet::new() };
        for tag in scattered {
            if self.open.remove(&tag) {
                out.push(Tell::Ack { tag, multiple: false });
            }
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
        assert!(ledger.has_scattered());
        assert_eq!(ledger.tell(true), [Tell::Ack { tag: 95, multiple: false }]);
        assert_eq!(ledger.tell(true), []);
    }
}
