//! What a subscription promises.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use postrider_core::{
    Bytes, Channel, Envelope, Group, Order, Publisher, PublisherExt, RouteOptions, Router, Settlement,
    Signal, Start, SubscribeOptions, Subscriber, Subscription,
};

use crate::kit::{Bench, DRAIN, QUIET, declare_group, number, number_of, settle, subscribe, within};
use crate::record::Outcome::{self, Passed, Skipped};

pub async fn new_group_reads_what_was_there(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    bench.publish_keys(&channel, &["k"; 20]).await;
    let mut reader = bench.subscribe(&channel, "late").await;
    assert_eq!(reader.take_numbers(20).await, (0..20).collect::<Vec<_>>());
    Passed
}

pub async fn start_latest(bench: Bench) -> Outcome {
    let channel = bench.channel_for("other").await;
    bench.publish_count(&channel, 5).await;
    let mut reader = bench.subscribe_with(&channel, "g", |options| options.start = Start::Latest).await;
    bench.broker.publish(&*channel, number(77)).await.expect("it is confirmed");
    assert_eq!(reader.take_numbers(1).await, [77]);
    Passed
}

pub async fn start_time(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    bench.broker.publish(&*channel, number(1)).await.expect("it is confirmed");
    // both clocks, the broker's and ours, must be past the first message
    tokio::time::sleep(Duration::from_millis(50)).await;
    let from = bench.broker.env().wall_ms();
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.broker.publish(&*channel, number(2)).await.expect("it is confirmed");
    let mut reader = bench.subscribe_with(&channel, "g", |options| options.start = Start::Time(from)).await;
    assert_eq!(reader.take_numbers(1).await, [2]);
    reader.nothing().await;
    Passed
}

pub async fn two_groups_both_get_all(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let mut one = bench.subscribe(&channel, "one").await;
    let mut two = bench.subscribe(&channel, "two").await;
    bench.publish_keys(&channel, &["k"; 50]).await;
    let all: Vec<_> = (0..50).collect();
    assert_eq!(one.take_numbers(50).await, all);
    assert_eq!(two.take_numbers(50).await, all);
    Passed
}

pub async fn members_share_without_doubles(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let other = bench.reconnect().await;
    let unordered = |options: &mut SubscribeOptions| {
        options.order = Order::None;
        options.window.messages = 16;
    };
    let one = subscribe(&bench.broker, &channel, "g", unordered).await;
    let two = subscribe(&other, &channel, "g", unordered).await;
    bench.publish_count(&channel, 400).await;
    let (mut one, mut two) = (one, two);
    // both hold a window full at the same time, so neither can have taken everything
    let (first, second) = (one.take(16).await, two.take(16).await);
    let mut all: Vec<_> = first.iter().chain(&second).map(|delivery| number_of(&delivery.envelope)).collect();
    settle(first, Settlement::Ack);
    settle(second, Settlement::Ack);
    let total = Arc::new(AtomicUsize::new(all.len()));
    let collect = |mut reader: crate::kit::Reader, total: Arc<AtomicUsize>| async move {
        let mut got = Vec::new();
        while total.load(Relaxed) < 400 {
            let next = tokio::time::timeout(QUIET, reader.take(1)).await;
            if let Ok(deliveries) = next {
                got.extend(deliveries.iter().map(|d| number_of(&d.envelope)));
                total.fetch_add(deliveries.len(), Relaxed);
                settle(deliveries, Settlement::Ack);
            }
        }
        got
    };
    let (a, b) = within("all are read", async {
        tokio::join!(collect(one, total.clone()), collect(two, total.clone()))
    })
    .await;
    all.extend(a.into_iter().chain(b));
    let unique: BTreeSet<_> = all.iter().copied().collect();
    assert_eq!((unique.len(), all.len()), (400, 400));
    Passed
}

pub async fn ephemeral_groups_each_get_a_copy(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let options = SubscribeOptions::new(Channel::new(&*channel).expect("a good name"), Group::Ephemeral);
    let mut members = Vec::new();
    for _ in 0..2 {
        members.push(bench.broker.subscribe(&options).await.expect("it starts"));
    }
    bench.publish_count(&channel, 10).await;
    for mut member in members {
        let mut got = Vec::new();
        within("each gets all", async {
            while got.len() < 10 {
                member.receive(NonZeroUsize::MIN.saturating_add(9), &mut got).await.expect("it goes on");
            }
        })
        .await;
        settle(got, Settlement::Ack);
        member.close().await.expect("it closes");
    }
    Passed
}

