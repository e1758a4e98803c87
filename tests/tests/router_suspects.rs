//! Messages that may have ended processes: what their group remembers of them, and what happens when it can't be asked.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use postrider::memory::{MemoryBroker, MemorySubscription};
use postrider::prelude::*;
use postrider::{
    BoxFuture, Claim, ClaimId, Control, Delivery, HealthState, Result, RouteOptions, RouteState, Running,
    Settle, SettleError, Settlement, Signal, Subscription, Token,
};
use router_kit::altered::{Altered, Difference};
use router_kit::group::Script;
use router_kit::{Log, Placed, broker_with, finish, header, look, placed, within};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const LETTERS: &str = "orders.billing.dlq";

/// What was handed out before is suspected.
fn wary() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").crash_limit(1)
}

/// A broker that holds these orders, and the group's script.
async fn scripted(orders: &[Placed]) -> (MemoryBroker, Broker, Script) {
    let (inner, _) = broker_with(orders).await;
    let script = Script::default();
    (inner.clone(), Broker::new(Altered { inner, difference: script.clone() }), script)
}

/// A service that goes without a word, as a process does that is killed, while its handler is at the first order.
async fn crash(broker: &Broker) {
    let (began, mut begun) = tokio::sync::watch::channel(false);
    let hangs = move |_: Placed| {
        began.send_replace(true);
        std::future::pending::<()>()
    };
    let service = Router::new().route(wary().max_in_flight(1).handle(hangs)).start(broker).await.unwrap();
    within("it has begun", begun.wait_for(|begun| *begun)).await.unwrap();
    drop(service);
}

/// A service that writes down what it handles.
async fn serve(broker: &Broker) -> (Running, Log<u64>) {
    let handled = Log::default();
    let log = handled.clone();
    let handler = move |order: Placed| {
        log.add(order.number);
        std::future::ready(())
    };
    (Router::new().route(wary().handle(handler)).start(broker).await.unwrap(), handled)
}

#[tokio::test(start_paused = true)]
async fn the_group_remembers_what_is_judged_until_there_is_a_letter() {
    let (memory, broker, script) = scripted(&[placed("ann", 1)]).await;
    for _ in 0..3 {
        crash(&broker).await;
    }
    assert_eq!(script.told.all(), [1, 2], "it ended two processes while it ran alone");
    // judged, but no letter can be published, and the process ends for another reason
    memory.fail_publishes(usize::MAX);
    let (service, handled) = serve(&broker).await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(service.health().routes[0].state, RouteState::PausedByDeadLetters);
    drop(service);
    memory.fail_publishes(0);
    let (service, handled_later) = serve(&broker).await;
    let report = finish(service).await;
    assert_eq!((handled.all(), handled_later.all()), (vec![], vec![]), "it is still judged");
    assert_eq!((report.handled, report.dead_lettered), (0, 1));
    let letters = look(&broker, LETTERS).await;
    assert_eq!(header(&letters[0], "postrider-dlq-reason"), "crash-loop");
    assert_eq!(script.told.all(), [1, 2, 0], "with the letter it is forgotten");
}

