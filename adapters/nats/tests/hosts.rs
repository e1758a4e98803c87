//! Several addresses of one server: one that says nothing, and one that stops answering.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use postrider_conformance::proxy::Proxy;
use postrider_core::{Broker, BrokerUrl, Bytes, Connector, Env, Envelope, PublisherExt};
use postrider_nats::NatsConnector;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_mins(2);

fn shared_address() -> SocketAddr {
    let url = BrokerUrl::parse(&support::shared_url()).unwrap();
    url.hosts()[0].address(4222).parse().expect("the shared server has one address")
}

async fn connect(hosts: [SocketAddr; 2], options: &str) -> Broker {
    let tenant = Env::system().random();
    let url =
        format!("nats://{},{}?tenant=hosts-{tenant:x}&connect_timeout=20s{options}", hosts[0], hosts[1]);
    NatsConnector.connect(&BrokerUrl::parse(&url).unwrap(), Env::system()).await.expect("a server answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn a_silent_host_leaves_time_for_the_other() {
    // it is never accepted, so connecting succeeds and nothing is answered
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    // the client chooses the first at random
    for _ in 0..4 {
        let broker = connect([silent.local_addr().unwrap(), shared_address()], "").await;
        broker.declare("orders").await.expect("it is declared");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn when_the_host_that_is_connected_hangs_publishing_goes_on_through_the_other() {
    let proxies =
        [Proxy::start(shared_address()).await.unwrap(), Proxy::start(shared_address()).await.unwrap()];
    let broker = connect([proxies[0].address(), proxies[1].address()], "&ping_interval=1s").await;
    broker.declare("orders").await.expect("it is declared");
    let (connected, other) =
        if proxies[0].connections() > 0 { (&proxies[0], &proxies[1]) } else { (&proxies[1], &proxies[0]) };
    assert_eq!(other.connections(), 0);
    connected.stall(true);
    let message = || Envelope::builder(Bytes::from_static(b"1"));
    let goes_on = async { while broker.publish("orders", message()).await.is_err() {} };
    tokio::time::timeout(PATIENCE, goes_on).await.expect("the other host is used");
    assert!(other.connections() > 0);
}
