//! What a seed stands for: routes, a publisher, the lives of a service, and all that goes wrong. Nothing runs here.

use std::time::Duration;

use postrider_core::{
    Backoff, BreakerPolicy, Bulkhead, Idempotency, Jitter, OnExpired, Order, Retry, RouteOptions,
};

use crate::dice::Dice;

/// The channel that all routes read.
pub(crate) const WORK: &str = "work";
/// Where outputs go.
pub(crate) const MADE: &str = "made";

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    /// How many messages are published, each perhaps more than once.
    pub(crate) messages: u64,
    pub(crate) keys: u64,
    /// The longest pause between two messages, in milliseconds.
    pub(crate) pause_ms: u64,
    /// How many messages the channel holds at most.
    pub(crate) bound: usize,
    /// How many handlers run at once in a member, of all routes that are guarded.
    pub(crate) places: usize,
    pub(crate) routes: Vec<RoutePlan>,
    pub(crate) lives: Vec<Life>,
    pub(crate) chances: Chances,
}

/// How often what goes wrong, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chances {
    pub(crate) publish_fails: u64,
    pub(crate) confirm_lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) disconnected: u64,
    pub(crate) delayed: u64,
    pub(crate) store_fails: u64,
    pub(crate) store_slow: u64,
    pub(crate) group_fails: u64,
    pub(crate) group_slow: u64,
}

/// One route.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is rolled by itself")]
pub(crate) struct RoutePlan {
    pub(crate) group: String,
    pub(crate) order: Order,
    pub(crate) concurrency: usize,
    pub(crate) workers: usize,
    pub(crate) window: usize,
    /// The most messages of a batch; `None`: one at a time.
    pub(crate) batch: Option<usize>,
    pub(crate) attempts: u32,
    pub(crate) backoff_ms: u64,
    pub(crate) durable: bool,
    /// A ceiling on all attempts together.
    pub(crate) ceiling: bool,
    pub(crate) timeout: Duration,
    pub(crate) once: bool,
    pub(crate) makes: bool,
    pub(crate) drops_expired: bool,
    pub(crate) has_dead_letters: bool,
    pub(crate) crash_limit: u32,
    /// It shares the member's bulkhead.
    pub(crate) guarded: bool,
    /// It has a circuit breaker that opens after so many failures in a row.
    pub(crate) breaks_after: Option<u32>,
}

/// What a message is to its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Good,
    Undecodable,
    OtherType,
    OtherVersion,
}

/// A message as its publisher makes it.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) kind: Kind,
    pub(crate) key: Option<String>,
    pub(crate) has_business_key: bool,
    /// How long it is of use, in milliseconds.
    pub(crate) expires_in: Option<u64>,
}

/// One life of the service: from its start until it is stopped or ends.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// How many members share the groups.
    pub(crate) members: u32,
    pub(crate) lasts: Duration,
    /// When its connections are cut, each after the one before.
    pub(crate) cuts: Vec<Duration>,
    pub(crate) end: Ending,
    /// How long there is no service afterwards.
    pub(crate) then: Duration,
}

/// How a life ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// Told to stop, with this deadline.
    Drained(Duration),
    /// Gone from one moment to the next.
    Dropped,
}

impl Scenario {
    /// What `seed` stands for.
    pub(crate) fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 1);
        let mut guards = Dice::new(seed, 9);
        let routes = (0..dice.between(1, 3)).map(|n| RoutePlan::roll(n, &mut dice, &mut guards)).collect();
        let lives = (0..dice.between(0, 5)).map(|_| Life::roll(&mut dice)).collect();
        // some runs are calm, so that what goes wrong without any fault is seen as well
        let mut chance = |most| if dice.happens(600) { dice.between(0, most) } else { 0 };
        let mut group = Dice::new(seed, 8);
        let mut of_group = |most| if group.happens(600) { group.between(0, most) } else { 0 };
        let chances = Chances {
            group_fails: of_group(200),
            group_slow: of_group(600),
            publish_fails: chance(80),
            confirm_lost: chance(60),
            duplicated: chance(100),
            disconnected: chance(15),
            delayed: chance(100),
            store_fails: chance(60),
            store_slow: chance(300),
        };
        Self {
            seed,
            messages: dice.between(10, 120),
            keys: dice.between(1, 6),
            pause_ms: dice.pick(&[0, 5, 40, 150]),
            bound: dice.between(8, 200) as usize,
            places: guards.between(1, 6) as usize,
            routes,
            lives,
            chances,
        }
    }
}

impl Scenario {
    /// Without slow groups, bulkheads and breakers.
    pub(crate) fn plain(mut self) -> Self {
        (self.chances.group_fails, self.chances.group_slow) = (0, 0);
        self.routes.iter_mut().for_each(|route| (route.guarded, route.breaks_after) = (false, None));
        self
    }