#[tokio::test(start_paused = true)]
async fn while_the_group_does_not_answer_all_that_is_not_suspected_goes_on() {
    let (_, broker, script) = scripted(&[placed("ann", 1), placed("bob", 2), placed("cem", 3)]).await;
    crash(&broker).await;
    script.silent.store(true, SeqCst);
    let (service, handled) = serve(&broker).await;
    // the others wait for the suspect, but not for long
    tokio::time::sleep(SECOND * 49 / 10).await;
    assert!(handled.all().is_empty());
    assert_eq!(service.health().routes[0].state, RouteState::Alone);
    tokio::time::sleep(SECOND * 2 / 10).await;
    assert_eq!(handled.all(), [2, 3]);
    let health = service.health().routes[0].health.clone();
    assert_eq!(health.state, HealthState::Degraded);
    let reason = health.reason.expect("it says why");
    assert!(reason.contains("can't be looked up") && reason.contains("doesn't answer"), "{reason}");
    // asked again and again, the group answers at some time
    tokio::time::sleep(60 * SECOND).await;
    script.silent.store(false, SeqCst);
    let health = async {
        while handled.all() != [2, 3, 1] {
            tokio::time::sleep(SECOND / 10).await;
        }
        tokio::time::sleep(SECOND / 10).await;
        service.health().routes[0].health.state
    };
    assert_eq!(within("the suspect is handled", health).await, HealthState::Up);
    assert_eq!(finish(service).await.handled, 3);
    assert_eq!(script.told.all(), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn after_a_suspect_the_others_wait_until_the_group_has_heard_but_not_for_long() {
    let (_, broker, script) = scripted(&[placed("ann", 1), placed("bob", 2)]).await;
    crash(&broker).await;
    script.deaf.store(true, SeqCst);
    let (service, handled) = serve(&broker).await;
    tokio::time::sleep(SECOND * 49 / 10).await;
    assert_eq!(handled.all(), [1]);
    tokio::time::sleep(SECOND * 2 / 10).await;
    assert_eq!(handled.all(), [1, 2]);
    assert_eq!(finish(service).await.handled, 2);
}

/// The claim that `Torn` takes away again.
const TORN: ClaimId = ClaimId { shard: 77, epoch: 1 };

/// The embedded broker, but one message at a time; the second was handed out before and comes under a claim of its own, which ends
/// after the third. It comes again some time later.
#[derive(Clone, Copy, Debug)]
struct Torn {
    /// With notice, or without.
    is_asked_for: bool,
}

impl Difference for Torn {
    type Subscription = TornSubscription;

    fn subscription(&self, inner: MemorySubscription) -> TornSubscription {
        TornSubscription { inner, is_asked_for: self.is_asked_for, received: 0, torn: None, again: None }
    }
}

struct TornSubscription {
    inner: MemorySubscription,
    is_asked_for: bool,
    received: usize,
    /// By which the second message is held at the broker, and until when.
    torn: Option<Claim>,
    again: Option<Instant>,
}

/// Has nothing to settle.
struct Nothing;

impl Settle for Nothing {
    fn settle(&self, _: &[(Token, Settlement)]) -> Result<(), SettleError> {
        Ok(())
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async { Ok(()) })
    }
}

impl Subscription for TornSubscription {
    async fn receive(&mut self, _: NonZeroUsize, into: &mut Vec<Delivery>) -> Result<Signal> {
        if self.received == 3 {
            self.received += 1;
            self.again = Some(Instant::now() + 10 * SECOND);
            let claims = vec![TORN];
            return Ok(if self.is_asked_for { Signal::Revoking(claims) } else { Signal::Lost(claims) });
        }
        if let Some(again) = self.again {
            tokio::time::sleep_until(again).await;
            (self.again, self.torn) = (None, None);
        }
        let signal = self.inner.receive(NonZeroUsize::MIN, into).await?;
        if let (Signal::Deliveries, Some(delivery)) = (&signal, into.last_mut()) {
            self.received += 1;
            if self.received == 2 {
                let claim = Claim::new(Arc::new(Nothing), Token { claim: TORN, seq: 1 });
                self.torn = Some(std::mem::replace(&mut delivery.claim, claim));
                delivery.deliveries = Some(2);
            }
        }
        Ok(signal)
    }

    async fn release(&mut self, _: &[ClaimId]) -> Result<()> {
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }

    fn control(&self) -> Arc<dyn Control> {
        self.inner.control()
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspect_that_goes_with_its_claim_holds_nobody_up() {
    for (workers, is_asked_for) in [(1, false), (1, true), (2, false), (2, true)] {
        let (inner, _) = broker_with(&[placed("ann", 1), placed("bob", 2), placed("cem", 3)]).await;
        let broker = Broker::new(Altered { inner, difference: Torn { is_asked_for } });
        let begun = Log::default();
        let log = begun.clone();
        let handler = move |order: Placed| {
            log.add(order.number);
            tokio::time::sleep(if order.number == 1 { 20 * SECOND } else { Duration::ZERO })
        };
        let route = wary().workers(workers).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        // the suspect waited for the first to end, and the third for the suspect, which is there no more
        tokio::time::sleep(SECOND).await;
        assert_eq!(begun.all(), [1, 3], "{workers} workers, asked for: {is_asked_for}");
        assert_eq!(finish(service).await.handled, 3);
        assert_eq!(begun.all(), [1, 3, 2]);
    }
}
