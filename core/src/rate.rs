//! A limit on how many calls may begin in a time. What is over it waits; nothing fails. It knows nothing of messages.

mod bucket;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::env::Env;
use bucket::Bucket;

/// How many calls may begin in a time, and how many of them at once.
///
/// ```
/// use std::time::Duration;
/// use postrider_core::RatePolicy;
/// let policy = RatePolicy::new(100, Duration::from_secs(1)).burst(10);
/// # let _ = policy;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RatePolicy {
    limit: u32,
    per: Duration,
    burst: u32,
}

impl RatePolicy {
    /// `limit` calls (from 1) in each `per` (from 1 ms), one after the other: no two at once, unless [`burst`](Self::burst) says so.
    pub fn new(limit: u32, per: Duration) -> Self {
        Self { limit: limit.max(1), per: per.max(Duration::from_millis(1)), burst: 1 }
    }

    /// How many may begin at once after a quiet time, from 1; 1 unless set.
    pub fn burst(mut self, calls: u32) -> Self {
        self.burst = calls.max(1);
        self
    }
}

/// A rate limit: a token bucket. Clones share it, so give the same one to everybody who calls the same service.
///
/// ```
/// use std::time::{Duration, Instant};
/// use postrider_core::{RateLimit, RatePolicy};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let limit = RateLimit::new(RatePolicy::new(100, Duration::from_secs(1)).burst(2));
/// let began = Instant::now();
/// for n in 0..4 {
///     limit.call(async { println!("call {n}") }).await;
/// }
/// // two at once, then one each 10 ms
/// assert!(began.elapsed() >= Duration::from_millis(20));
/// # }
/// ```
#[derive(Clone)]
pub struct RateLimit(Arc<Inner>);

struct Inner {
    bucket: Mutex<Bucket>,
    /// Those who wait stand in line; it is fair.
    line: tokio::sync::Mutex<()>,
    env: Env,
}

impl RateLimit {
    /// A limit by the machine's clock.
    pub fn new(policy: RatePolicy) -> Self {
        Self::with(policy, Env::system())
    }

    /// The same, by the clock of `env`.
    pub fn with(policy: RatePolicy, env: Env) -> Self {
        let bucket = Mutex::new(Bucket::new(&policy, env.now()));
        Self(Arc::new(Inner { bucket, line: tokio::sync::Mutex::new(()), env }))
    }

    /// Waits until one more call may begin; who came first goes first.
    ///
    /// # Cancel safety
    /// Dropped while it waits, it loses its place in the line and takes nothing.
    pub async fn acquire(&self) {
        let _turn = self.0.line.lock().await;
        while let Err(wait) = self.try_acquire() {
            self.0.env.sleep(wait).await;
        }
    }

    /// Takes the right to one more call if there is one, past all who wait.
    ///
    /// # Errors
    /// After which time to ask again.
    pub fn try_acquire(&self) -> Result<(), Duration> {
        let now = self.0.env.now();
        let mut bucket = self.bucket();
        bucket.peek(now)?;
        bucket.take(1, now);
        Ok(())
    }

    /// Makes the call when it may begin.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire); a call that has begun has taken its right.
    pub async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.acquire().await;
        call.await
    }

    /// Whether one more may begin now; else after which time to ask again.
    pub(crate) fn peek(&self) -> Result<(), Duration> {
        self.bucket().peek(self.0.env.now())
    }

    /// Takes several rights, more than there are as well: those that are missing are waited for before the next call.
    pub(crate) fn take(&self, calls: usize) {
        self.bucket().take(calls, self.0.env.now());
    }

    /// Gives back what was taken for calls that weren't made.
    pub(crate) fn give_back(&self, calls: usize) {
        self.bucket().give_back(calls);
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.0.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same limit, not one that is alike.
impl PartialEq for RateLimit {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RateLimit").field(&*self.bucket()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_in_turn_and_who_gives_up_takes_nothing() {
        let limit = RateLimit::with(RatePolicy::new(1, SECOND), Env::seeded(1));
        let began = tokio::time::Instant::now();
        limit.acquire().await;
        tokio::time::timeout(SECOND / 2, limit.acquire()).await.expect_err("it is too early");
        let order = Mutex::new(Vec::new());
        let wait = async |name| {
            limit.acquire().await;
            order.lock().unwrap().push((name, began.elapsed()));
        };
        tokio::join!(wait("a"), wait("b"), wait("c"));
        assert_eq!(*order.lock().unwrap(), [("a", SECOND), ("b", 2 * SECOND), ("c", 3 * SECOND)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_ahead_is_waited_for() {
        let limit = RateLimit::with(RatePolicy::new(10, SECOND).burst(5), Env::seeded(1));
        limit.take(25);
        assert_eq!(limit.try_acquire(), Err(SECOND * 21 / 10));
        limit.give_back(20);
        assert_eq!(limit.try_acquire(), Err(SECOND / 10));
        tokio::time::advance(SECOND / 10).await;
        assert_eq!(limit.try_acquire(), Ok(()));
    }
}
