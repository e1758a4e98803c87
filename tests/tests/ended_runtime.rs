//! A broker that outlives the tokio runtime that it was connected on, as one in a `static` does from one test to the next.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::future::Future;
use std::time::{Duration, Instant};

use postrider::memory::MemoryBroker;
use postrider::prelude::*;
use postrider::{Bytes, ErrorKind, HealthState, PublishError, Publisher};

/// Calls that end must do so long before this.
const PATIENCE: Duration = Duration::from_mins(1);

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn fails_at_once(broker: &Broker) {
    let message = Envelope::builder(Bytes::from_static(b"1"));
    let published = tokio::time::timeout(PATIENCE, broker.publish("orders", message)).await;
    let error = published.expect("it fails at once").unwrap_err();
    assert!(matches!(&error, PublishError::Failed(e) if e.kind() == ErrorKind::Closed), "{error}");
    assert!(error.to_string().contains("runtime that this broker was connected on has ended"), "{error}");
    let declared = tokio::time::timeout(PATIENCE, broker.declare("orders")).await.expect("it fails at once");
    assert_eq!(declared.unwrap_err().kind(), ErrorKind::Closed);
    let health = broker.health();
    assert_eq!(health.state, HealthState::Down);
    assert!(health.reason.is_some_and(|reason| reason.contains("has ended")));
    let closed = tokio::time::timeout(PATIENCE, broker.close(Instant::now() + PATIENCE)).await;
    closed.expect("it closes");
}

#[test]
fn calls_fail_at_once_and_the_health_is_down() {
    let broker = on_a_runtime(async {
        let broker = Broker::on_runtime(MemoryBroker::new());
        broker.declare("orders").await.unwrap();
        broker.publish("orders", Envelope::builder(Bytes::from_static(b"1"))).await.expect("it is confirmed");
        assert_eq!(broker.health().state, HealthState::Up);
        broker
    });
    on_a_runtime(fails_at_once(&broker));
}

/// Connects to the broker that a variable names on a runtime that ends.
#[cfg(any(feature = "nats", feature = "kafka", feature = "rabbitmq"))]
fn connected_before(variable: &str) -> Broker {
    let url = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names a broker"));
    let url = format!("{url}?tenant=ended-{:x}", postrider::Env::system().random());
    on_a_runtime(async {
        let broker = postrider::connect(&url).await.expect("it connects");
        broker.declare("orders").await.expect("it is declared");
        broker
    })
}

#[cfg(feature = "nats")]
mod nats {
    use super::*;

    #[test]
    #[ignore = "needs a NATS server: cargo xtask test --only nats"]
    fn calls_fail_at_once_and_the_health_is_down() {
        on_a_runtime(fails_at_once(&connected_before("POSTRIDER_TEST_NATS_URL")));
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use super::*;

    #[test]
    #[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
    fn calls_fail_at_once_and_the_health_is_down() {
        on_a_runtime(fails_at_once(&connected_before("POSTRIDER_TEST_KAFKA_URL")));
    }
}

#[cfg(feature = "rabbitmq")]
mod rabbitmq {
    use super::*;

    #[test]
    #[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
    fn calls_fail_at_once_and_the_health_is_down() {
        on_a_runtime(fails_at_once(&connected_before("POSTRIDER_TEST_RABBITMQ_URL")));
    }
}
