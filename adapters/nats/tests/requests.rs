//! What a subscription asks its server for: all that its window has room for, shared out among its partitions.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::time::Duration;

use futures_util::StreamExt as _;
use postrider_core::{
    BrokerUrl, Channel, Connector, Env, Group, GroupName, Order, SubscribeOptions, Subscriber, Subscription,
};
use postrider_nats::{Naming, NatsConnector};

#[tokio::test]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn a_single_partition_asks_for_the_whole_window_and_each_of_eight_for_its_share() {
    for (order, batch, bytes) in [(Order::None, 1024, 16 << 20), (Order::Key, 256, 2 << 20)] {
        let tenant = format!("requests-{:x}", Env::system().random());
        let url = support::shared_url();
        // whoever is of the same account hears what others ask for
        let listener = async_nats::connect(&url).await.expect("the server answers");
        let stream = Naming::new(Some(&tenant)).unwrap().stream("c").unwrap();
        let mut asked = listener
            .subscribe(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.>"))
            .await
            .expect("it may be heard");
        listener.flush().await.expect("the server knows");

        let parsed = BrokerUrl::parse(&format!("{url}?tenant={tenant}")).unwrap();
        let broker = NatsConnector.connect(&parsed, Env::system()).await.expect("the server answers");
        let group = Group::Named(GroupName::new("g").unwrap());
        let mut options = SubscribeOptions::new(Channel::new("c").unwrap(), group);
        options.order = order;
        let mut subscription = broker.subscribe(&options).await.expect("it subscribes");
        let first = tokio::time::timeout(Duration::from_mins(1), asked.next()).await;
        let request: serde_json::Value =
            serde_json::from_slice(&first.expect("in time").expect("it is asked").payload).unwrap();
        assert_eq!((&request["batch"], &request["max_bytes"]), (&batch.into(), &bytes.into()), "{order:?}");
        subscription.close().await.expect("it leaves");
    }
}
