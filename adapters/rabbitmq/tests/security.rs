//! TLS, credentials and virtual hosts, on brokers that demand them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::time::Duration;

use postrider_core::{
    Broker, BrokerUrl, Bytes, Channel, Connector, Declare, Env, Envelope, ErrorKind, Group, GroupName,
    HealthState, PublishError, PublisherExt, SubscribeOptions,
};
use postrider_rabbitmq::RabbitmqConnector;

use support::{PrivateBroker, Version};

async fn connect(url: &str) -> Result<Broker, postrider_core::Error> {
    RabbitmqConnector.connect(&BrokerUrl::parse(url)?, Env::system()).await
}

/// Declares a group and publishes to it.
async fn use_it(broker: &Broker) {
    let group = Group::Named(GroupName::new("g").unwrap());
    let mut options = SubscribeOptions::new(Channel::new("orders").unwrap(), group);
    options.partitions = Some(1);
    broker.declare_all(&[Declare::Group(options)]).await.expect("it is declared");
    broker.publish("orders", Envelope::builder(Bytes::from_static(b"1"))).await.expect("it is confirmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn a_tls_broker_is_believed_by_its_authority_alone() {
    let server = PrivateBroker::start_with(Version::V3_10, "", true).await;
    let authority = server.certificates().join("ca.pem");
    let address = server.address().replace("127.0.0.1", "localhost");
    let good = format!("amqps://guest:guest@{address}/%2f?tls_ca={}", authority.display());
    use_it(&connect(&good).await.expect("its authority is known")).await;
    let error = connect(&format!("amqps://guest:s3cret@{address}/?connect_timeout=60s"))
        .await
        .expect_err("it is not");
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    assert!(error.to_string().contains("tls_ca") && !format!("{error:?}").contains("s3cret"), "{error:?}");
    let error = connect(&format!("amqp://guest:guest@{address}/?tls_ca=x")).await.expect_err("no TLS");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn users_and_virtual_hosts_are_checked_and_escapes_read() {
    let server = PrivateBroker::start(Version::V3_10, "").await;
    for arguments in [
        &["add_vhost", "a/b"][..],
        &["add_user", "ann@x", "p/w:d?"],
        &["set_permissions", "-p", "a/b", "ann@x", ".*", ".*", ".*"],
        &["add_user", "bob", "b"],
        &["set_permissions", "-p", "a/b", "bob", "", "", ""],
        &["add_user", "carl", "c"],
        &["set_permissions", "-p", "a/b", "carl", ".*", "", ".*"],
    ] {
        server.ctl(arguments).await;
    }
    let address = server.address();
    let ann = connect(&format!("amqp://ann%40x:p%2Fw%3Ad%3F@{address}/a%2fb")).await.expect("she may");
    use_it(&ann).await;
    let error =
        connect(&format!("amqp://ann%40x:p%2Fw%3Ad%3F@{address}/nowhere")).await.expect_err("no such host");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(error.to_string().contains("virtual host"), "{error}");
    let bob = connect(&format!("amqp://bob:b@{address}/a%2fb")).await.expect("he may connect");
    let error = bob.declare("orders").await.expect_err("he may do nothing");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let carl = connect(&format!("amqp://carl:c@{address}/a%2fb?declare=none")).await.expect("he may connect");
    ann.declare("orders").await.expect("she may");
    let error = carl
        .publish("orders", Envelope::builder(Bytes::from_static(b"2")))
        .await
        .expect_err("he may not write");
    assert!(matches!(&error, PublishError::Failed(e) if e.kind() == ErrorKind::Unauthorized), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn credentials_that_are_taken_away_show_and_work_again_when_they_are_given_back() {
    let server = PrivateBroker::start(Version::V3_10, "").await;
    let give = async || {
        for arguments in [&["add_user", "ann", "s3cret"][..], &["set_permissions", "ann", ".*", ".*", ".*"]] {
            server.ctl(arguments).await;
        }
    };
    give().await;
    let ann = connect(&format!("amqp://ann:s3cret@{}/", server.address())).await.expect("she may");
    use_it(&ann).await;
    server.ctl(&["delete_user", "ann"]).await;
    server.ctl(&["close_all_connections", "gone"]).await;
    let until = async |state: HealthState| {
        while ann.health().state != state {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), until(HealthState::Down)).await.expect("it shows");
    let reason = ann.health().reason.unwrap_or_default();
    assert!(reason.contains("credentials") && !reason.contains("s3cret"), "{reason}");
    give().await;
    tokio::time::timeout(Duration::from_mins(1), until(HealthState::Up)).await.expect("it is back");
    use_it(&ann).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn the_certificate_says_who_the_client_is() {
    let only_certificates = "auth_mechanisms.1 = EXTERNAL\nssl_cert_login_from = common_name";
    let plugin = "rabbitmq_auth_mechanism_ssl";
    let server = PrivateBroker::start_with_plugins(Version::V3_10, only_certificates, true, plugin).await;
    let certificates = server.certificates();
    let file = |name: &str| certificates.join(name).display().to_string();
    let address = server.address().replace("127.0.0.1", "localhost");
    let url = format!("amqps://{address}/%2f?connect_timeout=60s&tls_ca={}", file("ca.pem"));
    let with_certificate =
        format!("{url}&tls_cert={}&tls_key={}&external=true", file("client.pem"), file("client-key.pem"));
    // the name in the certificate is no user's yet
    let error = connect(&with_certificate).await.expect_err("nobody is called that");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    for arguments in [
        &["add_user", "brokers client", "unused"][..],
        &["set_permissions", "brokers client", ".*", ".*", ".*"],
    ] {
        server.ctl(arguments).await;
    }
    use_it(&connect(&with_certificate).await.expect("now somebody is")).await;
    let password = url.replace("amqps://", "amqps://guest:s3cret@");
    let error = connect(&password).await.expect_err("passwords aren't taken");
    assert!(error.to_string().contains("or `external`"), "{error:?}");
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
}
