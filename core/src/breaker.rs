//! A guard around calls that may fail for long: when too many have failed, it lets none through for a while, then a few to see.
//! It knows nothing of messages; what a route does with one is the runner's.

mod machine;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::env::Env;
pub(crate) use machine::Verdict;
use machine::{Machine, Permit};

/// When a breaker opens, and for how long.
///
/// ```
/// use std::time::Duration;
/// use postrider_core::BreakerPolicy;
/// let policy = BreakerPolicy::new()
///     .failure_rate(0.5, Duration::from_secs(10), 20)
///     .slow_calls(Duration::from_secs(1), 0.8)
///     .open_for(Duration::from_secs(30));
/// # let _ = policy;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerPolicy {
    rate: f64,
    window: Duration,
    min_calls: u32,
    consecutive: Option<u32>,
    slow: Option<(Duration, f64)>,
    open_for: Duration,
    probes: u32,
    timeout: Option<Duration>,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl BreakerPolicy {
    /// Opens when half of at least 20 calls in 10 s have failed; stays open for 30 s; then 3 calls must succeed. No time-out.
    pub fn new() -> Self {
        Self {
            rate: 0.5,
            window: Duration::from_secs(10),
            min_calls: 20,
            consecutive: None,
            slow: None,
            open_for: Duration::from_secs(30),
            probes: 3,
            timeout: None,
        }
    }

    /// The settings that are found in most textbooks: a time-out of 3 s, half of the calls failed, another try after 30 s.
    pub fn classical() -> Self {
        Self { probes: 1, ..Self::new().timeout(Duration::from_secs(3)) }
    }

    /// Opens when this part of the calls within a window has failed (above 0, up to 1), of at least so many (from 1).
    pub fn failure_rate(mut self, rate: f64, window: Duration, min_calls: u32) -> Self {
        self.rate = rate.clamp(f64::MIN_POSITIVE, 1.0);
        (self.window, self.min_calls) = (window.max(Duration::from_millis(1)), min_calls.max(1));
        self
    }

    /// Opens also when so many calls have failed one after the other, from 1.
    pub fn consecutive_failures(mut self, failures: u32) -> Self {
        self.consecutive = Some(failures.max(1));
        self
    }

    /// Opens also when this part of the calls within the window took longer than `limit`, whether they failed or not.
    pub fn slow_calls(mut self, limit: Duration, rate: f64) -> Self {
        self.slow = Some((limit, rate.clamp(f64::MIN_POSITIVE, 1.0)));
        self
    }

    /// For how long nothing is let through.
    pub fn open_for(mut self, time: Duration) -> Self {
        self.open_for = time;
        self
    }

    /// How many calls must succeed, one beside the other or one after the other, before all are let through again; from 1. A failed
    /// one opens it again.
    pub fn probes(mut self, probes: u32) -> Self {
        self.probes = probes.max(1);
        self
    }

    /// A call that takes longer is given up, and has failed. Of a route it shortens the attempts: the shorter of both time-outs holds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn call_timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

/// How a breaker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// Every call is let through.
    #[default]
    Closed,
    /// None is.
    Open,
    /// A few are, to see.
    HalfOpen,
}

/// Why a guarded call has no result.
#[derive(Debug, PartialEq, Eq)]
pub enum BreakerError<E> {
    /// The call wasn't made; another is let through after this time at the earliest.
    Open(Duration),
    /// The call was given up when its time was over.
    TimedOut(Duration),
    /// The call's own error.
    Failed(E),
}

impl<E: fmt::Display> fmt::Display for BreakerError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(left) => {
                write!(f, "the circuit breaker is open for another {left:?}; the call wasn't made")
            }
            Self::TimedOut(limit) => write!(f, "the call took longer than {limit:?} and was given up"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for BreakerError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => error.source(),
            Self::Open(_) | Self::TimedOut(_) => None,
        }
    }
}

