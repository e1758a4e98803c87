//! One partition's part of what a subscription holds: what came of it, what is out, and what the broker is to be told.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use postrider_core::{Envelope, Rising};
use tokio::sync::Notify;

use crate::ledger::{Ledger, Tell};

/// A message that came and is not settled.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) since: Instant,
    pub(super) bytes: usize,
    /// Its key, hashed.
    pub(super) key: Option<u64>,
    /// Handed to the runner; else it is in the buffer or asleep.
    pub(super) out: bool,
    /// Given back with a delay that isn't over.
    pub(super) asleep: bool,
    /// Kept while it may be handed out again.
    pub(super) envelope: Option<Envelope>,
    pub(super) deliveries: u32,
}

/// What is to be told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) tells: Vec<Tell>,
    /// Some acknowledgements were kept back, for there may come more that can be told with them, in few words.
    pub(crate) more: bool,
    /// The partition is given up: when all is told the channel is to be closed.
    pub(crate) released: bool,
}

/// A message as it came.
pub(crate) struct Arrived {
    pub(crate) tag: u64,
    pub(crate) envelope: Envelope,
    /// Its key, hashed.
    pub(crate) key: Option<u64>,
    pub(crate) deliveries: u32,
}

/// One partition as this member sees it.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) epoch: u32,
    /// Whether this member holds it.
    pub(super) assigned: bool,
    /// It is to be given up: nothing more is handed out, and what is out is waited for, until then at the latest.
    pub(super) moving: Option<Instant>,
    /// It was given up; its task closes the channel and asks again, behind the others.
    pub(super) released: bool,
    /// By their delivery tag.
    pub(super) held: Rising<Held>,
    /// What waits to be handed out: tags, ascending.
    pub(super) buffer: VecDeque<u64>,
    /// Keys of which something waits for its time.
    pub(super) delayed: HashMap<u64, usize>,
    pub(super) ledger: Ledger,
    /// Its task looks again when something is settled.
    pub(super) wake: Arc<Notify>,
}

impl Partition {
    pub(super) fn new() -> Self {
        Self {
            epoch: 0,
            assigned: false,
            moving: None,
            released: false,
            held: Rising::default(),
            buffer: VecDeque::new(),
            delayed: HashMap::new(),
            ledger: Ledger::default(),
            wake: Arc::new(Notify::new()),
        }
    }

    /// The hold is over; answers how many bytes each had that was out.
    pub(super) fn end(&mut self) -> Vec<usize> {
        (self.assigned, self.moving) = (false, None);
        self.epoch += 1;
        self.buffer.clear();
        self.delayed.clear();
        std::mem::take(&mut self.held).into_values().filter(|held| held.out).map(|held| held.bytes).collect()
    }

    /// Whether its task is to look at what was settled just now: at the first, which it waits for more after, and whenever there are
    /// enough, or no more to come.
    pub(super) fn is_to_be_told(&self, together: usize) -> bool {
        let acked = self.ledger.acked();
        acked == 1
            || self.is_worth_telling(together) && acked.is_multiple_of(together)
            || self.held.is_empty()
            || self.ledger.has_returned()
    }

    pub(super) fn is_worth_telling(&self, together: usize) -> bool {
        self.ledger.acked() >= together || self.held.is_empty()
    }

    /// Puts a held message where it belongs among those that wait.
    pub(super) fn enqueue(&mut self, tag: u64) {
        if self.buffer.back().is_none_or(|last| *last < tag) {
            return self.buffer.push_back(tag);
        }
        let at = self.buffer.partition_point(|other| *other < tag);
        self.buffer.insert(at, tag);
    }
}
