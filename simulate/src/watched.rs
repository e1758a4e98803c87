//! The embedded broker with somebody who watches: every publish, delivery and acknowledgement is written down, the bounds are
//! looked at, and a bug can be put in.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postrider_core::{
    Adapter, BoxFuture, Bytes, Capabilities, Channel, Claim, ClaimId, Confirm, Control, Declare, Delivery,
    DrainReport, Env, Envelope, Finding, Health, Inventory, Outgoing, PublishError, Publisher, Receipt,
    Result, Scope, Settle, SettleError, Settlement, Signal, SubscribeOptions, Subscriber, Subscription,
    Token,
};
use postrider_memory::{MemoryBroker, MemorySubscription};

use crate::bug::Bug;
use crate::group::SlowGroup;
use crate::history::{Event, Sent, What, World, number_of};
use crate::scenario::{MADE, Scenario, WORK};

/// The broker that services connect to.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    inner: MemoryBroker,
    world: World,
    scenario: Arc<Scenario>,
    bug: Option<Bug>,
}

impl Watched {
    pub(crate) fn new(inner: MemoryBroker, world: World, scenario: Arc<Scenario>, bug: Option<Bug>) -> Self {
        Self { inner, world, scenario, bug }
    }

    /// Whether the bug keeps a copy from being stored.
    fn swallows(&self, what: What) -> bool {
        match what {
            What::Letter => self.bug == Some(Bug::LetterConfirmedTooEarly),
            What::Output => self.bug == Some(Bug::OutputConfirmedTooEarly),
            What::Message | What::Retry => false,
        }
    }
}

impl Publisher for Watched {
    fn env(&self) -> &Env {
        self.inner.env()
    }

    async fn send(&self, message: Outgoing<'_>) -> Confirm {
        let (to, number) = (message.address.channel().to_owned(), number_of(&message.envelope));
        let what = match message.address.group() {
            Some(_) => What::Retry,
            None if to == WORK => What::Message,
            None if to == MADE => What::Output,
            None => What::Letter,
        };
        let outcome =
            if self.swallows(what) { Ok(Receipt::default()) } else { self.inner.send(message).await.await };
        let sent = match &outcome {
            Ok(_) => Sent::Confirmed,
            Err(PublishError::Failed(_)) => Sent::Failed,
            Err(PublishError::Unknown(_)) => Sent::Unknown,
        };
        let kept = self.inner.kept(&to);
        self.world.tell(Event::Sent { what, to, number, sent });
        let bound = self.scenario.bound;
        if kept > bound {
            let broken = format!("the channel holds {kept} messages, its bound is {bound}");
            self.world.tell(Event::Broken(broken));
        }
        if what == What::Output && number % 3 == 0 {
            // as a broker over a network confirms what it has had for a while
            let late = self.env().sleep(Duration::from_millis(number % 60));
            return Confirm::boxed(async move {
                late.await;
                outcome
            });
        }
        Confirm::ready(outcome)
    }

    fn try_send<'a>(&self, message: Outgoing<'a>) -> std::result::Result<Confirm, Outgoing<'a>> {
        // all go the long way, where they are seen
        Err(message)
    }

    async fn flush(&self) -> std::result::Result<(), PublishError> {
        self.inner.flush().await
    }

    async fn close(&self, deadline: Instant) -> DrainReport {
        self.inner.close(deadline).await
    }
}

impl Subscriber for Watched {
    type Subscription = WatchedSubscription;

    async fn subscribe(&self, options: &SubscribeOptions) -> Result<WatchedSubscription> {
        let mut asked = options.clone();
        if self.bug == Some(Bug::WindowExceeded) {
            asked.window.messages *= 2;
        }
        let tracker = Tracker {
            world: self.world.clone(),
            member: self.world.member(),
            group: options.group.to_string(),
            window: options.window.messages,
            out: Mutex::default(),
        };
        let inner = self.inner.subscribe(&asked).await?;
        let group =
            Arc::new(SlowGroup::new(&self.scenario, self.world.clone(), &tracker.group, inner.control()));
        Ok(WatchedSubscription { inner, tracker: Arc::new(tracker), group, bug: self.bug, inbox: Vec::new() })
    }
}

