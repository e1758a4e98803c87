//! The task that pulls one partition's messages: requests, pins, silence, and what to do when the consumer is gone.

mod farewell;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use postrider_core::{BoxFuture, Env, Error, ErrorKind, Order, Signal, Window};
use tokio_util::sync::CancellationToken;

use crate::connection::{Connection, Link};
use crate::convert;
use crate::pull::{self, Answer, PRIORITY_GROUP, Request, nanos, unpin_subject};
use crate::shared::{Arrived, Shared};
use crate::teller::What;
use crate::topology::{ConsumerPlan, Unsettled};

/// How long a request may wait at the server.
const EXPIRES: Duration = Duration::from_secs(30);
/// How long a member that held nothing waits after a reconnect.
const COURTESY: Duration = Duration::from_millis(500);
/// How long what runs may hold back a partition that is to be given to another member.
const PATIENCE: Duration = Duration::from_mins(1);
/// The time between two looks at what an earlier holder left.
const LOOK: Duration = Duration::from_millis(20);
/// The most messages that are taken together.
const LOT: usize = 256;

/// The least that a partition may have asked for: messages, and beside the largest one's body the bytes of its headers.
const LEAST: Window = Window { messages: 256, bytes: 64 * 1024 };

/// What each of so many partitions may have asked for. All of them have a request open, also those without messages; together that is
/// one window more, or what little lets each go on. The server halts when it has sent what was asked for, so a single partition asks
/// for all that there is room for.
pub(crate) fn share_of(window: &Window, partitions: usize, largest: usize) -> Window {
    Window {
        messages: (window.messages / partitions).max(LEAST.messages),
        bytes: (window.bytes / partitions).max(largest + LEAST.bytes),
    }
}

pub(crate) struct Puller {
    pub(crate) connection: Connection,
    pub(crate) env: Env,
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: u32,
    pub(crate) plan: ConsumerPlan,
    pub(crate) order: Order,
    pub(crate) hash: std::hash::RandomState,
    /// How many messages may be held here, of all partitions together.
    pub(crate) window: usize,
    /// The most that is asked for and hasn't come.
    pub(crate) most: Window,
    pub(crate) claim_timeout: Duration,
    pub(crate) stop: CancellationToken,
}

/// What is known of the conversation with the server.
struct Talk {
    link: Link,
    inbox: String,
    pin: Option<String>,
    /// The pin under which the partition was given to another member.
    given_up: Option<String>,
    requested: usize,
    /// How often in a row there was a message for a renewal, and none for the requests before it.
    starved: u32,
    heard: Instant,
    asked: Instant,
    /// Since when nobody answers requests though the connection is there.
    unanswered: Option<Instant>,
    not_before: Instant,
    down_since: Option<Instant>,
    gathering: Option<Gathering>,
    /// After a reconnect: whether the pin is still ours isn't known yet.
    unsure: bool,
    /// When to look at what the server knows, if there is a reason to.
    look_at: Instant,
}

/// A holder's first work: to wait for what the one before it left unsettled, since the server redelivers that in no
/// particular order, and after newer messages where its time runs out only then. The same after a connection was lost.
struct Gathering {
    since: Instant,
    /// What was still missing at the last look.
    missing: usize,
}

