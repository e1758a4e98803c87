//! Subscriptions: receiving, leaving, and the control handle beside them.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use postrider_core::{
    BoxFuture, Capability, Claim, ClaimId, Control, Delivery, Error, ErrorKind, Group, Health, HealthState,
    Origin, Result, Settle, Signal, Start, SubscribeOptions, Subscriber, Subscription, Suspect,
};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::RabbitmqBroker;
use crate::config::RabbitmqConfig;
use crate::connection::Link;
use crate::members::Members;
use crate::partition::{Attendant, LONGEST, Request, Restorer};
use crate::settle::Tracker;
use crate::shared::Shared;
use crate::strikes::Notes;

impl RabbitmqBroker {
    /// Refuses what may take longer than the broker leaves a message with a member.
    fn holds(&self, options: &SubscribeOptions) -> Result<()> {
        let limit = self.config().consumer_timeout;
        let longest = limit.mul_f64(LONGEST);
        let (what, time, advice) = match (options.attempt_timeout, options.longest_hold) {
            (Some(time), _) if time > longest => {
                ("one attempt may take", time, "let the route's `timeout` be")
            }
            (_, Some(time)) if time > longest => (
                "a message may be held (all its attempts and the waits between them) for",
                time,
                "let fewer or shorter attempts and waits, or `max_elapsed`, bring that to",
            ),
            _ => return Ok(()),
        };
        let message = format!(
            "{what} {time:?}, and after {limit:?} (`consumer_timeout`) the broker takes the queue away; {advice} at most {longest:?}, or raise `consumer_timeout` at the broker and in the URL",
        );
        Err(Error::config("subscribe", message).with("channel", &options.channel))
    }
}

/// One member of a group. Dropped, it leaves and gives back what is unsettled; [`close`](Subscription::close) also waits until
/// the broker knows.
#[derive(Debug)]
pub struct RabbitmqSubscription {
    tracker: Arc<Tracker>,
    queues: Arc<[String]>,
    link: Link,
    consumer_timeout: Duration,
    notes: Option<Notes>,
    config: RabbitmqConfig,
    left: bool,
    stop: CancellationToken,
    attendants: JoinSet<()>,
}

impl Subscriber for RabbitmqBroker {
    type Subscription = RabbitmqSubscription;

    async fn subscribe(&self, options: &SubscribeOptions) -> Result<RabbitmqSubscription> {
        use postrider_core::Adapter as _;
        if matches!(options.start, Start::Time(_)) {
            self.capabilities().require(Capability::StartTime, "subscribe")?;
        }
        self.holds(options)?;
        let plan = self.topology().plan(options, self.environment().random())?;
        // looked up before the topology: when the connection changes in between, it is looked at again
        let link = self.consuming();
        let (generation, connection) = link.up_within("subscribe", self.environment(), self.config()).await?;
        if options.group != Group::Ephemeral {
            link.operation("subscribe", generation, self.topology().group(&connection, &plan)).await?;
        }
        let notes = self.topology().notes(&plan)?;
        let (count, marker) = (plan.queues.len(), plan.marker.clone());
        let queues: Arc<[String]> = plan.queues.clone().into();
        let shared = Arc::new(Shared::new(count, options.window, options.order));
        let done = if options.group == Group::Ephemeral { 0 } else { generation };
        let restorer = Arc::new(Restorer { topology: self.topology().clone(), plan, done: Mutex::new(done) });
        let (mut attendants, stop) = (JoinSet::new(), CancellationToken::new());
        let (mut requests, mut attached) = (Vec::new(), Vec::new());
        for shard in 0..count {
            let (request, asked) = mpsc::channel(16);
            let (there, is_there) = oneshot::channel();
            requests.push(request);
            attached.push(is_there);
            let attendant = Attendant {
                link: self.consuming().clone(),
                env: self.environment().clone(),
                shared: Arc::clone(&shared),
                restorer: Arc::clone(&restorer),
                shard,
                prefetch: prefetch(options.window.messages),
                consumer_timeout: self.config().consumer_timeout,
                hash: self.hash().clone(),
                stop: stop.clone(),
                requests: asked,
                gave_up: None,
            };
            attendants.spawn(attendant.run(there));
        }
        let tracker =
            Tracker { shared, requests, env: self.environment().clone(), tasks: self.tasks().clone() };
        let tracker = Arc::new(tracker);
        if let (Some(marker), true) = (marker, count > 1) {
            let members = Members {
                link: self.consuming().clone(),
                env: self.environment().clone(),
                shared: Arc::clone(&tracker.shared),
                marker,
                partitions: count,
                stop: stop.clone(),
            };
            attendants.spawn(members.run());
        }
        // from here on, a failure or a cancelled call ends the tasks by dropping this
        let subscription = RabbitmqSubscription {
            tracker,
            queues,
            link: self.consuming().clone(),
            consumer_timeout: self.config().consumer_timeout,
            notes,
            config: self.config().clone(),
            left: false,
            stop,
            attendants,
        };
        for attached in attached {
            attached.await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Connection, "subscribe", "the connection was lost"))
            })?;
        }
        Ok(subscription)
    }
}

