//! A gate that keeps a number of handlers waiting at once: what a slow service behind them would do, without a clock.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

/// How many are let go together, so that what a round of the runner costs is shared alike at every width.
const TOGETHER: usize = 16;

/// Lets the oldest go once so many wait, and everybody once all have come.
#[derive(Debug)]
pub(crate) struct Gate {
    most: usize,
    all: u64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    come: u64,
    queue: VecDeque<oneshot::Sender<()>>,
}

impl Gate {
    /// Of `most` that wait, and `all` that come.
    pub(crate) fn new(most: usize, all: u64) -> Self {
        Self { most, all, waiting: Mutex::default() }
    }

    /// Resolves when it is let go.
    pub(crate) async fn pass(&self) {
        // its sender is dropped only with the gate
        let _ = self.enter().await;
    }

    fn enter(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.come += 1;
        waiting.queue.push_back(sender);
        let count = if waiting.come >= self.all {
            waiting.queue.len()
        } else if waiting.queue.len() >= self.most {
            TOGETHER
        } else {
            0
        };
        let count = count.min(waiting.queue.len());
        for sender in waiting.queue.drain(..count) {
            // one whose handler was cancelled need not know
            let _ = sender.send(());
        }
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_it_is_full_and_everybody_at_the_end() {
        let gate = Gate::new(64, 100);
        let mut all: Vec<_> = (0..63).map(|_| gate.enter()).collect();
        assert!(all.iter_mut().all(|one| one.try_recv().is_err()));
        all.push(gate.enter());
        let gone = all.iter_mut().map(|one| one.try_recv().is_ok());
        assert_eq!(gone.collect::<Vec<_>>(), (0..64).map(|n| n < TOGETHER).collect::<Vec<_>>());
        let mut rest: Vec<_> = all.drain(TOGETHER..).chain((64..100).map(|_| gate.enter())).collect();
        assert!(rest.iter_mut().all(|one| one.try_recv().is_ok()));
    }
}
