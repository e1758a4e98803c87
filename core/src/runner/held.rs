//! A message that the runner holds, from its delivery until it is settled.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::dispatcher::{KeptOutputs, Reservation};
use super::lanes::LaneId;
use super::retry_copy::Earlier;
use crate::delivery::Delivery;

/// One message between delivery and settlement.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) delivery: Delivery,
    pub(crate) lane: Option<LaneId>,
    /// When it came; held for as long as it is unsettled.
    pub(crate) _received: Arc<Instant>,
    /// The attempt that is running or comes next, from 1.
    pub(crate) attempt: u32,
    /// When its first attempt began; until then, when it was received.
    pub(crate) began: Instant,
    /// The wait before this attempt.
    pub(crate) wait: Duration,
    /// When an attempt first failed, in milliseconds since the Unix epoch; 0 while none has.
    pub(crate) first_failed_ms: u64,
    /// Where the message was before it waited at the broker; `None`: it comes from there.
    pub(crate) origin: Option<Box<str>>,
    /// Where each message is handled once: what the store has of it.
    pub(crate) reservation: Option<Box<Reservation>>,
    /// It isn't suspected any more of ending processes.
    pub(crate) cleared: bool,
    /// Its handler is done, and these have still to be published.
    pub(crate) outputs: Option<Box<KeptOutputs>>,
}

impl Held {
    /// Goes on counting where the copy of a message says that earlier attempts ended.
    pub(crate) fn go_on(&mut self, max_attempts: u32, wall_ms: u64) {
        let Some(earlier) = Earlier::of(&self.delivery.envelope, max_attempts, wall_ms) else {
            return;
        };
        let ago = Duration::from_millis(wall_ms - earlier.first_failed_ms);
        self.attempt = earlier.attempts + 1;
        self.began = self.began.checked_sub(ago).unwrap_or(self.began);
        self.first_failed_ms = earlier.first_failed_ms;
        self.origin = Some(earlier.origin.into());
    }

    pub(crate) fn new(
        delivery: Delivery,
        lane: Option<LaneId>,
        received: Arc<Instant>,
        now: Instant,
    ) -> Self {
        Self {
            delivery,
            lane,
            _received: received,
            attempt: 1,
            began: now,
            wait: Duration::ZERO,
            first_failed_ms: 0,
            origin: None,
            reservation: None,
            cleared: false,
            outputs: None,
        }
    }
}

/// What one call of the handler works on: one message, or a batch.
pub(crate) type Items = SmallVec<[Held; 1]>;

/// A message that waits for its back-off; its lane stays busy.
#[derive(Debug)]
pub(crate) struct Delayed {
    pub(crate) due: Instant,
    /// Breaks ties, so that the heap is in order of arrival among equals.
    pub(crate) number: u64,
    pub(crate) held: Held,
}

impl Ord for Delayed {
    /// The soonest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Delayed {}