/// A circuit breaker. Clones share it, so give the same one to everybody who calls the same service.
///
/// ```
/// use postrider_core::{Breaker, BreakerError, BreakerPolicy};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let breaker = Breaker::new(BreakerPolicy::new().consecutive_failures(2));
/// for _ in 0..2 {
///     let failed = breaker.call(async { Err::<(), _>("no answer") }).await;
///     assert_eq!(failed, Err(BreakerError::Failed("no answer")));
/// }
/// // not even tried
/// let refused = breaker.call(async { Ok::<_, &str>(()) }).await;
/// assert!(matches!(refused, Err(BreakerError::Open(_))));
/// # }
/// ```
#[derive(Clone)]
pub struct Breaker(Arc<Inner>);

struct Inner {
    machine: Mutex<Machine>,
    state: watch::Sender<BreakerState>,
    /// Tells those who wait for their turn: of changes, and of probes that ended without a verdict.
    turns: watch::Sender<()>,
    env: Env,
}

impl Breaker {
    /// A closed breaker, by the machine's clock.
    pub fn new(policy: BreakerPolicy) -> Self {
        Self::with(policy, Env::system())
    }

    /// The same, by the clock of `env`.
    pub fn with(policy: BreakerPolicy, env: Env) -> Self {
        let machine = Mutex::new(Machine::new(policy, env.now()));
        let (state, turns) = (watch::Sender::new(BreakerState::Closed), watch::Sender::new(()));
        Self(Arc::new(Inner { machine, state, turns, env }))
    }

    /// How it is. An open breaker whose time is over stays open until the next call asks.
    pub fn state(&self) -> BreakerState {
        *self.0.state.borrow()
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<BreakerState> {
        self.0.state.subscribe()
    }

    /// After which time it lets a probe through; `None` unless it is open.
    pub fn probes_in(&self) -> Option<Duration> {
        let now = self.0.env.now();
        match self.machine().peek(now) {
            Err(left) if !left.is_zero() => Some(left),
            _ => None,
        }
    }

    /// Makes the call if calls are let through; every error counts as a failure.
    ///
    /// # Errors
    /// [`BreakerError`]; with `Open` nothing of the future was polled.
    ///
    /// # Cancel safety
    /// Dropped, the call counts as neither, and its place among the probes is free again.
    pub async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, BreakerError<E>> {
        self.call_if(|_| true, call).await
    }

    /// The same, where only some errors are the other side's fault: the others count as successes.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn call_if<T, E>(
        &self,
        counts: impl FnOnce(&E) -> bool,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, BreakerError<E>> {
        let mut guard = self.enter().map_err(BreakerError::Open)?;
        let limit = self.machine().policy().timeout;
        let outcome = match limit {
            None => Ok(call.await),
            Some(limit) => tokio::select! {
                biased;
                outcome = call => Ok(outcome),
                () = self.0.env.sleep(limit) => Err(limit),
            },
        };
        match outcome {
            Err(limit) => {
                guard.ended(Verdict::Failed);
                Err(BreakerError::TimedOut(limit))
            }
            Ok(Ok(value)) => {
                guard.ended(Verdict::Succeeded);
                Ok(value)
            }
            Ok(Err(error)) => {
                guard.ended(if counts(&error) { Verdict::Failed } else { Verdict::Succeeded });
                Err(BreakerError::Failed(error))
            }
        }
    }

    /// Lets a call begin; else says after which time to ask again, with nothing when it is the calls under way that decide.
    pub(crate) fn enter(&self) -> Result<Guard, Duration> {
        let began = self.0.env.now();
        let permit = self.change(|machine| machine.admit(began))?;
        Ok(Guard { breaker: self.clone(), permit: Some(permit), began })
    }

    /// What [`enter`](Self::enter) would answer.
    pub(crate) fn peek(&self) -> Result<(), Duration> {
        let now = self.0.env.now();
        self.machine().peek(now)
    }

    /// Tells when it may be worth to ask again.
    pub(crate) fn turns(&self) -> watch::Receiver<()> {
        self.0.turns.subscribe()
    }

    pub(crate) fn call_timeout(&self) -> Option<Duration> {
        self.machine().policy().timeout
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the machine, and tells of it while it can't change again.
    fn change<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machine = self.machine();
        let out = change(&mut machine);
        let now = machine.state();
        if self.0.state.send_if_modified(|state| std::mem::replace(state, now) != now) {
            self.0.turns.send_replace(());
        }
        out
    }
}

/// The same breaker, not one that is alike.
impl PartialEq for Breaker {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Breaker").field(&self.state()).finish()
    }
}

