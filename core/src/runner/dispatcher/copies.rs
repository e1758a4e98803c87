//! Copies on their way: a dead letter is published until it is confirmed, a durable retry once; only then is the source acknowledged.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Dispatcher, Held, Items};
use crate::address::{Address, Channel};
use crate::error::{BoxError, Error};
use crate::idempotency::Ending;
use crate::outcome::Reason;
use crate::policy::{Backoff, Jitter, Retry, Verdict};
use crate::publish::{Outgoing, PublishError, PublishOptions, Publisher};
use crate::runner::dead_letter::{Failure, dead_letter, too_deep};
use crate::runner::events;
use crate::runner::retry_copy::{Earlier, retry_copy};
use crate::subscribe::Health;

/// A copy whose fate is known.
pub(crate) struct CopySent {
    /// The message that it is a copy of, where there is anything left to do with that.
    pub(super) held: Option<Held>,
    pub(super) sent: Sent,
}

pub(super) enum Sent {
    /// The broker has the dead letter; what is to be logged of it.
    Letter(Reason, Box<events::ErrorFields>),
    /// The broker has the copy that waits for the next attempt.
    Retry,
    /// The broker may not have that copy: the message waits here.
    InPlace(Duration),
    /// The idempotency store was told what became of the message.
    Ended,
    /// The group was told that the message runs alone; how often it was told before without an end.
    Struck(u32),
    /// The group couldn't be told that.
    Unknown(Error),
    /// The claim was lost before there was a confirm: the message comes again, here or at another member.
    Lost,
}

impl<'a> Dispatcher<'a> {
    /// Publishes the dead letter of `held`, as often as it takes. Its lane stays busy meanwhile.
    pub(super) fn send_letter(&mut self, held: Held, reason: Reason, error: &BoxError, channel: &'a Channel) {
        let (plan, orders, status) = (self.plan, self.orders, self.status);
        let origin = self.origin(&held);
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
        let (lost, fields) = (self.hold_for_copy(&held), Box::new(events::ErrorFields::of(&**error)));
        self.copies.push(Box::pin(async move {
            let patience = Retry::new()
                .attempts(u32::MAX)
                .backoff(Backoff::exponential(Duration::from_millis(200), Duration::from_secs(30)))
                .jitter(Jitter::None);
            let mut failures = 0;
            let lost = loop {
                let options = PublishOptions { hop: Some(Arc::clone(&hop)), ..PublishOptions::default() };
                let outgoing = Outgoing::new(channel, letter.clone()).with(options);
                let sent = match too_deep(&held.delivery.envelope) {
                    Some(error) => Err(PublishError::Failed(error)),
                    None => orders.broker.send(outgoing).await.await,
                };
                let error = match sent {
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
                    status.stalled.fetch_add(1, Relaxed);
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
            if failures > 0 && status.stalled.fetch_sub(1, Relaxed) == 1 {
                status.set_trouble(None);
            }
            CopySent { held: Some(held), sent: if lost { Sent::Lost } else { Sent::Letter(reason, fields) } }
        }));
    }

    /// Leaves `held`, which has failed and whose next attempt is counted already, with the broker for `wait`.
    pub(super) fn send_retry(&mut self, held: Held, wait: Duration) {
        let (plan, orders) = (self.plan, self.orders);
        let earlier = Earlier {
            attempts: held.attempt - 1,
            first_failed_ms: held.first_failed_ms,
            origin: self.origin(&held),
        };
        let (copy, hop) = retry_copy(&held.delivery, &earlier, &plan.names.group);
        let lost = self.hold_for_copy(&held);
        self.copies.push(Box::pin(async move {
            let options =
                PublishOptions { hop: Some(hop.into()), delay: Some(wait), ..PublishOptions::default() };
            let to = Address::to_group(&plan.names.channel, &plan.names.group);
            let sending = async { orders.broker.send(Outgoing::new(to, copy).with(options)).await.await };
            let sent = match lost.run_until_cancelled(sending).await {
                None => Sent::Lost,
                // a copy that the broker had already was sent by an earlier hold of the same message
                Some(Ok(_)) => Sent::Retry,
                Some(Err(error)) => {
                    events::retry_failed(&plan.names, &held.delivery, held.attempt, &error);
                    Sent::InPlace(wait)
                }
            };
            CopySent { held: Some(held), sent }
        }));
    }

    /// Where the message comes from, in the broker's words.
    fn origin(&self, held: &Held) -> String {
        held.origin.as_deref().map_or_else(|| self.control.describe(held.delivery.origin), str::to_owned)
    }

    /// Remembers that a copy of the message is under way; the token is cancelled when its claim is lost.
    pub(super) fn hold_for_copy(&mut self, held: &Held) -> CancellationToken {
        let lost = CancellationToken::new();
        self.copied.push((held.delivery.claim.token(), lost.clone()));
        lost
    }

    pub(super) fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<CopySent> {
        match self.copies.poll_next_unpin(cx) {
            Poll::Ready(Some(sent)) => Poll::Ready(sent),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Resolves when all copies have their fate, and the store and the group know what was let go.
    pub(crate) fn poll_copies(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // pending without anything to tell, too
        let _ = self.poll_told(cx);
        while let Poll::Ready(sent) = self.poll_copy(cx) {
            self.copy_sent(sent, cx);
        }
        if self.copies.is_empty() && !self.suspects.is_telling() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn copy_sent(&mut self, CopySent { held, sent }: CopySent, cx: &mut Context<'_>) {
        let Some(mut held) = held else { return };
        let token = held.delivery.claim.token();
        self.copied.retain(|(other, _)| *other != token);
        // some answers come in the moment in which the claim is lost
        let sent = match sent {
            Sent::InPlace(_) | Sent::Struck(_) | Sent::Unknown(_) if self.is_lost(&held) => Sent::Lost,
            sent => sent,
        };
        match sent {
            Sent::Lost => {
                self.not_alone_now(&mut held);
                self.leave(held);
            }
            Sent::Struck(strikes) => self.struck(held, strikes, cx),
            Sent::Unknown(error) => self.not_struck(held, &error, cx),
            Sent::Letter(reason, fields) => {
                events::dead_lettered(&self.plan.names, &held.delivery, held.attempt, reason, &fields);
                self.status.dead_lettered.fetch_add(1, Relaxed);
                if reason == Reason::CrashLoop {
                    self.forgive(&held);
                }
                self.end(held, Ending::DeadLettered);
            }
            Sent::Retry => self.end(held, |_, _| Ending::Released),
            Sent::Ended => self.acknowledge(held, true),
            Sent::InPlace(_) if self.is_stopping() => self.returned.push(held),
            Sent::InPlace(wait) => self.delay(wait, Items::from_iter([held])),
        }
    }
}
