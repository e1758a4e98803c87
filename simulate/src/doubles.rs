//! What may happen twice: a message is handled and dead-lettered once in all, unless something came between an end and its mark.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::{History, group_of};
use crate::history::{Event, Sent, What};
use crate::scenario::RoutePlan;

/// One end of a message: an effect, or a dead letter that may be stored.
struct End {
    index: usize,
    /// Where the attempt that led to it began.
    cause: usize,
    call: Option<u64>,
}

/// Looks at each message with more than one end.
pub(crate) fn check(history: &History<'_>, route: &RoutePlan, wrong: &mut Vec<String>) {
    let mut ends: BTreeMap<u64, Vec<End>> = BTreeMap::new();
    let mut places: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for (index, (_, event)) in history.events.iter().enumerate() {
        match event {
            Event::Delivered { group, number, position, .. } if *group == route.group => {
                places.entry(*number).or_default().insert(*position);
            }
            Event::Effect { group, call, number } if *group == route.group => {
                let cause = history.calls.get(call).map_or(index, |call| call.index);
                ends.entry(*number).or_default().push(End { index, cause, call: Some(*call) });
            }
            Event::Sent { what: What::Letter, to, number, sent: Sent::Confirmed | Sent::Unknown }
                if group_of(to) == Some(&route.group) =>
            {
                ends.entry(*number).or_default().push(End { index, cause: index, call: None });
            }
            _ => {}
        }
    }
    for (number, ends) in ends {
        // without a store, each copy of a message is a message of its own
        let copies = places.get(&number).map_or(1, BTreeSet::len);
        if !route.once && ends.len() <= copies {
            continue;
        }
        let (mut explained, mut unexplained) = (0, 0);
        for pair in ends.windows(2) {
            let (first, second) = (&pair[0], &pair[1]);
            let marked = history.events[first.index..second.cause.max(first.index)].iter().find(|(_, event)| {
                matches!(event, Event::StoreTold { group, number: n, how } if *group == route.group && *n == number && how != "released")
            });
            if let (true, Some((_, mark))) = (route.once, marked) {
                wrong.push(format!("{}: n{number} ended again after {mark:?}", route.group));
            } else if is_explained(history, route, number, first, second) {
                explained += 1;
            } else {
                unexplained += 1;
            }
        }
        // each copy may end once, and once more for whatever came between
        let allowed = if route.once { 0 } else { copies.saturating_sub(1) * (explained + 1) };
        if unexplained > allowed {
            let count = ends.len();
            wrong.push(format!("{}: n{number} ended {count} times, {copies} copies came, {unexplained} doubles have no reason", route.group));
        }
    }
}

/// Whether something came between the end and its mark.
fn is_explained(history: &History<'_>, route: &RoutePlan, number: u64, first: &End, second: &End) -> bool {
    // a claim that is lost is noticed in the same moment, but perhaps after the effect
    let moment = history.events[first.index].0;
    let from = history.events.partition_point(|(at, _)| *at < moment);
    // and a letter under way isn't called back when its claim is lost: that shows when it is settled
    let last = history.events[second.index].0;
    let to = history.events.partition_point(|(at, _)| *at <= last);
    let between = &history.events[from..to];
    // in a batch, what comes after one that failed counts as not run
    let call = first.call.and_then(|call| history.calls.get(&call));
    let mates = call.map(|call| call.numbers).filter(|numbers| numbers.len() > 1).unwrap_or_default();
    between.iter().any(|(_, event)| match event {
        Event::Lost { group, .. } => *group == route.group,
        Event::Stale { group, number: n, .. } => *group == route.group && *n == number,
        Event::Dropped { .. } | Event::Stopped { drained: false, .. } => true,
        Event::Sent { what: What::Output, number: n, sent, .. } => {
            (*n == number || mates.contains(n)) && *sent != Sent::Confirmed
        }
        Event::Sent { what: What::Letter, number: n, sent: Sent::Unknown, .. } => *n == number,
        _ => false,
    }) || (!mates.is_empty() && failed_in(history, first.call))
        || is_called_off(history, route, number, first, second)
}

/// Whether the time of the first one's member was up before the second and before an acknowledgement: it had been told to stop, and was
/// not through by then. That it was not shows when its slowest route has ended.
fn is_called_off(history: &History<'_>, route: &RoutePlan, number: u64, first: &End, second: &End) -> bool {
    let Some(call) = first.call.and_then(|call| history.calls.get(&call)) else { return false };
    let is_acked = |(_, event): &(u64, Event)| match event {
        Event::Acked { member, group, number: n, .. } => {
            *member == call.member && *group == route.group && *n == number
        }
        _ => false,
    };
    if history.events[first.index..second.index].iter().any(is_acked) {
        return false;
    }
    let was_late = |(_, event): &(u64, Event)| matches!(event, Event::Stopped { member, drained: false, .. } if *member == call.member);
    let (end, until) = (&history.events[..second.index], history.events[second.index].0);
    end.iter().any(|(at, event)| match event {
        Event::Stopping { member, deadline_ms } if *member == call.member => {
            at + deadline_ms * 1_000 <= until
        }
        _ => false,
    }) && history.events[first.index..].iter().any(was_late)
}

/// Whether a message of the call failed.
fn failed_in(history: &History<'_>, call: Option<u64>) -> bool {
    history.events.iter().any(|(_, event)| matches!(event, Event::Failed { call: c, .. } if Some(*c) == call))
}
