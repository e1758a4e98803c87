//! A route after all its options were checked: what the dispatcher goes by.

use std::sync::Arc;
use std::time::Duration;

use crate::address::Channel;
use crate::bulkhead::Bulkhead;
use crate::extract::RouteNames;
use crate::idempotency::Idempotency;
use crate::outcome::Reason;
use crate::policy::{BreakerOption, OnExpired, OnGap, RateOption, Retry};
use crate::subscribe::SubscribeOptions;

/// One route, checked.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) names: Arc<RouteNames>,
    pub(crate) subscribe: SubscribeOptions,
    pub(crate) publishes: Option<Channel>,
    /// `None`: what is given up on is dropped, which was said in so many words.
    pub(crate) dead_letter: Option<Channel>,
    /// Where what is given up on for one of these reasons goes instead.
    pub(crate) dead_letter_for: Vec<(Reason, Channel)>,
    pub(crate) breaker: Option<BreakerOption>,
    pub(crate) rate: Option<RateOption>,
    pub(crate) bulkhead: Option<Bulkhead>,
    pub(crate) retry: Retry,
    /// Of one attempt, that of the breaker included.
    pub(crate) timeout: Duration,
    pub(crate) concurrency: usize,
    pub(crate) workers: usize,
    /// The most messages of a batch; `None` for handlers of single messages.
    pub(crate) batch: Option<usize>,
    pub(crate) idempotency: Option<Idempotency>,
    /// What was handed out more often than this may be what ends the processes; `None`: nobody looks.
    pub(crate) crash_limit: Option<u32>,
    pub(crate) on_expired: OnExpired,
    pub(crate) on_gap: OnGap,
    /// The message types that the handler takes.
    pub(crate) types: Vec<&'static str>,
}

impl Plan {
    /// Where what is given up on for `reason` goes; `None`: nowhere.
    pub(crate) fn dead_letter_of(&self, reason: Reason) -> Option<&Channel> {
        let own = self.dead_letter_for.iter().find(|(other, _)| *other == reason);
        own.map(|(_, channel)| channel).or(self.dead_letter.as_ref())
    }
}
