//! What the client has of messages on one channel, from the frames to the answers.
//!
//! A lot of messages shares a waker: the client completes confirms in runs, and a wake-up for each would cost more than to look at
//! all that came to its lot.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt as _;
use futures_util::task::AtomicWaker;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};
use postrider_core::{Confirmed, Error, ErrorKind, PublishError, Receipt};
use tokio_util::sync::ReusableBoxFuture;

use crate::confirms::{Exchange, Handed, Queued, Sends};
use crate::convert;
use crate::driver::unroutable;

/// How many boxes are kept for further messages.
const KEPT: usize = 1024;

type Answer = lapin::Result<Confirmation>;
type Publishing = ReusableBoxFuture<'static, Answer>;

/// Rings when the client has something to say about a message of its lot.
#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    driver: Arc<AtomicWaker>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.driver.wake();
        }
    }
}

struct Lot {
    bell: Arc<Bell>,
    /// Each by its number.
    publishing: Vec<(u64, Publishing)>,
}

/// A message without an answer.
struct Out {
    queued: Queued,
    room: usize,
}

/// What is handed over on one channel.
pub(crate) struct Flight {
    channel: Arc<Channel>,
    driver: Arc<AtomicWaker>,
    lots: Vec<Lot>,
    boxes: Vec<Publishing>,
    /// By their numbers, which rise by one; those at the front have no answer.
    out: VecDeque<Option<Out>>,
    /// The number of the first of them.
    first: u64,
    len: usize,
    /// Answered and not judged.
    done: Vec<(u64, Answer)>,
    returned: HashSet<u64>,
}