/// How many messages the broker may have out on one channel: one partition alone may fill the window. So what waits here may be
/// as many windows as there are partitions; what is handed out is one.
fn prefetch(window: usize) -> u16 {
    // 0 would be no limit
    u16::try_from(window).unwrap_or(u16::MAX).max(1)
}

impl Subscription for RabbitmqSubscription {
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
        self.tracker.shared.release(claims);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        if let Some(farewell) = self.leave() {
            farewell.await;
        }
        Ok(())
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::new(RabbitmqControl {
            tracker: Arc::clone(&self.tracker),
            queues: Arc::clone(&self.queues),
            link: self.link.clone(),
            consumer_timeout: self.consumer_timeout,
            notes: self.notes.clone(),
            config: self.config.clone(),
        })
    }
}

impl RabbitmqSubscription {
    /// From now on nothing that was handed out can be settled. Answers what is still to be done: each task tells what was
    /// settled last and closes its channel, by which the broker has the rest back, in order.
    fn leave(&mut self) -> Option<impl Future<Output = ()> + Send + 'static> {
        if std::mem::replace(&mut self.left, true) {
            return None;
        }
        self.tracker.shared.close();
        self.stop.cancel();
        let mut attendants = std::mem::take(&mut self.attendants);
        Some(async move { while attendants.join_next().await.is_some() {} })
    }
}

impl Drop for RabbitmqSubscription {
    fn drop(&mut self) {
        let farewell = self.leave();
        // without a runtime nothing can be told any more; the broker finds out by itself
        if let (Some(farewell), Ok(_)) = (farewell, tokio::runtime::Handle::try_current()) {
            self.tracker.tasks.spawn(farewell);
        }
    }
}

struct RabbitmqControl {
    tracker: Arc<Tracker>,
    queues: Arc<[String]>,
    link: Link,
    consumer_timeout: Duration,
    notes: Option<Notes>,
    config: RabbitmqConfig,
}

impl RabbitmqControl {
    fn notes(&self, operation: &'static str) -> Result<&Notes> {
        self.notes.as_ref().ok_or_else(|| {
            let message = "in somebody else's queue nothing is kept of messages that end processes";
            Error::new(ErrorKind::Unsupported, operation, message)
        })
    }

    async fn connection(&self, operation: &'static str) -> Result<(u64, Arc<lapin::Connection>)> {
        self.link.up_within(operation, &self.tracker.env, &self.config).await
    }
}

impl Control for RabbitmqControl {
    fn pause(&self) {
        self.tracker.shared.pause(true);
    }

    fn resume(&self) {
        self.tracker.shared.pause(false);
    }

    fn seek(&self, _: Start) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let message = "a queue can't be moved (capability `seek`): what is acknowledged is gone";
            Err(Error::new(ErrorKind::Unsupported, "seek", message))
        })
    }

    fn lag(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async {
            let mut lag = 0;
            for answer in self.tracker.ask(Request::Lag).await {
                lag += answer.unwrap_or_else(|| {
                    Err(Error::new(ErrorKind::Closed, "lag", "the subscription is closed"))
                })?;
            }
            Ok(lag)
        })
    }

    fn strikes(&self, suspect: Suspect) -> BoxFuture<'_, Result<u32>> {
        Box::pin(async move {
            let notes = self.notes("strikes")?;
            let (generation, connection) = self.connection("strikes").await?;
            let asking = notes.strikes(&connection, generation, suspect.fingerprint, &self.tracker.env);
            self.link.operation("strikes", generation, asking).await
        })
    }

    fn set_strikes(&self, suspect: Suspect, strikes: u32) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let notes = self.notes("set_strikes")?;
            let (generation, connection) = self.connection("set_strikes").await?;
            let telling = notes.set(&connection, generation, suspect.fingerprint, strikes);
            self.link.operation("set_strikes", generation, telling).await
        })
    }

    fn claims(&self) -> Vec<ClaimId> {
        self.tracker.shared.claims()
    }

    fn describe(&self, origin: Origin) -> String {
        let queue = self.queues.get(origin.shard as usize).map_or("", String::as_str);
        format!("rabbitmq:{queue}/{}", origin.position)
    }

    fn health(&self) -> Health {
        let connection = self.link.health();
        if connection.state > HealthState::Up {
            return connection;
        }
        let held =
            self.tracker.shared.oldest().map(|since| self.tracker.env.now().saturating_duration_since(since));
        if let Some(held) = held.filter(|held| *held >= self.consumer_timeout.mul_f64(LONGEST)) {
            let reason = format!(
                "a message has been unsettled for {held:.0?}; after {:.0?} (`consumer_timeout`) the broker takes its queue away from this member",
                self.consumer_timeout
            );
            return Health::degraded(reason);
        }
        if self.tracker.shared.claims().is_empty() {
            let reason =
                "no partition is held at present: there is nothing to read, or other members hold them all";
            return Health { state: HealthState::Standby, reason: Some(reason.into()) };
        }
        connection
    }
}
