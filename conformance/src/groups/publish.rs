//! What publishing promises.

use std::time::{Duration, Instant};

use postrider_core::{
    Attribute, Bytes, Capability, Channel, Envelope, EnvelopeBuilder, HeaderValue, MAX_HEADER_VALUE,
    MAX_HEADERS, Outgoing, PublishError, PublishOptions, PublishOrder, Publisher, PublisherExt,
};

use crate::kit::{Bench, DRAIN, declare_group, number, number_of, subscribe, within};
use crate::record::Outcome::{self, Passed, Skipped};

async fn round_trip(bench: &Bench, builder: EnvelopeBuilder) -> (Envelope, Envelope) {
    let channel = bench.channel().await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let sent = builder.build(bench.broker.env()).expect("the envelope is legal");
    bench.broker.publish(&*channel, sent.clone()).await.expect("it is confirmed");
    (sent, reader.one().await)
}

pub async fn confirmed_is_received_byte_for_byte(bench: Bench) -> Outcome {
    let (sent, got) = round_trip(&bench, Envelope::builder(Bytes::from_static(b"{\"a\": 1}")).key("k")).await;
    assert_eq!((got.payload(), got.id(), got.key()), (sent.payload(), sent.id(), sent.key()));
    assert_eq!((got.source(), got.time_ms()), (sent.source(), sent.time_ms()));
    Passed
}

pub async fn empty_payload(bench: Bench) -> Outcome {
    let (_, got) = round_trip(&bench, Envelope::builder(Bytes::new())).await;
    assert!(got.payload().is_empty() && !got.is_null());
    Passed
}

pub async fn tombstone_is_not_empty(bench: Bench) -> Outcome {
    let (_, got) = round_trip(&bench, EnvelopeBuilder::null().key("gone")).await;
    assert!(got.is_null());
    Passed
}

pub async fn largest_usable_payload(bench: Bench) -> Outcome {
    let largest = bench.broker.capabilities().usable_payload();
    let (sent, got) = round_trip(&bench, Envelope::builder(Bytes::from(vec![7; largest]))).await;
    assert_eq!(got.payload(), sent.payload());
    Passed
}

pub async fn one_byte_over_fails_before_io(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let over = vec![7; bench.broker.capabilities().usable_payload() + 1];
    let error = bench
        .broker
        .publish(&*channel, Envelope::builder(Bytes::from(over)))
        .await
        .expect_err("it is too large");
    assert!(
        matches!(&error, PublishError::Failed(e) if e.kind() == postrider_core::ErrorKind::TooLarge),
        "{error}"
    );
    bench.broker.publish(&*channel, number(1)).await.expect("the connection goes on");
    Passed
}

pub async fn non_utf8_payload(bench: Bench) -> Outcome {
    let (sent, got) = round_trip(&bench, Envelope::builder(Bytes::from_static(&[0xff, 0, 0xfe]))).await;
    assert_eq!(got.payload(), sent.payload());
    Passed
}

pub async fn null_empty_and_binary_keys(bench: Bench) -> Outcome {
    for key in [None, Some(&b""[..]), Some(&[0xff, 0, 1][..]), Some("schlüssel".as_bytes())] {
        let builder = number(1);
        let (_, got) = round_trip(&bench, key.map_or_else(|| number(1), |key| builder.key(key))).await;
        assert_eq!(got.key(), key);
    }
    Passed
}