pub async fn twenty_channels_are_isolated(bench: Bench) -> Outcome {
    let parent = bench.channel().await;
    let names: Vec<_> = (0..19).map(|i| format!("{parent}.child{i}")).chain([parent.clone()]).collect();
    for name in &names {
        declare_group(&bench.broker, name, "g", |options| options.partitions = Some(1)).await;
    }
    for (i, name) in names.iter().enumerate() {
        let messages = (0..100).map(|n| number(i * 1000 + n).key("k"));
        assert!(bench.broker.publish_all(&**name, messages).await.iter().all(Result::is_ok));
    }
    for (i, name) in names.iter().enumerate() {
        let mut reader = bench.subscribe_with(name, "g", |options| options.partitions = Some(1)).await;
        assert_eq!(reader.take_numbers(100).await, (i * 1000..i * 1000 + 100).collect::<Vec<_>>(), "{name}");
        reader.close().await;
    }
    Passed
}

pub async fn receive_never_exceeds_max(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_count(&channel, 200).await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let (mut got, three) = (Vec::new(), NonZeroUsize::new(3).expect("three"));
    within("all come", async {
        while got.len() < 200 {
            let before = got.len();
            reader.subscription.receive(three, &mut got).await.expect("it goes on");
            assert!(got.len() - before <= 3);
        }
    })
    .await;
    settle(got, Settlement::Ack);
    Passed
}

