//! The bulkhead: no more handlers of the guarded routes run at once in a member than it has places.

use std::collections::BTreeMap;

use crate::check::History;
use crate::history::Event;

/// Counts what runs. What ends in the same moment has left its place.
pub(crate) fn check(history: &History<'_>, wrong: &mut Vec<String>) {
    let places = history.scenario.places;
    let mut running: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for (at, event) in history.events {
        let Event::Began { group, member, call, .. } = event else { continue };
        if !history.scenario.routes.iter().any(|route| route.guarded && route.group == *group) {
            continue;
        }
        let running = running.entry(*member).or_default();
        running.retain(|other| history.calls.get(other).is_some_and(|call| call.ended > *at));
        running.push(*call);
        if running.len() > places {
            wrong.push(format!(
                "member {member}: {} calls share a bulkhead of {places} places at {} ms",
                running.len(),
                at / 1000
            ));
        }
    }
}