pub async fn every_header_shape_repeated_and_typed(bench: Bench) -> Outcome {
    let long = "v".repeat(MAX_HEADER_VALUE);
    let shapes = [
        HeaderValue::Text("plain"),
        HeaderValue::Text(""),
        HeaderValue::Text(" spaced "),
        HeaderValue::Text("zwei\nZeilen, übel"),
        HeaderValue::Text(&long),
        HeaderValue::Bytes(&[0, 255, 10]),
        HeaderValue::Int(i64::MIN),
        HeaderValue::Bool(true),
        HeaderValue::Time(1_700_000_000_123),
        HeaderValue::Null,
    ];
    let mut builder = number(1);
    for (i, shape) in shapes.iter().enumerate() {
        builder = builder.header(&format!("h{i}"), *shape).header("with space: ä", *shape);
    }
    builder = builder.header("twice", "1").header("twice", "2").header("Case", "a").header("case", "b");
    let (_, got) = round_trip(&bench, builder).await;
    for (i, shape) in shapes.iter().enumerate() {
        assert_eq!(got.headers().get(&format!("h{i}")), Some(*shape), "h{i}");
    }
    assert_eq!(got.headers().get_all("with space: ä").collect::<Vec<_>>(), shapes);
    assert_eq!(
        got.headers().get_all("twice").collect::<Vec<_>>(),
        [HeaderValue::Text("1"), HeaderValue::Text("2")]
    );
    assert_eq!(got.headers().get("Case"), Some(HeaderValue::Text("a")));
    assert_eq!(got.headers().get("case"), Some(HeaderValue::Text("b")));
    Passed
}

pub async fn every_attribute_comes_back(bench: Bench) -> Outcome {
    // a version that is a number has no text besides
    let others =
        |a: &&Attribute| !matches!(a, Attribute::Key | Attribute::ExpiryTime | Attribute::SchemaVersion);
    let texts = Attribute::ALL.iter().filter(others);
    let mut builder = number(1).version(3).key("k").expires_ms(4_000_000_000_000);
    for attribute in texts.clone() {
        builder = builder.attribute(*attribute, &*format!("{} of ümlaut \"%41\"", attribute.as_str()));
    }
    let (sent, got) = round_trip(&bench, builder).await;
    for attribute in texts {
        assert_eq!(
            got.headers().attribute(*attribute),
            sent.headers().attribute(*attribute),
            "{attribute:?}"
        );
    }
    assert_eq!((got.version(), got.expires_ms(), got.key()), (3, Some(4_000_000_000_000), Some(&b"k"[..])));
    Passed
}

pub async fn header_bounds_refused_before_io(bench: Bench) -> Outcome {
    // a channel that nobody has: if anything were sent, the error would be another one
    let many = (0..=MAX_HEADERS).fold(number(1), |builder, i| builder.header(&format!("h{i}"), "v"));
    for builder in
        [many, number(1).header("v", &"v".repeat(MAX_HEADER_VALUE + 1)), number(1).header("ce-id", "x")]
    {
        let error = bench.broker.publish("nowhere", builder).await.expect_err("it is beyond the bounds");
        let kind = error.error().kind();
        assert!(
            matches!(kind, postrider_core::ErrorKind::TooLarge | postrider_core::ErrorKind::Config),
            "{error}"
        );
    }
    Passed
}

pub async fn thousand_pipelined_all_confirm(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let mut confirms = Vec::new();
    for n in 0..1000 {
        confirms.push(bench.broker.enqueue(&*channel, number(n)).await);
    }
    for confirm in confirms {
        within("the confirm comes", confirm).await.expect("it is confirmed");
    }
    let mut reader = bench.subscribe(&channel, "g").await;
    let mut numbers = reader.take_numbers(1000).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    Passed
}

pub async fn every_seventh_unroutable_fails_alone(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let mut confirms = Vec::new();
    for n in 0..1000 {
        let to = if n % 7 == 0 { "no-such-channel" } else { &*channel };
        confirms.push(bench.broker.enqueue(to, number(n)).await);
    }
    for (n, confirm) in confirms.into_iter().enumerate() {
        let outcome = within("the confirm comes", confirm).await;
        match outcome {
            Err(PublishError::Failed(_)) => assert_eq!(n % 7, 0, "message {n} failed"),
            Ok(_) => assert_ne!(n % 7, 0, "message {n} was confirmed"),
            Err(other) => panic!("message {n}: {other}"),
        }
    }
    Passed
}

pub async fn publish_all_answers_each(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let over = vec![7; bench.broker.capabilities().usable_payload() + 1];
    let good = |n| number(n);
    let mixed =
        vec![good(0), Envelope::builder(Bytes::from(over)), good(2), number(3).header("", "bad"), good(4)];
    let outcomes = bench.broker.publish_all(&*channel, mixed).await;
    assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, false, true]);
    let mut numbers = bench.subscribe(&channel, "g").await.take_numbers(3).await;
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 2, 4]);
    Passed
}

