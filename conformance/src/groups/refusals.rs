//! What a broker must answer when it is asked for what it can't do: `Unsupported`, with the capability's name.

use postrider_core::{
    Address, Capability, ErrorKind, Group, OnGap, Order, Outgoing, Publisher, Retry, RouteOptions, Router,
    Scope, Start,
};

use crate::kit::Bench;

pub(crate) async fn refused(bench: &Bench, capability: Capability) {
    let channel = bench.channel().await;
    let error = match capability {
        Capability::Seek => {
            let reader = bench.subscribe(&channel, "g").await;
            postrider_core::Subscription::control(&reader.subscription)
                .seek(Start::Earliest)
                .await
                .expect_err("seek is refused")
        }
        Capability::Lag => {
            let reader = bench.subscribe(&channel, "g").await;
            postrider_core::Subscription::control(&reader.subscription)
                .lag()
                .await
                .expect_err("lag is refused")
        }
        Capability::KeyOrder => start(bench, RouteOptions::new(&*channel, "g").order(Order::Key)).await,
        Capability::PartitionOrder => {
            start(bench, RouteOptions::new(&*channel, "g").order(Order::Partition)).await
        }
        Capability::StartTime => start(bench, RouteOptions::new(&*channel, "g").start(Start::Time(1))).await,
        Capability::Ephemeral => start(bench, RouteOptions::ephemeral(&*channel)).await,
        Capability::Gaps => start(bench, RouteOptions::new(&*channel, "g").on_gap(OnGap::Stop)).await,
        Capability::DurableRetry => {
            start(bench, RouteOptions::new(&*channel, "g").order(Order::None).retry(Retry::new().durable()))
                .await
        }
        Capability::GroupAddress => {
            let envelope = crate::kit::number(1).build(bench.broker.env()).expect("it is legal");
            let message = Outgoing::new(Address::to_group(&channel, "g"), envelope);
            bench.broker.send(message).await.await.expect_err("the address is refused").into()
        }
        Capability::Inventory => {
            bench.broker.inventory(&Scope::Everything).await.expect_err("the list is refused")
        }
        Capability::Letters => {
            bench.broker.letters(&format!("{channel}.g.dlq")).await.expect_err("letters are refused")
        }
        // the default start can't be refused; what was there before the group is not, and a publish says so
        Capability::Replay => {
            let error =
                postrider_core::PublisherExt::publish(&bench.broker, &*channel, crate::kit::number(1))
                    .await
                    .expect_err("nobody would ever read it");
            assert!(matches!(error, postrider_core::PublishError::Failed(_)), "{error}");
            return;
        }
        // what can't be asked for by itself has nothing to refuse: the broker merely has less to offer
        Capability::Partitions | Capability::Delay => {
            let mut options = crate::kit::options(&channel, "g");
            options.partitions = Some(4);
            assert_eq!(options.group.name().map(|name| &**name), Some("g"));
            assert_ne!(options.group, Group::Ephemeral);
            return;
        }
        other => panic!("no refusal is written for `{other}`"),
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains(capability.as_str()), "{error}");
}

async fn start(bench: &Bench, options: RouteOptions) -> postrider_core::Error {
    let router = Router::new().route(options.handle(async |_: postrider_core::Envelope| {}));
    router.start(&bench.broker).await.expect_err("the route is refused")
}
