//! What the suite asks of RabbitMQ, for each version that is tested.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicRejectOptions, ExchangeDeleteOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, ConnectionProperties};
use postrider_conformance::{Controls, Doomed, Factory, Revocable, Settings, free_port};
use postrider_core::{BoxFuture, Broker, BrokerUrl, Bytes, Connector, Env, Error};
use postrider_rabbitmq::{Naming, RabbitmqConnector};

use super::{PrivateBroker, Version, with_options};

async fn connect(url: &str) -> Result<Broker, Error> {
    RabbitmqConnector.connect(&BrokerUrl::parse(url)?, Env::system()).await
}

impl Factory for Version {
    fn adapter(&self) -> &'static str {
        "rabbitmq"
    }

    fn variant(&self) -> &'static str {
        match self {
            Self::V3_10 => "3.10",
            Self::V4_0 => "4.0",
        }
    }

    /// Tags are a connection's own.
    fn names_foreign_records(&self) -> bool {
        false
    }

    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            connect(&with_options(&self.shared_url(), &settings)).await.expect("the broker answers")
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
            let url = self.shared_url();
            let connection = lapin::Connection::connect(&url, ConnectionProperties::default());
            let connection = connection.await.expect("the broker answers");
            let (mut properties, mut each) = (BasicProperties::default(), BTreeMap::<_, Vec<_>>::new());
            for (name, value) in headers {
                match *name {
                    "content-type" => properties = properties.with_content_type((*value).into()),
                    "user-id" => properties = properties.with_user_id((*value).into()),
                    "expiration" => properties = properties.with_expiration((*value).into()),
                    name => each.entry(name).or_default().push(AMQPValue::LongString((*value).into())),
                }
            }
            let mut table = FieldTable::default();
            for (name, mut values) in each {
                // a table has each name once: AMQP's way to repeat a header is an array
                let value = if values.len() == 1 {
                    values.pop().expect("one")
                } else {
                    AMQPValue::FieldArray(FieldArray::from(values))
                };
                table.insert(name.into(), value);
            }
            let exchange = Naming::new(Some(&settings.tenant)).expect("a good tenant").exchange(channel);
            let publisher = connection.create_channel().await.expect("a channel opens");
            publisher
                .confirm_select(lapin::options::ConfirmSelectOptions::default())
                .await
                .expect("it confirms");
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let key = "theirs".into();
            let properties = properties.with_headers(table);
            let sent = publisher.basic_publish(
                exchange.expect("a good name").into(),
                key,
                options,
                &body,
                properties,
            );
            let confirmed = sent.await.expect("it is sent").await.expect("it is stored");
            assert!(confirmed.is_ack() && confirmed.take_message().is_none(), "it is routed");
        })
    }

    fn foreign_header_bytes(&self) -> usize {
        // they go in one frame, of 128 KiB by default; the queue adds its count
        130_700
    }

    fn delete<'a>(&'a self, settings: &'a Settings, what: Doomed<'a>) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let naming = Naming::new(Some(&settings.tenant)).expect("a good tenant");
            let (channel, group, exchange) = match what {
                Doomed::Channel(channel) => (channel, "g", true),
                Doomed::Group(channel, group) => (channel, group, false),
                _ => return false,
            };
            let url = self.shared_url();
            let connection = lapin::Connection::connect(&url, ConnectionProperties::default());
            let connection = connection.await.expect("the broker answers");
            let admin = connection.create_channel().await.expect("a channel opens");
            for partition in 0..8 {
                let queue = naming.queue(channel, group, partition, 8).expect("a good name");
                admin.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("it is deleted");
            }
            if exchange {
                let name = naming.exchange(channel).expect("a good name");
                let deleted = admin.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await;
                deleted.expect("it is deleted");
            }
            true
        })
    }

    fn acting_headers(&self, _: &Settings, _: &str) -> Vec<(String, String)> {
        let url = BrokerUrl::parse(&self.shared_url()).expect("a good URL");
        let user = url.user().unwrap_or("guest");
        // both slots are in the first of eight partitions: one copy of the record, and two of one that takes them up again elsewhere
        let all =
            [("CC", "~00"), ("CC", "~08"), ("user-id", user), ("expiration", "3600000"), ("x-death", "0")];
        let all = all.into_iter().chain([("x-first-death-reason", "rejected")]);
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn give_up<'a>(
        &'a self,
        settings: &'a Settings,
        channel: &'a str,
        group: &'a str,
    ) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let naming = Naming::new(Some(&settings.tenant)).expect("a good tenant");
            let url = self.shared_url();
            let connection = lapin::Connection::connect(&url, ConnectionProperties::default());
            let connection = connection.await.expect("the broker answers");
            let consumer = connection.create_channel().await.expect("a channel opens");
            let mut all = futures_util::stream::SelectAll::new();
            for partition in 0..8 {
                let queue = naming.queue(channel, group, partition, 8).expect("a good name");
                let options = BasicConsumeOptions::default();
                let tag = format!("p{partition}");
                let consumed =
                    consumer.basic_consume(queue.into(), tag.into(), options, FieldTable::default());
                all.push(consumed.await.expect("it is read"));
            }
            let message = all.next().await.expect("there is one").expect("it comes");
            message.reject(BasicRejectOptions { requeue: false }).await.expect("it is rejected");
            connection.close(200, "".into()).await.expect("it closes");
            true
        })
    }

    fn controls(&self) -> BoxFuture<'_, Option<Arc<dyn Controls>>> {
        Box::pin(async { Some(Arc::new(PrivateBroker::start(*self, "").await) as Arc<dyn Controls>) })
    }

    fn revocable(&self) -> BoxFuture<'_, Option<Arc<dyn Revocable>>> {
        Box::pin(async {
            let account = Account(PrivateBroker::start(*self, "").await);
            account.restore().await;
            Some(Arc::new(account) as Arc<dyn Revocable>)
        })
    }

    fn connect_to_nothing(&self) -> Option<BoxFuture<'_, Error>> {
        Some(Box::pin(async {
            let url = format!("amqp://ann:s3cret@127.0.0.1:{}?connect_timeout=2s", free_port());
            connect(&url).await.expect_err("nobody is there")
        }))
    }

    fn wrong_credentials(&self) -> BoxFuture<'_, Option<Error>> {
        Box::pin(async {
            let url = BrokerUrl::parse(&self.shared_url()).expect("a good URL");
            let address = url.hosts()[0].address(5672);
            Some(
                connect(&format!("amqp://guest:s3cret@{address}/%2f"))
                    .await
                    .expect_err("the wrong ones are not taken"),
            )
        })
    }
}

/// A broker with an account besides the usual one.
struct Account(PrivateBroker);

impl Revocable for Account {
    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            let url = with_options(&format!("amqp://ann:s3cret@{}/%2f", self.0.address()), &settings);
            connect(&url).await.expect("the account is open")
        })
    }

    fn revoke(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.ctl(&["delete_user", "ann"]).await;
            self.0.ctl(&["close_all_connections", "the account is closed"]).await;
        })
    }

    fn restore(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.ctl(&["add_user", "ann", "s3cret"]).await;
            self.0.ctl(&["set_permissions", "ann", ".*", ".*", ".*"]).await;
        })
    }
}
