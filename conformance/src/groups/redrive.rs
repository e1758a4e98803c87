//! Dead letters on their way back to the group that failed them.

use std::sync::{Arc, Mutex};

use postrider_core::{
    Attempt, Bytes, Capability, Envelope, Failure, HeaderValue, Idempotency, Letters, MAX_HEADERS,
    MemoryStore, Outgoing, PublishOptions, Publisher, PublisherExt, Reason, Redrive, Redriven, RouteOptions,
    Router,
};

use super::failure::{channel_of, handle, text};
use super::letters::{fail_all, open, read};
use crate::kit::{Bench, DRAIN, number, number_of, within};
use crate::record::Outcome::{self, Passed};

/// Sends back all that is open; answers how many were sent.
pub(super) async fn redrive_all(bench: &Bench, channel: &str, how: &Redrive) -> usize {
    let mut letters = open(&bench.broker, channel).await;
    let mut sent = 0;
    loop {
        let some = read(&mut letters, 16).await;
        if some.is_empty() {
            return sent;
        }
        let outcomes = within("they are sent", bench.broker.redrive(&mut letters, &some, how)).await;
        for outcome in outcomes {
            assert!(matches!(outcome, Ok(Redriven::Sent(_))), "{outcome:?}");
            sent += 1;
        }
    }
}

async fn count(bench: &Bench, channel: &str) -> u64 {
    open(&bench.broker, channel).await.count().await.expect("they are counted")
}

/// Runs group `g` until nothing is left; answers what it handled.
pub(super) async fn handle_all(bench: &Bench, channel: &str) -> Vec<(Envelope, u32)> {
    let seen: Arc<Mutex<Vec<(Envelope, u32)>>> = Arc::default();
    let into = Arc::clone(&seen);
    handle(bench, RouteOptions::new(channel, "g"), move |envelope: Envelope, attempt: Attempt| {
        into.lock().expect("nobody panicked").push((envelope, attempt.0));
        std::future::ready(())
    })
    .await;
    std::mem::take(&mut *seen.lock().expect("nobody panicked"))
}

/// The failed group gets it, as it was; the others don't. It is counted, and stops at the limit.
pub async fn goes_to_the_failed_group_alone(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let mut others = bench.subscribe(&channel, "h").await;
    let message = number(1).key("k").type_name("order").version(3).correlation_id("c").header("mine", "1");
    let sent = message.build(bench.broker.env()).expect("it is legal");
    bench.broker.publish(&*channel, sent.clone()).await.expect("it is confirmed");
    assert_eq!(others.take_numbers(1).await, [1]);
    fail_all(&bench, &channel).await;
    assert_eq!(redrive_all(&bench, &channel, &Redrive::new().limit(1)).await, 1);
    assert_eq!(count(&bench, &channel).await, 0, "it is closed");
    // it fails once more, and has had its chance
    fail_all(&bench, &channel).await;
    let mut letters = open(&bench.broker, &channel).await;
    let again = read(&mut letters, 16).await;
    assert_eq!(again.iter().map(|letter| letter.failure().redrives).collect::<Vec<_>>(), [1]);
    let outcomes = bench.broker.redrive(&mut letters, &again, &Redrive::new().limit(1)).await;
    assert!(matches!(outcomes[..], [Ok(Redriven::Limit(1))]), "{outcomes:?}");
    assert_eq!(letters.count().await.expect("they are counted"), 1, "it is open still");
    letters.leave().await.expect("it leaves");
    assert_eq!(redrive_all(&bench, &channel, &Redrive::new()).await, 1);
    let handled = handle_all(&bench, &channel).await;
    assert_eq!(handled.len(), 1);
    let (got, attempt) = &handled[0];
    assert_eq!((got.id(), got.key(), got.payload()), (sent.id(), sent.key(), sent.payload()));
    assert_eq!((got.type_name(), got.version(), got.time_ms()), ("order", 3, sent.time_ms()));
    assert_eq!((got.correlation_id(), got.source()), (Some("c"), sent.source()));
    assert_eq!((*attempt, text(got, "mine")), (1, "1".into()), "as if it had never been tried");
    let ours: Vec<_> = got.headers().iter().filter(|(name, _)| name.starts_with("postrider-")).collect();
    let counted: Vec<_> = ours.iter().map(|(name, value)| (*name, value.as_int())).collect();
    assert_eq!(counted, [("postrider-dlq-redrives", Some(2))]);
    others.nothing().await;
    Passed
}

