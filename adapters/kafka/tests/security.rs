//! TLS, certificates and passwords, on brokers that demand them.

#![cfg(feature = "tls")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use postrider_conformance::free_port;
use postrider_core::{Broker, BrokerUrl, Bytes, Connector, Env, Envelope, Error, ErrorKind, PublisherExt};
use postrider_kafka::KafkaConnector;

use support::PrivateBroker;

async fn connect(url: &str) -> Result<Broker, Error> {
    KafkaConnector.connect(&BrokerUrl::parse(url)?, Env::system()).await
}

/// Declares a channel and publishes to it.
async fn use_it(broker: &Broker) {
    broker.declare("orders").await.expect("it is declared");
    broker.publish("orders", Envelope::builder(Bytes::from_static(b"1"))).await.expect("it is confirmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_tls_broker_is_believed_by_its_authority_alone_and_may_want_a_certificate() {
    let tls = free_port();
    let listeners = |port: u16, controller: u16| {
        let listeners = format!("PLAINTEXT://127.0.0.1:{port},SSL://127.0.0.1:{tls}");
        format!(
            "listeners={listeners},CONTROLLER://127.0.0.1:{controller}\nadvertised.listeners={listeners}\nssl.client.auth=required\n"
        )
    };
    let broker = PrivateBroker::start_with_settings("classic", listeners, &[("BROKERS_TLS", "1")]).await;
    let file = |name: &str| broker.certificates().join(name).display().to_string();
    let url = format!("kafka+ssl://127.0.0.1:{tls}?connect_timeout=60s&tls_ca={}", file("ca.pem"));
    let own = format!("&tls_cert={}&tls_key={}", file("client.pem"), file("client-key.pem"));
    use_it(&connect(&format!("{url}{own}")).await.expect("its authority is known, and ours")).await;
    let error = connect(&url.replace("60s", "3s")).await.expect_err("we show no certificate");
    assert!(
        matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout | ErrorKind::Unauthorized),
        "{error:?}"
    );
    let stranger = format!("kafka+ssl://127.0.0.1:{tls}?connect_timeout=3s{own}");
    let error = connect(&stranger).await.expect_err("its authority is nobody's");
    assert!(error.to_string().contains(&format!("127.0.0.1:{tls}")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn passwords_are_proven_by_scram_and_never_shown() {
    let sasl = free_port();
    let listeners = |port: u16, controller: u16| {
        let listeners = format!("PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl}");
        let module = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        format!(
            "listeners={listeners},CONTROLLER://127.0.0.1:{controller}\nadvertised.listeners={listeners}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config={module}\n\
             listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config={module}\n"
        )
    };
    let users = "SCRAM-SHA-256=[name=ann,password=right] SCRAM-SHA-512=[name=ann,password=right]";
    let _broker =
        PrivateBroker::start_with_settings("classic", listeners, &[("BROKERS_KAFKA_SCRAM", users)]).await;
    for mechanism in ["scram-sha-256", "scram-sha-512"] {
        let url = |password: &str, mechanism: &str| {
            // what the broker doesn't take may never be answered; a password is
            let timeout = if mechanism == "plain" { "10s" } else { "60s" };
            format!(
                "kafka://ann:{password}@127.0.0.1:{sasl}?connect_timeout={timeout}&sasl_mechanism={mechanism}"
            )
        };
        use_it(&connect(&url("right", mechanism)).await.expect("the right one is taken")).await;
        let error = connect(&url("s3cret", mechanism)).await.expect_err("the wrong one is not");
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        let error = connect(&url("right", "plain")).await.expect_err("the broker doesn't take it");
        assert!(matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::Timeout), "{error:?}");
    }
}
