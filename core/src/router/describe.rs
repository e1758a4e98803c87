//! Routes as data: for people a table, for programs JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::check;
use crate::runner::Plan;

/// What the routes of a router are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Description {
    /// One for each route, in the router's order.
    pub routes: Vec<RouteDescription>,
}

/// What one route is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RouteDescription {
    /// The handler's name.
    pub route: String,
    /// What it reads.
    pub channel: String,
    /// For which group.
    pub group: String,
    /// The message types that it takes; empty for any.
    pub types: Vec<String>,
    /// Where what it returns goes.
    pub publishes: Option<String>,
    /// Where what it gives up on goes.
    pub dead_letter: Option<String>,
    /// Where what it gives up on for one reason goes instead, by the reason's word.
    pub dead_letter_for: BTreeMap<String, String>,
    /// `key`, `partition` or `none`.
    pub order: String,
    /// Into how many partitions the group is split, where the route says; else the adapter's default holds.
    pub partitions: Option<u32>,
    /// How many handlers run at once.
    pub concurrency: usize,
    /// How many messages may be unsettled.
    pub max_in_flight: usize,
    /// Attempts in all.
    pub attempts: u32,
    /// How long one attempt may take, in milliseconds.
    pub timeout_ms: u64,
    /// How long one message can take in the worst case, waits included, in milliseconds; `u64::MAX` where nothing limits it.
    pub worst_case_ms: u64,
}

impl Description {
    pub(super) fn of(plans: &[Plan]) -> Self {
        Self { routes: plans.iter().map(RouteDescription::of).collect() }
    }
}

impl RouteDescription {
    fn of(plan: &Plan) -> Self {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Self {
            route: plan.names.handler.clone(),
            channel: plan.names.channel.clone(),
            group: plan.names.group.clone(),
            types: plan.types.iter().map(|t| (*t).into()).collect(),
            publishes: plan.names.publishes.clone(),
            dead_letter: plan.dead_letter.as_ref().map(ToString::to_string),
            dead_letter_for: each_reason(plan),
            order: plan.subscribe.order.as_str().into(),
            partitions: plan.subscribe.partitions,
            concurrency: plan.concurrency,
            max_in_flight: plan.subscribe.window.messages,
            attempts: plan.retry.max_attempts(),
            timeout_ms: millis(plan.timeout),
            worst_case_ms: millis(check::worst_case(plan)),
        }
    }
}

/// `orders.billing.dlq, undecodable: orders.bad`.
fn letters(route: &RouteDescription) -> String {
    let rest = route.dead_letter.clone().unwrap_or_else(|| "-".into());
    let own = route.dead_letter_for.iter().map(|(reason, channel)| format!("{reason}: {channel}"));
    std::iter::once(rest).chain(own).collect::<Vec<_>>().join(", ")
}

fn each_reason(plan: &Plan) -> BTreeMap<String, String> {
    plan.dead_letter_for.iter().map(|(reason, channel)| (reason.to_string(), channel.to_string())).collect()
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head =
            ["ROUTE", "READS", "GROUP", "PUBLISHES", "DEAD LETTERS", "ORDER", "ATTEMPTS", "WORST CASE"];
        let mut rows = vec![head.map(String::from)];
        for r in &self.routes {
            let worst_case = match r.worst_case_ms {
                u64::MAX => "no limit".to_owned(),
                ms => format!("{:.1} s", Duration::from_millis(ms).as_secs_f64()),
            };
            rows.push([
                r.route.clone(),
                r.channel.clone(),
                r.group.clone(),
                r.publishes.clone().unwrap_or_else(|| "-".into()),
                letters(r),
                r.order.clone(),
                r.attempts.to_string(),
                worst_case,
            ]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 8] = std::array::from_fn(width);
        for (i, row) in rows.iter().enumerate() {
            let cells: Vec<_> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let end = if i + 1 == rows.len() { "" } else { "\n" };
            write!(f, "{}{end}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}
