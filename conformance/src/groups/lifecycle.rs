//! What starting, stopping and losing the broker promise.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postrider_core::{
    Backoff, Envelope, ErrorKind, HealthState, Jitter, Publisher, PublisherExt, Retry, RouteOptions, Router,
    Stop,
};
use tokio::sync::{Notify, Semaphore};

use crate::kit::{Bench, DRAIN, eventually, number, number_of, subscribe, unique, within};
use crate::record::Outcome::{self, Passed, Skipped};

pub async fn drain_finishes_what_runs(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let (started, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, wait) = (Arc::clone(&started), Arc::clone(&gate));
    let handler = move |_: Envelope, stop: Stop| {
        let (count, wait) = (Arc::clone(&count), Arc::clone(&wait));
        async move {
            count.fetch_add(1, Relaxed);
            // ends only because the service stops
            stop.stopping().await;
            let _open = wait.acquire().await;
        }
    };
    let route = RouteOptions::new(&*channel, "g").handle(handler);
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    bench.publish_count(&channel, 5).await;
    eventually("all five run", || started.load(Relaxed) == 5).await;
    gate.add_permits(5);
    let report = within("it stops", service.stop(DRAIN)).await.expect("it stops in good order");
    assert!(report.drained);
    assert_eq!((report.routes[0].handled, report.routes[0].cancelled), (5, 0));
    bench.subscribe(&channel, "g").await.nothing().await;
    Passed
}

pub async fn drain_starts_nothing_new(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let (started, stopping) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, told) = (Arc::clone(&started), Arc::clone(&stopping));
    let handler = move |_: Envelope, stop: Stop| {
        let (count, told) = (Arc::clone(&count), Arc::clone(&told));
        async move {
            count.fetch_add(1, Relaxed);
            stop.stopping().await;
            told.notify_one();
        }
    };
    let route = RouteOptions::new(&*channel, "g").handle(handler);
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    bench.publish_keys(&channel, &["k"; 10]).await;
    eventually("the first one runs", || started.load(Relaxed) == 1).await;
    let report = within("it stops", service.stop(DRAIN)).await.expect("it stops in good order");
    assert_eq!((started.load(Relaxed), report.routes[0].handled), (1, 1));
    let mut reader = bench.subscribe(&channel, "g").await;
    assert_eq!(
        reader.take_numbers(9).await,
        (1..10).collect::<Vec<_>>(),
        "the rest was given back, in order"
    );
    Passed
}

pub async fn deadline_gives_the_rest_back(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let started = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&started);
    let handler = move |_: Envelope| {
        count.fetch_add(1, Relaxed);
        std::future::pending::<()>()
    };
    let route = RouteOptions::new(&*channel, "g").handle(handler);
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    bench.publish_keys(&channel, &["a", "b", "c"]).await;
    eventually("all three run", || started.load(Relaxed) == 3).await;
    let began = Instant::now();
    let report = within("it stops", service.stop(Duration::from_millis(300))).await.expect("it stops");
    assert!(!report.drained && began.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        (report.routes[0].handled, report.routes[0].dead_lettered, report.routes[0].given_back),
        (0, 0, 3)
    );
    let mut numbers = bench.subscribe(&channel, "g").await.take_numbers(3).await;
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
    Passed
}

pub async fn shutdown_in_a_retry_is_no_failure(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let ran = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ran);
    let handler = move |_: Envelope| {
        count.fetch_add(1, Relaxed);
        async { Err::<(), _>("not yet") }
    };
    let retry =
        Retry::new().attempts(2).backoff(Backoff::Fixed(Duration::from_mins(10))).jitter(Jitter::None);
    let route = RouteOptions::new(&*channel, "g").retry(retry).handle(handler);
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    bench.publish_count(&channel, 1).await;
    eventually("the first attempt fails", || service.report().routes[0].retried == 1).await;
    let report = within("it stops at once", service.stop(DRAIN)).await.expect("it stops");
    assert_eq!((ran.load(Relaxed), report.routes[0].dead_lettered, report.routes[0].given_back), (1, 0, 1));
    assert_eq!(bench.subscribe(&channel, "g").await.take_numbers(1).await, [0]);
    Passed
}

pub async fn health_is_told(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let gate = Arc::new(Semaphore::new(0));
    let wait = Arc::clone(&gate);
    let handler = move |_: Envelope| {
        let wait = Arc::clone(&wait);
        async move { drop(wait.acquire().await) }
    };
    let route =
        RouteOptions::new(&*channel, "g").name("slow").max_in_flight(16).partitions(1).handle(handler);
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    bench.publish_keys(&channel, &["hot"; 40]).await;
    eventually("a stuck key shows", || service.health().state == HealthState::Degraded).await;
    let health = service.health();
    assert_eq!(health.routes[0].route, "slow");
    assert!(
        health.routes[0].health.reason.as_ref().is_some_and(|reason| reason.contains("hot")),
        "{health:?}"
    );
    assert!(health.is_ready());
    gate.add_permits(100);
    within("all is handled", service.idle()).await;
    eventually("it is up again", || service.health().state == HealthState::Up).await;
    service.stop(DRAIN).await.expect("it stops");
    let gone = bench.reconnect_with(|settings| settings.tenant = unique("t")).await;
    gone.close(Instant::now() + Duration::from_secs(5)).await;
    eventually("a closed broker isn't up", || gone.health().state > HealthState::Up).await;
    Passed
}

