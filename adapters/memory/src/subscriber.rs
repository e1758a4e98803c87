//! Subscriptions: receiving, and the control handle beside it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use postrider_core::{
    BoxFuture, Claim, ClaimId, Control, Delivery, Error, ErrorKind, Group, Health, Origin, Result, Settle,
    Signal, Start, SubscribeOptions, Subscriber, Subscription, Suspect,
};
use tokio::sync::Notify;

use crate::broker::MemoryBroker;
use crate::channel::{Channel, Found, MemberId};
use crate::settle::Tracker;

/// One member of a group. Dropped, it leaves and gives back what is unsettled.
#[derive(Debug)]
pub struct MemorySubscription {
    tracker: Arc<Tracker>,
    notify: Arc<Notify>,
    left: bool,
}

impl Subscriber for MemoryBroker {
    type Subscription = MemorySubscription;

    async fn subscribe(&self, options: &SubscribeOptions) -> Result<MemorySubscription> {
        self.check_open("subscribe")?;
        if let Some((name, _)) = options.native.first() {
            let message = "the embedded broker has no properties of its own; leave it out";
            return Err(Error::new(ErrorKind::Config, "subscribe", message).with("property", name));
        }
        let channel = self.channel_or_create(&options.channel);
        let name = options.group.name().map(|name| &**name);
        let (member, notify) = channel.join(name, options.start, options.order, options.window);
        let tracker =
            Tracker { channel, member, env: self.environment().clone(), timers: self.timers().clone() };
        Ok(MemorySubscription { tracker: Arc::new(tracker), notify, left: false })
    }
}

impl Subscription for MemorySubscription {
    async fn receive(&mut self, max: NonZeroUsize, into: &mut Vec<Delivery>) -> Result<Signal> {
        loop {
            let tracker = &self.tracker;
            let claim = |token| Claim::new(Arc::clone(tracker) as Arc<dyn Settle>, token);
            match tracker.channel.receive(&tracker.member, max.get(), into, claim) {
                Found::Signal(signal) => return Ok(signal),
                // the only await, and nothing has been taken yet: cancel-safe. A wake-up in between is kept by the notify.
                Found::Nothing => self.notify.notified().await,
            }
        }
    }

    /// Nothing is ever revoked here.
    async fn release(&mut self, _: &[ClaimId]) -> Result<()> {
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        self.leave();
        Ok(())
    }

    fn control(&self) -> Arc<dyn Control> {
        let Tracker { channel, member, .. } = &*self.tracker;
        Arc::new(MemoryControl { channel: Arc::clone(channel), member: member.clone() })
    }
}

impl MemorySubscription {
    fn leave(&mut self) {
        if !self.left {
            self.left = true;
            self.tracker.channel.leave(&self.tracker.member);
        }
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.leave();
    }
}

#[derive(Debug)]
struct MemoryControl {
    channel: Arc<Channel>,
    member: MemberId,
}

impl Control for MemoryControl {
    fn pause(&self) {
        self.channel.pause(&self.member, true);
    }

    fn resume(&self) {
        self.channel.pause(&self.member, false);
    }

    fn seek(&self, to: Start) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.channel.seek(&self.member, to);
            Ok(())
        })
    }

    fn lag(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async { Ok(self.channel.lag(&self.member)) })
    }

    fn strikes(&self, suspect: Suspect) -> BoxFuture<'_, Result<u32>> {
        Box::pin(async move { Ok(self.channel.strikes(&self.member, suspect.origin.position)) })
    }

    fn set_strikes(&self, suspect: Suspect, strikes: u32) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.channel.set_strikes(&self.member, suspect.origin.position, strikes);
            Ok(())
        })
    }

    fn claims(&self) -> Vec<ClaimId> {
        self.channel.epoch(&self.member).map(|epoch| ClaimId { shard: 0, epoch }).into_iter().collect()
    }

    fn describe(&self, origin: Origin) -> String {
        format!("memory:{}/{}", self.channel.name, origin.position)
    }

    fn health(&self) -> Health {
        match self.channel.epoch(&self.member) {
            Some(_) => Health::up(),
            None => Health::down("the subscription has left its group"),
        }
    }
}

/// A group that has its place before a member joins.
pub(crate) fn declare_group(broker: &MemoryBroker, options: &SubscribeOptions) {
    let channel = broker.channel_or_create(&options.channel);
    if let Group::Named(name) = &options.group {
        channel.declare_group(name, options.start, options.order);
    }
}
