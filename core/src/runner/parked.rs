//! What a crew keeps of an attempt that waits: how it is told to end, and until when it may wait. What is at work in it is `crew`'s.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::task::coop::{Unconstrained, unconstrained};

use crate::env::{BoxFuture, Env};

/// So many deadlines of attempts that are over may stand in the queue besides two for each that waits.
const STALE: usize = 64;

/// How it is with an attempt that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Its handler is at work, or was done before it was parked, and no deadline was set.
    Waits = 0,
    /// Its handler is done: no deadline holds any more.
    Done = 1,
    /// Its handler took too long.
    Overdue = 2,
    /// It is to end, whatever it does.
    Cancelled = 3,
}

/// An attempt that waits, for its crew and for itself.
#[derive(Debug)]
pub(super) struct Parked {
    state: AtomicU8,
    waker: AtomicWaker,
}

impl Parked {
    pub(super) fn new() -> Self {
        Self { state: AtomicU8::new(State::Waits as u8), waker: AtomicWaker::new() }
    }

    /// How it is; and `cx` is woken when the attempt is told to end.
    pub(super) fn poll_state(&self, cx: &Context<'_>) -> State {
        self.waker.register(cx.waker());
        self.state()
    }

    /// It has ended: nobody has to be woken, and who would be need not be kept.
    pub(super) fn ended(&self) {
        self.done();
        drop(self.waker.take());
    }

    /// Its handler is done.
    pub(super) fn done(&self) {
        self.change(State::Waits, State::Done);
    }

    pub(super) fn cancel(&self) {
        self.state.store(State::Cancelled as u8, Relaxed);
        self.waker.wake();
    }

    /// Answers whether it is news.
    fn overdue(&self) -> bool {
        let waited = self.change(State::Waits, State::Overdue);
        if waited {
            self.waker.wake();
        }
        waited
    }

    fn change(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Relaxed, Relaxed).is_ok()
    }

    fn state(&self) -> State {
        match self.state.load(Relaxed) {
            0 => State::Waits,
            1 => State::Done,
            2 => State::Overdue,
            _ => State::Cancelled,
        }
    }
}

