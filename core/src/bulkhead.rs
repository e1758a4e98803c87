//! A limit on how many calls run at once, and on how many wait for their turn. It knows nothing of messages.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::env::{BoxFuture, Env};

/// How many calls may run and wait.
///
/// ```
/// use std::time::Duration;
/// use postrider_core::BulkheadPolicy;
/// let policy = BulkheadPolicy::new(8).queue(100).wait(Duration::from_secs(2));
/// # let _ = policy;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BulkheadPolicy {
    concurrency: usize,
    queue: usize,
    wait: Option<Duration>,
}

impl BulkheadPolicy {
    /// `concurrency` calls at once, from 1; as many may wait, for as long as it takes.
    pub fn new(concurrency: usize) -> Self {
        let concurrency = concurrency.clamp(1, Semaphore::MAX_PERMITS);
        Self { concurrency, queue: concurrency, wait: None }
    }

    /// How many may wait for their turn; the next one is refused.
    pub fn queue(mut self, calls: usize) -> Self {
        self.queue = calls;
        self
    }

    /// For how long one waits at most before it is refused.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }
}

/// Why a call wasn't made, or failed.
#[derive(Debug, PartialEq, Eq)]
pub enum BulkheadError<E> {
    /// As many run and wait as may: the call wasn't made.
    Full,
    /// Its turn didn't come in this time: the call wasn't made.
    TimedOut(Duration),
    /// The call's own error.
    Failed(E),
}

impl<E: fmt::Display> fmt::Display for BulkheadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the bulkhead is full; the call wasn't made"),
            Self::TimedOut(limit) => {
                write!(f, "no place in the bulkhead was free within {limit:?}; the call wasn't made")
            }
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for BulkheadError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => error.source(),
            Self::Full | Self::TimedOut(_) => None,
        }
    }
}

/// A bulkhead. Clones share it: give the same one to everybody who is to share the places, handlers and
/// [routes](crate::RouteOptions::bulkhead) alike.
///
/// ```
/// use postrider_core::{Bulkhead, BulkheadError, BulkheadPolicy};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let bulkhead = Bulkhead::new(BulkheadPolicy::new(1).queue(0));
/// let inner = bulkhead.call(async { bulkhead.call(async { Ok::<_, &str>(1) }).await.map_err(|_| "refused") });
/// assert_eq!(inner.await, Err(BulkheadError::Failed("refused")));
/// assert_eq!(bulkhead.call(async { Ok::<_, &str>(1) }).await, Ok(1));
/// # }
/// ```
#[derive(Clone)]
pub struct Bulkhead(Arc<Inner>);

struct Inner {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    policy: BulkheadPolicy,
    env: Env,
}

/// A place in a bulkhead; free again when it is dropped.
pub(crate) type BulkheadPlace = OwnedSemaphorePermit;

impl Bulkhead {
    /// An empty bulkhead, by the machine's clock.
    pub fn new(policy: BulkheadPolicy) -> Self {
        Self::with(policy, Env::system())
    }

    /// The same, by the clock of `env`.
    pub fn with(policy: BulkheadPolicy, env: Env) -> Self {
        let places = Arc::new(Semaphore::new(policy.concurrency));
        Self(Arc::new(Inner { places, waiting: AtomicUsize::new(0), policy, env }))
    }

    /// How many places are free.
    pub fn free(&self) -> usize {
        self.0.places.available_permits()
    }

    /// Makes the call when there is a place; who came first goes first.
    ///
    /// # Errors
    /// [`BulkheadError`]; with `Full` and `TimedOut` nothing of the future was polled.
    ///
    /// # Cancel safety
    /// Dropped, it gives up its place, in the line or inside.
    pub async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, BulkheadError<E>> {
        let place = match self.try_place() {
            Some(place) => place,
            None => self.wait().await?,
        };
        let outcome = call.await;
        drop(place);
        outcome.map_err(BulkheadError::Failed)
    }

    async fn wait<E>(&self) -> Result<BulkheadPlace, BulkheadError<E>> {
        let inner = &*self.0;
        let joined =
            inner.waiting.fetch_update(Relaxed, Relaxed, |n| (n < inner.policy.queue).then_some(n + 1));
        if joined.is_err() {
            return Err(BulkheadError::Full);
        }
        let _line = Waiting(&inner.waiting);
        let place = self.place();
        let place = match inner.policy.wait {
            None => place.await,
            Some(limit) => tokio::select! {
                biased;
                place = place => place,
                () = inner.env.sleep(limit) => return Err(BulkheadError::TimedOut(limit)),
            },
        };
        place.ok_or(BulkheadError::Full)
    }

    /// A place, if one is free and nobody waits for it.
    pub(crate) fn try_place(&self) -> Option<BulkheadPlace> {
        Arc::clone(&self.0.places).try_acquire_owned().ok()
    }

    /// A place, when it is one's turn. `None` can't happen: nobody closes the bulkhead.
    pub(crate) fn place(&self) -> BoxFuture<'static, Option<BulkheadPlace>> {
        let places = Arc::clone(&self.0.places);
        Box::pin(async move { places.acquire_owned().await.ok() })
    }
}

/// One who waits, counted until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The same bulkhead, not one that is alike.
impl PartialEq for Bulkhead {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulkhead").field("policy", &self.0.policy).field("free", &self.free()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bulkhead(policy: BulkheadPolicy) -> Bulkhead {
        Bulkhead::with(policy, Env::seeded(1))
    }

    async fn work(bulkhead: &Bulkhead, time: Duration) -> Result<Duration, BulkheadError<&'static str>> {
        let began = tokio::time::Instant::now();
        let call = async {
            tokio::time::sleep(time).await;
            Ok(())
        };
        bulkhead.call(call).await.map(|()| began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_run_so_many_wait_and_the_next_is_refused() {
        let bulkhead = bulkhead(BulkheadPolicy::new(2).queue(1));
        let four = tokio::join!(
            work(&bulkhead, SECOND),
            work(&bulkhead, SECOND),
            work(&bulkhead, SECOND),
            work(&bulkhead, SECOND)
        );
        assert_eq!(four, (Ok(SECOND), Ok(SECOND), Ok(2 * SECOND), Err(BulkheadError::Full)));
        assert_eq!(bulkhead.free(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_refused_and_leaves_no_trace() {
        let bulkhead = bulkhead(BulkheadPolicy::new(1).queue(1).wait(SECOND));
        for _ in 0..2 {
            let two = tokio::join!(work(&bulkhead, 3 * SECOND), work(&bulkhead, SECOND));
            assert_eq!(two, (Ok(3 * SECOND), Err(BulkheadError::TimedOut(SECOND))));
        }
        // given up in the line, and inside
        let both = async { tokio::join!(work(&bulkhead, 3 * SECOND), work(&bulkhead, SECOND)) };
        tokio::time::timeout(SECOND / 2, both).await.expect_err("it takes longer");
        assert_eq!(
            tokio::join!(work(&bulkhead, SECOND / 2), work(&bulkhead, SECOND)),
            (Ok(SECOND / 2), Ok(SECOND * 3 / 2))
        );
    }
}
