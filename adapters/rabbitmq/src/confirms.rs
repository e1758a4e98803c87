//! The sends that have no outcome yet: core's table of them, and the queue in front of the driver.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use lapin::types::ShortString;
use postrider_core::{
    Confirm, Confirms, Envelope, Error, KEY_SLOTS, NewSend, Pending, PublishError, Result, Window,
};
use tokio::sync::Notify;

use crate::naming::Naming;

/// How many channels' exchanges are remembered; more than that is a program that makes up channels as it goes.
const REMEMBERED: usize = 1024;

/// Where messages are published to.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) name: ShortString,
    /// The publishing channel, by its number, on which it was seen last.
    pub(crate) seen: AtomicU64,
}

impl Exchange {
    pub(crate) fn new(name: String) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { name: short(name, "an exchange's name")?, seen: AtomicU64::new(0) }))
    }
}

fn short(text: String, what: &str) -> Result<ShortString> {
    ShortString::try_new(text)
        .map_err(|e| Error::config("publish", format!("{what} has 255 bytes at most")).because(e))
}

/// What stands in the message for its queue.
#[derive(Clone, Debug)]
pub(crate) enum RoutingKey {
    Slot(u32),
    Named(ShortString),
}

impl RoutingKey {
    pub(crate) fn named(name: String) -> Result<Self> {
        Ok(Self::Named(short(name, "a routing key")?))
    }

    pub(crate) fn spelt(&self) -> ShortString {
        static SLOTS: LazyLock<Vec<ShortString>> =
            LazyLock::new(|| (0..KEY_SLOTS).map(|slot| Naming::slot(slot).into()).collect());
        match self {
            Self::Slot(slot) => SLOTS[*slot as usize].clone(),
            Self::Named(name) => name.clone(),
        }
    }
}

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) routing_key: RoutingKey,
    pub(crate) envelope: Envelope,
}

/// What is kept of a send until it is answered.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Gone once it is handed over, unless it may be handed over again.
    pub(crate) message: Option<Message>,
    /// A dead letter, a retry's or a redrive's: whoever makes one knows whether it is still wanted once the connection is back.
    pub(crate) is_copy: bool,
    /// It may be stored: it was handed over at least once.
    pub(crate) handed: bool,
}

impl Sent {
    pub(crate) fn new(message: Message, is_copy: bool) -> Self {
        Self { message: Some(message), is_copy, handed: false }
    }

    /// Whether it is sent again when the connection was lost before its answer.
    pub(crate) fn is_sent_again(&self, resend: bool) -> bool {
        resend && !self.is_copy
    }

    /// What goes out now.
    fn hand(&mut self, resend: bool) -> Option<Message> {
        self.handed = true;
        if self.is_sent_again(resend) { self.message.clone() } else { self.message.take() }
    }

    /// An end without an answer.
    fn ended(&self, error: Error) -> PublishError {
        if self.handed { PublishError::Unknown(error) } else { PublishError::Failed(error) }
    }
}

/// A send in the queue.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) token: u64,
    pub(crate) exchange: Arc<Exchange>,
}

/// A send that goes out now.
pub(crate) struct Handed {
    pub(crate) queued: Queued,
    pub(crate) message: Message,
    /// What it takes of the bounded queue, given back when the client has nothing of the message any more.
    pub(crate) room: usize,
}

#[derive(Debug, Default)]
struct Queue {
    sends: VecDeque<Queued>,
    /// The driver waits for the next.
    asleep: bool,
}

/// All sends under way.
#[derive(Debug)]
pub(crate) struct Sends {
    pub(crate) pending: Arc<Pending<Sent>>,
    /// Sends that were never handed over, or are to be sent again, in the order in which they go out.
    queue: Mutex<Queue>,
    queued: Notify,
    /// By the names of channels.
    exchanges: Mutex<HashMap<String, Arc<Exchange>, foldhash::fast::RandomState>>,
    /// Exchanges whose last message no queue took.
    unread: Mutex<BTreeSet<String>>,
    has_unread: AtomicBool,
}

