//! Subscriptions: receiving, leaving, and the control handle beside them.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use futures_util::future::join_all;
use postrider_core::{
    BoxFuture, Capability, Claim, ClaimId, Control, Delivery, Error, ErrorKind, Group, GroupName, Health,
    HealthState, Origin, Result, Settle, Signal, Start, SubscribeOptions, Subscriber, Subscription, Suspect,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::acks::{self, Acks};
use crate::broker::NatsBroker;
use crate::connection::Connection;
use crate::members::Presence;
use crate::naming::members_subject;
use crate::partition::{Puller, share_of};
use crate::pull::unpin_subject;
use crate::settle::Tracker;
use crate::shared::Shared;
use crate::teller::{Teller, What};
use crate::topology::ConsumerPlan;

/// One member of a group. Dropped, it leaves and gives back what is unsettled; [`close`](Subscription::close) also waits until
/// the server knows.
#[derive(Debug)]
pub struct NatsSubscription {
    tracker: Arc<Tracker>,
    plans: Arc<Vec<ConsumerPlan>>,
    connection: Connection,
    /// None of an ephemeral one.
    group: Option<GroupName>,
    left: bool,
    stop: CancellationToken,
    pullers: JoinSet<()>,
}

impl Subscriber for NatsBroker {
    type Subscription = NatsSubscription;

    async fn subscribe(&self, options: &SubscribeOptions) -> Result<NatsSubscription> {
        use postrider_core::Adapter as _;
        if let Some((name, _)) = options.native.first() {
            let message = "the NATS adapter takes no properties of a subscription; leave it out";
            return Err(Error::config("subscribe", message).with("property", name));
        }
        if options.claim_timeout.is_some_and(|timeout| timeout < Duration::from_secs(1)) {
            return Err(Error::config("subscribe", "`claim_timeout` must be at least 1s"));
        }
        if options.group == Group::Ephemeral {
            self.capabilities().require(Capability::Ephemeral, "subscribe")?;
        }
        let unique = self.environment().random();
        let plans = self.topology().plans(options, &format!("{unique:016x}"))?;
        self.topology().channel(&options.channel).await?;
        self.topology().group(options, &plans).await?;
        let claim_timeout = options.claim_timeout.unwrap_or(self.config().claim_timeout);
        let (teller, inlet) = Teller::new(self.connection().clone());
        let (flush, flushed) = mpsc::channel(16);
        let shared = Arc::new(Shared::new(plans.len() as u32, options.window, options.order, teller));
        let acks = Acks {
            connection: self.connection().clone(),
            env: self.environment().clone(),
            inlet,
            flush: flushed,
            shared: acks::weak(&shared),
            progress: claim_timeout / 3,
        };
        self.tasks().spawn(acks.run());
        let share = plans.len();
        let most = share_of(&options.window, share, self.connection().client.max_payload());
        let (mut pullers, stop) = (JoinSet::new(), CancellationToken::new());
        for (shard, plan) in plans.iter().enumerate() {
            let puller = Puller {
                connection: self.connection().clone(),
                env: self.environment().clone(),
                shared: Arc::clone(&shared),
                shard: shard as u32,
                plan: plan.clone(),
                order: options.order,
                hash: self.hash().clone(),
                window: options.window.messages,
                most,
                claim_timeout,
                stop: stop.clone(),
            };
            pullers.spawn(puller.run());
        }
        if let (true, Group::Named(group), [first, _, ..]) = (self.config().balance, &options.group, &*plans)
        {
            let presence = Presence {
                connection: self.connection().clone(),
                env: self.environment().clone(),
                shared: Arc::clone(&shared),
                subject: members_subject(&first.stream, group),
                partitions: plans.len() as u32,
                patience: claim_timeout,
                stop: stop.clone(),
            };
            pullers.spawn(presence.run());
        }
        let tracker =
            Arc::new(Tracker { shared, flush, env: self.environment().clone(), tasks: self.tasks().clone() });
        Ok(NatsSubscription {
            tracker,
            plans: Arc::new(plans),
            connection: self.connection().clone(),
            group: options.group.name().cloned(),
            left: false,
            stop,
            pullers,
        })
    }
}

impl Subscription for NatsSubscription {
    async fn receive(&mut self, max: NonZeroUsize, into: &mut Vec<Delivery>) -> Result<Signal> {
        loop {
            let tracker = &self.tracker;
            let claim = |token| Claim::new(Arc::clone(tracker) as Arc<dyn Settle>, token);
            if let Some(signal) = tracker.shared.receive(max.get(), into, claim)? {
                return Ok(signal);
            }
            // the only await, and nothing has been taken yet: cancel-safe. A wake-up in between is kept by the notify.
            self.tracker.shared.arrived.notified().await;
        }
    }

    async fn release(&mut self, claims: &[ClaimId]) -> Result<()> {
        for shard in self.tracker.shared.release(claims) {
            if let Some(plan) = self.plans.get(shard as usize) {
                self.tracker.shared.tell(unpin_subject(&plan.stream, &plan.name).into(), What::Unpin);
            }
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        if let Some(farewell) = self.leave() {
            farewell.await;
        }
        let told = acks::flush(&self.tracker.flush).await;
        if self.group.is_none() {
            for plan in self.plans.iter() {
                plan.remove().await;
            }
        }
        if told {
            return Ok(());
        }
        let message = "the server could not be told of the last settlements; it redelivers those messages";
        Err(Error::new(ErrorKind::Connection, "close", message))
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::new(NatsControl {
            tracker: Arc::clone(&self.tracker),
            plans: Arc::clone(&self.plans),
            connection: self.connection.clone(),
            group: self.group.clone(),
        })
    }
}

impl NatsSubscription {
    /// From now on nothing that was handed out can be settled. Answers what is still to be done: pulling stops, what is
    /// unsettled is given back in its order, and the pins are given up, so that others go on at once.
    fn leave(&mut self) -> Option<impl Future<Output = ()> + Send + 'static> {
        if std::mem::replace(&mut self.left, true) {
            return None;
        }
        let shared = Arc::clone(&self.tracker.shared);
        let mut unsettled = shared.take_all();
        self.stop.cancel();
        let (mut pullers, plans) = (std::mem::take(&mut self.pullers), Arc::clone(&self.plans));
        let connection = self.connection.clone();
        Some(async move {
            // given back while a request is open, messages would come to that request
            while pullers.join_next().await.is_some() {}
            if connection.link().up {
                // asked, the server looks whose requests still have a listener, and forgets ours: else it could pin one of
                // them. Where it can't be asked, the pin's time runs out.
                join_all(plans.iter().filter(|plan| plan.pinned).map(ConsumerPlan::unsettled)).await;
            }
            unsettled.extend(shared.take_all());
            for reply in unsettled {
                shared.tell(reply, What::Nak(None));
            }
            // also those of which the first messages came just now
            let held = shared.claims().into_iter().filter_map(|claim| plans.get(claim.shard as usize));
            for plan in held.filter(|plan| plan.pinned) {
                shared.tell(Subject::from(unpin_subject(&plan.stream, &plan.name)), What::Unpin);
            }
        })
    }
}

impl Drop for NatsSubscription {
    fn drop(&mut self) {
        let farewell = self.leave();
        // without a runtime nothing can be told any more; the server finds out by itself
        if let (Some(farewell), Ok(_)) = (farewell, tokio::runtime::Handle::try_current()) {
            self.tracker.tasks.spawn(farewell);
        }
    }
}

struct NatsControl {
    tracker: Arc<Tracker>,
    plans: Arc<Vec<ConsumerPlan>>,
    connection: Connection,
    group: Option<GroupName>,
}

impl Control for NatsControl {
    fn pause(&self) {
        self.tracker.shared.pause(true);
    }

    fn resume(&self) {
        self.tracker.shared.pause(false);
    }

    fn seek(&self, _: Start) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let message =
                "a JetStream consumer can't be moved (capability `seek`); start a new group at another place";
            Err(Error::new(ErrorKind::Unsupported, "seek", message))
        })
    }

    fn lag(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async {
            // what was settled here but not told yet would count as lag
            acks::flush(&self.tracker.flush).await;
            let mut lag = 0;
            for plan in self.plans.iter() {
                lag += plan.lag().await?;
            }
            Ok(lag)
        })
    }

    fn strikes(&self, suspect: Suspect) -> BoxFuture<'_, Result<u32>> {
        Box::pin(async move {
            match (self.plans.first(), &self.group) {
                (Some(plan), Some(group)) => plan.strikes(group, suspect.origin.position).await,
                _ => Ok(0),
            }
        })
    }

    fn set_strikes(&self, suspect: Suspect, strikes: u32) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match (self.plans.first(), &self.group) {
                (Some(plan), Some(group)) => plan.set_strikes(group, suspect.origin.position, strikes).await,
                _ => Ok(()),
            }
        })
    }

    fn claims(&self) -> Vec<ClaimId> {
        self.tracker.shared.claims()
    }

    fn describe(&self, origin: Origin) -> String {
        let stream = self.plans.first().map_or("", |plan| plan.stream.as_str());
        format!("nats:{stream}/{}", origin.position)
    }

    fn health(&self) -> Health {
        let connection = self.connection.health();
        if connection.state > HealthState::Up {
            return connection;
        }
        if self.tracker.shared.claims().is_empty() {
            let reason =
                "no partition is held at present: there is nothing to read, or other members hold them all";
            return Health { state: HealthState::Standby, reason: Some(reason.into()) };
        }
        connection
    }
}
