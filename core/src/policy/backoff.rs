//! When to try again: attempts, back-off, jitter and the ceiling on it all. A pure function of what has happened.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{self, BoxError, Class};

/// How long retries can wait at a broker. A queue or topic for each is what brokers without timers of their own need, so every
/// wait is rounded up to one of these, on all brokers alike.
pub const RETRY_TIERS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_mins(1),
    Duration::from_mins(10),
    Duration::from_hours(1),
];

/// The number of the tier that keeps a message for at least `wait`; what is longer than the last goes there, too.
pub fn retry_tier(wait: Duration) -> usize {
    RETRY_TIERS.iter().position(|tier| wait <= *tier).unwrap_or(RETRY_TIERS.len() - 1)
}

/// How long to wait before the next attempt, before jitter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backoff {
    /// Always the same.
    Fixed(Duration),
    /// `first`, then twice as long each time, up to `max`.
    Exponential {
        /// Before the second attempt.
        first: Duration,
        /// The longest wait.
        max: Duration,
    },
    /// One for each further attempt; the last one repeats.
    List(Vec<Duration>),
}

impl Backoff {
    /// `first`, then twice as long each time, up to `max`.
    pub fn exponential(first: Duration, max: Duration) -> Self {
        Self::Exponential { first, max }
    }

    /// The wait after attempt number `attempt` (from 1) has failed, before jitter.
    pub fn after(&self, attempt: u32) -> Duration {
        let step = attempt.saturating_sub(1);
        match self {
            Self::Fixed(wait) => *wait,
            Self::Exponential { first, max } => {
                first.saturating_mul(1_u32.checked_shl(step).unwrap_or(u32::MAX)).min(*max)
            }
            Self::List(waits) => waits.get(step as usize).or(waits.last()).copied().unwrap_or_default(),
        }
    }

    /// After this many attempts the wait stays the same. (The factor of an exponential back-off has 32 bits.)
    fn steps(&self) -> u32 {
        match self {
            Self::Fixed(_) => 0,
            Self::Exponential { .. } => u32::BITS,
            Self::List(waits) => u32::try_from(waits.len()).unwrap_or(u32::MAX),
        }
    }

    pub(crate) fn longest(&self) -> Duration {
        match self {
            Self::Fixed(wait) => *wait,
            Self::Exponential { max, .. } => *max,
            Self::List(waits) => waits.iter().max().copied().unwrap_or_default(),
        }
    }
}

/// How waits are spread, so that what failed together isn't tried again together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Jitter {
    /// Anything from nothing to the whole wait.
    #[default]
    Full,
    /// From the first wait to three times the one before, up to the longest.
    Decorrelated,
    /// None: the wait is exactly the back-off's.
    None,
}

/// How often and how patiently a message is tried.
///
/// ```
/// use std::time::Duration;
/// use postrider_core::{Backoff, Class, Jitter, Retry, Verdict};
/// let retry = Retry::new().attempts(2).backoff(Backoff::Fixed(Duration::from_secs(1))).jitter(Jitter::None);
/// let nothing = Duration::ZERO;
/// assert_eq!(retry.verdict(1, nothing, nothing, Class::Retry(None), 0), Verdict::Again(Duration::from_secs(1)));
/// assert_eq!(retry.verdict(2, nothing, nothing, Class::Retry(None), 0), Verdict::GiveUp);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    attempts: u32,
    backoff: Backoff,
    jitter: Jitter,
    max_elapsed: Option<Duration>,
    durable: bool,
    only_if: Option<OnlyIf>,
}

/// Which errors of a handler are worth another attempt.
#[derive(Clone)]
pub struct OnlyIf(Arc<Predicate>);

type Predicate = dyn Fn(&(dyn StdError + 'static)) -> bool + Send + Sync;

impl OnlyIf {
    /// Whether another attempt may help. It is asked of the error as the handler returned it, without a mark that was put on it.
    pub(crate) fn holds(&self, error: &BoxError) -> bool {
        (self.0)(error::unmarked(&**error))
    }
}

impl fmt::Debug for OnlyIf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnlyIf")
    }
}

