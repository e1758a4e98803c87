//! Dead letters on their way: published until they are confirmed, and only then is the source acknowledged.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Dispatcher, Held};
use crate::address::Channel;
use crate::error::BoxError;
use crate::outcome::Reason;
use crate::policy::{Backoff, Jitter, Retry, Verdict};
use crate::publish::{Outgoing, PublishError, PublishOptions, Publisher};
use crate::runner::dead_letter::{Failure, dead_letter};
use crate::runner::events;
use crate::subscribe::Health;

/// A dead letter that the broker has, or that is no longer this member's to publish.
pub(crate) struct LetterSent {
    held: Held,
    reason: Reason,
    /// Its claim was lost before it was confirmed: the message comes again, here or at another member.
    lost: bool,
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
        let lost = CancellationToken::new();
        self.letter_holds.push((held.delivery.claim.token(), lost.clone()));
        self.letters.push(Box::pin(async move {
            let patience = Retry::new()
                .attempts(u32::MAX)
                .backoff(Backoff::exponential(Duration::from_millis(200), Duration::from_secs(30)))
                .jitter(Jitter::None);
            let mut failures = 0;
            let lost = loop {
                let options = PublishOptions { hop: Some(Arc::clone(&hop)), ..PublishOptions::default() };
                let outgoing = Outgoing::new(channel, letter.clone()).with(options);
                let error = match orders.broker.send(outgoing).await.await {
                    // on a retry the broker may know the copy already: an earlier try of this very letter was stored
                    Ok(receipt) if !receipt.duplicate || failures > 0 => break false,
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
                    // published now, a letter whose message comes again would be there twice
                    if lost.run_until_cancelled(orders.env.sleep(wait)).await.is_none() {
                        break true;
                    }
                }
            };
            if failures > 0 && stalled.fetch_sub(1, Relaxed) == 1 {
                status.set_trouble(None);
            }
            LetterSent { held, reason, lost }
        }));
    }

    pub(super) fn poll_letter(&mut self, cx: &mut Context<'_>) -> Poll<LetterSent> {
        match self.letters.poll_next_unpin(cx) {
            Poll::Ready(Some(sent)) => Poll::Ready(sent),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    pub(super) fn letter_sent(&mut self, LetterSent { held, reason, lost }: LetterSent) {
        let token = held.delivery.claim.token();
        self.letter_holds.retain(|(other, _)| *other != token);
        if lost {
            held.lane.into_iter().for_each(|lane| self.release(lane));
            self.forget(vec![held]);
            return;
        }
        events::dead_lettered(&self.plan.names, &held.delivery, held.attempt, reason);
        self.status.dead_lettered.fetch_add(1, Relaxed);
        self.acknowledge(held, true);
    }
}