pub async fn connect_to_nothing_names_the_address(bench: Bench) -> Outcome {
    let Some(connecting) = bench.factory().connect_to_nothing() else {
        return Skipped("a server's address");
    };
    let error = within("connecting ends", connecting).await;
    assert!(matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout), "{error}");
    let text = format!("{error} {error:?}");
    assert!(text.contains("127.0.0.1:") && !text.contains("s3cret"), "{text}");
    Passed
}

pub async fn wrong_credentials_are_clear(bench: Bench) -> Outcome {
    let Some(error) = bench.factory().wrong_credentials().await else {
        return Skipped("a server with accounts");
    };
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    Passed
}

pub async fn routes_of_one_group_are_independent(bench: Bench) -> Outcome {
    let (one, two) = (bench.channel().await, bench.channel().await);
    let seen: Arc<Mutex<Vec<(u8, usize)>>> = Arc::default();
    let note = |which: u8| {
        let seen = Arc::clone(&seen);
        move |envelope: Envelope| {
            seen.lock().expect("nobody panicked").push((which, number_of(&envelope)));
            std::future::ready(())
        }
    };
    let router = Router::new()
        .route(RouteOptions::new(&*one, "g").name("one").handle(note(1)))
        .route(RouteOptions::new(&*two, "g").name("two").handle(note(2)));
    let service = router.start(&bench.broker).await.expect("it starts");
    bench.publish_keys(&one, &["k"; 3]).await;
    bench.broker.publish(&*two, number(9).key("k")).await.expect("it is confirmed");
    within("all is handled", service.idle()).await;
    service.stop(DRAIN).await.expect("it stops");
    let mut seen = seen.lock().expect("nobody panicked").clone();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 0), (1, 1), (1, 2), (2, 9)]);
    Passed
}

pub async fn subscribe_close_cycles_leak_nothing(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    bench.subscribe(&channel, "g").await.close().await;
    // the tasks of the first round have ended before they are counted
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = alive();
    for n in 0..20 {
        bench.broker.publish(&*channel, number(n)).await.expect("it is confirmed");
        let mut reader = bench.subscribe(&channel, "g").await;
        assert_eq!(reader.take_numbers(1).await, [n]);
        reader.close().await;
    }
    eventually("every task of a closed subscription has ended", || alive() <= before).await;
    Passed
}

pub async fn broker_killed_under_load_loses_nothing(bench: Bench) -> Outcome {
    let Some(controls) = bench.controls().await else {
        return Skipped("fault controls");
    };
    let mut settings = bench.settings.clone();
    settings.claim_timeout = Some(Duration::from_secs(2));
    let broker = controls.connect(settings).await;
    let channel = unique("c");
    broker.declare(&channel).await.expect("it is declared");
    let seen: Arc<Mutex<BTreeSet<usize>>> = Arc::default();
    let into = Arc::clone(&seen);
    let handler = move |envelope: Envelope| {
        into.lock().expect("nobody panicked").insert(number_of(&envelope));
        std::future::ready(())
    };
    let route = RouteOptions::new(&*channel, "g").claim_timeout(Duration::from_secs(2)).handle(handler);
    let service = Router::new().route(route).start(&broker).await.expect("it starts");
    controls.settled().await;
    let mut confirmed = BTreeSet::new();
    for round in 0..3 {
        let mut confirms = Vec::new();
        for n in 0..2000 {
            let number_ = round * 2000 + n;
            let confirm = broker.enqueue(&*channel, number(number_).key(format!("k{}", n % 50))).await;
            if n < 500 {
                // some are stored before the kill, however slow the broker is
                if within("the confirm is resolved", confirm).await.is_ok() {
                    confirmed.insert(number_);
                }
            } else {
                confirms.push((number_, confirm));
            }
            if n == 1000 {
                controls.kill().await;
                controls.start().await;
            }
        }
        for (number, confirm) in confirms {
            if within("the confirm is resolved", confirm).await.is_ok() {
                confirmed.insert(number);
            }
        }
    }
    assert!(confirmed.len() > 3000, "{} confirmed", confirmed.len());
    within("every confirmed message is handled", async {
        while !confirmed.is_subset(&seen.lock().expect("nobody panicked")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    service.stop(DRAIN).await.expect("it stops");
    Passed
}

pub async fn paused_broker_is_waited_for(bench: Bench) -> Outcome {
    let Some(controls) = bench.controls().await else {
        return Skipped("fault controls");
    };
    let broker = controls.connect(bench.settings.clone()).await;
    let channel = unique("c");
    broker.declare(&channel).await.expect("it is declared");
    let mut reader = subscribe(&broker, &channel, "g", |_| {}).await;
    broker.publish(&*channel, number(1)).await.expect("it is confirmed");
    assert_eq!(reader.take_numbers(1).await, [1]);
    controls.pause().await;
    let sent = broker.enqueue(&*channel, number(2)).await;
    reader.nothing().await;
    controls.resume().await;
    within("the confirm comes after all", sent).await.expect("nothing was lost");
    assert_eq!(reader.take_numbers(1).await, [2]);
    Passed
}
