//! Dead letters on their way: published until they are confirmed, and only then is the source acknowledged.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::StreamExt;

use super::{Dispatcher, Held};
use crate::address::Channel;
use crate::error::BoxError;
use crate::outcome::Reason;
use crate::policy::{Backoff, Jitter, Retry, Verdict};
use crate::publish::{Outgoing, PublishError, PublishOptions, Publisher};
use crate::runner::dead_letter::{Failure, dead_letter};
use crate::runner::events;
use crate::subscribe::Health;

/// A dead letter that the broker has.
pub(crate) struct LetterSent {
    held: Held,
    reason: Reason,
}

impl<'a> Dispatcher<'a> {
    /// Publishes the dead letter of `held`, as often as it takes. Its lane stays busy meanwhile.
    pub(super) fn send_letter(&mut self, held: Held, reason: Reason, error: &BoxError, channel: &'a Channel) {
        let (plan, orders, status, stalled) =
            (self.plan, self.orders, self.status, Arc::clone(&self.stalled));
        let origin = self.control.describe(held.delivery.origin);
        let now = orders.env.wall_ms();
        let (letter, hop) = dead_letter(
            &held.delivery,
            &Failure {
                reason,
                error: &**error,
                attempts: held.attempt,
                first_failed_ms: if held.first_failed_ms == 0 { now } else { held.first_failed_ms },
                last_failed_ms: now,
                channel: &plan.names.channel,
                group: &plan.names.group,
                handler: &plan.names.handler,
                origin: &origin,
            },
        );
        let hop: Arc<str> = hop.into();
        self.letter_claims.push(held.delivery.claim_id());
        self.letters.push(Box::pin(async move {
            let patience = Retry::new()
                .attempts(u32::MAX)
                .backoff(Backoff::exponential(Duration::from_millis(200), Duration::from_secs(30)))
                .jitter(Jitter::None);
            let mut failures = 0;
            loop {
                let options = PublishOptions { hop: Some(Arc::clone(&hop)), ..PublishOptions::default() };
                let outgoing = Outgoing::new(channel, letter.clone()).with(options);
                let error = match orders.broker.send(outgoing).await.await {
                    // on a retry the broker may know the copy already: an earlier try of this very letter was stored
                    Ok(receipt) if !receipt.duplicate || failures > 0 => break,
                    Ok(_) => PublishError::Failed(crate::Error::new(
                        crate::ErrorKind::Broker,
                        "dead-letter",
                        "the broker took the dead letter for one that it had already, and stored nothing",
                    )),
                    Err(error) => error,
                };
                failures += 1;
                if failures == 1 {
                    stalled.fetch_add(1, Relaxed);
                }
                events::dead_letter_failed(&plan.names, &held.delivery, held.attempt, &error);
                let text = format!("the dead letter of {origin} can't be published to `{channel}`: {error}");
                let down = matches!(&error, PublishError::Failed(e) if !e.is_temporary());
                status.set_trouble(Some(if down { Health::down(text) } else { Health::degraded(text) }));
                let class = crate::Class::Retry(None);
                if let Verdict::Again(wait) =
                    patience.verdict(failures, Duration::ZERO, Duration::ZERO, class, 0)
                {
                    orders.env.sleep(wait).await;
                }
            }
            if failures > 0 && stalled.fetch_sub(1, Relaxed) == 1 {
                status.set_trouble(None);
            }
            LetterSent { held, reason }
        }));
    }

    pub(super) fn poll_letter(&mut self, cx: &mut Context<'_>) -> Poll<LetterSent> {
        match self.letters.poll_next_unpin(cx) {
            Poll::Ready(Some(sent)) => Poll::Ready(sent),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    pub(super) fn letter_sent(&mut self, LetterSent { held, reason }: LetterSent) {
        events::dead_lettered(&self.plan.names, &held.delivery, held.attempt, reason);
        self.status.dead_lettered.fetch_add(1, Relaxed);
        let claim = held.delivery.claim_id();
        if let Some(at) = self.letter_claims.iter().position(|c| *c == claim) {
            self.letter_claims.swap_remove(at);
        }
        self.acknowledge(held, true);
    }
}
