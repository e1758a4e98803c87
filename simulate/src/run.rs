//! One run in simulated time: a publisher, lives of a service one after the other, and readers of what comes out.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use postrider_core::{
    Adapter, BoxSubscription, Broker, Bulkhead, BulkheadPolicy, Bytes, Channel, Control, Declare, Env,
    Envelope, EnvelopeBuilder, Group, GroupName, HeaderValue, MessageId, Outgoing, PublishError,
    PublishOptions, Publisher, Result, Router, Running, Settlement, SubscribeOptions, Subscriber,
    Subscription,
};
use postrider_memory::{FaultPlan, MemoryBroker, MemoryConfig};
use tokio::task::JoinSet;

use crate::bug::Bug;
use crate::dice::Dice;
use crate::hand::Hand;
use crate::history::{Event, World, number_of};
use crate::scenario::{Chances, Ending, Kind, Life, MADE, RoutePlan, Scenario, WORK};
use crate::store::WatchedStore;
use crate::watched::Watched;

/// After so much simulated time without coming to an end, a run hangs.
const PATIENCE: Duration = Duration::from_mins(30);
/// The group that reads dead letters and outputs.
const READER: &str = "reader";

/// Everything that the parts of a run share.
struct Stage {
    scenario: Scenario,
    world: World,
    memory: MemoryBroker,
    /// As services and the publisher see it.
    broker: Broker,
    store: Arc<WatchedStore>,
    routes: Vec<Arc<RoutePlan>>,
}

/// Runs the scenario from its first message until nothing is left to do.
pub(crate) async fn run(scenario: Scenario, bug: Option<Bug>) -> Result<World> {
    let env = Env::seeded(scenario.seed);
    let world = World::new(&env);
    let config = MemoryConfig::default().max_messages(scenario.bound);
    let memory = MemoryBroker::with_faults(config, env, faults(scenario.seed, scenario.chances));
    let watched = Watched::new(memory.clone(), world.clone(), Arc::new(scenario.clone()), bug);
    let stage = Arc::new(Stage {
        broker: Broker::new(watched),
        store: Arc::new(WatchedStore::new(&scenario, world.clone(), bug)),
        routes: scenario.routes.iter().cloned().map(Arc::new).collect(),
        memory,
        world: world.clone(),
        scenario,
    });
    let mut readers = stage.declare().await?;
    let publisher = Arc::clone(&stage);
    let mut publishing = JoinSet::new();
    publishing.spawn(async move { publisher.publish().await });
    for life in stage.scenario.lives.clone() {
        stage.live(&life).await?;
        stage.sleep(life.then).await;
    }
    let last = Life::last();
    let service = stage.start(1).await?;
    while publishing.join_next().await.is_some() {}
    for (_, service, _) in &service {
        if tokio::time::timeout(PATIENCE, service.idle()).await.is_err() {
            world.tell(Event::Broken(format!(
                "after {PATIENCE:?} there is still something to do: {:?}",
                service.health()
            )));
        }
    }
    world.tell(Event::Idle);
    stage.end(service, last.end).await?;
    if bug == Some(Bug::LetterMadeUp) {
        stage.make_up_a_letter().await?;
    }
    for control in &readers.controls {
        while control.lag().await? > 0 {
            stage.sleep(Duration::from_millis(1)).await;
        }
    }
    readers.tasks.abort_all();
    while readers.tasks.join_next().await.is_some() {}
    Ok(world)
}

fn faults(seed: u64, chances: Chances) -> FaultPlan {
    let chance = |per_mille: u64| per_mille as f64 / 1000.0;
    FaultPlan::seeded(seed)
        .publish_fails(chance(chances.publish_fails))
        .confirm_lost(chance(chances.confirm_lost))
        .duplicated(chance(chances.duplicated))
        .disconnected(chance(chances.disconnected))
        .delayed(chance(chances.delayed), Duration::from_millis(80))
}

/// Those who read dead letters and outputs.
struct Readers {
    controls: Vec<Arc<dyn Control>>,
    tasks: JoinSet<()>,
}

impl Stage {
    async fn sleep(&self, time: Duration) {
        if !time.is_zero() {
            self.world.env().sleep(time).await;
        }
    }

    /// Makes the channels and the groups' places, so that nothing is published to nobody, and reads what comes out.
    async fn declare(&self) -> Result<Readers> {
        let mut topology = vec![Declare::Channel(Channel::new(WORK)?), Declare::Channel(Channel::new(MADE)?)];
        for route in &self.routes {
            let mut options = options(WORK, &route.group)?;
            options.order = route.order;
            topology.push(Declare::Group(options));
        }
        self.memory.declare(&topology).await?;
        let (raw, mut controls, mut tasks) = (Broker::new(self.memory.clone()), Vec::new(), JoinSet::new());
        let letters = self.routes.iter().filter(|route| route.has_dead_letters);
        let channels = letters.map(|route| (route.dead_letters(), Some(route.group.clone())));
        for (channel, group) in channels.chain([(MADE.to_owned(), None)]) {
            let subscription = raw.subscribe(&options(&channel, READER)?).await?;
            controls.push(subscription.control());
            tasks.spawn(read(subscription, self.world.clone(), group));
        }
        Ok(Readers { controls, tasks })
    }