pub async fn order_of_a_key_under_pipelining(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_keys(&channel, &["k"; 500]).await;
    let mut reader = bench.subscribe(&channel, "g").await;
    assert_eq!(reader.take_numbers(500).await, (0..500).collect::<Vec<_>>());
    Passed
}

pub async fn per_key_order_across_a_cut(bench: Bench) -> Outcome {
    let Some(controls) = bench.controls().await else {
        return Skipped("fault controls");
    };
    let mut settings = bench.settings.clone();
    settings.resend = true;
    // nothing but a cut breaks the connection: a halt of the machine is not taken for its end
    settings.claim_timeout = Some(Duration::from_secs(20));
    let broker = controls.connect(settings.clone()).await;
    let channel = crate::kit::unique("c");
    declare_group(&broker, &channel, "g", |_| {}).await;
    let mut options = PublishOptions::default();
    options.order = PublishOrder::PerKey;
    let mut cuts = 0;
    for n in 0..300 {
        if n % 60 == 30 {
            controls.proxy().cut();
            cuts += 1;
        }
        let sent = broker.publish_with(&*channel, number(n).key("k"), options.clone());
        within("the confirm comes", sent).await.expect("it is sent again until it is confirmed");
    }
    let mut reader = subscribe(&broker, &channel, "g", |_| {}).await;
    let mut numbers = Vec::new();
    while numbers.last() != Some(&299) {
        numbers.extend(reader.take_numbers(1).await);
    }
    // where a cut fell between a message and its confirm, a broker that doesn't know ids keeps both copies: one behind the other
    let copies = numbers.len();
    numbers.dedup();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    assert!(copies <= 300 + cuts, "{copies} copies of 300 messages after {cuts} cuts");
    Passed
}

pub async fn missing_channel_fails_in_time(bench: Bench) -> Outcome {
    /// Less than the default deadline of 30 s, so that an ignored option fails the case.
    const LIMIT: Duration = Duration::from_secs(25);
    let mut options = PublishOptions::default();
    options.deadline = Some(Duration::from_secs(1));
    let publishing = bench.broker.publish_with("no-such-channel", number(1), options);
    let outcome = tokio::time::timeout(LIMIT, publishing).await.expect("the deadline of the options holds");
    let error = outcome.expect_err("nobody takes it");
    assert!(matches!(&error, PublishError::Failed(_)), "{error}");
    Passed
}

pub async fn send_after_close_is_an_error(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let other = bench.reconnect_with(|settings| settings.tenant = crate::kit::unique("t")).await;
    other.declare(&channel).await.expect("it is declared");
    other.close(Instant::now() + Duration::from_secs(5)).await;
    let error = other.publish(&*channel, number(1)).await.expect_err("it is closed");
    assert!(
        matches!(&error, PublishError::Failed(e) if e.kind() == postrider_core::ErrorKind::Closed),
        "{error}"
    );
    Passed
}

pub async fn close_resolves_every_send(bench: Bench) -> Outcome {
    let other = bench.reconnect_with(|settings| settings.tenant = crate::kit::unique("t")).await;
    let channel = crate::kit::unique("c");
    declare_group(&other, &channel, "g", |_| {}).await;
    let mut confirms = Vec::new();
    for n in 0..500 {
        confirms.push(other.enqueue(&*channel, number(n)).await);
    }
    let report = within("it closes", other.close(Instant::now() + DRAIN)).await;
    assert_eq!(report.confirmed, 500, "{report:?}");
    for confirm in confirms {
        within("the confirm is resolved", confirm).await.expect("it is confirmed");
    }
    Passed
}

