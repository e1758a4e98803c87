//! Telling the broker what became of a message: claims, tokens, and the window that bounds what is unsettled.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::env::BoxFuture;

/// A partition (or queue, or consumer) held by one member for one while. A later hold of the same one has a later epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimId {
    /// Which partition, in the numbering of its subscription.
    pub shard: u32,
    /// Which hold of it: of the assignment or connection that delivered.
    pub epoch: u32,
}

/// Names one delivery towards the tracker that handed it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// The hold under which it was delivered.
    pub claim: ClaimId,
    /// The tracker's own number; rises in order of delivery within a claim.
    pub seq: u64,
}

/// What becomes of a delivery. There is no reject: the runner publishes the dead letter, then acks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// Done with it.
    Ack,
    /// Back to the broker, which redelivers it: at once, or after a time where it can wait.
    GiveBack(Option<Duration>),
    /// Still at work: the broker shall not think it lost. The delivery stays unsettled.
    Extend,
}

/// Some deliveries could not be settled, because their claim had ended. The broker redelivers them; nothing is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleError {
    /// Which ones.
    pub stale: Vec<Token>,
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "settle: the claim on {} deliveries had ended; the broker redelivers them",
            self.stale.len()
        )
    }
}

impl std::error::Error for SettleError {}

/// An adapter's tracker of what it handed out.
///
/// Settling is synchronous on purpose: it *records*. I/O is coalesced behind it, `Drop` can use it, and a stale token is
/// known at once.
pub trait Settle: Send + Sync + 'static {
    /// Records what becomes of each; those of an ended claim are left alone.
    ///
    /// # Errors
    /// [`SettleError`] with the stale tokens. The others are settled.
    fn settle(&self, batch: &[(Token, Settlement)]) -> Result<(), SettleError>;

    /// Resolves when all that was recorded has reached the broker.
    ///
    /// # Errors
    /// [`SettleError`] with those that could not, because the connection or claim ended first.
    ///
    /// # Cancel safety
    /// What was recorded stays recorded.
    fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>>;
}

/// The right to settle one delivery, once. Dropping it gives the message back.
#[must_use = "dropping a claim gives the message back to the broker"]
pub struct Claim {
    settle: Option<Arc<dyn Settle>>,
    token: Token,
}

impl Claim {
    /// For adapters: the claim on what `token` names.
    pub fn new(settle: Arc<dyn Settle>, token: Token) -> Self {
        Self { settle: Some(settle), token }
    }

    /// Names the delivery.
    pub fn token(&self) -> Token {
        self.token
    }

    /// Settles it. ([`Settlement::Extend`] is [`extend`](Self::extend), which keeps the claim.)
    ///
    /// # Errors
    /// [`SettleError`] if the claim had ended.
    pub fn settle(mut self, how: Settlement) -> Result<(), SettleError> {
        self.settle.take().map_or(Ok(()), |tracker| tracker.settle(&[(self.token, how)]))
    }

    /// Tells the broker that the message is still being worked on.
    ///
    /// # Errors
    /// [`SettleError`] if the claim had ended.
    pub fn extend(&self) -> Result<(), SettleError> {
        self.settle.as_ref().map_or(Ok(()), |tracker| tracker.settle(&[(self.token, Settlement::Extend)]))
    }

    /// Settles a whole batch with one call per tracker, in order. Afterwards `batch` is empty.
    ///
    /// # Errors
    /// [`SettleError`] with all that were stale.
    pub fn settle_all(batch: &mut Vec<(Self, Settlement)>) -> Result<(), SettleError> {
        let (mut tokens, mut stale) = (Vec::with_capacity(batch.len()), Vec::new());
        let mut tracker: Option<Arc<dyn Settle>> = None;
        let mut hand_over = |tracker: &Option<Arc<dyn Settle>>, tokens: &mut Vec<_>| {
            if let Some(tracker) = tracker
                && let Err(error) = tracker.settle(tokens)
            {
                stale.extend(error.stale);
            }
            tokens.clear();
        };
        for (mut claim, how) in batch.drain(..) {
            let settle = claim.settle.take();
            if let (Some(current), Some(next)) = (&tracker, &settle)
                && !Arc::ptr_eq(current, next)
            {
                hand_over(&tracker, &mut tokens);
                tracker = settle;
            } else if tracker.is_none() {
                tracker = settle;
            }
            tokens.push((claim.token, how));
        }
        hand_over(&tracker, &mut tokens);
        if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
    }

