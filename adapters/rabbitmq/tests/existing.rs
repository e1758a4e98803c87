//! Queues and exchanges of other programs, used as they are.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::num::NonZeroUsize;
use std::time::Duration;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ConnectionProperties, ExchangeKind};
use postrider_core::{
    Backoff, Broker, BrokerUrl, Bytes, Connector, Env, Envelope, ErrorKind, HeaderValue, Order, PublishError,
    PublishOptions, PublisherExt, Retry, RouteOptions, Router, SubscribeOptions, Subscriber, Subscription,
};
use postrider_rabbitmq::RabbitmqConnector;

use support::Version;

fn unique(prefix: &str) -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{prefix}{:x}-{:x}", std::process::id(), time.as_nanos())
}

/// Theirs: a topic exchange and a queue bound to it, and a connection to look at them.
struct Theirs {
    channel: lapin::Channel,
    exchange: String,
    queue: String,
    _connection: lapin::Connection,
}

impl Theirs {
    async fn new(kind: &str) -> Self {
        let url = Version::V4_0.shared_url();
        let connection = lapin::Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let (exchange, queue) = (unique("legacy.exchange-"), unique("legacy.queue-"));
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default;
        channel
            .exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, durable, none())
            .await
            .unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel
            .queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments)
            .await
            .unwrap();
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(queue.as_str().into(), exchange.as_str().into(), "orders.#".into(), bind, none())
            .await
            .unwrap();
        Self { channel, exchange, queue, _connection: connection }
    }

    async fn write(&self, body: &str) {
        let mut headers = FieldTable::default();
        headers.insert("shop".into(), AMQPValue::LongString("eu".into()));
        let properties = BasicProperties::default().with_message_id(body.into()).with_headers(headers);
        let (exchange, options) = (self.exchange.as_str().into(), BasicPublishOptions::default());
        let sent = self.channel.basic_publish(
            exchange,
            "orders.created".into(),
            options,
            body.as_bytes(),
            properties,
        );
        sent.await.unwrap();
    }

    async fn read(&self) -> Option<(String, String)> {
        let got = self
            .channel
            .basic_get(self.queue.as_str().into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap()?;
        let body = String::from_utf8(got.delivery.data).unwrap();
        Some((body, got.delivery.routing_key.to_string()))
    }

    async fn gone(&self) {
        let options = QueueDeleteOptions::default();
        self.channel.queue_delete(self.queue.as_str().into(), options).await.unwrap();
    }
}

async fn connect() -> Broker {
    let url = Version::V4_0.shared_url();
    let url = format!("{url}{}tenant={}", if url.contains('?') { '&' } else { '?' }, unique("t"));
    RabbitmqConnector.connect(&BrokerUrl::parse(&url).unwrap(), Env::system()).await.expect("it connects")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn a_queue_of_theirs_is_read_and_its_failures_are_our_dead_letters() {
    for kind in ["classic", "quorum"] {
        let (theirs, broker) = (Theirs::new(kind).await, connect().await);
        for body in ["one", "bad", "two"] {
            theirs.write(body).await;
        }
        let retry = Retry::new().attempts(2).backoff(Backoff::Fixed(Duration::from_millis(1)));
        let route = RouteOptions::new("orders", "billing")
            .native("queue", &*theirs.queue)
            .order(Order::None)
            .retry(retry)
            .handle(async |envelope: Envelope| {
                let shop = envelope.headers().get("shop").and_then(HeaderValue::as_text);
                assert_eq!(shop, Some("eu"), "their headers are there");
                if envelope.payload() == "bad" { Err("bad") } else { Ok(()) }
            });
        let service = Router::new().route(route).start(&broker).await.expect("it starts");
        tokio::time::timeout(Duration::from_mins(1), service.idle()).await.expect("all is handled");
        let report = service.stop(Duration::from_mins(1)).await.unwrap();
        assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (2, 1), "{kind}");
        assert_eq!(theirs.read().await, None, "their queue is empty");
        theirs.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn an_exchange_of_theirs_is_written_to() {
    let (theirs, broker) = (Theirs::new("classic").await, connect().await);
    broker.declare("orders").await.expect("it is declared");
    let to = |exchange: &str, key: &str| {
        let mut options = PublishOptions::default();
        options.native = vec![("exchange".into(), exchange.into()), ("routing_key".into(), key.into())];
        options
    };
    let body = |text: &'static str| Envelope::builder(Bytes::from_static(text.as_bytes())).key("k");
    broker
        .publish_with("orders", body("a"), to(&theirs.exchange, "orders.eu"))
        .await
        .expect("it is confirmed");
    // the default exchange, straight to the queue
    broker.publish_with("orders", body("b"), to("", &theirs.queue)).await.expect("it is confirmed");
    assert_eq!(theirs.read().await, Some(("a".into(), "orders.eu".into())));
    assert_eq!(theirs.read().await, Some(("b".into(), theirs.queue.clone())));
    for (exchange, key) in [(&*theirs.exchange, "invoices"), ("legacy.nowhere", "orders.eu"), ("", "nowhere")]
    {
        let sent = broker.publish_with("orders", body("c"), to(exchange, key)).await;
        let Err(PublishError::Failed(error)) = sent else { panic!("nobody takes it, but {sent:?}") };
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    let mut options = PublishOptions::default();
    options.native = vec![("priority".into(), "9".into())];
    let error = broker.publish_with("orders", body("c"), options).await.unwrap_err();
    assert!(error.to_string().contains("`exchange` and `routing_key`"), "{error}");
    theirs.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn a_queue_of_theirs_that_can_not_be_read_as_asked_is_refused() {
    let (theirs, broker) = (Theirs::new("classic").await, connect().await);
    let route = |queue: &str| RouteOptions::new("orders", "billing").native("queue", queue);
    let ignore = async |_: Envelope| {};
    for (options, kind, says) in [
        (route(&theirs.queue), ErrorKind::Config, "say `order = none`"),
        (
            route(&theirs.queue).order(Order::None).retry(Retry::new().durable()),
            ErrorKind::Config,
            "without `durable`",
        ),
        (route("").order(Order::None), ErrorKind::Config, "`queue`"),
        (route("legacy.nowhere").order(Order::None), ErrorKind::NotFound, "never made"),
    ] {
        let error = Router::new().route(options.handle(ignore)).start(&broker).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "expected {says}, found {error}");
    }
    // a member of its own takes part of the queue, beside whoever reads it otherwise
    let group = postrider_core::Group::Named(postrider_core::GroupName::new("billing").unwrap());
    let mut options = SubscribeOptions::new(postrider_core::Channel::new("orders").unwrap(), group);
    (options.order, options.native) = (Order::None, vec![("queue".into(), theirs.queue.clone())]);
    let mut subscription = broker.subscribe(&options).await.expect("it is there");
    theirs.write("one").await;
    let mut into = Vec::new();
    while into.is_empty() {
        let receiving = subscription.receive(NonZeroUsize::MIN, &mut into);
        tokio::time::timeout(Duration::from_mins(1), receiving).await.expect("it comes").expect("it goes on");
    }
    assert_eq!(into[0].envelope.id().to_string(), "one", "the id is their message-id");
    subscription.close().await.unwrap();
    theirs.gone().await;
}