impl PartialEq for OnlyIf {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OnlyIf {}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another attempt after this wait.
    Again(Duration),
    /// To the dead letters.
    GiveUp,
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

impl Retry {
    /// Five attempts in all, exponential from 200 ms to 30 s, full jitter, no ceiling on the total.
    pub fn new() -> Self {
        let backoff = Backoff::exponential(Duration::from_millis(200), Duration::from_secs(30));
        Self { attempts: 5, backoff, jitter: Jitter::Full, max_elapsed: None, durable: false, only_if: None }
    }

    /// A single attempt.
    pub fn never() -> Self {
        Self::new().attempts(1)
    }

    /// How many attempts in all, the first included; at least 1.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How long to wait between them.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How the waits are spread.
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// No attempt begins later than this after the first one began.
    pub fn max_elapsed(mut self, ceiling: Duration) -> Self {
        self.max_elapsed = Some(ceiling);
        self
    }

    /// Only errors for which this holds are worth another attempt; the others go to the dead letters at once, as if they were marked
    /// [permanent](crate::Classify::permanent). It is asked of what a handler returns, not of panics and time-outs, which are
    /// always retried.
    ///
    /// ```
    /// use std::io::{Error, ErrorKind};
    /// use postrider_core::Retry;
    /// let retry = Retry::new().only_if(|error| {
    ///     error.downcast_ref::<Error>().is_none_or(|error| error.kind() != ErrorKind::InvalidData)
    /// });
    /// # let _ = retry;
    /// ```
    pub fn only_if(
        mut self,
        predicate: impl Fn(&(dyn StdError + 'static)) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.only_if = Some(OnlyIf(Arc::new(predicate)));
        self
    }

    pub(crate) fn asks(&self) -> Option<&OnlyIf> {
        self.only_if.as_ref()
    }

    /// Retries wait at the broker and outlive the process, attempts counted. Only with [`Order::None`](crate::Order::None): a message
    /// that waits elsewhere has lost its place. Waits are rounded up to the next of [`RETRY_TIERS`].
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Whether retries wait at the broker.
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// The longest wait that the back-off can ask for.
    pub fn longest_wait(&self) -> Duration {
        self.backoff.longest()
    }

    /// How many attempts in all.
    pub fn max_attempts(&self) -> u32 {
        self.attempts
    }

    /// What follows attempt number `attempt` (from 1), which failed with `class` when `elapsed` had passed since the first
    /// one began; `previous` is the wait before it, `random` any random number.
    pub fn verdict(
        &self,
        attempt: u32,
        elapsed: Duration,
        previous: Duration,
        class: Class,
        random: u64,
    ) -> Verdict {
        let advised = match class {
            Class::Permanent => return Verdict::GiveUp,
            Class::Retry(advised) => advised.unwrap_or_default(),
        };
        if attempt >= self.attempts {
            return Verdict::GiveUp;
        }
        let wait = self.kept(self.spread(attempt, previous, random).max(advised));
        match self.max_elapsed {
            Some(ceiling) if elapsed.saturating_add(wait) > ceiling => Verdict::GiveUp,
            _ => Verdict::Again(wait),
        }
    }

    /// The longest that one message can take: every attempt at its time-out, every wait at its longest. What a handler
    /// [advises](crate::Classify::retry_after) beyond the back-off isn't known before, and only bounded by
    /// [`max_elapsed`](Self::max_elapsed).
    pub fn worst_case(&self, timeout: Duration) -> Duration {
        let waits = self.attempts - 1;
        let waits = match self.jitter {
            Jitter::Decorrelated => self.kept(self.backoff.longest()).saturating_mul(waits),
            Jitter::Full | Jitter::None => {
                let (steps, last) = (waits.min(self.backoff.steps()), self.backoff.after(u32::MAX));
                let first: Duration = (1..=steps).fold(Duration::ZERO, |sum, attempt| {
                    sum.saturating_add(self.kept(self.backoff.after(attempt)))
                });
                first.saturating_add(self.kept(last).saturating_mul(waits - steps))
            }
        };
        let whole = timeout.saturating_mul(self.attempts).saturating_add(waits);
        // the ceiling bounds when the last attempt begins, which may then take its time-out
        self.max_elapsed.map_or(whole, |ceiling| whole.min(ceiling.saturating_add(timeout)))
    }

    /// The longest that one message stays with a member: the same, but for waits that are spent at the broker.
    pub fn longest_hold(&self, timeout: Duration) -> Duration {
        if self.durable { timeout } else { self.worst_case(timeout) }
    }

    /// The wait as it will be: at a broker, in its tiers.
    fn kept(&self, wait: Duration) -> Duration {
        if self.durable { RETRY_TIERS[retry_tier(wait)] } else { wait }
    }

    fn spread(&self, attempt: u32, previous: Duration, random: u64) -> Duration {
        let wait = self.backoff.after(attempt);
        match self.jitter {
            Jitter::None => wait,
            Jitter::Full => between(Duration::ZERO, wait, random),
            Jitter::Decorrelated => {
                let first = self.backoff.after(1);
                between(first, previous.max(first).saturating_mul(3), random).min(self.backoff.longest())
            }
        }
    }
}

/// A duration from `low` to `high`, both included, that `random` picks.
fn between(low: Duration, high: Duration, random: u64) -> Duration {
    let span = high.saturating_sub(low).as_nanos();
    let (random, whole) = (u128::from(random), u128::from(u64::MAX));
    // the longest durations times the largest number are more than 128 bits
    let part = span / whole * random + span % whole * random / whole;
    low.saturating_add(Duration::from_nanos(u64::try_from(part).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_retry() -> impl Strategy<Value = Retry> {
        let ms = |n: u64| Duration::from_millis(n);
        let backoff = prop_oneof![
            (0..5000_u64).prop_map(move |n| Backoff::Fixed(ms(n))),
            (0..5000_u64, 0..60_000_u64).prop_map(move |(a, b)| Backoff::exponential(ms(a), ms(a + b))),
            prop::collection::vec((0..5000_u64).prop_map(ms), 1..5).prop_map(Backoff::List),
        ];
        let jitter = prop_oneof![Just(Jitter::None), Just(Jitter::Full), Just(Jitter::Decorrelated)];
        (1..40_u32, backoff, jitter, prop::option::of((0..100_000_u64).prop_map(ms))).prop_map(
            |(n, b, j, max)| {
                let retry = Retry::new().attempts(n).backoff(b).jitter(j);
                max.map_or(retry.clone(), |max| retry.max_elapsed(max))
            },
        )
    }

    proptest! {
        #[test]
        fn a_message_that_always_fails_ends_within_its_attempts_and_its_worst_case(retry in any_retry(), seed in any::<u64>(), took in 0..1000_u64) {
            let env = crate::Env::seeded(seed);
            let timeout = Duration::from_millis(took);
            let (mut attempt, mut elapsed, mut wait) = (1, Duration::ZERO, Duration::ZERO);
            loop {
                elapsed += timeout;
                match retry.verdict(attempt, elapsed, wait, Class::Retry(None), env.random()) {
                    Verdict::GiveUp => break,
                    Verdict::Again(next) => {
                        prop_assert!(next <= retry.backoff.longest());
                        (wait, elapsed, attempt) = (next, elapsed + next, attempt + 1);
                    }
                }
                prop_assert!(attempt <= retry.max_attempts());
            }
            prop_assert!(elapsed <= retry.worst_case(timeout), "{elapsed:?} > {:?}", retry.worst_case(timeout));
        }

        #[test]
        fn the_worst_case_is_the_sum_of_all_waits(retry in any_retry(), durable in any::<bool>(), attempts in 1..200_u32, many in 200..=u32::MAX, took in 0..1000_u64) {
            let retry = if durable { retry.durable() } else { retry };
            let mut retry = Retry { max_elapsed: None, ..retry };
            let timeout = Duration::from_millis(took);
            let wait = |retry: &Retry, attempt| match retry.jitter {
                Jitter::Decorrelated => retry.kept(retry.backoff.longest()),
                Jitter::Full | Jitter::None => retry.kept(retry.backoff.after(attempt)),
            };
            retry = retry.attempts(attempts);
            let sum = (1..attempts).fold(timeout * attempts, |sum, attempt| sum + wait(&retry, attempt));
            prop_assert_eq!(retry.worst_case(timeout), sum);
            // added one by one, so many would take minutes for each case
            let more = (timeout + wait(&retry, u32::MAX)) * (many - 200);
            let few = retry.clone().attempts(200).worst_case(timeout);
            prop_assert_eq!(retry.attempts(many).worst_case(timeout), few + more);
        }

        #[test]
        fn advice_is_never_undercut_and_permanent_never_retried(retry in any_retry(), advice in 0..10_000_u64, random in any::<u64>()) {
            let advice = Duration::from_millis(advice);
            if let Verdict::Again(wait) = retry.verdict(1, Duration::ZERO, Duration::ZERO, Class::Retry(Some(advice)), random) {
                prop_assert!(wait >= advice);
            }
            prop_assert_eq!(retry.verdict(1, Duration::ZERO, Duration::ZERO, Class::Permanent, random), Verdict::GiveUp);
        }
    }

    #[test]
    fn durable_waits_are_rounded_up_to_a_tier() {
        let s = Duration::from_secs;
        let tiers = [(0, 1), (1, 1), (2, 10), (10, 10), (11, 60), (601, 3600), (3600, 3600), (9999, 3600)];
        for (wait, tier) in tiers {
            assert_eq!(RETRY_TIERS[retry_tier(s(wait))], s(tier), "{wait}");
            let retry = Retry::new().backoff(Backoff::Fixed(s(wait))).jitter(Jitter::None).durable();
            let verdict = retry.verdict(1, s(0), s(0), Class::Retry(None), 0);
            assert_eq!(verdict, Verdict::Again(s(tier)));
            assert_eq!(retry.attempts(2).worst_case(s(5)), s(10 + tier));
        }
    }

    #[test]
    fn the_worst_case_of_attempts_without_end_is_found_in_few_steps() {
        let exponential = Backoff::exponential(Duration::from_millis(200), Duration::from_secs(30));
        assert!(exponential.steps() <= 32 && Backoff::Fixed(Duration::MAX).steps() == 0);
        let retry = Retry::new().attempts(u32::MAX).backoff(exponential);
        // 0.2 + 0.4 + … + 25.6 s, and from there on 30 s each; the time-outs
        let waits = Duration::from_secs(51) + Duration::from_secs(30) * (u32::MAX - 1 - 8);
        assert_eq!(retry.worst_case(Duration::from_secs(1)), waits + Duration::from_secs(1) * u32::MAX);
        assert_eq!(retry.worst_case(Duration::MAX), Duration::MAX);
        assert_eq!(retry.backoff(Backoff::Fixed(Duration::MAX)).worst_case(Duration::ZERO), Duration::MAX);
    }

    #[test]
    fn jitter_spreads_the_longest_waits_too() {
        let most = Duration::from_nanos(u64::MAX);
        assert_eq!(between(Duration::ZERO, Duration::MAX, u64::MAX), most);
        assert_eq!(between(Duration::MAX, Duration::MAX, u64::MAX), Duration::MAX);
        assert_eq!(
            between(Duration::ZERO, Duration::from_secs(8), u64::MAX / 4),
            Duration::from_nanos(1_999_999_999)
        );
        let retry = Retry::new().backoff(Backoff::Fixed(Duration::MAX)).jitter(Jitter::Decorrelated);
        let verdict = retry.verdict(1, Duration::MAX, Duration::MAX, Class::Retry(None), u64::MAX);
        assert_eq!(verdict, Verdict::Again(Duration::MAX));
    }

    #[test]
    fn exponential_doubles_up_to_its_longest() {
        let backoff = Backoff::exponential(Duration::from_millis(200), Duration::from_secs(1));
        let waits: Vec<_> = [1, 2, 3, 4, 99].map(|n| backoff.after(n).as_millis()).into();
        assert_eq!(waits, [200, 400, 800, 1000, 1000]);
    }
}