impl Flight {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel: Arc::new(channel),
            driver: Arc::default(),
            lots: Vec::new(),
            boxes: Vec::new(),
            out: VecDeque::new(),
            first: 0,
            len: 0,
            done: Vec::new(),
            returned: HashSet::new(),
        }
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// How many have no answer that was judged.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Hands a lot to the client, which takes each message's frames at its first poll.
    pub(crate) fn send(&mut self, lot: Vec<Handed>) {
        let bell = Arc::new(Bell { rung: AtomicBool::new(false), driver: Arc::clone(&self.driver) });
        // all are made before the first goes out: the client writes what is there when it looks
        let made: Vec<_> = lot.into_iter().map(|handed| self.make(handed)).collect();
        let waker = Waker::from(Arc::clone(&bell));
        let mut cx = Context::from_waker(&waker);
        let mut publishing = Vec::with_capacity(made.len());
        for (number, mut one) in made {
            match one.poll(&mut cx) {
                Poll::Ready(answer) => self.take(number, answer, one),
                Poll::Pending => publishing.push((number, one)),
            }
        }
        if !publishing.is_empty() {
            self.lots.push(Lot { bell, publishing });
        }
    }

    fn make(&mut self, Handed { queued, message, room }: Handed) -> (u64, Publishing) {
        let number = self.first + self.out.len() as u64;
        let properties = convert::properties(&message.envelope, queued.token);
        let (exchange, key) = (queued.exchange.name.clone(), message.routing_key.spelt());
        let (channel, body) = (Arc::clone(&self.channel), message.envelope.into_payload());
        self.out.push_back(Some(Out { queued, room }));
        self.len += 1;
        let publishing = async move {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            channel.basic_publish(exchange, key, options, &body, properties).await?.await
        };
        let publishing = match self.boxes.pop() {
            Some(mut kept) => {
                kept.set(publishing);
                kept
            }
            None => Publishing::new(publishing),
        };
        (number, publishing)
    }

    fn take(&mut self, number: u64, mut answer: Answer, kept: Publishing) {
        if self.boxes.len() < KEPT {
            self.boxes.push(kept);
        }
        if let Ok(Confirmation::Ack(message) | Confirmation::Nack(message)) = &mut answer
            && let Some(message) = message.take()
            && let Some(returned) = convert::returned(&message.properties)
        {
            self.returned.insert(returned);
        }
        self.done.push((number, answer));
    }

    /// Takes every answer that is there. `cx` is woken by the next that comes.
    fn look(&mut self, cx: &mut Context<'_>) {
        self.driver.register(cx.waker());
        let mut lots = std::mem::take(&mut self.lots);
        lots.retain_mut(|lot| {
            // looked at first, as most haven't rung: whoever rang before this has woken who was registered above, or is seen here
            if lot.bell.rung.load(Ordering::Relaxed) && lot.bell.rung.swap(false, Ordering::AcqRel) {
                let waker = Waker::from(Arc::clone(&lot.bell));
                self.visit(lot, &mut Context::from_waker(&waker));
            }
            !lot.publishing.is_empty()
        });
        self.lots = lots;
    }

    fn visit(&mut self, lot: &mut Lot, cx: &mut Context<'_>) {
        for index in (0..lot.publishing.len()).rev() {
            if let Poll::Ready(answer) = lot.publishing[index].1.poll(cx) {
                let (number, one) = lot.publishing.swap_remove(index);
                self.take(number, answer, one);
            }
        }
    }

    /// Resolves when an answer is there.
    pub(crate) async fn answered(&mut self) {
        poll_fn(|cx| {
            self.look(cx);
            if self.done.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Whether an answer is there.
    pub(crate) fn has_answers(&mut self) -> bool {
        self.look(&mut Context::from_waker(Waker::noop()));
        !self.done.is_empty()
    }

    /// Judges all that were answered before this call. Answers why the channel ended, if it has.
    ///
    /// The client attaches a returned message to whichever confirm completes next, and completes the confirms of a `multiple`
    /// acknowledgement in any order. So no confirm is judged by itself: all that are there are collected, then a call that takes the
    /// lock under which the client works through an acknowledgement makes sure that it is done with the last one, and what is there
    /// by then is collected too. By AMQP a return comes before its confirm, so every return of the first lot is now among the two.
    pub(crate) fn judge(&mut self, sends: &Sends) -> Option<lapin::Error> {
        let mut nobody = Context::from_waker(Waker::noop());
        self.look(&mut nobody);
        let sure = self.done.len();
        // polled once only
        let _ = pin!(self.channel.wait_for_confirms()).now_or_never();
        self.look(&mut nobody);
        let mut failed = None;
        let mut judged = Vec::with_capacity(sure);
        let rest = self.done.split_off(sure);
        for (number, answer) in std::mem::replace(&mut self.done, rest) {
            match answer {
                Err(error) => failed = Some(error),
                Ok(confirmation) => {
                    if let Some(Out { queued, room }) = self.answered_out(number) {
                        let returned = !self.returned.is_empty() && self.returned.remove(&queued.token);
                        judged.push((
                            queued.token,
                            room,
                            outcome(sends, &queued.exchange, &confirmation, returned),
                        ));
                    }
                }
            }
        }
        sends.pending.resolve_taken(judged);
        failed
    }

    fn answered_out(&mut self, number: u64) -> Option<Out> {
        let out = self.out.get_mut((number - self.first) as usize)?.take();
        self.len -= usize::from(out.is_some());
        while let Some(None) = self.out.front() {
            self.out.pop_front();
            self.first += 1;
        }
        out
    }

    /// Those without an answer, in the order in which they went out, each with its room.
    pub(crate) fn unanswered(self) -> Vec<(Queued, usize)> {
        self.out.into_iter().flatten().map(|out| (out.queued, out.room)).collect()
    }
}

fn outcome(sends: &Sends, exchange: &Exchange, confirmation: &Confirmation, returned: bool) -> Confirmed {
    if returned {
        sends.taken(exchange, false);
        return Err(PublishError::Failed(unroutable(exchange)));
    }
    if let Confirmation::Ack(_) = confirmation {
        sends.taken(exchange, true);
        return Ok(Receipt::default());
    }
    let message = "a queue refused the message; another may have taken it";
    Err(PublishError::Unknown(Error::new(ErrorKind::Broker, "publish", message).temporary(true)))
}
