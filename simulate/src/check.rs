//! Whether a history keeps what is promised. What may happen twice, and why, is `doubles`'.

use std::collections::{BTreeMap, BTreeSet};

use postrider_core::Order;

use crate::history::{Event, How, Sent, What};
use crate::scenario::{Kind, RoutePlan, Scenario};
use crate::{doubles, places};

/// How long a stop may take beyond its deadline, in milliseconds: what is given back is told to the store.
const FAREWELL_MS: u64 = 1_100;

/// A history with what is looked up in it again and again.
pub(crate) struct History<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) events: &'a [(u64, Event)],
    /// When each call began and ended, and with which messages.
    pub(crate) calls: BTreeMap<u64, Call<'a>>,
}

pub(crate) struct Call<'a> {
    pub(crate) index: usize,
    pub(crate) member: u32,
    began: u64,
    pub(crate) ended: u64,
    how: How,
    pub(crate) numbers: &'a [u64],
}

/// Everything that is wrong with it.
pub(crate) fn check(scenario: &Scenario, events: &[(u64, Event)]) -> Vec<String> {
    let history = History::new(scenario, events);
    let mut wrong: Vec<String> = events
        .iter()
        .filter_map(|(at, event)| match event {
            Event::Broken(what) => Some(format!("at {} ms: {what}", at / 1000)),
            _ => None,
        })
        .collect();
    history.phantoms(&mut wrong);
    history.copies(&mut wrong);
    history.stops(&mut wrong);
    places::check(&history, &mut wrong);
    for route in &scenario.routes {
        history.lost(route, &mut wrong);
        history.order(route, &mut wrong);
        history.running(route, &mut wrong);
        history.attempts(route, &mut wrong);
        history.letters(route, &mut wrong);
        history.acks(route, &mut wrong);
        doubles::check(&history, route, &mut wrong);
    }
    wrong
}

impl<'a> History<'a> {
    fn new(scenario: &'a Scenario, events: &'a [(u64, Event)]) -> Self {
        let mut calls: BTreeMap<u64, Call<'a>> = BTreeMap::new();
        for (index, (at, event)) in events.iter().enumerate() {
            match event {
                Event::Began { call, member, numbers, .. } => {
                    let new = Call {
                        index,
                        member: *member,
                        began: *at,
                        ended: u64::MAX,
                        how: How::Dropped,
                        numbers,
                    };
                    calls.insert(*call, new);
                }
                Event::Ended { call, how, .. } => {
                    if let Some(call) = calls.get_mut(call) {
                        (call.ended, call.how) = (*at, *how);
                    }
                }
                _ => {}
            }
        }
        Self { scenario, events, calls }
    }

    /// The messages of which a publish had such an outcome.
    fn sent(&self, outcome: impl Fn(Sent) -> bool) -> BTreeSet<u64> {
        let numbers = self.events.iter().filter_map(|(_, event)| match event {
            Event::Sent { what: What::Message, number, sent, .. } if outcome(*sent) => Some(*number),
            _ => None,
        });
        numbers.collect()
    }

    /// Nothing comes that nobody sent.
    fn phantoms(&self, wrong: &mut Vec<String>) {
        let sent = self.sent(|sent| sent != Sent::Failed);
        for (_, event) in self.events {
            let number = match event {
                Event::Delivered { number, .. }
                | Event::Effect { number, .. }
                | Event::Letter { number, .. }
                | Event::Output { number } => *number,
                _ => continue,
            };
            if !sent.contains(&number) {
                wrong.push(format!("n{number} was never sent: {event:?}"));
            }
            if matches!(event, Event::Effect { .. }) && self.scenario.draft(number).kind != Kind::Good {
                wrong.push(format!("n{number} is no such message, but it was handled"));
            }
        }
    }

    /// Every copy that was confirmed is there.
    fn copies(&self, wrong: &mut Vec<String>) {
        let (mut letters, mut outputs) = (BTreeSet::new(), BTreeSet::new());
        for (_, event) in self.events {
            match event {
                Event::Letter { group, number, .. } => {
                    letters.insert((group.as_str(), *number));
                }
                Event::Output { number } => {
                    outputs.insert(*number);
                }
                _ => {}
            }
        }
        for (_, event) in self.events {
            let Event::Sent { what, to, number, sent: Sent::Confirmed } = event else { continue };
            let there = match what {
                What::Letter => group_of(to).is_some_and(|group| letters.contains(&(group, *number))),
                What::Output => outputs.contains(number),
                What::Message | What::Retry => true,
            };
            if !there {
                wrong.push(format!("n{number}: its copy was confirmed, but it isn't in {to}"));
            }
        }
    }

