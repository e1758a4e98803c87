//! One program by every way there is to write it: through the generic traits and through the erased broker, by functions,
//! attributes, methods and a handler of one's own. What comes out is the same.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider::memory::{MemoryBroker, MemoryLetters, MemorySubscription};
use postrider::prelude::*;
use postrider::{
    Adapter, Bytes, Capabilities, Channel, Claim, Confirm, Declare, Delivery, DrainReport, Env,
    EnvelopeContext, Finding, Group, GroupName, Handler, Health, Incoming, IntoEnvelope, Inventory, Outcome,
    Outgoing, PublishError, RouteOptions, Scope, Settlement, Signal, SubscribeOptions, Subscriber,
    Subscription, decode,
};
use router_kit::{Invoiced, Placed, broker, header, invoiced, look, placed, retry, within};

const SECOND: Duration = Duration::from_secs(1);
const MOST: NonZeroUsize = NonZeroUsize::new(10).unwrap();

/// Uses every operation of publisher, subscription, control and claim once, and writes down what each answered.
async fn drive<B: Publisher + Subscriber>(broker: &B, cut: impl Fn()) -> Vec<String> {
    let mut said = Vec::new();
    let options = SubscribeOptions::new(
        Channel::new("orders").unwrap(),
        Group::Named(GroupName::new("billing").unwrap()),
    );
    let mut subscription = broker.subscribe(&options).await.unwrap();
    let control = subscription.control();
    let mut inbox: Vec<Delivery> = Vec::new();
    said.push(format!("{:?}", subscription.receive(MOST, &mut inbox).await));
    for number in 1..=3 {
        said.push(format!("{:?}", broker.publish("orders", &placed("ann", number)).await));
    }
    let envelope = Envelope::builder(Bytes::from_static(b"raw")).build(broker.env()).unwrap();
    said.push(format!("{:?}", broker.try_send(Outgoing::new("orders", envelope.clone())).unwrap().await));
    said.push(format!("{:?}", broker.send(Outgoing::new("nowhere", envelope)).await.await));
    said.push(format!("{:?} {:?}", control.lag().await, control.health()));
    said.push(format!("{:?}", subscription.receive(MOST, &mut inbox).await));
    said.extend(
        inbox.iter().map(|d| format!("{d:?} {:?} {}", d.envelope.payload(), control.describe(d.origin))),
    );
    let mut batch: Vec<(Claim, Settlement)> = inbox
        .drain(..)
        .zip([
            Settlement::Ack,
            Settlement::GiveBack(None),
            Settlement::GiveBack(Some(SECOND)),
            Settlement::Ack,
        ])
        .map(|(delivery, how)| (delivery.claim, how))
        .collect();
    said.push(format!("{:?}", Claim::settle_all(&mut batch)));
    // the delayed one holds up its key, and comes when its time has come
    let began = tokio::time::Instant::now();
    while inbox.len() < 2 {
        said.push(format!("{:?}", subscription.receive(MOST, &mut inbox).await));
    }
    said.extend(inbox.iter().map(|delivery| format!("{delivery:?}")));
    said.push(format!("after {:?}", began.elapsed()));
    control.pause();
    cut();
    for _ in 0..3 {
        said.push(format!("{:?}", subscription.receive(MOST, &mut inbox).await));
    }
    said.extend(inbox.drain(..).map(|delivery| format!("{:?}", delivery.claim.settle(Settlement::Ack))));
    said.push(format!("{:?} {:?}", control.claims(), control.lag().await));
    control.resume();
    control.seek(postrider::Start::Earliest).await.unwrap();
    while !matches!(subscription.receive(MOST, &mut inbox).await, Ok(Signal::Deliveries)) {}
    said.extend(inbox.drain(..).map(|delivery| format!("{:?}", delivery.origin)));
    said.push(format!("{:?} {:?}", subscription.release(&[]).await, subscription.close().await));
    said.push(format!("{:?} {:?}", broker.flush().await, broker.close(broker.env().now()).await));
    said.push(format!("{:?}", broker.publish("orders", &placed("ann", 9)).await));
    said
}

#[tokio::test(start_paused = true)]
async fn the_generic_traits_and_the_erased_broker_answer_the_same() {
    let (native, _) = broker();
    let straight = within("it is driven", drive(&native, || native.disconnect())).await;
    let (memory, erased) = broker();
    let boxed = within("it is driven", drive(&erased, || memory.disconnect())).await;
    assert_eq!(straight, boxed);
    assert!(straight.len() > 20 && straight.iter().any(|line| line.contains("Reconnected")), "{straight:#?}");
}

/// The embedded broker, which never has room at once: every send takes the erased twin's boxed way.
struct NoRoom(MemoryBroker);

impl Publisher for NoRoom {
    fn env(&self) -> &Env {
        self.0.env()
    }
    async fn send(&self, message: Outgoing<'_>) -> Confirm {
        tokio::task::yield_now().await;
        self.0.send(message).await
    }
    fn try_send<'a>(&self, message: Outgoing<'a>) -> Result<Confirm, Outgoing<'a>> {
        Err(message)
    }
    async fn flush(&self) -> Result<(), PublishError> {
        self.0.flush().await
    }
    async fn close(&self, deadline: Instant) -> DrainReport {
        self.0.close(deadline).await
    }
}