impl Adapter for Watched {
    type Letters = <MemoryBroker as Adapter>::Letters;

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn declare(&self, topology: &[Declare]) -> Result<()> {
        self.inner.declare(topology).await
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn letters(&self, channel: &Channel) -> Result<Self::Letters> {
        self.inner.letters(channel).await
    }

    async fn inventory(&self, scope: &Scope) -> Result<Inventory> {
        self.inner.inventory(scope).await
    }

    async fn examine(&self) -> Vec<Finding> {
        self.inner.examine().await
    }
}

/// A member's subscription.
#[derive(Debug)]
pub(crate) struct WatchedSubscription {
    inner: MemorySubscription,
    tracker: Arc<Tracker>,
    group: Arc<SlowGroup>,
    bug: Option<Bug>,
    inbox: Vec<Delivery>,
}

impl Subscription for WatchedSubscription {
    async fn receive(&mut self, max: NonZeroUsize, into: &mut Vec<Delivery>) -> Result<Signal> {
        let signal = self.inner.receive(max, &mut self.inbox).await?;
        if let Signal::Lost(_) = &signal {
            let Tracker { world, member, group, .. } = &*self.tracker;
            world.tell(Event::Lost { member: *member, group: group.clone() });
        }
        if self.bug == Some(Bug::OrderSwapped) {
            let keyed = |d: &Delivery| d.envelope.key().map(<[u8]>::to_vec);
            let same = (1..self.inbox.len()).find(|n| keyed(&self.inbox[*n]) == keyed(&self.inbox[n - 1]));
            if let Some(n) = same {
                self.inbox.swap(n - 1, n);
            }
        }
        for delivery in std::mem::take(&mut self.inbox) {
            if self.bug == Some(Bug::RedeliveryLost) && delivery.deliveries > Some(1) {
                // nobody is told
                let _ = delivery.claim.settle(Settlement::Ack);
                continue;
            }
            into.push(Tracker::hand_out(&self.tracker, delivery, self.bug));
        }
        Ok(signal)
    }

    async fn release(&mut self, claims: &[ClaimId]) -> Result<()> {
        self.inner.release(claims).await
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.group) as Arc<dyn Control>
    }
}

/// What a member has out, and the broker's own claims on it.
#[derive(Debug)]
struct Tracker {
    world: World,
    member: u32,
    group: String,
    window: usize,
    out: Mutex<BTreeMap<Token, (u64, Claim)>>,
}

impl Tracker {
    fn out(&self) -> MutexGuard<'_, BTreeMap<Token, (u64, Claim)>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_out(this: &Arc<Self>, delivery: Delivery, bug: Option<Bug>) -> Delivery {
        let Delivery { mut envelope, origin, deliveries, claim } = delivery;
        if bug == Some(Bug::Phantom) && origin.position == 3 {
            envelope = phantom(envelope);
        }
        let (number, token) = (number_of(&envelope), claim.token());
        this.world.tell(Event::Delivered {
            member: this.member,
            group: this.group.clone(),
            number,
            position: origin.position,
            deliveries: deliveries.unwrap_or(0),
            key: envelope.key().map(|key| String::from_utf8_lossy(key).into_owned()),
        });
        if bug == Some(Bug::AckedTooEarly) {
            // the claim is used up; what the runner settles later is stale
            let _ = claim.settle(Settlement::Ack);
        } else {
            let mut out = this.out();
            out.insert(token, (number, claim));
            let under = out.keys().filter(|other| other.claim == token.claim).count();
            drop(out);
            if under > this.window {
                let broken = format!("{under} messages are out, the window has room for {}", this.window);
                this.world.tell(Event::Broken(broken));
            }
        }
        if bug == Some(Bug::KeyLost) {
            envelope = without_key(envelope);
        }
        Delivery {
            envelope,
            origin,
            deliveries,
            claim: Claim::new(Arc::clone(this) as Arc<dyn Settle>, token),
        }
    }
}

impl Settle for Tracker {
    fn settle(&self, batch: &[(Token, Settlement)]) -> std::result::Result<(), SettleError> {
        let (mut claims, mut settled, mut stale) = (Vec::with_capacity(batch.len()), Vec::new(), Vec::new());
        for (token, how) in batch {
            if *how == Settlement::Extend {
                continue;
            }
            let Some((number, claim)) = self.out().remove(token) else {
                stale.push(*token);
                continue;
            };
            claims.push((claim, *how));
            settled.push((*token, number, *how));
        }
        if let Err(error) = Claim::settle_all(&mut claims) {
            stale.extend(error.stale);
        }
        for (token, number, how) in settled {
            let (member, group) = (self.member, self.group.clone());
            if stale.contains(&token) {
                self.world.tell(Event::Stale { member, group, number });
            } else if how == Settlement::Ack {
                self.world.tell(Event::Acked { member, group, number, position: token.seq });
            }
        }
        if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
    }

    fn flush(&self) -> BoxFuture<'_, std::result::Result<(), SettleError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The message as one without a key.
fn without_key(envelope: Envelope) -> Envelope {
    let mut headers = postrider_core::HeadersMut::new();
    for (attribute, value) in envelope.headers().attributes() {
        if attribute != postrider_core::Attribute::Key {
            headers.set(attribute, value);
        }
    }
    for (name, value) in envelope.headers().iter() {
        headers.insert_system(name, value);
    }
    let headers = headers.freeze();
    envelope.with_headers(headers)
}

/// A message that nobody sent.
fn phantom(envelope: Envelope) -> Envelope {
    let headers = postrider_core::Headers::default();
    envelope.with_headers(headers).map(|_| Bytes::from_static(b"{\"number\":987654321}"))
}
