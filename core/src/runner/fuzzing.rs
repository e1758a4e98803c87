//! What `fuzz/` reaches of the runner's private parts: the copies of a message that it makes. No part of the interface.

use std::sync::Arc;
use std::time::Instant;

use super::dead_letter::{Failure, dead_letter};
use super::held::Held;
use super::retry_copy::{Earlier, retry_copy};
use crate::delivery::{Delivery, Origin};
use crate::env::BoxFuture;
use crate::envelope::Envelope;
use crate::outcome::Reason;
use crate::settle::{Claim, ClaimId, Settle, SettleError, Settlement, Token};

/// What becomes of a message that came as `envelope`.
#[derive(Debug)]
pub struct Copies {
    /// Which attempt comes first, by what the message says of earlier ones.
    pub attempt: u32,
    /// Its dead letter.
    pub letter: Envelope,
    /// The copy that waits for its next attempt.
    pub retry: Envelope,
}

/// The copies of a message, as the runner makes them at `wall_ms` for a route that allows `max_attempts`.
pub fn copies(envelope: &Envelope, error: &str, max_attempts: u32, wall_ms: u64) -> Copies {
    let token = Token { claim: ClaimId { shard: 0, epoch: 1 }, seq: 7 };
    let delivery = Delivery {
        envelope: envelope.clone(),
        origin: Origin { shard: 0, position: 7 },
        deliveries: Some(1),
        claim: Claim::new(Arc::new(Nobody), token),
    };
    let now = Instant::now();
    let mut held = Held::new(delivery, None, Arc::new(now), now);
    held.go_on(max_attempts, wall_ms);
    let error = std::io::Error::other(error.to_owned());
    let failure = Failure {
        reason: Reason::Exhausted,
        error: &error,
        attempts: held.attempt,
        first_failed_ms: held.first_failed_ms,
        last_failed_ms: wall_ms,
        channel: "orders",
        group: "billing",
        handler: "bill",
        origin: held.origin.as_deref().unwrap_or("memory:orders/7"),
    };
    let (letter, _) = dead_letter(&held.delivery, &failure);
    let earlier = Earlier {
        attempts: held.attempt,
        first_failed_ms: held.first_failed_ms,
        origin: failure.origin.to_owned(),
    };
    let (retry, _) = retry_copy(&held.delivery, &earlier, "billing");
    Copies { attempt: held.attempt, letter, retry }
}

/// Takes every settlement.
struct Nobody;

impl Settle for Nobody {
    fn settle(&self, _: &[(Token, Settlement)]) -> Result<(), SettleError> {
        Ok(())
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
