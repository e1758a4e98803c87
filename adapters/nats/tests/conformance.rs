//! The conformance suite on a real NATS server: `POSTRIDER_TEST_NATS_URL` names it (`cargo xtask test` sets it). Cases that
//! kill, pause or cut off the server have one of their own, started by the project's script.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::sync::Arc;

use async_nats::HeaderMap;
use postrider_conformance::{Controls, Doomed, Factory, Revocable, Settings, free_port};
use postrider_core::{BoxFuture, Broker, BrokerUrl, Bytes, Connector, Env, Error};
use postrider_nats::{Naming, NatsConnector};

use support::{PrivateServer, shared_url, with_options};

struct Nats;

async fn connect(url: &str) -> Result<Broker, Error> {
    NatsConnector.connect(&BrokerUrl::parse(url)?, Env::system()).await
}

impl Factory for Nats {
    fn adapter(&self) -> &'static str {
        "nats"
    }

    fn variant(&self) -> &'static str {
        "2.15"
    }

    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            connect(&with_options(&shared_url(), &settings)).await.expect("the server answers")
        })
    }

    fn write_foreign<'a>(
        &'a self,
        settings: &'a Settings,
        channel: &'a str,
        headers: &'a [(&'a str, &'a str)],
        body: Bytes,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let client = async_nats::connect(shared_url()).await.expect("the server answers");
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, *value);
            }
            let subject = Naming::new(Some(&settings.tenant)).expect("a good tenant").subject(channel);
            let stream = async_nats::jetstream::new(client);
            stream
                .publish_with_headers(subject, map, body)
                .await
                .expect("it is sent")
                .await
                .expect("it is stored");
        })
    }

    fn foreign_header_bytes(&self) -> usize {
        // the server stores 64 KiB of them
        65_100
    }

    fn delete<'a>(&'a self, settings: &'a Settings, what: Doomed<'a>) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let naming = Naming::new(Some(&settings.tenant)).expect("a good tenant");
            let client = async_nats::connect(shared_url()).await.expect("the server answers");
            let stream = async_nats::jetstream::new(client);
            match what {
                Doomed::Channel(channel) => {
                    let name = naming.stream(channel).expect("a good name");
                    stream.delete_stream(name).await.expect("it is deleted");
                }
                Doomed::Group(channel, group) => {
                    let name = naming.stream(channel).expect("a good name");
                    for partition in 0..8 {
                        let consumer = naming.consumer(channel, group, partition, 8).expect("a good name");
                        stream.delete_consumer_from_stream(consumer, &name).await.expect("it is deleted");
                    }
                }
                _ => return false,
            }
            true
        })
    }

    fn acting_headers(&self, settings: &Settings, channel: &str) -> Vec<(String, String)> {
        let stream = Naming::new(Some(&settings.tenant)).expect("a good tenant").stream(channel);
        let stream = stream.expect("a good name");
        let all = [
            ("Nats-Msg-Id", &*stream),
            ("Nats-Expected-Stream", &*stream),
            ("Nats-Expected-Last-Sequence", "0"),
        ];
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    fn controls(&self) -> BoxFuture<'_, Option<Arc<dyn Controls>>> {
        Box::pin(async { Some(Arc::new(PrivateServer::start("").await) as Arc<dyn Controls>) })
    }

    fn revocable(&self) -> BoxFuture<'_, Option<Arc<dyn Revocable>>> {
        Box::pin(async { Some(Arc::new(Account(PrivateServer::start(OPEN).await)) as Arc<dyn Revocable>) })
    }

    fn connect_to_nothing(&self) -> Option<BoxFuture<'_, Error>> {
        Some(Box::pin(async {
            let url = format!("nats://ann:s3cret@127.0.0.1:{}?connect_timeout=2s", free_port());
            connect(&url).await.expect_err("nobody is there")
        }))
    }

    fn wrong_credentials(&self) -> BoxFuture<'_, Option<Error>> {
        Box::pin(async {
            let server = PrivateServer::start("authorization { user: ann, password: right }").await;
            let address = server.address();
            connect(&format!("nats://ann:right@{address}")).await.expect("the right ones are taken");
            Some(connect(&format!("nats://ann:s3cret@{address}")).await.expect_err("the wrong ones are not"))
        })
    }
}

const OPEN: &str = "authorization { user: ann, password: s3cret }";
const CLOSED: &str = "authorization { user: ann, password: another }";

/// A server that one account may use.
struct Account(PrivateServer);

impl Revocable for Account {
    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            let url = with_options(&format!("nats://ann:s3cret@{}", self.0.address()), &settings);
            connect(&url).await.expect("the account is open")
        })
    }

    fn revoke(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.restart(CLOSED))
    }

    fn restore(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.restart(OPEN))
    }
}

postrider_conformance::conformance!(Nats, ignore = "needs a NATS server: cargo xtask test --only nats");
