//! All that can be said of a route. The attribute `#[handler(…)]` says it in the same words.

use std::time::Duration;

use super::Retry;
use crate::breaker::{Breaker, BreakerPolicy};
use crate::bulkhead::Bulkhead;
use crate::handler::Route;
use crate::idempotency::Idempotency;
use crate::outcome::Reason;
use crate::rate::{RateLimit, RatePolicy};
use crate::settle::Window;
use crate::subscribe::{Order, Start};

/// Where the messages go that a route gives up on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadLetterPolicy {
    /// To `channel.group.dlq`.
    #[default]
    Default,
    /// To this channel.
    Channel(String),
    /// Nowhere: they are acknowledged, and each is logged as dropped.
    Drop,
}

/// What becomes of a message whose time has passed before an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnExpired {
    /// To the dead letters.
    #[default]
    DeadLetter,
    /// Acknowledged and counted.
    Drop,
}

/// What becomes of a route when retention has removed messages that it hadn't read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnGap {
    /// It is logged and counted, and the route goes on.
    #[default]
    Continue,
    /// The route stops with an error.
    Stop,
}

/// A breaker of the route's own, or one that it shares.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum BreakerOption {
    Own(BreakerPolicy),
    Shared(Breaker),
}

/// A rate limit of the route's own, or one that it shares.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RateOption {
    Own(RatePolicy),
    Shared(RateLimit),
}

/// Everything about a route but its function. What isn't said has the documented default.
///
/// ```
/// use std::time::Duration;
/// use postrider_core::{Order, Retry, RouteOptions};
/// let options = RouteOptions::new("orders", "billing")
///     .order(Order::Key)
///     .concurrency(16)
///     .timeout(Duration::from_secs(3))
///     .retry(Retry::new().attempts(3))
///     .dead_letter("orders.billing.dlq");
/// # let _ = options;
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use = "options become a route by `handle`"]
pub struct RouteOptions {
    pub(crate) channel: String,
    /// `None`: ephemeral.
    pub(crate) group: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) publishes: Option<String>,
    pub(crate) order: Order,
    pub(crate) partitions: Option<u32>,
    pub(crate) concurrency: usize,
    pub(crate) workers: usize,
    pub(crate) window: Window,
    pub(crate) start: Start,
    pub(crate) timeout: Duration,
    pub(crate) retry: Retry,
    pub(crate) breaker: Option<BreakerOption>,
    pub(crate) rate: Option<RateOption>,
    pub(crate) bulkhead: Option<Bulkhead>,
    pub(crate) dead_letter: DeadLetterPolicy,
    pub(crate) dead_letter_for: Vec<(Reason, String)>,
    pub(crate) on_expired: OnExpired,
    pub(crate) on_gap: OnGap,
    pub(crate) batch: usize,
    /// `None`: the default where the broker can do it.
    pub(crate) crash_limit: Option<u32>,
    pub(crate) claim_timeout: Option<Duration>,
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) native: Vec<(String, String)>,
}

impl RouteOptions {
    /// A route on `channel` for `group`. Names are checked when the router starts.
    pub fn new(channel: impl Into<String>, group: impl Into<String>) -> Self {
        Self { group: Some(group.into()), ..Self::ephemeral(channel) }
    }

    /// A route with a copy of `channel` of its own, gone when it stops. It has no dead letters unless a channel is named.
    pub fn ephemeral(channel: impl Into<String>) -> Self {
        Self {
            channel: channel.into(),
            group: None,
            name: None,
            publishes: None,
            order: Order::Key,
            partitions: None,
            concurrency: 64,
            workers: 1,
            window: Window::default(),
            start: Start::Earliest,
            timeout: Duration::from_secs(30),
            retry: Retry::new(),
            breaker: None,
            rate: None,
            bulkhead: None,
            dead_letter: DeadLetterPolicy::Default,
            dead_letter_for: Vec::new(),
            on_expired: OnExpired::DeadLetter,
            on_gap: OnGap::Continue,
            batch: 100,
            crash_limit: None,
            claim_timeout: None,
            idempotency: None,
            native: Vec::new(),
        }
    }

    /// The handler's name, in logs, dead letters and derived ids. `#[handler]` sets the function's.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Where the returned messages go. They are confirmed before the input is acknowledged.
    pub fn publishes(mut self, channel: impl Into<String>) -> Self {
        self.publishes = Some(channel.into());
        self
    }

