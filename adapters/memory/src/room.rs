//! Those who wait for room in a channel: first come, first served.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

/// A sender's place in the queue.
pub(crate) type Ticket = u64;

/// Senders in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiting: VecDeque<(Ticket, Arc<Notify>)>,
    tickets: Ticket,
}

impl Room {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn enter(&mut self) -> (Ticket, Arc<Notify>) {
        self.tickets += 1;
        let notify = Arc::new(Notify::new());
        self.waiting.push_back((self.tickets, Arc::clone(&notify)));
        (self.tickets, notify)
    }

    pub(crate) fn is_first(&self, ticket: Ticket) -> bool {
        self.waiting.front().is_some_and(|(first, _)| *first == ticket)
    }

    pub(crate) fn leave(&mut self, ticket: Ticket) {
        self.waiting.retain(|(other, _)| *other != ticket);
    }

    /// Tells the first in line to look again.
    pub(crate) fn call_first(&self) {
        if let Some((_, notify)) = self.waiting.front() {
            notify.notify_one();
        }
    }

    pub(crate) fn call_all(&self) {
        self.waiting.iter().for_each(|(_, notify)| notify.notify_one());
    }
}
