//! What settling promises.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use postrider_core::{Claim, ClaimId, Order, PublisherExt, Settlement, Signal, Subscription};

use crate::kit::{Bench, Reader, assert_waited, number, number_of, settle, subscribe, within};
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
    assert_waited(began.elapsed(), delay);
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

/// A partition goes to another member and comes back: what was handed out before it went belongs to a hold that has ended.
pub async fn late_result_after_reassignment(bench: Bench) -> Outcome {
    let two = |options: &mut postrider_core::SubscribeOptions| options.partitions = Some(2);
    let channel = bench.channel_with("g", two).await;
    bench.publish_keys(&channel, &["a", "b", "c", "d", "e", "f", "g", "h"]).await;
    let mut first = bench.subscribe_with(&channel, "g", two).await;
    let held = first.take(8).await;
    let shards: BTreeSet<u32> = held.iter().map(|delivery| delivery.claim_id().shard).collect();
    assert!(shards.len() >= 2, "these keys are in more than one partition");
    let other = bench.reconnect().await;
    let joining = tokio::spawn(async move { subscribe(&other, &channel, "g", two).await });
    let ours = |claims: &[ClaimId]| claims.iter().find(|claim| shards.contains(&claim.shard)).copied();
    let gone = within("one partition is to be given up", async {
        loop {
            if let Signal::Revoking(claims) = first.receive(1).await {
                first.subscription.release(&claims).await.expect("it is released");
                if let Some(claim) = ours(&claims) {
                    break claim;
                }
            }
        }
    })
    .await;
    let (late, staying): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|delivery| delivery.claim_id() == gone);
    joining.await.expect("it has joined").close().await;
    // it may come and go again until the broker's members agree that there is one left
    let back = within("it comes back", next_claim(&mut first, |claim| claim.shard == gone.shard)).await;
    assert_ne!(back, gone, "another hold");
    let expected: BTreeSet<usize> = late.iter().map(|delivery| number_of(&delivery.envelope)).collect();
    let mut batch: Vec<_> = late.into_iter().map(|delivery| (delivery.claim, Settlement::Ack)).collect();
    let error = Claim::settle_all(&mut batch).expect_err("the hold has ended");
    assert_eq!(error.stale.len(), expected.len());
    // the others may be on their way, too
    let mut batch = staying.into_iter().map(|delivery| (delivery.claim, Settlement::Ack)).collect();
    let _ = Claim::settle_all(&mut batch);
    let mut again = BTreeSet::new();
    within("what could not be settled comes again", async {
        while !expected.is_subset(&again) {
            match first.receive(16).await {
                Signal::Revoking(claims) => {
                    first.subscription.release(&claims).await.expect("it is released");
                }
                Signal::Deliveries => again.extend(first.drain().into_iter().filter_map(|delivery| {
                    let number = number_of(&delivery.envelope);
                    delivery.claim.settle(Settlement::Ack).is_ok().then_some(number)
                })),
                _ => {}
            }
        }
    })
    .await;
    Passed
}

/// The next claim that is as `wanted`; what is to be given up meanwhile is.
async fn next_claim(reader: &mut Reader, wanted: impl Fn(&ClaimId) -> bool) -> ClaimId {
    loop {
        match reader.receive(1).await {
            Signal::Revoking(claims) => {
                reader.subscription.release(&claims).await.expect("it is released");
            }
            Signal::Assigned(claims) => {
                if let Some(claim) = claims.into_iter().find(&wanted) {
                    return claim;
                }
            }
            _ => {}
        }
    }
}