    /// What the message with this number is.
    pub(crate) fn draft(&self, number: u64) -> Draft {
        let mut dice = Dice::new(self.seed, 500_000 + number);
        let kind = match dice.between(0, 99) {
            0..=2 => Kind::Undecodable,
            3..=4 => Kind::OtherType,
            5..=6 => Kind::OtherVersion,
            _ => Kind::Good,
        };
        Draft {
            kind,
            key: dice.happens(800).then(|| format!("k{}", dice.between(1, self.keys))),
            has_business_key: dice.happens(300),
            expires_in: dice.happens(40).then(|| dice.pick(&[0, 100, 3_000])),
        }
    }
}

impl RoutePlan {
    fn roll(number: u64, dice: &mut Dice, guards: &mut Dice) -> Self {
        let order = dice.pick(&[Order::Key, Order::Key, Order::Partition, Order::None, Order::None]);
        let window = dice.between(2, 40) as usize;
        Self {
            group: format!("g{number}"),
            order,
            concurrency: dice.between(1, 8) as usize,
            workers: dice.pick(&[1, 1, 1, 3]),
            window,
            batch: dice.happens(250).then(|| dice.between(1, 8).min(window as u64) as usize),
            attempts: dice.between(1, 5) as u32,
            backoff_ms: dice.pick(&[0, 10, 200, 1_500]),
            durable: order == Order::None && dice.happens(500),
            ceiling: dice.happens(100),
            timeout: Duration::from_millis(dice.pick(&[30, 250, 2_000])),
            once: dice.happens(600),
            makes: dice.happens(400),
            drops_expired: dice.happens(300),
            has_dead_letters: !dice.happens(120),
            crash_limit: dice.between(1, 5) as u32,
            guarded: guards.happens(250),
            breaks_after: guards.happens(150).then(|| guards.between(1, 4) as u32),
        }
    }

    /// The channel of its dead letters.
    pub(crate) fn dead_letters(&self) -> String {
        format!("{WORK}.{}.dlq", self.group)
    }

    /// The same in the words of a program.
    pub(crate) fn options(&self, bulkhead: &Bulkhead) -> RouteOptions {
        let wait = Duration::from_millis(self.backoff_ms);
        let jitter = if self.backoff_ms == 200 { Jitter::Full } else { Jitter::None };
        let mut retry = Retry::new().attempts(self.attempts).backoff(Backoff::Fixed(wait)).jitter(jitter);
        if self.durable {
            retry = retry.durable();
        }
        if self.ceiling {
            retry = retry.max_elapsed(Duration::from_secs(2));
        }
        let mut options = RouteOptions::new(WORK, &*self.group)
            .order(self.order)
            .concurrency(self.concurrency)
            .workers(self.workers)
            .max_in_flight(self.window)
            .timeout(self.timeout)
            .retry(retry)
            .crash_limit(self.crash_limit);
        if let Some(most) = self.batch {
            options = options.batch(most);
        }
        if self.guarded {
            options = options.bulkhead(bulkhead);
        }
        if let Some(failures) = self.breaks_after {
            let policy = BreakerPolicy::new().consecutive_failures(failures);
            options = options.breaker(policy.open_for(Duration::from_millis(300)));
        }
        if self.once {
            options = options.idempotency(Idempotency::auto());
        }
        if self.makes {
            options = options.publishes(MADE);
        }
        if self.drops_expired {
            options = options.on_expired(OnExpired::Drop);
        }
        if self.has_dead_letters { options } else { options.no_dead_letter() }
    }
}

impl Life {
    fn roll(dice: &mut Dice) -> Self {
        let lasts = Duration::from_millis(dice.pick(&[20, 300, 3_000, 20_000]));
        let cuts = if dice.happens(300) { dice.between(1, 3) } else { 0 };
        let end = if dice.happens(500) {
            Ending::Dropped
        } else {
            Ending::Drained(Duration::from_millis(dice.pick(&[0, 20, 500, 5_000])))
        };
        Self {
            members: dice.pick(&[1, 1, 2]),
            lasts,
            cuts: (0..cuts).map(|_| Duration::from_millis(dice.between(1, 400))).collect(),
            end,
            then: Duration::from_millis(dice.pick(&[0, 1, 100, 4_000])),
        }
    }

    /// The last one: it lasts until nothing is left to do.
    pub(crate) fn last() -> Self {
        Self {
            members: 1,
            lasts: Duration::ZERO,
            cuts: Vec::new(),
            end: Ending::Drained(Duration::from_mins(1)),
            then: Duration::ZERO,
        }
    }
}