impl Subscriber for NoRoom {
    type Subscription = MemorySubscription;
    async fn subscribe(&self, options: &SubscribeOptions) -> postrider::Result<MemorySubscription> {
        self.0.subscribe(options).await
    }
}

impl Adapter for NoRoom {
    type Letters = MemoryLetters;
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }
    async fn declare(&self, topology: &[Declare]) -> postrider::Result<()> {
        self.0.declare(topology).await
    }
    async fn letters(&self, channel: &Channel) -> postrider::Result<MemoryLetters> {
        self.0.letters(channel).await
    }
    fn health(&self) -> Health {
        Adapter::health(&self.0)
    }
    async fn inventory(&self, scope: &Scope) -> postrider::Result<Inventory> {
        self.0.inventory(scope).await
    }
    async fn examine(&self) -> Vec<Finding> {
        self.0.examine().await
    }
}

/// What every writing of the program does: 1 is well, 2 at its second attempt, 3 never.
fn judge(order: &Placed, attempt: u32) -> Result<Invoiced, HandlerError> {
    match (order.number, attempt) {
        (2, 1) => Err(HandlerError::msg("card service busy")),
        (3, _) => Err(HandlerError::msg("card declined")).permanent(),
        _ => Ok(invoiced(order)),
    }
}

#[handler(
    channel = "orders",
    group = "billing",
    publishes = "invoices",
    retry(attempts = 2, backoff = fixed("1s"), jitter = none)
)]
async fn bill(order: Placed, attempt: Attempt) -> Result<Invoiced, HandlerError> {
    judge(&order, attempt.0)
}

struct Billing;

#[handlers]
impl Billing {
    #[handler(
        channel = "orders",
        group = "billing",
        publishes = "invoices",
        retry(attempts = 2, backoff = fixed("1s"), jitter = none)
    )]
    async fn bill(&self, order: Placed, attempt: Attempt) -> Result<Invoiced, HandlerError> {
        tokio::task::yield_now().await;
        judge(&order, attempt.0)
    }
}

/// Its outputs have ids of its own making.
struct ByHand(Env);

impl Handler for ByHand {
    async fn handle(&self, incoming: Incoming) -> Outcome {
        let order: Placed = match decode(&incoming.first) {
            Ok(order) => order,
            Err(error) => return error.into(),
        };
        let (env, cause) = (&self.0, Some(&incoming.first));
        let context = EnvelopeContext { cause, ..EnvelopeContext::first(env, env.wall_ms()) };
        match judge(&order, incoming.attempt) {
            Ok(invoice) => Outcome::Done(vec![(&invoice).into_envelope(&context).unwrap()]),
            Err(error) => Outcome::failed(error),
        }
    }
}

/// One way to write the program.
type Writing = fn(RouteOptions) -> Router;

/// Runs one writing of the program on one broker, and answers all that can be seen of it from outside.
async fn run(router: Router, broker: &Broker) -> Vec<String> {
    let service = router.start(broker).await.unwrap();
    for number in 1..=4 {
        broker.publish("orders", &placed(&format!("c-{number}"), number)).await.unwrap();
    }
    let garbled = Envelope::builder(Bytes::from_static(b"{")).type_name("order.placed").version(2);
    broker.publish("orders", garbled).await.unwrap();
    within("nothing is left to do", service.idle()).await;
    let mut seen = vec![service.stop(SECOND).await.unwrap().to_string()];
    for invoice in look(broker, "invoices").await {
        let caused = (invoice.causation_id(), invoice.correlation_id());
        seen.push(format!("{} {:?} {:?} {caused:?}", invoice.type_name(), invoice.key(), invoice.payload()));
    }
    for letter in look(broker, "orders.billing.dlq").await {
        let said = ["reason", "error", "error-chain", "attempts", "handler", "origin"];
        let said = said.map(|name| header(&letter, &format!("postrider-dlq-{name}")).to_owned());
        seen.push(format!("{} {:?} {said:?}", letter.id(), letter.payload()));
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn however_a_router_is_written_and_wherever_it_runs_it_does_the_same() {
    let options =
        || RouteOptions::new("orders", "billing").publishes("invoices").name("bill").retry(retry(2, SECOND));
    let writings: [(&str, Writing); 4] = [
        ("an attribute", |_| Router::new().route(bill)),
        ("methods", |_| Arc::new(Billing).routes()),
        ("the builder", |options| {
            Router::new()
                .route(options.handle(async |order: Placed, Attempt(attempt)| judge(&order, attempt)))
        }),
        ("a handler", |options| Router::new().route(options.handle(ByHand(Env::system())))),
    ];
    let mut first: Option<Vec<String>> = None;
    for (name, router) in writings {
        for place in ["straight", "boxed"] {
            // made here, so that all clocks begin alike
            let (memory, straight) = broker();
            let broker = if place == "boxed" { Broker::new(NoRoom(memory)) } else { straight };
            let seen = run(router(options()), &broker).await;
            assert_eq!(seen.len(), 1 + 3 + 2, "{seen:#?}");
            let expected = first.get_or_insert_with(|| seen.clone());
            // the order in which keys end is nobody's promise
            let sorted = |lines: &[String]| {
                let mut lines = lines.to_vec();
                lines.sort();
                lines
            };
            assert_eq!(sorted(&seen), sorted(expected), "{name}, {place}");
        }
    }
}