    /// The order to be kept; per key unless set.
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Into how many partitions the group is split: 1, 2, 4 … 64; the adapter's default unless set.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = Some(partitions);
        self
    }

    /// How many handlers may run at once, from 1; 64 unless set. A message that waits for its back-off doesn't count, nor does one whose
    /// handler is done and whose outputs the publisher has: until they are confirmed, what bounds those is the window.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// How many tasks run handlers, from 1 to 1,024; 1 unless set. More than one lets handlers that compute use several cores.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// How many messages may be received and unsettled, from 1; 1,024 unless set.
    pub fn max_in_flight(mut self, messages: usize) -> Self {
        self.window.messages = messages;
        self
    }

    /// How many bytes may be received and unsettled; 16 MiB unless set. One message always fits.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.window.bytes = bytes;
        self
    }

    /// Where a group that has no place yet begins; with the earliest message unless set.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// How long one attempt may take; 30 s unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How often and how patiently a message is tried.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// When too many attempts fail, nothing starts for a while; then a few are let through, to see. Messages wait meanwhile, with the
    /// member or the broker, and no attempt of theirs is used up. Failed is what is retried: an `Err`, a panic, a time-out. What is
    /// rejected or cancelled says nothing. A batch is one call, which has failed if half of its messages have.
    ///
    /// A [time-out](BreakerPolicy::timeout) of the policy shortens the route's own.
    pub fn breaker(mut self, policy: BreakerPolicy) -> Self {
        self.breaker = Some(BreakerOption::Own(policy));
        self
    }

    /// The same by a breaker that others use, too: other routes, or calls inside of handlers.
    pub fn shared_breaker(mut self, breaker: &Breaker) -> Self {
        self.breaker = Some(BreakerOption::Shared(breaker.clone()));
        self
    }

    /// How many messages may begin an attempt in a time, retries included; those that are over it wait. A batch begins when one message
    /// may, and the next one waits for all of it.
    pub fn rate(mut self, policy: RatePolicy) -> Self {
        self.rate = Some(RateOption::Own(policy));
        self
    }

    /// The same by a limit that others use, too.
    pub fn shared_rate(mut self, limit: &RateLimit) -> Self {
        self.rate = Some(RateOption::Shared(limit.clone()));
        self
    }

    /// Attempts also need a place in a bulkhead that others use, too: other routes, or calls inside of handlers. It is held until the
    /// attempt's outputs are confirmed. Routes wait for theirs in turn, whatever its queue and time-out.
    pub fn bulkhead(mut self, bulkhead: &Bulkhead) -> Self {
        self.bulkhead = Some(bulkhead.clone());
        self
    }

    /// The dead-letter channel; `channel.group.dlq` unless set. A name is a name, also `none`: for no dead letters, call
    /// [`no_dead_letter`](Self::no_dead_letter).
    pub fn dead_letter(mut self, channel: impl Into<String>) -> Self {
        self.dead_letter = DeadLetterPolicy::Channel(channel.into());
        self
    }

    /// No dead letters: what is given up on is acknowledged, and logged as dropped. Has to be said, since it loses messages.
    pub fn no_dead_letter(mut self) -> Self {
        self.dead_letter = DeadLetterPolicy::Drop;
        self
    }

    /// Another dead-letter channel for what is given up on for this reason; may be given again for others.
    pub fn dead_letter_for(mut self, reason: Reason, channel: impl Into<String>) -> Self {
        self.dead_letter_for.retain(|(other, _)| *other != reason);
        self.dead_letter_for.push((reason, channel.into()));
        self
    }

    /// What becomes of a message whose time has passed.
    pub fn on_expired(mut self, on_expired: OnExpired) -> Self {
        self.on_expired = on_expired;
        self
    }

    /// What becomes of the route when messages are missing.
    pub fn on_gap(mut self, on_gap: OnGap) -> Self {
        self.on_gap = on_gap;
        self
    }

    /// Each message is handled once, however often it comes: the router's [store](crate::Router::idempotency) remembers it. Without
    /// this, whoever has the effect sees to it.
    pub fn idempotency(mut self, idempotency: Idempotency) -> Self {
        self.idempotency = Some(idempotency);
        self
    }

    /// How often a message may be handed out without an end, from 1, before it is suspected of ending the processes. Unless set: 100 where the
    /// broker counts what was handed out and given back unstarted as well, 5 where it counts holders that ended (Kafka). A
    /// suspect runs while nothing else of the service runs, and one that has ended two processes that way is dead-lettered as
    /// `crash-loop`.
    pub fn crash_limit(mut self, starts: u32) -> Self {
        self.crash_limit = Some(starts);
        self
    }

    /// The most messages in one batch, from 1; 100 unless set. Only for handlers that take a [`Batch`](crate::Batch).
    pub fn batch(mut self, messages: usize) -> Self {
        self.batch = messages;
        self
    }

    /// After how long without a sign of life the broker takes this member's claims away.
    pub fn claim_timeout(mut self, timeout: Duration) -> Self {
        self.claim_timeout = Some(timeout);
        self
    }

    /// A property of the broker's own, at your risk.
    pub fn native(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.native.push((name.into(), value.into()));
        self
    }

    /// The route: these options with a function (or a [`Handler`](crate::Handler)).
    pub fn handle<F>(self, function: F) -> Route<F> {
        Route { options: self, function }
    }
}