    /// What is told to stop starts nothing, and ends in time.
    fn stops(&self, wrong: &mut Vec<String>) {
        let mut stopping: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (at, event) in self.events {
            match event {
                Event::Stopping { member, deadline_ms } => {
                    stopping.insert(*member, (*at, *deadline_ms));
                }
                // what was handed to a worker in the same moment, before the order was read, is begun
                Event::Began { member, numbers, .. }
                    if stopping.get(member).is_some_and(|(since, _)| since < at) =>
                {
                    wrong.push(format!("member {member} began {numbers:?} after it was told to stop"));
                }
                Event::Stopped { member, took_ms, .. } => {
                    let deadline = stopping.get(member).map_or(0, |(_, deadline)| *deadline);
                    if *took_ms > deadline + FAREWELL_MS {
                        wrong.push(format!(
                            "member {member} took {took_ms} ms to stop, its deadline was {deadline} ms"
                        ));
                    }
                }
                _ => {}
            }
        }
    }

    /// What was confirmed is handled, dead-lettered, or dropped for a reason that allows it.
    fn lost(&self, route: &RoutePlan, wrong: &mut Vec<String>) {
        let mut ended = BTreeSet::new();
        let mut made = BTreeSet::new();
        for (_, event) in self.events {
            match event {
                Event::Effect { group, number, .. } if *group == route.group => {
                    ended.insert(*number);
                }
                Event::Letter { group, number, .. } if *group == route.group => {
                    ended.insert(*number);
                    // whether it was made before that is no matter
                    made.insert(*number);
                }
                Event::Output { number } => {
                    made.insert(*number);
                }
                _ => {}
            }
        }
        for number in self.sent(|sent| sent == Sent::Confirmed) {
            if !ended.contains(&number) && !self.may_be_dropped(route, number, self.events.len()) {
                wrong.push(format!(
                    "n{number} is lost for {}: neither handled nor dead-lettered",
                    route.group
                ));
            }
        }
        if route.makes && route.has_dead_letters {
            // one that was handled, and whose time was over before its output was confirmed, goes as any other
            for number in
                ended.difference(&made).filter(|n| !self.may_be_dropped(route, **n, self.events.len()))
            {
                wrong.push(format!("n{number} was handled by {}, but its output isn't there", route.group));
            }
        }
    }

    /// Whether the route may have let the message go without a dead letter, by what happened before `until`.
    fn may_be_dropped(&self, route: &RoutePlan, number: u64, until: usize) -> bool {
        let draft = self.scenario.draft(number);
        if route.drops_expired && draft.expires_in.is_some() {
            return true;
        }
        if route.has_dead_letters {
            return false;
        }
        draft.kind != Kind::Good
            || draft.expires_in.is_some()
            || self.is_exhausted(route, number, until)
            || self.is_rejected(route, number, until)
            || self.ends_processes(route, until)
    }

