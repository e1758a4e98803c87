//! What the runner says through `tracing`: fixed targets and fields, and nothing for each message above DEBUG.

use crate::delivery::Delivery;
use crate::error::text_of;
use crate::extract::RouteNames;
use crate::message::DecodeError;
use crate::outcome::Reason;
use crate::settle::ClaimId;

/// Whole milliseconds; the most that can be said for more.
fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `start`: the route's consumer is attached.
pub(crate) fn started(route: &RouteNames, broker: &str, worst_case: std::time::Duration) {
    tracing::info!(target: "postrider::route", route = route.handler, channel = route.channel, group = route.group, broker, worst_case_ms = millis(worst_case), "route started");
}

/// `start`: what the routes return leads back to a channel that it came from.
pub(crate) fn output_cycle(broker: &str, cycle: &str) {
    tracing::warn!(target: "postrider::route", broker, cycle, "outputs lead back to where they came from, which ends only if a handler ends it");
}

/// How much of an error's text is logged, in characters.
const MAX_TEXT: usize = 512;

/// What is logged of an error: its text, without its sources, which may quote a body.
#[derive(Debug)]
pub(crate) struct ErrorFields {
    error: String,
    /// The type or version that a message has, where that is why it failed.
    found: Option<String>,
    /// What the handler takes instead.
    expected: Option<String>,
}

impl ErrorFields {
    pub(crate) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let (found, expected) = match error.downcast_ref::<DecodeError>() {
            Some(DecodeError::UnknownType { found, expected }) => {
                (Some(bounded(found)), Some((*expected).to_owned()))
            }
            Some(DecodeError::UnreadableVersion { found, expected }) => {
                (Some(bounded(found)), Some(expected.to_string()))
            }
            Some(DecodeError::UnknownVersion { found, expected }) => {
                (Some(found.to_string()), Some(expected.to_string()))
            }
            Some(DecodeError::Undecodable(_)) | None => (None, None),
        };
        Self { error: bounded(&text_of(error)), found, expected }
    }
}

/// Cut, and in one line.
fn bounded(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut bounded: String = chars.by_ref().take(MAX_TEXT).collect();
    if chars.next().is_some() {
        bounded.pop();
        bounded.push('…');
    }
    bounded
}

