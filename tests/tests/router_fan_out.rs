//! Handlers that send to the channel that they read from, on an embedded broker whose channels are bounded.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::time::Duration;

use postrider::memory::{MemoryBroker, MemoryConfig};
use postrider::prelude::*;
use postrider::{Env, RouteOptions};
use router_kit::{Log, Placed, header, look, placed, retry, within};
use tokio::task::JoinSet;

const SECOND: Duration = Duration::from_secs(1);
const BOUND: usize = 10;

fn broker(config: MemoryConfig) -> Broker {
    Broker::new(MemoryBroker::with(config, Env::seeded(7)))
}

fn crawl() -> RouteOptions {
    RouteOptions::new("pages", "crawl").retry(retry(1, SECOND)).timeout(60 * SECOND)
}

/// The first order of a customer sends so many more.
async fn fan_out(order: &Placed, broker: &Broker, width: u64) -> Result<(), HandlerError> {
    if order.number == 0 {
        for number in 1..=width {
            broker.publish("pages", &placed(&order.customer, number)).await?;
        }
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fills_the_channel_that_it_reads_from_is_told_so() {
    let broker = broker(MemoryConfig::default().max_messages(BOUND));
    let handler = async |order: Placed, broker: Broker| fan_out(&order, &broker, 50).await;
    let service = Router::new().route(crawl().handle(handler)).start(&broker).await.unwrap();
    broker.publish("pages", &placed("ann", 0)).await.unwrap();
    within("nothing is left to do", service.idle()).await;
    service.stop(SECOND).await.unwrap();
    let letter = look(&broker, "pages.crawl.dlq").await.remove(0);
    let error = header(&letter, "postrider-dlq-error");
    for part in
        ["`crawl` acknowledged nothing", "fills the channel that it reads from", "MemoryConfig::channel"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_is_only_slow_is_not_said_to_wait_for_itself() {
    let broker = broker(MemoryConfig::default().max_messages(BOUND));
    let handler = async |_: Placed| tokio::time::sleep(9 * SECOND).await;
    let service = Router::new().route(crawl().concurrency(1).handle(handler)).start(&broker).await.unwrap();
    let mut sends = JoinSet::new();
    for number in 0..40 {
        let broker = broker.clone();
        sends.spawn(async move { broker.publish("pages", &placed("ann", number)).await });
    }
    let outcomes = sends.join_all().await;
    let errors: Vec<_> =
        outcomes.into_iter().filter_map(|outcome| Some(outcome.err()?.to_string())).collect();
    assert!(!errors.is_empty());
    for error in errors {
        assert!(error.contains("its groups are slower than its publishers"), "{error}");
    }
    drop(service);
}

#[tokio::test(start_paused = true)]
async fn one_channel_may_have_a_larger_bound_than_the_others() {
    let config = MemoryConfig::default().max_messages(BOUND).channel("pages", 100, 1024 * 1024);
    let broker = broker(config);
    let handled = Log::default();
    let log = handled.clone();
    let handler = move |order: Placed, broker: Broker| {
        let log = log.clone();
        async move {
            fan_out(&order, &broker, 50).await?;
            log.add(order.number);
            Ok::<_, HandlerError>(())
        }
    };
    let service = Router::new().route(crawl().handle(handler)).start(&broker).await.unwrap();
    broker.publish("pages", &placed("ann", 0)).await.unwrap();
    within("nothing is left to do", service.idle()).await;
    service.stop(SECOND).await.unwrap();
    assert_eq!(handled.all().len(), 51);
    // the others keep theirs
    broker.declare("other").await.unwrap();
    for number in 0..20 {
        broker.publish("other", &placed("ann", number)).await.unwrap();
    }
    assert_eq!(look(&broker, "other").await.len(), BOUND);
}