impl Puller {
    /// Runs until it is dropped, or the subscription has ended with a reason.
    pub(crate) async fn run(self) {
        let inbox = self.connection.client.new_inbox();
        let mut messages = match self.connection.client.subscribe(format!("{inbox}.*")).await {
            Ok(messages) => messages,
            Err(e) => return self.shared.end(crate::error::request("subscribe", e)),
        };
        if !self.plan.pinned {
            self.shared.assign(self.shard, false, self.env.now());
        }
        let now = self.env.now();
        let mut talk = Talk {
            link: self.connection.link(),
            inbox,
            pin: None,
            given_up: None,
            requested: 0,
            starved: 0,
            heard: now,
            asked: now,
            unanswered: None,
            not_before: now,
            down_since: None,
            gathering: None,
            unsure: false,
            look_at: now,
        };
        let mut look: Option<BoxFuture<'_, _>> = None;
        let Some(room) = self.shared.with_partition(self.shard, |partition| Arc::clone(&partition.room))
        else {
            return;
        };
        let tick = (self.heartbeat() / 4).max(Duration::from_millis(50));
        // made anew only when it has rung or another is wanted, not for each lot of messages
        let mut clock = (tick, self.env.sleep(tick));
        loop {
            if let Err(error) = self.ask(&mut talk).await {
                return self.shared.end(error);
            }
            let reason = talk.unsure || talk.gathering.is_some();
            let wait = if reason { LOOK } else { tick };
            if clock.0 != wait {
                clock = (wait, self.env.sleep(wait));
            }
            if look.is_none() && talk.link.up && reason && talk.look_at <= self.env.now() {
                look = Some(Box::pin(self.plan.unsettled()));
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.farewell(&mut talk, messages).await,
                link = self.connection.changed(talk.link) => {
                    // its answer went with the old connection
                    look = None;
                    self.link_changed(&mut talk, link);
                }
                message = messages.next() => match message {
                    Some(message) => if let Err(error) = self.take(&mut talk, message, &mut messages) {
                        return self.shared.end(error);
                    },
                    None => return self.shared.end(Error::new(ErrorKind::Closed, "receive", "the connection is closed")),
                },
                found = async { match &mut look { Some(look) => look.await, None => std::future::pending().await } } => {
                    look = None;
                    clock.1 = self.env.sleep(wait);
                    match found {
                        Ok(Some(found)) => self.looked(&mut talk, &found),
                        Ok(None) => self.gone(&mut talk),
                        // the server is still starting, or the connection is gone again: the next look will tell
                        Err(_) => talk.look_at = self.env.now() + LOOK,
                    }
                }
                () = room.notified() => {}
                () = &mut clock.1 => clock.1 = self.env.sleep(wait),
            }
        }
    }

    /// What the server says is unsettled, held against what is here.
    fn looked(&self, talk: &mut Talk, found: &Unsettled) {
        let now = self.env.now();
        talk.look_at = now + LOOK;
        if std::mem::take(&mut talk.unsure) {
            if found.pin != talk.pin {
                self.lose(talk);
            } else if talk.pin.is_some() && talk.gathering.is_none() {
                // what was on its way over the old connection comes again later, and after newer messages
                talk.gathering = Some(Gathering { since: now, missing: 0 });
                self.shared.gather(self.shard);
            }
            self.shared.reach(self.shard, true);
        }
        let Some(gathering) = &mut talk.gathering else {
            return;
        };
        let waited = now.saturating_duration_since(gathering.since);
        gathering.missing = found.count.saturating_sub(self.shared.held_of(self.shard, found.delivered));
        if gathering.missing > 0 && waited > self.claim_timeout.saturating_mul(3) {
            tracing::warn!(target: "postrider::claim", stream = self.plan.stream, consumer = self.plan.name,
                missing = gathering.missing, "the server doesn't redeliver all that an earlier holder left; going on");
            gathering.missing = 0;
        }
        if gathering.missing == 0 {
            talk.gathering = None;
            self.shared.gathered(self.shard);
        }
    }

    /// The consumer is no longer there: it is brought back before the next request.
    fn gone(&self, talk: &mut Talk) {
        // another stream or consumer of that name counts anew
        self.lose(talk);
        self.shared.forget(self.shard);
        self.shared.reach(self.shard, true);
        (talk.requested, talk.unsure) = (0, false);
        let now = self.env.now();
        talk.unanswered = Some(now.checked_sub(Duration::from_secs(2)).unwrap_or(now));
    }

    fn heartbeat(&self) -> Duration {
        (self.claim_timeout / 6).min(Duration::from_secs(5))
    }

    fn link_changed(&self, talk: &mut Talk, link: Link) {
        let now = self.env.now();
        if link.up {
            // requests died with the old connection; the pin may have lived on
            (talk.requested, talk.heard, talk.not_before, talk.down_since) = (0, now, now, None);
            if self.shard == 0 {
                self.shared.event(Signal::Reconnected);
            }
            if self.plan.pinned && self.is_assigned() {
                talk.unsure = true;
            } else {
                // who held it before goes first: it knows what it has acknowledged, which a server that was killed may not
                talk.pin = None;
                talk.not_before = now + if self.plan.pinned { COURTESY } else { Duration::ZERO };
                self.shared.reach(self.shard, true);
            }
        } else {
            talk.down_since = Some(now);
            self.shared.reach(self.shard, false);
        }
        talk.link = link;
    }