/// However often they come and go within the broker's window for doubles, and though two have one id.
pub async fn letters_of_one_id_never_vanish(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let message = number(1).key("k").build(bench.broker.env()).expect("it is legal");
    for n in 0..2 {
        let mut options = PublishOptions::default();
        options.hop = Some(format!("copy/{n}").into());
        let outgoing = Outgoing::new(&*channel, message.clone()).with(options);
        bench.broker.send(outgoing).await.await.expect("it is confirmed");
    }
    for round in 0..3 {
        fail_all(&bench, &channel).await;
        assert_eq!(count(&bench, &channel).await, 2, "round {round}");
        assert_eq!(redrive_all(&bench, &channel, &Redrive::new()).await, 2, "round {round}");
    }
    let handled = handle_all(&bench, &channel).await;
    let redrives: Vec<_> = handled.iter().map(|(got, _)| Failure::of(got).redrives).collect();
    assert_eq!(redrives, [3, 3]);
    assert!(handled.iter().all(|(got, _)| got.id() == message.id()));
    Passed
}

/// What would act on the broker is moved aside, there and back; our own headers of a foreign record are no more believed than that.
pub async fn acting_headers_act_no_more(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let acting = bench.factory().acting_headers(&bench.settings, &channel);
    let mut headers: Vec<(&str, &str)> =
        acting.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    headers.extend([("mine", "1"), ("postrider-dlq-error", "a lie"), ("postrider-retry-attempts", "1")]);
    bench.foreign(&channel, &headers, b"7").await;
    fail_all(&bench, &channel).await;
    let mut letters = open(&bench.broker, &channel).await;
    let all = read(&mut letters, 16).await;
    assert_eq!(all.len(), 1, "one record, one letter");
    assert_eq!(all[0].failure().error.as_deref(), Some("a bug"));
    let outcomes = bench.broker.redrive(&mut letters, &all, &Redrive::new()).await;
    assert!(matches!(outcomes[..], [Ok(Redriven::Sent(_))]), "{outcomes:?}");
    let handled = handle_all(&bench, &channel).await;
    assert_eq!(handled.len(), 1, "it went to one place");
    let (got, attempt) = &handled[0];
    assert_eq!((number_of(got), text(got, "mine"), *attempt), (7, "1".into(), 1));
    for (name, value) in &acting {
        let kept = got
            .headers()
            .get_all(&format!("postrider-orig-{name}"))
            .any(|kept| kept == HeaderValue::Text(value));
        assert!(kept, "{name} is kept aside: {:?}", got.headers());
        assert_eq!(got.headers().get(name), None, "{name} acts no more");
    }
    Passed
}