impl Sends {
    pub(crate) fn new(bound: Window) -> Self {
        Self {
            pending: Arc::new(Pending::new(bound)),
            queue: Mutex::default(),
            queued: Notify::new(),
            exchanges: Mutex::default(),
            unread: Mutex::default(),
            has_unread: AtomicBool::new(false),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The exchange of a channel; `name` checks and spells it the first time.
    pub(crate) fn exchange(
        &self,
        channel: &str,
        name: impl FnOnce() -> Result<String>,
    ) -> Result<Arc<Exchange>> {
        let mut exchanges = self.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exchange) = exchanges.get(channel) {
            return Ok(Arc::clone(exchange));
        }
        let exchange = Exchange::new(name()?)?;
        if exchanges.len() == REMEMBERED {
            exchanges.clear();
        }
        exchanges.insert(channel.into(), Arc::clone(&exchange));
        Ok(exchange)
    }

    /// Puts a send into the queue, if it needn't wait.
    #[expect(clippy::result_large_err, reason = "the send is given back, not an error made")]
    pub(crate) fn try_send(
        &self,
        send: NewSend<Sent>,
        exchange: &Arc<Exchange>,
    ) -> std::result::Result<Confirm, NewSend<Sent>> {
        let token = self.pending.try_open(send)?;
        Ok(self.enqueue(token, exchange))
    }

    /// Puts a send into the queue, as soon as there is room and its key's turn.
    pub(crate) async fn send(&self, mut send: NewSend<Sent>, exchange: &Arc<Exchange>) -> Confirm {
        let mut room = self.pending.room(send.bytes).await;
        loop {
            let key = send.key;
            match self.pending.open(send, room) {
                Ok(token) => return self.enqueue(token, exchange),
                Err(back) => (send, room) = back,
            }
            if let Some(key) = key {
                self.pending.until_free(key).await;
            }
        }
    }

    fn enqueue(&self, token: u64, exchange: &Arc<Exchange>) -> Confirm {
        let mut queue = self.queue();
        queue.sends.push_back(Queued { token, exchange: Arc::clone(exchange) });
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep {
            self.queued.notify_one();
        }
        Confirm::tracked(Arc::clone(&self.pending) as Arc<dyn Confirms>, token)
    }

    /// Resolves when something is in the queue.
    pub(crate) async fn queued(&self) {
        while !self.has_queued() {
            self.queued.notified().await;
        }
    }

    fn has_queued(&self) -> bool {
        let mut queue = self.queue();
        // told under the lock, so that a send in between isn't missed
        queue.asleep = queue.sends.is_empty();
        !queue.asleep
    }

    /// The exchange of the first in the queue.
    pub(crate) fn first(&self) -> Option<Arc<Exchange>> {
        self.queue().sends.front().map(|first| Arc::clone(&first.exchange))
    }

    /// Takes the next messages out of the queue, at most so many, up to one whose exchange isn't `there`; from now on they may be
    /// stored.
    pub(crate) fn hand(
        &self,
        most: usize,
        resend: bool,
        there: impl Fn(&Exchange) -> bool,
        into: &mut Vec<Handed>,
    ) {
        let mut queue = self.queue();
        let fit = queue.sends.iter().take(most).take_while(|queued| there(&queued.exchange)).count();
        let mut sends: VecDeque<_> = queue.sends.drain(..fit).collect();
        drop(queue);
        let tokens: Vec<_> = sends.iter().map(|queued| queued.token).collect();
        self.pending.take_rooms(tokens, |token, sent, room| {
            // those before it have their answer already
            while sends.front().is_some_and(|queued| queued.token != token) {
                sends.pop_front();
            }
            if let (Some(queued), Some(message)) = (sends.pop_front(), sent.hand(resend)) {
                into.push(Handed { queued, message, room });
            }
        });
    }

    /// The connection was lost before the answers to these, in the order in which they went out. Some are to be handed over again, in
    /// their old places, the others have no answer.
    pub(crate) fn lost(&self, sends: Vec<(Queued, usize)>, resend: bool, error: impl Fn(&Sent) -> Error) {
        let mut again = Vec::new();
        for (queued, room) in sends {
            match self.pending.with(queued.token, |sent| sent.is_sent_again(resend)) {
                Some(true) => {
                    if self.pending.return_room(queued.token, room) {
                        again.push(queued);
                    }
                }
                Some(false) => {
                    self.fail(queued.token, &error);
                    self.pending.give_back(room);
                }
                None => self.pending.give_back(room),
            }
        }
        let mut queue = self.queue();
        again.into_iter().rev().for_each(|queued| queue.sends.push_front(queued));
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep {
            self.queued.notify_one();
        }
    }

    /// Ends a send without an answer: failed, or unknown if it was ever handed over.
    pub(crate) fn fail(&self, token: u64, error: impl FnOnce(&Sent) -> Error) {
        self.pending.resolve(token, |sent| {
            let error = error(sent);
            Err(sent.ended(error))
        });
    }

    /// Ends the first in the queue, if it goes to that exchange.
    pub(crate) fn fail_first(&self, exchange: &Arc<Exchange>, error: Error) {
        let first = self.queue().sends.pop_front_if(|first| Arc::ptr_eq(&first.exchange, exchange));
        if let Some(first) = first {
            self.fail(first.token, |_| error);
        }
    }

    /// Ends these without an answer, also in the queue.
    pub(crate) fn fail_all(&self, tokens: Vec<u64>, error: impl Fn(&Sent) -> Error) {
        if tokens.is_empty() {
            return;
        }
        for token in tokens {
            self.fail(token, &error);
        }
        // an answered one has no room any more, so the bound would no longer hold for the queue
        self.queue().sends.retain(|queued| self.pending.with(queued.token, |_| ()).is_some());
    }

    /// Whether a queue took a message of the exchange.
    pub(crate) fn taken(&self, exchange: &Exchange, by_a_queue: bool) {
        if by_a_queue && !self.has_unread.load(Relaxed) {
            return;
        }
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        if by_a_queue {
            unread.remove(exchange.name.as_str());
        } else {
            unread.insert(exchange.name.as_str().into());
        }
        self.has_unread.store(!unread.is_empty(), Relaxed);
    }

    /// The exchanges whose last message no queue took.
    pub(crate) fn unread(&self) -> Vec<String> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use postrider_core::{Env, ErrorKind};

    use super::*;

    fn send(is_copy: bool) -> NewSend<Sent> {
        let envelope = Envelope::builder(Bytes::new()).build(&Env::seeded(1)).unwrap();
        let sent = Sent::new(Message { routing_key: RoutingKey::Slot(0), envelope }, is_copy);
        NewSend { deadline: Instant::now() + Duration::from_secs(1), key: None, bytes: 1, sent }
    }

    fn no(_: &Sent) -> Error {
        Error::new(ErrorKind::Broker, "publish", "no")
    }

    fn sends() -> (Sends, Arc<Exchange>) {
        (Sends::new(Window { messages: 8, bytes: 8 }), Exchange::new("c".into()).unwrap())
    }

    fn hand(sends: &Sends, most: usize, resend: bool) -> Vec<Handed> {
        let mut handed = Vec::new();
        sends.hand(most, resend, |_| true, &mut handed);
        handed
    }

    fn lose(sends: &Sends, handed: Vec<Handed>, resend: bool) {
        sends.lost(handed.into_iter().map(|handed| (handed.queued, handed.room)).collect(), resend, no);
    }

    #[test]
    fn only_what_was_handed_over_may_be_stored_and_goes_back_to_its_place() {
        let (sends, exchange) = sends();
        let confirms: Vec<_> = (0..4).map(|_| sends.try_send(send(false), &exchange).unwrap()).collect();
        let mut none = Vec::new();
        sends.hand(4, true, |_| false, &mut none);
        assert!(none.is_empty(), "nobody has looked for the exchange");
        let tokens = |handed: &[Handed]| handed.iter().map(|h| h.queued.token).collect::<Vec<_>>();
        let handed = hand(&sends, 2, true);
        let first = tokens(&handed);
        lose(&sends, handed, true);
        let again = hand(&sends, 2, true);
        assert_eq!(tokens(&again), first, "in their old places");
        lose(&sends, again, true);
        sends.fail_all(sends.pending.unanswered(), no);
        let report = sends.pending.report();
        assert_eq!((report.unknown, report.failed), (2, 2));
        assert!(!sends.has_queued() && confirms.len() == 4);
    }

    #[test]
    fn what_ended_in_the_queue_leaves_it_and_what_ended_outside_does_not_come_back() {
        let (sends, exchange) = sends();
        let confirms: Vec<_> = (0..3).map(|_| sends.try_send(send(false), &exchange).unwrap()).collect();
        let handed = hand(&sends, 1, true);
        sends.fail_all(sends.pending.unanswered(), no);
        lose(&sends, handed, true);
        assert!(!sends.has_queued() && hand(&sends, 3, true).is_empty());
        // all rooms are free again
        assert!((0..8).all(|_| sends.try_send(send(false), &exchange).is_ok()));
        assert!(sends.try_send(send(false), &exchange).is_err());
        drop(confirms);
    }

    #[tokio::test]
    async fn the_driver_is_woken_by_the_first_only() {
        let (sends, exchange) = sends();
        let mut waiting = Box::pin(sends.queued());
        assert!((&mut waiting).now_or_never().is_none());
        let _first = sends.try_send(send(false), &exchange).unwrap();
        waiting.await;
        let _second = sends.try_send(send(false), &exchange).unwrap();
        assert!(sends.queued.notified().now_or_never().is_none());
        assert!(sends.queued().now_or_never().is_some());
    }

    #[test]
    fn a_copy_is_not_sent_again_and_others_only_if_that_is_asked_for() {
        for resend in [false, true] {
            let (sends, exchange) = sends();
            let is_copy = [false, true, false, true];
            let confirms = is_copy.map(|is_copy| sends.try_send(send(is_copy), &exchange).unwrap());
            let handed = hand(&sends, 4, resend);
            let tokens: Vec<_> = handed.iter().map(|handed| handed.queued.token).collect();
            lose(&sends, handed, resend);
            let again: Vec<_> = hand(&sends, 4, resend).iter().map(|handed| handed.queued.token).collect();
            let expected = if resend { vec![tokens[0], tokens[2]] } else { Vec::new() };
            assert_eq!(again, expected);
            let unanswered = if resend { 2 } else { 4 };
            assert_eq!(sends.pending.report().unknown, unanswered);
            drop(confirms);
        }
    }
}