    /// Asks for as much as there is room for, and keeps the pin.
    async fn ask(&self, talk: &mut Talk) -> Result<(), Error> {
        let now = self.env.now();
        if let Some(since) = talk.down_since {
            if self.plan.pinned && now.saturating_duration_since(since) > self.claim_timeout {
                // somebody else may hold it by now
                talk.gathering = None;
                self.shared.lose(self.shard);
            }
            return Ok(());
        }
        self.notice_release(talk);
        if now < talk.not_before || talk.unsure {
            return Ok(());
        }
        if self.shared.moving(self.shard).is_some_and(|since| now.saturating_duration_since(since) > PATIENCE)
        {
            tracing::warn!(target: "postrider::claim", stream = self.plan.stream, consumer = self.plan.name,
                "what is to be given to another member isn't settled in time; it is given up");
            talk.given_up.clone_from(&talk.pin);
            self.lose(talk);
            (talk.requested, talk.not_before) = (0, now + COURTESY);
            self.shared.tell(unpin_subject(&self.plan.stream, &self.plan.name).into(), What::Unpin);
            return Ok(());
        }
        if self.plan.pinned && talk.pin.is_none() && !self.shared.may_take_another() {
            return Ok(());
        }
        if talk.unanswered.is_some_and(|since| now.saturating_duration_since(since) > Duration::from_secs(1))
        {
            self.plan.restore().await?;
            talk.unanswered = Some(now);
            if !self.plan.pinned && !self.is_assigned() {
                self.shared.assign(self.shard, false, self.env.now());
            }
        }
        let silent = now.saturating_duration_since(talk.heard);
        if talk.requested > 0 && silent > self.heartbeat() * 3 {
            tracing::warn!(target: "postrider::claim", stream = self.plan.stream, consumer = self.plan.name, "the server is silent");
            if self.plan.pinned {
                // the pin may still be ours: a delivery under it will tell
                talk.gathering = None;
                self.shared.lose(self.shard);
            }
            (talk.requested, talk.heard) = (0, now);
        }
        let missing = talk.gathering.as_ref().map_or(0, |gathering| gathering.missing);
        let wanted = self.window.saturating_sub(self.shared.load()).max(missing).min(self.most.messages);
        let free = wanted.saturating_sub(talk.requested);
        // of several requests without a pin one would get it, and the others would wait for ever
        let enough = if self.plan.pinned && talk.pin.is_none() { 0 } else { wanted / 2 };
        if free > 0 && talk.requested <= enough {
            let request = Request {
                batch: free,
                max_bytes: self.most.bytes,
                expires: nanos(EXPIRES),
                idle_heartbeat: nanos(self.heartbeat()),
                group: self.plan.pinned.then_some(PRIORITY_GROUP),
                id: talk.pin.as_deref(),
            };
            if talk.requested == 0 {
                talk.heard = now;
            }
            self.publish(&request, &format!("{}.m", talk.inbox)).await;
            talk.requested += free;
            talk.asked = now;
        } else if talk.pin.is_some() && now.saturating_duration_since(talk.asked) > self.claim_timeout / 3 {
            // the server keeps a pin as long as its holder asks: this asks for a message that no message is small enough for
            let request = Request {
                batch: 1,
                max_bytes: 1,
                expires: nanos(Duration::from_millis(500)),
                idle_heartbeat: 0,
                group: Some(PRIORITY_GROUP),
                id: talk.pin.as_deref(),
            };
            self.publish(&request, &format!("{}.r", talk.inbox)).await;
            talk.asked = now;
        }
        Ok(())
    }

    async fn publish(&self, request: &Request<'_>, reply: &str) {
        let subject = pull::next_subject(&self.plan.stream, &self.plan.name);
        // a struct of numbers and short text always becomes JSON; an error of the client is a closed connection
        if let Ok(body) = serde_json::to_vec(request) {
            let _ =
                self.connection.client.publish_with_reply(subject, reply.to_owned(), Bytes::from(body)).await;
        }
    }

    /// What came, and all that came with it.
    fn take(&self, talk: &mut Talk, message: Message, more: &mut Subscriber) -> Result<(), Error> {
        talk.heard = self.env.now();
        self.notice_release(talk);
        let mut lot = Vec::new();
        let mut next = Some(message);
        while let Some(message) = next {
            self.take_one(talk, message, &mut lot)?;
            next = if lot.len() < LOT { more.next().now_or_never().flatten() } else { None };
        }
        self.shared.push(self.shard, lot);
        Ok(())
    }

