//! The checker: compares the histories of all processes of a run with what postrider promises. It does no I/O, and it is
//! tested by seeded bugs, each of which it must catch.

mod doubles;
mod order;
mod ties;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::history::{Entry, Hold, Id, Step, Target};

pub use doubles::Kill;
pub(crate) use doubles::consumer;

/// The histories of a run, by the processes' names.
pub type Histories = BTreeMap<String, Vec<Entry>>;

/// What a broker's page says, as far as the checker needs it.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long a member that is cut off may still believe that it holds a message.
    pub claim_timeout: Duration,
    /// For how long the broker may not have heard that a message was handled.
    pub unheard: Duration,
    /// How many messages must be sent or unsettled for a kill to count.
    pub least_in_flight: u64,
    /// Each message is to be handled once: what is delivered again is no reason, only the end of the process between an effect and the
    /// moment at which it is remembered.
    pub once: bool,
}

/// What was found. Everything but `confirmed`, `handled`, `dead_lettered`, `overlap`, `doubled` and `kills` must be empty.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Messages that the broker confirmed.
    pub confirmed: BTreeSet<Id>,
    /// Messages with an effect.
    pub handled: BTreeSet<Id>,
    /// Messages among the dead letters.
    pub dead_lettered: BTreeSet<Id>,
    /// Confirmed, and neither handled nor dead-lettered.
    pub lost: BTreeSet<Id>,
    /// Handled or dead-lettered without having been sent, or before.
    pub phantom: BTreeSet<Id>,
    /// Handled out of the order of their key.
    pub inverted: BTreeSet<Id>,
    /// Handled by a member that was cut off, within the claim time-out.
    pub overlap: BTreeSet<Id>,
    /// In effects or dead letters more than once.
    pub doubled: BTreeSet<Id>,
    /// Of those, the ones that no kill explains.
    pub doubled_unexplained: BTreeSet<Id>,
    /// The kills, pauses and cuts of the run.
    pub kills: Vec<Kill>,
}

impl Verdict {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        let broken = [&self.lost, &self.phantom, &self.inverted, &self.doubled_unexplained];
        broken.iter().all(|ids| ids.is_empty())
    }

    /// How many kills of the broker and of consumers count: enough was in flight, and there were confirms and effects after it.
    pub fn counted(&self, bounds: &Bounds) -> (usize, usize) {
        let count = |of: fn(Target) -> bool| {
            self.kills.iter().filter(|kill| of(kill.target) && kill.counts(bounds)).count()
        };
        (count(|target| target == Target::Broker), count(|target| matches!(target, Target::Consumer(_))))
    }
}

/// An effect or a dead letter.
#[derive(Clone, Copy, Debug)]
struct Done<'a> {
    at: u64,
    process: &'a str,
    id: Id,
    /// For an effect, the hold under which it was made.
    hold: Option<Hold>,
    /// For an effect, when the handler began.
    started: Option<u64>,
}

/// What was done for a message before it was handled.
#[derive(Clone, Copy, Debug)]
struct Work<'a> {
    /// From when to when it was published.
    publish: Option<(u64, u64)>,
    /// Who began to handle it, and when.
    starts: &'a [(&'a str, u64)],
}

/// Compares.
pub fn check(histories: &Histories, bounds: &Bounds) -> Verdict {
    let mut verdict = Verdict::default();
    let mut sent: HashMap<Id, u64> = HashMap::new();
    let mut confirmed: HashMap<Id, u64> = HashMap::new();
    let mut done = Vec::new();
    let mut starts: HashMap<Id, Vec<(&str, u64)>> = HashMap::new();
    for (process, entries) in histories {
        let mut started = HashMap::new();
        for Entry { at, step } in entries {
            match *step {
                Step::Send { id } => {
                    let first = sent.entry(id).or_insert(*at);
                    *first = (*first).min(*at);
                }
                Step::Confirmed { id } => {
                    verdict.confirmed.insert(id);
                    confirmed.insert(id, *at);
                }
                Step::Started { id, hold } => {
                    started.insert((id, hold), *at);
                    starts.entry(id).or_default().push((process, *at));
                }
                Step::Effect { id, hold } => {
                    let started = started.get(&(id, hold)).copied();
                    done.push(Done { at: *at, process, id, hold: Some(hold), started });
                }
                Step::DeadLetter { id } => {
                    done.push(Done { at: *at, process, id, hold: None, started: None });
                }
                Step::Ready
                | Step::Failed { .. }
                | Step::Unknown { .. }
                | Step::Kill { .. }
                | Step::Dead { .. }
                | Step::Back { .. } => {}
            }
        }
    }
    done.sort_by_key(|done| done.at);
    for done in &done {
        let list = if done.hold.is_some() { &mut verdict.handled } else { &mut verdict.dead_lettered };
        list.insert(done.id);
        let began = done.started.unwrap_or(done.at);
        if sent.get(&done.id).is_none_or(|sent| *sent > began) {
            verdict.phantom.insert(done.id);
        }
    }
    let arrived = |id: &&Id| !verdict.handled.contains(id) && !verdict.dead_lettered.contains(id);
    verdict.lost = verdict.confirmed.iter().filter(arrived).copied().collect();
    (verdict.inverted, verdict.overlap) = order::check(&done, bounds);
    verdict.kills = doubles::kills(histories, bounds);
    (verdict.doubled, verdict.doubled_unexplained) = doubles::check(
        &done,
        &verdict.kills,
        |id| Work {
            publish: sent.get(&id).map(|sent| (*sent, confirmed.get(&id).copied().unwrap_or(u64::MAX))),
            starts: starts.get(&id).map_or(&[], Vec::as_slice),
        },
        bounds,
    );
    verdict
}
