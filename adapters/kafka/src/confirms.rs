//! The sends that wait for their delivery report, and what their answers say of topics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::FixedState;
use postrider_core::{Confirmed, ErrorKind, NewSend, Pending, PublishError, Window};

use crate::partitioner::{Place, Topic};

// a token goes through the client as a pointer
const _: () = assert!(size_of::<usize>() >= size_of::<u64>(), "this adapter needs a target of 64 bits");

/// Where a message was sent.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) topic: Arc<Topic>,
    pub(crate) place: Place,
}

impl Target {
    /// What became of it, for the gate of its partition.
    fn answered(&self, confirmed: bool) {
        self.topic.answered(self.place, confirmed);
    }
}

/// All sends under way.
#[derive(Debug)]
pub(crate) struct Sends {
    pub(crate) pending: Arc<Pending<Target>>,
    /// First messages to a partition: they stay until the client reports them, however long that takes.
    firsts: Mutex<HashMap<u64, Target, FixedState>>,
    /// How many those are, for they are seldom any.
    waiting: AtomicUsize,
    /// The producer's number at the brokers, as far as it is known.
    producer: AtomicU64,
}

impl Sends {
    pub(crate) fn new(bound: Window) -> Self {
        let (firsts, waiting, producer) = (Mutex::default(), AtomicUsize::new(0), AtomicU64::new(0));
        Self { pending: Arc::new(Pending::new(bound)), firsts, waiting, producer }
    }

    fn firsts(&self) -> MutexGuard<'_, HashMap<u64, Target, FixedState>> {
        self.firsts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a slot by `open` for what is about to be handed over; its partition's gate was entered. What `open` refuses leaves
    /// the gate.
    pub(crate) fn open<R>(
        &self,
        send: NewSend<Target>,
        open: impl FnOnce(&Pending<Target>, NewSend<Target>) -> Result<u64, R>,
    ) -> Result<u64, R> {
        let first = send.sent.place.first.then(|| send.sent.clone());
        let opened = open(&self.pending, send);
        if let Some(target) = first {
            if let Ok(token) = &opened {
                self.waiting.fetch_add(1, Relaxed);
                self.firsts().insert(*token, target);
            } else {
                target.answered(false);
                self.pending.changed();
            }
        }
        opened
    }

    /// It was never handed over after all.
    pub(crate) fn cancel(&self, token: u64) {
        let (first, cancelled) = (self.take_first(token), self.pending.cancel(token));
        if let Some(target) = first.or(cancelled) {
            target.answered(false);
            self.pending.changed();
        }
    }

    fn take_first(&self, token: u64) -> Option<Target> {
        if self.waiting.load(Relaxed) == 0 {
            return None;
        }
        let first = self.firsts().remove(&token)?;
        self.waiting.fetch_sub(1, Relaxed);
        Some(first)
    }

    /// The client reports what became of a send, which may have been given up here already.
    pub(crate) fn delivered(&self, token: u64, outcome: Confirmed) {
        let confirmed = outcome.is_ok();
        let gone =
            matches!(&outcome, Err(PublishError::Failed(error)) if error.kind() == ErrorKind::NotFound);
        let refused =
            matches!(&outcome, Err(PublishError::Failed(error)) if error.kind() == ErrorKind::Mismatch);
        let first = self.take_first(token);
        let hear = |target: &Target| {
            target.answered(confirmed);
            if refused {
                target.topic.forget_keys();
            }
            if gone {
                target.topic.mark_gone();
            }
        };
        first.iter().for_each(hear);
        self.pending.resolve(token, |target| {
            if first.is_none() {
                hear(target);
            }
            outcome
        });
        if first.is_some() {
            // the gate's state is waited for even if the send was given up
            self.pending.changed();
        }
    }

    /// The brokers know the producer by this number; to them, another is another producer.
    pub(crate) fn produced_by(&self, producer: u64) {
        self.producer.store(producer + 1, Relaxed);
    }

