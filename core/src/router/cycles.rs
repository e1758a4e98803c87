//! Channels whose messages lead back to them, through the dead letters or outputs of the routes that read them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;

use crate::address::Channel;
use crate::error::{Error, Result};
use crate::runner::Plan;

/// A route sends what it reads on one channel to another.
#[derive(Clone, Copy)]
struct Edge<'a> {
    route: &'a str,
    from: &'a Channel,
    to: &'a Channel,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    DeadLetters,
    Outputs,
}

/// Refuses dead letters that lead back: a message that every route fails would go round without an end.
pub(super) fn refuse_dead_letters(plans: &[Plan]) -> Result<()> {
    let mut edges = edges(plans);
    edges.retain(|edge| edge.kind == Kind::DeadLetters);
    let Some(cycle) = (0..edges.len()).find_map(|start| shortest(&edges, start)) else {
        return Ok(());
    };
    let message = format!(
        "dead letters lead back to where they came from: {}; a message that all of them fail would go round without an end. Let those of one route go to a channel that none of these routes reads, or nowhere (`dead_letter = none`)",
        text(&edges, &cycle)
    );
    Err(Error::config("start", message))
}

/// Cycles with outputs in them, each once. They may be meant: a ticker, a process that goes on until it is done.
pub(super) fn of_outputs(plans: &[Plan]) -> Vec<String> {
    let edges = edges(plans);
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    for start in (0..edges.len()).filter(|edge| edges[*edge].kind == Kind::Outputs) {
        let Some(cycle) = shortest(&edges, start) else { continue };
        if seen.insert(cycle.iter().copied().collect::<BTreeSet<_>>()) {
            found.push(text(&edges, &cycle));
        }
    }
    found
}

fn edges(plans: &[Plan]) -> Vec<Edge<'_>> {
    plans.iter().flat_map(edges_of).collect()
}

fn edges_of(plan: &Plan) -> impl Iterator<Item = Edge<'_>> {
    let letters = plan.dead_letter.iter().chain(plan.dead_letter_for.iter().map(|(_, channel)| channel));
    let letters = letters.map(|to| (to, Kind::DeadLetters));
    let all = letters.chain(plan.publishes.iter().map(|to| (to, Kind::Outputs)));
    let (route, from) = (&*plan.names.handler, &plan.subscribe.channel);
    all.map(move |(to, kind)| Edge { route, from, to, kind })
}

/// The shortest cycle that begins with this edge, as the numbers of its edges.
fn shortest(edges: &[Edge<'_>], start: usize) -> Option<Vec<usize>> {
    let (home, mut came_by) = (edges[start].from, HashMap::new());
    let mut next = VecDeque::from([start]);
    while let Some(edge) = next.pop_front() {
        let at = edges[edge].to;
        if at == home {
            let mut cycle: Vec<_> =
                std::iter::successors(Some(edge), |edge| came_by.get(edge).copied()).collect();
            cycle.reverse();
            return Some(cycle);
        }
        for further in (0..edges.len()).filter(|further| edges[*further].from == at) {
            if further != start && !came_by.contains_key(&further) {
                came_by.insert(further, edge);
                next.push_back(further);
            }
        }
    }
    None
}

/// `orders` (`bill`) → `orders.billing.dlq` (`clerk`) → `orders`.
fn text(edges: &[Edge<'_>], cycle: &[usize]) -> String {
    let mut text = String::new();
    for edge in cycle.iter().map(|edge| &edges[*edge]) {
        let _ = write!(text, "`{}` (`{}`) → ", edge.from, edge.route);
    }
    let _ = write!(text, "`{}`", edges[cycle[0]].from);
    text
}
