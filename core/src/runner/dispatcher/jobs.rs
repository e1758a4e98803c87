//! What is under way at the handler and behind it: one job for each call.

use slab::Slab;

use crate::runner::admission::Pass;
use crate::runner::held::{Held, Items};

/// What one call of the handler works on, and what allowed it.
pub(super) struct Job {
    pub(super) items: Items,
    pub(super) pass: Option<Box<Pass>>,
    /// The handler is done, and the publisher has what it returned.
    publishes: bool,
}

/// All of them, by their number.
#[derive(Default)]
pub(super) struct Jobs {
    jobs: Slab<Job>,
    publishing: usize,
}

impl Jobs {
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many handlers are at work, or wait for room at the publisher. What that has is the broker's to confirm, and only the window
    /// bounds it.
    pub(super) fn handling(&self) -> usize {
        self.jobs.len() - self.publishing
    }

    /// The number of the next one.
    pub(super) fn next(&self) -> usize {
        self.jobs.vacant_key()
    }

    pub(super) fn insert(&mut self, items: Items, pass: Option<Box<Pass>>, publishes: bool) {
        self.publishing += usize::from(publishes);
        self.jobs.insert(Job { items, pass, publishes });
    }

    /// Its handler is done, and the publisher has what it returned.
    pub(super) fn handled(&mut self, job: usize) {
        if let Some(job) = self.jobs.get_mut(job) {
            self.publishing += usize::from(!std::mem::replace(&mut job.publishes, true));
        }
    }

    pub(super) fn remove(&mut self, job: usize) -> Job {
        let job = self.jobs.remove(job);
        self.publishing -= usize::from(job.publishes);
        job
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Items)> {
        self.jobs.iter().map(|(number, job)| (number, &job.items))
    }

    /// All that they work on.
    pub(super) fn held(&self) -> impl Iterator<Item = &Held> {
        self.iter().flat_map(|(_, items)| items)
    }
}