pub async fn stalled_broker_bounds_memory(bench: Bench) -> Outcome {
    let Some(controls) = bench.controls().await else {
        return Skipped("fault controls");
    };
    let broker = controls.connect(bench.settings.clone()).await;
    let channel = crate::kit::unique("c");
    declare_group(&broker, &channel, "g", |_| {}).await;
    controls.proxy().stall(true);
    let (mut confirms, mut waited) = (Vec::new(), false);
    for n in 0..100_000 {
        let body = Envelope::builder(Bytes::from(vec![b'0' + (n % 10) as u8; 16 * 1024]));
        if let Ok(confirm) =
            tokio::time::timeout(Duration::from_millis(500), broker.enqueue(&*channel, body)).await
        {
            confirms.push(confirm);
        } else {
            waited = true;
            break;
        }
    }
    assert!(waited, "{} sends of 16 KiB were accepted by a broker that takes none", confirms.len());
    controls.proxy().stall(false);
    for confirm in confirms {
        // what was under way when the connection stalled may have no answer; what matters is that each has an outcome
        let _ = within("the confirm is resolved", confirm).await;
    }
    broker.publish(&*channel, number(1)).await.expect("it goes on");
    Passed
}

pub async fn deadline_while_disconnected_is_failed(bench: Bench) -> Outcome {
    let Some(controls) = bench.controls().await else {
        return Skipped("fault controls");
    };
    let broker = controls.connect(bench.settings.clone()).await;
    let channel = crate::kit::unique("c");
    declare_group(&broker, &channel, "g", |_| {}).await;
    controls.proxy().refuse(true);
    crate::kit::eventually("the loss is noticed", || broker.health() != postrider_core::Health::up()).await;
    let mut options = PublishOptions::default();
    options.deadline = Some(Duration::from_millis(300));
    let error = broker.publish_with(&*channel, number(1), options).await.expect_err("there is no connection");
    assert!(matches!(&error, PublishError::Failed(_)), "{error}");
    controls.proxy().refuse(false);
    within("the connection is back", async { while broker.publish(&*channel, number(2)).await.is_err() {} })
        .await;
    let mut reader = subscribe(&broker, &channel, "g", |_| {}).await;
    assert_eq!(reader.take_numbers(1).await, [2], "what failed is never stored later");
    Passed
}

pub async fn two_publishers_interleave(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let other = bench.reconnect().await;
    let half = |from: usize| (from..1000).step_by(2).map(|n| number(n).key(format!("k{}", n % 10)));
    let (a, b) =
        tokio::join!(bench.broker.publish_all(&*channel, half(0)), other.publish_all(&*channel, half(1)));
    assert!(a.iter().chain(&b).all(Result::is_ok));
    let mut numbers = bench.subscribe(&channel, "g").await.take_numbers(1000).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    Passed
}

pub async fn a_second_copy_is_handled_as_declared(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let envelope = number(1).build(bench.broker.env()).expect("it is legal");
    let first = bench.broker.publish(&*channel, envelope.clone()).await.expect("it is confirmed");
    let second = bench.broker.publish(&*channel, envelope).await.expect("it is confirmed");
    let dedupes = bench.broker.capabilities().has(Capability::Dedupe);
    assert_eq!((first.duplicate, second.duplicate), (false, dedupes));
    let mut reader = bench.subscribe(&channel, "g").await;
    assert_eq!(reader.take_numbers(if dedupes { 1 } else { 2 }).await.len(), if dedupes { 1 } else { 2 });
    reader.nothing().await;
    Passed
}

pub async fn hops_are_never_dropped(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let envelope = number(1).build(bench.broker.env()).expect("it is legal");
    for hop in ["", "dlq/g/0/x", "dlq/g/1/x"] {
        let mut options = PublishOptions::default();
        options.hop = (!hop.is_empty()).then(|| hop.into());
        let outgoing = Outgoing::new(&*channel, envelope.clone()).with(options);
        let receipt = bench.broker.send(outgoing).await.await.expect("it is confirmed");
        assert!(!receipt.duplicate, "{hop}");
    }
    let mut reader = bench.subscribe(&channel, "g").await;
    for delivery in reader.take(3).await {
        assert_eq!((delivery.envelope.id(), number_of(&delivery.envelope)), (envelope.id(), 1));
    }
    assert!(Channel::new(channel).is_ok());
    Passed
}
