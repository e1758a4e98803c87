//! What settling promises.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use postrider_core::{Claim, Order, PublisherExt, Settlement, Subscription};

use crate::kit::{Bench, number, number_of, settle, subscribe, within};
use crate::record::Outcome::{self, Passed, Skipped};

pub async fn ack_is_not_redelivered_after_restart(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_keys(&channel, &["k"; 10]).await;
    let mut reader = bench.subscribe(&channel, "g").await;
    assert_eq!(reader.take_numbers(10).await.len(), 10);
    reader.close().await;
    let mut again = bench.subscribe(&channel, "g").await;
    bench.broker.publish(&*channel, number(99).key("k")).await.expect("it is confirmed");
    assert_eq!(again.take_numbers(1).await, [99]);
    again.nothing().await;
    Passed
}

pub async fn give_back_is_redelivered(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    for order in [Order::Key, Order::None] {
        let group = order.as_str();
        let mut reader = bench.subscribe_with(&channel, group, |options| options.order = order).await;
        bench.broker.publish(&*channel, number(1).key("k")).await.expect("it is confirmed");
        let first = reader.take(1).await.pop().expect("one");
        let deliveries = first.deliveries;
        first.claim.settle(Settlement::GiveBack(None)).expect("the claim holds");
        let second = reader.take(1).await.pop().expect("one");
        assert_eq!(number_of(&second.envelope), 1);
        assert!(second.deliveries >= deliveries, "{:?} after {deliveries:?}", second.deliveries);
        second.claim.settle(Settlement::Ack).expect("the claim holds");
        if order == Order::Key {
            // the other group's copy of what follows must not be confused with this one's
            reader.close().await;
        }
    }
    Passed
}

pub async fn give_back_keeps_the_keys_order(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_keys(&channel, &["k"; 20]).await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let mut held = reader.take(10).await;
    let suffix = held.split_off(4);
    settle(held, Settlement::Ack);
    settle(suffix, Settlement::GiveBack(None));
    assert_eq!(reader.take_numbers(16).await, (4..20).collect::<Vec<_>>());
    Passed
}

pub async fn delayed_give_back_is_not_early(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let mut reader = bench.subscribe_with(&channel, "g", |options| options.order = Order::None).await;
    bench.broker.publish(&*channel, number(1)).await.expect("it is confirmed");
    let delivery = reader.take(1).await.pop().expect("one");
    let (delay, began) = (Duration::from_millis(700), Instant::now());
    delivery.claim.settle(Settlement::GiveBack(Some(delay))).expect("the claim holds");
    assert_eq!(reader.take_numbers(1).await, [1]);
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    Passed
}

pub async fn dropped_delivery_is_given_back(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.broker.publish(&*channel, number(1).key("k")).await.expect("it is confirmed");
    let mut reader = bench.subscribe(&channel, "g").await;
    drop(reader.take(1).await);
    assert_eq!(reader.take_numbers(1).await, [1]);
    Passed
}

pub async fn out_of_order_acks_survive_restart(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_keys(&channel, &["k"; 20]).await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let held = reader.take(20).await;
    let (odd, even): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|delivery| number_of(&delivery.envelope) % 2 == 1);
    settle(odd.into_iter().rev().collect(), Settlement::Ack);
    drop(even);
    reader.close().await;
    let mut again = bench.subscribe(&channel, "g").await;
    assert_eq!(again.take_numbers(10).await, (0..20).step_by(2).collect::<Vec<_>>());
    again.nothing().await;
    Passed
}

pub async fn stale_settle_is_harmless(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_keys(&channel, &["k"; 3]).await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let held = reader.take(3).await;
    reader.subscription.close().await.expect("it closes");
    let mut batch: Vec<_> = held.into_iter().map(|delivery| (delivery.claim, Settlement::Ack)).collect();
    let error = Claim::settle_all(&mut batch).expect_err("the claims have ended");
    assert_eq!(error.stale.len(), 3);
    let mut again = bench.subscribe(&channel, "g").await;
    assert_eq!(again.take_numbers(3).await, [0, 1, 2], "what could not be settled comes again");
    Passed
}

pub async fn ack_while_the_broker_is_away(bench: Bench) -> Outcome {
    let Some(controls) = bench.controls().await else {
        return Skipped("fault controls");
    };
    let mut settings = bench.settings.clone();
    settings.claim_timeout = Some(Duration::from_secs(2));
    let broker = controls.connect(settings).await;
    let channel = crate::kit::unique("c");
    broker.declare(&channel).await.expect("it is declared");
    let mut reader = subscribe(&broker, &channel, "g", |options| options.partitions = Some(1)).await;
    for n in 0..10 {
        broker.publish(&*channel, number(n).key("k")).await.expect("it is confirmed");
    }
    let held = reader.take(10).await;
    controls.settled().await;
    controls.kill().await;
    // recorded while nobody is there to hear it; lost or told later, redelivery absorbs it
    let mut batch: Vec<_> = held.into_iter().map(|delivery| (delivery.claim, Settlement::Ack)).collect();
    let _ = Claim::settle_all(&mut batch);
    controls.start().await;
    within("publishing works again", async {
        while broker.publish(&*channel, number(99).key("k")).await.is_err() {}
    })
    .await;
    let mut seen = BTreeSet::new();
    while !seen.contains(&99) {
        for delivery in reader.take(1).await {
            seen.insert(number_of(&delivery.envelope));
            let _ = delivery.claim.settle(Settlement::Ack);
        }
    }
    Passed
}

pub async fn flush_waits_for_the_broker(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_keys(&channel, &["k"; 50]).await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let mut held = reader.take(50).await;
    let last = held.pop().expect("fifty");
    settle(held, Settlement::Ack);
    reader.flush(&last.claim).await;
    // after a flush the broker has them: even a member that vanishes without a word leaves only the last one
    drop(last);
    drop(reader);
    let mut again = bench.subscribe(&channel, "g").await;
    assert_eq!(again.take_numbers(1).await, [49]);
    again.nothing().await;
    Passed
}

pub async fn ten_thousand_from_sixteen_tasks(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let publisher = bench.clone();
    let to = channel.clone();
    let publishing = tokio::spawn(async move {
        for chunk in 0..20 {
            let messages = (0..500).map(|n| number(chunk * 500 + n).key(format!("k{}", n % 50)));
            assert!(publisher.broker.publish_all(&*to, messages).await.iter().all(Result::is_ok));
        }
    });
    let mut reader = bench.subscribe(&channel, "g").await;
    let mut tasks = tokio::task::JoinSet::new();
    let mut taken = 0;
    while taken < 10_000 {
        let some = reader.take(125).await;
        taken += some.len();
        tasks.spawn(async move {
            for delivery in some {
                tokio::task::yield_now().await;
                delivery.claim.settle(Settlement::Ack).expect("the claim holds");
            }
        });
        if tasks.len() >= 16 {
            tasks.join_next().await.expect("sixteen").expect("it settles");
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("it settles");
    }
    publishing.await.expect("all were published");
    reader.close().await;
    let mut again = bench.subscribe(&channel, "g").await;
    again.nothing().await;
    Passed
}