/// A call under way; dropped without a verdict, it was cancelled.
#[derive(Debug)]
pub(crate) struct Guard {
    breaker: Breaker,
    permit: Option<Permit>,
    began: Instant,
}

impl Guard {
    /// The call begins only now.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.began = now;
    }

    /// Whether the breaker is still in the state that let the call through.
    pub(crate) fn holds(&self) -> bool {
        self.permit.is_some_and(|permit| self.breaker.machine().holds(permit))
    }

    pub(crate) fn ended(&mut self, verdict: Verdict) {
        if let Some(permit) = self.permit.take() {
            let now = self.breaker.0.env.now();
            let took = now.saturating_duration_since(self.began);
            self.breaker.change(|machine| machine.ended(permit, verdict, took, now));
            if verdict == Verdict::Cancelled {
                // a probe's place may be free, which is no change of state
                self.breaker.0.turns.send_replace(());
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.ended(Verdict::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker(policy: BreakerPolicy) -> Breaker {
        Breaker::with(policy, Env::seeded(1))
    }

    async fn fail(breaker: &Breaker) -> Result<(), BreakerError<&'static str>> {
        breaker.call(async { Err("no answer") }).await
    }

    async fn succeed(breaker: &Breaker) -> Result<(), BreakerError<&'static str>> {
        breaker.call(async { Ok(()) }).await
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_waits_probes_and_closes() {
        let breaker = breaker(BreakerPolicy::new().failure_rate(0.5, 10 * SECOND, 4).probes(2));
        let mut states = breaker.watch();
        for _ in 0..2 {
            succeed(&breaker).await.unwrap();
            fail(&breaker).await.unwrap_err();
        }
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(succeed(&breaker).await, Err(BreakerError::Open(30 * SECOND)));
        tokio::time::advance(30 * SECOND).await;
        fail(&breaker).await.unwrap_err();
        assert_eq!(
            succeed(&breaker).await,
            Err(BreakerError::Open(30 * SECOND)),
            "a failed probe opens it again"
        );
        tokio::time::advance(30 * SECOND).await;
        succeed(&breaker).await.unwrap();
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        succeed(&breaker).await.unwrap();
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(states.has_changed().unwrap() && *states.borrow_and_update() == BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_probe_gives_its_place_back() {
        let breaker = breaker(BreakerPolicy::new().consecutive_failures(1).probes(1));
        fail(&breaker).await.unwrap_err();
        tokio::time::advance(30 * SECOND).await;
        let hanging = breaker.call(std::future::pending::<Result<(), &str>>());
        tokio::time::timeout(SECOND, hanging).await.expect_err("it hangs");
        succeed(&breaker).await.expect("the place is free");
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_has_failed_and_what_counts_is_the_caller_s() {
        let breaker = breaker(BreakerPolicy::classical().consecutive_failures(2));
        for _ in 0..9 {
            let mine =
                breaker.call_if(|error| *error != "my fault", async { Err::<(), _>("my fault") }).await;
            assert_eq!(mine, Err(BreakerError::Failed("my fault")));
        }
        for _ in 0..2 {
            let late = breaker.call(std::future::pending::<Result<(), &str>>()).await;
            assert_eq!(late, Err(BreakerError::TimedOut(3 * SECOND)));
        }
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_successes_open_it_too() {
        let breaker =
            breaker(BreakerPolicy::new().failure_rate(1.0, 10 * SECOND, 4).slow_calls(SECOND, 0.75));
        succeed(&breaker).await.unwrap();
        for left in (0..3).rev() {
            let slow = async {
                tokio::time::sleep(SECOND + SECOND / 10).await;
                Ok::<_, &str>(())
            };
            breaker.call(slow).await.unwrap();
            assert_eq!(breaker.state() == BreakerState::Open, left == 0);
        }
    }
}
