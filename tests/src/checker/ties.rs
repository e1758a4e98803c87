//! Ties doubles to the kills that explain them, so that as few as possible are left over: a kill that explains several may be the
//! only one that explains the next, and then one of its own takes another. Each kill explains no more than was in flight.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::doubles::Unanswered;
use crate::history::Id;

/// The number of a kill, and what of a message it left unanswered.
pub(super) type Reason = (usize, Unanswered);

/// A message that was done again, and all that would explain it.
#[derive(Debug)]
pub(super) struct Double {
    pub(super) id: Id,
    pub(super) reasons: Vec<Reason>,
}

/// The messages of which some double is left over. `room`: how many each kill explains.
pub(super) fn left_over(doubles: &[Double], room: &[u64]) -> BTreeSet<Id> {
    let (_, left_over) = Ties::new(doubles, room);
    left_over.into_iter().map(|double| doubles[double].id).collect()
}

struct Ties<'a> {
    doubles: &'a [Double],
    room: &'a [u64],
    /// The doubles that each kill explains. It leaves the same of a message unanswered once.
    taken: Vec<BTreeMap<(Id, Unanswered), usize>>,
}

/// Where one search has been.
#[derive(Default)]
struct Seen {
    doubles: HashSet<usize>,
    kills: HashSet<usize>,
}

impl<'a> Ties<'a> {
    /// As many ties as there can be, and the doubles that are left over.
    fn new(doubles: &'a [Double], room: &'a [u64]) -> (Self, Vec<usize>) {
        let mut ties = Ties { doubles, room, taken: vec![BTreeMap::new(); room.len()] };
        let alone = (0..doubles.len()).filter(|double| !ties.tie(*double, &mut Seen::default())).collect();
        (ties, alone)
    }

    /// Ties the double to some kill; others may have to take another for that.
    fn tie(&mut self, double: usize, seen: &mut Seen) -> bool {
        if !seen.doubles.insert(double) {
            return false;
        }
        let Double { id, reasons } = &self.doubles[double];
        for (kill, unanswered) in reasons {
            let place = (*id, *unanswered);
            let (taken, room) = (&self.taken[*kill], self.room[*kill]);
            let free = if let Some(other) = taken.get(&place) {
                let other = *other;
                self.tie(other, seen)
            } else {
                (taken.len() as u64) < room || self.make_room(*kill, seen)
            };
            if free {
                self.taken[*kill].insert(place, double);
                return true;
            }
        }
        false
    }

    fn make_room(&mut self, kill: usize, seen: &mut Seen) -> bool {
        if !seen.kills.insert(kill) {
            return false;
        }
        let taken: Vec<_> = self.taken[kill].iter().map(|(place, double)| (*place, *double)).collect();
        for (place, double) in taken {
            if self.tie(double, seen) {
                self.taken[kill].remove(&place);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const KILLS: usize = 3;

    /// The fewest doubles that are left over, whatever explains the others: every way is tried.
    fn fewest(doubles: &[Double], room: &mut [u64], taken: &mut BTreeSet<(Id, Reason)>) -> usize {
        let Some((first, rest)) = doubles.split_first() else { return 0 };
        let mut least = 1 + fewest(rest, room, taken);
        for reason in &first.reasons {
            if room[reason.0] > 0 && taken.insert((first.id, *reason)) {
                room[reason.0] -= 1;
                least = least.min(fewest(rest, room, taken));
                room[reason.0] += 1;
                taken.remove(&(first.id, *reason));
            }
        }
        least
    }

    fn double() -> impl Strategy<Value = Double> {
        let reason = (0..KILLS, prop_oneof![Just(Unanswered::Message), Just(Unanswered::Publish)]);
        (0..3u32, vec(reason, 0..4)).prop_map(|(key, reasons)| Double { id: Id { key, number: 0 }, reasons })
    }

    proptest! {
        #[test]
        fn as_few_as_can_be_are_left_over(
            doubles in vec(double(), 0..7),
            mut room in vec(0..4u64, KILLS..=KILLS),
        ) {
            let places = room.clone();
            let (ties, alone) = Ties::new(&doubles, &places);
            let mut tied = BTreeSet::new();
            for (kill, taken) in ties.taken.iter().enumerate() {
                prop_assert!(taken.len() as u64 <= room[kill]);
                for ((id, unanswered), double) in taken {
                    prop_assert_eq!(*id, doubles[*double].id);
                    prop_assert!(doubles[*double].reasons.contains(&(kill, *unanswered)));
                    prop_assert!(tied.insert(*double), "each is tied once");
                }
            }
            prop_assert_eq!(tied.len() + alone.len(), doubles.len());
            prop_assert_eq!(alone.len(), fewest(&doubles, &mut room, &mut BTreeSet::new()));
        }
    }
}
