//! Several tasks that run one route's attempts, for handlers that compute: whoever is free takes the next.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;
use tokio::task::JoinSet;

use super::crew::{Begun, Crew, Orders, Step, Work};
use super::outputs::Unpublished;
use crate::outcome::Outcome;

/// The tasks end when this is dropped.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Begun in this round, and not handed over yet.
    begun: Vec<(usize, Work)>,
    _tasks: JoinSet<()>,
}

struct Shared {
    board: Mutex<Board>,
    workers: usize,
}

/// What is to do, what is done, and who sleeps.
#[derive(Default)]
struct Board {
    jobs: VecDeque<(usize, Work)>,
    steps: Vec<(usize, Step)>,
    cancels: Vec<Vec<usize>>,
    idle: Vec<Option<Waker>>,
    dispatcher: Option<Waker>,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    pub(crate) fn new(orders: &Orders, workers: usize) -> Self {
        let board =
            Board { cancels: vec![Vec::new(); workers], idle: vec![None; workers], ..Board::default() };
        let shared = Arc::new(Shared { board: Mutex::new(board), workers });
        let mut tasks = JoinSet::new();
        for me in 0..workers {
            let (shared, orders) = (Arc::clone(&shared), orders.clone());
            tasks.spawn(async move { work(me, &shared, &orders).await });
        }
        Self { shared, begun: Vec::new(), _tasks: tasks }
    }

    /// Begins an attempt with the next [`hand_over`](Self::hand_over).
    pub(crate) fn start(&mut self, job: usize, work: Work) {
        self.begun.push((job, work));
    }

    /// Gives to the tasks what was begun: together, since a lock and a wake-up for each costs more than all else.
    pub(crate) fn hand_over(&mut self) {
        if self.begun.is_empty() {
            return;
        }
        let mut board = self.shared.board();
        let count = self.begun.len();
        board.jobs.extend(self.begun.drain(..));
        let wakers: SmallVec<[Waker; 8]> =
            board.idle.iter_mut().filter_map(Option::take).take(count).collect();
        drop(board);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Cancels an attempt, wherever it is; it ends as [`Step::Cancelled`] unless it has ended already.
    pub(crate) fn cancel(&mut self, job: usize) {
        self.hand_over();
        let mut board = self.shared.board();
        if let Some(at) = board.jobs.iter().position(|(j, _)| *j == job) {
            let outcome = match board.jobs.remove(at) {
                Some((_, Work::Publish(outputs))) => {
                    Some(Outcome::Retry(Box::new(Unpublished { outputs, error: None }), None))
                }
                _ => None,
            };
            board.steps.push((job, Step::Cancelled(outcome)));
            return;
        }
        // one of them has it parked; the others don't know the number
        board.cancels.iter_mut().for_each(|cancels| cancels.push(job));
        let wakers: Vec<_> = board.idle.iter_mut().filter_map(Option::take).collect();
        drop(board);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// All that has happened to attempts; pending while nothing has.
    pub(crate) fn poll_steps(&mut self, cx: &mut Context<'_>, into: &mut Vec<(usize, Step)>) -> Poll<()> {
        // nobody waits for a step while something that was begun is still here
        self.hand_over();
        let mut board = self.shared.board();
        if board.steps.is_empty() {
            board.dispatcher = Some(cx.waker().clone());
            return Poll::Pending;
        }
        into.append(&mut board.steps);
        Poll::Ready(())
    }
}

async fn work(me: usize, shared: &Shared, orders: &Orders) {
    let mut crew = Crew::new(orders);
    let (mut taken, mut steps) = (Vec::new(), Vec::new());
    loop {
        poll_fn(|cx| {
            while let Poll::Ready(step) = crew.poll_step(cx) {
                steps.push(step);
            }
            let mut board = shared.board();
            for job in std::mem::take(&mut board.cancels[me]) {
                crew.cancel(job);
            }
            board.steps.append(&mut steps);
            // a fair share, so that one long attempt has little queued behind it that another could take
            let share = (board.jobs.len() / (2 * shared.workers)).clamp(1, 32).min(board.jobs.len());
            taken.extend(board.jobs.drain(..share));
            let sleeps = taken.is_empty();
            board.idle[me] = sleeps.then(|| cx.waker().clone());
            let dispatcher = if board.steps.is_empty() { None } else { board.dispatcher.take() };
            drop(board);
            dispatcher.into_iter().for_each(Waker::wake);
            for (job, work) in taken.drain(..) {
                match crew.start(|| job, work, cx) {
                    Begun::Ended(outcome) => steps.push((job, Step::Ended(outcome))),
                    Begun::Waits { publishes: true } => steps.push((job, Step::Handled)),
                    Begun::Waits { publishes: false } => {}
                }
            }
            if sleeps { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        // between shares, so that attempts that never wait leave room for the runtime
        tokio::task::yield_now().await;
    }
}