    /// The tracker behind it, to be flushed.
    pub fn tracker(&self) -> Option<&Arc<dyn Settle>> {
        self.settle.as_ref()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(tracker) = self.settle.take() {
            // a stale claim has nothing to give back
            let _ = tracker.settle(&[(self.token, Settlement::GiveBack(None))]);
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claim").field(&self.token).finish()
    }
}

/// How much may be received and unsettled at once. The adapter enforces it; one message always fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Messages, at least 1.
    pub messages: usize,
    /// Bytes of bodies and headers.
    pub bytes: usize,
}

impl Default for Window {
    /// 1,024 messages and 16 MiB.
    fn default() -> Self {
        Self { messages: 1024, bytes: 16 * 1024 * 1024 }
    }
}

/// What is out of a [`Window`]: plain bookkeeping for adapters, under the adapter's own lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

impl InFlight {
    /// Whether a message of `bytes` may go out now.
    pub fn has_room(&self, window: &Window, bytes: usize) -> bool {
        self.messages == 0
            || (self.messages < window.messages && self.bytes.saturating_add(bytes) <= window.bytes)
    }

    /// One goes out.
    pub fn take(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    /// One is settled.
    pub fn settled(&mut self, bytes: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<Vec<(u64, Settlement)>>>);

    impl Settle for Log {
        fn settle(&self, batch: &[(Token, Settlement)]) -> Result<(), SettleError> {
            self.0.lock().unwrap().push(batch.iter().map(|(t, s)| (t.seq, *s)).collect());
            let stale: Vec<_> = batch.iter().map(|(t, _)| *t).filter(|t| t.claim.epoch == 0).collect();
            if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
        }

        fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>> {
            Box::pin(async { Ok(()) })
        }
    }

    fn claim(log: &Arc<Log>, epoch: u32, seq: u64) -> Claim {
        Claim::new(log.clone(), Token { claim: ClaimId { shard: 0, epoch }, seq })
    }

    #[test]
    fn a_dropped_claim_gives_back_and_a_settled_one_does_not() {
        let log = Arc::new(Log::default());
        drop(claim(&log, 1, 1));
        claim(&log, 1, 2).settle(Settlement::Ack).unwrap();
        assert_eq!(
            *log.0.lock().unwrap(),
            [vec![(1, Settlement::GiveBack(None))], vec![(2, Settlement::Ack)]]
        );
    }

    #[test]
    fn a_batch_is_one_call_a_tracker_and_names_the_stale() {
        let (a, b) = (Arc::new(Log::default()), Arc::new(Log::default()));
        let mut batch =
            [(&a, 1, 1), (&a, 0, 2), (&b, 1, 3)].map(|(l, e, s)| (claim(l, e, s), Settlement::Ack)).into();
        let error = Claim::settle_all(&mut batch).unwrap_err();
        assert_eq!(error.stale.iter().map(|t| t.seq).collect::<Vec<_>>(), [2]);
        assert_eq!((a.0.lock().unwrap().len(), b.0.lock().unwrap().len(), batch.len()), (1, 1, 0));
    }

    #[test]
    fn a_window_is_bounded_from_both_sides_and_lets_one_pass() {
        let window = Window { messages: 2, bytes: 10 };
        let mut out = InFlight::default();
        assert!(out.has_room(&window, 99), "one message always fits");
        out.take(6);
        assert!(out.has_room(&window, 4) && !out.has_room(&window, 5));
        out.take(1);
        assert!(!out.has_room(&window, 0));
        out.settled(1);
        assert!(out.has_room(&window, 1));
    }
}