/// The deadlines of a crew's attempts. All have one time-out, so they stand in the order in which they began, and one timer does for
/// all of them.
pub(super) struct Deadlines {
    timeout: Duration,
    queue: VecDeque<(Instant, Arc<Parked>)>,
    /// Rings at that time.
    timer: Option<(Instant, Unconstrained<BoxFuture<'static, ()>>)>,
}

impl Deadlines {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, queue: VecDeque::new(), timer: None }
    }

    /// One more has begun, besides `waiting` that wait.
    pub(super) fn push(&mut self, env: &Env, parked: Arc<Parked>, waiting: usize) {
        // what is done stays where it is until so much of it is there that it pays to look for it
        if self.queue.len() >= 2 * waiting + STALE {
            self.queue.retain(|(_, parked)| parked.state() == State::Waits);
        }
        // a time-out beyond all clocks is none
        if let Some(deadline) = env.now().checked_add(self.timeout) {
            self.queue.push_back((deadline, parked));
        }
    }

    /// Ready when attempts have become overdue, which are woken.
    pub(super) fn poll(&mut self, env: &Env, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            while self.queue.front().is_some_and(|(_, parked)| parked.state() != State::Waits) {
                self.queue.pop_front();
            }
            let Some(&(deadline, _)) = self.queue.front() else {
                self.timer = None;
                return Poll::Pending;
            };
            // the timer may be that of an attempt that is over: then it is early, and made anew. It rings whatever is left of the task's
            // budget: who uses that up, again and again, must not keep the others from their time-outs
            let (rings, timer) = self.timer.get_or_insert_with(|| {
                let wait = deadline.saturating_duration_since(env.now());
                (deadline, unconstrained(env.sleep(wait)))
            });
            ready!(Pin::new(timer).poll(cx));
            // a clock that is a little behind its own timers is believed to be there
            let now = env.now().max(*rings);
            self.timer = None;
            let mut news = false;
            while let Some((_, parked)) = self.queue.pop_front_if(|(deadline, _)| *deadline <= now) {
                news |= parked.overdue();
            }
            if news {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt as _;
    use tokio::task::coop::{consume_budget, has_budget_remaining};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn begin(deadlines: &mut Deadlines, env: &Env, waiting: usize) -> Arc<Parked> {
        let parked = Arc::new(Parked::new());
        deadlines.push(env, Arc::clone(&parked), waiting);
        parked
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_overdue_at_its_own_time_and_what_is_done_never() {
        let (env, mut deadlines) = (Env::seeded(1), Deadlines::new(10 * SECOND));
        let (start, mut began) = (env.now(), Vec::new());
        for _ in 0..4 {
            began.push(begin(&mut deadlines, &env, began.len()));
            tokio::time::advance(SECOND).await;
        }
        began[0].done();
        began[2].cancel();
        let states = || [0, 1, 2, 3].map(|at: usize| began[at].state());
        poll_fn(|cx| deadlines.poll(&env, cx)).await;
        assert_eq!((env.now() - start).as_secs(), 11);
        assert_eq!(states(), [State::Done, State::Overdue, State::Cancelled, State::Waits]);
        poll_fn(|cx| deadlines.poll(&env, cx)).await;
        assert_eq!((env.now() - start).as_secs(), 13);
        assert_eq!(states(), [State::Done, State::Overdue, State::Cancelled, State::Overdue]);
        // no timer is left behind, which a paused clock would run to
        assert!(poll_fn(|cx| deadlines.poll(&env, cx)).now_or_never().is_none());
        assert!(deadlines.timer.is_none() && deadlines.queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_long_keeps_few_of_those_that_are_over() {
        let (env, mut deadlines) = (Env::seeded(1), Deadlines::new(10 * SECOND));
        let slow = begin(&mut deadlines, &env, 0);
        let mut most = 0;
        for _ in 0..10_000 {
            begin(&mut deadlines, &env, 1).done();
            most = most.max(deadlines.queue.len());
        }
        assert_eq!(most, 2 + STALE);
        assert!(poll_fn(|cx| deadlines.poll(&env, cx)).now_or_never().is_none());
        poll_fn(|cx| deadlines.poll(&env, cx)).await;
        assert_eq!(slow.state(), State::Overdue);
    }

    #[tokio::test(start_paused = true)]
    async fn the_timer_rings_also_when_the_tasks_budget_is_used_up() {
        let (env, mut deadlines) = (Env::seeded(1), Deadlines::new(SECOND));
        let parked = begin(&mut deadlines, &env, 0);
        assert!(poll_fn(|cx| Poll::Ready(deadlines.poll(&env, cx))).await.is_pending());
        tokio::time::advance(SECOND).await;
        let polled = poll_fn(|cx| {
            while has_budget_remaining() {
                let _ = std::pin::pin!(consume_budget()).poll(cx);
            }
            Poll::Ready(deadlines.poll(&env, cx))
        });
        assert!(polled.await.is_ready());
        assert_eq!(parked.state(), State::Overdue);
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_out_beyond_all_clocks_is_none() {
        let (env, mut deadlines) = (Env::seeded(1), Deadlines::new(Duration::MAX));
        begin(&mut deadlines, &env, 0);
        assert!(deadlines.queue.is_empty());
    }

    #[tokio::test]
    async fn whoever_is_told_to_end_is_woken_and_what_is_done_is_not_overdue() {
        let parked = Arc::new(Parked::new());
        let told = Arc::clone(&parked);
        let waits = tokio::spawn(poll_fn(move |cx| match told.poll_state(cx) {
            State::Waits => Poll::Pending,
            state => Poll::Ready(state),
        }));
        tokio::task::yield_now().await;
        assert!(parked.overdue() && !parked.overdue());
        let waited = tokio::time::timeout(60 * SECOND, waits).await.expect("nobody was woken");
        assert_eq!(waited.unwrap(), State::Overdue);
        let done = Parked::new();
        done.done();
        assert!(!done.overdue());
        done.cancel();
        assert_eq!(done.state(), State::Cancelled);
    }
}