pub async fn cancelled_receive_loses_nothing(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let publisher = bench.clone();
    let to = channel.clone();
    let publishing = tokio::spawn(async move {
        for chunk in 0..20 {
            let messages = (0..50).map(|n| number(chunk * 50 + n));
            assert!(publisher.broker.publish_all(&*to, messages).await.iter().all(Result::is_ok));
        }
    });
    let (mut got, mut cancels) = (Vec::new(), 0);
    let one = NonZeroUsize::MIN;
    within("all come", async {
        while got.len() < 1000 || cancels < 1000 {
            // polled once, then dropped, whatever it was doing
            let receive = std::pin::pin!(reader.subscription.receive(one, &mut got));
            match futures_util::poll!(receive) {
                std::task::Poll::Ready(signal) => drop(signal.expect("it goes on")),
                std::task::Poll::Pending => cancels += 1,
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    publishing.await.expect("all were published");
    let unique: BTreeSet<_> = got.iter().map(|delivery| number_of(&delivery.envelope)).collect();
    assert_eq!((got.len(), unique.len()), (1000, 1000));
    settle(got, Settlement::Ack);
    Passed
}

pub async fn close_ends_the_stream(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let mut reader = bench.subscribe(&channel, "g").await;
    reader.subscription.close().await.expect("it closes");
    let ended = within("the end is told", async {
        loop {
            let mut into = Vec::new();
            match reader.subscription.receive(NonZeroUsize::MIN, &mut into).await {
                Ok(Signal::Closed) | Err(_) => return true,
                Ok(_) => {}
            }
        }
    });
    assert!(ended.await);
    Passed
}

pub async fn window_in_messages_holds(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_count(&channel, 100).await;
    let mut reader = bench.subscribe_with(&channel, "g", |options| options.window.messages = 10).await;
    let held = reader.take(10).await;
    reader.nothing().await;
    settle(held, Settlement::Ack);
    let more = reader.take(10).await;
    assert_eq!(more.len(), 10);
    settle(more, Settlement::Ack);
    Passed
}

pub async fn window_in_bytes_holds(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    for _ in 0..10 {
        let body = Envelope::builder(Bytes::from(vec![b'x'; 10_000]));
        bench.broker.publish(&*channel, body).await.expect("it is confirmed");
    }
    let mut reader = bench.subscribe_with(&channel, "g", |options| options.window.bytes = 35_000).await;
    let held = reader.take(3).await;
    reader.nothing().await;
    settle(held, Settlement::Ack);
    assert_eq!(reader.take(3).await.len(), 3);
    Passed
}

pub async fn full_window_stops_and_settling_resumes(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_count(&channel, 300).await;
    let mut reader = bench.subscribe_with(&channel, "g", |options| options.window.messages = 4).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 300 {
        let held = reader.take(4.min(300 - seen.len())).await;
        seen.extend(held.iter().map(|delivery| number_of(&delivery.envelope)));
        settle(held, Settlement::Ack);
    }
    reader.nothing().await;
    Passed
}

pub async fn long_handler_runs_once(bench: Bench) -> Outcome {
    /// Long enough that a busy machine's halts are not taken for a member's end.
    const CLAIM: Duration = Duration::from_secs(6);
    let broker = bench.reconnect_with(|settings| settings.claim_timeout = Some(CLAIM)).await;
    let channel = bench.channel().await;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let slow = move |envelope: Envelope| {
        let counted = Arc::clone(&counted);
        async move {
            counted.fetch_add(1, Relaxed);
            // the second one waits behind it
            if number_of(&envelope) == 1 {
                tokio::time::sleep(3 * CLAIM).await;
            }
        }
    };
    let options = RouteOptions::new(&*channel, "g").partitions(1).claim_timeout(CLAIM);
    let service = Router::new().route(options.handle(slow)).start(&broker).await.expect("it starts");
    broker.publish(&*channel, number(1).key("k")).await.expect("it is confirmed");
    broker.publish(&*channel, number(2).key("k")).await.expect("it is confirmed");
    within("both are handled", service.idle()).await;
    let report = service.stop(DRAIN).await.expect("it stops");
    assert_eq!(
        (runs.load(Relaxed), report.routes[0].handled),
        (2, 2),
        "three times the claim time-out, and run once each"
    );
    Passed
}

pub async fn pause_and_resume(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let control = reader.subscription.control();
    bench.broker.publish(&*channel, number(1)).await.expect("it is confirmed");
    assert_eq!(reader.take_numbers(1).await, [1]);
    control.pause();
    bench.broker.publish(&*channel, number(2)).await.expect("it is confirmed");
    reader.nothing().await;
    control.resume();
    assert_eq!(reader.take_numbers(1).await, [2]);
    Passed
}

pub async fn seek_goes_back(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    bench.publish_keys(&channel, &["k"; 10]).await;
    let mut reader = bench.subscribe(&channel, "g").await;
    assert_eq!(reader.take_numbers(10).await.len(), 10);
    reader.subscription.control().seek(Start::Earliest).await.expect("it is moved");
    assert_eq!(reader.take_numbers(10).await, (0..10).collect::<Vec<_>>());
    Passed
}

pub async fn lag_is_told(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let control = reader.subscription.control();
    bench.publish_count(&channel, 30).await;
    let held = reader.take(10).await;
    assert_eq!(within("the lag is told", control.lag()).await.expect("it is told"), 30);
    settle(held, Settlement::Ack);
    within("the lag falls", async { while control.lag().await.expect("it is told") != 20 {} }).await;
    Passed
}

pub async fn foreign_record_is_readable(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let mut reader = bench.subscribe(&channel, "g").await;
    bench.foreign(&channel, &[], b"{\"plain\":true}").await;
    let first = reader.one().await;
    assert_eq!(first.payload(), &Bytes::from_static(b"{\"plain\":true}"));
    assert_eq!((first.type_name(), first.version(), first.key()), ("", 0, None));
    assert!(!first.id().to_string().is_empty(), "it gets an id from where it stood");
    Passed
}

pub async fn foreign_headers_are_carried(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let headers = [
        ("X-Trace", "1"),
        ("X-Trace", "2"),
        ("ce-unknown", "kept"),
        ("ce-time", "yesterday"),
        ("x-death", "0"),
    ];
    bench.foreign(&channel, &headers, b"x").await;
    let got = reader.one().await;
    let values: Vec<_> =
        got.headers().get_all("X-Trace").filter_map(postrider_core::HeaderValue::as_text).collect();
    assert_eq!(values, ["1", "2"]);
    for name in ["ce-unknown", "ce-time", "x-death"] {
        assert!(got.headers().get(name).is_some(), "{name} is carried along");
    }
    Passed
}

pub async fn structured_cloud_event_is_read(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let body = br#"{"specversion":"1.0","id":"7","source":"/s","type":"t","data":{"a":1}}"#;
    bench.foreign(&channel, &[("content-type", "application/cloudevents+json")], body).await;
    let got = reader.one().await;
    assert_eq!((got.id().to_string().as_str(), got.source(), got.type_name()), ("7", "/s", "t"));
    assert_eq!(got.payload(), &Bytes::from_static(br#"{"a":1}"#));
    Passed
}

pub async fn retention_leaves_a_gap(bench: Bench) -> Outcome {
    let one = |options: &mut postrider_core::SubscribeOptions| options.partitions = Some(1);
    let channel = bench.channel_with("g", one).await;
    // the key is the place: all in one partition, wherever
    bench.publish_keys(&channel, &["k"; 20]).await;
    let mut reader = bench.subscribe_with(&channel, "g", one).await;
    assert_eq!(reader.take_numbers(5).await, (0..5).collect::<Vec<_>>());
    reader.close().await;
    if !bench.factory().retain_from(&bench.settings, &channel, 12).await {
        return Skipped("a way to delete the oldest messages");
    }
    let mut reader = bench.subscribe_with(&channel, "g", one).await;
    assert_eq!(
        reader.take_numbers(8).await,
        (12..20).collect::<Vec<_>>(),
        "reading goes on where the log begins"
    );
    let gaps: Vec<_> = reader.signals.iter().filter(|signal| matches!(signal, Signal::Gap(_))).collect();
    let [Signal::Gap(gap)] = gaps[..] else {
        panic!("one gap is told, not {gaps:?}");
    };
    assert_eq!((gap.from, gap.to), (5, 12));
    Passed
}