    pub(crate) fn producer(&self) -> u64 {
        self.producer.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use postrider_core::{Error, Receipt};
    use rdkafka::error::RDKafkaErrorCode as Code;

    use super::*;

    fn failed() -> Confirmed {
        Err(PublishError::Failed(Error::new(ErrorKind::Broker, "publish", "no")))
    }

    fn sends() -> (Sends, Arc<Topic>) {
        let bound = Window { messages: 2, bytes: 100 };
        (Sends::new(bound), Arc::new(Topic::new("t", 1, 0, Instant::now())))
    }

    fn open(sends: &Sends, topic: &Arc<Topic>) -> Option<u64> {
        let now = Instant::now();
        let target = Target { topic: Arc::clone(topic), place: topic.enter(0).ok()? };
        let send = NewSend { deadline: now + Duration::from_secs(1), key: None, bytes: 1, sent: target };
        sends.open(send, Pending::try_open).ok()
    }

    #[test]
    fn the_first_message_opens_the_gate_by_its_report() {
        let (sends, topic) = sends();
        let first = open(&sends, &topic).unwrap();
        assert!(open(&sends, &topic).is_none());
        sends.delivered(first, Ok(Receipt::new(0, 7)));
        assert!(open(&sends, &topic).is_some() && open(&sends, &topic).is_some());
        assert!(open(&sends, &topic).is_none(), "no room");
    }

    #[test]
    fn a_first_message_that_was_given_up_keeps_the_gate_until_it_is_reported() {
        let (sends, topic) = sends();
        let first = open(&sends, &topic).unwrap();
        sends.pending.resolve(first, |_| failed());
        assert!(topic.is_under_way(0) && open(&sends, &topic).is_none());
        sends.delivered(first, failed());
        assert!(!topic.is_under_way(0) && topic.is_current(0, Instant::now()));
        let again = open(&sends, &topic).unwrap();
        sends.pending.resolve(again, |_| failed());
        let gone = Error::new(ErrorKind::NotFound, "publish", "no such topic");
        sends.delivered(again, Err(PublishError::Failed(gone)));
        assert!(
            !topic.is_current(0, Instant::now()),
            "nobody waited for it, and the topic is gone all the same"
        );
    }

    #[test]
    fn what_was_never_handed_over_leaves_nothing_behind() {
        let (sends, topic) = sends();
        let token = open(&sends, &topic).unwrap();
        sends.cancel(token);
        assert!(sends.pending.unanswered().is_empty() && sends.firsts().is_empty());
        assert!(open(&sends, &topic).unwrap() != token);
    }

    #[test]
    fn what_finds_no_room_leaves_the_gate() {
        let (sends, topic) = sends();
        let other = Arc::new(Topic::new("other", 1, 0, Instant::now()));
        let first = open(&sends, &topic).unwrap();
        sends.delivered(first, Ok(Receipt::default()));
        open(&sends, &topic).unwrap();
        open(&sends, &topic).unwrap();
        assert!(open(&sends, &other).is_none() && !other.is_under_way(0));
    }

    #[test]
    fn a_refused_message_makes_it_unknown_whether_keys_are_needed() {
        let (sends, topic) = sends();
        topic.set_requires_keys(false);
        let token = open(&sends, &topic).unwrap();
        sends.delivered(token, Err(crate::error::delivery(Code::InvalidRecord)));
        assert_eq!(topic.requires_keys(), None);
    }

    #[test]
    fn a_topic_that_is_gone_is_marked() {
        let (sends, topic) = sends();
        let token = open(&sends, &topic).unwrap();
        sends.delivered(token, Ok(Receipt::default()));
        let token = open(&sends, &topic).unwrap();
        let gone = Error::new(ErrorKind::NotFound, "publish", "no such topic");
        sends.delivered(token, Err(PublishError::Failed(gone)));
        assert!(!topic.is_current(0, Instant::now()));
    }
}