    /// The first pass of each lane goes in the order of the log.
    fn order(&self, route: &RoutePlan, wrong: &mut Vec<String>) {
        let mut places: BTreeMap<u64, (u64, Option<&str>)> = BTreeMap::new();
        let mut begun = BTreeSet::new();
        let mut last: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (_, event) in self.events {
            match event {
                Event::Delivered { group, number, position, key, .. } if *group == route.group => {
                    let place = places.entry(*number).or_insert((*position, key.as_deref()));
                    place.0 = place.0.min(*position);
                }
                Event::Began { group, numbers, .. } if *group == route.group => {
                    for number in numbers {
                        let Some((position, key)) = places.get(number) else { continue };
                        let Some(lane) = lane(route, *key) else { continue };
                        if !begun.insert(*number) {
                            continue;
                        }
                        if let Some((before, other)) = last.insert(lane, (*position, *number))
                            && before > *position
                        {
                            wrong.push(format!("{}: n{number} (at {position}) began after n{other} (at {before}) of the same lane", route.group));
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// One at a time in a lane, and no more at once than the route allows. What ends in the same moment doesn't count, nor beside other
    /// members what begins and is cut off in it: a claim that is lost is noticed within it, but for a member that is being stopped, which
    /// finishes what it runs.
    fn running(&self, route: &RoutePlan, wrong: &mut Vec<String>) {
        let mut keys: BTreeMap<u64, Option<&str>> = BTreeMap::new();
        let mut running: Vec<(u32, u64, Vec<&str>)> = Vec::new();
        let mut stopping: BTreeSet<u32> = BTreeSet::new();
        for (index, (at, event)) in self.events.iter().enumerate() {
            match event {
                Event::Delivered { group, number, key, .. } if *group == route.group => {
                    keys.insert(*number, key.as_deref());
                }
                Event::Began { group, member, call, numbers, .. } if *group == route.group => {
                    running.retain(|(_, other, _)| self.calls.get(other).is_some_and(|c| c.ended > *at));
                    let lanes: Vec<&str> =
                        numbers.iter().filter_map(|n| lane(route, keys.get(n).copied().flatten())).collect();
                    let cut = self.is_cut_off(index, *member, group, *call);
                    if let Some((_, other, _)) = running
                        .iter()
                        .filter(|(other, ..)| other == member || !cut && !stopping.contains(other))
                        .find(|(_, _, theirs)| theirs.iter().any(|lane| lanes.contains(lane)))
                    {
                        wrong.push(format!(
                            "{}: call {call} began while call {other} of the same lane ran",
                            route.group
                        ));
                    }
                    running.push((*member, *call, lanes));
                    let own = running.iter().filter(|(other, ..)| other == member).count();
                    if own > route.concurrency {
                        wrong.push(format!(
                            "{}: {own} calls run at once, {} may",
                            route.group, route.concurrency
                        ));
                    }
                }
                Event::Ended { call, .. } => running.retain(|(_, other, _)| other != call),
                Event::Stopping { member, .. } => {
                    stopping.insert(*member);
                }
                _ => {}
            }
        }
    }

    /// Whether the call that began there ended in the same moment, by the loss of its member's claim.
    fn is_cut_off(&self, began: usize, member: u32, group: &str, call: u64) -> bool {
        let at = self.events[began].0;
        let mut later = self.events[began..].iter().take_while(|(other, _)| *other == at);
        let ends = self.calls.get(&call).is_some_and(|call| call.ended == at);
        ends && later.any(
            |(_, event)| matches!(event, Event::Lost { member: m, group: g } if *m == member && g == group),
        )
    }

    /// No attempt beyond the limit, and none that follows no other.
    fn attempts(&self, route: &RoutePlan, wrong: &mut Vec<String>) {
        let mut last: BTreeMap<(u32, u64), u32> = BTreeMap::new();
        let mut places: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (_, event) in self.events {
            if let Event::Delivered { group, number, position, .. } = event
                && *group == route.group
            {
                places.entry(*number).or_default().insert(*position);
            }
            let Event::Began { group, member, numbers, attempt, .. } = event else { continue };
            if *group != route.group {
                continue;
            }
            if *attempt > route.attempts {
                wrong.push(format!(
                    "{group}: attempt {attempt} at {numbers:?}, {} are allowed",
                    route.attempts
                ));
            }
            if let ([number], None, false) = (&numbers[..], route.batch, route.durable) {
                let before = last.insert((*member, *number), *attempt);
                // of two copies each has attempts of its own
                let copies = places.get(number).map_or(0, BTreeSet::len);
                if copies == 1 && *attempt > 1 && before != Some(attempt - 1) {
                    wrong.push(format!("{group}: attempt {attempt} at n{number} follows {before:?}"));
                }
            }
        }
    }

    /// Every dead letter tells the truth.
    fn letters(&self, route: &RoutePlan, wrong: &mut Vec<String>) {
        for (index, (_, event)) in self.events.iter().enumerate() {
            let Event::Letter { group, number, reason } = event else { continue };
            if *group != route.group {
                continue;
            }
            let draft = self.scenario.draft(*number);
            // a batch that takes too long fails as a whole, with what in it can't be decoded
            let in_batch = route.batch.is_some() && draft.kind != Kind::Good;
            let holds = match reason.as_str() {
                "exhausted" => in_batch || self.is_exhausted(route, *number, index),
                "rejected" => self.is_rejected(route, *number, index),
                "undecodable" => draft.kind == Kind::Undecodable,
                "unknown-type" => draft.kind == Kind::OtherType,
                "unknown-version" => draft.kind == Kind::OtherVersion,
                "expired" => draft.expires_in.is_some() && !route.drops_expired,
                "crash-loop" => self.ends_processes(route, index),
                _ => false,
            };
            if !holds {
                wrong.push(format!("{group}: n{number} was dead-lettered as {reason}, which it isn't"));
            }
        }
    }

    /// Nothing is acknowledged before it has an end.
    fn acks(&self, route: &RoutePlan, wrong: &mut Vec<String>) {
        let (mut ended, mut made) = (BTreeSet::new(), BTreeSet::new());
        for (index, (_, event)) in self.events.iter().enumerate() {
            match event {
                Event::Effect { group, number, .. } if *group == route.group => {
                    ended.insert(*number);
                }
                Event::Sent { what: What::Output, number, sent: Sent::Confirmed, .. } => {
                    made.insert(*number);
                }
                Event::Sent { what: What::Retry, number, sent: Sent::Confirmed, .. } => {
                    ended.insert(*number);
                    made.insert(*number);
                }
                Event::Sent { what: What::Letter, to, number, sent: Sent::Confirmed }
                    if group_of(to) == Some(&route.group) =>
                {
                    ended.insert(*number);
                    made.insert(*number);
                }
                Event::Acked { group, number, .. } if *group == route.group => {
                    let ended = ended.contains(number) && (!route.makes || made.contains(number));
                    if !ended && !self.may_be_dropped(route, *number, index) {
                        wrong.push(format!("{group}: n{number} was acknowledged before it had an end"));
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether so many attempts at the message failed as the route allows.
    fn is_exhausted(&self, route: &RoutePlan, number: u64, until: usize) -> bool {
        let timeout = route.timeout.as_micros() as u64;
        let ended_badly =
            self.calls.values().filter(|call| call.index < until && call.numbers.contains(&number));
        let of_route = |call: &&Call<'_>| matches!(&self.events[call.index].1, Event::Began { group, .. } if *group == route.group);
        let calls = ended_badly.filter(of_route).filter(|call| match call.how {
            How::Panicked => true,
            How::Dropped => call.ended.saturating_sub(call.began) >= timeout,
            How::Returned => false,
        });
        let failures = self.events[..until].iter().filter(|(_, event)| match event {
            Event::Failed { group, number: n, permanent: false, .. } => *group == route.group && *n == number,
            Event::Sent { what: What::Output, number: n, sent, .. } => {
                route.makes && *n == number && *sent != Sent::Confirmed
            }
            _ => false,
        });
        let least = if route.ceiling { 1 } else { route.attempts as usize };
        calls.count() + failures.count() >= least
    }

    fn is_rejected(&self, route: &RoutePlan, number: u64, until: usize) -> bool {
        self.events[..until].iter().any(|(_, event)| {
            matches!(event, Event::Failed { group, number: n, permanent: true, .. } if *group == route.group && *n == number)
        })
    }

    /// Whether members ended without saying so, by which a message may be judged. A claim that is lost looks like that to the next
    /// holder, if the one before hasn't taken back yet what it told the group; by such alone nothing is judged, but where the group is
    /// slow to hear of it.
    fn ends_processes(&self, route: &RoutePlan, until: usize) -> bool {
        let (mut dropped, mut lost) = (0, 0);
        for (_, event) in &self.events[..until] {
            match event {
                Event::Dropped { .. } => dropped += 1,
                Event::Lost { group, .. } if *group == route.group => lost += 1,
                _ => {}
            }
        }
        (dropped >= 1 || self.scenario.chances.group_slow > 0) && dropped + lost >= 2
    }
}

/// The group of a channel of dead letters.
pub(crate) fn group_of(channel: &str) -> Option<&str> {
    channel.strip_suffix(".dlq")?.rsplit('.').next()
}

/// The lane of a message with this key.
fn lane<'k>(route: &RoutePlan, key: Option<&'k str>) -> Option<&'k str> {
    match route.order {
        Order::Key => key,
        Order::Partition => Some("all"),
        Order::None => None,
    }
}

#[cfg(test)]
mod tests;