/// `retry`: an attempt failed and another follows. Of each message the first is told at INFO.
pub(crate) fn retry(
    route: &RouteNames,
    delivery: &Delivery,
    attempt: u32,
    wait: std::time::Duration,
    error: &(dyn std::error::Error + 'static),
) {
    macro_rules! tell {
        ($level:ident) => {
            tracing::$level!(target: "postrider::retry", route = route.handler, channel = route.channel, group = route.group, id = %delivery.envelope.id(), attempt, wait_ms = millis(wait), error = bounded(&text_of(error)), "attempt failed, to be retried")
        };
    }
    if attempt == 1 { tell!(info) } else { tell!(debug) }
}

/// `retry`: the broker may not have the copy that was to wait there; the message waits in this process.
pub(crate) fn retry_failed(
    route: &RouteNames,
    delivery: &Delivery,
    attempt: u32,
    error: &dyn std::error::Error,
) {
    tracing::warn!(target: "postrider::retry", route = route.handler, channel = route.channel, group = route.group, id = %delivery.envelope.id(), attempt, error = %error, "the broker could not keep the message until its retry, it waits here");
}

/// `output`: the broker did not take what a handler returned. At WARN when the route's trouble begins, at DEBUG as long as it lasts.
pub(crate) fn outputs_failed(
    route: &RouteNames,
    delivery: &Delivery,
    wait: std::time::Duration,
    error: &dyn std::error::Error,
    is_news: bool,
) {
    let (id, wait_ms) = (delivery.envelope.id(), wait.as_millis() as u64);
    if is_news {
        tracing::warn!(target: "postrider::output", route = route.handler, channel = route.channel, group = route.group, %id, wait_ms, error = %error, "outputs not published; they are kept and published again");
    } else {
        tracing::debug!(target: "postrider::output", route = route.handler, channel = route.channel, group = route.group, %id, wait_ms, error = %error, "outputs not published; they are kept and published again");
    }
}

/// `output`: nothing that was returned waits to be published any more.
pub(crate) fn outputs_published(route: &RouteNames) {
    tracing::info!(target: "postrider::output", route = route.handler, channel = route.channel, group = route.group, "all outputs published");
}

/// `dead_letter`: a message was given up on, and its dead letter is confirmed.
pub(crate) fn dead_lettered(
    route: &RouteNames,
    delivery: &Delivery,
    attempt: u32,
    reason: Reason,
    fields: &ErrorFields,
) {
    let ErrorFields { error, found, expected } = fields;
    tracing::warn!(target: "postrider::dead_letter", route = route.handler, channel = route.channel, group = route.group, id = %delivery.envelope.id(), attempt, reason = reason.as_str(), error, found, expected, "message dead-lettered");
}

/// `dead_letter`: a message was given up on by a route without dead letters.
pub(crate) fn dropped(
    route: &RouteNames,
    delivery: &Delivery,
    attempt: u32,
    reason: Reason,
    error: &(dyn std::error::Error + 'static),
) {
    let ErrorFields { error, found, expected } = &ErrorFields::of(error);
    tracing::warn!(target: "postrider::dead_letter", route = route.handler, channel = route.channel, group = route.group, id = %delivery.envelope.id(), attempt, reason = reason.as_str(), error, found, expected, "message dropped: the route has no dead letters");
}

/// `dead_letter`: the dead letter itself could not be published; the message stays with the broker.
pub(crate) fn dead_letter_failed(
    route: &RouteNames,
    delivery: &Delivery,
    attempt: u32,
    error: &dyn std::error::Error,
) {
    tracing::error!(target: "postrider::dead_letter", route = route.handler, channel = route.channel, group = route.group, id = %delivery.envelope.id(), attempt, error = %error, "dead letter not confirmed, the route waits and tries again");
}

/// `claim`: claims ended; what ran under them is cancelled.
pub(crate) fn claims_lost(route: &RouteNames, claims: &[ClaimId]) {
    tracing::warn!(target: "postrider::claim", route = route.handler, channel = route.channel, group = route.group, claims = claims.len(), "claims lost");
}

/// `gap`: retention removed messages before they were read.
pub(crate) fn gap(route: &RouteNames, from: u64, to: u64) {
    tracing::error!(target: "postrider::gap", route = route.handler, channel = route.channel, group = route.group, from, to, "messages were removed before they were read");
}

/// `reconnect`: the connection is back.
pub(crate) fn reconnected(route: &RouteNames) {
    tracing::info!(target: "postrider::reconnect", route = route.handler, channel = route.channel, group = route.group, "reconnected");
}

/// `drain`: the route stops.
pub(crate) fn draining(route: &RouteNames, held: usize) {
    tracing::info!(target: "postrider::drain", route = route.handler, channel = route.channel, group = route.group, held, "route draining");
}

/// `drain`: the route has stopped.
pub(crate) fn drained(route: &RouteNames, given_back: usize, in_time: bool) {
    tracing::info!(target: "postrider::drain", route = route.handler, channel = route.channel, group = route.group, given_back, in_time, "route stopped");
}

/// `breaker`: too many attempts failed, nothing starts for this time.
pub(crate) fn breaker_opened(route: &RouteNames, left: std::time::Duration) {
    tracing::warn!(target: "postrider::breaker", route = route.handler, channel = route.channel, group = route.group, open_ms = millis(left), "circuit breaker open, the route waits");
}

/// `breaker`: a few attempts are let through, to see.
pub(crate) fn breaker_probes(route: &RouteNames) {
    tracing::info!(target: "postrider::breaker", route = route.handler, channel = route.channel, group = route.group, "circuit breaker half-open, the route probes");
}

/// `breaker`: everything is let through again.
pub(crate) fn breaker_closed(route: &RouteNames) {
    tracing::info!(target: "postrider::breaker", route = route.handler, channel = route.channel, group = route.group, "circuit breaker closed, the route goes on");
}

/// `crash_loop`: a message was handed out so often that it may be what ends the processes.
pub(crate) fn suspected(route: &RouteNames, delivery: &Delivery) {
    tracing::warn!(target: "postrider::crash_loop", route = route.handler, channel = route.channel, group = route.group, id = %delivery.envelope.id(), deliveries = delivery.deliveries, "message may have ended the processes that had it, so it runs alone");
}

/// `crash_loop`: the broker could not be asked or told what is remembered of a suspect.
pub(crate) fn strikes_failed(route: &RouteNames, delivery: &Delivery, error: &dyn std::error::Error) {
    tracing::error!(target: "postrider::crash_loop", route = route.handler, channel = route.channel, group = route.group, id = %delivery.envelope.id(), error = %error, "the group could not be told that a suspect runs alone");
}

/// `idempotency`: a message came again that was handled or dead-lettered already.
pub(crate) fn duplicate(route: &RouteNames, delivery: &Delivery) {
    tracing::debug!(target: "postrider::idempotency", route = route.handler, channel = route.channel, group = route.group, id = %delivery.envelope.id(), "duplicate acknowledged");
}

/// `idempotency`: the store could not be asked or told.
pub(crate) fn store_failed(route: &RouteNames, error: &str) {
    tracing::error!(target: "postrider::idempotency", route = route.handler, channel = route.channel, group = route.group, error, "the idempotency store failed, it is asked again");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_bounded_and_one_line() {
        let whole = "ä".repeat(MAX_TEXT);
        assert_eq!(bounded(&whole), whole);
        let cut = bounded(&format!("{whole}b"));
        assert_eq!((cut.chars().count(), cut.chars().last()), (MAX_TEXT, Some('…')));
        assert_eq!(bounded("a\r\nb"), "a  b");
    }
}