    /// A message as its publisher makes it.
    fn message(&self, number: u64) -> EnvelopeBuilder {
        let draft = self.scenario.draft(number);
        let body = match draft.kind {
            Kind::Undecodable => format!("{{\"number\":{number}"),
            _ => format!("{{\"number\":{number}}}"),
        };
        let mut message = Envelope::builder(Bytes::from(body))
            .type_name(if draft.kind == Kind::OtherType { "something-else" } else { "work" })
            .version(if draft.kind == Kind::OtherVersion { 9 } else { 1 })
            .id(MessageId::Text(format!("n{number}").into()))
            .header("n", HeaderValue::Int(number as i64));
        if let Some(key) = draft.key {
            message = message.key(key);
        }
        if draft.has_business_key {
            message = message.idempotency_key(&format!("n{number}"));
        }
        match draft.expires_in {
            Some(ms) => message.expires_ms(self.world.env().wall_ms() + ms),
            None => message,
        }
    }

    /// A dead letter of a message that may never have failed: one of the bugs that are put in on purpose.
    async fn make_up_a_letter(&self) -> Result<()> {
        if let Some(route) = self.routes.iter().find(|route| route.has_dead_letters) {
            let mut message = self.message(1);
            message.headers_mut().insert_system("postrider-dlq-reason", "rejected");
            let (letter, to) = (message.build(self.broker.env())?, route.dead_letters());
            while self.memory.send(Outgoing::new(&*to, letter.clone())).await.await.is_err() {}
        }
        Ok(())
    }

    async fn publish(&self) {
        let mut dice = Dice::new(self.scenario.seed, 3);
        for number in 1..=self.scenario.messages {
            let Ok(envelope) = self.message(number).build(self.broker.env()) else { continue };
            // now and then it is sent again, or given up, as programs do
            for _ in 0..10 {
                let mut options = PublishOptions::default();
                options.deadline = Some(Duration::from_secs(5));
                let outgoing = Outgoing::new(WORK, envelope.clone()).with(options);
                let again = match self.broker.send(outgoing).await.await {
                    Ok(_) => dice.happens(40),
                    Err(PublishError::Failed(_)) => dice.happens(850),
                    Err(PublishError::Unknown(_)) => dice.happens(600),
                };
                if !again {
                    break;
                }
                self.sleep(Duration::from_millis(dice.between(0, 300))).await;
            }
            let pause = dice.between(0, self.scenario.pause_ms);
            self.sleep(Duration::from_millis(pause)).await;
        }
    }

    /// So many members, each with its bulkhead.
    async fn start(&self, members: u32) -> Result<Vec<(u32, Running, Bulkhead)>> {
        let mut running = Vec::new();
        for _ in 0..members {
            let member = self.world.next_member();
            let policy = BulkheadPolicy::new(self.scenario.places);
            let bulkhead = Bulkhead::with(policy, self.world.env().clone());
            let mut router = Router::new().idempotency(Arc::clone(&self.store));
            for route in &self.routes {
                let (world, route) = (self.world.clone(), Arc::clone(route));
                router = Hand { world, route, member, seed: self.scenario.seed }.add_to(router, &bulkhead);
            }
            running.push((member, router.start(&self.broker).await?, bulkhead));
            self.world.tell(Event::Started { member });
        }
        Ok(running)
    }

    async fn live(&self, life: &Life) -> Result<()> {
        let service = self.start(life.members).await?;
        for after in &life.cuts {
            self.sleep(*after).await;
            self.memory.disconnect();
        }
        self.sleep(life.lasts).await;
        self.end(service, life.end).await
    }

    async fn end(&self, service: Vec<(u32, Running, Bulkhead)>, how: Ending) -> Result<()> {
        for (member, service, bulkhead) in service {
            match how {
                Ending::Dropped => {
                    self.world.tell(Event::Dropped { member });
                    drop(service);
                }
                Ending::Drained(deadline) => {
                    let deadline_ms = deadline.as_millis() as u64;
                    self.world.tell(Event::Stopping { member, deadline_ms });
                    let report = service.stop(deadline).await?;
                    let took_ms = report.took.as_millis() as u64;
                    self.world.tell(Event::Stopped { member, drained: report.drained, took_ms });
                    let (free, places) = (bulkhead.free(), self.scenario.places);
                    if free != places {
                        let broken =
                            format!("member {member} has stopped, and {free} of {places} places are free");
                        self.world.tell(Event::Broken(broken));
                    }
                }
            }
        }
        Ok(())
    }
}

fn options(channel: &str, group: &str) -> Result<SubscribeOptions> {
    Ok(SubscribeOptions::new(Channel::new(channel)?, Group::Named(GroupName::new(group)?)))
}

/// Reads dead letters of a group, or outputs, until it is aborted.
async fn read(mut subscription: BoxSubscription, world: World, group: Option<String>) {
    let mut inbox = Vec::new();
    while subscription.receive(NonZeroUsize::MIN, &mut inbox).await.is_ok() {
        for delivery in inbox.drain(..) {
            let number = number_of(&delivery.envelope);
            let reason = delivery.envelope.headers().get("postrider-dlq-reason");
            let reason = reason.and_then(HeaderValue::as_text).unwrap_or_default().to_owned();
            world.tell(match &group {
                Some(group) => Event::Letter { group: group.clone(), number, reason },
                None => Event::Output { number },
            });
            // what is stale comes again, which can't be: nothing waits between the two
            let _ = delivery.claim.settle(Settlement::Ack);
        }
    }
}
