//! Several addresses of one cluster, one of which says nothing.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::net::TcpListener;

use postrider_core::{BrokerUrl, Connector, Env};
use postrider_kafka::KafkaConnector;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_silent_host_leaves_time_for_the_other() {
    let url = std::env::var("POSTRIDER_TEST_KAFKA_URL").expect("POSTRIDER_TEST_KAFKA_URL names a broker");
    let broker = BrokerUrl::parse(&url).unwrap().hosts()[0].address(9092);
    // it is never accepted, so connecting succeeds and nothing is answered
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    // the client chooses the first at random
    for _ in 0..4 {
        let tenant = Env::system().random();
        let url = format!("kafka://{silent},{broker}?tenant=hosts-{tenant:x}&connect_timeout=20s");
        let broker = KafkaConnector.connect(&BrokerUrl::parse(&url).unwrap(), Env::system()).await;
        broker.expect("the other host answers").declare("orders").await.expect("it is declared");
    }
}
