//! Doubles: a message may be in effects or dead letters twice only where a kill, a pause or a cut fell between the first and its
//! acknowledgement, or between its publish and the confirm, so that it was sent again. Each double is tied to one of these, and
//! none explains more than was in flight: sent and not handled, or handled without the broker's having heard of it.

use std::collections::{BTreeMap, BTreeSet};

use super::ties::{self, Double, Reason};
use super::{Bounds, Done, Histories, Work};
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
    /// Messages sent and not handled when it fell.
    pub in_flight: u64,
    /// Messages handled by then of which the broker may not have heard.
    pub unheard: u64,
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

    /// Whether it can have kept this from being answered, so that `second` came after `first`.
    fn explains(
        &self,
        unanswered: Unanswered,
        first: &Done<'_>,
        second: &Done<'_>,
        work: Work<'_>,
        bounds: &Bounds,
    ) -> bool {
        let consumer_alone = matches!(self.target, Target::Consumer(_));
        if bounds.once && !consumer_alone {
            return false;
        }
        let is_letter = first.hold.is_none();
        let falls_on =
            |(process, at): (&str, u64)| second.at >= self.at && self.falls_on(process, at, bounds);
        match unanswered {
            Unanswered::Publish => {
                let publisher_too = !consumer_alone && self.target != Target::Letters;
                publisher_too
                    && work.publish.is_some_and(|(sent, confirmed)| sent <= self.back && confirmed >= self.at)
            }
            // a letter may be read much later than its message failed
            Unanswered::Message if is_letter => {
                work.starts.iter().copied().any(|(process, at)| at < first.at && falls_on((process, at)))
            }
            Unanswered::Message => falls_on((first.process, first.at)),
            Unanswered::Letter => is_letter && falls_on((first.process, first.at)),
        }
    }

    /// Whether what the process did at that time may have gone unacknowledged.
    fn falls_on(&self, process: &str, at: u64, bounds: &Bounds) -> bool {
        let claim_timeout = bounds.claim_timeout.as_nanos() as u64;
        let until = match self.target {
            Target::Consumer(number) if process == consumer(number) => self.dead,
            // a letter that was refused isn't there
            Target::Consumer(_) | Target::Letters => return false,
            // what was being handled while the broker was away can't be acknowledged by its old name when it is back
            Target::Broker | Target::Pause | Target::Cut => self.back.saturating_add(claim_timeout),
        };
        // the acknowledgement of what was done long before is no longer on its way
        let since = self.at.saturating_sub(claim_timeout);
        (since..=until).contains(&at)
    }
}

/// What had no answer, so that it was done again. One kill may fall on each of them: a message is published, handled, and, if it
/// failed, read once more as its dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unanswered {
    Publish,
    Message,
    Letter,
}

impl Unanswered {
    const ALL: [Self; 3] = [Self::Letter, Self::Message, Self::Publish];
}

/// The name of the process that is the consumer of that number.
pub(crate) fn consumer(number: u32) -> String {
    format!("consumer-{number}")
}

/// All kills of the run, in their order.
pub(super) fn kills(histories: &Histories, bounds: &Bounds) -> Vec<Kill> {
    let mut entries: Vec<&Entry> = histories.values().flatten().collect();
    entries.sort_by_key(|entry| entry.at);
    let unheard = |target: Target, at: u64| {
        let since = at.saturating_sub(bounds.unheard.as_nanos() as u64);
        let concerned = histories.iter().filter(|(process, _)| match target {
            Target::Consumer(number) => **process == consumer(number),
            _ => true,
        });
        let effects = concerned.flat_map(|(_, entries)| entries).filter(|entry| {
            (since..at).contains(&entry.at)
                && matches!(entry.step, Step::Effect { .. } | Step::DeadLetter { .. })
        });
        effects.count() as u64
    };
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
                unheard: unheard(target, entry.at),
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
pub(super) fn check<'a>(
    done: &[Done<'_>],
    kills: &[Kill],
    work: impl Fn(Id) -> Work<'a>,
    bounds: &Bounds,
) -> (BTreeSet<Id>, BTreeSet<Id>) {
    let mut times: BTreeMap<Id, Vec<&Done<'_>>> = BTreeMap::new();
    for done in done {
        times.entry(done.id).or_default().push(done);
    }
    times.retain(|_, times| times.len() > 1);
    let mut doubles = Vec::new();
    for (id, times) in &times {
        let work = work(*id);
        for pair in times.windows(2) {
            let explains = |(kill, unanswered): &Reason| {
                kills[*kill].explains(*unanswered, pair[0], pair[1], work, bounds)
            };
            let all = (0..kills.len()).flat_map(|kill| Unanswered::ALL.map(|unanswered| (kill, unanswered)));
            doubles.push(Double { id: *id, reasons: all.filter(explains).collect() });
        }
    }
    let room: Vec<u64> = kills.iter().map(|kill| kill.in_flight + kill.unheard).collect();
    (times.into_keys().collect(), ties::left_over(&doubles, &room))
}
