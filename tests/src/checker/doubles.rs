//! Doubles: a message may be in effects or dead letters twice only where a kill, a pause or a cut fell between the first and its
//! acknowledgement, or between its publish and the confirm, so that it was sent again. Each double is tied to one of these, and
//! none explains more than was in flight.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bounds, Done, Histories};
use crate::history::{Entry, Id, Step, Target};

/// A kill, a pause or a cut, and what was seen around it.
#[derive(Clone, Debug)]
pub struct Kill {
    /// What was killed.
    pub target: Target,
    /// Just before.
    pub at: u64,
    /// When it was dead.
    pub dead: u64,
    /// When it was there again; the end of time if it never was.
    pub back: u64,
    /// Messages sent or unsettled when it fell.
    pub in_flight: u64,
    /// Messages confirmed before it.
    pub confirmed_before: u64,
    /// Messages confirmed after it was dead.
    pub confirmed_after: u64,
    /// Effects after it was dead.
    pub handled_after: u64,
    /// The first confirm after it was there again.
    pub confirmed_at: Option<u64>,
}

impl Kill {
    /// Whether it fell on a run at work that went on after it.
    pub fn counts(&self, bounds: &Bounds) -> bool {
        self.in_flight >= bounds.least_in_flight && self.confirmed_after > 0 && self.handled_after > 0
    }

    /// Whether it can have kept `first` from being acknowledged, so that `second` was delivered; or the message's publish,
    /// which took the time `publish`, from being answered, so that it was stored twice.
    fn explains(
        &self,
        first: &Done<'_>,
        second: &Done<'_>,
        publish: Option<(u64, u64)>,
        bounds: &Bounds,
    ) -> bool {
        if bounds.once && !matches!(self.target, Target::Consumer(_)) {
            return false;
        }
        let publisher_too = !matches!(self.target, Target::Consumer(_) | Target::Letters);
        if publisher_too && publish.is_some_and(|(sent, confirmed)| sent <= self.back && confirmed >= self.at)
        {
            return true;
        }
        // the acknowledgement of what was done long before is no longer on its way
        let claim_timeout = bounds.claim_timeout.as_nanos() as u64;
        let since = self.at.saturating_sub(claim_timeout);
        // a letter twice is one that was read again, or the work of one whose message was handled again
        let read_or_failed = [Some((first.process, first.at)), first.failed];
        second.at >= self.at
            && read_or_failed.into_iter().flatten().any(|(process, at)| {
                let until = match self.target {
                    Target::Consumer(number) if process == consumer(number) => self.dead,
                    // a letter that was refused isn't there
                    Target::Consumer(_) | Target::Letters => return false,
                    // what was being handled while the broker was away can't be acknowledged by its old name when it is back
                    Target::Broker | Target::Pause | Target::Cut => self.back.saturating_add(claim_timeout),
                };
                (since..=until).contains(&at)
            })
    }
}

/// The name of the process that is the consumer of that number.
pub(crate) fn consumer(number: u32) -> String {
    format!("consumer-{number}")
}

/// All kills of the run, in their order.
pub(super) fn kills(histories: &Histories) -> Vec<Kill> {
    let mut entries: Vec<&Entry> = histories.values().flatten().collect();
    entries.sort_by_key(|entry| entry.at);
    let mut kills: Vec<Kill> = Vec::new();
    let mut confirmed = 0;
    for entry in entries {
        match entry.step {
            Step::Kill { target, in_flight } => kills.push(Kill {
                target,
                at: entry.at,
                dead: u64::MAX,
                back: u64::MAX,
                in_flight,
                confirmed_before: confirmed,
                confirmed_after: 0,
                handled_after: 0,
                confirmed_at: None,
            }),
            Step::Dead { target } => {
                let open = kills.iter_mut().rev().find(|kill| kill.target == target && kill.dead == u64::MAX);
                if let Some(kill) = open {
                    kill.dead = entry.at;
                }
            }
            Step::Back { target } => {
                let open = kills.iter_mut().rev().find(|kill| kill.target == target && kill.back == u64::MAX);
                if let Some(kill) = open {
                    kill.back = entry.at;
                }
            }
            Step::Confirmed { .. } => {
                confirmed += 1;
                kills
                    .iter_mut()
                    .filter(|kill| kill.dead < entry.at)
                    .for_each(|kill| kill.confirmed_after += 1);
                kills.iter_mut().filter(|kill| kill.back < entry.at).for_each(|kill| {
                    kill.confirmed_at.get_or_insert(entry.at);
                });
            }
            Step::Effect { .. } => {
                kills.iter_mut().filter(|kill| kill.dead < entry.at).for_each(|kill| kill.handled_after += 1);
            }
            _ => {}
        }
    }
    kills
}

/// All doubles, and those that no kill explains.
pub(super) fn check(
    done: &[Done<'_>],
    kills: &[Kill],
    publish: impl Fn(Id) -> Option<(u64, u64)>,
    bounds: &Bounds,
) -> (BTreeSet<Id>, BTreeSet<Id>) {
    let mut times: BTreeMap<Id, Vec<&Done<'_>>> = BTreeMap::new();
    for done in done {
        times.entry(done.id).or_default().push(done);
    }
    let (mut doubled, mut unexplained) = (BTreeSet::new(), BTreeSet::new());
    let mut left: Vec<u64> = kills.iter().map(|kill| kill.in_flight).collect();
    for (id, times) in times.into_iter().filter(|(_, times)| times.len() > 1) {
        doubled.insert(id);
        let mut spent = BTreeSet::new();
        for pair in times.windows(2) {
            let by = (0..kills.len()).find(|at| {
                !spent.contains(at)
                    && left[*at] > 0
                    && kills[*at].explains(pair[0], pair[1], publish(id), bounds)
            });
            if let Some(at) = by {
                left[at] -= 1;
                spent.insert(at);
            } else {
                unexplained.insert(id);
            }
        }
    }
    (doubled, unexplained)
}
