//! Time and chance, behind one handle, so that a test can replace both. No message and no broker here.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::id::MessageId;

/// What stands for a wait without a limit; tokio's timers do the same.
const FOREVER: Duration = Duration::from_hours(24 * 365 * 30);

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where time and chance come from. [`SystemSource`] is the machine's; [`SeededSource`] can be replayed.
pub trait Source: Send + Sync + 'static {
    /// The monotonic clock.
    fn now(&self) -> Instant;
    /// The wall clock, in milliseconds since the Unix epoch.
    fn wall_ms(&self) -> u64;
    /// A random number.
    fn random(&self) -> u64;
    /// Resolves after `duration` of this source's monotonic clock.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// A cheap handle to a [`Source`], which also makes message ids. Clones share the id counter.
#[derive(Clone)]
pub struct Env(Arc<Shared>);

struct Shared {
    source: Box<dyn Source>,
    origin: Arc<str>,
    base: u64,
    counter: AtomicU64,
}

impl Env {
    /// The machine's own clocks and randomness.
    pub fn system() -> Self {
        Self::new(SystemSource)
    }

    /// An environment that repeats itself for a seed; with tokio's paused clock, to the millisecond.
    pub fn seeded(seed: u64) -> Self {
        Self::new(SeededSource::new(seed))
    }

    /// An environment over any source.
    pub fn new(source: impl Source) -> Self {
        let base = source.random();
        let origin = Arc::from("/postrider");
        Self(Arc::new(Shared { source: Box::new(source), origin, base, counter: AtomicU64::new(0) }))
    }

    /// A message id in the layout of a `UUIDv7` ([RFC 9562]): `wall_ms`, then a random base plus a counter. It costs a
    /// few nanoseconds; no random number is drawn per message.
    ///
    /// [RFC 9562]: https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7
    pub fn new_id(&self, wall_ms: u64) -> MessageId {
        let count = self.0.counter.fetch_add(1, Relaxed);
        let low = self.0.base.wrapping_add(count);
        // 48 bits of time, version 7, 12 bits from the top of the base; then the variant and 62 bits of base + counter
        let high = (wall_ms << 16) | 0x7000 | (self.0.base >> 52);
        let id = (u128::from(high) << 64) | u128::from((1 << 63) | (low & (u64::MAX >> 2)));
        MessageId::Uuid(id.to_be_bytes())
    }

    /// The due time of a wait that begins now, in milliseconds since the Unix epoch. It is rounded up, so a reader whose clock
    /// shows this time has waited long enough.
    pub fn due_ms(&self, wait: Duration) -> u64 {
        if wait.is_zero() {
            return self.wall_ms();
        }
        let wait_ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        // the wall clock is cut to the millisecond: the true time may be almost a millisecond later
        self.wall_ms().saturating_add(1).saturating_add(wait_ms)
    }

    /// When `wait` is over, by the monotonic clock. What is longer than 30 years, such as `Duration::MAX` for "no limit", ends in 30 years:
    /// clocks can't count all durations.
    ///
    /// ```
    /// use std::time::Duration;
    /// use postrider_core::Env;
    /// let env = Env::system();
    /// assert!(env.deadline(Duration::MAX) > env.deadline(Duration::from_hours(24 * 365)));
    /// ```
    pub fn deadline(&self, wait: Duration) -> Instant {
        deadline_from(self.now(), wait)
    }

    /// The `CloudEvents` source that published messages carry when they name none: `/postrider` unless set.
    pub fn origin(&self) -> &Arc<str> {
        &self.0.origin
    }

    /// The same clock and randomness with another `CloudEvents` source, for an application that is told apart by it.
    pub fn with_origin(self, origin: impl Into<Arc<str>>) -> Self {
        struct Forward(Env);
        impl Source for Forward {
            fn now(&self) -> Instant {
                self.0.now()
            }
            fn wall_ms(&self) -> u64 {
                self.0.wall_ms()
            }
            fn random(&self) -> u64 {
                self.0.random()
            }
            fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
                self.0.sleep(duration)
            }
        }
        let base = self.random();
        Self(Arc::new(Shared {
            source: Box::new(Forward(self)),
            origin: origin.into(),
            base,
            counter: AtomicU64::new(0),
        }))
    }
}

/// [`Env::deadline`] for a wait that began at `from`.
pub fn deadline_from(from: Instant, wait: Duration) -> Instant {
    from + wait.min(FOREVER)
}

impl Deref for Env {
    type Target = dyn Source;

    fn deref(&self) -> &Self::Target {
        &*self.0.source
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("origin", &self.0.origin).finish_non_exhaustive()
    }
}

/// The machine's clocks and randomness. Its monotonic clock is tokio's, so that a paused clock is seen.
#[derive(Clone, Copy, Debug)]
pub struct SystemSource;

impl Source for SystemSource {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }

    fn random(&self) -> u64 {
        // each `RandomState` is keyed anew; the hash of a constant under it is as good as its keys
        RandomState::new().hash_one(0_u8)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A source that repeats itself: a fixed start of the wall clock, and random numbers from a seed (`SplitMix64`).
///
/// Its clock is tokio's, so under `#[tokio::test(start_paused = true)]` time passes only when everything waits.
#[derive(Debug)]
pub struct SeededSource {
    state: AtomicU64,
    start: Instant,
}

impl SeededSource {
    /// Where every seeded wall clock starts: 2026-01-01T00:00:00Z, in milliseconds since the Unix epoch.
    pub const START_MS: u64 = 1_767_225_600_000;

    /// A source whose whole future follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed), start: tokio::time::Instant::now().into_std() }
    }
}

impl Source for SeededSource {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn wall_ms(&self) -> u64 {
        Self::START_MS + self.now().saturating_duration_since(self.start).as_millis() as u64
    }

    fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_due_time_is_rounded_up_to_the_millisecond() {
        let env = Env::seeded(1);
        let due = |wait| env.due_ms(wait) - SeededSource::START_MS;
        assert_eq!(due(Duration::ZERO), 0);
        assert_eq!(due(Duration::from_nanos(1)), 2);
        assert_eq!(due(Duration::from_secs(1)), 1001);
        assert_eq!(due(Duration::from_micros(1_000_001)), 1002);
        assert_eq!(env.due_ms(Duration::MAX), u64::MAX);
        // 0.9 ms later the wall clock shows the same millisecond, and the due time is still not early
        tokio::time::advance(Duration::from_micros(900)).await;
        assert_eq!(due(Duration::from_secs(1)), 1001);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_without_a_limit_is_far_away() {
        let env = Env::seeded(1);
        let left = |wait| env.deadline(wait) - env.now();
        assert_eq!(left(Duration::from_nanos(7)), Duration::from_nanos(7));
        assert_eq!((left(FOREVER), left(Duration::MAX)), (FOREVER, FOREVER));
    }

    #[test]
    fn ids_have_the_layout_of_uuid_v7_and_never_repeat() {
        let env = Env::seeded(7);
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| env.new_id(0x0123_4567_89ab)).collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids {
            let MessageId::Uuid(bytes) = id else { panic!("not a UUID") };
            assert_eq!(bytes[..6], [0x01, 0x23, 0x45, 0x67, 0x89, 0xab]);
            assert_eq!((bytes[6] >> 4, bytes[8] >> 6), (7, 2));
        }
    }

    #[test]
    fn a_seed_repeats_itself() {
        let draw = |seed| {
            (0..5)
                .map({
                    let env = Env::seeded(seed);
                    move |_| env.random()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