/// There is room for what is said of a failure beside the largest body and as many headers as may be.
pub async fn largest_message_comes_back(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let size = bench.broker.capabilities().usable_payload();
    let body: Bytes = (0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
    // NATS stores 64 KiB of headers with a message, ours among them
    let value = "v".repeat(850);
    let names: Vec<_> = (0..MAX_HEADERS).map(|n| format!("header-{n}")).collect();
    let builder = Envelope::builder(body.clone()).key("k");
    let builder = names.iter().fold(builder, |builder, name| builder.header(name, &*value));
    bench.broker.publish(&*channel, builder).await.expect("it is confirmed");
    let error = "e".repeat(5000);
    handle(&bench, RouteOptions::new(&*channel, "g"), move |_: Envelope| {
        let error = error.clone();
        async move { postrider_core::Classify::permanent(Err::<(), _>(error)) }
    })
    .await;
    assert_eq!(redrive_all(&bench, &channel, &Redrive::new()).await, 1);
    let handled = handle_all(&bench, &channel).await;
    assert_eq!(handled.len(), 1);
    let (got, _) = &handled[0];
    assert!(got.payload() == &body, "the body is as it was");
    assert!(names.iter().all(|name| text(got, name) == value), "so is every header");
    assert!(!got.breaks_bounds());
    Passed
}

/// What the broker gave up on by itself, or somebody else put there, is read and sent back like any other.
pub async fn broker_made_letters_are_readable(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    bench.broker.publish(&*channel, number(1).key("k").header("mine", "1")).await.expect("it is confirmed");
    let given_up = bench.factory().give_up(&bench.settings, &channel, "g").await;
    let how = if given_up {
        Redrive::new()
    } else {
        // this broker gives up on nothing: a record of somebody else's
        assert_eq!(handle_all(&bench, &channel).await.len(), 1);
        bench.foreign(&format!("{channel}.g.dlq"), &[("mine", "1")], b"1").await;
        Redrive::new().to(&channel, "g").expect("good names")
    };
    let mut letters = open(&bench.broker, &channel).await;
    let all = within("the letter is there", async {
        loop {
            let all = read(&mut letters, 16).await;
            if !all.is_empty() {
                return all;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let failure = all[0].failure();
    if given_up {
        assert_eq!(failure.reason, Some(Reason::Rejected), "{failure:?}");
        assert_eq!((failure.channel.as_deref(), failure.group.as_deref()), (Some(&*channel), Some("g")));
        assert!(failure.last_failed_ms.is_some() && failure.error.is_some(), "{failure:?}");
    } else {
        assert_eq!(failure, Failure::default());
        let outcomes = bench.broker.redrive(&mut letters, &all, &Redrive::new()).await;
        let error = outcomes[0].as_ref().expect_err("nobody knows where it belongs");
        assert_eq!(error.kind(), postrider_core::ErrorKind::Config, "{error}");
    }
    let outcomes = bench.broker.redrive(&mut letters, &all, &how).await;
    assert!(matches!(outcomes[..], [Ok(Redriven::Sent(_))]), "{outcomes:?}");
    let handled = handle_all(&bench, &channel).await;
    assert_eq!(handled.len(), 1);
    let (got, _) = &handled[0];
    assert_eq!(
        (number_of(got), text(got, "mine"), text(got, "postrider-dlq-redrives")),
        (1, "1".into(), "1".into())
    );
    Passed
}

/// The corrected letter takes the place of the first, says so, and is what its group gets.
pub async fn corrected_letter_takes_its_place(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let message = Envelope::builder(Bytes::from_static(b"{oops")).key("k").header("mine", "1");
    let sent = message.build(bench.broker.env()).expect("it is legal");
    bench.broker.publish(&*channel, sent.clone()).await.expect("it is confirmed");
    fail_all(&bench, &channel).await;
    let mut letters = open(&bench.broker, &channel).await;
    let first = read(&mut letters, 16).await;
    let place = letters.describe(first[0].origin);
    bench.broker.edit(&mut letters, &first[0], Bytes::from_static(b"42")).await.expect("it is confirmed");
    let corrected = read(&mut letters, 16).await;
    assert_eq!(corrected.len(), 1);
    let failure = corrected[0].failure();
    assert_eq!(failure.edited_from.as_deref(), Some(&*place));
    assert_eq!((failure.reason, failure.group.as_deref()), (Some(Reason::Rejected), Some("g")));
    assert_eq!(letters.count().await.expect("they are counted"), 1, "the first is closed");
    let large = Bytes::from(vec![0; bench.broker.capabilities().usable_payload() + 1]);
    let error = bench.broker.edit(&mut letters, &corrected[0], large).await.expect_err("it is too large");
    assert_eq!(error.kind(), postrider_core::ErrorKind::TooLarge, "{error}");
    let outcomes = bench.broker.redrive(&mut letters, &corrected, &Redrive::new()).await;
    assert!(matches!(outcomes[..], [Ok(Redriven::Sent(_))]), "{outcomes:?}");
    let handled = handle_all(&bench, &channel).await;
    assert_eq!(handled.len(), 1);
    let (got, _) = &handled[0];
    assert_eq!((number_of(got), got.id(), text(got, "mine")), (42, sent.id(), "1".into()));
    assert_eq!(got.headers().get("postrider-dlq-edited-from"), None);
    Passed
}

/// Ended between the confirm and the closing, a redrive leaves the letter open. The next one doubles it, or says that the broker took it
/// for a double; lost it is never.
pub async fn interrupted_between_confirm_and_close(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    bench.broker.publish(&*channel, number(1).key("k")).await.expect("it is confirmed");
    fail_all(&bench, &channel).await;
    let mut letters = open(&bench.broker, &channel).await;
    let all = read(&mut letters, 16).await;
    let once = bench.broker.redrive(&mut letters, &all, &Redrive::new()).await;
    assert!(matches!(once[..], [Ok(Redriven::Sent(_))]), "{once:?}");
    // as if the closing had never come about: the same letter again
    let twice = bench.broker.redrive(&mut letters, &all, &Redrive::new()).await;
    let expected = if bench.broker.capabilities().has(Capability::Dedupe) {
        let error = twice[0].as_ref().expect_err("the broker has it");
        assert!(error.is_temporary() && error.operation() == "redrive", "{error}");
        1
    } else {
        assert!(matches!(twice[..], [Ok(Redriven::Sent(_))]), "{twice:?}");
        2
    };
    assert_eq!(handle_all(&bench, &channel).await.len(), expected);
    Passed
}

/// Where each message is handled once, a message in the dead letters counts as dealt with, and its redrive opens it again: also one that
/// came without an id of its own.
pub async fn its_identity_is_opened_again(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let store: Arc<MemoryStore> = Arc::default();
    let message = number(1).key("k").build(bench.broker.env()).expect("it is legal");
    for n in 0..3 {
        let mut options = PublishOptions::default();
        options.hop = Some(format!("copy/{n}").into());
        let outgoing = Outgoing::new(&*channel, message.clone()).with(options);
        bench.broker.send(outgoing).await.await.expect("it is confirmed");
    }
    bench.foreign(&channel, &[], b"2").await;
    let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
    let mut reports = Vec::new();
    for fails in [true, true, false] {
        if !reports.is_empty() {
            assert_eq!(redrive_all(&bench, &channel, &Redrive::new()).await, 2);
        }
        let into = Arc::clone(&seen);
        let handler = move |envelope: Envelope| {
            if !fails {
                into.lock().expect("nobody panicked").push(number_of(&envelope));
            }
            async move { postrider_core::Classify::permanent(if fails { Err("a bug") } else { Ok(()) }) }
        };
        let options = RouteOptions::new(&*channel, "g").idempotency(Idempotency::auto());
        let router = Router::new().route(options.handle(handler)).idempotency(Arc::clone(&store));
        let service = router.start(&bench.broker).await.expect("it starts");
        within("nothing is left to do", service.idle()).await;
        let report = service.stop(DRAIN).await.expect("it stops");
        let route = &report.routes[0];
        reports.push((route.handled, route.duplicates, route.dead_lettered));
    }
    assert_eq!(reports, [(0, 2, 2), (0, 0, 2), (2, 0, 0)], "handled, duplicates, dead-lettered");
    let mut seen = seen.lock().expect("nobody panicked").clone();
    seen.sort_unstable();
    assert_eq!(seen, [1, 2]);
    Passed
}