    /// Deliveries gather in `lot`; all else finds them pushed.
    fn take_one(&self, talk: &mut Talk, message: Message, lot: &mut Vec<Arrived>) -> Result<(), Error> {
        let renewal = message.subject.ends_with(".r");
        let answer = pull::read(&message);
        if !matches!(answer, Answer::Delivery(_)) {
            self.shared.push(self.shard, std::mem::take(lot));
        }
        if !matches!(answer, Answer::NoResponders) {
            talk.unanswered = None;
        }
        match answer {
            Answer::Delivery(place) => {
                talk.requested = talk.requested.saturating_sub(usize::from(!renewal));
                talk.starved = 0;
                if self.plan.pinned && !self.keep_pin(talk, pull::pin_of(&message), lot) {
                    if let Some(reply) = message.reply {
                        self.shared.tell(reply, What::Nak(None));
                    }
                    return Ok(());
                }
                let envelope = convert::envelope(
                    message.headers.as_ref(),
                    message.payload,
                    &self.plan.stream,
                    place.sequence,
                    place.time_ms,
                );
                let key = match self.order {
                    Order::Key => envelope.key().map(|key| self.hash.hash_one(key)),
                    Order::Partition => Some(u64::from(self.shard)),
                    Order::None => None,
                };
                if let Some(reply) = message.reply {
                    lot.push(Arrived { reply, envelope, key, place });
                }
            }
            Answer::Heartbeat => {}
            Answer::Ended { .. } if renewal => {}
            // a request that the server keeps under another pin, or none, gets nothing: ask anew
            Answer::TooLarge { .. } if renewal => {
                talk.starved += u32::from(talk.requested > 0);
                if talk.starved > 1 {
                    (talk.requested, talk.starved) = (0, 0);
                }
            }
            Answer::Ended { left } | Answer::TooLarge { left } => {
                talk.requested = talk.requested.saturating_sub(left);
            }
            Answer::WrongPin => {
                self.lose(talk);
                talk.requested = 0;
            }
            Answer::NoResponders => {
                let now = self.env.now();
                talk.requested = 0;
                talk.unanswered.get_or_insert(now);
                talk.not_before = now + Duration::from_millis(100);
            }
            Answer::Gone(_) => self.gone(talk),
            Answer::Refused(why) => {
                let error =
                    Error::new(ErrorKind::Broker, "receive", "the server refuses the request for messages");
                return Err(error
                    .with("stream", &self.plan.stream)
                    .with("consumer", &self.plan.name)
                    .with("answer", why));
            }
        }
        Ok(())
    }

    /// A delivery under another pin is another hold. Answers whether it is held: not under a pin that was given up.
    fn keep_pin(&self, talk: &mut Talk, pin: Option<&str>, lot: &mut Vec<Arrived>) -> bool {
        if !lot.is_empty() && talk.pin.as_deref() == pin {
            // as the one before it
            return true;
        }
        self.shared.push(self.shard, std::mem::take(lot));
        self.notice_release(talk);
        if pin.is_some() && talk.given_up.as_deref() == pin {
            return false;
        }
        if self.is_assigned() && talk.pin.as_deref() == pin {
            return true;
        }
        self.lose(talk);
        talk.pin = pin.map(Into::into);
        let now = self.env.now();
        talk.gathering = Some(Gathering { since: now, missing: 0 });
        self.shared.assign(self.shard, true, now)
    }

    /// After the partition was given to another member: the old pin is none, and the other one asks first.
    fn notice_release(&self, talk: &mut Talk) {
        if self.shared.take_released(self.shard) {
            talk.given_up = talk.pin.take();
            (talk.requested, talk.gathering, talk.unsure) = (0, None, false);
            talk.not_before = self.env.now() + COURTESY;
        }
    }

    fn is_assigned(&self) -> bool {
        self.shared.with_partition(self.shard, |partition| partition.assigned).unwrap_or(false)
    }

    fn lose(&self, talk: &mut Talk) {
        (talk.pin, talk.gathering) = (None, None);
        self.shared.lose(self.shard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_share_what_may_be_asked_for_and_each_can_go_on() {
        let window = |messages, bytes| Window { messages, bytes };
        let of = |partitions| share_of(&window(1024, 16 << 20), partitions, 1 << 20);
        assert_eq!(of(1), window(1024, 16 << 20));
        assert_eq!(of(2), window(512, 8 << 20));
        assert_eq!(of(64), window(256, (1 << 20) + 64 * 1024), "the largest message comes");
    }
}
