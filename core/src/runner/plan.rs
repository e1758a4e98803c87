//! A route after all its options were checked: what the dispatcher goes by.

use std::sync::Arc;
use std::time::Duration;

use crate::address::Channel;
use crate::extract::RouteNames;
use crate::idempotency::Idempotency;
use crate::policy::{OnExpired, OnGap, Retry};
use crate::subscribe::SubscribeOptions;

/// One route, checked.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) names: Arc<RouteNames>,
    pub(crate) subscribe: SubscribeOptions,
    pub(crate) publishes: Option<Channel>,
    /// `None`: what is given up on is dropped, which was said in so many words.
    pub(crate) dead_letter: Option<Channel>,
    pub(crate) retry: Retry,
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
